//! The rules of apply, one by one; `random` holds what must be true after any commands at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod random;

use skep_proto::v1::*;

use crate::{Change, FindError, State, Value};

pub(crate) fn put(kind: object::Kind) -> Action {
    Action { kind: Some(action::Kind::Put(Object { kind: Some(kind) })) }
}

pub(crate) fn remove(kind: ObjectKind, id: &str) -> Action {
    Action { kind: Some(action::Kind::Remove(ObjectRef { kind: kind.into(), id: id.into(), version: 0 })) }
}

pub(crate) fn change(change: TaskChange) -> Action {
    Action { kind: Some(action::Kind::Task(change)) }
}

pub(crate) fn named(name: &str) -> Option<Annotations> {
    Some(Annotations { name: name.into(), ..Annotations::default() })
}

pub(crate) fn node(id: &str) -> Node {
    let description = NodeDescription { hostname: format!("host-{id}"), ..NodeDescription::default() };
    Node { id: id.into(), description: Some(description), ..Node::default() }
}

pub(crate) fn service(id: &str, name: &str, image: &str) -> Service {
    let container = ContainerSpec { image: image.into(), ..ContainerSpec::default() };
    let task = TaskSpec { container: Some(container), ..TaskSpec::default() };
    let spec = ServiceSpec { annotations: named(name), task: Some(task), ..ServiceSpec::default() };
    Service { id: id.into(), spec: Some(spec), ..Service::default() }
}

pub(crate) fn task(id: &str, service_id: &str, spec_version: u64, slot: u64) -> Task {
    Task {
        id: id.into(),
        service_id: service_id.into(),
        spec_version,
        slot,
        status: Some(TaskStatus::default()),
        desired_state: TaskState::Running.into(),
        name: format!("web.{slot}.{id}"),
        ..Task::default()
    }
}

pub(crate) fn network(id: &str, name: &str, subnet: &str, vni: u32) -> Network {
    let spec = NetworkSpec { annotations: named(name), ..NetworkSpec::default() };
    Network { id: id.into(), spec: Some(spec), subnet: subnet.into(), vni, ..Network::default() }
}

fn address(network_id: &str, address: &str) -> TaskNetwork {
    TaskNetwork { network_id: network_id.into(), address: address.into(), aliases: Vec::new() }
}

fn status(state: TaskState) -> Option<TaskStatus> {
    Some(TaskStatus { state: state.into(), ..TaskStatus::default() })
}

/// A state at index 1 with two nodes, a network, a service `s` called web, and task `t` of it.
fn base() -> State {
    let mut state = State::default();
    let actions = vec![
        put(object::Kind::Node(node("n1"))),
        put(object::Kind::Node(node("n2"))),
        put(object::Kind::Network(network("net", "front", "10.0.1.0/24", 4096))),
        put(object::Kind::Service(service("s", "web", "image:1"))),
        put(object::Kind::Task(task("t", "s", 1, 1))),
    ];
    assert_eq!(apply(&mut state, 1, actions).refusal, None);
    state
}

fn apply(state: &mut State, index: u64, actions: Vec<Action>) -> CommandReply {
    state.apply(index, &Command { at_ns: index as i64 * 10, actions, best_effort: false }).0
}

/// The reason for which a single action is refused at index 9.
fn refused(state: &State, action: Action) -> Option<RefusalReason> {
    let mut state = state.clone();
    apply(&mut state, 9, vec![action]).refusal.map(|r| r.reason())
}

fn encoded(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.encode_snapshot(7, &mut bytes).unwrap();
    bytes
}

#[test]
fn versions_and_times_come_from_the_log() {
    let mut state = base();
    let stored = state.node("n1").unwrap();
    assert_eq!(stored.meta, Some(Meta { version: 1, created_ns: 10, updated_ns: 10 }));
    assert_eq!(apply(&mut state, 5, vec![put(object::Kind::Node(stored.as_ref().clone()))]).refusal, None);
    assert_eq!(state.node("n1").unwrap().meta, Some(Meta { version: 5, created_ns: 10, updated_ns: 50 }));
    assert_eq!(refused(&state, put(object::Kind::Node(stored.as_ref().clone()))), Some(RefusalReason::StaleVersion));
    assert_eq!(refused(&state, put(object::Kind::Node(node("n1")))), Some(RefusalReason::Exists));
    let unknown = Node { meta: Some(Meta { version: 3, ..Meta::default() }), ..node("n9") };
    assert_eq!(refused(&state, put(object::Kind::Node(unknown))), Some(RefusalReason::NotFound));
}

#[test]
fn what_does_not_fit_is_refused() {
    let state = base();
    let with_network = |target: &str| {
        let mut service = service("s2", "other", "image:1");
        let attachment = NetworkAttachmentConfig { target: target.into(), ..NetworkAttachmentConfig::default() };
        service.spec.as_mut().unwrap().task.as_mut().unwrap().networks.push(attachment);
        put(object::Kind::Service(service))
    };
    let with_status = |reporter: &str| {
        change(TaskChange {
            id: "t".into(),
            status: status(TaskState::Running),
            reporter_node_id: reporter.into(),
            ..TaskChange::default()
        })
    };
    for (why, action, expected) in [
        ("name", put(object::Kind::Service(service("s2", "web", "x"))), RefusalReason::NameInUse),
        ("no name", put(object::Kind::Service(service("s2", "", "x"))), RefusalReason::Invalid),
        ("no id", put(object::Kind::Node(node(""))), RefusalReason::Invalid),
        ("overlap", put(object::Kind::Network(network("m", "m", "10.0.0.0/16", 4097))), RefusalReason::InUse),
        ("vni", put(object::Kind::Network(network("m", "m", "10.2.0.0/16", 4096))), RefusalReason::InUse),
        ("missing network", with_network("nowhere"), RefusalReason::NotFound),
        ("unknown spec", put(object::Kind::Task(task("t2", "s", 7, 1))), RefusalReason::NotFound),
        (
            "unknown node",
            change(TaskChange { id: "t".into(), node_id: Some("n9".into()), ..TaskChange::default() }),
            RefusalReason::NotFound,
        ),
        ("unknown task", change(TaskChange { id: "t9".into(), ..TaskChange::default() }), RefusalReason::NotFound),
        ("stranger", with_status("n2"), RefusalReason::Invalid),
        ("service with a wanted task", remove(ObjectKind::Service, "s"), RefusalReason::InUse),
        ("unknown object", remove(ObjectKind::Secret, "x"), RefusalReason::NotFound),
        ("the cluster", remove(ObjectKind::Cluster, "c"), RefusalReason::Invalid),
        ("nothing", Action { kind: None }, RefusalReason::Invalid),
    ] {
        assert_eq!(refused(&state, action), Some(expected), "{why}");
    }
    assert_eq!(refused(&state, with_network("net")), None);
}

#[test]
fn all_or_nothing_and_best_effort() {
    let mut state = base();
    let before = encoded(&state);
    let actions = vec![
        put(object::Kind::Node(node("n3"))),
        remove(ObjectKind::Secret, "none"),
        put(object::Kind::Node(node("n4"))),
    ];
    let (reply, changes) = state.apply(2, &Command { at_ns: 1, actions: actions.clone(), best_effort: false });
    assert_eq!(reply.refusal.unwrap().reason(), RefusalReason::NotFound);
    assert_eq!((changes.len(), encoded(&state) == before), (0, true));
    let (reply, changes) = state.apply(3, &Command { at_ns: 1, actions, best_effort: true });
    assert_eq!((reply.refusal, reply.left_out.len(), changes.len()), (None, 1, 2));
    assert!(state.node("n3").is_some() && state.node("n4").is_some());
}

#[test]
fn a_task_is_assigned_once_and_goes_forward_only() {
    let mut state = base();
    let assign = |node: &str| {
        change(TaskChange {
            id: "t".into(),
            node_id: Some(node.into()),
            status: status(TaskState::Assigned),
            ..TaskChange::default()
        })
    };
    let report = |state| {
        change(TaskChange {
            id: "t".into(),
            status: status(state),
            reporter_node_id: "n1".into(),
            ..TaskChange::default()
        })
    };
    apply(&mut state, 2, vec![assign("n1")]);
    assert_eq!(refused(&state, assign("n2")), Some(RefusalReason::Invalid));
    assert_eq!(state.tasks_of_node("n1").count(), 1);
    assert_eq!(refused(&state, remove(ObjectKind::Node, "n1")), Some(RefusalReason::InUse));
    apply(&mut state, 3, vec![report(TaskState::Running)]);
    let (reply, changes) =
        state.apply(4, &Command { actions: vec![report(TaskState::Preparing)], ..Command::default() });
    assert_eq!((reply.refusal, changes), (None, Vec::new()), "late news is no error and no change");
    assert_eq!(state.task("t").unwrap().meta.unwrap().version, 3);
    apply(&mut state, 5, vec![report(TaskState::Failed)]);
    apply(&mut state, 6, vec![report(TaskState::Rejected)]);
    assert_eq!(state.task("t").unwrap().observed(), TaskState::Failed, "an end is final");
    let bold = TaskChange { id: "t".into(), drain: true, reporter_node_id: "n1".into(), ..TaskChange::default() };
    assert_eq!(refused(&state, change(bold)), Some(RefusalReason::Invalid), "a worker says what it sees, nothing more");
}

#[test]
fn desired_state_and_drain_are_set_once() {
    let mut state = base();
    let stop = |desired: TaskState| {
        change(TaskChange { id: "t".into(), desired_state: Some(desired.into()), drain: true, ..TaskChange::default() })
    };
    apply(&mut state, 4, vec![stop(TaskState::Shutdown)]);
    apply(&mut state, 5, vec![stop(TaskState::Running)]);
    let task = state.task("t").unwrap();
    assert_eq!((task.desired_state(), task.drain_version, task.drain_ns), (TaskState::Shutdown, 4, 40));
    assert_eq!(task.meta.unwrap().version, 4, "the second one had nothing new");
}

#[test]
fn one_address_one_live_owner() {
    let mut state = base();
    let give = |id: &str| {
        change(TaskChange { id: id.into(), networks: vec![address("net", "10.0.1.5")], ..TaskChange::default() })
    };
    apply(&mut state, 2, vec![put(object::Kind::Task(task("u", "s", 1, 2)))]);
    apply(&mut state, 3, vec![give("t")]);
    assert_eq!(refused(&state, give("u")), Some(RefusalReason::InUse));
    let attach = |address: &str| {
        let attachments = vec![NodeAttachment { network_id: "net".into(), address: address.into() }];
        Action { kind: Some(action::Kind::Node(NodeChange { id: "n1".into(), attachments, ..NodeChange::default() })) }
    };
    assert_eq!(refused(&state, attach("10.0.1.5")), Some(RefusalReason::InUse));
    assert_eq!(refused(&state, attach("10.0.1.6")), None);
    assert_eq!(refused(&state, remove(ObjectKind::Network, "net")), Some(RefusalReason::InUse));
    // What it is asked to do frees nothing; that it ended does.
    apply(
        &mut state,
        4,
        vec![change(TaskChange {
            id: "t".into(),
            desired_state: Some(TaskState::Shutdown.into()),
            ..TaskChange::default()
        })],
    );
    assert_eq!(refused(&state, give("u")), Some(RefusalReason::InUse));
    apply(
        &mut state,
        5,
        vec![change(TaskChange { id: "t".into(), status: status(TaskState::Shutdown), ..TaskChange::default() })],
    );
    assert_eq!(refused(&state, give("u")), None);
    assert_eq!(refused(&state, remove(ObjectKind::Network, "net")), None);
}

#[test]
fn specs_live_as_long_as_somebody_names_them() {
    let mut state = base();
    let update = |state: &State, image: &str| {
        let old = state.service("s").unwrap();
        let mut next = old.as_ref().clone();
        next.previous_spec = next.spec.clone();
        next.previous_spec_version = next.spec_version;
        next.spec.as_mut().unwrap().task.as_mut().unwrap().container.as_mut().unwrap().image = image.into();
        put(object::Kind::Service(next))
    };
    for (index, image) in [(2, "image:2"), (3, "image:3"), (4, "image:3")] {
        let action = update(&state, image);
        assert_eq!(apply(&mut state, index, vec![action]).refusal, None);
    }
    let service = state.service("s").unwrap();
    assert_eq!((service.spec_version, service.previous_spec_version), (3, 3), "the last change did not touch the task");
    assert!(state.task_spec("s", 1).is_some(), "task t runs it");
    assert!(state.task_spec("s", 2).is_none(), "nobody does");
    apply(&mut state, 5, vec![remove(ObjectKind::Task, "t")]);
    assert!(state.task_spec("s", 1).is_none());
    apply(&mut state, 6, vec![remove(ObjectKind::Service, "s")]);
    assert!(state.task_spec("s", 3).is_none());
    assert!(state.specs.is_empty());
}

#[test]
fn a_service_being_removed_gives_up_name_and_ports() {
    let publish = |id: &str, name: &str| {
        let mut service = service(id, name, "x");
        let ports = vec![PortConfig { published_port: 80, target_port: 80, ..PortConfig::default() }];
        service.spec.as_mut().unwrap().endpoint = Some(EndpointSpec { ports, ..EndpointSpec::default() });
        service
    };
    let mut state = State::default();
    apply(&mut state, 1, vec![put(object::Kind::Service(publish("a", "web")))]);
    assert_eq!(refused(&state, put(object::Kind::Service(publish("b", "other")))), Some(RefusalReason::InUse));
    let going = Service { removing: true, ..state.service("a").unwrap().as_ref().clone() };
    apply(&mut state, 2, vec![put(object::Kind::Service(going))]);
    assert_eq!(state.find_service("web"), Err(FindError::NotFound));
    assert_eq!(refused(&state, put(object::Kind::Service(publish("b", "web")))), None);
}

#[test]
fn references() {
    let mut state = base();
    apply(
        &mut state,
        2,
        vec![
            put(object::Kind::Node(Node { description: node("n1").description, ..node("m1") })),
            put(object::Kind::Service(service("web", "s", "x"))),
            put(object::Kind::Service(service("abc1", "one", "x"))),
            put(object::Kind::Service(service("abc2", "two", "x"))),
        ],
    );
    let service = |reference: &str| state.find_service(reference).map(|s| s.id.clone());
    assert_eq!(service("s"), Ok("s".into()), "an id before a name");
    assert_eq!(service("web"), Ok("web".into()));
    assert_eq!(service("two"), Ok("abc2".into()));
    assert_eq!(service("abc1"), Ok("abc1".into()));
    assert_eq!(service("abc"), Err(FindError::Ambiguous { candidates: vec!["abc1".into(), "abc2".into()] }));
    assert_eq!(service("nothing"), Err(FindError::NotFound));
    assert_eq!(service(""), Err(FindError::NotFound));
    assert_eq!(state.find_node("host-n2").unwrap().id, "n2");
    assert_eq!(
        state.find_node("host-n1").unwrap_err(),
        FindError::Ambiguous { candidates: vec!["m1".into(), "n1".into()] }
    );
    assert_eq!(state.find_task("web.1.t").unwrap().id, "t");
    assert_eq!(state.find_task("web.1").unwrap().id, "t");
    for reference in ["web.2", "web.", "web", "two.1", ".1", "."] {
        assert_eq!(state.find_task(reference).unwrap_err(), FindError::NotFound, "{reference}");
    }
    assert_eq!(state.find_network("front").unwrap().id, "net");
}

#[test]
fn changes_become_events() {
    let mut state = base();
    let old = state.node("n1").unwrap();
    let drained = NodeSpec { availability: Availability::Drain.into(), ..NodeSpec::default() };
    let actions = vec![
        put(object::Kind::Node(Node { spec: Some(drained), ..old.as_ref().clone() })),
        remove(ObjectKind::Network, "net"),
        remove(ObjectKind::Task, "t"),
    ];
    let (_, changes) = state.apply(2, &Command { at_ns: 5, actions, best_effort: false });
    assert_eq!(changes[0].old, Some(Value::Node(old)));
    let events: Vec<_> = changes.iter().filter_map(Change::event).collect();
    assert_eq!(events.len(), 2, "tasks have none");
    assert_eq!((events[0].action(), events[0].name.as_str()), (EventAction::Update, "host-n1"));
    assert_eq!(events[0].attributes["availability.new"], "drain");
    assert_eq!((events[1].action(), events[1].name.as_str()), (EventAction::Remove, "front"));
}

#[test]
fn damaged_snapshots_are_refused() {
    let bytes = encoded(&base());
    let decode =
        |mut bytes: &[u8]| State::decode_snapshot(&mut bytes).map(|(index, _)| index).map_err(|e| e.to_string());
    assert_eq!(decode(&bytes), Ok(7));
    assert!(decode(&[]).is_err());
    assert!(decode(&bytes[1..]).is_err());
    for cut in [1, 2, bytes.len() - 1] {
        assert!(decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(decode(&[0xff; 16]).unwrap_err().contains("claims"));
    let twice: Vec<u8> = bytes.iter().chain(&bytes).copied().collect();
    assert!(decode(&twice).unwrap_err().contains("second header"));
}
