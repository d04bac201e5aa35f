//! What a command changed: feeds events and wakes whoever waits.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_proto::v1::{
    Availability, Cluster, ClusterEvent, Config, EventAction, Network, Node, NodeState, ObjectKind, Role, Secret,
    Service, Task, UpdateState, service_spec,
};

use crate::index::{name_of, service_name};

/// An object of any kind, shared with the tables.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "one variant a kind")]
pub enum Value {
    Cluster(Arc<Cluster>),
    Node(Arc<Node>),
    Service(Arc<Service>),
    Task(Arc<Task>),
    Network(Arc<Network>),
    Secret(Arc<Secret>),
    Config(Arc<Config>),
}

/// One object before and after a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What it is.
    pub kind: ObjectKind,
    /// Its id.
    pub id: String,
    /// Absent when it was created.
    pub old: Option<Value>,
    /// Absent when it was removed.
    pub new: Option<Value>,
}

impl Change {
    /// The event that clients see. Tasks and the cluster itself have none. `at_ns` is left to the caller.
    pub fn event(&self) -> Option<ClusterEvent> {
        let action = match (&self.old, &self.new) {
            (None, Some(_)) => EventAction::Create,
            (Some(_), Some(_)) => EventAction::Update,
            (Some(_), None) => EventAction::Remove,
            (None, None) => return None,
        };
        let shown = self.new.as_ref().or(self.old.as_ref())?;
        let name = match shown {
            Value::Cluster(_) | Value::Task(_) => return None,
            Value::Node(node) => node.description.as_ref().map_or("", |d| d.hostname.as_str()),
            Value::Service(service) => service_name(service),
            Value::Network(network) => name_of(network.spec.as_ref().and_then(|s| s.annotations.as_ref())),
            Value::Secret(secret) => name_of(secret.spec.as_ref().and_then(|s| s.annotations.as_ref())),
            Value::Config(config) => name_of(config.spec.as_ref().and_then(|s| s.annotations.as_ref())),
        };
        let attributes = match (&self.old, &self.new) {
            (Some(Value::Node(old)), Some(Value::Node(new))) => differences(node_facts(old), node_facts(new)),
            (Some(Value::Service(old)), Some(Value::Service(new))) => {
                differences(service_facts(old), service_facts(new))
            }
            _ => BTreeMap::new(),
        };
        Some(ClusterEvent {
            at_ns: 0,
            kind: self.kind.into(),
            action: action.into(),
            id: self.id.clone(),
            name: name.to_owned(),
            attributes,
        })
    }
}

/// `name.old` and `name.new` for every fact that changed.
fn differences<const N: usize>(old: [(&str, String); N], new: [(&str, String); N]) -> BTreeMap<String, String> {
    old.into_iter()
        .zip(new)
        .filter(|((_, a), (_, b))| a != b)
        .flat_map(|((name, a), (_, b))| [(format!("{name}.old"), a), (format!("{name}.new"), b)])
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

fn node_facts(node: &Node) -> [(&'static str, String); 3] {
    let state = match node.status.as_ref().map_or(NodeState::Unknown, skep_proto::v1::NodeStatus::state) {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    };
    let spec = node.spec.clone().unwrap_or_default();
    let availability = match spec.availability() {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    };
    let role = match spec.role() {
        Role::Worker => "worker",
        Role::Manager => "manager",
    };
    [("state", state.into()), ("availability", availability.into()), ("role", role.into())]
}

fn service_facts(service: &Service) -> [(&'static str, String); 3] {
    let spec = service.spec.as_ref();
    let replicas = match spec.and_then(|s| s.mode.as_ref()) {
        Some(service_spec::Mode::Replicated(r)) => r.replicas.to_string(),
        _ => String::new(),
    };
    let container = spec.and_then(|s| s.task.as_ref()).and_then(|t| t.container.as_ref());
    let image = container.map_or("", |c| c.image.as_str());
    let update = match service.update_status.as_ref().map_or(UpdateState::Unknown, skep_proto::v1::UpdateStatus::state)
    {
        UpdateState::Unknown => "",
        UpdateState::Updating => "updating",
        UpdateState::Paused => "paused",
        UpdateState::Completed => "completed",
        UpdateState::RollbackStarted => "rollback_started",
        UpdateState::RollbackPaused => "rollback_paused",
        UpdateState::RollbackCompleted => "rollback_completed",
    };
    [("replicas", replicas), ("image", image.into()), ("updatestate", update.into())]
}
