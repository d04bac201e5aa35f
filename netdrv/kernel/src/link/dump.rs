//! Reading links back as plain values.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};

use super::device::named;
use super::{Error, Handle, Mac, Port, Result};

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name in its namespace.
    pub name: String,
    /// Ethernet address, of links that have one.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Set up by the administrator (not: carrier present).
    pub up: bool,
    /// Whether packets pass: a link that was set up, or whose other end was, gets there a moment later. Kinds of links that
    /// don't tell count as passing.
    pub operational: bool,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Index of the other end of a veth pair, in that end's namespace.
    pub peer: Option<u32>,
    /// Owner's text.
    pub alias: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// Flags of a bridge port.
    pub port: Option<Port>,
}

/// Kinds of links, with the properties that can't be changed once made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// A VXLAN.
    Vxlan {
        /// VXLAN network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
        /// The node's own address on the underlay.
        local: Option<IpAddr>,
        /// Learns remote addresses from traffic.
        learning: bool,
    },
    /// Anything else, by the kernel's name for it; empty for real devices and the loopback.
    Other(String),
}

impl Handle {
    /// All links of the namespace.
    pub async fn links(&self) -> Result<Vec<Link>> {
        let get = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.query(get, true, || "list links".to_owned(), pick).await
    }

    /// The link of that name.
    pub async fn link(&self, name: &str) -> Result<Link> {
        let what = || format!("find link {name}");
        let get = RouteNetlinkMessage::GetLink(named(name, what)?);
        self.query(get, false, what, pick).await?.pop().ok_or_else(|| Error::Unexpected { what: what() })
    }

    /// Index of the link of that name.
    pub async fn index(&self, name: &str) -> Result<u32> {
        Ok(self.link(name).await?.index)
    }
}

fn pick(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(link_of(message)),
        _ => None,
    }
}

fn link_of(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        operational: true,
        master: None,
        peer: None,
        alias: None,
        kind: Kind::Other(String::new()),
        port: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::OperState(state) => link.operational = matches!(state, State::Up | State::Unknown),
            LinkAttribute::Controller(master) => link.master = Some(master).filter(|m| *m != 0),
            LinkAttribute::Link(peer) => link.peer = Some(peer).filter(|p| *p != 0),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::LinkInfo(infos) => describe(&mut link, infos),
            _ => {}
        }
    }
    link
}

fn describe(link: &mut Link, infos: Vec<LinkInfo>) {
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => link.kind = Kind::Bridge,
            LinkInfo::Kind(InfoKind::Veth) => link.kind = Kind::Veth,
            LinkInfo::Kind(kind) => link.kind = Kind::Other(kind.to_string()),
            LinkInfo::Data(InfoData::Vxlan(data)) => link.kind = vxlan_of(&data),
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => link.port = Some(port_of(&data)),
            _ => {}
        }
    }
}

fn vxlan_of(data: &[InfoVxlan]) -> Kind {
    let (mut id, mut udp, mut own, mut learns) = (0, 0, None, false);
    for item in data {
        match item {
            InfoVxlan::Id(v) => id = *v,
            InfoVxlan::Port(v) => udp = *v,
            InfoVxlan::Local(v) => own = Some(IpAddr::V4(*v)),
            InfoVxlan::Local6(v) => own = Some(IpAddr::V6(*v)),
            InfoVxlan::Learning(v) => learns = *v,
            _ => {}
        }
    }
    Kind::Vxlan { vni: id, port: udp, local: own, learning: learns }
}

fn port_of(data: &[InfoBridgePort]) -> Port {
    let mut port = Port::default();
    for item in data {
        match item {
            InfoBridgePort::Learning(v) => port.learning = Some(*v),
            InfoBridgePort::NeighSupress(v) => port.neigh_suppress = Some(*v),
            InfoBridgePort::HairpinMode(v) => port.hairpin = Some(*v),
            InfoBridgePort::UnicastFlood(v) => port.flood = Some(*v),
            InfoBridgePort::MulticastFlood(v) => port.multicast_flood = Some(*v),
            InfoBridgePort::BroadcastFlood(v) => port.broadcast_flood = Some(*v),
            InfoBridgePort::Isolated(v) => port.isolated = Some(*v),
            _ => {}
        }
    }
    port
}
