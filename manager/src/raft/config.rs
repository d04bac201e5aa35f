//! Settings of one consensus node, and what they mean to the library.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use openraft::{SnapshotPolicy, StepDownPolicy};

use super::error::{Error, Result};

/// Largest message between managers; an append request is about 1 MiB, or one entry if that is larger.
pub(crate) const MESSAGE_BYTES: usize = 4 << 20;
/// Largest value of [`Config::max_command`].
const MAX_COMMAND: usize = 3 << 20;

/// Settings of one consensus node.
#[derive(Clone)]
pub struct Config {
    /// Directory of this node's log and snapshots; created if missing.
    pub dir: PathBuf,
    /// This node. Never reused by another one.
    pub node: u64,
    /// Where the other managers reach [`super::Raft::service`].
    pub address: String,
    /// Data-encryption key: all that rests in `dir` is sealed with it.
    pub key: [u8; 32],
    /// Time between two signs of life of the leader.
    pub heartbeat: Duration,
    /// Shortest silence after which a follower asks for an election. The leader's lease is `election_max`.
    pub election_min: Duration,
    /// Longest silence.
    pub election_max: Duration,
    /// Entries between two snapshots.
    pub snapshot_every: u64,
    /// Bytes of entries after which a snapshot is made even if there are fewer entries.
    pub snapshot_bytes: u64,
    /// Entries kept behind a snapshot, so that a follower that was away briefly needs no snapshot.
    pub keep_entries: u64,
    /// Largest command in bytes; at most 3 MiB.
    pub max_command: usize,
    /// Commands in flight at a time; further ones wait.
    pub max_in_flight: usize,
    /// Bytes of commands in flight at a time; further ones wait.
    pub max_in_flight_bytes: usize,
    /// Time that adding or removing a manager or handing over leadership may take.
    pub change_limit: Duration,
    /// Time without a leader after which callers are told so instead of waiting for one.
    pub leaderless: Duration,
    /// Numbers that this node had before it went on alone (see [`super::Raft::force_new_cluster`]): whoever still means
    /// one of them is told that its group was given up.
    pub former: Vec<u64>,
}

impl Config {
    /// The default settings: heartbeat 50 ms, elections after 150–300 ms, a snapshot every 10,000 entries.
    pub fn new(dir: impl Into<PathBuf>, node: u64, address: impl Into<String>, key: [u8; 32]) -> Self {
        Self {
            dir: dir.into(),
            node,
            address: address.into(),
            key,
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
            snapshot_every: 10_000,
            snapshot_bytes: 256 << 20,
            keep_entries: 5_000,
            max_command: 3 << 19,
            max_in_flight: 8192,
            max_in_flight_bytes: 64 << 20,
            change_limit: Duration::from_secs(25),
            leaderless: Duration::from_secs(3),
            former: Vec::new(),
        }
    }

    /// Age of the last acknowledgement up to which a member counts as reachable and a leader as leading.
    pub(crate) fn fresh(&self) -> Duration {
        2 * self.election_max
    }

    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::Config { reason });
        if self.max_command > MAX_COMMAND {
            return refuse(format!("max_command is {} bytes, at most {MAX_COMMAND} are possible", self.max_command));
        }
        if self.max_in_flight == 0 || self.max_in_flight_bytes < self.max_command {
            return refuse("max_in_flight and max_in_flight_bytes have to admit at least one command".into());
        }
        if self.address.is_empty() {
            return refuse("the address is empty".into());
        }
        Ok(())
    }

    pub(crate) fn engine(&self) -> Result<openraft::Config> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (heartbeat, max) = (millis(self.heartbeat), millis(self.election_max));
        let config = openraft::Config {
            cluster_name: "skep".into(),
            heartbeat_interval: heartbeat,
            election_timeout_min: millis(self.election_min),
            election_timeout_max: max,
            enable_pre_vote: Some(true),
            // A leader without a quorum falls silent now and then, so that the others may elect.
            quorum_loss_probe_interval: Some(max.saturating_mul(2)),
            removed_leader_step_down: StepDownPolicy::After(millis(self.election_min)),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            replication_lag_threshold: self.snapshot_every.saturating_add(self.keep_entries),
            max_in_snapshot_log_to_keep: self.keep_entries,
            purge_batch_size: (self.keep_entries / 4).clamp(1, 256),
            // Batches are capped in bytes where they are read; this caps the reading.
            max_payload_entries: 4096,
            api_channel_size: Some(4096),
            notification_channel_size: Some(8192),
            // A peer that is back is found within this time; the default backs off to a second.
            backoff: "20ms 50ms 100ms ...200ms".into(),
            // Ours: see network.rs. A snapshot takes as long as its size needs.
            install_snapshot_timeout: 60_000,
            ..openraft::Config::default()
        };
        config.validate().map_err(|e| Error::Config { reason: e.to_string() })
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Config")
            .field("dir", &self.dir)
            .field("node", &self.node)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
