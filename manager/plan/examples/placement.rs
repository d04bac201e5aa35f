//! How long one round of planning takes for a big cluster: `cargo run --release -p skep-plan --example placement`.
#![expect(clippy::print_stdout, reason = "an example shows its figures")]

use std::time::Instant;

use skep_plan::{Inputs, plan};
use skep_proto::v1::{
    Action, Annotations, Command, ContainerSpec, Node, NodeDescription, NodeState, NodeStatus, Object, Replicated,
    Resources, Service, ServiceSpec, TaskSpec, action, object, service_spec,
};
use skep_state::State;

fn put(kind: object::Kind) -> Action {
    Action { kind: Some(action::Kind::Put(Object { kind: Some(kind) })) }
}

fn cluster(nodes: u64, services: u64, replicas: u64) -> State {
    let nodes = (0..nodes).map(|n| {
        put(object::Kind::Node(Node {
            id: format!("node{n:05}"),
            status: Some(NodeStatus { state: NodeState::Ready.into(), ..NodeStatus::default() }),
            description: Some(NodeDescription {
                resources: Some(Resources { nano_cpus: 64_000_000_000, memory_bytes: 256 << 30 }),
                ..NodeDescription::default()
            }),
            ..Node::default()
        }))
    });
    let services = (0..services).map(|n| {
        let container = ContainerSpec { image: "image:1".to_owned(), ..ContainerSpec::default() };
        put(object::Kind::Service(Service {
            id: format!("service{n:06}"),
            spec: Some(ServiceSpec {
                annotations: Some(Annotations { name: format!("s{n}"), ..Annotations::default() }),
                task: Some(TaskSpec { container: Some(container), ..TaskSpec::default() }),
                mode: Some(service_spec::Mode::Replicated(Replicated { replicas })),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        }))
    });
    let mut state = State::default();
    state.apply(1, &Command { at_ns: 1, actions: nodes.chain(services).collect(), best_effort: true });
    state
}

fn main() {
    for (nodes, services, replicas) in
        [(3, 1, 30), (1000, 30, 1000), (1000, 10_000, 3), (1000, 1, 30_000), (10_000, 1000, 1000)]
    {
        let mut state = cluster(nodes, services, replicas);
        let mut next = 0_u64;
        let mut ids = || {
            next += 1;
            format!("task{next:09}")
        };
        let start = Instant::now();
        let first = plan(&state, 1_000_000_000, &Inputs::default(), &mut ids);
        let planned = start.elapsed();
        let tasks = first.actions.len();
        let start = Instant::now();
        state.apply(2, &Command { at_ns: 2, actions: first.actions, best_effort: true });
        let applied = start.elapsed();
        let start = Instant::now();
        let second = plan(&state, 2_000_000_000, &Inputs::default(), &mut ids);
        println!(
            "{nodes} nodes, {services} services of {replicas}: {tasks} actions planned in {planned:.1?}, applied in {applied:.1?}; \
             nothing to do ({} actions) found out in {:.1?}",
            second.actions.len(),
            start.elapsed()
        );
    }
}
