//! Neighbour entries (which Ethernet address has an IP address) and forwarding entries (where an Ethernet address is).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::address::family;
use super::{Handle, Mac, Result};

/// A neighbour entry that never expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    /// Index of the link.
    pub device: u32,
    /// The neighbour's IP address.
    pub address: IpAddr,
    /// The neighbour's Ethernet address.
    pub mac: Mac,
}

/// A forwarding entry that never expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fdb {
    /// Index of the link: a VXLAN, or a port of a bridge.
    pub device: u32,
    /// The Ethernet address.
    pub mac: Mac,
    /// Whose table the entry is in.
    pub place: FdbPlace,
}

/// The two tables that a VXLAN in a bridge has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FdbPlace {
    /// The VXLAN's own (`self permanent`): the node behind which the address is.
    Tunnel {
        /// That node's address on the underlay.
        remote: IpAddr,
    },
    /// The bridge's (`master static`): the address is behind this port.
    Bridge,
}

impl Handle {
    /// Adds a permanent neighbour entry; an entry of any state for the same address is an error.
    pub async fn add_neighbour(&self, entry: &Neighbour) -> Result<()> {
        let what = || format!("add neighbour {} on link {}", entry.address, entry.device);
        self.act(RouteNetlinkMessage::NewNeighbour(neighbour_message(entry)), NLM_F_CREATE | NLM_F_EXCL, what).await
    }

    /// Adds a permanent neighbour entry, in place of any for the same address.
    pub async fn replace_neighbour(&self, entry: &Neighbour) -> Result<()> {
        let what = || format!("replace neighbour {} on link {}", entry.address, entry.device);
        self.act(RouteNetlinkMessage::NewNeighbour(neighbour_message(entry)), NLM_F_CREATE | NLM_F_REPLACE, what).await
    }

    /// Deletes a neighbour entry.
    pub async fn delete_neighbour(&self, device: u32, address: IpAddr) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = device;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        self.act(RouteNetlinkMessage::DelNeighbour(message), 0, || {
            format!("delete neighbour {address} on link {device}")
        })
        .await
    }

    /// All permanent neighbour entries of the namespace.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>> {
        let get = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        self.query(get, true, || "list neighbours".to_owned(), pick_neighbour).await
    }

    /// Adds a forwarding entry; one for the same address in the same table is an error.
    pub async fn add_fdb(&self, entry: &Fdb) -> Result<()> {
        let what = || format!("add forwarding entry {} on link {}", entry.mac, entry.device);
        self.act(RouteNetlinkMessage::NewNeighbour(fdb_message(entry)), NLM_F_CREATE | NLM_F_EXCL, what).await
    }

    /// Adds a forwarding entry, in place of one for the same address in the same table.
    pub async fn replace_fdb(&self, entry: &Fdb) -> Result<()> {
        let what = || format!("replace forwarding entry {} on link {}", entry.mac, entry.device);
        self.act(RouteNetlinkMessage::NewNeighbour(fdb_message(entry)), NLM_F_CREATE | NLM_F_REPLACE, what).await
    }

    /// Deletes a forwarding entry.
    pub async fn delete_fdb(&self, entry: &Fdb) -> Result<()> {
        let what = || format!("delete forwarding entry {} on link {}", entry.mac, entry.device);
        self.act(RouteNetlinkMessage::DelNeighbour(fdb_message(entry)), 0, what).await
    }

    /// All forwarding entries of the namespace that were written down: learned ones and the bridge ports' own addresses
    /// are left out.
    pub async fn fdb(&self) -> Result<Vec<Fdb>> {
        let mut get = NeighbourMessage::default();
        get.header.family = AddressFamily::Bridge;
        self.query(RouteNetlinkMessage::GetNeighbour(get), true, || "list forwarding entries".to_owned(), pick_fdb)
            .await
    }
}

fn neighbour_message(entry: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(entry.address);
    message.header.ifindex = entry.device;
    message.header.state = NeighbourState::Permanent;
    message.attributes.extend([
        NeighbourAttribute::Destination(entry.address.into()),
        NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()),
    ]);
    message
}

fn pick_neighbour(message: RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let address = match message.header.family {
        AddressFamily::Inet | AddressFamily::Inet6 => destination(&message)?,
        _ => return None,
    };
    Some(Neighbour { device: message.header.ifindex, address, mac: mac(&message)? })
}

fn fdb_message(entry: &Fdb) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = entry.device;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    match entry.place {
        FdbPlace::Tunnel { remote } => {
            message.header.flags = NeighbourFlags::Own;
            message.header.state = NeighbourState::Permanent;
            message.attributes.push(NeighbourAttribute::Destination(remote.into()));
        }
        FdbPlace::Bridge => {
            message.header.flags = NeighbourFlags::Controller;
            // "Static" in the bridge's words: permanent would make it an address of the bridge itself.
            message.header.state = NeighbourState::Noarp;
        }
    }
    message
}

fn pick_fdb(message: RouteNetlinkMessage) -> Option<Fdb> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    let own = message.header.flags.contains(NeighbourFlags::Own);
    let in_bridge = message.attributes.iter().any(|a| matches!(a, NeighbourAttribute::Controller(_)));
    let place = match (own, in_bridge, message.header.state) {
        (true, _, NeighbourState::Permanent) => FdbPlace::Tunnel { remote: destination(&message)? },
        (false, true, NeighbourState::Noarp) => FdbPlace::Bridge,
        _ => return None,
    };
    Some(Fdb { device: message.header.ifindex, mac: mac(&message)?, place })
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some(IpAddr::V4(*a)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
        // In a bridge's message the library does not know the family, so the length has to tell.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.as_slice() {
            bytes if bytes.len() == 4 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
            bytes if bytes.len() == 16 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))),
            _ => None,
        },
        _ => None,
    })
}

fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}
