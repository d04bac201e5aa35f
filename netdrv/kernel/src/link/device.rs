//! Making, changing and deleting links: bridges, VXLANs and veth pairs.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};

use super::{Error, Handle, Mac, Result};
use crate::ns::Namespace;

/// Longest name of a link: the kernel's `IFNAMSIZ` without the final NUL.
const MAX_NAME: usize = 15;

/// A bridge to be made.
#[derive(Debug, Clone, Default)]
pub struct Bridge<'a> {
    /// Name of the link, 1 to 15 bytes.
    pub name: &'a str,
    /// Its Ethernet address; `None` lets the kernel choose.
    pub mac: Option<Mac>,
    /// Largest packet in bytes; `None` leaves the kernel's default.
    pub mtu: Option<u32>,
    /// Bring it up at once.
    pub up: bool,
    /// Let the bridge track multicast groups. Off means no reports and queries of its own.
    pub multicast_snooping: bool,
}

/// A VXLAN to be made. Its UDP socket stays in the namespace of the handle that makes it, wherever the link goes.
#[derive(Debug, Clone)]
pub struct Vxlan<'a> {
    /// Name of the link, 1 to 15 bytes.
    pub name: &'a str,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port, 4789 by convention.
    pub port: u16,
    /// The node's own address on the underlay.
    pub local: Ipv4Addr,
    /// Learn remote addresses from traffic. The overlay says no: its entries are all written down.
    pub learning: bool,
    /// Its Ethernet address; `None` lets the kernel choose.
    pub mac: Option<Mac>,
    /// Largest inner packet in bytes: the underlay's less 50.
    pub mtu: Option<u32>,
    /// Where the link shall appear; `None` is the handle's own namespace.
    pub namespace: Option<&'a Namespace>,
}

/// One end of a veth pair to be made.
#[derive(Debug, Clone, Default)]
pub struct VethEnd<'a> {
    /// Name of the link, 1 to 15 bytes.
    pub name: &'a str,
    /// Its Ethernet address; `None` lets the kernel choose.
    pub mac: Option<Mac>,
    /// Largest packet in bytes; `None` leaves the kernel's default.
    pub mtu: Option<u32>,
    /// Index of the bridge to join, in the end's own namespace.
    pub master: Option<u32>,
    /// Bring it up at once. For the peer this and `master` cost a request of their own (the kernel opens no peer whose other
    /// end isn't there yet), and where it is in another namespace a short-lived handle; a caller that has a handle there
    /// does better with [`Handle::change`].
    pub up: bool,
    /// Where the end shall appear; `None` is the handle's own namespace.
    pub namespace: Option<&'a Namespace>,
}

/// What to change of a link; `None` leaves a property as it is. All of it goes to the kernel in one request.
#[derive(Debug, Clone, Default)]
pub struct Change<'a> {
    /// Up or down.
    pub up: Option<bool>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// New name; the kernel wants the link down for it on old versions.
    pub name: Option<&'a str>,
    /// Index of the bridge to join; 0 leaves the bridge.
    pub master: Option<u32>,
    /// Free text that marks the owner of a link, at most 255 bytes.
    pub alias: Option<&'a str>,
    /// Where to move the link.
    pub namespace: Option<&'a Namespace>,
}

/// Flags of a bridge port; `None` leaves (or, in a dump, does not know) a flag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Port {
    /// Learn addresses from the traffic that comes in.
    pub learning: Option<bool>,
    /// Answer ARP and neighbour solicitations from the bridge's own neighbour table instead of flooding them.
    pub neigh_suppress: Option<bool>,
    /// Let a frame leave by the port that it came in by.
    pub hairpin: Option<bool>,
    /// Flood frames for unknown unicast addresses to this port.
    pub flood: Option<bool>,
    /// Flood multicast to this port.
    pub multicast_flood: Option<bool>,
    /// Flood broadcast to this port.
    pub broadcast_flood: Option<bool>,
    /// Talk only to ports that are not isolated.
    pub isolated: Option<bool>,
}

impl Handle {
    /// Makes a bridge.
    pub async fn add_bridge(&self, bridge: &Bridge<'_>) -> Result<()> {
        let what = || format!("add bridge {}", bridge.name);
        let mut message = named(bridge.name, what)?;
        common(&mut message, bridge.mac, bridge.mtu, None, bridge.up, None);
        let data = vec![InfoBridge::MulticastSnooping(bridge.multicast_snooping)];
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(data)),
        ]));
        self.act(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, what).await
    }

    /// Makes a VXLAN.
    pub async fn add_vxlan(&self, vxlan: &Vxlan<'_>) -> Result<()> {
        let what = || format!("add VXLAN {} (identifier {})", vxlan.name, vxlan.vni);
        let mut message = named(vxlan.name, what)?;
        if vxlan.vni >= 1 << 24 {
            return Err(Error::Invalid { what: what(), why: "a VXLAN identifier has 24 bits" });
        }
        common(&mut message, vxlan.mac, vxlan.mtu, None, false, vxlan.namespace);
        let data = vec![
            InfoVxlan::Id(vxlan.vni),
            InfoVxlan::Local(vxlan.local),
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::Learning(vxlan.learning),
        ];
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(data)),
        ]));
        self.act(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, what).await
    }

    /// Makes a veth pair, each end straight in its namespace with its final name, address and size. Deleting one end
    /// deletes both. On an error neither is left.
    pub async fn add_veth(&self, end: &VethEnd<'_>, peer: &VethEnd<'_>) -> Result<()> {
        let what = || format!("add veth pair {} and {}", end.name, peer.name);
        let mut message = named(end.name, what)?;
        common(&mut message, end.mac, end.mtu, end.master, end.up, end.namespace);
        let mut other = named(peer.name, what)?;
        common(&mut other, peer.mac, peer.mtu, None, false, peer.namespace);
        // The kernel would make a queue for each processor, use one, and give the others up again, each time waiting for
        // all processors.
        for end in [&mut message, &mut other] {
            end.attributes.extend([LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)]);
        }
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.act(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, what).await?;
        if !peer.up && peer.master.is_none() {
            return Ok(());
        }
        let there = match peer.namespace {
            Some(namespace) => Self::open(namespace),
            None => Ok(self.clone()),
        };
        let there = match there {
            Ok(there) => there,
            Err(e) => return Err(self.undo_veth(end, e).await),
        };
        let finished = async {
            let index = there.index(peer.name).await?;
            there.change(index, &Change { up: Some(peer.up), master: peer.master, ..Change::default() }).await
        };
        match finished.await {
            Ok(()) => Ok(()),
            // Through the peer's handle, which is sure to be in the namespace of one of the two.
            Err(e) => {
                let _ = there.delete_link_named(peer.name).await;
                Err(e)
            }
        }
    }

    /// Deletes a pair again that could not be finished; the error that matters is the first.
    async fn undo_veth(&self, end: &VethEnd<'_>, error: Error) -> Error {
        if end.namespace.is_none() {
            let _ = self.delete_link_named(end.name).await;
        }
        error
    }

    /// Changes properties of a link.
    pub async fn change(&self, index: u32, change: &Change<'_>) -> Result<()> {
        let what = || format!("change link {index}");
        let mut message = LinkMessage::default();
        message.header.index = index;
        common(&mut message, change.mac, change.mtu, change.master, false, change.namespace);
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        if let Some(name) = change.name {
            check_name(name, what)?;
            message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        }
        if let Some(alias) = change.alias {
            message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        }
        self.act(RouteNetlinkMessage::SetLink(message), 0, what).await
    }

    /// Brings a link up.
    pub async fn set_up(&self, index: u32) -> Result<()> {
        self.change(index, &Change { up: Some(true), ..Change::default() }).await
    }

    /// Brings a link down.
    pub async fn set_down(&self, index: u32) -> Result<()> {
        self.change(index, &Change { up: Some(false), ..Change::default() }).await
    }

    /// Puts a link into a bridge, or out of it (`None`).
    pub async fn set_master(&self, index: u32, master: Option<u32>) -> Result<()> {
        self.change(index, &Change { master: Some(master.unwrap_or(0)), ..Change::default() }).await
    }

    /// Moves a link to another namespace; it arrives down and without addresses.
    pub async fn move_to(&self, index: u32, namespace: &Namespace) -> Result<()> {
        self.change(index, &Change { namespace: Some(namespace), ..Change::default() }).await
    }

    /// Sets flags of a bridge port; the link has to be in a bridge.
    pub async fn set_port(&self, index: u32, port: &Port) -> Result<()> {
        let flags = [
            port.learning.map(InfoBridgePort::Learning),
            port.neigh_suppress.map(InfoBridgePort::NeighSupress),
            port.hairpin.map(InfoBridgePort::HairpinMode),
            port.flood.map(InfoBridgePort::UnicastFlood),
            port.multicast_flood.map(InfoBridgePort::MulticastFlood),
            port.broadcast_flood.map(InfoBridgePort::BroadcastFlood),
            port.isolated.map(InfoBridgePort::Isolated),
        ];
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(flags.into_iter().flatten().collect())),
        ]));
        self.act(RouteNetlinkMessage::NewLink(message), 0, || format!("set flags of bridge port {index}")).await
    }

    /// Deletes a link.
    pub async fn delete_link(&self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.act(RouteNetlinkMessage::DelLink(message), 0, || format!("delete link {index}")).await
    }

    /// Deletes the link of that name.
    pub async fn delete_link_named(&self, name: &str) -> Result<()> {
        let what = || format!("delete link {name}");
        let message = named(name, what)?;
        self.act(RouteNetlinkMessage::DelLink(message), 0, what).await
    }
}

/// A message for the link of that name.
pub(super) fn named(name: &str, what: impl Fn() -> String) -> Result<LinkMessage> {
    check_name(name, what)?;
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Ok(message)
}

fn check_name(name: &str, what: impl Fn() -> String) -> Result<()> {
    let fits = (1..=MAX_NAME).contains(&name.len());
    let clean = name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%');
    if fits && clean && name != "." && name != ".." {
        return Ok(());
    }
    Err(Error::Invalid { what: what(), why: "a link name has 1 to 15 printable bytes without '/', ':', '%' and space" })
}

/// The properties that all kinds of links share.
fn common(
    message: &mut LinkMessage,
    mac: Option<Mac>,
    mtu: Option<u32>,
    master: Option<u32>,
    up: bool,
    namespace: Option<&Namespace>,
) {
    let attributes = [
        mac.map(|m| LinkAttribute::Address(m.0.to_vec())),
        mtu.map(LinkAttribute::Mtu),
        master.map(LinkAttribute::Controller),
        namespace.map(|n| LinkAttribute::NetNsFd(n.as_fd().as_raw_fd())),
    ];
    message.attributes.extend(attributes.into_iter().flatten());
    if up {
        message.header.flags |= LinkFlags::Up;
        message.header.change_mask |= LinkFlags::Up;
    }
}
