//! `/info`: the node and its swarm at a glance.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use skep_proto::v1;

use super::backend::{ContainerState, NodeFacts, SwarmFacts, SwarmState};
use super::{Api, ApiError, clock, convert};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/info", get(info))
}

async fn info(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let facts = api.backend.node.facts().await;
    let containers = api.backend.containers.list().await?;
    let running = containers.iter().filter(|c| c.state == ContainerState::Running).count();
    let images = api.backend.images.list().await?.len();
    let swarm = swarm(&api, &facts.swarm).await;
    let mut info = node(&facts);
    if let Some(members) = info.as_object_mut() {
        members.insert("Containers".to_owned(), json!(containers.len()));
        members.insert("ContainersRunning".to_owned(), json!(running));
        members.insert("ContainersPaused".to_owned(), json!(0));
        members.insert("ContainersStopped".to_owned(), json!(containers.len() - running));
        members.insert("Images".to_owned(), json!(images));
        members.insert("Swarm".to_owned(), swarm);
        members.insert("Warnings".to_owned(), json!(api.backend.node.warnings().await));
    }
    Ok(Json(info))
}

/// What is about the node alone.
fn node(facts: &NodeFacts) -> Value {
    let mut info = machine(facts);
    if let (Some(members), Value::Object(engine)) = (info.as_object_mut(), engine(facts)) {
        members.extend(engine);
    }
    info
}

fn machine(facts: &NodeFacts) -> Value {
    json!({
        "ID": facts.engine_id, "Name": facts.hostname, "SystemTime": clock::rfc3339(clock::now_ns()),
        "KernelVersion": facts.kernel, "OperatingSystem": facts.operating_system, "OSVersion": "", "OSType": "linux",
        "Architecture": facts.architecture, "NCPU": facts.resources.nano_cpus / 1_000_000_000,
        "MemTotal": facts.resources.memory_bytes, "CgroupDriver": "cgroupfs",
        "CgroupVersion": facts.cgroup_version.to_string(), "MemoryLimit": true, "SwapLimit": true,
        "CpuCfsPeriod": true, "CpuCfsQuota": true, "CPUShares": true, "CPUSet": true, "PidsLimit": true,
        "OomKillDisable": false, "IPv4Forwarding": true, "BridgeNfIptables": true, "BridgeNfIp6tables": true,
        "Labels": facts.labels, "GenericResources": null,
    })
}

fn engine(facts: &NodeFacts) -> Value {
    let unknown = json!({ "ID": "", "Expected": "" });
    json!({
        "ServerVersion": facts.version, "DockerRootDir": facts.data_dir,
        "Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "overlayfs"]],
        "Plugins": {
            "Volume": [], "Network": ["bridge", "host", "null", "overlay"], "Authorization": null,
            "Log": ["json-file"],
        },
        "Debug": false, "NFd": 0, "NGoroutines": 0, "NEventsListener": 0, "LoggingDriver": "json-file",
        "IndexServerAddress": "", "RegistryConfig": {
            "InsecureRegistryCIDRs": [], "IndexConfigs": {}, "Mirrors": [],
            "AllowNondistributableArtifactsCIDRs": [], "AllowNondistributableArtifactsHostnames": [],
        },
        "HttpProxy": "", "HttpsProxy": "", "NoProxy": "", "ExperimentalBuild": false,
        "Runtimes": { "skep": { "path": "skep" } }, "DefaultRuntime": "skep", "InitBinary": "skep",
        "LiveRestoreEnabled": true, "Isolation": "", "SecurityOptions": ["name=seccomp,profile=builtin"],
        "ContainerdCommit": unknown, "RuncCommit": unknown, "InitCommit": unknown, "DefaultAddressPools": [],
    })
}

/// The swarm's part. What only managers know is left out when no manager answers, and said in `Error`.
async fn swarm(api: &Api, facts: &SwarmFacts) -> Value {
    let mut swarm = json!({
        "NodeID": facts.node_id, "NodeAddr": facts.node_address, "LocalNodeState": state_word(facts.state),
        "ControlAvailable": false, "Error": facts.error,
        "RemoteManagers": managers(facts),
    });
    let Some(control) = api.backend.cluster.control() else { return swarm };
    let cluster = control.get_cluster(api.call(v1::GetClusterRequest {})).await;
    let nodes = control.list_nodes(api.call(v1::ListNodesRequest {})).await;
    let Some(members) = swarm.as_object_mut() else { return swarm };
    members.insert("ControlAvailable".to_owned(), json!(true));
    match (cluster, nodes) {
        (Ok(cluster), Ok(nodes)) => {
            let nodes = nodes.into_inner().nodes;
            let managers = nodes.iter().filter(|n| n.manager.is_some()).count();
            members.insert("Nodes".to_owned(), json!(nodes.len()));
            members.insert("Managers".to_owned(), json!(managers));
            members.insert("Cluster".to_owned(), convert::cluster::cluster_out(&cluster.into_inner(), false));
        }
        (Err(status), _) | (_, Err(status)) => {
            members.insert("Error".to_owned(), json!(status.message()));
        }
    }
    swarm
}

fn managers(facts: &SwarmFacts) -> Value {
    if facts.managers.is_empty() {
        return Value::Null;
    }
    facts.managers.iter().map(|(id, address)| json!({ "NodeID": id, "Addr": address })).collect()
}

fn state_word(state: SwarmState) -> &'static str {
    match state {
        SwarmState::Inactive => "inactive",
        SwarmState::Pending => "pending",
        SwarmState::Active => "active",
        SwarmState::Error => "error",
    }
}
