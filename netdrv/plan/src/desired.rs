//! What a node's wires must show, as plain data: the worker fills it from its assignments, one value at a time, each
//! with a higher generation. It holds no decision and no kernel name.
//!
//! Networks, services and sandboxes are shared between one value and the next where they didn't change: what stays is then
//! recognised by its address, and a change costs what it changes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::subnet::Subnet;

/// Everything that the wires of one node must show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Version of this value; the status repeats it once it is in force.
    pub generation: u64,
    /// The network under the overlays.
    pub underlay: Underlay,
    /// Node-local subnet of the gateway bridge (for instance 172.19.0.0/16); the bridge takes the given host
    /// address, or the first one.
    pub gateway: Subnet,
    /// Overlay networks by id.
    pub networks: BTreeMap<String, Arc<Network>>,
    /// Services by id.
    pub services: BTreeMap<String, Arc<Service>>,
    /// What each sandbox is attached to, by sandbox id (the task's id).
    pub attachments: BTreeMap<String, Arc<Sandbox>>,
}

impl Default for Desired {
    fn default() -> Self {
        Self {
            generation: 0,
            underlay: Underlay { address: Ipv4Addr::UNSPECIFIED, port: 4789, mtu: 0 },
            gateway: Subnet::new(Ipv4Addr::new(172, 19, 0, 0), 16),
            networks: BTreeMap::new(),
            services: BTreeMap::new(),
            attachments: BTreeMap::new(),
        }
    }
}

/// This node's end of the network that carries the overlays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// The node's data-path address.
    pub address: Ipv4Addr,
    /// UDP port of VXLAN (RFC 7348 gives 4789).
    pub port: u16,
    /// Largest packet in bytes; 0 = that of the interface which holds the address.
    pub mtu: u32,
}

/// One overlay network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Id, unique in the cluster.
    pub id: String,
    /// Name as users wrote it; names resolve as `service.network` too.
    pub name: String,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Address range.
    pub subnet: Subnet,
    /// This node's own address on the network: that of its balancer.
    pub balancer: Ipv4Addr,
    /// Whether published ports enter the cluster through this network.
    pub ingress: bool,
    /// Whether containers on it get no way out (the caller then asks for no gateway in their sandboxes).
    pub internal: bool,
    /// The other nodes on the network, by node id.
    pub peers: BTreeMap<String, Peer>,
}

/// Another node on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its data-path address.
    pub underlay: Ipv4Addr,
    /// Its balancer's address on the network.
    pub balancer: Ipv4Addr,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Id, unique in the cluster.
    pub id: String,
    /// Name, as resolved by its clients.
    pub name: String,
    /// The networks it is reachable on, by network id.
    pub networks: BTreeMap<String, ServiceNetwork>,
    /// Ports that every node publishes.
    pub ports: Vec<PublishedPort>,
    /// Its tasks that have addresses.
    pub endpoints: Vec<Endpoint>,
}

/// A service on one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceNetwork {
    /// The virtual address; `None` = names answer with the endpoints themselves (dnsrr).
    pub vip: Option<Ipv4Addr>,
    /// More names of the service on this network.
    pub aliases: Vec<String>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// The lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port that every node accepts for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port on the nodes.
    pub published: u16,
    /// The port in the container.
    pub target: u16,
}

/// A task of a service, wherever it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Id of the task.
    pub task_id: String,
    /// Name of its container.
    pub name: String,
    /// Node it runs on.
    pub node_id: String,
    /// Data-path address of that node.
    pub underlay: Ipv4Addr,
    /// Whether it gets new connections.
    pub ready: bool,
    /// Its address on each network, by network id.
    pub addresses: BTreeMap<String, Ipv4Addr>,
}

/// What the namespace of one container is wired to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Host name of the container.
    pub hostname: String,
    /// Its overlay networks, by network id.
    pub networks: BTreeMap<String, Attachment>,
    /// Ports of this node alone that lead to the container; they need the gateway.
    pub host_ports: Vec<HostPort>,
    /// Whether it is attached to the gateway bridge (the way out).
    pub gateway: bool,
    /// Where names go that the cluster doesn't know.
    pub dns: DnsConfig,
}

/// One container on one overlay network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its address there.
    pub address: Ipv4Addr,
    /// Names for it that containers of this node resolve.
    pub aliases: Vec<String>,
}

/// A port of this node that leads to one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port on the node.
    pub published: u16,
    /// The port in the container.
    pub target: u16,
}

/// The resolver settings of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Servers for names that the cluster doesn't know, in order; asked from the node's own namespace.
    pub upstream: Vec<SocketAddr>,
    /// Search domains, for the container's resolv.conf.
    pub search: Vec<String>,
    /// Resolver options, for the container's resolv.conf.
    pub options: Vec<String>,
}
