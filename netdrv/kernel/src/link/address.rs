//! Addresses of links.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Handle, IpNet, Result};

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Index of the link.
    pub device: u32,
    /// The address and the prefix of its network.
    pub net: IpNet,
}

impl Handle {
    /// Gives a link an address.
    pub async fn add_address(&self, device: u32, net: IpNet) -> Result<()> {
        let what = || format!("add address {net} to link {device}");
        self.act(RouteNetlinkMessage::NewAddress(message(device, net)), NLM_F_CREATE | NLM_F_EXCL, what).await
    }

    /// Takes an address from a link.
    pub async fn delete_address(&self, device: u32, net: IpNet) -> Result<()> {
        let what = || format!("delete address {net} of link {device}");
        self.act(RouteNetlinkMessage::DelAddress(message(device, net)), 0, what).await
    }

    /// All addresses of the namespace.
    pub async fn addresses(&self) -> Result<Vec<Address>> {
        let get = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.query(get, true, || "list addresses".to_owned(), pick).await
    }
}

fn message(device: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.address);
    message.header.prefix_len = net.prefix;
    message.header.index = device;
    message.attributes.extend([AddressAttribute::Local(net.address), AddressAttribute::Address(net.address)]);
    message
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn pick(message: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    // IPv6 has only the second, IPv4 both, which differ on point-to-point links.
    let net = IpNet::new(local.or(address)?, message.header.prefix_len);
    Some(Address { device: message.header.index, net })
}
