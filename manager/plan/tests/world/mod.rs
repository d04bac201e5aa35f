//! A cluster without wires: the state, the plan, and workers that do what they are told, late or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code, unreachable_pub, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use skep_plan::{Inputs, Plan, assignment, plan, validate};
use skep_proto::v1::assignment::Kind as Assigned;
use skep_proto::v1::*;
use skep_state::State;

pub const MS: i64 = 1_000_000;
pub const SECOND: i64 = 1000 * MS;

/// A worker as it really is, whatever the managers think.
#[derive(Debug, Default)]
pub struct Worker {
    pub connected: bool,
    /// Its balancers are slow: it acknowledges nothing.
    pub slow: bool,
    pub last_beat: i64,
    /// It has said that it leaves.
    pub left: bool,
    pub acknowledged: u64,
    /// Tasks whose container exists, with their addresses.
    pub running: BTreeMap<String, Vec<(String, String)>>,
    /// Newest assignment that it has seen.
    pub tasks: BTreeMap<String, Task>,
}

pub struct World {
    pub state: State,
    pub index: u64,
    pub now: i64,
    pub workers: BTreeMap<String, Worker>,
    /// States at which a task starts to fail.
    pub failing_images: BTreeSet<String>,
    ids: u64,
}

pub fn annotations(name: &str) -> Option<Annotations> {
    Some(Annotations { name: name.into(), ..Annotations::default() })
}

pub fn spec(name: &str, replicas: u64) -> ServiceSpec {
    let container = ContainerSpec { image: "image:1".into(), ..ContainerSpec::default() };
    ServiceSpec {
        annotations: annotations(name),
        task: Some(TaskSpec { container: Some(container), ..TaskSpec::default() }),
        mode: Some(service_spec::Mode::Replicated(Replicated { replicas })),
        ..ServiceSpec::default()
    }
}

pub fn put(kind: object::Kind) -> Action {
    Action { kind: Some(action::Kind::Put(Object { kind: Some(kind) })) }
}

impl World {
    pub fn new(nodes: usize) -> Self {
        let mut world = Self {
            state: State::default(),
            index: 0,
            now: 1_000_000 * SECOND,
            workers: BTreeMap::new(),
            failing_images: BTreeSet::new(),
            ids: 0,
        };
        let cluster = Cluster {
            id: "cluster".into(),
            spec: Some(ClusterSpec { heartbeat_ns: SECOND, ..ClusterSpec::default() }),
            ..Cluster::default()
        };
        world.must(vec![put(object::Kind::Cluster(cluster))]);
        let ingress = validate::network(&world.state, validate::default_ingress(), "ingress-id").unwrap();
        world.must(vec![put(object::Kind::Network(ingress))]);
        for n in 0..nodes {
            world.add_node(&format!("node{n}"));
        }
        world
    }

    pub fn add_node(&mut self, id: &str) {
        let node = Node {
            id: id.into(),
            spec: Some(NodeSpec::default()),
            description: Some(NodeDescription {
                hostname: format!("host-{id}"),
                platform: Some(Platform { architecture: "x86_64".into(), os: "linux".into() }),
                resources: Some(Resources { nano_cpus: 4_000_000_000, memory_bytes: 8 << 30 }),
                data_path_address: format!("192.0.2.{}", self.workers.len() + 1),
                ..NodeDescription::default()
            }),
            status: Some(NodeStatus { state: NodeState::Ready.into(), ..NodeStatus::default() }),
            ..Node::default()
        };
        self.must(vec![put(object::Kind::Node(node))]);
        let worker = Worker { connected: true, last_beat: self.now, ..Worker::default() };
        self.workers.insert(id.into(), worker);
    }

    /// Applies what has to be accepted.
    pub fn must(&mut self, actions: Vec<Action>) {
        let reply = self.apply(actions, false);
        assert_eq!(reply.refusal, None);
    }

    pub fn apply(&mut self, actions: Vec<Action>, best_effort: bool) -> CommandReply {
        self.index += 1;
        self.state.apply(self.index, &Command { at_ns: self.now, actions, best_effort }).0
    }

    pub fn create(&mut self, id: &str, spec: ServiceSpec) -> Result<(), validate::Error> {
        let spec = validate::service(&self.state, spec, None)?;
        self.must(vec![put(object::Kind::Service(Service { id: id.into(), spec: Some(spec), ..Service::default() }))]);
        Ok(())
    }

    pub fn create_network(&mut self, id: &str, name: &str, subnet: &str) {
        let ipam =
            Ipam { configs: vec![IpamConfig { subnet: subnet.into(), ..IpamConfig::default() }], ..Ipam::default() };
        let spec = NetworkSpec { annotations: annotations(name), ipam: Some(ipam), ..NetworkSpec::default() };
        let network = validate::network(&self.state, spec, id).unwrap();
        self.must(vec![put(object::Kind::Network(network))]);
    }

    /// Changes a service's spec as the API does.
    pub fn update(&mut self, id: &str, change: impl FnOnce(&mut ServiceSpec)) {
        let Some(service) = self.state.service(id).filter(|s| !s.removing) else { return };
        let mut spec = service.spec.clone().unwrap();
        change(&mut spec);
        let spec = validate::service(&self.state, spec, Some(&service)).unwrap();
        let mut next = service.as_ref().clone();
        next.previous_spec = next.spec.replace(spec);
        next.previous_spec_version = next.spec_version;
        next.update_status = None;
        self.must(vec![put(object::Kind::Service(next))]);
    }

    pub fn remove(&mut self, id: &str) {
        let Some(service) = self.state.service(id).filter(|s| !s.removing) else { return };
        self.must(vec![put(object::Kind::Service(Service { removing: true, ..service.as_ref().clone() }))]);
    }

    pub fn node(&mut self, id: &str, change: impl FnOnce(&mut NodeSpec)) {
        let Some(node) = self.state.node(id) else { return };
        let mut next = node.as_ref().clone();
        change(next.spec.as_mut().unwrap());
        self.must(vec![put(object::Kind::Node(next))]);
    }

    pub fn inputs(&self) -> Inputs {
        Inputs {
            acknowledged: self.workers.iter().map(|(id, w)| (id.clone(), w.acknowledged)).collect(),
            silence_ns: self.workers.iter().map(|(id, w)| (id.clone(), self.now - w.last_beat)).collect(),
            left: self.workers.iter().filter(|(_, w)| w.left).map(|(id, _)| id.clone()).collect(),
        }
    }

    pub fn plan(&mut self) -> Plan {
        let (inputs, ids) = (self.inputs(), &mut self.ids);
        plan(&self.state, self.now, &inputs, &mut || {
            *ids += 1;
            format!("t{ids:06}")
        })
    }

    /// Plans and applies until nothing is left to do at this moment. Everything planned has to be accepted.
    pub fn settle(&mut self) -> Plan {
        for _ in 0..8 {
            let plan = self.plan();
            if plan.actions.is_empty() {
                return plan;
            }
            let before = self.state.clone();
            let reply = self.apply(plan.actions.clone(), true);
            assert_eq!(reply.left_out, [], "the plan does not fit the state that it was made from");
            self.check_stops(&before);
        }
        let plan = self.plan();
        assert!(plan.actions.is_empty(), "no fixpoint: {:#?}", plan.actions);
        plan
    }

    /// A worker's session: takes its assignment, acts, reports, acknowledges.
    pub fn work(&mut self, id: &str, steps: usize) {
        let set = assignment::for_node(&self.state, id);
        let worker = self.workers.get_mut(id).unwrap();
        if !worker.connected {
            return;
        }
        worker.last_beat = self.now;
        if !worker.slow {
            worker.acknowledged = self.index;
        }
        let mut reports = Vec::new();
        let mut present = BTreeSet::new();
        for assigned in set.values() {
            let Some(Assigned::Task(assigned)) = &assigned.kind else { continue };
            let task = assigned.task.clone().unwrap();
            present.insert(task.id.clone());
            let image = assigned.spec.as_ref().unwrap().container.as_ref().unwrap().image.clone();
            let fails = self.failing_images.contains(&image);
            let addresses: Vec<_> = task.networks.iter().map(|n| (n.network_id.clone(), n.address.clone())).collect();
            let mut state = task.observed();
            for _ in 0..steps {
                let next = if state.is_terminal() {
                    state
                } else if task.desired_state() > TaskState::Running {
                    TaskState::Shutdown
                } else {
                    match state {
                        TaskState::Assigned => TaskState::Accepted,
                        TaskState::Accepted => TaskState::Preparing,
                        TaskState::Preparing => TaskState::Starting,
                        TaskState::Starting if fails => TaskState::Failed,
                        TaskState::Starting => TaskState::Running,
                        other => other,
                    }
                };
                state = next;
                if state == TaskState::Preparing {
                    worker.running.insert(task.id.clone(), addresses.clone());
                }
                if state.is_terminal() {
                    worker.running.remove(&task.id);
                }
            }
            if state != task.observed() {
                reports.push(report(&task.id, id, state, self.now));
            }
        }
        // What is not assigned any more leaves no trace.
        worker.running.retain(|task, _| present.contains(task));
        if !reports.is_empty() {
            let reply = self.apply(reports, true);
            assert_eq!(reply.left_out, []);
        }
    }

    /// One round of everybody.
    pub fn turn(&mut self, ms: i64, steps: usize) {
        self.now += ms * MS;
        self.settle();
        for id in self.workers.keys().cloned().collect::<Vec<_>>() {
            self.work(&id, steps);
            self.check_addresses();
        }
        self.settle();
    }

    /// Turns until nothing changes any more for longer than any delay in use.
    pub fn rest(&mut self, turns: usize) {
        for _ in 0..turns {
            self.turn(500, 5);
        }
    }

    pub fn fail(&mut self, task: &str) {
        let Some(found) = self.state.task(task) else { return };
        let Some(worker) = self.workers.get_mut(&found.node_id).filter(|w| w.connected) else { return };
        worker.running.remove(task);
        let node = found.node_id.clone();
        self.apply(vec![report(task, &node, TaskState::Failed, self.now)], true);
    }

    /// Nothing that may receive traffic was told to stop in this step: either every live balancer had forgotten it, or
    /// they had five seconds, or its node is down.
    fn check_stops(&self, before: &State) {
        let up = |n: &Node| n.status.as_ref().is_some_and(|s| s.state() == NodeState::Ready);
        for task in self.state.tasks().filter(|t| t.desired_state() > TaskState::Running && !t.networks.is_empty()) {
            let Some(old) = before.task(&task.id).filter(|t| t.desired_state() <= TaskState::Running) else { continue };
            let node = self.state.node(&task.node_id);
            if task.observed() != TaskState::Running || !node.is_some_and(|n| up(&n)) {
                continue;
            }
            assert_ne!(old.drain_version, 0, "{} was stopped in the middle of service", task.id);
            let forgotten = self.state.nodes().filter(|n| up(n)).all(|n| {
                let shares = n.attachments.iter().any(|a| task.networks.iter().any(|t| t.network_id == a.network_id));
                !shares || self.workers[&n.id].acknowledged >= old.drain_version
            });
            assert!(forgotten || self.now - old.drain_ns >= 5 * SECOND, "{} was stopped too early", task.id);
        }
    }

    /// No address has two containers that really exist.
    pub fn check_addresses(&self) {
        let mut seen = BTreeMap::new();
        for (node, worker) in &self.workers {
            for (task, addresses) in &worker.running {
                for address in addresses {
                    let other = seen.insert(address.clone(), (node, task));
                    assert_eq!(other, None, "address {address:?} doubled by {task} on {node}");
                }
            }
        }
    }

    pub fn tasks(&self, service: &str) -> Vec<Task> {
        self.state.tasks_of_service(service).map(|t| t.as_ref().clone()).collect()
    }

    pub fn ready(&self, service: &str) -> Vec<Task> {
        self.tasks(service).into_iter().filter(Task::is_ready).collect()
    }
}

pub fn report(task: &str, node: &str, state: TaskState, now: i64) -> Action {
    let status = TaskStatus { at_ns: now, state: state.into(), ..TaskStatus::default() };
    let change =
        TaskChange { id: task.into(), status: Some(status), reporter_node_id: node.into(), ..TaskChange::default() };
    Action { kind: Some(action::Kind::Task(change)) }
}
