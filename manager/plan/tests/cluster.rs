//! Whole stories: what becomes of services when the plan is carried out by workers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod world;

use std::collections::BTreeSet;

use skep_proto::v1::*;
use world::{MS, SECOND, World, spec};

fn network(name: &str) -> NetworkAttachmentConfig {
    NetworkAttachmentConfig { target: name.into(), ..NetworkAttachmentConfig::default() }
}

fn published(port: u32, mode: PublishMode) -> Option<EndpointSpec> {
    let port = PortConfig { target_port: 80, published_port: port, mode: mode.into(), ..PortConfig::default() };
    Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() })
}

/// A published service on a network of its own.
fn web(replicas: u64) -> ServiceSpec {
    let mut spec = spec("web", replicas);
    spec.task.as_mut().unwrap().networks.push(network("net"));
    spec.endpoint = published(8080, PublishMode::Ingress);
    spec
}

fn world(nodes: usize) -> World {
    let mut world = World::new(nodes);
    world.create_network("net-id", "net", "");
    world
}

#[test]
fn a_new_service_is_running_after_one_round_and_one_report() {
    let mut w = world(3);
    w.create("web", web(6)).unwrap();
    let plan = w.plan();
    assert_eq!(w.apply(plan.actions, true).left_out, []);
    let tasks = w.tasks("web");
    assert_eq!(tasks.len(), 6);
    for task in &tasks {
        assert_eq!(task.observed(), TaskState::Assigned, "created, addressed and scheduled in one round");
        assert_eq!(task.networks.len(), 2);
        assert_eq!(task.name, format!("web.{}.{}", task.slot, task.id));
    }
    let nodes: BTreeSet<_> = tasks.iter().map(|t| (t.node_id.clone(), 2)).collect();
    assert_eq!(nodes.len(), 3, "spread evenly");
    let service = w.state.service("web").unwrap();
    let endpoint = service.endpoint.as_ref().unwrap();
    assert_eq!(endpoint.virtual_ips.len(), 2);
    assert_eq!(endpoint.ports[0].published_port, 8080);
    for node in w.state.nodes() {
        assert_eq!(node.attachments.len(), 2, "a balancer on the mesh's and on the service's network");
    }
    w.turn(10, 5);
    assert_eq!(w.ready("web").len(), 6);
}

#[test]
fn scaling_down_takes_the_task_out_of_the_balancers_before_it_is_stopped() {
    let mut w = world(3);
    w.create("web", web(3)).unwrap();
    w.rest(3);
    w.update("web", |s| s.mode = Some(service_spec::Mode::Replicated(Replicated { replicas: 2 })));
    w.settle();
    let draining: Vec<_> = w.tasks("web").into_iter().filter(|t| t.drain_version != 0).collect();
    assert_eq!(draining.len(), 1);
    assert_eq!(draining[0].desired_state(), TaskState::Running, "not stopped before all balancers said so");
    assert_eq!(w.ready("web").len(), 2);
    // Two of three nodes acknowledge.
    w.work("node0", 1);
    w.work("node1", 1);
    w.settle();
    assert_eq!(w.state.task(&draining[0].id).unwrap().desired_state(), TaskState::Running);
    w.work("node2", 1);
    w.settle();
    assert_eq!(w.state.task(&draining[0].id).unwrap().desired_state(), TaskState::Shutdown);
    w.rest(3);
    assert_eq!(w.tasks("web").len(), 2, "the slot is gone, and so is its history");
}

#[test]
fn a_balancer_that_never_answers_delays_a_stop_by_five_seconds_only() {
    let mut w = world(2);
    w.create("web", web(2)).unwrap();
    w.rest(3);
    w.update("web", |s| s.mode = Some(service_spec::Mode::Replicated(Replicated { replicas: 1 })));
    let plan = w.settle();
    let draining = w.tasks("web").into_iter().find(|t| t.drain_version != 0).unwrap();
    assert_eq!(plan.next_wake_ns, Some(w.now + 3 * SECOND + 1).min(Some(draining.drain_ns + 5 * SECOND)));
    w.now += 5 * SECOND;
    // Heartbeats went on, acknowledgements did not.
    for worker in w.workers.values_mut() {
        worker.last_beat = w.now;
    }
    w.settle();
    assert_eq!(w.state.task(&draining.id).unwrap().desired_state(), TaskState::Shutdown);
}

#[test]
fn a_node_that_left_before_it_arrived_is_down_and_one_that_takes_its_time_is_not() {
    let mut w = world(1);
    w.add_node("node1");
    let status = NodeStatus { state: NodeState::Unknown.into(), ..NodeStatus::default() };
    let change = NodeChange { id: "node1".into(), status: Some(status), ..NodeChange::default() };
    w.must(vec![Action { kind: Some(action::Kind::Node(change)) }]);
    w.workers.get_mut("node1").unwrap().connected = false;
    let begun = w.now;
    let state = |w: &World| w.state.node("node1").unwrap().status.as_ref().unwrap().state();
    while w.now < begun + 14 * SECOND {
        w.turn(500, 5);
        assert_eq!(state(&w), NodeState::Unknown, "after {} ns", w.now - begun);
    }
    while w.now < begun + 17 * SECOND {
        w.turn(500, 5);
    }
    assert_eq!(state(&w), NodeState::Down);
}

#[test]
fn a_node_that_says_goodbye_is_down_at_once_and_stays_so() {
    let mut w = world(3);
    w.create("web", web(3)).unwrap();
    w.rest(3);
    let status = |w: &World| w.state.node("node0").unwrap().status.as_ref().unwrap().clone();
    assert_eq!(status(&w).state(), NodeState::Ready);
    let worker = w.workers.get_mut("node0").unwrap();
    (worker.connected, worker.left, worker.last_beat) = (false, true, w.now);
    w.settle();
    assert_eq!((status(&w).state(), status(&w).message.as_str()), (NodeState::Down, "left the swarm"));
    assert!(w.settle().actions.is_empty());
    w.rest(3);
    assert!(w.ready("web").iter().all(|t| t.node_id != "node0"));
}

#[test]
fn a_dead_nodes_tasks_run_elsewhere_and_keep_their_addresses_until_it_is_known() {
    let mut w = world(3);
    w.create("web", web(3)).unwrap();
    w.rest(3);
    let on_dead: Vec<_> = w.tasks("web").into_iter().filter(|t| t.node_id == "node0").collect();
    w.workers.get_mut("node0").unwrap().connected = false;
    for _ in 0..8 {
        w.turn(500, 5);
    }
    assert_eq!(w.state.node("node0").unwrap().status.as_ref().unwrap().state(), NodeState::Down);
    let ready = w.ready("web");
    assert_eq!(ready.len(), 3);
    assert!(ready.iter().all(|t| t.node_id != "node0"));
    for task in on_dead {
        let old = w.state.task(&task.id).unwrap();
        assert_eq!((old.observed(), old.desired_state()), (TaskState::Running, TaskState::Shutdown));
        assert!(ready.iter().all(|t| t.networks.iter().all(|n| old.networks.iter().all(|o| o.address != n.address))));
    }
    w.workers.get_mut("node0").unwrap().connected = true;
    w.rest(20);
    assert!(w.workers["node0"].running.is_empty(), "told to stop what was replaced");
    assert_eq!(w.ready("web").len(), 3);
}

#[test]
fn a_dead_node_is_found_by_a_leader_whose_clock_is_behind() {
    let mut w = world(2);
    w.rest(2);
    // The next leader's clock is a minute behind, and it has heard nothing of one node for long enough.
    w.now -= 60 * SECOND;
    for worker in w.workers.values_mut() {
        worker.last_beat = w.now;
    }
    w.workers.get_mut("node1").unwrap().last_beat = w.now - 4 * SECOND;
    w.settle();
    let state = |id: &str| w.state.node(id).unwrap().status.as_ref().unwrap().state();
    assert_eq!((state("node0"), state("node1")), (NodeState::Ready, NodeState::Down));
}

#[test]
fn a_failed_task_is_replaced_in_its_slot_after_the_delay() {
    let mut w = world(2);
    let mut wanted = web(2);
    wanted.task.as_mut().unwrap().restart =
        Some(RestartPolicy { delay_ns: Some(2 * SECOND), ..RestartPolicy::default() });
    w.create("web", wanted).unwrap();
    w.rest(3);
    let victim = w.ready("web")[0].clone();
    w.fail(&victim.id);
    let plan = w.settle();
    let next = w.tasks("web").into_iter().find(|t| t.slot == victim.slot && t.id != victim.id).unwrap();
    assert_eq!((next.observed(), next.not_before_ns), (TaskState::Pending, w.now + 2 * SECOND));
    assert!(plan.next_wake_ns.unwrap() <= next.not_before_ns);
    assert_eq!(w.state.task(&victim.id).unwrap().desired_state(), TaskState::Shutdown);
    w.turn(1900, 5);
    assert_eq!(w.ready("web").len(), 1);
    w.turn(200, 5);
    assert_eq!(w.ready("web").len(), 2);
}

#[test]
fn restart_policies_end_where_they_say_and_history_is_bounded() {
    for (condition, max_attempts, tasks) in
        [(RestartCondition::None, 0, 1), (RestartCondition::OnFailure, 3, 4), (RestartCondition::Any, 0, 6)]
    {
        let mut w = world(2);
        let mut wanted = spec("job", 1);
        let delay_ns = Some(100 * MS);
        wanted.task.as_mut().unwrap().restart =
            Some(RestartPolicy { condition: condition.into(), delay_ns, max_attempts, window_ns: 0 });
        w.failing_images.insert("image:1".into());
        w.create("job", wanted).unwrap();
        w.rest(30);
        let count = w.tasks("job").len();
        assert!(count <= tasks && count + 1 >= tasks, "{condition:?}: {count} tasks, not {tasks}");
    }
}

#[test]
fn a_program_that_ends_at_once_is_not_restarted_as_fast_as_the_plan_turns() {
    let mut w = world(2);
    let mut wanted = spec("job", 1);
    wanted.task.as_mut().unwrap().restart = Some(RestartPolicy { delay_ns: Some(0), ..RestartPolicy::default() });
    w.failing_images.insert("image:1".into());
    w.create("job", wanted).unwrap();
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        w.turn(100, 5);
        seen.extend(w.tasks("job").into_iter().map(|t| t.id));
    }
    // Three at once, then after 0.5, 1, 2 and 4 s; the last one is waiting.
    assert!((6..=8).contains(&seen.len()), "{} tasks in ten seconds", seen.len());
    w.failing_images.clear();
    w.rest(12);
    assert_eq!(w.ready("job").len(), 1);
}

#[test]
fn removal_drains_then_removes_everything_and_frees_name_and_port_at_once() {
    let mut w = world(2);
    w.create("web", web(2)).unwrap();
    w.rest(3);
    w.remove("web");
    w.create("web-2", web(1)).unwrap();
    w.rest(12);
    assert!(w.state.service("web").is_none());
    assert_eq!(w.tasks("web").len(), 0);
    assert_eq!(w.ready("web-2").len(), 1);
    assert_eq!(w.state.find_service("web").unwrap().id, "web-2");
}

#[test]
fn a_drained_node_is_left_and_a_paused_one_is_not() {
    let mut w = world(3);
    w.create("web", web(3)).unwrap();
    w.rest(3);
    w.node("node1", |s| s.availability = Availability::Pause.into());
    w.node("node0", |s| s.availability = Availability::Drain.into());
    w.rest(12);
    let ready = w.ready("web");
    assert_eq!(ready.len(), 3);
    assert!(ready.iter().all(|t| t.node_id != "node0"));
    assert_eq!(ready.iter().filter(|t| t.node_id == "node1").count(), 1);
}

#[test]
fn start_first_leaves_a_drained_node_without_a_gap() {
    let mut w = world(2);
    let mut wanted = web(1);
    wanted.update = Some(UpdateConfig { order: UpdateOrder::StartFirst.into(), ..UpdateConfig::default() });
    w.create("web", wanted).unwrap();
    w.rest(3);
    let node = w.ready("web")[0].node_id.clone();
    w.node(&node, |s| s.availability = Availability::Drain.into());
    for _ in 0..30 {
        w.turn(100, 1);
        assert!(!w.ready("web").is_empty(), "somebody serves at every moment");
    }
    assert!(w.ready("web").iter().all(|t| t.node_id != node));
    assert_eq!(w.ready("web").len(), 1);
}

#[test]
fn a_global_service_has_one_task_on_every_node_that_fits() {
    let mut w = world(3);
    w.node("node2", |s| {
        s.annotations = Some(Annotations { labels: [("off".into(), "1".into())].into(), ..Annotations::default() })
    });
    let mut wanted = spec("agent", 1);
    wanted.mode = Some(service_spec::Mode::Global(Global {}));
    wanted.task.as_mut().unwrap().placement =
        Some(Placement { constraints: vec!["node.labels.off != 1".into()], ..Placement::default() });
    w.create("agent", wanted).unwrap();
    w.rest(3);
    let nodes = |w: &World| w.ready("agent").iter().map(|t| t.node_id.clone()).collect::<Vec<_>>();
    assert_eq!(nodes(&w).len(), 2);
    assert!(!nodes(&w).contains(&"node2".to_owned()));
    w.add_node("node3");
    w.node("node2", |s| s.annotations = None);
    w.node("node0", |s| s.availability = Availability::Drain.into());
    w.rest(12);
    let mut on = nodes(&w);
    on.sort();
    assert_eq!(on, ["node1", "node2", "node3"]);
    let victim = w.ready("agent")[0].clone();
    w.fail(&victim.id);
    w.rest(14);
    assert_eq!(nodes(&w).len(), 3);
}

#[test]
fn what_can_not_be_placed_says_why_once() {
    let mut w = world(3);
    w.node("node0", |s| s.availability = Availability::Pause.into());
    let mut wanted = spec("big", 2);
    let task = wanted.task.as_mut().unwrap();
    task.placement = Some(Placement { constraints: vec!["node.id != node1".into()], ..Placement::default() });
    let reservations = Some(Resources { nano_cpus: 0, memory_bytes: 6 << 30 });
    task.resources = Some(ResourceRequirements { reservations, ..ResourceRequirements::default() });
    w.create("big", wanted).unwrap();
    w.settle();
    let waiting = w.tasks("big").into_iter().find(|t| t.observed() == TaskState::Pending).unwrap();
    assert_eq!(
        waiting.status.unwrap().message,
        "no suitable node (1 node not available for new tasks; insufficient resources on 1 node; \
         scheduling constraints not satisfied on 1 node)"
    );
    let before = w.index;
    w.settle();
    assert_eq!(w.index, before, "said once");
    w.node("node0", |s| s.availability = Availability::Active.into());
    w.rest(2);
    assert_eq!(w.ready("big").len(), 2);
}

#[test]
fn host_ports_and_max_replicas_bound_a_node() {
    let mut w = world(3);
    let mut wanted = spec("edge", 5);
    wanted.endpoint = published(9000, PublishMode::Host);
    w.create("edge", wanted).unwrap();
    let mut wanted = spec("two", 7);
    wanted.task.as_mut().unwrap().placement = Some(Placement { max_replicas: 2, ..Placement::default() });
    w.create("two", wanted).unwrap();
    w.rest(2);
    assert_eq!(w.ready("edge").len(), 3);
    assert_eq!(w.ready("two").len(), 6);
    let why = |service: &str| {
        let task = w.tasks(service).into_iter().find(|t| t.observed() == TaskState::Pending).unwrap();
        task.status.unwrap().error
    };
    assert_eq!(why("edge"), "no suitable node (host-mode port already in use on 3 nodes)");
    assert_eq!(why("two"), "no suitable node (max replicas per node limit exceeded on 3 nodes)");
}

#[test]
fn a_node_takes_as_many_tasks_as_its_bridge_has_ports() {
    let mut w = world(1);
    w.create("one", spec("one", 600)).unwrap();
    w.create("two", spec("two", 600)).unwrap();
    w.rest(2);
    assert_eq!(w.ready("one").len() + w.ready("two").len(), 1000);
    let waiting = w.tasks("two").into_iter().find(|t| t.observed() == TaskState::Pending).unwrap();
    assert_eq!(waiting.status.unwrap().error, "no suitable node (no room for more than 1000 tasks on 1 node)");
}

#[test]
fn more_replicas_than_the_nodes_can_run_are_refused() {
    let mut w = world(2);
    let refused = w.create("slip", spec("slip", 2001)).unwrap_err().to_string();
    assert!(refused.contains("2001 replicas are more than the nodes of this cluster can run"), "{refused}");
    assert!(refused.contains("there are 2 nodes"), "{refused}");
    w.create("all", spec("all", 2000)).unwrap();
    // Nodes go; who asks for less than there is, is not asked for more nodes.
    let old = Service { spec: Some(spec("was", 2500)), previous_spec: Some(spec("was", 4500)), ..Service::default() };
    for (replicas, accepted) in [(1, true), (2000, true), (2500, true), (4500, true), (4501, false)] {
        let answer = skep_plan::validate::service(&w.state, spec("was", replicas), Some(&old));
        assert_eq!(answer.is_ok(), accepted, "{replicas}: {answer:?}");
    }
}

#[test]
fn spread_preferences_come_before_load() {
    let mut w = world(5);
    for n in 0..5 {
        let zone = if n == 0 { "a" } else { "b" };
        w.node(&format!("node{n}"), |s| {
            s.annotations =
                Some(Annotations { labels: [("zone".into(), zone.into())].into(), ..Annotations::default() });
        });
    }
    let mut wanted = spec("web", 8);
    wanted.task.as_mut().unwrap().placement =
        Some(Placement { spread: vec!["node.labels.zone".into()], ..Placement::default() });
    w.create("web", wanted).unwrap();
    w.rest(2);
    let on = |node: &str| w.ready("web").iter().filter(|t| t.node_id == node).count();
    assert_eq!((on("node0"), on("node1"), on("node4")), (4, 1, 1));
}

#[test]
fn a_full_network_keeps_tasks_waiting_with_the_reason() {
    let mut w = World::new(1);
    // Six usable addresses: gateway, virtual address, four for tasks and the balancer.
    w.create_network("tiny-id", "tiny", "10.99.0.0/29");
    let mut wanted = spec("web", 9);
    wanted.task.as_mut().unwrap().networks.push(network("tiny"));
    w.create("web", wanted).unwrap();
    w.rest(3);
    let waiting: Vec<_> = w.tasks("web").into_iter().filter(|t| t.observed() == TaskState::New).collect();
    assert!(!waiting.is_empty());
    let status = waiting[0].status.as_ref().unwrap();
    assert!(status.message.starts_with("network tiny has no free address left in 10.99.0.0/29"), "{status:?}");
    // Clients show what is an error, and no more.
    assert_eq!(status.error, status.message);
    assert!(w.ready("web").iter().all(|task| task.status.as_ref().unwrap().error.is_empty()));
}

/// A node has an address of its own on the network of its tasks: tasks must not take the last ones before it does.
#[test]
fn of_more_tasks_than_a_network_has_room_for_as_many_run_as_fit() {
    // Usable addresses but the gateway's and the service's, and one for each node that tasks are on.
    for (nodes, subnet, running) in [(1, "10.99.0.0/29", 3), (2, "10.99.0.0/28", 10), (9, "10.99.0.0/29", 2)] {
        let mut w = World::new(nodes);
        w.create_network("tiny-id", "tiny", subnet);
        let mut wanted = spec("web", 20);
        wanted.task.as_mut().unwrap().networks.push(network("tiny"));
        w.create("web", wanted).unwrap();
        w.rest(6);
        assert_eq!(w.ready("web").len(), running, "{nodes} nodes on {subnet}");
    }
}

mod updates {
    use super::*;

    fn image(spec: &mut ServiceSpec, image: &str) {
        spec.task.as_mut().unwrap().container.as_mut().unwrap().image = image.into();
    }

    fn updated(replicas: u64, config: UpdateConfig) -> World {
        let mut w = world(3);
        let mut wanted = web(replicas);
        wanted.update = Some(config);
        w.create("web", wanted).unwrap();
        w.rest(3);
        w.update("web", |s| image(s, "image:2"));
        w
    }

    fn state(w: &World) -> UpdateState {
        w.state.service("web").unwrap().update_status.as_ref().map_or(UpdateState::Unknown, UpdateStatus::state)
    }

    fn new_ones(w: &World) -> usize {
        let version = w.state.service("web").unwrap().spec_version;
        w.ready("web").iter().filter(|t| t.spec_version == version).count()
    }

    #[test]
    fn one_at_a_time_and_never_fewer_than_all_but_one() {
        let mut w = updated(4, UpdateConfig { parallelism: 1, ..UpdateConfig::default() });
        for _ in 0..60 {
            w.turn(100, 2);
            assert!(w.ready("web").len() >= 3);
            for slot in 1..=4 {
                let alive = w.tasks("web").iter().filter(|t| t.slot == slot && !t.observed().is_terminal()).count();
                assert!(alive <= 1, "the next task of slot {slot} waits for the end of the last one");
            }
        }
        assert_eq!(new_ones(&w), 4);
        assert_eq!(state(&w), UpdateState::Updating, "the last one is still watched");
        w.rest(12);
        assert_eq!(state(&w), UpdateState::Completed);
    }

    #[test]
    fn start_first_never_has_fewer_than_all() {
        let order = UpdateOrder::StartFirst.into();
        let mut w = updated(3, UpdateConfig { parallelism: 2, order, ..UpdateConfig::default() });
        for _ in 0..60 {
            w.turn(100, 2);
            assert!(w.ready("web").len() >= 3);
        }
        w.rest(12);
        assert_eq!((new_ones(&w), state(&w)), (3, UpdateState::Completed));
    }

    #[test]
    fn the_delay_lies_between_two_steps() {
        let mut w = updated(3, UpdateConfig { parallelism: 1, delay_ns: 4 * SECOND, ..UpdateConfig::default() });
        w.rest(4);
        assert_eq!(new_ones(&w), 1);
        w.rest(4);
        assert_eq!(new_ones(&w), 1);
        w.rest(6);
        assert_eq!(new_ones(&w), 2);
    }

    #[test]
    fn a_failing_update_pauses_and_leaves_the_rest_alone() {
        let mut w = world(3);
        w.create("web", web(3)).unwrap();
        w.rest(3);
        w.failing_images.insert("image:2".into());
        w.update("web", |s| image(s, "image:2"));
        w.rest(40);
        assert_eq!(state(&w), UpdateState::Paused);
        assert_eq!(w.ready("web").len(), 2);
        let status = w.state.service("web").unwrap().update_status.clone().unwrap();
        assert!(
            status.message.starts_with("update paused due to failure or early termination of task t"),
            "{}",
            status.message
        );
    }

    #[test]
    fn a_failing_update_goes_back_by_itself() {
        let failure_action = FailureAction::Rollback.into();
        let mut w = world(3);
        let mut wanted = web(3);
        wanted.update = Some(UpdateConfig { parallelism: 1, failure_action, ..UpdateConfig::default() });
        w.create("web", wanted).unwrap();
        w.rest(3);
        let before: BTreeSet<_> = w.ready("web").into_iter().map(|t| t.id).collect();
        w.failing_images.insert("image:2".into());
        w.update("web", |s| image(s, "image:2"));
        w.rest(60);
        assert_eq!(state(&w), UpdateState::RollbackCompleted);
        assert_eq!(w.ready("web").len(), 3);
        let after: BTreeSet<_> = w.ready("web").into_iter().map(|t| t.id).collect();
        assert_eq!(before.intersection(&after).count(), 2, "what was never updated is not touched by the way back");
    }

    #[test]
    fn only_what_a_container_sees_makes_new_tasks() {
        let mut w = world(3);
        w.create("web", web(2)).unwrap();
        w.rest(3);
        let before: BTreeSet<_> = w.ready("web").into_iter().map(|t| t.id).collect();
        w.update("web", |s| {
            let task = s.task.as_mut().unwrap();
            task.restart = Some(RestartPolicy { max_attempts: 3, ..RestartPolicy::default() });
            task.placement =
                Some(Placement { constraints: vec!["node.role == worker".into()], ..Placement::default() });
        });
        w.rest(5);
        let after: BTreeSet<_> = w.ready("web").into_iter().map(|t| t.id).collect();
        assert_eq!(before, after);
        w.update("web", |s| s.task.as_mut().unwrap().force_update += 1);
        w.rest(30);
        let after: BTreeSet<_> = w.ready("web").into_iter().map(|t| t.id).collect();
        assert!(before.is_disjoint(&after));
    }

    #[test]
    fn a_global_service_is_updated_too() {
        let mut w = world(3);
        let mut wanted = spec("web", 1);
        wanted.mode = Some(service_spec::Mode::Global(Global {}));
        w.create("web", wanted).unwrap();
        w.rest(3);
        w.update("web", |s| image(s, "image:2"));
        w.rest(30);
        assert_eq!((new_ones(&w), state(&w)), (3, UpdateState::Completed));
    }
}
