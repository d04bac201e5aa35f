//! Feeds committed entries to the caller's state machine, in order, each one once; keeps and restores its snapshots.
//!
//! The state machine lives in memory: after a restart it is rebuilt from the newest snapshot and the log behind it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use tokio::sync::oneshot;

use super::snapshot::{SnapshotData, SnapshotStore};
use super::types::{Blob, LogId, Payload, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use super::{SnapshotFn, StateMachine};

/// Entries applied before other work of the runtime gets its turn.
const YIELD: u32 = 64;
/// Nice value of the thread that encodes a snapshot.
const NICE: i32 = 15;

/// The caller's state machine with the position it has reached.
pub(crate) struct Machine {
    inner: Arc<dyn StateMachine>,
    snapshots: Arc<SnapshotStore>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl Machine {
    pub(crate) fn new(inner: Arc<dyn StateMachine>, snapshots: Arc<SnapshotStore>) -> Self {
        Self { inner, snapshots, applied: None, membership: StoredMembership::default() }
    }
}

/// A frozen state that can be encoded while the machine goes on.
pub(crate) struct Builder {
    meta: SnapshotMeta,
    /// In a mutex only because the library wants builders to be `Sync`.
    encode: Mutex<Option<SnapshotFn>>,
    snapshots: Arc<SnapshotStore>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let encode = self.encode.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let encode = encode.ok_or_else(|| io::Error::other("a snapshot builder builds once"))?;
        let (meta, snapshots) = (self.meta.clone(), Arc::clone(&self.snapshots));
        let (done, wait) = oneshot::channel();
        std::thread::Builder::new().name("raft-snapshot".into()).spawn(move || {
            // On Linux this concerns the calling thread only. Without the right to do so it merely runs at full priority.
            rustix::process::setpriority_process(None, NICE).ok();
            let file = snapshots.write(&meta, encode).and_then(|file| snapshots.keep(file, true));
            done.send(file).ok();
        })?;
        let file = wait.await.map_err(|_| io::Error::other("the thread that encodes the snapshot panicked"))??;
        Ok(Snapshot { meta: file.meta.clone(), snapshot: SnapshotData(file) })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut turns = 0;
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let reply = match entry.payload {
                Payload::Blank => Vec::new(),
                Payload::Normal(command) => self.inner.apply(entry.log_id.index, &command.0),
                Payload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Vec::new()
                }
            };
            self.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                responder.send(Blob(reply.into()));
            }
            turns += 1;
            if turns % YIELD == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            meta: SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() },
            encode: Mutex::new(Some(self.inner.snapshot())),
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let (inner, snapshots) = (Arc::clone(&self.inner), Arc::clone(&self.snapshots));
        let install = tokio::task::spawn_blocking(move || {
            let file = snapshots.keep(snapshot.0, false)?;
            file.read(|image| inner.restore(image))
        });
        install.await.map_err(io::Error::other)??;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let current = self.snapshots.current();
        Ok(current.map(|file| Snapshot { meta: file.meta.clone(), snapshot: SnapshotData(file) }))
    }
}
