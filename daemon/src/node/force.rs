//! Forcing a new cluster: a manager that has lost the others for good goes on alone.
//!
//! Decides whether this node may; the work is the manager's. Called by `init`, and by the daemon's start when an earlier
//! run of this was cut short.

use std::sync::PoisonError;
use std::time::Duration;

use anyhow::Result;

use super::{Node, internal};
use crate::addresses;
use crate::api::backend::{Failure, Init};
use crate::identity::{Clock, Holder, Identity};
use crate::member::{self, Beginning, Member};
use crate::membership::{self, Membership};

/// How long a manager may take to notice that there is no leader any more.
const LEADER_LOST_WITHIN: Duration = Duration::from_secs(2);

impl Node {
    /// Makes a swarm of this manager alone out of what it has of its own, which has lost its quorum. What can be checked
    /// is checked before anything stops. From the moment at which the intention is on disk there is no way back: a crash
    /// or a failure leaves a node that goes on with it at its next start, or when it is asked again.
    pub(super) async fn force_new_cluster(&self, request: &Init) -> Result<String, Failure> {
        let member = self.member();
        let (old, identity) = self.forcible(member.as_deref())?;
        if let Some(manager) = member.as_ref().and_then(|m| m.manager())
            && manager.raft().members().len() > 1
        {
            require_no_leader(&manager).await?;
        }
        let given = &request.addresses;
        let machine = addresses::interfaces().map_err(internal)?;
        let addresses = addresses::change(&old.addresses, &given.listen, &given.advertise, &given.data_path, &machine)
            .map_err(|e| Failure::Invalid(e.to_string()))?;
        // What this node's manager itself listens on is free once that has stopped.
        let listener = match &member {
            Some(member) if member.membership().addresses.listen == addresses.listen => None,
            _ => Some(member::listen(addresses.listen).await.map_err(internal)?),
        };
        let node_id = identity.current().subject.node_id.clone();
        let membership = old.forced(addresses, membership::new_raft_id());
        if let Some(member) = member {
            // Its keepers write the same file.
            *self.member.write().unwrap_or_else(PoisonError::into_inner) = None;
            member.shutdown().await;
        }
        let entered = match membership::save(&self.config.data_dir, &membership) {
            Ok(()) => self.enter_forced(identity, membership, listener).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = &entered {
            let why = format!("a new cluster could not be forced: {error:#}; ask for it again, or restart the daemon");
            *self.broken.write().unwrap_or_else(PoisonError::into_inner) = Some(why);
        }
        entered.map(|()| node_id).map_err(internal)
    }

    /// What this node remembers of its swarm and who it is, if it is a manager of one, as far as anybody told it.
    fn forcible(&self, member: Option<&Member>) -> Result<(Membership, Holder), Failure> {
        let data_dir = &self.config.data_dir;
        let old = membership::load(data_dir).map_err(internal)?.ok_or_else(|| {
            Failure::Unavailable(
                "This node is not part of a swarm, so there is nothing to make a new cluster of. Leave \
                 --force-new-cluster out to found a swarm."
                    .to_owned(),
            )
        })?;
        let identity = match member {
            Some(member) => member.identity(),
            None => {
                let loaded = Identity::load(&self.identity_dir(), &Clock::default()).map_err(internal)?;
                self.holder(loaded.ok_or_else(|| internal(anyhow::anyhow!("this node's certificate is gone")))?)
            }
        };
        if let Some(removal) =
            self.removed.borrow().as_ref().filter(|r| r.node_id == identity.current().subject.node_id)
        {
            return Err(Failure::Unavailable(removal.to_string()));
        }
        // A manager of long standing, not one that was never taken into the group.
        let is_manager = match member {
            Some(member) => member.manager().is_some_and(|m| !m.raft().members().is_empty()),
            None => identity.current().is_manager() && data_dir.join("raft").exists(),
        };
        if !is_manager {
            return Err(Failure::Unavailable(
                "This node is not a swarm manager. Only a manager has the state that a new cluster can be made of; run \
                 this command on a manager node."
                    .to_owned(),
            ));
        }
        Ok((old, identity))
    }

    /// Goes on alone; once that is done, the next start is one like any other.
    pub(super) async fn enter_forced(
        &self,
        identity: Holder,
        membership: Membership,
        listener: Option<tokio::net::TcpListener>,
    ) -> Result<()> {
        self.enter(identity, membership, listener, Beginning::Force).await?;
        if let Some(member) = self.member() {
            member.forced()?;
        }
        tracing::warn!("a new cluster was forced: this manager is its only one");
        Ok(())
    }
}

/// Refuses while the group is well, or does not want this node: its other managers would be left behind, with a cluster
/// of their own. One that has just lost its quorum takes a moment to notice.
async fn require_no_leader(manager: &skep_manager::Manager) -> Result<(), Failure> {
    let mut leadership = manager.raft().leadership();
    match tokio::time::timeout(LEADER_LOST_WITHIN, leadership.wait_for(|l| l.leader.is_none())).await {
        Ok(_) => manager.raft().removal().map_or(Ok(()), |error| Err(Failure::Unavailable(error.to_string()))),
        Err(_) => Err(Failure::Unavailable(
            "The swarm has a leader and a quorum of its managers: there is nothing to force. Demote or remove the managers \
             that you want to be rid of."
                .to_owned(),
        )),
    }
}
