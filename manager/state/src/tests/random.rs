//! Any commands at all: determinism, indexes, snapshots, and states that never go back.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::subnet::parse_address;
use crate::tables::{Named, Owner};

/// A command of actions that fit often, but not always.
#[derive(Debug, Clone)]
enum Op {
    PutNode(u8),
    PutService {
        id: u8,
        name: u8,
        image: u8,
        removing: bool,
        vip: u8,
        port: u8,
    },
    PutTask {
        id: u8,
        service: u8,
        slot: u8,
        node: u8,
        old_spec: bool,
    },
    PutNetwork {
        id: u8,
        name: u8,
    },
    PutSecret {
        id: u8,
        name: u8,
    },
    Remove {
        kind: u8,
        id: u8,
    },
    Task {
        id: u8,
        node: Option<u8>,
        state: Option<u8>,
        desired: Option<u8>,
        address: Option<u8>,
        drain: bool,
        reporter: Option<u8>,
    },
    Node {
        id: u8,
        attach: Option<u8>,
        detach: bool,
    },
}

const STATES: [TaskState; 10] = [
    TaskState::New,
    TaskState::Pending,
    TaskState::Assigned,
    TaskState::Preparing,
    TaskState::Running,
    TaskState::Complete,
    TaskState::Shutdown,
    TaskState::Failed,
    TaskState::Rejected,
    TaskState::Orphaned,
];

fn op() -> impl Strategy<Value = Op> {
    let id = 0..4_u8;
    let some = |range| proptest::option::of(range);
    prop_oneof![
        2 => id.clone().prop_map(Op::PutNode),
        2 => (id.clone(), id.clone(), 0..3_u8, prop::bool::weighted(0.2), 0..6_u8, 0..4_u8)
            .prop_map(|(id, name, image, removing, vip, port)| Op::PutService { id, name, image, removing, vip, port }),
        3 => (0..6_u8, id.clone(), 0..3_u8, 0..5_u8, any::<bool>())
            .prop_map(|(id, service, slot, node, old_spec)| Op::PutTask { id, service, slot, node, old_spec }),
        1 => (id.clone(), id.clone()).prop_map(|(id, name)| Op::PutNetwork { id, name }),
        1 => (id.clone(), id.clone()).prop_map(|(id, name)| Op::PutSecret { id, name }),
        1 => (1..6_u8, 0..6_u8).prop_map(|(kind, id)| Op::Remove { kind, id }),
        4 => (0..6_u8, some(0..4_u8), some(0..10_u8), some(0..10_u8), some(0..6_u8), any::<bool>(), some(0..4_u8))
            .prop_map(|(id, node, state, desired, address, drain, reporter)| {
                Op::Task { id, node, state, desired, address, drain, reporter }
            }),
        1 => (id, some(0..6_u8), any::<bool>()).prop_map(|(id, attach, detach)| Op::Node { id, attach, detach }),
    ]
}

fn ip(n: u8) -> String {
    format!("10.0.0.{}", n + 2)
}

impl Op {
    /// The action, made against the present state as a caller would.
    fn action(&self, state: &State) -> Action {
        match self.clone() {
            Self::PutNode(id) => {
                let id = format!("n{id}");
                let meta = state.node(&id).and_then(|n| n.meta);
                put(object::Kind::Node(Node { meta, ..node(&id) }))
            }
            Self::PutService { id, name, image, removing, vip, port } => {
                let id = format!("s{id}");
                let mut next = service(&id, &format!("name{name}"), &format!("image:{image}"));
                if let Some(old) = state.service(&id) {
                    next.meta = old.meta;
                    next.previous_spec = old.spec.clone();
                    next.previous_spec_version = old.spec_version;
                }
                next.removing = removing;
                let ports = vec![PortConfig { published_port: port.into(), target_port: 80, ..PortConfig::default() }];
                let virtual_ips = vec![VirtualIp { network_id: "w0".into(), address: ip(vip) }];
                next.endpoint = Some(Endpoint { spec: None, ports, virtual_ips });
                put(object::Kind::Service(next))
            }
            Self::PutTask { id, service, slot, node, old_spec } => {
                let (id, service_id) = (format!("t{id}"), format!("s{service}"));
                let versions = state.service(&service_id).map(|s| (s.spec_version, s.previous_spec_version));
                let (current, previous) = versions.unwrap_or_default();
                let mut next = task(&id, &service_id, if old_spec { previous } else { current }, slot.into());
                if let Some(old) = state.task(&id) {
                    next = old.as_ref().clone();
                }
                if node < 4 && next.node_id.is_empty() {
                    next.node_id = format!("n{node}");
                }
                put(object::Kind::Task(next))
            }
            Self::PutNetwork { id, name } => {
                let key = format!("w{id}");
                let meta = state.network(&key).and_then(|n| n.meta);
                let next = network(&key, &format!("name{name}"), &format!("10.0.{id}.0/24"), 4096 + u32::from(id));
                put(object::Kind::Network(Network { meta, ..next }))
            }
            Self::PutSecret { id, name } => {
                let id = format!("x{id}");
                let meta = state.secret(&id).and_then(|s| s.meta);
                let spec = SecretSpec { annotations: named(&format!("name{name}")), ..SecretSpec::default() };
                put(object::Kind::Secret(Secret { id, meta, spec: Some(spec) }))
            }
            Self::Remove { kind, id } => {
                let (kind, letter) = match kind {
                    1 => (ObjectKind::Node, 'n'),
                    2 => (ObjectKind::Service, 's'),
                    3 => (ObjectKind::Task, 't'),
                    4 => (ObjectKind::Network, 'w'),
                    _ => (ObjectKind::Secret, 'x'),
                };
                remove(kind, &format!("{letter}{id}"))
            }
            Self::Task { id, node, state: to, desired, address: at, drain, reporter } => {
                let quiet = reporter.is_some();
                change(TaskChange {
                    id: format!("t{id}"),
                    node_id: node.filter(|_| !quiet).map(|n| format!("n{n}")),
                    desired_state: desired.filter(|_| !quiet).map(|d| STATES[usize::from(d)].into()),
                    status: to.and_then(|s| status(STATES[usize::from(s)])),
                    networks: at.filter(|_| !quiet).map(|n| address("w0", &ip(n))).into_iter().collect(),
                    drain: drain && !quiet,
                    reporter_node_id: reporter.map(|n| format!("n{n}")).unwrap_or_default(),
                })
            }
            Self::Node { id, attach, detach } => {
                let attachments: Vec<_> =
                    attach.map(|n| NodeAttachment { network_id: "w0".into(), address: ip(n) }).into_iter().collect();
                let detach_network_ids = if detach { vec!["w0".into()] } else { Vec::new() };
                let change =
                    NodeChange { id: format!("n{id}"), attachments, detach_network_ids, ..NodeChange::default() };
                Action { kind: Some(action::Kind::Node(change)) }
            }
        }
    }
}

/// Compares every index with what a full rescan of the tables says.
fn check_indexes(state: &State) -> Result<(), TestCaseError> {
    let by_service: BTreeMap<_, _> =
        state.tasks.values().map(|t| ((t.service_id.clone(), t.slot, t.id.clone()), t.clone())).collect();
    let held: BTreeMap<_, _> =
        state.by_service.iter().map(|(k, t)| ((k.0.to_string(), k.1, k.2.to_string()), t.clone())).collect();
    prop_assert_eq!(by_service, held);
    let by_node: BTreeMap<_, _> = state
        .tasks
        .values()
        .filter(|t| !t.node_id.is_empty())
        .map(|t| ((t.node_id.clone(), t.id.clone()), t.clone()))
        .collect();
    let held: BTreeMap<_, _> =
        state.by_node.iter().map(|(k, t)| ((k.0.to_string(), k.1.to_string()), t.clone())).collect();
    prop_assert_eq!(by_node, held);

    let mut names = BTreeMap::new();
    let name = |a: Option<&Annotations>| a.map(|a| a.name.clone()).unwrap_or_default();
    for s in state.services.values().filter(|s| !s.removing) {
        names.insert((Named::Service, name(s.spec.as_ref().and_then(|s| s.annotations.as_ref()))), s.id.clone());
    }
    for n in state.networks.values() {
        names.insert((Named::Network, name(n.spec.as_ref().and_then(|s| s.annotations.as_ref()))), n.id.clone());
    }
    for s in state.secrets.values() {
        names.insert((Named::Secret, name(s.spec.as_ref().and_then(|s| s.annotations.as_ref()))), s.id.clone());
    }
    let held: BTreeMap<_, _> = state.names.iter().map(|(k, id)| ((k.0, k.1.to_string()), id.to_string())).collect();
    prop_assert_eq!(names, held);

    let mut addresses: BTreeMap<(String, u32), String> = BTreeMap::new();
    let mut hold = |network: &str, address: &str, owner: String| {
        let other = parse_address(address).and_then(|a| addresses.insert((network.to_owned(), a), owner));
        prop_assert_eq!(other, None, "two owners of {} on {}", address, network);
        Ok(())
    };
    for t in state.tasks.values().filter(|t| !t.observed().is_terminal()) {
        t.networks.iter().try_for_each(|n| hold(&n.network_id, &n.address, format!("task {}", t.id)))?;
    }
    for n in state.nodes.values() {
        n.attachments.iter().try_for_each(|a| hold(&a.network_id, &a.address, format!("node {}", n.id)))?;
    }
    for s in state.services.values() {
        let ips = s.endpoint.iter().flat_map(|e| &e.virtual_ips);
        ips.into_iter().try_for_each(|v| hold(&v.network_id, &v.address, format!("service {}", s.id)))?;
    }
    let owner = |o: &Owner| match o {
        Owner::Task(id) => format!("task {id}"),
        Owner::Node(id) => format!("node {id}"),
        Owner::Service(id) => format!("service {id}"),
    };
    let held: BTreeMap<_, _> = state.addresses.iter().map(|(k, o)| ((k.0.to_string(), k.1), owner(o))).collect();
    prop_assert_eq!(addresses, held);

    let mut ports = BTreeMap::new();
    for s in state.services.values().filter(|s| !s.removing) {
        for port in s.endpoint.iter().flat_map(|e| &e.ports).filter(|p| p.published_port != 0) {
            ports.insert((port.published_port, port.protocol), s.id.clone());
        }
    }
    let held: BTreeMap<_, _> = state.ports.iter().map(|(k, id)| (*k, id.to_string())).collect();
    prop_assert_eq!(ports, held);

    let mut specs: BTreeSet<(String, u64)> =
        state.tasks.values().map(|t| (t.service_id.clone(), t.spec_version)).collect();
    for s in state.services.values() {
        specs.insert((s.id.clone(), s.spec_version));
        if s.previous_spec_version != 0 {
            specs.insert((s.id.clone(), s.previous_spec_version));
        }
    }
    let held: BTreeSet<_> = state.specs.keys().map(|k| (k.0.to_string(), k.1)).collect();
    prop_assert_eq!(specs, held);
    for ((service, version), shared) in &state.specs {
        let count = state.tasks.values().filter(|t| *t.service_id == **service && t.spec_version == *version).count();
        prop_assert_eq!(count as u64, shared.tasks);
    }
    Ok(())
}

fn check_forward(before: &State, after: &State) -> Result<(), TestCaseError> {
    for (id, new) in &after.tasks {
        let Some(old) = before.tasks.get(id) else { continue };
        // A task that was removed and made again under the same id is another one.
        if old.meta.map(|m| m.created_ns) != new.meta.map(|m| m.created_ns) {
            continue;
        }
        prop_assert!(new.observed() >= old.observed() && new.desired_state >= old.desired_state);
        prop_assert!(!old.observed().is_terminal() || new.status == old.status);
        prop_assert!(old.node_id.is_empty() || old.node_id == new.node_id);
        prop_assert!(old.drain_version == 0 || old.drain_version == new.drain_version);
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_commands(ops in prop::collection::vec((prop::collection::vec(op(), 1..4), any::<bool>()), 1..50)) {
        let (mut state, mut twin) = (State::default(), State::default());
        for (index, (ops, best_effort)) in (1_u64..).zip(ops) {
            let actions = ops.iter().map(|op| op.action(&state)).collect();
            let command = Command { at_ns: index as i64, actions, best_effort };
            let before = state.clone();
            let (reply, changes) = state.apply(index, &command);
            let (same_reply, same_changes) = twin.apply(index, &command);
            prop_assert_eq!(&reply, &same_reply);
            prop_assert_eq!(&changes, &same_changes);
            check_indexes(&state)?;
            check_forward(&before, &state)?;
            if reply.refusal.is_some() {
                prop_assert!(changes.is_empty());
                prop_assert_eq!(encoded(&before), encoded(&state));
            }
            for change in &changes {
                prop_assert!(change.old != change.new);
            }
        }
        let bytes = encoded(&state);
        prop_assert_eq!(&bytes, &encoded(&twin));
        let (index, restored) = State::decode_snapshot(&mut bytes.as_slice()).unwrap();
        prop_assert_eq!(index, 7);
        prop_assert_eq!(&encoded(&restored), &bytes);
        check_indexes(&restored)?;
        prop_assert_eq!(&restored.specs, &state.specs);
    }
}
