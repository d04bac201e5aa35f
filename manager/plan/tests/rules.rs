//! What is accepted, what is given out, and what a node is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod world;

use std::collections::BTreeSet;

use skep_plan::{assignment, validate};
use skep_proto::v1::assignment::Kind;
use skep_proto::v1::*;
use world::{SECOND, World, annotations, put, spec};

fn port(published: u32, target: u32, protocol: Protocol, mode: PublishMode) -> PortConfig {
    let (protocol, mode) = (protocol.into(), mode.into());
    PortConfig { published_port: published, target_port: target, protocol, mode, ..PortConfig::default() }
}

fn with_ports(name: &str, ports: Vec<PortConfig>) -> ServiceSpec {
    ServiceSpec { endpoint: Some(EndpointSpec { ports, ..EndpointSpec::default() }), ..spec(name, 1) }
}

#[test]
fn service_specs() {
    let mut w = World::new(1);
    w.create_network("net-id", "net", "");
    w.create("web", with_ports("web", vec![port(8080, 80, Protocol::Tcp, PublishMode::Ingress)])).unwrap();
    let container = |change: fn(&mut ContainerSpec)| {
        let mut spec = spec("x", 1);
        change(spec.task.as_mut().unwrap().container.as_mut().unwrap());
        spec
    };
    let task = |change: fn(&mut TaskSpec)| {
        let mut spec = spec("x", 1);
        change(spec.task.as_mut().unwrap());
        spec
    };
    let tcp = |published| with_ports("x", vec![port(published, 80, Protocol::Tcp, PublishMode::Ingress)]);
    let udp = |published| with_ports("x", vec![port(published, 80, Protocol::Udp, PublishMode::Host)]);
    for (spec, words) in [
        (spec("", 1), "a name is needed"),
        (spec("-x", 1), "`-x` is no valid name"),
        (spec("a.b", 1), "`a.b` is no valid name"),
        (spec(&"x".repeat(64), 1), "has 64 characters; 63 are allowed"),
        (spec("web", 1), "service web already exists"),
        (spec("x", 1_000_001), "replicas are the most"),
        (ServiceSpec { task: None, ..spec("x", 1) }, "a service needs a task template"),
        (container(|c| c.image.clear()), "an image reference is needed"),
        (container(|c| c.env.push("=1".into())), "write NAME=VALUE"),
        (container(|c| c.mounts.push(Mount { target: "x".into(), ..Mount::default() })), "absolute path"),
        (
            container(|c| c.mounts.push(Mount { target: "/".into(), source: "/a".into(), ..Mount::default() })),
            "choose another place",
        ),
        (
            container(|c| c.secrets.push(SecretReference { secret_name: "s".into(), ..SecretReference::default() })),
            "secret s not found",
        ),
        (
            task(|t| {
                t.networks.push(NetworkAttachmentConfig { target: "no".into(), ..NetworkAttachmentConfig::default() })
            }),
            "network no not found",
        ),
        (
            task(|t| {
                t.networks
                    .push(NetworkAttachmentConfig { target: "ingress".into(), ..NetworkAttachmentConfig::default() })
            }),
            "can't be attached to the ingress network",
        ),
        (
            task(|t| t.placement = Some(Placement { constraints: vec!["zone".into()], ..Placement::default() })),
            "neither == nor !=",
        ),
        (
            task(|t| t.placement = Some(Placement { spread: vec!["zone".into()], ..Placement::default() })),
            "can't be spread over",
        ),
        (
            task(|t| {
                t.resources = Some(ResourceRequirements {
                    limits: Some(Resources { memory_bytes: 1024, nano_cpus: 0 }),
                    ..ResourceRequirements::default()
                })
            }),
            "use 6 MiB",
        ),
        (
            ServiceSpec {
                update: Some(UpdateConfig { max_failure_ratio: 1.5, ..UpdateConfig::default() }),
                ..spec("x", 1)
            },
            "between 0 and 1",
        ),
        (tcp(8080), "port '8080' is already in use by service 'web' (web) as an ingress port"),
        (with_ports("x", vec![port(8080, 80, Protocol::Tcp, PublishMode::Host)]), "already in use"),
        (tcp(2377), "reserved for the managers"),
        (tcp(70000), "70000 is no port"),
        (udp(4789), "reserved for overlay traffic"),
        (udp(7946), "reserved for traffic between nodes"),
        (with_ports("x", vec![port(1, 0, Protocol::Tcp, PublishMode::Host)]), "0 is no port"),
        (
            with_ports(
                "x",
                vec![port(81, 80, Protocol::Tcp, PublishMode::Host), port(81, 82, Protocol::Tcp, PublishMode::Host)],
            ),
            "published twice",
        ),
        (
            ServiceSpec {
                endpoint: Some(EndpointSpec {
                    mode: ResolutionMode::Dnsrr.into(),
                    ports: vec![port(81, 80, Protocol::Tcp, PublishMode::Ingress)],
                }),
                ..spec("x", 1)
            },
            "dnsrr",
        ),
    ] {
        let error = validate::service(&w.state, spec.clone(), None).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
    for fine in [tcp(8081), udp(8080), udp(2377), spec("a-b_c", 0), container(|c| c.env.push("A".into()))] {
        validate::service(&w.state, fine, None).unwrap();
    }
    let named = task(|t| {
        t.networks.push(NetworkAttachmentConfig { target: "net".into(), ..NetworkAttachmentConfig::default() })
    });
    let accepted = validate::service(&w.state, named, None).unwrap();
    assert_eq!(accepted.task.unwrap().networks[0].target, "net-id", "names become ids");
    let old = w.state.service("web").unwrap();
    for (spec, words) in [
        (spec("other", 1), "renaming"),
        (ServiceSpec { mode: Some(service_spec::Mode::Global(Global {})), ..spec("web", 1) }, "mode can't be changed"),
    ] {
        assert!(validate::service(&w.state, spec, Some(&old)).unwrap_err().to_string().contains(words), "{words}");
    }
    validate::service(&w.state, old.spec.clone().unwrap(), Some(&old)).unwrap();
}

fn net(name: &str, config: Option<IpamConfig>) -> NetworkSpec {
    let ipam = config.map(|c| Ipam { configs: vec![c], ..Ipam::default() });
    NetworkSpec { annotations: annotations(name), ipam, ..NetworkSpec::default() }
}

fn ipam(subnet: &str, range: &str, gateway: &str) -> Option<IpamConfig> {
    Some(IpamConfig { subnet: subnet.into(), range: range.into(), gateway: gateway.into(), ..IpamConfig::default() })
}

#[test]
fn networks_are_given_subnets_and_vnis_that_nobody_has() {
    let mut w = World::new(1);
    let ingress = w.state.ingress().unwrap();
    assert_eq!((ingress.subnet.as_str(), ingress.gateway.as_str(), ingress.vni), ("10.0.0.0/24", "10.0.0.1", 4096));
    let large = validate::network(&w.state, net("big", ipam("10.0.1.0/24", "", "10.0.1.254")), "big").unwrap();
    assert_eq!((large.gateway.as_str(), large.vni), ("10.0.1.254", 4097));
    w.must(vec![put(object::Kind::Network(large))]);
    w.create_network("b", "b", "10.0.2.0/23");
    let next = validate::network(&w.state, net("c", None), "c").unwrap();
    assert_eq!((next.subnet.as_str(), next.vni), ("10.0.4.0/24", 4099));
    for (spec, words) in [
        (net("b", None), "network b already exists"),
        (net("host", None), "predefined"),
        (net("x", ipam("10.0.0.0/16", "", "")), "overlaps with 10.0."),
        (net("x", ipam("10.9.0.1/24", "", "")), "is no IPv4 subnet"),
        (net("x", ipam("10.9.0.0/30", "", "")), "too small"),
        (net("x", ipam("10.9.0.0/24", "", "10.8.0.1")), "no usable address"),
        (net("x", ipam("10.9.0.0/24", "10.9.1.0/25", "")), "does not lie in"),
        (net("x", ipam("", "10.9.1.0/25", "")), "a subnet is needed"),
        (NetworkSpec { ingress: true, ..net("x", None) }, "an ingress network already"),
        (NetworkSpec { ipv6: true, ..net("x", None) }, "IPv6"),
        (
            NetworkSpec { driver: Some(Driver { name: "bridge".into(), ..Driver::default() }), ..net("x", None) },
            "use overlay",
        ),
    ] {
        let error = validate::network(&w.state, spec, "x").unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
    let mut user = spec("web", 1);
    user.task
        .as_mut()
        .unwrap()
        .networks
        .push(NetworkAttachmentConfig { target: "b".into(), ..NetworkAttachmentConfig::default() });
    w.create("web", user).unwrap();
    let removal = |w: &World, id: &str| validate::network_removal(&w.state, &w.state.network(id).unwrap());
    assert!(removal(&w, "b").unwrap_err().to_string().contains("in use by service web"));
    assert_eq!(removal(&w, "big"), Ok(()));
    assert_eq!(removal(&w, "ingress-id"), Ok(()));
}

#[test]
fn the_pools_run_dry() {
    let mut w = World::new(1);
    let mut cluster = w.state.cluster().unwrap().as_ref().clone();
    cluster.default_address_pools = vec!["10.0.0.0/23".into(), "10.50.0.0/24".into()];
    cluster.subnet_size = 24;
    validate::pools(&cluster).unwrap();
    w.must(vec![put(object::Kind::Cluster(cluster.clone()))]);
    w.create_network("a", "a", "");
    w.create_network("b", "b", "");
    let subnets: Vec<_> = w.state.networks().map(|n| n.subnet.clone()).collect();
    assert_eq!(subnets, ["10.0.1.0/24", "10.50.0.0/24", "10.0.0.0/24"]);
    assert!(validate::network(&w.state, net("c", None), "c").unwrap_err().to_string().contains("no subnet is left"));
    cluster.subnet_size = 8;
    assert!(validate::pools(&cluster).is_err());
    cluster = Cluster { default_address_pools: vec!["10.0.0.0/8".into(), "10.1.0.0/16".into()], ..Cluster::default() };
    assert!(validate::pools(&cluster).unwrap_err().to_string().contains("overlaps"));
    assert!(validate::pools(&Cluster { data_path_port: 80, ..Cluster::default() }).is_err());
}

#[test]
fn secrets_and_configs() {
    let mut w = World::new(1);
    let data = |n: usize| SecretSpec { annotations: annotations("key"), data: vec![1; n].into() };
    assert!(validate::secret(&w.state, data(500 * 1024 + 1)).is_err());
    assert!(validate::secret(&w.state, data(0)).is_err());
    let secret = Secret {
        id: "secret-id".into(),
        meta: None,
        spec: Some(validate::secret(&w.state, data(500 * 1024)).unwrap()),
    };
    w.must(vec![put(object::Kind::Secret(secret))]);
    assert_eq!(validate::secret(&w.state, data(1)).unwrap_err().reason(), RefusalReason::NameInUse);
    let stored = w.state.secret("secret-id").unwrap();
    let mut labelled = stored.spec.clone().unwrap();
    labelled.data = Vec::new().into();
    labelled.annotations.as_mut().unwrap().labels.insert("a".into(), "b".into());
    assert_eq!(validate::secret_update(&stored, labelled.clone()).unwrap().data.len(), 500 * 1024);
    labelled.data = vec![2].into();
    assert!(validate::secret_update(&stored, labelled).unwrap_err().to_string().contains("only labels"));
    let mut user = spec("web", 1);
    let reference = SecretReference { secret_name: "key".into(), ..SecretReference::default() };
    user.task.as_mut().unwrap().container.as_mut().unwrap().secrets.push(reference);
    w.create("web", user).unwrap();
    let service = w.state.service("web").unwrap();
    let reference = &service.spec.as_ref().unwrap().task.as_ref().unwrap().container.as_ref().unwrap().secrets[0];
    assert_eq!((reference.secret_id.as_str(), reference.file.as_ref().unwrap().name.as_str()), ("secret-id", "key"));
    let error = validate::secret_removal(&w.state, &stored).unwrap_err();
    assert_eq!(error.to_string(), "secret 'key' is in use by the following services: web");
    assert!(matches!(error, validate::Error::InUse(_)), "its service is there to stay");
    w.settle();
    w.remove("web");
    let error = validate::secret_removal(&w.state, &stored).unwrap_err();
    assert!(matches!(error, validate::Error::Draining(_)), "{error}");
}

#[test]
fn files_of_a_container_have_a_bound_together() {
    let mut w = World::new(1);
    let large = |n: usize| ConfigSpec { annotations: annotations(&format!("c{n}")), data: vec![1; 1000 * 1024].into() };
    for n in 0..17 {
        let spec = Some(validate::config(&w.state, large(n)).unwrap());
        w.must(vec![put(object::Kind::Config(Config { id: format!("c{n}-id"), meta: None, spec }))]);
    }
    let with = |n: usize| {
        let mut user = spec("web", 1);
        let configs = (0..n).map(|n| {
            let file = FileTarget { name: format!("/c/{n}"), ..FileTarget::default() };
            ConfigReference { config_name: format!("c{n}"), file: Some(file), ..ConfigReference::default() }
        });
        user.task.as_mut().unwrap().container.as_mut().unwrap().configs = configs.collect();
        user
    };
    validate::service(&w.state, with(16), None).unwrap();
    let error = validate::service(&w.state, with(17), None).unwrap_err().to_string();
    assert!(error.contains("17408000 bytes together"), "{error}");
}

#[test]
fn a_network_waits_for_the_virtual_address_of_a_service_that_is_being_removed() {
    for replicas in [0, 2] {
        let mut w = World::new(1);
        w.create_network("net-id", "net", "");
        let mut user = spec("web", replicas);
        let attached = NetworkAttachmentConfig { target: "net".into(), ..NetworkAttachmentConfig::default() };
        user.task.as_mut().unwrap().networks.push(attached);
        w.create("web", user).unwrap();
        w.rest(2);
        let network = w.state.network("net-id").unwrap();
        let removal = |w: &World| validate::network_removal(&w.state, &network);
        assert!(matches!(removal(&w), Err(validate::Error::InUse(_))));
        w.remove("web");
        // Whenever the validation lets it go, the state does too.
        let mut waited = 0;
        while let Err(error) = removal(&w) {
            assert!(matches!(error, validate::Error::Draining(_)), "{error}");
            assert!(error.to_string().contains("web"), "{error}");
            waited += 1;
            assert!(waited < 100, "it never ends");
            w.now += SECOND / 10;
            for id in w.workers.keys().cloned().collect::<Vec<_>>() {
                w.work(&id, 5);
                assert!(removal(&w).is_err(), "the service is not gone yet");
            }
            w.settle();
        }
        assert!(waited > 0, "{replicas} replicas");
        let reference = ObjectRef { kind: ObjectKind::Network.into(), id: "net-id".into(), version: 0 };
        w.must(vec![Action { kind: Some(action::Kind::Remove(reference)) }]);
    }
}

#[test]
fn nodes_and_the_cluster() {
    let mut w = World::new(2);
    w.node("node0", |s| s.role = Role::Manager.into());
    let node = w.state.node("node0").unwrap();
    let demoted = NodeSpec { role: Role::Worker.into(), ..NodeSpec::default() };
    assert!(validate::node(&w.state, &node, demoted.clone()).unwrap_err().to_string().contains("last manager"));
    w.node("node1", |s| s.role = Role::Manager.into());
    validate::node(&w.state, &node, demoted).unwrap();
    let cluster = |change: fn(&mut ClusterSpec)| {
        let mut spec = ClusterSpec::default();
        change(&mut spec);
        validate::cluster(spec).is_ok()
    };
    assert!(cluster(|_| {}));
    assert!(!cluster(|s| s.heartbeat_ns = 1));
    assert!(!cluster(|s| s.certificate_expiry_ns = 1));
    assert!(!cluster(|s| s.auto_lock = true));
    let old = ClusterSpec { snapshot_interval: 10_000, ..ClusterSpec::default() };
    assert!(validate::cluster_warnings(&old, Some(&old)).is_empty());
    let new = ClusterSpec { snapshot_interval: 5, snapshots_kept: 2, ..ClusterSpec::default() };
    assert_eq!(validate::cluster_warnings(&new, Some(&old)).len(), 2);
}

#[test]
fn ports_are_chosen_from_the_range_and_kept() {
    let mut w = World::new(1);
    let auto =
        || vec![port(0, 80, Protocol::Tcp, PublishMode::Ingress), port(0, 81, Protocol::Tcp, PublishMode::Ingress)];
    w.create("a", with_ports("a", auto())).unwrap();
    w.create("b", with_ports("b", auto())).unwrap();
    w.rest(2);
    let published = |w: &World, id: &str| -> Vec<u32> {
        w.state.service(id).unwrap().endpoint.as_ref().unwrap().ports.iter().map(|p| p.published_port).collect()
    };
    let (a, b) = (published(&w, "a"), published(&w, "b"));
    let all: BTreeSet<_> = a.iter().chain(&b).collect();
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|p| (30_000..=32_767).contains(*p)));
    w.update("a", |s| s.endpoint.as_mut().unwrap().ports.push(port(0, 82, Protocol::Udp, PublishMode::Ingress)));
    w.rest(2);
    assert_eq!(published(&w, "a")[..2], a);
}

#[test]
fn ports_that_the_cluster_needs_are_neither_published_nor_chosen() {
    let mut w = World::new(3);
    for (id, address) in [("node0", "192.0.2.1:2399"), ("node1", "[fd00::2]:30000")] {
        let mut node = w.state.node(id).unwrap().as_ref().clone();
        node.manager = Some(ManagerInfo { raft_id: 1, address: address.into(), ..ManagerInfo::default() });
        w.must(vec![put(object::Kind::Node(node))]);
    }
    let mut cluster = w.state.cluster().unwrap().as_ref().clone();
    cluster.data_path_port = 30_001;
    w.must(vec![put(object::Kind::Cluster(cluster))]);
    use Protocol::{Tcp, Udp};
    for (published, protocol, whom) in [
        (2377, Tcp, Some("the managers")),
        (2399, Tcp, Some("the managers")),
        (2399, Udp, None),
        (30_000, Tcp, Some("the managers")),
        (30_000, Udp, None),
        (30_001, Udp, Some("overlay traffic between nodes")),
        (30_001, Tcp, None),
        (4789, Udp, None),
        (7946, Tcp, Some("traffic between nodes")),
        (7946, Udp, Some("traffic between nodes")),
        (7947, Tcp, None),
    ] {
        for mode in [PublishMode::Ingress, PublishMode::Host] {
            let spec = with_ports("x", vec![port(published, 80, protocol, mode)]);
            let refused = validate::service(&w.state, spec, None).map(|_| ()).map_err(|e| e.to_string());
            let expected = whom.map_or(Ok(()), |whom| {
                let word = if protocol == Tcp { "tcp" } else { "udp" };
                let why = format!("port {published}/{word} is reserved for {whom}: publish another one");
                Err(format!("EndpointSpec.Ports.PublishedPort: {why}"))
            });
            assert_eq!(refused, expected, "{published} {protocol:?} {mode:?}");
        }
    }
    let auto = [Tcp, Udp, Tcp, Udp].map(|protocol| port(0, 80, protocol, PublishMode::Ingress));
    let auto = auto.into_iter().zip(80..).map(|(port, target_port)| PortConfig { target_port, ..port }).collect();
    w.create("auto", with_ports("auto", auto)).unwrap();
    w.rest(2);
    let service = w.state.service("auto").unwrap();
    let chosen: Vec<_> = service.endpoint.as_ref().unwrap().ports.iter().map(|p| p.published_port).collect();
    assert_eq!(chosen, [30_001, 30_000, 30_002, 30_002]);
}

#[test]
fn no_manager_listens_on_a_port_of_the_mesh() {
    use Protocol::{Tcp, Udp};
    let mut w = World::new(1);
    for (name, published, protocol, mode) in [
        ("web", 2399, Tcp, PublishMode::Ingress),
        ("names", 2400, Udp, PublishMode::Ingress),
        ("own", 2401, Tcp, PublishMode::Host),
    ] {
        w.create(name, with_ports(name, vec![port(published, 80, protocol, mode)])).unwrap();
    }
    w.rest(2);
    for (address, refused) in [
        ("192.0.2.1:2399", true),
        ("[fd00::1]:2399", true),
        ("192.0.2.1:2400", false),
        ("192.0.2.1:2401", false),
        ("192.0.2.1:2377", false),
        ("192.0.2.1", false),
    ] {
        match validate::manager_address(&w.state, address) {
            Ok(()) => assert!(!refused, "{address}"),
            Err(error) => {
                let words = error.to_string();
                assert!(refused && words.contains("2399/tcp is published by service web:"), "{address}: {words}");
            }
        }
    }
}

#[test]
fn freed_addresses_rest() {
    let mut w = World::new(1);
    w.create_network("net-id", "net", "");
    let mut user = spec("web", 2);
    user.task
        .as_mut()
        .unwrap()
        .networks
        .push(NetworkAttachmentConfig { target: "net".into(), ..NetworkAttachmentConfig::default() });
    w.create("web", user).unwrap();
    w.rest(2);
    let used =
        |w: &World| -> BTreeSet<String> { w.ready("web").iter().map(|t| t.networks[0].address.clone()).collect() };
    let first = used(&w);
    let service = w.state.service("web").unwrap();
    let node = w.state.node("node0").unwrap();
    let virtual_ip = &service.endpoint.as_ref().unwrap().virtual_ips[0].address;
    let balancer = &node.attachments.iter().find(|a| a.network_id == "net-id").unwrap().address;
    // The first address is the gateway's.
    assert_eq!((virtual_ip.as_str(), balancer.as_str()), ("10.0.1.2", "10.0.1.5"));
    assert_eq!(first, ["10.0.1.3".to_owned(), "10.0.1.4".to_owned()].into());
    w.update("web", |s| s.task.as_mut().unwrap().force_update += 1);
    w.rest(40);
    assert!(first.is_disjoint(&used(&w)), "{first:?} {:?}", used(&w));
}

#[test]
fn a_node_is_told_what_it_needs_and_no_more() {
    let mut w = World::new(3);
    w.create_network("net-id", "net", "");
    w.create_network("other-id", "other", "");
    for name in ["mine", "other"] {
        let spec = SecretSpec { annotations: annotations(name), data: vec![1].into() };
        w.must(vec![put(object::Kind::Secret(Secret { id: format!("{name}-secret"), meta: None, spec: Some(spec) }))]);
    }
    let service = |name: &str, network: &str, node: &str| {
        let mut spec = spec(name, 1);
        let task = spec.task.as_mut().unwrap();
        let aliases = vec![format!("{name}-alias")];
        task.networks.push(NetworkAttachmentConfig {
            target: network.into(),
            aliases,
            ..NetworkAttachmentConfig::default()
        });
        task.placement = Some(Placement { constraints: vec![format!("node.id=={node}")], ..Placement::default() });
        spec
    };
    let mut with_secret = service("web", "net", "node0");
    let reference = SecretReference { secret_name: "mine".into(), ..SecretReference::default() };
    with_secret.task.as_mut().unwrap().container.as_mut().unwrap().secrets.push(reference);
    with_secret.endpoint = Some(EndpointSpec {
        ports: vec![port(80, 80, Protocol::Tcp, PublishMode::Ingress)],
        ..EndpointSpec::default()
    });
    w.create("web", with_secret).unwrap();
    w.create("db", service("db", "net", "node1")).unwrap();
    w.create("far", service("far", "other", "node2")).unwrap();
    w.rest(2);
    let keys = |node: &str| -> Vec<String> {
        let set = assignment::for_node(&w.state, node);
        set.keys()
            .filter(|(kind, _)| *kind != AssignmentKind::Task)
            .map(|(kind, id)| format!("{kind:?} {id}"))
            .collect()
    };
    assert_eq!(
        keys("node0"),
        ["Node node0", "Network ingress-id", "Network net-id", "Service db", "Service web", "Secret mine-secret"]
    );
    assert_eq!(keys("node1"), ["Node node1", "Network ingress-id", "Network net-id", "Service db", "Service web"]);
    assert_eq!(keys("node2"), ["Node node2", "Network ingress-id", "Network other-id", "Service far", "Service web"]);
    assert!(assignment::for_node(&w.state, "nobody").is_empty());
    let set = assignment::for_node(&w.state, "node2");
    let Some(Kind::Service(web)) = &set[&(AssignmentKind::Service, "web".into())].kind else { panic!() };
    assert_eq!(web.virtual_ips.len(), 1, "the mesh's; of the other network it knows nothing");
    assert_eq!((web.ports[0].published_port, web.endpoints.len(), web.endpoints[0].networks.len()), (80, 1, 1));
    assert!(web.endpoints[0].ready && web.aliases.is_empty());
    assert_eq!(
        (web.endpoints[0].node_id.as_str(), web.endpoints[0].data_path_address.as_str()),
        ("node0", "192.0.2.1")
    );
    let set = assignment::for_node(&w.state, "node1");
    let Some(Kind::Network(net)) = &set[&(AssignmentKind::Network, "net-id".into())].kind else { panic!() };
    assert_eq!(net.peers.iter().map(|p| p.node_id.as_str()).collect::<Vec<_>>(), ["node0"]);
    assert!(!net.balancer.is_empty() && net.balancer != net.peers[0].balancer);
}

#[test]
fn a_change_is_sent_as_the_difference() {
    let mut w = World::new(2);
    w.create("web", with_ports("web", vec![port(80, 80, Protocol::Tcp, PublishMode::Ingress)])).unwrap();
    w.create("other", with_ports("other", vec![port(81, 80, Protocol::Tcp, PublishMode::Ingress)])).unwrap();
    w.settle();
    let held = assignment::for_node(&w.state, "node0");
    let owner = w.tasks("web")[0].node_id.clone();
    w.work(&owner, 5);
    let next = assignment::for_node(&w.state, "node0");
    let (put, remove) = assignment::diff(&held, &next);
    assert!(remove.is_empty());
    for assignment in &put {
        assert!(matches!(assignment.kind, Some(Kind::Service(_))), "the worker's own words are not told to it again");
    }
    assert!(!put.is_empty());
    assert_eq!(assignment::diff(&next, &next.clone()), (Vec::new(), Vec::new()));
    w.remove("web");
    w.rest(3);
    let gone = assignment::for_node(&w.state, "node0");
    let (_, remove) = assignment::diff(&next, &gone);
    assert!(remove.iter().any(|k| k.kind() == AssignmentKind::Service && k.id == "web"));
}
