//! The leader's ear: takes what all managers' sessions heard. Heartbeats go to its memory, statuses and registrations
//! into the log, and only if they are news.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skep_proto::v1::{Action, NodeChange, RelayRequest, TaskChange, TaskStatusReport, action};
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
        // A new leader that has not applied all that its predecessors committed would take a report of a new task for
        // one of an unknown task, and lose it.
        let term = self.raft.leadership().borrow().term;
        if self.caught_up.load(Ordering::Acquire) != term {
            self.raft.read_barrier(DEADLINE).await.map_err(crate::control::raft_error)?;
            self.caught_up.store(term, Ordering::Release);
        }
        let actions = news(&self.store.view().state, request.reports, request.registrations);
        if !actions.is_empty() {
            store::propose_plan(&self.raft, now_ns(), actions, DEADLINE).await.map_err(crate::control::store_error)?;
        }
        // After the statuses: an acknowledgement must not overtake what was reported before it.
        self.liveness.note(now, &request.beats);
        Ok(())
    }
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
