//! Round trips between the Engine API's objects and the cluster's messages.

#![allow(clippy::unwrap_used, clippy::panic)]
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// What docker 20.10 sends for `service create --name web --replicas 3 -p 8080:80 busybox`.
fn created_by_docker_20() -> Value {
    json!({
        "Name": "web", "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": { "Image": "busybox", "DNSConfig": {}, "Init": null, "Isolation": "" },
            "Resources": { "Limits": {}, "Reservations": {} },
            "RestartPolicy": null, "Placement": {}, "ForceUpdate": 0,
        },
        "Mode": { "Replicated": { "Replicas": 3 } },
        "EndpointSpec": {
            "Mode": "vip",
            "Ports": [{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress" }],
        },
    })
}

#[test]
fn a_service_of_the_docker_command_is_understood() {
    let spec = service::spec_in(&created_by_docker_20()).unwrap();
    assert_eq!(spec.annotations.as_ref().unwrap().name, "web");
    assert_eq!(spec.mode, Some(v1::service_spec::Mode::Replicated(v1::Replicated { replicas: 3 })));
    let port = &spec.endpoint.as_ref().unwrap().ports[0];
    assert_eq!((port.target_port, port.published_port, port.protocol()), (80, 8080, v1::Protocol::Tcp));
    assert_eq!(spec.update, None);
    assert_eq!(spec.task.as_ref().unwrap().restart, None);
    // And the way back says no less, so that an update can start from it.
    assert_eq!(service::spec_in(&service::spec_out(&spec)).unwrap(), spec);
}

/// Everything that a service can say, in the API's words.
fn full_service() -> Value {
    json!({
        "Name": "web", "Labels": { "a": "", "b": "c" },
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "busybox:1", "Labels": { "l": "1" }, "Command": ["sh"], "Args": ["-c", ""], "Hostname": "h",
                "Env": ["A=1", "B="], "Dir": "/w", "User": "1:2", "Groups": ["3"], "TTY": true, "OpenStdin": true,
                "ReadOnly": true,
                "Mounts": [
                    { "Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true,
                      "BindOptions": { "Propagation": "rshared" } },
                    { "Type": "tmpfs", "Target": "/t", "TmpfsOptions": { "SizeBytes": 5, "Mode": 511 } },
                    { "Type": "volume", "Source": "v", "Target": "/v" },
                ],
                "StopSignal": "SIGINT", "StopGracePeriod": 5,
                "Healthcheck": { "Test": ["CMD", "x"], "Interval": 1, "Timeout": 2, "Retries": 3, "StartPeriod": 4,
                                 "StartInterval": 5 },
                "Hosts": ["1.2.3.4 x"],
                "DNSConfig": { "Nameservers": ["1.1.1.1"], "Search": ["s"], "Options": ["ndots:1"] },
                "Secrets": [{ "File": { "Name": "s", "UID": "0", "GID": "0", "Mode": 292 }, "SecretID": "i",
                              "SecretName": "s" }],
                "Configs": [{ "File": { "Name": "c", "UID": "0", "GID": "0", "Mode": 292 }, "ConfigID": "i",
                              "ConfigName": "c" }],
                "Isolation": "default", "Init": true, "Sysctls": { "net.x": "1" }, "CapabilityAdd": ["CAP_NET_ADMIN"],
                "CapabilityDrop": ["ALL"], "Ulimits": [{ "Name": "nofile", "Soft": 1, "Hard": 2 }],
                "OomScoreAdj": 7, "Privileges": { "NoNewPrivileges": true, "Seccomp": { "Mode": "unconfined" } },
            },
            "Resources": {
                "Limits": { "NanoCPUs": 1, "MemoryBytes": 2, "Pids": 3 },
                "Reservations": { "NanoCPUs": 4, "MemoryBytes": 5 }, "SwapBytes": 6,
            },
            "RestartPolicy": { "Condition": "on-failure", "Delay": 1, "MaxAttempts": 2, "Window": 3 },
            "Placement": {
                "Constraints": ["node.role==worker"], "MaxReplicas": 2,
                "Preferences": [{ "Spread": { "SpreadDescriptor": "node.labels.z" } }],
                "Platforms": [{ "Architecture": "amd64", "OS": "linux" }],
            },
            "Networks": [{ "Target": "n", "Aliases": ["x"], "DriverOpts": { "k": "" } }],
            "LogDriver": { "Name": "json-file", "Options": { "max-size": "1m" } },
            "ForceUpdate": 4, "Runtime": "container",
        },
        "Mode": { "Global": {} },
        "UpdateConfig": { "Parallelism": 2, "Delay": 1, "FailureAction": "rollback", "Monitor": 5,
                          "MaxFailureRatio": 0.25, "Order": "start-first" },
        "RollbackConfig": { "Parallelism": 0, "Delay": 1, "FailureAction": "continue", "Monitor": 5,
                            "MaxFailureRatio": 0, "Order": "stop-first" },
        "EndpointSpec": {
            "Mode": "dnsrr",
            "Ports": [{ "Name": "p", "Protocol": "udp", "TargetPort": 53, "PublishedPort": 5353,
                        "PublishMode": "host" }],
        },
    })
}

#[test]
fn a_full_service_goes_in_and_comes_out_again() {
    let spec = service::spec_in(&full_service()).unwrap();
    lossless::check(&full_service(), &service::spec_out(&spec)).unwrap();
    assert_eq!(service::spec_in(&service::spec_out(&spec)).unwrap(), spec);
}

#[test]
fn older_clients_name_networks_beside_the_task() {
    let mut given = created_by_docker_20();
    given["Networks"] = json!([{ "Target": "n" }]);
    let spec = service::spec_in(&given).unwrap();
    assert_eq!(spec.task.unwrap().networks[0].target, "n");
}

#[test]
fn what_a_service_can_not_have_is_named() {
    for (pointer, value, field) in [
        ("/TaskTemplate/Runtime", json!("plugin"), "TaskTemplate.Runtime"),
        ("/TaskTemplate/LogDriver", json!({ "Name": "syslog" }), "TaskTemplate.LogDriver.Name"),
        ("/TaskTemplate/Invented", json!("x"), "TaskTemplate.Invented"),
        ("/TaskTemplate/Resources/MemorySwappiness", json!(5), "TaskTemplate.Resources.MemorySwappiness"),
        (
            "/TaskTemplate/Resources/Reservations/GenericResources",
            json!([{ "DiscreteResourceSpec": { "Kind": "GPU", "Value": 1 } }]),
            "TaskTemplate.Resources.Reservations.GenericResources",
        ),
        (
            "/TaskTemplate/ContainerSpec/Privileges",
            json!({ "CredentialSpec": { "Config": "x" } }),
            "TaskTemplate.ContainerSpec.Privileges.CredentialSpec.Config",
        ),
        (
            "/TaskTemplate/ContainerSpec/Mounts",
            json!([{ "Type": "bind", "Source": "/a", "Target": "/v", "BindOptions": { "NonRecursive": true } }]),
            "TaskTemplate.ContainerSpec.Mounts.0.BindOptions.NonRecursive",
        ),
        ("/TaskTemplate/ContainerSpec/Isolation", json!("hyperv"), "TaskTemplate.ContainerSpec.Isolation"),
        ("/Mode", json!({ "GlobalJob": {} }), "Mode.GlobalJob"),
        ("/Mode", json!({ "ReplicatedJob": { "MaxConcurrent": 1 } }), "Mode.ReplicatedJob"),
        ("/RollbackConfig", json!({ "FailureAction": "pause", "Extra": 1 }), "RollbackConfig.Extra"),
    ] {
        let mut given = created_by_docker_20();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        given.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(name.to_owned(), value);
        let error = service::spec_in(&given).unwrap_err().to_string();
        assert!(error.contains(&format!("{field} ")), "{pointer}: {error}");
    }
}

#[test]
fn nonsense_in_a_service_is_refused_with_the_field() {
    for (pointer, value, part) in [
        ("/TaskTemplate/ContainerSpec/Image", json!(""), "ContainerSpec.Image"),
        ("/TaskTemplate/ContainerSpec", json!(null), "TaskTemplate.ContainerSpec"),
        ("/TaskTemplate/ContainerSpec/Mounts", json!([{ "Type": "bind", "Target": "b" }]), "Mounts.Target"),
        // As a stack sends it.
        (
            "/TaskTemplate/ContainerSpec/Mounts",
            json!([{ "Type": "volume", "Source": "s_v", "Target": "/v",
                     "VolumeOptions": { "Labels": { "com.docker.stack.namespace": "s" } } }]),
            "volumes are not supported yet",
        ),
        ("/Mode/Replicated/Replicas", json!(-1), "Mode.Replicated.Replicas"),
        ("/Mode/Replicated/Replicas", json!("many"), "service spec"),
        ("/EndpointSpec/Ports/0/TargetPort", json!(70000), "EndpointSpec.Ports.TargetPort"),
        ("/EndpointSpec/Ports/0/TargetPort", json!(0), "EndpointSpec.Ports.TargetPort"),
        ("/EndpointSpec/Mode", json!("magic"), "service spec"),
        ("/TaskTemplate/Resources/Limits", json!({ "MemoryBytes": -1 }), "Resources.Limits"),
        ("/UpdateConfig", json!({ "MaxFailureRatio": 1.5 }), "MaxFailureRatio"),
        ("/TaskTemplate/Networks", json!([{ "Target": "" }]), "give a network's name or id"),
    ] {
        let mut given = created_by_docker_20();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = given.pointer_mut(parent).unwrap();
        match parent {
            Value::Object(members) => members.insert(name.to_owned(), value),
            other => panic!("{other}"),
        };
        let error = service::spec_in(&given).unwrap_err().to_string();
        assert!(error.contains(part), "{pointer}: {error}");
    }
    for given in [json!(null), json!([]), json!("x"), json!({})] {
        service::spec_in(&given).unwrap_err();
    }
}

#[test]
fn defaults_are_filled_in_on_request_only() {
    let spec = service::spec_in(&created_by_docker_20()).unwrap();
    let service = v1::Service { id: "s".to_owned(), spec: Some(spec), ..Default::default() };
    let plain = service::service_out(&service, false, None);
    assert_eq!(plain["Spec"]["UpdateConfig"], Value::Null);
    let filled = service::service_out(&service, true, None);
    assert_eq!(filled["Spec"]["UpdateConfig"]["Parallelism"], json!(1));
    assert_eq!(filled["Spec"]["UpdateConfig"]["Monitor"], json!(5_000_000_000_u64));
    assert_eq!(filled["Spec"]["TaskTemplate"]["RestartPolicy"]["Condition"], json!("any"));
    assert_eq!(filled["Spec"]["TaskTemplate"]["RestartPolicy"]["Delay"], json!(5_000_000_000_u64));
    assert_eq!(filled["Spec"]["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"], json!(10_000_000_000_u64));
}

#[test]
fn a_service_shows_its_counts_its_previous_spec_and_its_update() {
    let spec = service::spec_in(&created_by_docker_20()).unwrap();
    let service = v1::Service {
        id: "s".to_owned(),
        meta: Some(v1::Meta { version: 7, created_ns: 1, updated_ns: 2 }),
        spec: Some(spec.clone()),
        previous_spec: Some(spec),
        update_status: Some(v1::UpdateStatus {
            state: v1::UpdateState::Completed.into(),
            started_ns: 5,
            completed_ns: 6,
            message: "update completed".to_owned(),
        }),
        ..Default::default()
    };
    let view = v1::ServiceView { service: Some(service.clone()), running: 2, desired: 3, completed: 0 };
    let out = service::service_out(&service, false, Some(&view));
    assert_eq!(out["ServiceStatus"], json!({ "RunningTasks": 2, "DesiredTasks": 3, "CompletedTasks": 0 }));
    assert_eq!(out["Version"], json!({ "Index": 7 }));
    assert_eq!(out["PreviousSpec"]["Name"], json!("web"));
    assert_eq!(out["UpdateStatus"]["State"], json!("completed"));
    assert_eq!(out["CreatedAt"], json!("1970-01-01T00:00:00.000000001Z"));
}

#[test]
fn nodes_go_in_and_come_out() {
    let given = json!({ "Labels": { "z": "a" }, "Role": "manager", "Availability": "drain" });
    let spec = node::spec_in(&given).unwrap();
    assert_eq!((spec.role(), spec.availability()), (v1::Role::Manager, v1::Availability::Drain));
    let out = node::node_out(&v1::Node { id: "n".to_owned(), spec: Some(spec.clone()), ..Default::default() });
    assert_eq!(node::spec_in(&out["Spec"]).unwrap(), spec);
    assert_eq!(out["Status"]["State"], json!("unknown"));
    assert!(out.get("ManagerStatus").is_none());
    for given in [json!({ "Role": "boss", "Availability": "active" }), json!({ "Role": "worker" }), json!({})] {
        node::spec_in(&given).unwrap_err();
    }
}

#[test]
fn the_root_of_trust_is_shown_with_its_subject_and_key() {
    use base64::Engine as _;
    let root = skep_manager::ca::RootCa::create(std::time::SystemTime::now()).unwrap();
    let description = v1::NodeDescription { root_ca_pem: root.certificate_pem().to_owned(), ..Default::default() };
    let node = v1::Node { description: Some(description), ..Default::default() };
    let shown = node::node_out(&node)["Description"]["TLSInfo"].clone();
    assert_eq!(shown["TrustRoot"], json!(root.certificate_pem()));
    let decoded = |field: &str| {
        let text = shown[field].as_str().unwrap();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    };
    let (subject, key) = (decoded("CertIssuerSubject"), decoded("CertIssuerPublicKey"));
    // A sequence each: the name that the root was made with, and an uncompressed point of P-256.
    assert!(subject[0] == 0x30 && String::from_utf8_lossy(&subject).contains("swarm-ca"), "{subject:x?}");
    assert_eq!((key[0], key.len()), (0x30, 91));
    let unreadable = v1::NodeDescription { root_ca_pem: "no PEM".to_owned(), ..Default::default() };
    let node = v1::Node { description: Some(unreadable), ..Default::default() };
    assert_eq!(node::node_out(&node)["Description"]["TLSInfo"], json!({ "TrustRoot": "no PEM" }));
}

#[test]
fn images_are_named_as_registries_name_them() {
    let id = "0123456789abcdef".repeat(4);
    let (with_digest, full) = (format!("busybox@sha256:{id}"), format!("sha256:{id}"));
    for image in ["busybox", "busybox:1.36", "r.example:5000/a/b:x", &with_digest, &full, &id] {
        let mut given = created_by_docker_20();
        given["TaskTemplate"]["ContainerSpec"]["Image"] = json!(image);
        assert!(service::spec_in(&given).is_ok(), "{image}");
    }
    for image in
        ["", " ", "a b", "A", "a/B", "a:b:c", "a@sha256:12", "-a", "a//b", "a:", "sha256:12:3", "r_x:5000/a/b/"]
    {
        let mut given = created_by_docker_20();
        given["TaskTemplate"]["ContainerSpec"]["Image"] = json!(image);
        let error = service::spec_in(&given).unwrap_err().to_string();
        assert!(error.contains("TaskTemplate.ContainerSpec.Image"), "{image}: {error}");
    }
}

#[test]
fn the_swarm_s_settings_survive_reading_and_writing_back() {
    let spec = v1::ClusterSpec {
        task_history_limit: Some(0),
        heartbeat_ns: 1_000_000_000,
        certificate_expiry_ns: 7_776_000_000_000_000,
        snapshot_interval: 10_000,
        ..Default::default()
    };
    let cluster = v1::Cluster {
        spec: Some(spec.clone()),
        join_tokens: Some(v1::JoinTokens { worker: "w".to_owned(), manager: "m".to_owned() }),
        ..Default::default()
    };
    let out = cluster::cluster_out(&cluster, true);
    assert_eq!(out["JoinTokens"], json!({ "Worker": "w", "Manager": "m" }));
    assert_eq!(cluster::cluster_out(&cluster, false).get("JoinTokens"), None);
    let back = cluster::spec_in(&out["Spec"]).unwrap();
    assert_eq!((back.task_history_limit, back.heartbeat_ns), (Some(0), 1_000_000_000), "0 is no default");
    // What docker's init sends.
    let empty = json!({
        "Labels": null, "Orchestration": {}, "Raft": { "ElectionTick": 0, "HeartbeatTick": 0 }, "Dispatcher": {},
        "CAConfig": {}, "TaskDefaults": {}, "EncryptionConfig": { "AutoLockManagers": false },
    });
    assert_eq!(cluster::spec_in(&empty).unwrap().task_history_limit, None);
    for (given, field) in [
        (json!({ "EncryptionConfig": { "AutoLockManagers": true } }), "AutoLockManagers"),
        (json!({ "Raft": { "ElectionTick": 3 } }), "Raft.ElectionTick"),
        (json!({ "CAConfig": { "ExternalCAs": [{ "URL": "x" }] } }), "CAConfig.ExternalCAs"),
    ] {
        let error = cluster::spec_in(&given).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn networks_go_in_and_come_out() {
    let given = json!({
        "CheckDuplicate": true, "Name": "back", "Driver": "overlay", "Scope": "", "EnableIPv6": false,
        "IPAM": { "Driver": "default", "Options": {}, "Config": [{ "Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1",
                  "AuxAddress": { "router": "10.9.0.2" } }] },
        "Internal": true, "Attachable": true, "Ingress": false, "ConfigOnly": false, "ConfigFrom": null,
        "Options": { "x": "" }, "Labels": { "l": "" },
    });
    let spec = network::request_in(&given).unwrap();
    assert!(spec.internal && spec.attachable && !spec.ingress);
    let ipam = &spec.ipam.as_ref().unwrap().configs[0];
    assert_eq!((ipam.subnet.as_str(), ipam.reserved["router"].as_str()), ("10.9.0.0/24", "10.9.0.2"));
    let out = network::network_out(&v1::Network {
        id: "i".to_owned(),
        spec: Some(spec),
        vni: 4097,
        subnet: "10.9.0.0/24".to_owned(),
        gateway: "10.9.0.1".to_owned(),
        ..Default::default()
    });
    assert_eq!(out["Scope"], json!("swarm"));
    assert_eq!(out["Options"]["com.docker.network.driver.overlay.vxlanid_list"], json!("4097"));
    assert_eq!(out["IPAM"]["Config"][0]["Subnet"], json!("10.9.0.0/24"));
}

#[test]
fn networks_that_can_not_be_are_refused() {
    for (given, part) in [
        (json!({ "Name": "x", "Driver": "bridge" }), "Driver"),
        (json!({ "Name": "x" }), "Driver"),
        (json!({ "Driver": "overlay" }), "Name: give the network a name"),
        (json!({ "Name": "", "Driver": "overlay" }), "Name: give the network a name"),
        (json!("x"), "network"),
        (json!({ "Name": "x", "Driver": "overlay", "ConfigOnly": true }), "ConfigOnly"),
        (json!({ "Name": "x", "Driver": "overlay", "Scope": "local" }), "Scope"),
        (json!({ "Name": "x", "Driver": "overlay", "EnableIPv4": false }), "EnableIPv4"),
    ] {
        let error = network::request_in(&given).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn local_networks_have_stable_ids_of_their_own() {
    let network =
        |name: &str| network::LocalNetwork { name: name.to_owned(), driver: "host", subnet: None, created_ns: 0 };
    assert_eq!(network("host").id().len(), 64);
    assert_eq!(network("host").id(), network("host").id());
    assert_ne!(network("host").id(), network("none").id());
}

#[test]
fn secrets_never_come_out_and_configs_do() {
    let given = json!({ "Name": "s", "Labels": { "a": "b" }, "Data": "aGkK" });
    let secret = secret::secret_in(&given).unwrap();
    assert_eq!(&secret.data[..], b"hi\n");
    let out = secret::secret_out(&v1::Secret { spec: Some(secret), ..Default::default() });
    assert!(!out.to_string().contains("aGkK"), "{out}");
    let config = secret::config_in(&given).unwrap();
    let out = secret::config_out(&v1::Config { spec: Some(config), ..Default::default() });
    assert_eq!(out["Spec"]["Data"], json!("aGkK"));
    assert!(secret::secret_in(&json!({ "Name": "s", "Data": "%%" })).unwrap_err().to_string().contains("base64"));
    let driver = json!({ "Name": "s", "Data": "", "Driver": { "Name": "vault" } });
    assert!(secret::secret_in(&driver).unwrap_err().to_string().contains("Driver.Name"));
}

#[test]
fn tasks_show_their_state_their_ports_and_their_addresses() {
    let spec = service::spec_in(&created_by_docker_20()).unwrap();
    let view = v1::TaskView {
        task: Some(v1::Task {
            id: "t".to_owned(),
            service_id: "s".to_owned(),
            slot: 2,
            node_id: "n".to_owned(),
            status: Some(v1::TaskStatus {
                at_ns: 1,
                state: v1::TaskState::Failed.into(),
                error: "no".to_owned(),
                container: Some(v1::ContainerStatus {
                    container_id: "c".to_owned(),
                    exit_code: 3,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            desired_state: v1::TaskState::Shutdown.into(),
            networks: vec![v1::TaskNetwork {
                network_id: "net".to_owned(),
                address: "10.0.1.5".to_owned(),
                aliases: Vec::new(),
            }],
            ..Default::default()
        }),
        spec: spec.task,
        service_name: "web".to_owned(),
        ..Default::default()
    };
    let network = v1::Network { id: "net".to_owned(), subnet: "10.0.1.0/26".to_owned(), ..Default::default() };
    let out = task::task_out(&view, &BTreeMap::from([("net".to_owned(), network)]));
    assert_eq!((&out["Slot"], &out["DesiredState"]), (&json!(2), &json!("shutdown")));
    assert_eq!(out["Status"]["State"], json!("failed"));
    assert_eq!(out["Status"]["ContainerStatus"]["ExitCode"], json!(3));
    assert_eq!(out["NetworksAttachments"][0]["Addresses"], json!(["10.0.1.5/26"]));
    assert_eq!(out["Spec"]["ContainerSpec"]["Image"], json!("busybox"));
}

proptest! {
    /// Whatever the cluster stores can be shown, and what is shown is taken back unchanged: so `service update`
    /// changes what it is told to change and nothing else.
    #[test]
    fn any_spec_survives_the_way_out_and_in(
        name in "[a-z]{1,8}",
        label in proptest::collection::btree_map("[a-z.]{1,6}", "[a-z]{0,4}", 0..3),
        image in "[a-z]{1,8}(:[a-z0-9]{1,4})?",
        args in proptest::collection::vec("[ -~]{0,6}", 0..3),
        env in proptest::collection::vec("[A-Z]=[a-z]{0,3}", 0..3),
        global in any::<bool>(),
        replicas in 0_u64..1000,
        delay in proptest::option::of(0_i64..1_000_000),
        grace in proptest::option::of(0_i64..1_000_000),
        init in proptest::option::of(any::<bool>()),
        ports in proptest::collection::vec((1_u32..65536, 0_u32..65536, 0_i32..3, 0_i32..2), 0..3),
        parallelism in 0_u64..9,
        force in 0_u64..9,
    ) {
        let spec = v1::ServiceSpec {
            annotations: Some(v1::Annotations { name, labels: label }),
            task: Some(v1::TaskSpec {
                container: Some(v1::ContainerSpec {
                    image, args, env, init, stop_grace_period_ns: grace, ..Default::default()
                }),
                restart: Some(v1::RestartPolicy { delay_ns: delay, ..Default::default() }),
                force_update: force,
                ..Default::default()
            }),
            mode: Some(if global {
                v1::service_spec::Mode::Global(v1::Global {})
            } else {
                v1::service_spec::Mode::Replicated(v1::Replicated { replicas })
            }),
            update: Some(v1::UpdateConfig { parallelism, max_failure_ratio: 0.5, ..Default::default() }),
            rollback: None,
            endpoint: Some(v1::EndpointSpec {
                mode: 0,
                ports: ports.into_iter().map(|(target_port, published_port, protocol, mode)| v1::PortConfig {
                    name: String::new(), protocol, target_port, published_port, mode,
                }).collect(),
            }),
        };
        prop_assert_eq!(service::spec_in(&service::spec_out(&spec)).unwrap(), spec);
    }

    /// No JSON makes a conversion panic.
    #[test]
    fn no_json_breaks_a_conversion(text in r#"\{("(Name|Mode|TaskTemplate|Labels|IPAM|Data|Role)":(null|1|"x"|\{\}|\[\]),?){0,4}\}"#) {
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let _ = service::spec_in(&value);
            let _ = node::spec_in(&value);
            let _ = network::request_in(&value);
            let _ = secret::secret_in(&value);
            let _ = cluster::spec_in(&value);
        }
    }
}
