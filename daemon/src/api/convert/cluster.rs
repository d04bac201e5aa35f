//! The swarm as a whole: its settings, its root of trust, its join tokens.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard_stubs::models;
use serde_json::{Value, json};
use skep_proto::v1;

use super::{
    Error, annotations, created, labels_of, lossless, name_of, read, signed, some_number, unsigned, updated, version,
    write,
};

/// Names of the only swarm there is, as clients know it.
const NAME: &str = "default";

/// What the consensus library does in its own way; clients send back what they read.
const ELECTION_TICK: i64 = 10;
const HEARTBEAT_TICK: i64 = 1;
const LOG_ENTRIES_FOR_SLOW_FOLLOWERS: u64 = 500;

/// The settings that a client sent. What it leaves open is zero, or not there where zero means something.
///
/// # Errors
/// Wrong shape, senseless values, fields that we don't honour.
pub fn spec_in(given: &Value) -> Result<v1::ClusterSpec, Error> {
    let model: models::SwarmSpec = read("swarm spec", given)?;
    if model.encryption_config.as_ref().and_then(|e| e.auto_lock_managers) == Some(true) {
        return Err(Error::Unsupported {
            field: "EncryptionConfig.AutoLockManagers".to_owned(),
            value: "autolock".to_owned(),
        });
    }
    let raft = model.raft.unwrap_or_default();
    let limit = model.orchestration.and_then(|o| o.task_history_retention_limit);
    let spec = v1::ClusterSpec {
        annotations: annotations(model.name, model.labels),
        task_history_limit: limit
            .map(u32::try_from)
            .transpose()
            .map_err(|_| Error::value("Orchestration.TaskHistoryRetentionLimit", "it lies between 0 and 4294967295"))?,
        heartbeat_ns: duration("Dispatcher.HeartbeatPeriod", model.dispatcher.and_then(|d| d.heartbeat_period))?,
        certificate_expiry_ns: duration("CAConfig.NodeCertExpiry", model.ca_config.and_then(|c| c.node_cert_expiry))?,
        auto_lock: false,
        snapshot_interval: raft.snapshot_interval.unwrap_or(0),
        snapshots_kept: raft.keep_old_snapshots.unwrap_or(0),
    };
    lossless::check(given, &write(&to_model(&spec)))?;
    Ok(spec)
}

fn duration(field: &str, given: Option<i64>) -> Result<i64, Error> {
    unsigned(field, given).map(signed)
}

fn to_model(spec: &v1::ClusterSpec) -> models::SwarmSpec {
    models::SwarmSpec {
        name: name_of(spec.annotations.as_ref()),
        labels: labels_of(spec.annotations.as_ref()),
        orchestration: Some(models::SwarmSpecOrchestration {
            task_history_retention_limit: spec.task_history_limit.map(i64::from),
        }),
        raft: Some(models::SwarmSpecRaft {
            snapshot_interval: Some(spec.snapshot_interval),
            keep_old_snapshots: Some(spec.snapshots_kept),
            log_entries_for_slow_followers: Some(LOG_ENTRIES_FOR_SLOW_FOLLOWERS),
            election_tick: Some(ELECTION_TICK),
            heartbeat_tick: Some(HEARTBEAT_TICK),
        }),
        dispatcher: Some(models::SwarmSpecDispatcher { heartbeat_period: some_number(spec.heartbeat_ns) }),
        ca_config: Some(models::SwarmSpecCaConfig {
            node_cert_expiry: some_number(spec.certificate_expiry_ns),
            ..Default::default()
        }),
        encryption_config: Some(models::SwarmSpecEncryptionConfig { auto_lock_managers: Some(spec.auto_lock) }),
        task_defaults: Some(models::SwarmSpecTaskDefaults { log_driver: None }),
    }
}

/// The swarm as `swarm inspect` and `info` show it; the tokens only where they are asked for.
pub fn cluster_out(cluster: &v1::Cluster, tokens: bool) -> Value {
    let meta = cluster.meta.as_ref();
    let mut spec = cluster.spec.as_ref().map(to_model).unwrap_or_default();
    if spec.name.as_deref() == Some("") {
        spec.name = Some(NAME.to_owned());
    }
    let given = cluster.join_tokens.as_ref().filter(|_| tokens);
    let mut value = write(&models::Swarm {
        id: Some(cluster.id.clone()),
        version: version(meta),
        created_at: created(meta),
        updated_at: updated(meta),
        spec: Some(spec),
        tls_info: Some(tls_out(cluster.root_ca.as_ref().map(|r| r.certificate_pem.as_str()).unwrap_or_default())),
        root_rotation_in_progress: Some(false),
        data_path_port: Some(cluster.data_path_port),
        default_addr_pool: Some(cluster.default_address_pools.clone()),
        subnet_size: Some(cluster.subnet_size),
        join_tokens: given
            .map(|t| models::JoinTokens { worker: Some(t.worker.clone()), manager: Some(t.manager.clone()) }),
    });
    if let Some(members) = value.as_object_mut()
        && !tokens
    {
        members.remove("JoinTokens");
    }
    value
}

/// The root that a node or the swarm trusts, with its subject and key in base64. Clients compare the root of a node with
/// the swarm's to see whose certificate is outdated.
pub(super) fn tls_out(root_pem: &str) -> models::TlsInfo {
    let root = x509_parser::pem::parse_x509_pem(root_pem.as_bytes()).ok().map(|(_, pem)| pem);
    let root = root.as_ref().and_then(|pem| pem.parse_x509().ok());
    models::TlsInfo {
        trust_root: Some(root_pem.to_owned()),
        cert_issuer_subject: root.as_ref().map(|root| STANDARD.encode(root.subject().as_raw())),
        cert_issuer_public_key: root.as_ref().map(|root| STANDARD.encode(root.public_key().raw)),
    }
}

/// Availability, as it stands in requests that make or join a swarm.
///
/// # Errors
/// A word that is none of the three.
pub fn availability_in(word: &str) -> Result<v1::Availability, Error> {
    match word {
        "" | "active" => Ok(v1::Availability::Active),
        "pause" => Ok(v1::Availability::Pause),
        "drain" => Ok(v1::Availability::Drain),
        other => Err(Error::value("Availability", format!("{other:?} is none of active, pause, drain"))),
    }
}

/// The key that opens a locked manager: there is none, because managers are never locked.
pub fn unlock_key_out() -> Value {
    json!({ "UnlockKey": "" })
}
