//! Measures what one changed endpoint costs a manager: 1,000 services of 10 tasks each on 100 nodes, all on one network,
//! and a session for every node. Printed is the time until the last session has its message encoded, put together anew
//! and followed step by step. Run with `cargo run --release -p skep-plan --example deltas`.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use skep_plan::assignment::{Change, Part, diff, for_node};
use skep_proto::v1::*;
use skep_state::State;

const NODES: usize = 100;
const SERVICES: usize = 1000;
const TASKS: usize = 10;
const ROUNDS: usize = 20;

fn put(kind: object::Kind) -> Action {
    Action { kind: Some(action::Kind::Put(Object { kind: Some(kind) })) }
}

fn annotations(name: String) -> Option<Annotations> {
    Some(Annotations { name, ..Annotations::default() })
}

fn address(n: usize) -> String {
    format!("10.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255)
}

fn task(service: usize, slot: usize, state: TaskState) -> Task {
    let n = service * TASKS + slot;
    Task {
        id: format!("task-{service:04}-{slot:02}"),
        service_id: format!("service-{service:04}"),
        slot: slot as u64 + 1,
        node_id: format!("node-{:03}", n % NODES),
        name: format!("s{service}.{slot}"),
        spec_version: 2,
        desired_state: TaskState::Running.into(),
        status: Some(TaskStatus { state: state.into(), ..TaskStatus::default() }),
        networks: vec![TaskNetwork {
            network_id: "net".into(),
            address: address(1_000_000 + n),
            ..TaskNetwork::default()
        }],
        ..Task::default()
    }
}

fn state() -> State {
    let mut state = State::default();
    let mut actions = vec![
        put(object::Kind::Cluster(Cluster { id: "c".into(), ..Cluster::default() })),
        put(object::Kind::Network(Network {
            id: "net".into(),
            spec: Some(NetworkSpec { annotations: annotations("net".into()), ..NetworkSpec::default() }),
            subnet: "10.0.0.0/8".into(),
            vni: 4096,
            ..Network::default()
        })),
    ];
    for n in 0..NODES {
        let attachment = NodeAttachment { network_id: "net".into(), address: address(1000 + n) };
        let node = Node { id: format!("node-{n:03}"), attachments: vec![attachment], ..Node::default() };
        actions.push(put(object::Kind::Node(node)));
    }
    let refusal = state.apply(1, &Command { actions, ..Command::default() }).0.refusal;
    assert_eq!(refusal, None);
    let services = (0..SERVICES).map(|n| {
        let attachment = NetworkAttachmentConfig { target: "net".into(), ..NetworkAttachmentConfig::default() };
        let task = TaskSpec { networks: vec![attachment], ..TaskSpec::default() };
        let spec =
            ServiceSpec { annotations: annotations(format!("s{n}")), task: Some(task), ..ServiceSpec::default() };
        let address = VirtualIp { network_id: "net".into(), address: address(100_000 + n) };
        let endpoint = Endpoint { virtual_ips: vec![address], ..Endpoint::default() };
        let id = format!("service-{n:04}");
        put(object::Kind::Service(Service { id, spec: Some(spec), endpoint: Some(endpoint), ..Service::default() }))
    });
    let refusal = state.apply(2, &Command { actions: services.collect(), ..Command::default() }).0.refusal;
    assert_eq!(refusal, None);
    let tasks = (0..SERVICES * TASKS).map(|n| put(object::Kind::Task(task(n / TASKS, n % TASKS, TaskState::Running))));
    let refusal = state.apply(3, &Command { actions: tasks.collect(), ..Command::default() }).0.refusal;
    assert_eq!(refusal, None);
    state
}

fn encoded((put, remove): Change) -> usize {
    let put = put.into_iter().map(Arc::unwrap_or_clone).collect();
    AssignmentChange { generation: 1, put, remove, ..AssignmentChange::default() }.encode_to_vec().len()
}

/// One task after the other ends.
fn end(state: &mut State, round: usize) {
    let change = TaskChange {
        id: task(round * 7, 3, TaskState::Running).id,
        status: Some(TaskStatus { state: TaskState::Failed.into(), ..TaskStatus::default() }),
        ..TaskChange::default()
    };
    let action = Action { kind: Some(action::Kind::Task(change)) };
    let (reply, changes) = state.apply(10 + round as u64, &Command { actions: vec![action], ..Command::default() });
    assert!(reply.refusal.is_none() && changes.len() == 1);
}

fn shown(what: &str, mut times: Vec<Duration>, bytes: usize) {
    times.sort();
    println!("{what}: median {:?}, longest {:?}, {bytes} bytes", times[times.len() / 2], times[times.len() - 1]);
}

fn main() {
    let nodes: Vec<String> = (0..NODES).map(|n| format!("node-{n:03}")).collect();
    let mut now = state();
    let mut held: Vec<_> = nodes.iter().map(|node| for_node(&now, node)).collect();
    let mut parts: Vec<_> = nodes.iter().map(Part::new).collect();
    let begun = Instant::now();
    let bytes: usize = parts.iter_mut().map(|part| encoded(part.follow(&now))).sum();
    println!("first message of every session: {:?}, {bytes} bytes", begun.elapsed());
    let (mut anew, mut followed) = ((Vec::new(), 0), (Vec::new(), 0));
    for round in 0..ROUNDS {
        end(&mut now, round);
        let begun = Instant::now();
        for (node, held) in nodes.iter().zip(&mut held) {
            let next = for_node(&now, node);
            anew.1 += encoded(diff(held, &next));
            *held = next;
        }
        anew.0.push(begun.elapsed());
        let begun = Instant::now();
        followed.1 += parts.iter_mut().map(|part| encoded(part.follow(&now))).sum::<usize>();
        followed.0.push(begun.elapsed());
    }
    shown("one changed endpoint, put together anew", anew.0, anew.1 / ROUNDS);
    shown("one changed endpoint, followed", followed.0, followed.1 / ROUNDS);
}
