//! Whatever happens in whatever order: no address is doubled, no slot served twice, everything converges.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;
use skep_plan::assignment::{self, AssignmentSet, Part};
use skep_proto::v1::*;
use world::{MS, World, spec};

const NODES: usize = 4;

#[derive(Debug, Clone)]
enum Op {
    Create { service: u8, replicas: u8, global: bool, network: bool, port: bool, start_first: bool },
    Scale { service: u8, replicas: u8 },
    Update { service: u8, image: u8, parallelism: u8, action: u8 },
    Remove { service: u8 },
    Availability { node: u8, availability: u8 },
    Partition { node: u8 },
    Heal { node: u8 },
    Slow { node: u8, slow: bool },
    Fail { pick: u16 },
    Turn { ms: u16, steps: u8 },
}

fn op() -> impl Strategy<Value = Op> {
    let service = 0..4_u8;
    prop_oneof![
        3 => (service.clone(), 0..6_u8, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(service, replicas, global, network, port, start_first)|
            Op::Create { service, replicas, global: global && replicas > 3, network, port, start_first }),
        2 => (service.clone(), 0..8_u8).prop_map(|(service, replicas)| Op::Scale { service, replicas }),
        2 => (service.clone(), 0..4_u8, 0..3_u8, 0..3_u8).prop_map(
            |(service, image, parallelism, action)| Op::Update { service, image, parallelism, action }),
        1 => service.prop_map(|service| Op::Remove { service }),
        1 => (0..4_u8, 0..3_u8).prop_map(|(node, availability)| Op::Availability { node, availability }),
        1 => (0..4_u8).prop_map(|node| Op::Partition { node }),
        2 => (0..4_u8).prop_map(|node| Op::Heal { node }),
        1 => (0..4_u8, any::<bool>()).prop_map(|(node, slow)| Op::Slow { node, slow }),
        2 => any::<u16>().prop_map(|pick| Op::Fail { pick }),
        10 => (1..3000_u16, 1..6_u8).prop_map(|(ms, steps)| Op::Turn { ms, steps }),
    ]
}

fn run(world: &mut World, op: Op) {
    match op {
        Op::Create { service, replicas, global, network, port, start_first } => {
            let id = format!("service{service}-{}", world.index);
            let mut wanted = spec(&format!("s{service}"), u64::from(replicas));
            if global {
                wanted.mode = Some(service_spec::Mode::Global(Global {}));
            }
            let task = wanted.task.as_mut().unwrap();
            if network {
                let target = "net-id".to_owned();
                task.networks.push(NetworkAttachmentConfig { target, ..NetworkAttachmentConfig::default() });
            }
            if port {
                let ports = vec![PortConfig { target_port: 80, ..PortConfig::default() }];
                wanted.endpoint = Some(EndpointSpec { ports, ..EndpointSpec::default() });
            }
            let order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
            wanted.update = Some(UpdateConfig { parallelism: 1, order: order.into(), ..UpdateConfig::default() });
            // A name in use is fine.
            let _ = world.create(&id, wanted);
        }
        Op::Scale { service, replicas } => with(world, service, |s| {
            if let Some(service_spec::Mode::Replicated(r)) = &mut s.mode {
                r.replicas = u64::from(replicas);
            }
        }),
        Op::Update { service, image, parallelism, action } => with(world, service, |s| {
            s.task.as_mut().unwrap().container.as_mut().unwrap().image = format!("image:{image}");
            let update = s.update.as_mut().unwrap();
            update.parallelism = u64::from(parallelism);
            update.failure_action = i32::from(action);
        }),
        Op::Remove { service } => {
            if let Ok(found) = world.state.find_service(&format!("s{service}")) {
                world.remove(&found.id);
            }
        }
        Op::Availability { node, availability } => {
            world.node(&format!("node{node}"), |s| s.availability = i32::from(availability));
        }
        Op::Partition { node } => world.workers.get_mut(&format!("node{node}")).unwrap().connected = false,
        Op::Heal { node } => world.workers.get_mut(&format!("node{node}")).unwrap().connected = true,
        Op::Slow { node, slow } => world.workers.get_mut(&format!("node{node}")).unwrap().slow = slow,
        Op::Fail { pick } => {
            let running: Vec<_> =
                world.state.tasks().filter(|t| t.observed() == TaskState::Running).map(|t| t.id.clone()).collect();
            if let Some(at) = usize::from(pick).checked_rem(running.len()) {
                world.fail(&running[at].clone());
            }
        }
        Op::Turn { ms, steps } => world.turn(i64::from(ms), usize::from(steps)),
    }
    check(world);
}

fn with(world: &mut World, service: u8, change: impl FnOnce(&mut ServiceSpec)) {
    if let Ok(found) = world.state.find_service(&format!("s{service}")) {
        world.update(&found.id, change);
    }
}

/// What every node was told step by step, and what it has made of that.
#[derive(Default)]
struct Told(BTreeMap<String, (Part, AssignmentSet)>);

impl Told {
    /// Step by step the nodes have to arrive at what they would be told anew.
    fn follow(&mut self, world: &World) {
        for node in world.state.nodes() {
            let (part, held) = self.0.entry(node.id.clone()).or_insert_with(|| (Part::new(&node.id), BTreeMap::new()));
            let (put, remove) = part.follow(&world.state);
            for key in remove {
                assert!(held.remove(&(key.kind(), key.id)).is_some(), "removed without having been put");
            }
            let anew = assignment::for_node(&world.state, &node.id);
            assert_eq!(part.set(), &anew, "{}", node.id);
            for item in put {
                let key = anew.iter().find(|(_, other)| **other == item).map(|(key, _)| key.clone());
                held.insert(key.expect("what was put is wanted"), item);
            }
            assert_eq!(assignment::diff(held, &anew), (Vec::new(), Vec::new()), "{}", node.id);
        }
    }
}

fn check(world: &World) {
    world.check_addresses();
    let mut serving: BTreeMap<(String, u64, String), u32> = BTreeMap::new();
    for task in world.state.tasks().filter(|t| t.is_ready()) {
        let service = world.state.service(&task.service_id).unwrap();
        let update = service.spec.as_ref().unwrap().update.unwrap_or_default();
        let node = if task.slot == 0 { task.node_id.clone() } else { String::new() };
        let count = serving.entry((task.service_id.clone(), task.slot, node)).or_default();
        *count += 1;
        assert!(
            *count <= 1 || update.order() == UpdateOrder::StartFirst,
            "slot {} of {} is served twice",
            task.slot,
            task.service_id
        );
        assert!(*count <= 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn converges(ops in proptest::collection::vec(op(), 1..60)) {
        let mut world = World::new(NODES);
        world.create_network("net-id", "net", "");
        world.failing_images.insert("image:3".into());
        let mut told = Told::default();
        for op in ops {
            run(&mut world, op);
            told.follow(&world);
        }
        // All is well again.
        world.failing_images.clear();
        for node in 0..NODES {
            let worker = world.workers.get_mut(&format!("node{node}")).unwrap();
            (worker.connected, worker.slow) = (true, false);
            world.node(&format!("node{node}"), |s| s.availability = Availability::Active.into());
        }
        for _ in 0..120 {
            world.turn(1000, 5);
            check(&world);
            told.follow(&world);
        }
        for service in world.state.services() {
            prop_assert!(!service.removing, "{} is still there", service.id);
            let spec = service.spec.as_ref().unwrap();
            let expected = match spec.mode.as_ref().unwrap() {
                service_spec::Mode::Replicated(r) => r.replicas,
                service_spec::Mode::Global(_) => NODES as u64,
            };
            let ready = world.ready(&service.id);
            prop_assert_eq!(ready.len() as u64, expected, "{}: {:#?}", &service.id, world.tasks(&service.id));
            let status = service.update_status.clone().unwrap_or_default();
            prop_assert!(!matches!(status.state(), UpdateState::Updating | UpdateState::RollbackStarted), "{:?}", status);
            if !matches!(status.state(), UpdateState::Paused | UpdateState::RollbackPaused) {
                for task in &ready {
                    let run = world.state.task_spec(&task.service_id, task.spec_version).unwrap();
                    prop_assert_eq!(&run.container, &spec.task.as_ref().unwrap().container);
                }
            }
        }
        let really: usize = world.workers.values().map(|w| w.running.len()).sum();
        let wanted: usize = world.state.services().map(|s| world.ready(&s.id).len()).sum();
        prop_assert_eq!(really, wanted, "nothing runs that is not wanted");
        let history = 5;
        for service in world.state.services() {
            let mut slots: BTreeMap<(u64, String), usize> = BTreeMap::new();
            for task in world.tasks(&service.id) {
                *slots.entry((task.slot, if task.slot == 0 { task.node_id.clone() } else { String::new() })).or_default() += 1;
            }
            prop_assert!(slots.values().all(|n| *n <= history + 1));
        }
        // A round later there is still nothing to do.
        world.now += MS;
        prop_assert!(world.plan().actions.is_empty());
    }
}
