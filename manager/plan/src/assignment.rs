//! What a node is told: its own tasks with their secrets and configs, the networks that these and the mesh need, and
//! the services that can be reached on those networks. Nothing else leaves the managers (least knowledge).
//!
//! Called by the dispatcher of every manager for every session, whenever the state has changed, through [`Part`].

mod part;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_proto::v1::{
    Assignment, AssignmentKey, AssignmentKind, Network, NetworkAssignment, NetworkPeer, Node, NodeAssignment, Service,
    ServiceAliases, ServiceAssignment, ServiceEndpoint, Task, TaskAssignment, TaskSpec, TaskState, assignment::Kind,
};
use skep_state::State;

use crate::allocate::{is_mesh, occupies};
use crate::defaults;

pub use part::Part;

/// Everything that a node holds, by kind and id.
pub type AssignmentSet = BTreeMap<(AssignmentKind, String), Arc<Assignment>>;

/// What a node is sent: to put, and to remove.
pub type Change = (Vec<Arc<Assignment>>, Vec<AssignmentKey>);

/// The part of the state that a node needs. Empty for a node that is not known.
pub fn for_node(state: &State, node_id: &str) -> AssignmentSet {
    whole(state, node_id).1
}

/// The networks that a node sees, with its address on each, and everything that it needs.
fn whole(state: &State, node_id: &str) -> (BTreeMap<String, String>, AssignmentSet) {
    let Some(node) = state.node(node_id) else { return Default::default() };
    let (wanted, mut set) = own(state, &node);
    let networks = networks_of(&node, &wanted);
    for (id, balancer) in &networks {
        if let Some(network) = state.network(id) {
            let network = network_assignment(state, &node, &network, balancer);
            put(&mut set, AssignmentKind::Network, id, Kind::Network(network));
        }
    }
    for service in state.services() {
        if let Some(service) = service_assignment(state, service, &networks) {
            let id = service.id.clone();
            put(&mut set, AssignmentKind::Service, &id, Kind::Service(service));
        }
    }
    (networks, set)
}

/// What a node is told of itself and of its own tasks, and the networks that these need.
fn own(state: &State, node: &Node) -> (BTreeSet<String>, AssignmentSet) {
    let mut set = AssignmentSet::new();
    let role = node.spec.as_ref().map_or(0, |s| s.role);
    let itself = NodeAssignment { role, data_path_port: defaults::data_path_port(state) };
    put(&mut set, AssignmentKind::Node, &node.id, Kind::Node(itself));
    let mut wanted: BTreeSet<String> = state.ingress().iter().map(|n| n.id.clone()).collect();
    for task in state.tasks_of_node(&node.id).filter(|t| is_given(t)) {
        let spec = state.task_spec(&task.service_id, task.spec_version);
        if !task.observed().is_terminal() {
            if let Some(spec) = &spec {
                put_files(state, &mut set, spec);
            }
            wanted.extend(task.networks.iter().map(|n| n.network_id.clone()));
        }
        put(&mut set, AssignmentKind::Task, &task.id, Kind::Task(task_assignment(state, task, spec.as_deref())));
    }
    (wanted, set)
}

/// A network is of no use before the node has its own address on it.
fn networks_of(node: &Node, wanted: &BTreeSet<String>) -> BTreeMap<String, String> {
    let attached = node.attachments.iter().filter(|a| wanted.contains(&a.network_id));
    attached.map(|a| (a.network_id.clone(), a.address.clone())).collect()
}

/// What changes between what a node holds and what it should: to put, and to remove.
///
/// A task that differs only in what the worker itself has reported is not sent again.
pub fn diff(held: &AssignmentSet, next: &AssignmentSet) -> Change {
    let put = next
        .iter()
        .filter(|(key, assignment)| held.get(*key).is_none_or(|old| !same(old, assignment)))
        .map(|(_, assignment)| Arc::clone(assignment))
        .collect();
    let remove = held
        .keys()
        .filter(|key| !next.contains_key(*key))
        .map(|(kind, id)| AssignmentKey { kind: (*kind).into(), id: id.clone() })
        .collect();
    (put, remove)
}

fn same(old: &Arc<Assignment>, new: &Arc<Assignment>) -> bool {
    if Arc::ptr_eq(old, new) {
        return true;
    }
    match (&old.kind, &new.kind) {
        (Some(Kind::Task(a)), Some(Kind::Task(b))) => {
            let desired = |t: &TaskAssignment| t.task.as_ref().map(|t| Task { meta: None, status: None, ..t.clone() });
            (desired(a), &a.spec, &a.service_name, &a.service_labels)
                == (desired(b), &b.spec, &b.service_name, &b.service_labels)
        }
        _ => old == new,
    }
}

fn put(set: &mut AssignmentSet, kind: AssignmentKind, id: &str, assignment: Kind) {
    set.insert((kind, id.to_owned()), Arc::new(Assignment { kind: Some(assignment) }));
}

/// Whether the node has to know the task: it was given to it. One that has ended stays until its history is reaped: the
/// node keeps its logs that long.
fn is_given(task: &Task) -> bool {
    task.observed() >= TaskState::Assigned
}

fn task_assignment(state: &State, task: &Task, spec: Option<&TaskSpec>) -> TaskAssignment {
    let service = state.service(&task.service_id);
    let annotations = service.as_ref().and_then(|s| s.spec.as_ref()).and_then(|s| s.annotations.as_ref());
    TaskAssignment {
        task: Some(task.clone()),
        spec: spec.cloned(),
        service_name: annotations.map(|a| a.name.clone()).unwrap_or_default(),
        service_labels: annotations.map(|a| a.labels.clone()).unwrap_or_default(),
    }
}

fn put_files(state: &State, set: &mut AssignmentSet, spec: &TaskSpec) {
    let Some(container) = &spec.container else { return };
    for reference in &container.secrets {
        if let Some(secret) = state.secret(&reference.secret_id) {
            put(set, AssignmentKind::Secret, &secret.id, Kind::Secret(secret.as_ref().clone()));
        }
    }
    for reference in &container.configs {
        if let Some(config) = state.config(&reference.config_id) {
            put(set, AssignmentKind::Config, &config.id, Kind::Config(config.as_ref().clone()));
        }
    }
}

fn network_assignment(state: &State, node: &Node, network: &Network, balancer: &str) -> NetworkAssignment {
    let spec = network.spec.as_ref();
    let peers = state.nodes().filter(|peer| peer.id != node.id).filter_map(|peer| {
        let attachment = peer.attachments.iter().find(|a| a.network_id == network.id)?;
        Some(NetworkPeer {
            node_id: peer.id.clone(),
            data_path_address: data_path_address(peer),
            balancer: attachment.address.clone(),
        })
    });
    NetworkAssignment {
        id: network.id.clone(),
        name: spec.and_then(|s| s.annotations.as_ref()).map(|a| a.name.clone()).unwrap_or_default(),
        vni: network.vni,
        subnet: network.subnet.clone(),
        balancer: balancer.to_owned(),
        ingress: spec.is_some_and(|s| s.ingress),
        internal: spec.is_some_and(|s| s.internal),
        driver_options: spec.and_then(|s| s.driver.as_ref()).map(|d| d.options.clone()).unwrap_or_default(),
        peers: peers.collect(),
    }
}

fn data_path_address(node: &Node) -> String {
    node.description.as_ref().map(|d| d.data_path_address.clone()).unwrap_or_default()
}

/// The service as seen from a node with these networks; `None` if it is on none of them.
fn service_assignment(
    state: &State,
    service: &Service,
    networks: &BTreeMap<String, String>,
) -> Option<ServiceAssignment> {
    let endpoint = service.endpoint.as_ref()?;
    let here = |network: &str| networks.contains_key(network);
    if !endpoint.virtual_ips.iter().any(|v| here(&v.network_id)) {
        return None;
    }
    let spec = service.spec.as_ref();
    let task = spec.and_then(|s| s.task.as_ref());
    // While it is being removed, its name and ports may be another's already; what is connected goes on.
    let named = !service.removing;
    let name = spec.and_then(|s| s.annotations.as_ref()).filter(|_| named).map(|a| a.name.clone());
    let aliases = task.iter().flat_map(|t| &t.networks).filter(|n| named && here(&n.target) && !n.aliases.is_empty());
    Some(ServiceAssignment {
        id: service.id.clone(),
        name: name.unwrap_or_default(),
        virtual_ips: endpoint.virtual_ips.iter().filter(|v| here(&v.network_id)).cloned().collect(),
        ports: endpoint.ports.iter().filter(|p| named && is_mesh(p)).cloned().collect(),
        endpoints: state.tasks_of_service(&service.id).filter_map(|t| service_endpoint(state, t, networks)).collect(),
        aliases: aliases.map(|n| ServiceAliases { network_id: n.target.clone(), names: n.aliases.clone() }).collect(),
    })
}

fn service_endpoint(state: &State, task: &Task, networks: &BTreeMap<String, String>) -> Option<ServiceEndpoint> {
    let reachable = task.networks.iter().any(|n| networks.contains_key(n.network_id.as_str()));
    if !occupies(task) || !reachable {
        return None;
    }
    Some(ServiceEndpoint {
        task_id: task.id.clone(),
        name: task.name.clone(),
        node_id: task.node_id.clone(),
        data_path_address: state.node(&task.node_id).map(|n| data_path_address(&n)).unwrap_or_default(),
        ready: task.is_ready(),
        networks: task.networks.iter().filter(|n| networks.contains_key(n.network_id.as_str())).cloned().collect(),
    })
}
