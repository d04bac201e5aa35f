//! Every field of a spec has a value of its own here, so that one that goes to another's place is seen.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

fn pairs<T: FromIterator<(String, String)>>(pairs: &[(&str, &str)]) -> T {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn own() -> Task {
    let network = v1::TaskNetwork { network_id: "net".into(), address: "10.0.1.5".into(), aliases: Vec::new() };
    Task {
        id: "task-id".into(),
        name: "web.2.task-id".into(),
        service_id: "service-id".into(),
        node_id: "node-id".into(),
        slot: 2,
        networks: vec![network],
        ..Task::default()
    }
}

fn assignment(spec: v1::TaskSpec) -> TaskAssignment {
    TaskAssignment { task: Some(own()), spec: Some(spec), service_name: "web".into(), ..TaskAssignment::default() }
}

/// Maps a spec as the hands do, of an image that says other things.
fn mapped(task: &TaskAssignment) -> Result<ContainerSpec, Failure> {
    let image = skep_image::ImageConfig {
        entrypoint: Some(words(&["/image-entrypoint"])),
        cmd: Some(words(&["image-cmd"])),
        env: words(&["FROM=image", "BOTH=image"]),
        working_dir: "/image-dir".into(),
        user: "image-user".into(),
        stop_signal: Some("SIGQUIT".into()),
        ..skep_image::ImageConfig::default()
    };
    let wanted = container::spec(task).unwrap();
    let search = words(&["node.example"]);
    let given = Given {
        process: container::process(wanted, &image)?,
        layers: vec!["/layers/base".into(), "/layers/top".into()],
        image_id: "sha256:image".into(),
        files: vec![container::File { path: "/run/secrets/key".into(), data: vec![7], uid: 11, gid: 12, mode: 0o440 }],
        netns: "/run/netns/task-id".into(),
        search: &search,
    };
    container(task, task.task.as_ref().unwrap(), wanted, given)
}

fn of(spec: v1::ContainerSpec) -> ContainerSpec {
    mapped(&assignment(v1::TaskSpec { container: Some(spec), ..v1::TaskSpec::default() })).unwrap()
}

#[test]
fn every_field_has_its_place() {
    let spec = v1::ContainerSpec {
        image: "web:1".into(),
        labels: pairs(&[("tier", "front")]),
        command: words(&["/command", "first"]),
        args: words(&["--argument"]),
        hostname: "host".into(),
        env: words(&["OWN=spec", "BOTH=spec"]),
        dir: "/dir".into(),
        user: "user:group".into(),
        groups: words(&["audio", "42"]),
        read_only: true,
        mounts: vec![v1::Mount { source: "/source".into(), target: "/target".into(), ..v1::Mount::default() }],
        stop_signal: "SIGUSR1".into(),
        hosts: words(&["192.0.2.9 db db.example"]),
        dns: Some(v1::DnsConfig {
            nameservers: words(&["192.0.2.53"]),
            search: words(&["own.example"]),
            options: words(&["ndots:2"]),
        }),
        capability_add: words(&["CAP_NET_ADMIN"]),
        capability_drop: words(&["CAP_CHOWN"]),
        sysctls: pairs(&[("net.core.somaxconn", "128")]),
        ulimits: vec![v1::Ulimit { name: "nofile".into(), soft: 1024, hard: 4096 }],
        oom_score_adj: -500,
        ..v1::ContainerSpec::default()
    };
    let driver = v1::Driver { name: "json-file".into(), options: pairs(&[("max-size", "1m"), ("max-file", "7")]) };
    let resources = v1::ResourceRequirements {
        limits: Some(v1::Resources { nano_cpus: 1_500_000_000, memory_bytes: 64 << 20 }),
        reservations: Some(v1::Resources { nano_cpus: 250_000_000, memory_bytes: 32 << 20 }),
        pids_limit: 99,
        memory_swap_bytes: 96 << 20,
    };
    let task = assignment(v1::TaskSpec {
        container: Some(spec),
        resources: Some(resources),
        log_driver: Some(driver),
        ..v1::TaskSpec::default()
    });
    let expected = ContainerSpec {
        id: container::id("task-id"),
        layers: vec!["/layers/base".into(), "/layers/top".into()],
        args: words(&["/command", "first", "--argument"]),
        env: words(&[
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "FROM=image",
            "BOTH=spec",
            "OWN=spec",
        ]),
        cwd: "/dir".into(),
        user: "user:group".into(),
        groups: words(&["audio", "42"]),
        hostname: "host".into(),
        hosts: vec![("192.0.2.9".into(), words(&["db", "db.example"])), ("10.0.1.5".into(), words(&["host"]))],
        resolv_conf: "nameserver 127.0.0.11\nsearch own.example\noptions ndots:2\n".into(),
        netns: Some("/run/netns/task-id".into()),
        mounts: vec![Mount::Bind { source: "/source".into(), target: "/target".into(), read_only: false }],
        files: vec![InjectedFile { path: "/run/secrets/key".into(), bytes: vec![7], uid: 11, gid: 12, mode: 0o440 }],
        read_only: true,
        tty: false,
        init: false,
        stop_signal: "SIGUSR1".into(),
        resources: Resources {
            memory_bytes: Some(64 << 20),
            memory_swap: Some(96 << 20),
            nano_cpus: Some(1_500_000_000),
            pids: Some(99),
        },
        cap_add: words(&["CAP_NET_ADMIN"]),
        cap_drop: words(&["CAP_CHOWN"]),
        sysctls: pairs(&[("net.core.somaxconn", "128")]),
        ulimits: vec![Ulimit { name: "nofile".into(), soft: 1024, hard: 4096 }],
        oom_score_adj: -500,
        labels: pairs(&[
            ("com.docker.swarm.node.id", "node-id"),
            ("com.docker.swarm.service.id", "service-id"),
            ("com.docker.swarm.service.name", "web"),
            ("com.docker.swarm.task", ""),
            ("com.docker.swarm.task.id", "task-id"),
            ("com.docker.swarm.task.name", "web.2.task-id"),
            ("tier", "front"),
            (container::IMAGE_LABEL, "sha256:image"),
        ]),
        log: LogOptions { max_size: 1 << 20, max_files: 7 },
        seccomp: Seccomp::Default,
    };
    assert_eq!(mapped(&task), Ok(expected));
}

#[test]
fn where_the_spec_is_silent_the_image_and_the_defaults_speak() {
    let plain = of(v1::ContainerSpec::default());
    assert_eq!(plain.args, ["/image-entrypoint", "image-cmd"]);
    assert_eq!((plain.cwd.as_str(), plain.user.as_str()), ("/image-dir", "image-user"));
    assert_eq!(plain.stop_signal, "SIGQUIT");
    assert_eq!(plain.env[1..], ["FROM=image", "BOTH=image"]);
    assert_eq!(plain.hostname, container::id("task-id")[..12]);
    assert_eq!(plain.hosts, [("10.0.1.5".to_owned(), vec![plain.hostname.clone()])]);
    assert_eq!(plain.resolv_conf, "nameserver 127.0.0.11\nsearch node.example\noptions ndots:0\n");
    assert_eq!((plain.resources, plain.log), (Resources::default(), LogOptions::default()));
    assert_eq!((plain.mounts, plain.ulimits, plain.oom_score_adj), (Vec::new(), Vec::new(), 0));
}

#[test]
fn a_flag_turns_on_itself_and_nothing_else() {
    let seccomp =
        |seccomp_unconfined, no_new_privileges| Some(v1::Privileges { seccomp_unconfined, no_new_privileges });
    let spec = v1::ContainerSpec::default;
    // Read-only, terminal, init, seccomp.
    for (what, spec, expected) in [
        ("none", spec(), (false, false, false, Seccomp::Default)),
        ("read_only", v1::ContainerSpec { read_only: true, ..spec() }, (true, false, false, Seccomp::Default)),
        ("tty", v1::ContainerSpec { tty: true, ..spec() }, (false, true, false, Seccomp::Default)),
        ("open_stdin", v1::ContainerSpec { open_stdin: true, ..spec() }, (false, false, false, Seccomp::Default)),
        ("init", v1::ContainerSpec { init: Some(true), ..spec() }, (false, false, true, Seccomp::Default)),
        ("no init", v1::ContainerSpec { init: Some(false), ..spec() }, (false, false, false, Seccomp::Default)),
        (
            "seccomp",
            v1::ContainerSpec { privileges: seccomp(true, false), ..spec() },
            (false, false, false, Seccomp::Unconfined),
        ),
        (
            "no new privileges",
            v1::ContainerSpec { privileges: seccomp(false, true), ..spec() },
            (false, false, false, Seccomp::Default),
        ),
    ] {
        let made = of(spec);
        assert_eq!((made.read_only, made.tty, made.init, made.seccomp), expected, "{what}");
    }
}

#[test]
fn mounts_of_each_kind() {
    let mount = |r#type: MountType, source: &str, read_only, tmpfs_size_bytes, tmpfs_mode| v1::Mount {
        r#type: r#type.into(),
        source: source.into(),
        target: "/target".into(),
        read_only,
        propagation: String::new(),
        tmpfs_size_bytes,
        tmpfs_mode,
    };
    let bind = |read_only| Mount::Bind { source: "/source".into(), target: "/target".into(), read_only };
    let tmpfs = |size, mode, read_only| Mount::Tmpfs { target: "/target".into(), size, mode, read_only };
    for (given, expected) in [
        (mount(MountType::Bind, "/source", false, 0, 0), bind(false)),
        (mount(MountType::Bind, "/source", true, 0, 0), bind(true)),
        (mount(MountType::Tmpfs, "", false, 0, 0), tmpfs(None, None, false)),
        (mount(MountType::Tmpfs, "", false, 4096, 0), tmpfs(Some(4096), None, false)),
        (mount(MountType::Tmpfs, "", false, 0, 0o700), tmpfs(None, Some(0o700), false)),
        (mount(MountType::Tmpfs, "", true, 8192, 0o755), tmpfs(Some(8192), Some(0o755), true)),
        (mount(MountType::Tmpfs, "", false, -1, 0), tmpfs(None, None, false)),
    ] {
        let spec = v1::ContainerSpec { mounts: vec![given.clone()], ..v1::ContainerSpec::default() };
        assert_eq!(mounts(&spec), Ok(vec![expected]), "{given:?}");
    }
    let volume = mount(MountType::Volume, "data", false, 0, 0);
    let both = vec![mount(MountType::Bind, "/source", false, 0, 0), volume];
    let refused = mounts(&v1::ContainerSpec { mounts: both, ..v1::ContainerSpec::default() });
    assert_eq!(refused, Err(rejected("mount /target: volumes are not available on this node".to_owned())));
}

#[test]
fn limits_that_are_not_given_are_none() {
    let limits = |memory_bytes, nano_cpus| Some(v1::Resources { memory_bytes, nano_cpus });
    let none = v1::ResourceRequirements::default;
    let nothing = Resources::default;
    for (given, expected) in [
        (none(), nothing()),
        (v1::ResourceRequirements { reservations: limits(1, 2), ..none() }, nothing()),
        (v1::ResourceRequirements { limits: limits(7, 0), ..none() }, Resources { memory_bytes: Some(7), ..nothing() }),
        (v1::ResourceRequirements { limits: limits(0, 8), ..none() }, Resources { nano_cpus: Some(8), ..nothing() }),
        (v1::ResourceRequirements { limits: limits(-7, -8), ..none() }, nothing()),
        (v1::ResourceRequirements { pids_limit: 9, ..none() }, Resources { pids: Some(9), ..nothing() }),
        (v1::ResourceRequirements { pids_limit: -1, ..none() }, nothing()),
        (
            v1::ResourceRequirements { memory_swap_bytes: 10, ..none() },
            Resources { memory_swap: Some(10), ..nothing() },
        ),
        // Without limit.
        (
            v1::ResourceRequirements { memory_swap_bytes: -1, ..none() },
            Resources { memory_swap: Some(-1), ..nothing() },
        ),
    ] {
        let task = assignment(v1::TaskSpec { resources: Some(given), ..v1::TaskSpec::default() });
        assert_eq!(resources(&task), expected, "{given:?}");
    }
}

#[test]
fn options_of_the_log_driver() {
    let standard = LogOptions::default();
    for (options, max_size, max_files) in [
        (vec![], standard.max_size, standard.max_files),
        (vec![("max-size", "1m")], 1 << 20, standard.max_files),
        (vec![("max-file", "9")], standard.max_size, 9),
        (vec![("max-size", "2k"), ("max-file", "1")], 4096, 1),
        (vec![("max-size", "much"), ("max-file", "many")], standard.max_size, standard.max_files),
        (vec![("tag", "5"), ("size", "1m")], standard.max_size, standard.max_files),
    ] {
        let driver = v1::Driver { name: "local".into(), options: pairs(&options) };
        let task = assignment(v1::TaskSpec { log_driver: Some(driver), ..v1::TaskSpec::default() });
        assert_eq!(log_options(&task), LogOptions { max_size, max_files }, "{options:?}");
    }
}

#[test]
fn bounds_of_a_process() {
    for (soft, hard, expected) in
        [(1, 2, (1, 2)), (0, 5, (0, 5)), (1, -1, (1, u64::MAX)), (-1, -1, (u64::MAX, u64::MAX))]
    {
        let mapped = ulimit(&v1::Ulimit { name: "core".into(), soft, hard });
        assert_eq!(mapped, Ulimit { name: "core".into(), soft: expected.0, hard: expected.1 });
    }
}

#[test]
fn how_long_a_process_may_take_to_stop() {
    for (given, seconds) in [(None, 10), (Some(0), 0), (Some(3_000_000_000), 3)] {
        let spec = v1::ContainerSpec { stop_grace_period_ns: given, ..v1::ContainerSpec::default() };
        let task = assignment(v1::TaskSpec { container: Some(spec), ..v1::TaskSpec::default() });
        assert_eq!(container::grace_ns(&task), seconds * 1_000_000_000, "{given:?}");
    }
}

#[test]
fn placeholders_name_the_task_and_its_node() {
    let task = Task { id: "t1".into(), slot: 3, node_id: "n1".into(), ..Task::default() };
    let assignment = TaskAssignment {
        service_name: "web".into(),
        service_labels: [("tier".to_owned(), "front".to_owned())].into(),
        ..TaskAssignment::default()
    };
    let node = NodeDescription {
        hostname: "host-1".into(),
        platform: Some(v1::Platform { architecture: "x86_64".into(), os: "linux".into() }),
        ..NodeDescription::default()
    };
    let expand = |hostname: &str, env: &[&str], task: &Task| {
        let spec = v1::ContainerSpec {
            hostname: hostname.into(),
            env: env.iter().map(|e| (*e).to_owned()).collect(),
            ..Default::default()
        };
        template(&spec, task, &assignment, &node).map(|spec| (spec.hostname, spec.env))
    };
    let env = ["A={{.Service.Name}}-{{.Task.Slot}}", "B=plain", "C={{.Node.Platform.Architecture}}"];
    let expanded = expand("{{.Service.Name}}-{{.Node.Hostname}}-{{.Service.Labels.tier}}", &env, &task);
    let env = ["A=web-3", "B=plain", "C=x86_64"].map(str::to_owned).to_vec();
    assert_eq!(expanded, Ok(("web-host-1-front".to_owned(), env)));
    let global = Task { slot: 0, ..task.clone() };
    assert_eq!(expand("s-{{.Task.Slot}}", &[], &global).map(|e| e.0), Ok("s-n1".to_owned()));
    assert!(expand("", &["A={{.Nonsense}}"], &task).is_err_and(|f| f.rejected));
}
