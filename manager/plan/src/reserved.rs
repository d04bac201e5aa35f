//! Ports that the cluster itself needs on its nodes: no service may publish them, and the allocator doesn't choose them.

use std::collections::BTreeSet;

use skep_proto::v1::Protocol;
use skep_state::State;

use crate::defaults;

/// Where managers listen unless told otherwise.
const MANAGERS: u32 = 2377;
/// Kept for traffic between nodes, as the standard ports of a swarm have it.
const NODES: u32 = 7946;

/// The ports of one cluster.
#[derive(Debug)]
pub(crate) struct Reserved {
    /// TCP.
    managers: BTreeSet<u32>,
    /// UDP.
    data_path: u32,
}

impl Reserved {
    /// Reads the addresses of all managers that are known.
    pub(crate) fn of(state: &State) -> Self {
        let addresses = state.nodes().filter_map(|n| n.manager.as_ref()).map(|m| m.address.as_str());
        let managers = addresses.filter_map(port).chain([MANAGERS]).collect();
        Self { managers, data_path: defaults::data_path_port(state) }
    }

    /// Who needs the port, if anybody does.
    pub(crate) fn whom(&self, port: u32, protocol: Protocol) -> Option<&'static str> {
        match protocol {
            Protocol::Tcp if self.managers.contains(&port) => Some("the managers"),
            Protocol::Tcp | Protocol::Udp if port == NODES => Some("traffic between nodes"),
            Protocol::Udp if port == self.data_path => Some("overlay traffic between nodes"),
            _ => None,
        }
    }
}

/// The port of `host:port`.
pub(crate) fn port(address: &str) -> Option<u32> {
    address.rsplit_once(':')?.1.parse::<u16>().ok().map(u32::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_addresses() {
        for (address, expected) in [
            ("10.0.0.1:2399", Some(2399)),
            ("[fd00::1]:2400", Some(2400)),
            ("manager.example:1", Some(1)),
            ("10.0.0.1", None),
            ("10.0.0.1:", None),
            ("10.0.0.1:70000", None),
            ("", None),
        ] {
            assert_eq!(port(address), expected, "{address}");
        }
    }
}
