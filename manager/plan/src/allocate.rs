//! Gives services their virtual addresses and published ports, tasks their addresses, nodes their balancers' addresses.
//!
//! An address is free only while no task that may still run, no service and no node holds it; the state keeps that
//! book and refuses a second holder. A service gets its part before its tasks get theirs, and a task may be scheduled
//! (PENDING) only once it has all of it.

mod network;
mod pools;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_proto::v1::{
    Endpoint, NetworkAttachmentConfig, Node, NodeAttachment, NodeChange, PortConfig, PublishMode, ResolutionMode,
    Service, Task, TaskChange, TaskNetwork, TaskSpec, TaskState, TaskStatus, VirtualIp,
};
use skep_state::State;
use skep_state::subnet::format_address;

use crate::draft::Draft;
use crate::reserved::Reserved;
pub(crate) use network::{Plan as NetworkPlan, plan as plan_network};
pub(crate) use pools::Pools;

/// Published ports that the allocator chooses from.
const DYNAMIC_PORTS: std::ops::RangeInclusive<u32> = 30_000..=32_767;

/// Whether a port is published on every node through the mesh.
pub(crate) fn is_mesh(port: &PortConfig) -> bool {
    port.mode() == PublishMode::Ingress
}

fn ports(service: &Service) -> &[PortConfig] {
    service.spec.as_ref().and_then(|s| s.endpoint.as_ref()).map_or(&[], |e| &e.ports)
}

/// The networks that a task of this spec is attached to, the mesh's last.
pub(crate) fn networks_of(state: &State, service: &Service, spec: &TaskSpec) -> Vec<NetworkAttachmentConfig> {
    let mut networks: Vec<NetworkAttachmentConfig> = Vec::with_capacity(spec.networks.len() + 1);
    for network in &spec.networks {
        if networks.iter().all(|n| n.target != network.target) {
            networks.push(network.clone());
        }
    }
    if ports(service).iter().any(is_mesh)
        && let Some(ingress) = state.ingress()
        && networks.iter().all(|n| n.target != ingress.id)
    {
        networks.push(NetworkAttachmentConfig { target: ingress.id.clone(), ..NetworkAttachmentConfig::default() });
    }
    networks
}

/// Allocates for services whose endpoint does not serve their spec yet.
pub(crate) fn services(draft: &mut Draft<'_>, pools: &mut Pools) {
    let view = draft.state.clone();
    for service in view.services().filter(|s| !s.removing) {
        if let Some(endpoint) = endpoint(&draft.state, service, pools) {
            draft.put_service(Service { endpoint: Some(endpoint), ..service.as_ref().clone() });
        }
    }
}

/// What the service should have, if that differs from what it has.
fn endpoint(state: &State, service: &Service, pools: &mut Pools) -> Option<Endpoint> {
    let spec = service.spec.as_ref()?;
    let wanted = networks_of(state, service, spec.task.as_ref()?);
    let has = service.endpoint.as_ref();
    if has.is_none() && wanted.is_empty() && ports(service).is_empty() {
        return None;
    }
    let dnsrr = spec.endpoint.as_ref().is_some_and(|e| e.mode() == ResolutionMode::Dnsrr);
    let held = |network: &str| {
        let address =
            has.and_then(|e| e.virtual_ips.iter().find(|v| v.network_id == network)).map(|v| v.address.clone());
        address.filter(|a| !a.is_empty())
    };
    let mut virtual_ips = Vec::with_capacity(wanted.len());
    for network in wanted {
        let address = if dnsrr {
            String::new()
        } else {
            match held(&network.target).or_else(|| pools.take(state, &network.target).map(format_address)) {
                Some(address) => address,
                // Without room the service waits; its tasks say why.
                None => continue,
            }
        };
        virtual_ips.push(VirtualIp { network_id: network.target, address });
    }
    let ports = publish(state, service)?;
    let endpoint = Endpoint { spec: spec.endpoint.clone(), ports, virtual_ips };
    (has != Some(&endpoint)).then_some(endpoint)
}

/// The service's ports with the published ones filled in; `None` while none are left.
fn publish(state: &State, service: &Service) -> Option<Vec<PortConfig>> {
    let has: &[PortConfig] = service.endpoint.as_ref().map_or(&[], |e| &e.ports);
    let mut taken: BTreeSet<(u32, i32)> =
        ports(service).iter().filter(|p| is_mesh(p)).map(|p| (p.published_port, p.protocol)).collect();
    let mut published = Vec::with_capacity(ports(service).len());
    for port in ports(service) {
        let mut port = port.clone();
        if is_mesh(&port) && port.published_port == 0 {
            let same = |p: &&PortConfig| {
                (&p.name, p.protocol, p.target_port, p.mode) == (&port.name, port.protocol, port.target_port, port.mode)
                    && !taken.contains(&(p.published_port, p.protocol))
            };
            let kept = has.iter().find(same).map(|p| p.published_port);
            let choose = || {
                let reserved = Reserved::of(state);
                DYNAMIC_PORTS.clone().find(|candidate| {
                    let key = (*candidate, port.protocol);
                    let needed = reserved.whom(*candidate, port.protocol());
                    !taken.contains(&key) && state.port_owner(key.0, key.1).is_none() && needed.is_none()
                })
            };
            port.published_port = kept.or_else(choose)?;
            taken.insert((port.published_port, port.protocol));
        }
        published.push(port);
    }
    Some(published)
}

/// Whether the service has all that its tasks stand on.
fn is_served(state: &State, service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let wanted = networks_of(state, service, &spec.task.clone().unwrap_or_default());
    match &service.endpoint {
        None => wanted.is_empty() && ports(service).is_empty(),
        Some(endpoint) => {
            endpoint.spec == spec.endpoint
                && wanted.iter().all(|n| endpoint.virtual_ips.iter().any(|v| v.network_id == n.target))
        }
    }
}

/// Gives new tasks their addresses and makes them PENDING.
pub(crate) fn tasks(draft: &mut Draft<'_>, pools: &mut Pools) {
    let view = draft.state.clone();
    let mut served: BTreeMap<&str, bool> = BTreeMap::new();
    let waits: Arc<str> =
        "waits for the addresses and ports of its service: a network or the range of ports is full".into();
    let pending: Arc<str> = "pending task scheduling".into();
    let mut nodes = NodesToCome::default();
    for task in view.tasks() {
        if task.observed() != TaskState::New || !task.in_service() {
            continue;
        }
        let Some(service) = view.service(&task.service_id).filter(|s| !s.removing) else { continue };
        let Some(spec) = view.task_spec(&task.service_id, task.spec_version) else { continue };
        let ready = *served.entry(task.service_id.as_str()).or_insert_with(|| is_served(&view, &service));
        let given = if ready { addresses(&view, &service, &spec, pools, &mut nodes) } else { Err(Arc::clone(&waits)) };
        let (state, message, networks) = match given {
            Ok(networks) => (TaskState::Pending, Arc::clone(&pending), networks),
            Err(message) => (TaskState::New, message, Vec::new()),
        };
        let old = task.status.as_ref();
        if state == TaskState::New && old.is_some_and(|s| *s.message == *message) {
            continue;
        }
        let message = message.as_ref().to_owned();
        // What keeps a task waiting is shown to people as its error.
        let error = if state == TaskState::New { message.clone() } else { String::new() };
        let status = TaskStatus { at_ns: draft.now_ns, state: state.into(), message, error, ..TaskStatus::default() };
        draft.change_task(TaskChange { id: task.id.clone(), networks, status: Some(status), ..TaskChange::default() });
    }
}

/// Nodes that will need an address of their own for tasks that have theirs and no node yet. A network that tasks alone
/// fill up runs none of them.
#[derive(Debug, Default)]
struct NodesToCome {
    /// All nodes there are.
    all: Option<u32>,
    /// Tasks that were given an address in this round, by network.
    given: BTreeMap<String, u32>,
    /// By network that is nearly full: tasks without a node when the round began, nodes without an address.
    near: BTreeMap<String, (u32, u32)>,
}

impl NodesToCome {
    /// Takes an address for one more task, if its node can have one as well.
    fn take(&mut self, state: &State, pools: &mut Pools, network: &str) -> Option<u32> {
        let all = *self.all.get_or_insert_with(|| count(state.nodes().count()));
        // With more than a node could ask for there is nothing to count.
        let others = if pools.left(state, network) > all { 0 } else { self.wanted(state, network) };
        let address = pools.take_beside(state, network, others)?;
        match self.given.get_mut(network) {
            Some(given) => *given += 1,
            None => drop(self.given.insert(network.to_owned(), 1)),
        }
        Some(address)
    }

    fn give_back(&mut self, pools: &mut Pools, network: &str, address: u32) {
        pools.give_back(network, address);
        if let Some(given) = self.given.get_mut(network) {
            *given -= 1;
        }
    }

    /// Addresses that nodes will want, once there is one more task.
    fn wanted(&mut self, state: &State, network: &str) -> u32 {
        let given = self.given.get(network).copied().unwrap_or_default();
        let (tasks, nodes) = *self.near.entry(network.to_owned()).or_insert_with(|| {
            let waits = |task: &&Arc<Task>| {
                task.node_id.is_empty()
                    && !task.observed().is_terminal()
                    && task.networks.iter().any(|n| n.network_id == network)
            };
            let bare = |node: &&Arc<Node>| node.attachments.iter().all(|a| a.network_id != network);
            (count(state.tasks().filter(waits).count()), count(state.nodes().filter(bare).count()))
        });
        nodes.min(tasks.saturating_add(given).saturating_add(1))
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// One address on each network, or why that is impossible.
fn addresses(
    state: &State,
    service: &Service,
    spec: &TaskSpec,
    pools: &mut Pools,
    nodes: &mut NodesToCome,
) -> Result<Vec<TaskNetwork>, Arc<str>> {
    let mut given: Vec<(TaskNetwork, u32)> = Vec::new();
    for network in networks_of(state, service, spec) {
        let Some(address) = nodes.take(state, pools, &network.target) else {
            for (network, address) in given {
                nodes.give_back(pools, &network.network_id, address);
            }
            return Err(pools.exhausted(state, &network.target));
        };
        let aliases = network.aliases;
        given.push((TaskNetwork { network_id: network.target, address: format_address(address), aliases }, address));
    }
    Ok(given.into_iter().map(|(network, _)| network).collect())
}

/// Gives every node an address on the mesh's network and on those of its tasks, and takes back what it needs no more.
pub(crate) fn nodes(draft: &mut Draft<'_>, pools: &mut Pools) {
    let view = draft.state.clone();
    let mut needed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for task in view.tasks().filter(|t| occupies(t)) {
        let networks = task.networks.iter().map(|n| n.network_id.as_str());
        needed.entry(task.node_id.as_str()).or_default().extend(networks);
    }
    let ingress = view.ingress().map(|n| n.id.as_str());
    for node in view.nodes() {
        let mut wanted = needed.remove(node.id.as_str()).unwrap_or_default();
        wanted.extend(ingress);
        let has: BTreeSet<&str> = node.attachments.iter().map(|a| a.network_id.as_str()).collect();
        let attachments: Vec<NodeAttachment> = wanted
            .difference(&has)
            .filter_map(|network| {
                let address = pools.take(&view, network).map(format_address)?;
                Some(NodeAttachment { network_id: (*network).to_owned(), address })
            })
            .collect();
        let detach_network_ids: Vec<String> = has.difference(&wanted).map(|n| (*n).to_owned()).collect();
        if !attachments.is_empty() || !detach_network_ids.is_empty() {
            draft.change_node(NodeChange {
                id: node.id.clone(),
                attachments,
                detach_network_ids,
                ..NodeChange::default()
            });
        }
    }
}

/// Whether a node has the task and it may still run there.
pub(crate) fn occupies(task: &Task) -> bool {
    !task.node_id.is_empty() && task.observed() >= TaskState::Assigned && !task.observed().is_terminal()
}
