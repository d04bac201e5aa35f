//! The leader's ear: takes what all managers' sessions heard. Heartbeats go to its memory, statuses and registrations
//! into the log, and only if they are news.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skep_proto::v1::{Action, NodeBeat, NodeChange, RelayRequest, TaskChange, TaskStatusReport, action};
use skep_state::State;
use tonic::Status;

use crate::control::now_ns;
use crate::liveness::Liveness;
use crate::raft::Raft;
use crate::store::{self, Store};

/// How long one batch may take to be committed.
const DEADLINE: Duration = Duration::from_secs(2);

/// What the intake writes to.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) raft: Arc<Raft>,
    pub(crate) store: Arc<Store>,
    pub(crate) liveness: Arc<Liveness>,
    /// The term in which this leader is known to have caught up.
    pub(crate) caught_up: AtomicU64,
}

impl Intake {
    /// Takes one batch. Fails when this manager does not lead or has lost its quorum: the sender tries again.
    pub(crate) async fn take(&self, now: Instant, request: RelayRequest) -> Result<(), Status> {
        if !self.raft.leadership().borrow().is_self {
            return Err(Status::unavailable("this manager does not lead"));
        }
        // At once: whoever is heard of lives, however long the rest takes.
        self.liveness.note(now, &signs_of_life(&request.beats));
        let only_signs = request.beats.iter().all(|b| b.applied_generation == 0);
        if only_signs && request.reports.is_empty() && request.registrations.is_empty() {
            return Ok(());
        }
        // A new leader that has not applied all that its predecessors committed would take a report of a new task for
        // one of an unknown task, and lose it.
        let term = self.raft.leadership().borrow().term;
        if self.caught_up.load(Ordering::Acquire) != term {
            self.raft.read_barrier(DEADLINE).await.map_err(crate::control::raft_error)?;
            self.caught_up.store(term, Ordering::Release);
        }
        let registered: Vec<String> = request.registrations.iter().map(|node| node.id.clone()).collect();
        let actions = news(&self.store.view().state, request.reports, request.registrations);
        if !actions.is_empty() {
            store::propose_plan(&self.raft, now_ns(), actions, DEADLINE).await.map_err(crate::control::store_error)?;
        }
        self.liveness.registered(registered.iter().map(String::as_str));
        // After the statuses: an acknowledgement must not overtake what was reported before it.
        self.liveness.note(now, &request.beats);
        Ok(())
    }
}

/// The heartbeats without what they acknowledge.
fn signs_of_life(beats: &[NodeBeat]) -> Vec<NodeBeat> {
    let heard = beats.iter().filter(|beat| beat.heard || beat.left);
    heard.map(|beat| NodeBeat { applied_generation: 0, ..beat.clone() }).collect()
}

/// The reports that would change something.
fn news(state: &State, reports: Vec<TaskStatusReport>, registrations: Vec<NodeChange>) -> Vec<Action> {
    let statuses = reports.into_iter().filter_map(|report| {
        let task = state.task(&report.task_id)?;
        let (old, new) = (task.status.as_ref()?, report.status.as_ref()?);
        let same = old.state == new.state
            && old.message == new.message
            && old.error == new.error
            && old.container == new.container;
        (!same && !task.observed().is_terminal() && new.state >= old.state).then(|| {
            action::Kind::Task(TaskChange {
                id: report.task_id,
                status: report.status,
                reporter_node_id: report.node_id,
                ..TaskChange::default()
            })
        })
    });
    let registrations = registrations.into_iter().filter(|change| {
        state.node(&change.id).is_some_and(|node| {
            node.description != change.description
                || node.status != change.status
                || Some(node.certificate_role) != change.certificate_role
        })
    });
    statuses.chain(registrations.map(action::Kind::Node)).map(|kind| Action { kind: Some(kind) }).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use skep_proto::v1::{Node, NodeDescription, object};

    use super::*;
    use crate::action::put;
    use crate::testing::alone;

    #[tokio::test]
    async fn a_node_whose_report_can_not_be_written_lives_all_the_same() {
        let node = Node { id: "n".into(), ..Node::default() };
        let (_dir, manager) = alone(vec![put(object::Kind::Node(node))]).await;
        let beat = |applied_generation| NodeBeat { node_id: "n".into(), applied_generation, heard: true, left: false };
        // No log takes an entry of that size.
        let huge = NodeDescription { hostname: "x".repeat(64 << 20), ..NodeDescription::default() };
        let change = NodeChange { id: "n".into(), description: Some(huge), ..NodeChange::default() };
        let request = RelayRequest { beats: vec![beat(7)], registrations: vec![change], ..RelayRequest::default() };
        let now = Instant::now() + Duration::from_secs(60);
        manager.intake.take(now, request).await.unwrap_err();
        let liveness = &manager.control.liveness;
        let silence = |at| liveness.silence(at, ["n"].into_iter())["n"];
        assert_eq!(silence(now + Duration::from_secs(1)), Duration::from_secs(1), "it was heard of");
        assert_eq!(liveness.acknowledged()["n"], 0, "what it reported before that was not written");
        let request = RelayRequest { beats: vec![beat(7)], ..RelayRequest::default() };
        manager.intake.take(now - Duration::from_secs(1), request).await.unwrap();
        assert_eq!(liveness.acknowledged()["n"], 7);
        assert_eq!(silence(now), Duration::ZERO, "an older word does not take back a newer one");
        manager.shutdown().await;
    }
}
