//! Changing and reading the replicated state: proposals, read barriers, and the wait for a leader that both need.

use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use skep_proto::v1;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::error::{Error, Result};
use super::network::Lane;
use super::types::{Blob, TypeConfig};
use super::{Committed, Inner, Leader};

/// Pause before asking again whether a quorum is back.
pub(crate) const RETRY: Duration = Duration::from_millis(20);

/// The time a call may take.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    start: Instant,
    pub(crate) end: Instant,
}

impl Limit {
    pub(crate) fn new(within: Duration) -> Self {
        let start = Instant::now();
        Self { start, end: start + within }
    }

    pub(crate) fn waited(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn over(&self) -> bool {
        Instant::now() >= self.end
    }

    pub(crate) fn timeout(&self, what: impl Into<String>) -> Error {
        Error::Timeout { waited: self.waited(), what: what.into() }
    }
}

impl Inner {
    pub(crate) async fn propose(&self, command: Vec<u8>, within: Duration) -> Result<Committed> {
        if command.len() > self.config.max_command {
            return Err(Error::TooLarge { size: command.len(), limit: self.config.max_command });
        }
        let limit = Limit::new(within);
        self.wait_for_leader(&limit).await?;
        let _room = self.room(command.len(), &limit).await?;
        let command = Blob(command.into());
        loop {
            let Some(written) = self.in_time(&limit, self.core.client_write(command.clone())).await else {
                let why = match self.quorum() {
                    Err(e) => e.to_string(),
                    Ok(()) if self.leadership.borrow().leader.is_none() => "the leader was lost".into(),
                    Ok(()) => "the managers were too slow".into(),
                };
                return Err(Error::OutcomeUnknown { waited: limit.waited(), why });
            };
            match written {
                Ok(response) => {
                    return Ok(Committed { index: response.log_id.index, reply: response.data.0.into() });
                }
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                    // Refused before it entered the log, so asking again is safe.
                    self.retry_or_forward(forward, &limit).await?;
                }
                Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
                    let why = "another manager took over in the meantime".into();
                    return Err(Error::OutcomeUnknown { waited: limit.waited(), why });
                }
                Err(RaftError::APIError(other)) => return Err(Error::Membership { reason: other.to_string() }),
                Err(RaftError::Fatal(fatal)) => return Err(fatal.into()),
            }
        }
    }

    /// Waits until this node has applied all that was acknowledged anywhere before the call.
    pub(crate) async fn read_barrier(&self, within: Duration) -> Result<u64> {
        let limit = Limit::new(within);
        loop {
            let leader = self.wait_for_any_leader(&limit).await?;
            let index = if leader.id == self.config.node {
                self.read_index_here(&limit).await?
            } else {
                self.read_index_there(&leader, &limit).await
            };
            if let Some(index) = index {
                return self.applied(index, &limit).await;
            }
            if limit.over() {
                self.quorum()?;
                return Err(limit.timeout("waiting for the leader to confirm that it leads"));
            }
            tokio::time::sleep_until((Instant::now() + RETRY).min(limit.end)).await;
        }
    }

    async fn read_index_here(&self, limit: &Limit) -> Result<Option<u64>> {
        match self.in_time(limit, self.core.get_read_linearizer(ReadPolicy::ReadIndex)).await {
            Some(Ok(linearizer)) => Ok(Some(linearizer.read_log_id().index())),
            Some(Err(RaftError::APIError(
                LinearizableReadError::ForwardToLeader(_) | LinearizableReadError::QuorumNotEnough(_),
            )))
            | None => Ok(None),
            Some(Err(RaftError::Fatal(fatal))) => Err(fatal.into()),
        }
    }

    async fn read_index_there(&self, leader: &Leader, limit: &Limit) -> Option<u64> {
        let (mut client, health) = self.pool.client(&leader.address, Lane::Control).ok()?;
        // A leader that is gone must not use up the whole deadline: its successor is known soon.
        let end = limit.end.min(Instant::now() + self.config.fresh());
        let request = v1::RaftReadIndexRequest { to: leader.id, from: self.config.node };
        let response = timeout_at(end, client.read_index(request)).await.ok()?.ok()?;
        health.success();
        response.into_inner().id.map(|id| id.index)
    }

    async fn applied(&self, index: u64, limit: &Limit) -> Result<u64> {
        let left = limit.end.saturating_duration_since(Instant::now());
        let wait = self.core.wait(Some(left)).applied_index_at_least(Some(index), "read barrier").await;
        match wait {
            Ok(metrics) => Ok(metrics.last_applied.map_or(index, |id| id.index)),
            Err(_) => {
                self.running()?;
                Err(limit.timeout(format!("waiting for entry {index} to be applied here")))
            }
        }
    }

    /// Admits a command once there is room for it among those in flight.
    async fn room(&self, bytes: usize, limit: &Limit) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>)> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let both = async { tokio::try_join!(self.in_flight.acquire(), self.in_flight_bytes.acquire_many(bytes)) };
        match timeout_at(limit.end, both).await {
            Ok(Ok(permits)) => Ok(permits),
            Ok(Err(_)) => Err(Error::Stopped { reason: "it was shut down".into() }),
            Err(_) => Err(limit.timeout("waiting behind too many other changes")),
        }
    }

    /// Returns once this node leads with a quorum behind it.
    ///
    /// # Errors
    /// `NotLeader` as soon as another leader is known, `NoQuorum` or `NotLeader` at the deadline.
    pub(crate) async fn wait_for_leader(&self, limit: &Limit) -> Result<()> {
        let leader = self.wait_for_any_leader(limit).await?;
        if leader.id == self.config.node {
            return Ok(());
        }
        Err(Error::NotLeader { leader: Some(leader) })
    }

    /// Returns the leader, this node or another one.
    pub(crate) async fn wait_for_any_leader(&self, limit: &Limit) -> Result<Leader> {
        let mut leadership = self.leadership.subscribe();
        let known = self.in_time(limit, leadership.wait_for(|now| now.leader.is_some())).await;
        if let Some(Ok(now)) = &known
            && let Some(leader) = &now.leader
        {
            return Ok(leader.clone());
        }
        drop(known);
        self.running()?;
        self.quorum()?;
        Err(Error::NotLeader { leader: None })
    }

    /// Awaits something that needs a leader: until the deadline, and not for longer than [`super::Config::leaderless`]
    /// without one.
    async fn in_time<T>(&self, limit: &Limit, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.leaderless() => None,
            () = tokio::time::sleep_until(limit.end) => None,
        }
    }

    /// What to do about a proposal that was refused before it entered the log: pause if it may be accepted here later.
    ///
    /// # Errors
    /// `NotLeader` if another one leads or the deadline is over, `NoQuorum`.
    pub(crate) async fn retry_or_forward(&self, forward: ForwardToLeader<TypeConfig>, limit: &Limit) -> Result<()> {
        if let (Some(id), Some(node)) = (forward.leader_id, forward.leader_node)
            && id != self.config.node
        {
            return Err(Error::NotLeader { leader: Some(Leader { id, address: node.addr }) });
        }
        if limit.over() {
            self.quorum()?;
            return Err(Error::NotLeader { leader: None });
        }
        tokio::time::sleep_until((Instant::now() + RETRY).min(limit.end)).await;
        Ok(())
    }
}
