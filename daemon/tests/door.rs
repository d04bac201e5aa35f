//! What is refused at the door, from the request to the answer: the API over a node whose leader validates as a real
//! one does. And that door and runtime agree: what passes the one is no surprise to the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api_fake;
mod server;

use serde_json::{Value, json};
use server::{Server, service};
use skep_plan::validate;
use skep_proto::v1;
use skep_state::State;
use tonic::{Code, Status};

/// The leader's validation, over the objects of the node in memory.
struct Leader;

impl api_fake::Judge for Leader {
    fn service(
        &self,
        objects: Vec<v1::Object>,
        spec: v1::ServiceSpec,
        old: Option<&v1::Service>,
    ) -> Result<(v1::ServiceSpec, Vec<String>), Status> {
        let mut state = State::default();
        let actions = objects.into_iter().map(|object| v1::Action { kind: Some(v1::action::Kind::Put(object)) });
        let command = v1::Command { at_ns: 1, actions: actions.collect(), best_effort: false };
        let refusal = state.apply(1, &command).0.refusal;
        assert_eq!(refusal, None);
        let spec = validate::service(&state, spec, old).map_err(|error| {
            let code = match error.reason() {
                v1::RefusalReason::NotFound => Code::NotFound,
                v1::RefusalReason::InUse => Code::FailedPrecondition,
                _ => Code::InvalidArgument,
            };
            Status::new(code, error.to_string())
        })?;
        let warnings = validate::warnings(&spec);
        Ok((spec, warnings))
    }
}

async fn server() -> Server {
    let server = Server::start();
    server.init().await;
    server.fake.judge_by(Leader);
    for kind in ["secrets", "configs"] {
        let body = json!({ "Name": "key", "Data": "aGk=" });
        assert_eq!(server.call("POST", &format!("/{kind}/create"), Some(body)).await.status, 201);
    }
    server
}

/// A service with a value at a place of its spec; what lies on the way is made.
fn with(path: &str, value: &Value) -> Value {
    let mut spec = service("web", 1);
    let pointer = path.split('.').fold(&mut spec, |at, name| &mut at[name]);
    *pointer = value.clone();
    spec
}

const CONTAINER: &str = "TaskTemplate.ContainerSpec";

fn container(name: &str) -> String {
    format!("{CONTAINER}.{name}")
}

#[tokio::test]
async fn what_no_node_can_run_is_refused_at_creation_and_at_update() {
    let server = server().await;
    let secret = |file: Value| json!([{ "SecretName": "key", "File": file }]);
    let file = |name: &str, mode: u32| json!({ "Name": name, "UID": "0", "GID": "0", "Mode": mode });
    let table = [
        (container("Image"), json!("x/UPPER:1"), "Image: "),
        (container("Image"), json!("a:b:c"), "Image: "),
        (container("Image"), json!("a b"), "Image: "),
        (container("Image"), json!("busybox@sha256:12"), "Image: "),
        (container("StopSignal"), json!("SIGNOPE"), "StopSignal: "),
        (container("Hostname"), json!("a b"), "Hostname: "),
        (container("Hostname"), json!("{{.Node.Name}}"), "Hostname: placeholder `{{.Node.Name}}` is unknown"),
        (container("Env"), json!(["=x"]), "Env: "),
        (container("Env"), json!(["A={{.X}}"]), "Env: "),
        (container("Env"), json!(["A=\u{0}"]), "Env: "),
        (container("User"), json!("a:"), "User: "),
        (container("Hosts"), json!(["name 1.2.3.4"]), "Hosts: "),
        (container("DNSConfig"), json!({ "Nameservers": ["dns.example"] }), "DNSConfig.Nameservers: "),
        (container("DNSConfig"), json!({ "Search": ["a b"] }), "DNSConfig.Search: "),
        (container("DNSConfig"), json!({ "Options": ["ndots:x"] }), "DNSConfig.Options: "),
        (container("CapabilityAdd"), json!(["CAP_FLY"]), "CapabilityAdd: "),
        (container("Ulimits"), json!([{ "Name": "speed", "Soft": 1, "Hard": 1 }]), "Ulimits: "),
        (container("Sysctls"), json!({ "kernel.core_pattern": "x" }), "Sysctls: "),
        (container("Privileges"), json!({ "NoNewPrivileges": true }), "Privileges.NoNewPrivileges: "),
        (container("Mounts"), json!([{ "Type": "volume", "Source": "v", "Target": "/v" }]), "Mounts.Type: "),
        (container("Mounts"), json!([{ "Type": "npipe", "Source": "v", "Target": "/v" }]), "Mounts.Type "),
        (container("Mounts"), json!([{ "Type": "cluster", "Source": "v", "Target": "/v" }]), "Mounts.Type "),
        (container("Mounts"), json!([{ "Type": "floppy", "Target": "/v" }]), "Mounts[0].Type: unknown variant"),
        (container("Mounts"), json!([{ "Type": "tmpfs", "Target": "v" }]), "Mounts.Target: "),
        (container("Secrets"), secret(file("../x", 0o444)), "Secrets.File.Name: "),
        (container("Secrets"), secret(file("x", 0o1777)), "Secrets.File.Mode: "),
        (container("Healthcheck"), json!({ "Test": ["curl"] }), "Healthcheck.Test: "),
        ("TaskTemplate.Resources.Limits".to_owned(), json!({ "MemoryBytes": 1 << 20 }), "Limits.MemoryBytes: "),
        ("TaskTemplate.Resources.Limits".to_owned(), json!({ "NanoCPUs": i64::MAX }), "Limits.NanoCPUs: "),
        ("TaskTemplate.Placement.Constraints".to_owned(), json!(["node.role==x"]), "Constraints: "),
        ("TaskTemplate.RestartPolicy.Condition".to_owned(), json!("often"), "Condition: unknown variant"),
        ("TaskTemplate.LogDriver".to_owned(), json!({ "Name": "syslog" }), "LogDriver.Name "),
        ("Name".to_owned(), json!("a.b"), "Name: "),
        ("Mode.Replicated.Replicas".to_owned(), json!(-1), "Replicas: "),
        ("Mode.Replicated.Replicas".to_owned(), json!(1_000_001), "Replicas: "),
        ("Mode.Global".to_owned(), json!({}), "Mode: give Replicated or Global"),
        ("UpdateConfig.MaxFailureRatio".to_owned(), json!(1.5), "MaxFailureRatio: "),
        ("UpdateConfig.Delay".to_owned(), json!(-1), "UpdateConfig.Delay: "),
        ("RollbackConfig.FailureAction".to_owned(), json!("rollback"), "FailureAction: unknown variant"),
        ("EndpointSpec.Ports".to_owned(), json!([{ "TargetPort": 0 }]), "TargetPort: "),
        ("EndpointSpec.Ports".to_owned(), json!([{ "TargetPort": 65_536 }]), "TargetPort: "),
        (
            "EndpointSpec.Ports".to_owned(),
            json!([{ "TargetPort": 1, "PublishedPort": 80 }, { "TargetPort": 2, "PublishedPort": 80 }]),
            "published twice",
        ),
        ("EndpointSpec.Ports".to_owned(), json!([{ "TargetPort": 1, "Protocol": "icmp" }]), "unknown variant"),
        ("EndpointSpec.Ports".to_owned(), json!([{ "TargetPort": 1, "PublishMode": "x" }]), "unknown variant"),
    ];
    for (path, value, part) in &table {
        let answer = server.call("POST", "/services/create", Some(with(path, value))).await;
        assert_eq!(answer.status, 400, "{path} {value}: {}", String::from_utf8_lossy(&answer.body));
        assert!(answer.message().contains(part), "{path} {value}: {:?} lacks {part:?}", answer.message());
    }
    assert_eq!(server.get("/services").await.json(), json!([]));
    server.service("web", 1).await;
    for (path, value, part) in &table {
        let version = server.get("/services/web").await.json()["Version"]["Index"].as_u64().unwrap();
        let update = format!("/services/web/update?version={version}");
        let answer = server.call("POST", &update, Some(with(path, value))).await;
        assert_eq!(answer.status, 400, "{path} {value}: {}", String::from_utf8_lossy(&answer.body));
        // A name is not judged anew but compared.
        let part = if path == "Name" { "Name: " } else { part };
        assert!(answer.message().contains(part), "{path} {value}: {:?} lacks {part:?}", answer.message());
    }
}

#[tokio::test]
async fn what_has_no_effect_is_accepted_with_a_warning() {
    let server = server().await;
    let plain = server.call("POST", "/services/create", Some(service("plain", 1))).await.json();
    assert_eq!(plain["Warnings"], json!(null));
    let mut nameless = service("", 1);
    nameless["EndpointSpec"] = json!({});
    let id = server.call("POST", "/services/create", Some(nameless)).await.json()["ID"].as_str().unwrap().to_owned();
    let name = server.get(&format!("/services/{id}")).await.json()["Spec"]["Name"].as_str().unwrap().to_owned();
    assert_eq!(name.split('_').count(), 3, "{name}: a service without a name is given one");
    for (number, (path, value, part)) in [
        (container("Healthcheck"), json!({ "Test": ["CMD", "true"] }), "health checks are not run yet"),
        (container("OpenStdin"), json!(true), "standard input"),
        (
            container("Mounts"),
            json!([{ "Type": "bind", "Source": "/", "Target": "/h", "BindOptions": { "Propagation": "rslave" } }]),
            "rslave of /h",
        ),
        (
            "TaskTemplate.LogDriver".to_owned(),
            json!({ "Name": "json-file", "Options": { "tag": "x", "max-size": "1m" } }),
            "Options: tag without effect",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut spec = with(&path, &value);
        spec["Name"] = json!(format!("s{number}"));
        spec["EndpointSpec"] = json!({});
        let answer = server.call("POST", "/services/create", Some(spec.clone())).await;
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        let warnings = answer.json()["Warnings"].clone();
        assert!(warnings[0].as_str().is_some_and(|w| w.contains(part)), "{path}: {warnings} lacks {part}");
        let version = server.get(&format!("/services/s{number}")).await.json()["Version"]["Index"].clone();
        let update = format!("/services/s{number}/update?version={version}");
        assert_eq!(server.call("POST", &update, Some(spec)).await.json()["Warnings"], warnings);
    }
    let body = json!({ "Name": "n", "Driver": "overlay", "Attachable": true });
    let answer = server.call("POST", "/networks/create", Some(body)).await.json();
    assert!(answer["Warning"].as_str().is_some_and(|w| w.contains("attachable")), "{answer}");
}

/// A container with these words, judged by the door and by the runtime.
fn both(change: impl Fn(&mut v1::ContainerSpec, &mut skep_runtime::ContainerSpec)) -> (bool, bool) {
    let mut asked = v1::ContainerSpec { image: "image".into(), ..Default::default() };
    let mut wish = skep_runtime::ContainerSpec {
        id: "id".into(),
        layers: vec!["/layer".into()],
        args: vec!["true".into()],
        ..Default::default()
    };
    change(&mut asked, &mut wish);
    let spec = v1::ServiceSpec {
        annotations: Some(v1::Annotations { name: "web".into(), ..Default::default() }),
        task: Some(v1::TaskSpec { container: Some(asked), ..Default::default() }),
        ..Default::default()
    };
    (validate::service(&State::default(), spec, None).is_ok(), wish.validate().is_ok())
}

#[test]
fn door_and_runtime_know_the_same_words() {
    let numbered = |prefix: &str, range: std::ops::RangeInclusive<i32>| -> Vec<String> {
        range.map(|n| format!("{prefix}{n}")).collect()
    };
    let words = "TERM SIGTERM sigint HUP QUIT ILL TRAP ABRT IOT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM STKFLT CHLD CONT STOP \
                 TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS CLD POLL NOPE SIG RTMIN SIGRTMAX RTMIN+3 RTMAX-3 \
                 RTMIN-1 RTMAX+1 RTMIN+x";
    let signals = words.split(' ').map(str::to_owned).chain(numbered("", -1..=66));
    for signal in signals {
        let (door, runtime) = both(|asked, wish| {
            asked.stop_signal.clone_from(&signal);
            wish.stop_signal.clone_from(&signal);
        });
        assert_eq!(door, runtime, "signal {signal}");
    }
    let words = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE \
                 NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT \
                 SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL \
                 SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE \
                 ALL all cap_kill CAP_ALL CAP_CAP_KILL FLY";
    for capability in words.split(' ') {
        let (door, runtime) = both(|asked, wish| {
            asked.capability_add = vec![capability.to_owned()];
            wish.cap_add = vec![capability.to_owned()];
        });
        assert_eq!(door, runtime, "capability {capability}");
    }
    let words = "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack \
                 RLIMIT_NOFILE speed rlimit_";
    for name in words.split(' ') {
        let (door, runtime) = both(|asked, wish| {
            asked.ulimits = vec![v1::Ulimit { name: name.to_owned(), soft: 1, hard: 2 }];
            wish.ulimits = vec![skep_runtime::Ulimit { name: name.to_owned(), soft: 1, hard: 2 }];
        });
        assert_eq!(door, runtime, "limit {name}");
    }
    let words = "net.a net.ipv4.ip_forward fs.mqueue.msg_max kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall \
                 kernel.shmmax kernel.shmmni kernel.shm_rmid_forced kernel.hostname vm.x net/x net..x";
    for name in words.split(' ') {
        let (door, runtime) = both(|asked, wish| {
            asked.sysctls = [(name.to_owned(), "1".to_owned())].into();
            wish.sysctls = vec![(name.to_owned(), "1".to_owned())];
        });
        assert_eq!(door, runtime, "parameter {name}");
    }
    for dir in ["/", "/a", "a", "/proc", "/a/../proc/1", "/sys/x", "/system", "/dev"] {
        let (door, runtime) = both(|asked, wish| {
            asked.dir = dir.to_owned();
            wish.cwd = dir.to_owned();
        });
        assert_eq!(door, runtime, "directory {dir}");
    }
    for target in
        ["/a", "/", "/proc", "/proc/x", "/dev", "/dev/shm/a", "/sys", "/sys/fs", "/a/../sys", "/run/secrets/x"]
    {
        let (door, runtime) = both(|asked, wish| {
            let bind = v1::MountType::Bind.into();
            asked.mounts =
                vec![v1::Mount { r#type: bind, source: "/x".into(), target: target.into(), ..Default::default() }];
            wish.mounts =
                vec![skep_runtime::Mount::Bind { source: "/x".into(), target: target.into(), read_only: false }];
        });
        assert_eq!(door, runtime, "target {target}");
    }
}

/// The least and the most that door lets pass is possible for the runtime.
#[test]
fn the_runtime_takes_every_limit_that_passes_the_door() {
    for (nano_cpus, memory_bytes) in [
        (0, 0),
        (9_999_999, 0),
        (10_000_000, 0),
        (100_000_000_000_000, 0),
        (0, (6 << 20) - 1),
        (0, 6 << 20),
        (0, 1 << 50),
    ] {
        let limits = v1::Resources { nano_cpus, memory_bytes };
        let task = v1::TaskSpec {
            container: Some(v1::ContainerSpec { image: "image".into(), ..Default::default() }),
            resources: Some(v1::ResourceRequirements { limits: Some(limits), ..Default::default() }),
            ..Default::default()
        };
        let annotations = Some(v1::Annotations { name: "web".into(), ..Default::default() });
        let spec = v1::ServiceSpec { annotations, task: Some(task), ..Default::default() };
        let door = validate::service(&State::default(), spec, None).is_ok();
        let (_, runtime) = both(|_, wish| {
            wish.resources.memory_bytes = u64::try_from(memory_bytes).ok().filter(|b| *b > 0);
            wish.resources.nano_cpus = u64::try_from(nano_cpus).ok().filter(|n| *n > 0);
        });
        assert_eq!(door, runtime, "{nano_cpus} {memory_bytes}");
    }
}
