//! Who the managers are: adding, removing, handing over leadership.
//!
//! One change at a time. A new member first receives the log as a learner and gets a vote once it has caught up, so that
//! it never counts towards a quorum it cannot help. A member is removed only if those that remain can decide.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use skep_proto::v1;
use tokio::time::timeout_at;

use super::error::{Error, Result};
use super::network::Lane;
use super::propose::{Limit, RETRY};
use super::types::{Metrics, Node};
use super::{Inner, Leader, Member};

/// How long a manager that is to be added may take to answer.
const PROBE_WITHIN: Duration = Duration::from_secs(3);
/// Entries that a learner may lack when it gets its vote.
const CLOSE: u64 = 128;

impl Inner {
    pub(crate) async fn add_member(&self, id: u64, address: &str, within: Duration) -> Result<()> {
        let limit = Limit::new(within);
        self.wait_for_leader(&limit).await?;
        let _one = self.one_change(&limit).await?;
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        if let Some((owner, _)) = membership.nodes().find(|(other, node)| **other != id && node.addr == address) {
            return Err(Error::AddressTaken { address: address.into(), id: *owner });
        }
        let node = Node { addr: address.into() };
        let known = membership.get_node(&id);
        if known.is_some_and(|known| *known != node) {
            let moved = ChangeMembers::SetNodes(BTreeMap::from([(id, node.clone())]));
            self.change(moved, true, &limit).await?;
        }
        if membership.voter_ids().any(|voter| voter == id) {
            return Ok(());
        }
        if known.is_none() {
            self.probe(id, address, &limit).await?;
            self.change(ChangeMembers::AddNodes(BTreeMap::from([(id, node)])), true, &limit).await?;
        }
        if !self.caught_up(id, &limit).await? {
            // Its place must not stay half taken; this gets time of its own, as the deadline is over.
            let removed = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
            self.change(removed, true, &Limit::new(self.config.fresh() * 4)).await?;
            return Err(Error::NotCaughtUp { id, address: address.into(), waited: limit.waited() });
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true, &limit).await
    }

    /// Asks a manager, at the address that it is to have, whether it is there: who can't be reached would cost a long
    /// wait and be taken out again.
    async fn probe(&self, id: u64, address: &str, limit: &Limit) -> Result<()> {
        let begun = tokio::time::Instant::now();
        let end = limit.end.min(begun + PROBE_WITHIN);
        let mut last = None;
        loop {
            let answer = match self.pool.client(address, Lane::Control) {
                Ok((mut client, _)) => {
                    timeout_at(end, client.probe(v1::RaftProbeRequest { to: id, from: self.config.node })).await
                }
                Err(e) => Ok(Err(tonic::Status::unavailable(e.to_string()))),
            };
            let (why, again) = match answer {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) => (innermost(&status), status.code() == tonic::Code::Unavailable),
                // A try that was cut off says less than the one before it.
                Err(_) => (last.unwrap_or_else(|| format!("nothing came back within {:?}", end - begun)), false),
            };
            if !again || tokio::time::Instant::now() + RETRY >= end {
                return Err(Error::NotReached { id, address: address.into(), why });
            }
            last = Some(why);
            tokio::time::sleep(RETRY).await;
        }
    }

    pub(crate) async fn remove_member(&self, id: u64, within: Duration) -> Result<()> {
        let limit = Limit::new(within);
        self.wait_for_leader(&limit).await?;
        if id != self.config.node {
            return self.remove_other(id, within).await;
        }
        self.may_remove(id).await?;
        let leader = self.hand_over(None, &limit).await?;
        let (mut client, _) = self.pool.client(&leader.address, Lane::Control).map_err(|e| Error::Membership {
            reason: format!("the new leader at {} is not reachable: {e}", leader.address),
        })?;
        let request = v1::RaftRemoveMemberRequest { to: leader.id, id, from: self.config.node };
        match timeout_at(limit.end, client.remove_member(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(Error::Membership {
                reason: format!("leadership went to manager {:x}, which refused: {}", leader.id, status.message()),
            }),
            Err(_) => Err(self.unknown(&limit)),
        }
    }

    /// Removes a member that is not this node.
    pub(crate) async fn remove_other(&self, id: u64, within: Duration) -> Result<()> {
        let limit = Limit::new(within);
        self.wait_for_leader(&limit).await?;
        let _one = self.one_change(&limit).await?;
        if id == self.config.node {
            return Err(Error::Membership { reason: format!("manager {id:x} leads again; try again") });
        }
        let voter = self.may_remove(id).await?;
        let ids = BTreeSet::from([id]);
        let change = if voter { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
        // `retain: false` takes it out altogether instead of leaving it a learner.
        self.change(change, false, &limit).await
    }

    /// Whether the member has a vote, if it may go at all.
    async fn may_remove(&self, id: u64) -> Result<bool> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        if membership.get_node(&id).is_none() {
            return Err(Error::UnknownMember { id });
        }
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        if !voters.contains(&id) {
            return Ok(false);
        }
        self.enough_without(id, &BTreeSet::new()).await.map(|()| true)
    }

    /// Whether those could decide that remain after a member and `others`, which are on their way out already. Known to
    /// the leader only. Who answers but can't write, because its disk hangs, does not count: it has to have what is
    /// committed by now, or get it soon.
    pub(crate) async fn enough_without(&self, id: u64, others: &BTreeSet<u64>) -> Result<()> {
        let metrics = self.metrics();
        let leaving = |voter: &u64| *voter == id || others.contains(voter);
        let rest: Vec<u64> = metrics.membership_config.voter_ids().filter(|voter| !leaving(voter)).collect();
        if rest.is_empty() {
            return Err(Error::LastMember { id });
        }
        let needed = rest.len() / 2 + 1;
        let committed = metrics.cluster_committed.map(|id| id.index);
        let able = |metrics: &Metrics| {
            let matched = |voter: &u64| metrics.replication.as_ref().and_then(|all| all.get(voter).copied().flatten());
            let writes = |voter: &u64| *voter == self.config.node || matched(voter).map(|id| id.index) >= committed;
            rest.iter().filter(|voter| self.reachable(metrics, **voter) && writes(voter)).count()
        };
        let enough = self.core.wait(Some(self.config.fresh())).metrics(|now| able(now) >= needed, "a quorum").await;
        let reachable = enough.map_or_else(|_| able(&self.metrics()), |now| able(&now));
        if reachable < needed {
            return Err(Error::WouldLoseQuorum { id, reachable, needed });
        }
        Ok(())
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        let metrics = self.metrics();
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let leader = self.leadership.borrow().leader.as_ref().map(|leader| leader.id);
        let leads = leader == Some(self.config.node);
        metrics
            .membership_config
            .nodes()
            .map(|(id, node)| Member {
                id: *id,
                address: node.addr.clone(),
                voter: voters.contains(id),
                leader: leader == Some(*id),
                last_ack: if leads || *id == self.config.node { self.ack_age(&metrics, *id) } else { None },
                reachable: (leads || *id == self.config.node).then(|| self.reachable(&metrics, *id)),
            })
            .collect()
    }

    /// Makes another voter the leader: `to`, or the one that is closest behind.
    pub(crate) async fn hand_over(&self, to: Option<u64>, limit: &Limit) -> Result<Leader> {
        self.wait_for_leader(limit).await?;
        let metrics = self.metrics();
        let to = self.successor(&metrics, to)?;
        timeout_at(limit.end, self.core.trigger().transfer_leader(to))
            .await
            .map_err(|_| limit.timeout("handing over leadership"))??;
        let mut leadership = self.leadership.subscribe();
        let me = self.config.node;
        let other = leadership.wait_for(|now| now.leader.as_ref().is_some_and(|leader| leader.id != me));
        let found = timeout_at(limit.end, other).await;
        if let Ok(Ok(now)) = &found
            && let Some(leader) = &now.leader
        {
            return Ok(leader.clone());
        }
        self.running()?;
        Err(Error::Transfer { reason: format!("manager {to:x} did not take over within {:?}", limit.waited()) })
    }

    fn successor(&self, metrics: &Metrics, to: Option<u64>) -> Result<u64> {
        let matched = |id: &u64| metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
        let able: Vec<u64> = metrics
            .membership_config
            .voter_ids()
            .filter(|id| *id != self.config.node && self.reachable(metrics, *id))
            .collect();
        match to {
            Some(to) if able.contains(&to) => Ok(to),
            Some(to) => Err(Error::Transfer { reason: format!("manager {to:x} is no reachable manager with a vote") }),
            None => able
                .into_iter()
                .max_by_key(matched)
                .ok_or_else(|| Error::Transfer { reason: "no other manager is reachable".into() }),
        }
    }

    async fn caught_up(&self, id: u64, limit: &Limit) -> Result<bool> {
        let close = |metrics: &Metrics| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
            let last = metrics.last_log_index.unwrap_or(0);
            matched.is_some_and(|matched| matched.index + CLOSE >= last)
        };
        let left = limit.end.saturating_duration_since(tokio::time::Instant::now());
        let wait = self.core.wait(Some(left)).metrics(|now| close(now) || !now.state.is_leader(), "catching up").await;
        match wait {
            Ok(metrics) if metrics.state.is_leader() => Ok(true),
            Ok(_) => Err(Error::NotLeader { leader: self.leadership.borrow().leader.clone() }),
            Err(_) => self.running().map(|()| false),
        }
    }

    /// Commits a change; waits for one that an earlier leader left under way, or for this leader's first entry.
    async fn change(&self, change: ChangeMembers<u64, Node>, retain: bool, limit: &Limit) -> Result<()> {
        loop {
            let changed = timeout_at(limit.end, self.core.change_membership(change.clone(), retain)).await;
            match changed.map_err(|_| self.unknown(limit))? {
                Ok(_) => return Ok(()),
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
                ))) if !limit.over() => tokio::time::sleep(RETRY).await,
                // Refused before it entered the log (a lapsed lease, a transfer): asking again is safe.
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                    self.retry_or_forward(forward, limit).await?;
                }
                Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => return Err(self.unknown(limit)),
                Err(RaftError::APIError(other)) => return Err(Error::Membership { reason: other.to_string() }),
                Err(RaftError::Fatal(fatal)) => return Err(fatal.into()),
            }
        }
    }

    async fn one_change(&self, limit: &Limit) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        timeout_at(limit.end, self.changes.lock())
            .await
            .map_err(|_| limit.timeout("waiting for another membership change"))
    }

    fn unknown(&self, limit: &Limit) -> Error {
        let why = match self.quorum() {
            Err(e) => e.to_string(),
            Ok(()) => "the membership change is under way".into(),
        };
        Error::OutcomeUnknown { waited: limit.waited(), why }
    }
}

/// What lies behind a failed call.
fn innermost(status: &tonic::Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if std::ptr::addr_eq(cause, status) { status.message().to_owned() } else { cause.to_string() }
}
