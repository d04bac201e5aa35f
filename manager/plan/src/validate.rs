//! Checks what clients ask for before it is proposed, and completes it: names become ids, missing modes defaults.
//!
//! Called by the cluster's API on the leader, against the newest state. The state itself refuses what two calls at the
//! same moment would spoil (names, ports, subnets); here the answer is early and in words: which field, and what to do.

mod container;
mod files;
mod host;
mod limits;
mod network;
mod ports;
mod service;
mod warnings;
mod words;

use std::collections::BTreeMap;

use skep_proto::v1::{
    Annotations, Cluster, ClusterSpec, Config, ConfigSpec, Node, NodeSpec, ObjectKind, Refusal, RefusalReason, Role,
    Secret, SecretSpec, Service, TaskSpec, UpdateState, UpdateStatus,
};
use skep_state::State;
use skep_state::subnet::Subnet;

use crate::defaults::SECOND;
pub use files::NO_VOLUMES;
pub use network::{default_ingress, network, network_removal, only_overlay};
pub use ports::manager_address;
pub use service::service;
pub use warnings::warnings;

/// Largest secret in bytes.
const SECRET_BYTES: usize = 500 * 1024;
/// Largest config in bytes.
const CONFIG_BYTES: usize = 1000 * 1024;
/// Longest name of a service; longer ones make no DNS label.
const SERVICE_NAME: usize = 63;
/// Longest other name.
const NAME: usize = 64;
/// Longest prefix of a subnet that is cut from a pool.
const LONGEST_SUBNET: u32 = 29;
/// Longest span of time that a spec may name: a year. What is added to a clock must not overflow it.
const DURATION: i64 = 366 * 24 * 3600 * SECOND;
/// Shortest life of a certificate.
const CERTIFICATE_EXPIRY: i64 = 3600 * SECOND;

/// Why something can't be accepted as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field has a value that can't be.
    #[error("{field}: {why}")]
    Invalid {
        /// Which one, as the API names it.
        field: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// It names something that does not exist.
    #[error("{field}: {what} not found; create it first, or correct the name")]
    NotFound {
        /// Which field names it.
        field: String,
        /// What it names.
        what: String,
    },
    /// A name is taken.
    #[error("name conflicts with an existing object: {kind} {name} already exists; choose another name")]
    NameInUse {
        /// Kind of the object.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// Something else uses it.
    #[error("{0}")]
    InUse(String),
    /// Only tasks of services that were removed use it, and they are about to end.
    #[error("{0}; it is being removed, so try again when its tasks have ended")]
    Draining(String),
}

impl Error {
    /// The class that decides which code a client sees.
    pub fn reason(&self) -> RefusalReason {
        match self {
            Self::Invalid { .. } => RefusalReason::Invalid,
            Self::NotFound { .. } => RefusalReason::NotFound,
            Self::NameInUse { .. } => RefusalReason::NameInUse,
            Self::InUse(_) | Self::Draining(_) => RefusalReason::InUse,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { reason: error.reason().into(), message: error.to_string(), ..Self::default() }
    }
}

fn invalid(field: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Invalid { field: field.into(), why: why.into() }
}

/// The state of an update that goes back to the previous spec because somebody asked for it.
pub fn rollback_started(now_ns: i64) -> UpdateStatus {
    UpdateStatus {
        state: UpdateState::RollbackStarted.into(),
        started_ns: now_ns,
        completed_ns: 0,
        message: "manually requested rollback".to_owned(),
    }
}

/// Letters and digits, and in between what `inner` allows.
fn check_name(field: &str, name: &str, longest: usize, inner: &str) -> Result<(), Error> {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.is_empty() {
        return Err(invalid(field, "a name is needed"));
    }
    if name.len() > longest {
        return Err(invalid(field, format!("{name} has {} characters; {longest} are allowed", name.len())));
    }
    let legal = name.chars().all(|c| c.is_ascii_alphanumeric() || inner.contains(c));
    if legal && ends(name.chars().next()) && ends(name.chars().last()) {
        return Ok(());
    }
    let inner = inner.chars().map(String::from).collect::<Vec<_>>().join(" ");
    Err(invalid(field, format!("`{name}` is no valid name: use letters and digits, and between them also {inner}")))
}

fn annotations(spec: Option<&Annotations>) -> Result<&Annotations, Error> {
    let annotations = spec.ok_or_else(|| invalid("Name", "a name is needed"))?;
    check_labels("Labels", annotations)?;
    Ok(annotations)
}

fn check_labels(field: &str, annotations: &Annotations) -> Result<(), Error> {
    check_label_names(field, &annotations.labels)
}

fn check_label_names(field: &str, labels: &BTreeMap<String, String>) -> Result<(), Error> {
    if labels.keys().any(|name| name.trim().is_empty()) {
        return Err(invalid(field, "a label has an empty name: write it as NAME=VALUE"));
    }
    match labels.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
        Some((name, _)) => Err(invalid(field, format!("label `{}` has a NUL in it", name.replace('\0', "\\0")))),
        None => Ok(()),
    }
}

/// A change of a node's spec. The last manager stays one.
pub fn node(state: &State, node: &Node, spec: NodeSpec) -> Result<NodeSpec, Error> {
    if let Some(annotations) = &spec.annotations {
        check_labels("Labels", annotations)?;
        if !annotations.name.is_empty() {
            check_name("Name", &annotations.name, NAME, "-_.")?;
        }
    }
    let manager = |n: &Node| n.spec.as_ref().is_some_and(|s| s.role() == Role::Manager);
    let others = state.nodes().filter(|n| n.id != node.id && manager(n)).count();
    if manager(node) && spec.role() == Role::Worker && others == 0 {
        return Err(invalid("Role", "attempting to demote the last manager of the swarm: promote another node first"));
    }
    Ok(spec)
}

/// A change of the cluster's settings.
pub fn cluster(spec: ClusterSpec) -> Result<ClusterSpec, Error> {
    if let Some(annotations) = &spec.annotations {
        check_labels("Labels", annotations)?;
        if !matches!(annotations.name.as_str(), "" | "default") {
            return Err(invalid("Name", "a swarm's name is `default` and can't be changed"));
        }
    }
    if spec.heartbeat_ns < 0 || (spec.heartbeat_ns > 0 && spec.heartbeat_ns < SECOND / 10) {
        return Err(invalid("Dispatcher.HeartbeatPeriod", "a heartbeat every 100 ms is the most that is allowed"));
    }
    if spec.heartbeat_ns > DURATION || spec.certificate_expiry_ns > 100 * DURATION {
        return Err(invalid("Dispatcher.HeartbeatPeriod", "periods are a year at most, certificates live for 100"));
    }
    if spec.certificate_expiry_ns != 0 && spec.certificate_expiry_ns < CERTIFICATE_EXPIRY {
        return Err(invalid("CAConfig.NodeCertExpiry", "certificates have to live for an hour at least"));
    }
    if spec.auto_lock {
        return Err(invalid(
            "EncryptionConfig.AutoLockManagers",
            "locking managers is not supported yet: leave it off",
        ));
    }
    Ok(spec)
}

/// One line for each setting that was changed and has no effect.
pub fn cluster_warnings(spec: &ClusterSpec, old: Option<&ClusterSpec>) -> Vec<String> {
    let of = |read: fn(&ClusterSpec) -> u64| (read(spec), old.map_or(0, read));
    let settings =
        [("Raft.SnapshotInterval", of(|s| s.snapshot_interval)), ("Raft.KeepOldSnapshots", of(|s| s.snapshots_kept))];
    let changed = settings.into_iter().filter(|(_, (new, old))| *new != 0 && new != old);
    let line = |name| format!("{name}: without effect: snapshots are taken as the log grows, and the newest is kept");
    changed.map(|(name, _)| line(name)).collect()
}

/// The address pools and the data path port of a new cluster.
pub fn pools(cluster: &Cluster) -> Result<(), Error> {
    let mut pools: Vec<Subnet> = Vec::new();
    for text in &cluster.default_address_pools {
        let pool: Subnet = text.parse().map_err(|e| invalid("DefaultAddrPool", format!("{e}")))?;
        if let Some(other) = pools.iter().find(|other| other.overlaps(pool)) {
            return Err(invalid("DefaultAddrPool", format!("{pool} overlaps with {other}")));
        }
        let size = cluster.subnet_size;
        if size != 0 && (size < u32::from(pool.prefix()) || size > LONGEST_SUBNET) {
            let why = format!("a /{size} can't be cut from {pool}: use {} to {LONGEST_SUBNET}", pool.prefix());
            return Err(invalid("SubnetSize", why));
        }
        pools.push(pool);
    }
    if cluster.subnet_size > LONGEST_SUBNET {
        return Err(invalid(
            "SubnetSize",
            format!("subnets of /{} are too small: /{LONGEST_SUBNET} is the smallest", cluster.subnet_size),
        ));
    }
    match cluster.data_path_port {
        0 | 1024..=49151 => Ok(()),
        port => Err(invalid("DataPathPort", format!("{port} is not allowed: use 1024 to 49151"))),
    }
}

/// The two kinds of kept data differ in size and words only.
macro_rules! kept_data {
    ($($kind:ident, $spec:ident, $word:literal, $limit:expr, $find:ident;
       $create:ident, $update:ident, $removal:ident, $uses:expr;)*) => {
        $(
            #[doc = concat!("A new ", $word, ".")]
            pub fn $create(state: &State, spec: $spec) -> Result<$spec, Error> {
                let annotations = annotations(spec.annotations.as_ref())?;
                check_name("Name", &annotations.name, NAME, "-_.")?;
                if spec.data.len() > $limit {
                    let why = format!("{} bytes are too many: a {} has {} at most", spec.data.len(), $word, $limit);
                    return Err(invalid("Data", why));
                }
                if spec.data.is_empty() && $word == "secret" {
                    return Err(invalid("Data", "a secret can't be empty"));
                }
                if state.$find(&annotations.name).is_ok_and(|o| {
                    o.spec.as_ref().and_then(|s| s.annotations.as_ref()).is_some_and(|a| a.name == annotations.name)
                }) {
                    return Err(Error::NameInUse { kind: $word, name: annotations.name.clone() });
                }
                Ok(spec)
            }

            #[doc = concat!("A change of a ", $word, ": its labels only.")]
            pub fn $update(old: &$kind, mut spec: $spec) -> Result<$spec, Error> {
                let name = annotations(spec.annotations.as_ref())?.name.clone();
                let stored = old.spec.clone().unwrap_or_default();
                if stored.annotations.as_ref().is_some_and(|a| a.name != name) {
                    return Err(invalid("Name", "only labels can be changed"));
                }
                // A client that was not shown the data sends none.
                if !spec.data.is_empty() && spec.data != stored.data {
                    let why = concat!("only labels can be changed: create another ", $word, " for other data");
                    return Err(invalid("Data", why));
                }
                spec.data = stored.data;
                Ok(spec)
            }

            #[doc = concat!("Whether nothing uses the ", $word, " any more.")]
            pub fn $removal(state: &State, object: &$kind) -> Result<(), Error> {
                let uses: fn(&TaskSpec, &str) -> bool = $uses;
                let users = users(state, |spec| uses(spec, &object.id));
                let name = object.spec.as_ref().and_then(|s| s.annotations.as_ref()).map_or("", |a| a.name.as_str());
                unused(&users, |users| format!("{} '{name}' is in use by the following services: {users}", $word))
            }
        )*
    };
}

kept_data! {
    Secret, SecretSpec, "secret", SECRET_BYTES, find_secret;
    secret, secret_update, secret_removal,
    |spec, id| spec.container.iter().flat_map(|c| &c.secrets).any(|s| s.secret_id == id);

    Config, ConfigSpec, "config", CONFIG_BYTES, find_config;
    config, config_update, config_removal,
    |spec, id| spec.container.iter().flat_map(|c| &c.configs).any(|c| c.config_id == id);
}

/// A service that uses something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct User {
    name: String,
    /// It was removed, and its tasks are about to end.
    removing: bool,
}

impl User {
    fn of(service: &Service) -> Self {
        let annotations = service.spec.as_ref().and_then(|s| s.annotations.as_ref());
        let name = annotations.map_or_else(|| service.id.clone(), |a| a.name.clone());
        Self { name, removing: service.removing }
    }
}

/// Nothing when there are no users; else what `text` makes of their names.
fn unused(users: &[User], text: impl FnOnce(String) -> String) -> Result<(), Error> {
    let names = users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>().join(", ");
    match users {
        [] => Ok(()),
        users if users.iter().all(|user| user.removing) => Err(Error::Draining(text(names))),
        _ => Err(Error::InUse(text(names))),
    }
}

/// The services that use something: in their spec, or by a task that may still run.
fn users(state: &State, uses: impl Fn(&TaskSpec) -> bool) -> Vec<User> {
    let mut users = Vec::new();
    for service in state.services() {
        let spec = service.spec.as_ref();
        let current = !service.removing && spec.and_then(|s| s.task.as_ref()).is_some_and(&uses);
        let running = || {
            state
                .tasks_of_service(&service.id)
                .filter(|t| !t.observed().is_terminal())
                .any(|t| state.task_spec(&t.service_id, t.spec_version).is_some_and(|s| uses(&s)))
        };
        if current || running() {
            users.push(User::of(service));
        }
    }
    users
}

/// The word for an object in a message.
fn described(kind: ObjectKind, reference: &str) -> String {
    let word = match kind {
        ObjectKind::Network => "network",
        ObjectKind::Secret => "secret",
        ObjectKind::Config => "config",
        _ => "object",
    };
    format!("{word} {reference}")
}
