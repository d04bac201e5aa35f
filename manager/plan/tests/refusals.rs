//! What is refused before anything is stored, each with the name of the field: a table of specs that no node can run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod world;

use std::collections::BTreeMap;

use skep_plan::validate;
use skep_proto::v1::*;
use world::{World, annotations, put, spec};

const YEARS: i64 = 2 * 366 * 24 * 3600 * 1_000_000_000;

fn world() -> World {
    let mut w = World::new(1);
    w.create_network("net-id", "net", "");
    for name in ["key", "other"] {
        let data = vec![1].into();
        let secret = SecretSpec { annotations: annotations(name), data };
        w.must(vec![put(object::Kind::Secret(Secret { id: format!("{name}-id"), meta: None, spec: Some(secret) }))]);
        let config = ConfigSpec { annotations: annotations(name), data: vec![2].into() };
        w.must(vec![put(object::Kind::Config(Config { id: format!("{name}-cfg"), meta: None, spec: Some(config) }))]);
    }
    w
}

type Change = fn(&mut ServiceSpec);

fn changed(change: &Change) -> ServiceSpec {
    let mut spec = spec("web", 1);
    change(&mut spec);
    spec
}

fn replicated(spec: &ServiceSpec) -> bool {
    matches!(spec.mode, Some(service_spec::Mode::Replicated(_)))
}

fn task(spec: &mut ServiceSpec) -> &mut TaskSpec {
    spec.task.as_mut().unwrap()
}

fn container(spec: &mut ServiceSpec) -> &mut ContainerSpec {
    task(spec).container.as_mut().unwrap()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn secret(target: &str) -> SecretReference {
    let file = FileTarget { name: target.into(), ..FileTarget::default() };
    SecretReference { secret_name: "key".into(), file: Some(file), ..SecretReference::default() }
}

fn config(target: &str) -> ConfigReference {
    let file = FileTarget { name: target.into(), ..FileTarget::default() };
    ConfigReference { config_name: "key".into(), file: Some(file), ..ConfigReference::default() }
}

fn mount(r#type: MountType, source: &str, target: &str) -> Mount {
    Mount { r#type: r#type.into(), source: source.into(), target: target.into(), ..Mount::default() }
}

fn placed(spec: &mut ServiceSpec, constraint: &str) {
    task(spec).placement = Some(Placement { constraints: vec![constraint.to_owned()], ..Placement::default() });
}

fn published(spec: &mut ServiceSpec, port: PortConfig) {
    spec.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
}

fn logging(spec: &mut ServiceSpec, name: &str, option: (&str, &str)) {
    task(spec).log_driver = Some(Driver { name: name.into(), options: map(&[option]) });
}

/// Field, and a spec that is wrong there.
const WRONG: &[(&str, Change)] = &[
    ("Labels", |s| s.annotations.as_mut().unwrap().labels = map(&[(" ", "x")])),
    ("Labels", |s| s.annotations.as_mut().unwrap().labels = map(&[("a", "\0")])),
    ("TaskTemplate.ContainerSpec.Mounts.Type", |s| {
        container(s).mounts.push(mount(MountType::Volume, "data", "/data"));
    }),
    ("TaskTemplate.ContainerSpec.Mounts", |s| {
        container(s).mounts = vec![mount(MountType::Tmpfs, "", "/a"), mount(MountType::Bind, "/x", "/b/../a")];
    }),
    ("TaskTemplate.ContainerSpec.Mounts", |s| container(s).mounts.push(mount(MountType::Tmpfs, "", "/proc/sys"))),
    ("TaskTemplate.ContainerSpec.Mounts", |s| {
        container(s).mounts.push(mount(MountType::Bind, "/x/{{.Task.Slot}}", "/x"));
    }),
    ("TaskTemplate.ContainerSpec.Mounts.Source", |s| container(s).mounts.push(mount(MountType::Bind, "x", "/x"))),
    ("TaskTemplate.ContainerSpec.Mounts.Source", |s| container(s).mounts.push(mount(MountType::Tmpfs, "/x", "/x"))),
    ("TaskTemplate.ContainerSpec.Mounts.TmpfsOptions.Mode", |s| {
        container(s).mounts.push(Mount { tmpfs_mode: 0o10000, ..mount(MountType::Tmpfs, "", "/x") });
    }),
    ("TaskTemplate.ContainerSpec.Mounts.TmpfsOptions", |s| {
        container(s).mounts.push(Mount { tmpfs_size_bytes: 1, ..mount(MountType::Bind, "/x", "/x") });
    }),
    ("TaskTemplate.ContainerSpec.Mounts.BindOptions.Propagation", |s| {
        container(s).mounts.push(Mount { propagation: "rshared".into(), ..mount(MountType::Bind, "/x", "/x") });
    }),
    ("TaskTemplate.ContainerSpec.Secrets.File.Name", |s| container(s).secrets.push(secret("../x"))),
    ("TaskTemplate.ContainerSpec.Secrets.File.Name", |s| container(s).secrets.push(secret("x/"))),
    ("TaskTemplate.ContainerSpec.Secrets", |s| container(s).secrets.push(secret("a\0"))),
    ("TaskTemplate.ContainerSpec.Secrets", |s| container(s).secrets.push(secret("/proc/x"))),
    ("TaskTemplate.ContainerSpec.Secrets", |s| container(s).secrets = vec![secret("a"), secret("/run/secrets/a")]),
    ("TaskTemplate.ContainerSpec.Configs", |s| {
        container(s).secrets = vec![secret("a")];
        container(s).configs = vec![config("/run/secrets/a")];
    }),
    ("TaskTemplate.ContainerSpec.Configs", |s| {
        container(s).mounts.push(mount(MountType::Tmpfs, "", "/key"));
        container(s).configs = vec![config("")];
    }),
    ("TaskTemplate.ContainerSpec.Configs.File.Mode", |s| {
        let mut wrong = config("a");
        wrong.file.as_mut().unwrap().mode = 0o1777;
        container(s).configs.push(wrong);
    }),
    ("TaskTemplate.ContainerSpec.Configs.File.UID", |s| {
        let mut wrong = config("a");
        wrong.file.as_mut().unwrap().uid = "root".into();
        container(s).configs.push(wrong);
    }),
    ("TaskTemplate.Placement.Constraints", |s| placed(s, "node.role==x")),
    ("TaskTemplate.Placement.Constraints", |s| placed(s, "node.role=manager")),
    ("TaskTemplate.Placement.Constraints", |s| placed(s, "node.rule==manager")),
    ("TaskTemplate.Placement.Constraints", |s| placed(s, "node.labels.a>==1")),
    ("TaskTemplate.Placement.MaxReplicas", |s| {
        s.mode = Some(service_spec::Mode::Global(Global {}));
        task(s).placement = Some(Placement { max_replicas: 1, ..Placement::default() });
    }),
    ("TaskTemplate.RestartPolicy", |s| {
        task(s).restart = Some(RestartPolicy { delay_ns: Some(i64::MAX), ..RestartPolicy::default() });
    }),
    ("TaskTemplate.RestartPolicy", |s| {
        task(s).restart = Some(RestartPolicy { window_ns: -1, ..RestartPolicy::default() });
    }),
    ("TaskTemplate.LogDriver.Name", |s| logging(s, "syslog", ("max-file", "1"))),
    ("TaskTemplate.LogDriver.Options", |s| logging(s, "json-file", ("max-size", "ten"))),
    ("TaskTemplate.LogDriver.Options", |s| logging(s, "json-file", ("max-size", "1k"))),
    ("TaskTemplate.LogDriver.Options", |s| logging(s, "local", ("max-file", "0"))),
    ("TaskTemplate.Networks.Aliases", |s| {
        let aliases = vec!["a b".to_owned()];
        task(s).networks.push(NetworkAttachmentConfig { target: "net".into(), aliases, ..Default::default() });
    }),
    ("TaskTemplate.Networks", |s| {
        let network = || NetworkAttachmentConfig { target: "net".into(), ..Default::default() };
        task(s).networks = vec![network(), network()];
    }),
    ("TaskTemplate.Resources.Reservations.MemoryBytes", |s| {
        let part = |memory_bytes| Some(Resources { memory_bytes, nano_cpus: 0 });
        let resources =
            ResourceRequirements { limits: part(8 << 20), reservations: part(9 << 20), ..Default::default() };
        task(s).resources = Some(resources);
    }),
    ("UpdateConfig.Delay", |s| s.update = Some(UpdateConfig { delay_ns: YEARS, ..UpdateConfig::default() })),
    ("UpdateConfig.Monitor", |s| s.update = Some(UpdateConfig { monitor_ns: -1, ..UpdateConfig::default() })),
    ("UpdateConfig.Parallelism", |s| {
        s.update = Some(UpdateConfig { parallelism: u64::MAX, ..UpdateConfig::default() });
    }),
    ("RollbackConfig.MaxFailureRatio", |s| {
        s.rollback = Some(UpdateConfig { max_failure_ratio: f64::NAN, ..UpdateConfig::default() });
    }),
    ("RollbackConfig.FailureAction", |s| {
        let failure_action = FailureAction::Rollback.into();
        s.rollback = Some(UpdateConfig { failure_action, ..UpdateConfig::default() });
    }),
    ("EndpointSpec.Ports.Protocol", |s| {
        let port = PortConfig { target_port: 80, published_port: 80, ..PortConfig::default() };
        published(s, PortConfig { protocol: Protocol::Sctp.into(), mode: PublishMode::Host.into(), ..port });
    }),
    ("EndpointSpec.Ports.PublishedPort", |s| {
        published(s, PortConfig { target_port: 80, mode: PublishMode::Host.into(), ..PortConfig::default() });
    }),
    ("EndpointSpec.Ports.PublishedPort", |s| {
        published(s, PortConfig { target_port: 80, published_port: 65_536, ..PortConfig::default() });
    }),
    ("EndpointSpec.Ports.TargetPort", |s| {
        published(s, PortConfig { target_port: 65_536, published_port: 80, ..PortConfig::default() });
    }),
];

#[test]
fn wrong_specs_are_refused_at_creation_and_at_update() {
    let mut w = world();
    w.create("web-id", spec("web", 1)).unwrap();
    let old = w.state.service("web-id").unwrap();
    let empty = world();
    for (number, (field, change)) in WRONG.iter().enumerate() {
        // The mode of a service is for life, so a change of it is refused as such.
        let update = replicated(&changed(change));
        let updated = update.then(|| validate::service(&w.state, changed(change), Some(old.as_ref())));
        for error in std::iter::once(validate::service(&empty.state, changed(change), None)).chain(updated) {
            let error = error.map(|_| ()).expect_err(&format!("number {number} ({field}) was accepted"));
            assert_eq!(error.reason(), RefusalReason::Invalid, "{field}");
            let text = error.to_string();
            assert!(text.starts_with(&format!("{field}: ")), "number {number}: {text:?} does not name {field}");
        }
    }
}

#[test]
fn what_is_close_to_it_is_accepted() {
    let fine: &[Change] = &[
        |s| {
            container(s).mounts = vec![
                mount(MountType::Bind, "/x", "/data"),
                Mount { tmpfs_mode: 0o1777, tmpfs_size_bytes: 4096, ..mount(MountType::Tmpfs, "", "/dev/shm/x") },
                Mount { propagation: "rslave".into(), ..mount(MountType::Bind, "/", "/host") },
            ];
        },
        |s| {
            container(s).secrets = vec![secret(""), secret("a/b"), secret("/etc/key")];
            container(s).configs = vec![config(""), config("/etc/app/config..yml")];
        },
        |s| placed(s, "node.role != manager"),
        |s| logging(s, "", ("max-size", "4k")),
        |s| logging(s, "json-file", ("tag", "x")),
        |s| {
            let port = PortConfig { target_port: 65_535, published_port: 65_535, ..PortConfig::default() };
            published(s, PortConfig { mode: PublishMode::Host.into(), protocol: Protocol::Udp.into(), ..port });
        },
        |s| s.update = Some(UpdateConfig { parallelism: 0, max_failure_ratio: 1.0, ..UpdateConfig::default() }),
        |s| container(s).hostname = "{{.Node.Hostname}}-{{.Task.Slot}}".into(),
    ];
    let w = world();
    for (number, change) in fine.iter().enumerate() {
        let accepted = validate::service(&w.state, changed(change), None);
        assert!(accepted.is_ok(), "number {number}: {accepted:?}");
    }
    let spec = validate::service(&w.state, changed(&fine[1]), None).unwrap();
    let container = spec.task.unwrap().container.unwrap();
    assert_eq!(
        (container.secrets[0].secret_id.as_str(), container.configs[0].config_id.as_str()),
        ("key-id", "key-cfg")
    );
    assert_eq!(container.secrets[0].file.as_ref().unwrap().name, "key", "an empty target is the name");
}

#[test]
fn networks_that_would_not_be_what_was_asked_for() {
    let w = world();
    type Change = fn(&mut NetworkSpec);
    let network = |change: Change| {
        let mut spec = NetworkSpec { annotations: annotations("n"), ..NetworkSpec::default() };
        change(&mut spec);
        validate::network(&w.state, spec, "n-id").map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(network(|s| s.attachable = true), Ok(()));
    let table: &[(&str, Change)] = &[
        ("Options: encryption", |s| {
            s.driver = Some(Driver { name: "overlay".into(), options: map(&[("encrypted", "")]) });
        }),
        ("Options: `com.docker.network.driver.mtu`", |s| {
            s.driver = Some(Driver { name: String::new(), options: map(&[("com.docker.network.driver.mtu", "1400")]) });
        }),
        ("Internal: ", |s| s.internal = true),
        ("IPAM.Options: ", |s| s.ipam = Some(Ipam { options: map(&[("a", "b")]), ..Ipam::default() })),
        ("Labels: ", |s| s.annotations.as_mut().unwrap().labels = map(&[("", "")])),
    ];
    for (words, change) in table {
        let error = network(*change).expect_err(words);
        assert!(error.starts_with(words), "{error:?} does not begin with {words:?}");
    }
}

#[test]
fn a_subnet_that_a_node_has_addresses_in_is_refused_and_never_chosen() {
    let mut w = World::new(1);
    let mut node = w.state.nodes().next().unwrap().as_ref().clone();
    let description = node.description.as_mut().unwrap();
    description.data_path_address = "10.0.1.7".into();
    description.gateway_subnet = "10.0.2.0/23".into();
    node.status.as_mut().unwrap().address = "172.20.0.7".into();
    node.manager = Some(ManagerInfo { raft_id: 1, address: "172.21.0.7:2377".into(), ..ManagerInfo::default() });
    let hostname = node.description.as_ref().unwrap().hostname.clone();
    w.must(vec![put(object::Kind::Node(node))]);
    let network = |subnet: &str| {
        let configs = vec![IpamConfig { subnet: subnet.into(), ..IpamConfig::default() }];
        let ipam = (!subnet.is_empty()).then(|| Ipam { configs, ..Ipam::default() });
        let spec = NetworkSpec { annotations: annotations("lan"), ipam, ..NetworkSpec::default() };
        validate::network(&w.state, spec, "n-id").map(|n| n.subnet).map_err(|e| e.to_string())
    };
    for (subnet, address) in [
        ("10.0.1.0/24", "10.0.1.7"),
        ("172.20.0.0/16", "172.20.0.7"),
        ("172.21.0.0/28", "172.21.0.7"),
        // Where its containers' way to the outside begins.
        ("10.0.3.0/24", "10.0.2.0/23"),
    ] {
        let error = network(subnet).expect_err(subnet);
        assert!(error.contains(address) && error.contains(&hostname), "{error}");
    }
    for subnet in ["0.1.0.0/24", "127.5.0.0/24", "169.254.172.0/24", "169.0.0.0/8", "224.0.0.0/24", "255.255.255.0/24"]
    {
        let error = network(subnet).expect_err(subnet);
        assert!(error.starts_with("IPAM.Config.Subnet: ") && error.contains("addresses: give another one"), "{error}");
    }
    assert_eq!(network("172.22.0.0/16"), Ok("172.22.0.0/16".to_owned()));
    // 10.0.0.0/24 is the mesh's, in the next one lives a node, and two are its containers'.
    assert_eq!(network(""), Ok("10.0.4.0/24".to_owned()));
}

#[test]
fn names_of_nodes_secrets_and_configs() {
    let w = world();
    for name in ["", "-a", "a b", "a/b", &"x".repeat(65)] {
        let secret = SecretSpec { annotations: annotations(name), data: vec![1].into() };
        assert!(validate::secret(&w.state, secret).is_err(), "{name}");
        let config = ConfigSpec { annotations: annotations(name), data: vec![1].into() };
        assert!(validate::config(&w.state, config).is_err(), "{name}");
    }
    let node = w.state.node("node0").unwrap();
    let spec = |name: &str| NodeSpec { annotations: annotations(name), ..NodeSpec::default() };
    assert!(validate::node(&w.state, &node, spec("a b")).is_err());
    assert!(validate::node(&w.state, &node, spec("a.b")).is_ok());
}
