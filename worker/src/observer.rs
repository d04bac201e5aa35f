//! What happens to this node's containers, told to whoever keeps the node's memory of events.
//!
//! The supervisors report each step once it is done; nothing is decided here, and nothing waits for the observer.

use std::sync::Arc;

use skep_proto::v1::TaskAssignment;
use skep_task::Exit;

/// Hears of every container of this node. Called on the way of a task's life: it must return at once.
pub trait Observer: Send + Sync + 'static {
    /// Something happened to a container.
    fn saw(&self, event: ContainerEvent);
}

/// One thing that happened to a task's container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerEvent {
    /// Unix nanoseconds.
    pub at_ns: i64,
    /// Id of the container.
    pub container_id: String,
    /// The task; empty for what an earlier daemon left and nobody assigns any more.
    pub task: Arc<TaskAssignment>,
    /// What happened.
    pub action: ContainerAction,
}

/// What can happen to a container, in the words of the Engine API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerAction {
    /// It was made.
    Create,
    /// Its process runs.
    Start,
    /// Its process is told to end by this signal.
    Kill {
        /// Number of the signal.
        signal: i32,
    },
    /// The kernel killed its process, or a child of it, for want of memory.
    Oom,
    /// Its process has ended.
    Die {
        /// Exit code; 128 + signal when a signal ended it.
        exit_code: i32,
    },
    /// It was stopped as asked.
    Stop,
    /// It is gone.
    Destroy,
}

/// What the end of a process is told as, in this order.
pub(crate) fn ending(exit: &Exit) -> impl Iterator<Item = ContainerAction> {
    let oom = exit.oom_killed.then_some(ContainerAction::Oom);
    oom.into_iter().chain([ContainerAction::Die { exit_code: exit.code }])
}
