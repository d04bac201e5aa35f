//! The identity in use. Replacing it changes every handshake from then on and no connection there is.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, watch};

use super::{Clock, Error, Identity};

/// The one place where a running node keeps its identity. Clones are the same holder.
#[derive(Debug, Clone)]
pub struct Holder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    clock: Clock,
    current: watch::Sender<Arc<Identity>>,
    wake: Notify,
}

impl Holder {
    /// Takes an identity into use. `dir` is where replacements are written; the first one has to be there already, or be
    /// saved by the caller.
    pub fn new(dir: PathBuf, identity: Identity, clock: Clock) -> Self {
        let current = watch::Sender::new(Arc::new(identity));
        Self(Arc::new(Inner { dir, clock, current, wake: Notify::new() }))
    }

    /// The identity now.
    pub fn current(&self) -> Arc<Identity> {
        Arc::clone(&self.0.current.borrow())
    }

    /// Hears of replacements: a changed role tells the daemon to start or stop its manager.
    pub fn watch(&self) -> watch::Receiver<Arc<Identity>> {
        self.0.current.subscribe()
    }

    /// Writes a new identity of the same node to disk, then takes it into use. Blocks for the disk.
    ///
    /// # Errors
    /// Another node's or cluster's identity; a disk that can't be written. The old one stays in use then.
    pub fn replace(&self, identity: Identity) -> Result<(), Error> {
        let held = self.current();
        let (new, old) = (&identity.subject, &held.subject);
        if new.node_id != old.node_id || new.cluster_id != old.cluster_id {
            let (found, found_cluster) = (new.node_id.clone(), new.cluster_id.clone());
            return Err(Error::OtherNode { found, found_cluster, held: old.node_id.clone() });
        }
        identity.save(&self.0.dir)?;
        self.0.current.send_replace(Arc::new(identity));
        Ok(())
    }

    /// Asks for a new certificate at once, for instance because the cluster gave this node another role.
    pub fn renew_now(&self) {
        self.0.wake.notify_one();
    }

    /// The clock that the identity is judged by.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub(super) async fn asked_to_renew(&self) {
        self.0.wake.notified().await;
    }
}
