//! Nodes.

use bollard_stubs::models;
use serde_json::Value;
use skep_proto::v1;

use super::{
    Error, annotations, cluster, created, labels_of, lossless, map_out, name_of, read, some_text, updated, version,
    write,
};

/// The spec that a client sent.
///
/// # Errors
/// Wrong shape or senseless values.
pub fn spec_in(given: &Value) -> Result<v1::NodeSpec, Error> {
    use models::{NodeSpecAvailabilityEnum as Availability, NodeSpecRoleEnum as Role};
    let model: models::NodeSpec = read("node spec", given)?;
    let role = match model.role {
        Some(Role::MANAGER) => v1::Role::Manager,
        Some(Role::WORKER) => v1::Role::Worker,
        Some(Role::EMPTY) | None => return Err(Error::value("Role", "give worker or manager")),
    };
    let availability = match model.availability {
        Some(Availability::ACTIVE) => v1::Availability::Active,
        Some(Availability::PAUSE) => v1::Availability::Pause,
        Some(Availability::DRAIN) => v1::Availability::Drain,
        Some(Availability::EMPTY) | None => {
            return Err(Error::value("Availability", "give active, pause or drain"));
        }
    };
    let spec = v1::NodeSpec {
        annotations: annotations(model.name, model.labels),
        role: role.into(),
        availability: availability.into(),
    };
    lossless::check(given, &write(&spec_model(&spec)))?;
    Ok(spec)
}

fn spec_model(spec: &v1::NodeSpec) -> models::NodeSpec {
    models::NodeSpec {
        name: name_of(spec.annotations.as_ref()).filter(|n| !n.is_empty()),
        labels: labels_of(spec.annotations.as_ref()),
        role: Some(match spec.role() {
            v1::Role::Worker => models::NodeSpecRoleEnum::WORKER,
            v1::Role::Manager => models::NodeSpecRoleEnum::MANAGER,
        }),
        availability: Some(match spec.availability() {
            v1::Availability::Active => models::NodeSpecAvailabilityEnum::ACTIVE,
            v1::Availability::Pause => models::NodeSpecAvailabilityEnum::PAUSE,
            v1::Availability::Drain => models::NodeSpecAvailabilityEnum::DRAIN,
        }),
    }
}

/// A node as clients read it.
pub fn node_out(node: &v1::Node) -> Value {
    let meta = node.meta.as_ref();
    write(&models::Node {
        id: Some(node.id.clone()),
        version: version(meta),
        created_at: created(meta),
        updated_at: updated(meta),
        spec: Some(spec_model(&node.spec.clone().unwrap_or_default())),
        description: Some(description_out(&node.description.clone().unwrap_or_default())),
        status: Some(status_out(&node.status.clone().unwrap_or_default())),
        manager_status: node.manager.as_ref().map(|manager| models::ManagerStatus {
            // A false one is left out, as clients are used to.
            leader: manager.leader.then_some(true),
            reachability: Some(if manager.reachable {
                models::Reachability::REACHABLE
            } else {
                models::Reachability::UNREACHABLE
            }),
            addr: Some(manager.address.clone()),
        }),
    })
}

fn description_out(description: &v1::NodeDescription) -> models::NodeDescription {
    let platform = description.platform.clone().unwrap_or_default();
    let resources = description.resources.unwrap_or_default();
    models::NodeDescription {
        hostname: Some(description.hostname.clone()),
        platform: Some(models::Platform {
            architecture: Some(platform.architecture.clone()),
            os: Some(platform.os.clone()),
        }),
        resources: Some(models::ResourceObject {
            nano_cpus: Some(resources.nano_cpus),
            memory_bytes: Some(resources.memory_bytes),
            generic_resources: None,
        }),
        engine: Some(models::EngineDescription {
            engine_version: Some(description.engine_version.clone()),
            labels: (!description.engine_labels.is_empty()).then(|| map_out(&description.engine_labels)),
            plugins: Some(
                [("Network", "overlay"), ("Network", "bridge"), ("Log", "json-file")]
                    .iter()
                    .map(|(kind, name)| models::EngineDescriptionPlugins {
                        typ: Some((*kind).to_owned()),
                        name: Some((*name).to_owned()),
                    })
                    .collect(),
            ),
        }),
        tls_info: Some(cluster::tls_out(&description.root_ca_pem)),
    }
}

fn status_out(status: &v1::NodeStatus) -> models::NodeStatus {
    models::NodeStatus {
        state: Some(match status.state() {
            v1::NodeState::Unknown => models::NodeState::UNKNOWN,
            v1::NodeState::Down => models::NodeState::DOWN,
            v1::NodeState::Ready => models::NodeState::READY,
            v1::NodeState::Disconnected => models::NodeState::DISCONNECTED,
        }),
        message: some_text(&status.message),
        addr: Some(status.address.clone()),
    }
}

/// The word for a role, as filters have it.
pub fn role_word(role: v1::Role) -> &'static str {
    match role {
        v1::Role::Worker => "worker",
        v1::Role::Manager => "manager",
    }
}
