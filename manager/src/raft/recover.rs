//! Recovery from a lost quorum: one manager goes on alone with what it has.
//!
//! Appends, outside the protocol, a membership of this node alone to its log, in a term above all that it knows. When the
//! engine starts it counts itself as the only voter, leads, and commits what its log held, acknowledged or not. The node
//! goes on under a number that the others never heard of, so that nothing they still say is taken for meant; whoever
//! means the old number is told that its group was given up. Doing it again, after a crash at any point, is harmless.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt as _;

use super::crypt::Cipher;
use super::error::{Error, Result};
use super::log_store::LogStore;
use super::snapshot::SnapshotStore;
use super::types::{Entry, LeaderId, LogId, Membership, Node, Payload, TypeConfig, Vote};
use super::{Config, Dialer, Raft, StateMachine, close};

impl Raft {
    /// Opens this node as the only manager of its cluster and waits until it leads. For clusters that have lost their
    /// quorum for good: changes that only the other managers had are lost. `config.node` is a new number, and
    /// `config.former` names the old ones. An old manager that comes back ends its part as soon as it reaches this one;
    /// a majority of them that can't reach it goes on as a cluster of its own.
    ///
    /// # Errors
    /// `Membership` if this node never belonged to a cluster, else those of [`Raft::open`].
    pub async fn force_new_cluster(
        config: Config,
        machine: Arc<dyn StateMachine>,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Self> {
        config.check()?;
        let (dir, key) = (config.dir.clone(), config.key);
        let opened = tokio::task::spawn_blocking(move || {
            let cipher = Arc::new(Cipher::new(key).map_err(Error::storage)?);
            // First what only reads: an error must not leave the log open.
            let snapshots = SnapshotStore::open(dir.join("snapshots"), Arc::clone(&cipher)).map_err(Error::storage)?;
            let snapshot = snapshots.current().and_then(|file| file.meta.last_log_id);
            let (log, closer) = LogStore::open(&dir, cipher).map_err(Error::storage)?;
            Ok::<_, Error>((snapshot, log, closer))
        });
        let (snapshot, mut log, closer) = opened.await.map_err(Error::storage)??;
        let rewritten = alone(&mut log, snapshot, &config).await;
        close(closer).await?;
        rewritten?;
        let raft = Self::open(config, machine, dialer).await?;
        if let Err(error) = raft.settle().await {
            raft.shutdown().await;
            return Err(error);
        }
        Ok(raft)
    }
}

async fn alone(log: &mut LogStore, snapshot: Option<LogId>, config: &Config) -> Result<()> {
    // A crash after a snapshot had come, before the older log that it replaces was dropped.
    if let Some(at) = snapshot
        && log.mark().last < Some(at)
    {
        log.truncate_after(Some(at)).await.map_err(Error::storage)?;
        log.purge(at).await.map_err(Error::storage)?;
    }
    let mark = log.mark();
    let (Some(last), Some(vote)) = (mark.last, mark.vote) else {
        let reason = format!("manager {:x} never belonged to a cluster; bootstrap it instead", config.node);
        return Err(Error::Membership { reason });
    };
    let term = vote.leader_id.term.max(last.leader_id.term) + 1;
    let leader_id = LeaderId { term, node_id: config.node };
    let nodes = BTreeMap::from([(config.node, Node { addr: config.address.clone() })]);
    let membership = Membership::new(vec![BTreeSet::from([config.node])], nodes);
    let membership = membership.map_err(|e| Error::Membership { reason: e.to_string() })?;
    let log_id = LogId { leader_id, index: last.index + 1 };
    let entry = Entry { log_id, payload: Payload::Membership(membership) };
    // Vote first: an entry of a term above the vote would be a contradiction.
    log.save_vote(&Vote { leader_id, committed: false }).await.map_err(Error::storage)?;
    let (done, wait) = TypeConfig::oneshot();
    log.append([entry], IOFlushed::signal(done)).await.map_err(Error::storage)?;
    wait.await.map_err(Error::storage)?.map_err(Error::storage)
}
