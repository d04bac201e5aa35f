//! Watches the engine and tells everyone else who leads.
//!
//! The library keeps a leader in office that has lost its quorum, refusing its writes; we call it no leader any more
//! (check-quorum), so that whoever acts on leadership stops. The same loop asks for a snapshot when the log has grown
//! by bytes rather than by entries.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::supersede::{Led, Verdict};
use super::types::Metrics;
use super::{Inner, Leader, Leadership};
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;

/// Pause between two looks while nobody leads: whoever waits for a leader waits for this.
const UNSETTLED: Duration = Duration::from_millis(5);

impl Inner {
    /// Runs until the engine ends; owned by [`super::Raft`], which aborts it on shutdown.
    pub(crate) async fn monitor(self: Arc<Self>) {
        // Changes with the server's role, not with every entry as the full metrics do.
        let mut role = self.core.server_metrics();
        let mut appended = 0;
        let mut led = Led::default();
        loop {
            let unsettled = self.leadership.borrow().leader.is_none();
            let pause = if unsettled { UNSETTLED } else { self.config.heartbeat };
            tokio::select! {
                changed = role.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(pause) => {}
            }
            let now = self.metrics();
            let leadership = leadership_of(&now, self.config.node, self.config.fresh(), self.heard.ago());
            led.note(Instant::now(), &leadership);
            let outlived = self.pool.heard_superseded() && self.judge_superseded(&mut led, &leadership);
            self.leadership.send_if_modified(|old| {
                let modified = *old != leadership;
                if modified {
                    self.leaderless.note(old, &leadership);
                    tracing::info!(
                        node.id = self.config.node,
                        term = leadership.term,
                        leader.id = leadership.leader.as_ref().map(|leader| leader.id),
                        is_self = leadership.is_self,
                        "leadership"
                    );
                    *old = leadership;
                }
                modified
            });
            if outlived {
                if let Err(error) = self.core.shutdown().await {
                    tracing::error!(error = %error, "raft engine did not end in order");
                }
                break;
            }
            if let Err(fatal) = &now.running_state {
                tracing::error!(node.id = self.config.node, error = %fatal, "raft engine stopped");
                break;
            }
            appended += self.log.take_appended();
            if appended >= self.config.snapshot_bytes {
                appended = 0;
                if self.core.trigger().snapshot().await.is_err() {
                    break;
                }
            }
        }
        self.nobody_leads();
    }

    /// Another manager says that it has gone on without this one: whether this one ends its part for that.
    fn judge_superseded(&self, led: &mut Led, leadership: &Leadership) -> bool {
        match led.verdict(Instant::now(), leadership) {
            Verdict::Wait => false,
            Verdict::End => {
                tracing::error!(
                    node.id = self.config.node,
                    "another manager has gone on without this one (a new cluster was forced); this manager ends its part"
                );
                self.pool.settle_superseded(true);
                true
            }
            Verdict::GoOn => {
                tracing::error!(
                    node.id = self.config.node,
                    "a new cluster was forced on a manager of this group, which is well and goes on: there are two \
                     clusters now; have that node leave with --force, and remove it here"
                );
                self.pool.settle_superseded(false);
                false
            }
        }
    }

    pub(crate) fn nobody_leads(&self) {
        self.leadership.send_modify(|now| {
            let next = Leadership { leader: None, is_self: false, ..*now };
            self.leaderless.note(now, &next);
            *now = next;
        });
    }

    /// Returns once no leader has been known for [`super::Config::leaderless`]; at once if that is so already.
    pub(crate) async fn leaderless(&self) {
        let mut leadership = self.leadership.subscribe();
        loop {
            if leadership.wait_for(|now| now.leader.is_none()).await.is_err() {
                return;
            }
            let left = self.config.leaderless.saturating_sub(self.leaderless.since().elapsed());
            if tokio::time::timeout(left, leadership.wait_for(|now| now.leader.is_some())).await.is_err() {
                return;
            }
        }
    }

    /// The engine's metrics as of now.
    pub(crate) fn metrics(&self) -> Metrics {
        self.core.metrics().borrow_watched().clone()
    }

    /// An error once the engine has ended.
    pub(crate) fn running(&self) -> Result<()> {
        if self.pool.superseded() {
            return Err(Error::Superseded { id: self.config.node });
        }
        match self.metrics().running_state {
            Ok(()) => Ok(()),
            Err(fatal) => Err(fatal.into()),
        }
    }

    /// `NoQuorum` if this node leads, or led, and too few others answer it.
    pub(crate) fn quorum(&self) -> Result<()> {
        let metrics = self.metrics();
        if !metrics.state.is_leader() {
            return Ok(());
        }
        let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
        let reachable = voters.iter().filter(|id| self.reachable(&metrics, **id)).count();
        let needed = voters.len() / 2 + 1;
        if reachable >= needed {
            return Ok(());
        }
        Err(Error::NoQuorum { reachable, needed, voters: voters.len() })
    }

    /// Age of a member's last acknowledgement, where this node leads and knows one.
    pub(crate) fn ack_age(&self, metrics: &Metrics, id: u64) -> Option<Duration> {
        if id == self.config.node {
            return Some(Duration::ZERO);
        }
        let acked = metrics.heartbeat.as_ref()?.get(&id)?.as_ref()?;
        Some(acked.elapsed())
    }

    pub(crate) fn reachable(&self, metrics: &Metrics, id: u64) -> bool {
        self.ack_age(metrics, id).is_some_and(|age| age <= self.config.fresh())
    }
}

/// When the leader's last sign of life came. The library remembers who was voted for, not whether it lives.
pub(crate) struct Heard {
    start: Instant,
    /// Milliseconds after `start`, plus one; 0: never.
    last: AtomicU64,
}

impl Default for Heard {
    fn default() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Heard {
    fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A leader's request was accepted.
    pub(crate) fn now(&self) {
        self.last.store(self.millis().saturating_add(1), Ordering::Relaxed);
    }

    fn ago(&self) -> Option<Duration> {
        let last = self.last.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.millis().saturating_sub(last)))
    }
}

/// Since when nobody leads, as far as this node knows.
pub(crate) struct Leaderless(Mutex<Instant>);

impl Default for Leaderless {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Leaderless {
    /// The moment at which the last leader was lost; without meaning while there is one.
    fn since(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, before: &Leadership, now: &Leadership) {
        if before.leader.is_some() && now.leader.is_none() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }
}

fn leadership_of(metrics: &Metrics, me: u64, fresh: Duration, heard: Option<Duration>) -> Leadership {
    let membership = metrics.membership_config.membership();
    let is_self = metrics.state.is_leader() && {
        let alone = membership.voter_ids().all(|id| id == me);
        alone || metrics.last_quorum_acked.as_ref().is_some_and(|acked| acked.elapsed() <= fresh)
    };
    let known = |id: &u64| if *id == me { is_self } else { heard.is_some_and(|ago| ago <= fresh) };
    let leader = metrics.current_leader.filter(known).and_then(|id| {
        let node = membership.get_node(&id)?;
        Some(Leader { id, address: node.addr.clone() })
    });
    let is_self = is_self && leader.is_some();
    Leadership { term: metrics.current_term, leader, is_self }
}
