//! The order of task states and the questions that everybody asks about them.

use crate::v1::{Task, TaskState};

impl TaskState {
    /// Past this state nothing of the task runs any more.
    pub fn is_terminal(self) -> bool {
        self >= TaskState::Complete
    }

    /// The word that the Engine API and the tables use.
    pub fn word(self) -> &'static str {
        match self {
            TaskState::New => "new",
            TaskState::Pending => "pending",
            TaskState::Assigned => "assigned",
            TaskState::Accepted => "accepted",
            TaskState::Preparing => "preparing",
            TaskState::Ready => "ready",
            TaskState::Starting => "starting",
            TaskState::Running => "running",
            TaskState::Complete => "complete",
            TaskState::Shutdown => "shutdown",
            TaskState::Failed => "failed",
            TaskState::Rejected => "rejected",
            TaskState::Remove => "remove",
            TaskState::Orphaned => "orphaned",
        }
    }
}

impl Task {
    /// The state that the worker last reported, or that the manager set before there was a worker.
    pub fn observed(&self) -> TaskState {
        self.status.as_ref().map_or(TaskState::New, crate::v1::TaskStatus::state)
    }

    /// Wanted in service: neither asked to stop nor taken out of the balancers.
    pub fn in_service(&self) -> bool {
        self.desired_state() <= TaskState::Running && self.drain_version == 0
    }

    /// May receive new connections.
    pub fn is_ready(&self) -> bool {
        self.in_service() && self.observed() == TaskState::Running
    }
}
