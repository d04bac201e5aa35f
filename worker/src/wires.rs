//! From assignments to the desired wires of this node. Pure; `skep-netdrv` makes the kernel show the result.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use skep_net_plan::{
    Attachment, Desired, DnsConfig, Endpoint, HostPort, Network, Peer, Protocol, PublishedPort, Sandbox, Service,
    ServiceNetwork, Subnet, Underlay,
};
use skep_proto::v1::assignment::Kind;
use skep_proto::v1::{
    self, NetworkAssignment, PublishMode, ServiceAssignment, ServiceEndpoint, TaskAssignment, TaskState,
};

use crate::assignments::Assignments;

/// What the node itself brings to its wires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Where VXLAN is sent from.
    pub underlay: Underlay,
    /// Subnet of the gateway bridge.
    pub gateway: Subnet,
    /// The node's own resolvers, asked for names that the cluster does not know.
    pub upstream: Vec<SocketAddr>,
}

/// The wires that the assignments ask for. `sandboxes` are the tasks whose network namespace is open: only these are
/// plugged in. What can't be read (a damaged address) is left out and named in the second part.
pub fn desired(assignments: &Assignments, facts: &Facts, sandboxes: &[String]) -> (Desired, Vec<String>) {
    let mut problems = Vec::new();
    let mut wires = Desired {
        generation: assignments.generation,
        underlay: facts.underlay.clone(),
        gateway: facts.gateway,
        networks: BTreeMap::new(),
        services: BTreeMap::new(),
        attachments: BTreeMap::new(),
    };
    for kind in assignments.kinds() {
        match kind {
            Kind::Node(node) => {
                if let Ok(port) = u16::try_from(node.data_path_port)
                    && port != 0
                {
                    wires.underlay.port = port;
                }
            }
            Kind::Network(assigned) => match network(assigned) {
                Some(network) => drop(wires.networks.insert(assigned.id.clone(), network)),
                None => problems.push(format!("network {} has a damaged subnet or address", assigned.id)),
            },
            Kind::Service(assigned) => drop(wires.services.insert(assigned.id.clone(), service(assigned))),
            Kind::Task(assigned) => {
                if let Some(task) = &assigned.task
                    && sandboxes.contains(&task.id)
                {
                    wires.attachments.insert(task.id.clone(), sandbox(assigned, task, facts));
                }
            }
            Kind::Secret(_) | Kind::Config(_) => {}
        }
    }
    (wires, problems)
}

fn network(assigned: &NetworkAssignment) -> Option<Network> {
    let peer = |p: &v1::NetworkPeer| {
        let peer = Peer { underlay: p.data_path_address.parse().ok()?, balancer: p.balancer.parse().ok()? };
        Some((p.node_id.clone(), peer))
    };
    Some(Network {
        id: assigned.id.clone(),
        name: assigned.name.clone(),
        vni: assigned.vni,
        subnet: assigned.subnet.parse().ok()?,
        balancer: assigned.balancer.parse().ok()?,
        ingress: assigned.ingress,
        internal: assigned.internal,
        peers: assigned.peers.iter().filter_map(peer).collect(),
    })
}

fn service(assigned: &ServiceAssignment) -> Service {
    let aliases = |network_id: &str| {
        let found = assigned.aliases.iter().find(|a| a.network_id == network_id);
        found.map(|a| a.names.clone()).unwrap_or_default()
    };
    let networks = assigned.virtual_ips.iter().map(|ip| {
        let reached = ServiceNetwork { vip: ip.address.parse().ok(), aliases: aliases(&ip.network_id) };
        (ip.network_id.clone(), reached)
    });
    Service {
        id: assigned.id.clone(),
        name: assigned.name.clone(),
        networks: networks.collect(),
        ports: assigned.ports.iter().filter(|p| p.mode() == PublishMode::Ingress).filter_map(published).collect(),
        endpoints: assigned.endpoints.iter().filter_map(endpoint).collect(),
    }
}

fn published(port: &v1::PortConfig) -> Option<PublishedPort> {
    Some(PublishedPort {
        protocol: protocol(port)?,
        published: u16::try_from(port.published_port).ok().filter(|p| *p != 0)?,
        target: u16::try_from(port.target_port).ok().filter(|p| *p != 0)?,
    })
}

fn protocol(port: &v1::PortConfig) -> Option<Protocol> {
    match port.protocol() {
        v1::Protocol::Tcp => Some(Protocol::Tcp),
        v1::Protocol::Udp => Some(Protocol::Udp),
        v1::Protocol::Sctp => None,
    }
}

fn endpoint(assigned: &ServiceEndpoint) -> Option<Endpoint> {
    Some(Endpoint {
        task_id: assigned.task_id.clone(),
        name: assigned.name.clone(),
        node_id: assigned.node_id.clone(),
        underlay: assigned.data_path_address.parse().ok()?,
        ready: assigned.ready,
        addresses: assigned.networks.iter().filter_map(address).collect(),
    })
}

fn address(network: &v1::TaskNetwork) -> Option<(String, Ipv4Addr)> {
    Some((network.network_id.clone(), network.address.parse().ok()?))
}

fn sandbox(assigned: &TaskAssignment, task: &v1::Task, facts: &Facts) -> Sandbox {
    let container = assigned.spec.as_ref().and_then(|s| s.container.as_ref());
    let dns = container.and_then(|c| c.dns.clone()).unwrap_or_default();
    let given: Vec<SocketAddr> =
        dns.nameservers.iter().filter_map(|n| n.parse().ok()).map(|ip| SocketAddr::new(ip, 53)).collect();
    let attachment = |n: &v1::TaskNetwork| {
        let attachment = Attachment { address: n.address.parse().ok()?, aliases: n.aliases.clone() };
        Some((n.network_id.clone(), attachment))
    };
    let host_port = |p: &v1::PortConfig| {
        let PublishedPort { protocol, published, target } = published(p)?;
        Some(HostPort { protocol, published, target })
    };
    let live = task.desired_state() <= TaskState::Running;
    Sandbox {
        hostname: container.map(|c| crate::container::hostname(task, c)).unwrap_or_default(),
        networks: task.networks.iter().filter_map(attachment).collect(),
        host_ports: if live { task.host_ports.iter().filter_map(host_port).collect() } else { Vec::new() },
        gateway: true,
        dns: DnsConfig {
            upstream: if given.is_empty() { facts.upstream.clone() } else { given },
            ..DnsConfig::default()
        },
    }
}
