//! From assignments to the desired wires of this node. Pure; `skep-netdrv` makes the kernel show the result.
//!
//! Assignments that came unchanged (they are shared from one set to the next) give the very same networks, services and
//! sandboxes again, so that whoever gets the result can see at once what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use skep_net_plan::{
    Attachment, Desired, DnsConfig, Endpoint, HostPort, Network, Peer, Protocol, PublishedPort, Sandbox, Service,
    ServiceNetwork, Subnet, Underlay,
};
use skep_proto::v1::assignment::Kind;
use skep_proto::v1::{
    self, Assignment, NetworkAssignment, PublishMode, ServiceAssignment, ServiceEndpoint, TaskAssignment, TaskState,
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

/// What assignments were turned into the last time, by id. The assignment is kept with it: while it is the same one, so is
/// what is made of it.
type Made<T> = BTreeMap<String, (Arc<Assignment>, T)>;

/// Turns one set of assignments after another into desired wires.
#[derive(Debug)]
pub struct Wiring {
    facts: Facts,
    networks: Made<Option<Arc<Network>>>,
    services: Made<Arc<Service>>,
    sandboxes: Made<Arc<Sandbox>>,
}

impl Wiring {
    /// Nothing was turned into anything yet.
    pub fn new(facts: Facts) -> Self {
        Self { facts, networks: Made::new(), services: Made::new(), sandboxes: Made::new() }
    }

    /// The wires that the assignments ask for. `sandboxes` are the tasks whose network namespace is open: only these are
    /// plugged in. What can't be read (a damaged address) is left out and named in the second part.
    pub fn desired(&mut self, assignments: &Assignments, sandboxes: &[String]) -> (Desired, Vec<String>) {
        let mut problems = Vec::new();
        let mut wires = Desired {
            generation: assignments.generation,
            underlay: self.facts.underlay.clone(),
            gateway: self.facts.gateway,
            ..Desired::default()
        };
        let (facts, open) = (&self.facts, sandboxes.iter().collect::<BTreeSet<_>>());
        let (mut networks, mut services, mut plugged) = (Made::new(), Made::new(), Made::new());
        for item in assignments.shared() {
            match &item.kind {
                Some(Kind::Node(node)) => {
                    if let Ok(port) = u16::try_from(node.data_path_port)
                        && port != 0
                    {
                        wires.underlay.port = port;
                    }
                }
                Some(Kind::Network(assigned)) => {
                    let id = assigned.id.clone();
                    match again(&self.networks, &mut networks, &id, item, || network(assigned).map(Arc::new)) {
                        Some(network) => drop(wires.networks.insert(id, network)),
                        None => problems.push(format!("network {id} has a damaged subnet or address")),
                    }
                }
                Some(Kind::Service(assigned)) => {
                    let id = assigned.id.clone();
                    let made = again(&self.services, &mut services, &id, item, || Arc::new(service(assigned)));
                    wires.services.insert(id, made);
                }
                Some(Kind::Task(assigned)) => {
                    if let Some(task) = assigned.task.as_ref().filter(|task| open.contains(&task.id)) {
                        let make = || Arc::new(sandbox(assigned, task, facts));
                        let made = again(&self.sandboxes, &mut plugged, &task.id, item, make);
                        wires.attachments.insert(task.id.clone(), made);
                    }
                }
                Some(Kind::Secret(_) | Kind::Config(_)) | None => {}
            }
        }
        (self.networks, self.services, self.sandboxes) = (networks, services, plugged);
        (wires, problems)
    }
}

/// What was made of the same assignment the last time, or what is made of it now; kept in `next`.
fn again<T: Clone>(
    last: &Made<T>,
    next: &mut Made<T>,
    id: &str,
    item: &Arc<Assignment>,
    make: impl FnOnce() -> T,
) -> T {
    let before = last.get(id).filter(|(of, _)| Arc::ptr_eq(of, item)).map(|(_, made)| made.clone());
    let made = before.unwrap_or_else(make);
    next.insert(id.to_owned(), (item.clone(), made.clone()));
    made
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

/// Ports of this node that a task takes for itself.
pub(crate) fn host_ports(task: &v1::Task) -> Vec<(Protocol, u16)> {
    task.host_ports.iter().filter_map(published).map(|port| (port.protocol, port.published)).collect()
}

/// Ports that every node publishes for a service.
pub(crate) fn ingress_ports(kind: &Kind) -> impl Iterator<Item = (Protocol, u16)> + '_ {
    let ports = if let Kind::Service(service) = kind { service.ports.as_slice() } else { &[] };
    let ingress = ports.iter().filter(|port| port.mode() == PublishMode::Ingress).filter_map(published);
    ingress.map(|port| (port.protocol, port.published))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::AssignmentChange;

    use super::*;

    fn put(kind: Kind) -> Assignment {
        Assignment { kind: Some(kind) }
    }

    fn assigned_network(id: &str, subnet: &str) -> Assignment {
        put(Kind::Network(NetworkAssignment {
            id: id.into(),
            subnet: subnet.into(),
            balancer: "10.0.1.2".into(),
            ..NetworkAssignment::default()
        }))
    }

    fn assigned_service(id: &str, ready: bool) -> Assignment {
        let address = v1::TaskNetwork { network_id: "n".into(), address: "10.0.1.9".into(), ..Default::default() };
        let endpoint = ServiceEndpoint {
            task_id: "t".into(),
            data_path_address: "192.0.2.1".into(),
            ready,
            networks: vec![address],
            ..ServiceEndpoint::default()
        };
        let service = ServiceAssignment { id: id.into(), endpoints: vec![endpoint], ..ServiceAssignment::default() };
        put(Kind::Service(service))
    }

    fn assigned_task(id: &str) -> Assignment {
        let task = v1::Task { id: id.into(), ..v1::Task::default() };
        put(Kind::Task(TaskAssignment { task: Some(task), ..TaskAssignment::default() }))
    }

    fn wiring() -> Wiring {
        Wiring::new(Facts {
            underlay: Underlay { address: Ipv4Addr::LOCALHOST, port: 4789, mtu: 0 },
            gateway: Subnet::new(Ipv4Addr::new(172, 19, 0, 0), 16),
            upstream: Vec::new(),
        })
    }

    fn change(generation: u64, put: Vec<Assignment>) -> AssignmentChange {
        AssignmentChange { generation, put, ..AssignmentChange::default() }
    }

    #[test]
    fn what_came_unchanged_is_the_same_again_and_the_rest_is_as_from_nothing() {
        let mut held = wiring();
        let open = ["a".to_owned()];
        let first = vec![
            assigned_network("n", "10.0.1.0/24"),
            assigned_network("bad", "10.0.1"),
            assigned_service("s", true),
            assigned_service("other", true),
            assigned_task("a"),
            assigned_task("closed"),
        ];
        let before = Assignments::default().take(change(1, first)).unwrap();
        let (one, problems) = held.desired(&before, &open);
        assert_eq!(problems, ["network bad has a damaged subnet or address"]);
        assert_eq!(one.attachments.keys().collect::<Vec<_>>(), ["a"]);
        let after = before.take(change(2, vec![assigned_service("s", false)])).unwrap();
        let (two, problems) = held.desired(&after, &open);
        assert_eq!(problems.len(), 1, "what is wrong stays named");
        assert_eq!(two, wiring().desired(&after, &open).0);
        assert!(!two.services["s"].endpoints[0].ready);
        assert!(Arc::ptr_eq(&one.services["other"], &two.services["other"]));
        assert!(Arc::ptr_eq(&one.networks["n"], &two.networks["n"]));
        assert!(Arc::ptr_eq(&one.attachments["a"], &two.attachments["a"]));
        assert!(!Arc::ptr_eq(&one.services["s"], &two.services["s"]));
        // A sandbox that was closed and opened again is found again.
        assert!(held.desired(&after, &[]).0.attachments.is_empty());
        assert_eq!(held.desired(&after, &open).0, two);
    }
}
