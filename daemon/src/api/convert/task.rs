//! Tasks.

use std::collections::BTreeMap;

use bollard_stubs::models;
use serde_json::{Value, json};
use skep_proto::v1;

use super::{created, endpoint, map_out, network, service, signed, some_text, task_spec, updated, version, write};
use crate::api::clock::rfc3339;

/// A task as clients read it. `networks` are those of the swarm by id: clients find a task's addresses under them.
pub fn task_out(view: &v1::TaskView, networks: &BTreeMap<String, v1::Network>) -> Value {
    let task = view.task.clone().unwrap_or_default();
    let meta = task.meta.as_ref();
    let mut value = write(&models::Task {
        id: Some(task.id.clone()),
        version: version(meta),
        created_at: created(meta),
        updated_at: updated(meta),
        name: some_text(&task.name),
        labels: Some(map_out(&view.service_labels)),
        spec: view.spec.as_ref().map(task_spec::to_model),
        service_id: some_text(&task.service_id),
        slot: (task.slot != 0).then_some(signed(task.slot)),
        node_id: some_text(&task.node_id),
        assigned_generic_resources: None,
        status: Some(status_out(&task)),
        desired_state: Some(state_out(task.desired_state())),
        job_iteration: None,
    });
    if let Some(spec) = value.get_mut("Spec") {
        service::as_engines_write_it(spec);
    }
    if let (Some(members), false) = (value.as_object_mut(), task.networks.is_empty()) {
        let attachments: Vec<Value> = task.networks.iter().map(|n| attachment_out(n, networks)).collect();
        members.insert("NetworksAttachments".to_owned(), Value::Array(attachments));
    }
    value
}

fn attachment_out(attachment: &v1::TaskNetwork, networks: &BTreeMap<String, v1::Network>) -> Value {
    let Some(network) = networks.get(&attachment.network_id) else {
        return json!({ "Network": { "ID": attachment.network_id }, "Addresses": [attachment.address] });
    };
    let prefix = network.subnet.split_once('/').map_or("24", |(_, length)| length);
    let out = network::network_out(network);
    let meta = network.meta.as_ref();
    json!({
        "Network": {
            "ID": network.id,
            "Version": version(meta), "CreatedAt": created(meta), "UpdatedAt": updated(meta),
            "Spec": {
                "Name": out["Name"], "Labels": out["Labels"],
                "DriverConfiguration": { "Name": "overlay" },
                "Attachable": out["Attachable"], "Internal": out["Internal"], "Ingress": out["Ingress"],
                "Scope": "swarm",
            },
            "DriverState": { "Name": "overlay", "Options": out["Options"] },
            "IPAMOptions": { "Driver": { "Name": "default" }, "Configs": out["IPAM"]["Config"] },
        },
        "Addresses": [format!("{}/{prefix}", attachment.address)],
    })
}

fn status_out(task: &v1::Task) -> models::TaskStatus {
    let status = task.status.clone().unwrap_or_default();
    let container = status.container.clone().unwrap_or_default();
    models::TaskStatus {
        timestamp: Some(rfc3339(status.at_ns)),
        state: Some(state_out(status.state())),
        message: some_text(&status.message),
        err: some_text(&status.error),
        container_status: (!container.container_id.is_empty() || container.exit_code != 0).then(|| {
            models::ContainerStatus {
                container_id: Some(container.container_id.clone()),
                pid: Some(i64::from(container.pid)),
                exit_code: Some(i64::from(container.exit_code)),
            }
        }),
        port_status: Some(models::PortStatus {
            // A task that has no node yet, or has ended, answers on no port.
            ports: (!task.host_ports.is_empty()
                && matches!(status.state(), v1::TaskState::Starting | v1::TaskState::Running))
            .then(|| task.host_ports.iter().map(endpoint::port_out).collect()),
        }),
    }
}

fn state_out(state: v1::TaskState) -> models::TaskState {
    use models::TaskState as State;
    match state {
        v1::TaskState::New => State::NEW,
        v1::TaskState::Pending => State::PENDING,
        v1::TaskState::Assigned => State::ASSIGNED,
        v1::TaskState::Accepted => State::ACCEPTED,
        v1::TaskState::Preparing => State::PREPARING,
        v1::TaskState::Ready => State::READY,
        v1::TaskState::Starting => State::STARTING,
        v1::TaskState::Running => State::RUNNING,
        v1::TaskState::Complete => State::COMPLETE,
        v1::TaskState::Shutdown => State::SHUTDOWN,
        v1::TaskState::Failed => State::FAILED,
        v1::TaskState::Rejected => State::REJECTED,
        v1::TaskState::Remove => State::REMOVE,
        v1::TaskState::Orphaned => State::ORPHANED,
    }
}
