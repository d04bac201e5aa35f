//! The life cycle of a task on its node, as a pure function: from what the managers want and what is known to be done,
//! to the state that is reported and the one thing to do next.
//!
//! Decides the order of effects and the state of the task; never touches a container, a network or a clock. The
//! worker's supervisor calls [`next`], carries out the [`Command`], notes its outcome in [`Facts`], and calls again. A
//! daemon that restarts rebuilds the facts from what it finds and goes on from there: there is no second path.
#![forbid(unsafe_code)]

use skep_proto::v1::TaskState;

/// What the managers want of a task on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Desired {
    /// Made ready, but not started yet.
    Ready,
    /// Running.
    Running,
    /// Stopped; its logs stay.
    Stopped,
    /// Gone without a trace.
    Gone,
}

impl Desired {
    /// From the state that an assignment names; a task that is assigned no more is [`Desired::Gone`].
    pub fn from_state(state: TaskState) -> Self {
        match state {
            state if state < TaskState::Starting => Desired::Ready,
            TaskState::Starting | TaskState::Running => Desired::Running,
            TaskState::Remove => Desired::Gone,
            _ => Desired::Stopped,
        }
    }
}

/// How a container's main process ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exit {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The kernel killed it, or a child of it, for want of memory.
    pub oom_killed: bool,
    /// Why, when it did not simply end.
    pub error: Option<String>,
    /// When, in Unix nanoseconds; 0 when that is not known.
    pub at_ns: i64,
}

/// The container, as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Container {
    /// Not made yet, or removed.
    #[default]
    Absent,
    /// Made, its process waits to be started.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Exited(Exit),
}

/// The sandbox (network namespace), as far as it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sandbox {
    /// Not open yet.
    #[default]
    Absent,
    /// Open, not on all of its networks yet.
    Open,
    /// On all of its networks.
    Attached,
    /// Closed again: the addresses are free.
    Closed,
}

/// Why a task can't go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What failed, on which object, what to do next.
    pub message: String,
    /// The task was never fit to run here (image missing, bad options), as opposed to having failed.
    pub rejected: bool,
}

/// After which ends a container is started again on its node while no manager is there to replace its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Restart {
    /// Never.
    #[default]
    Never,
    /// After an end with an exit code other than 0.
    OnFailure,
    /// After any end.
    Always,
}

/// The restart policy of a task, as far as its node has to follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// After which ends.
    pub restart: Restart,
    /// How often at most; `None`: no bound.
    pub attempts: Option<u64>,
}

impl Policy {
    fn again(&self, exit: &Exit, restarts: u64) -> bool {
        let wanted = match self.restart {
            Restart::Never => false,
            Restart::OnFailure => exit.code != 0,
            Restart::Always => true,
        };
        wanted && self.attempts.is_none_or(|most| restarts < most)
    }
}

/// What is known to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// The image and its layers are on this node.
    pub image: bool,
    /// The task's network namespace.
    pub sandbox: Sandbox,
    /// The task's container.
    pub container: Container,
    /// The process was asked to stop, by this daemon or an earlier one.
    pub stop_sent: bool,
    /// No manager can act on what this node reports.
    pub alone: bool,
    /// What the spec says of restarts.
    pub policy: Policy,
    /// The pause before a restart is over.
    pub rested: bool,
    /// How often the container was started again.
    pub restarts: u64,
    /// A command failed for good.
    pub failure: Option<Failure>,
}

impl Facts {
    /// The container is made anew in place of the one that ended.
    pub fn renewed(&mut self) {
        self.container = Container::Created;
        self.rested = false;
        self.restarts += 1;
    }

    /// The process has ended.
    pub fn exited(&mut self, exit: Exit) {
        self.container = Container::Exited(exit);
        self.rested = false;
    }
}

/// One thing for the supervisor to do. Each is safe to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Make sure that the image is here.
    EnsureImage,
    /// Make the network namespace.
    OpenSandbox,
    /// Wait until the wires are plugged in.
    AwaitNetworks,
    /// Make the container.
    CreateContainer,
    /// Start its process.
    StartContainer,
    /// Wait until the process ends, or until something else is wanted.
    AwaitExit,
    /// Wait for the pause before a restart, or until a manager is there to decide.
    AwaitRestart,
    /// Make the container anew in place of the one that ended; what that one printed stays.
    RenewContainer,
    /// Ask the process to stop; kill it after the grace period; wait until it has ended.
    StopContainer,
    /// Take the network namespace away.
    CloseSandbox,
    /// Remove the container with everything that it left: process, mounts, cgroup, files.
    RemoveContainer,
    /// Nothing until something else is wanted.
    Rest,
    /// The task is gone: forget it.
    Forget,
}

/// What [`next`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// The state to report.
    pub state: TaskState,
    /// What to do.
    pub command: Command,
}

/// The next thing to do for a task, and the state to report meanwhile.
///
/// A terminal state is reported only once the sandbox is closed: the managers may give its addresses away from then on.
///
/// Managers replace a task that has ended. While none can, the node does what their restart policy would: it makes the
/// container anew in the same sandbox, as the same task, which counts as running all the while. Nobody was told of the
/// end, so no state goes back.
pub fn next(desired: Desired, facts: &Facts) -> Next {
    let next = straight(desired, facts);
    if facts.restarts > 0 && next.state < TaskState::Running {
        return Next { state: TaskState::Running, ..next };
    }
    next
}

fn straight(desired: Desired, facts: &Facts) -> Next {
    let say = |state, command| Next { state, command };
    if desired == Desired::Gone {
        return Next { state: TaskState::Remove, command: dismantle(facts) };
    }
    match &facts.container {
        Container::Exited(exit) if restarts_here(desired, facts, exit) => {
            say(TaskState::Running, if facts.rested { Command::RenewContainer } else { Command::AwaitRestart })
        }
        Container::Exited(exit) => match facts.sandbox {
            Sandbox::Open | Sandbox::Attached => say(TaskState::Running, Command::CloseSandbox),
            Sandbox::Absent | Sandbox::Closed => say(ended(facts, exit), Command::Rest),
        },
        Container::Running if desired == Desired::Stopped => say(TaskState::Running, Command::StopContainer),
        Container::Running => say(TaskState::Running, Command::AwaitExit),
        Container::Created | Container::Absent if desired == Desired::Stopped || facts.failure.is_some() => {
            give_up(facts)
        }
        Container::Created if desired == Desired::Ready => say(TaskState::Ready, Command::Rest),
        Container::Created => say(TaskState::Starting, Command::StartContainer),
        Container::Absent => say(TaskState::Preparing, prepare(facts)),
    }
}

/// Whether the node itself is to start an ended container again.
fn restarts_here(desired: Desired, facts: &Facts, exit: &Exit) -> bool {
    let whole = facts.sandbox == Sandbox::Attached && facts.failure.is_none();
    let by_itself = !facts.stop_sent;
    desired == Desired::Running && facts.alone && whole && by_itself && facts.policy.again(exit, facts.restarts)
}

/// The next step towards a container.
fn prepare(facts: &Facts) -> Command {
    match (facts.image, facts.sandbox) {
        (false, _) => Command::EnsureImage,
        (true, Sandbox::Absent | Sandbox::Closed) => Command::OpenSandbox,
        (true, Sandbox::Open) => Command::AwaitNetworks,
        (true, Sandbox::Attached) => Command::CreateContainer,
    }
}

/// The next step of a task that never ran and never will.
///
/// Nothing tells how far it had come, and a state never goes back: until it is over it counts as having been started.
fn give_up(facts: &Facts) -> Next {
    let command = match (&facts.container, facts.sandbox) {
        (Container::Created, _) => Command::RemoveContainer,
        (_, Sandbox::Open | Sandbox::Attached) => Command::CloseSandbox,
        _ => Command::Rest,
    };
    let state = match (&facts.failure, command) {
        (_, Command::RemoveContainer | Command::CloseSandbox) => TaskState::Starting,
        (Some(failure), _) if failure.rejected => TaskState::Rejected,
        (Some(_), _) => TaskState::Failed,
        (None, _) => TaskState::Shutdown,
    };
    Next { state, command }
}

/// The next step towards nothing.
fn dismantle(facts: &Facts) -> Command {
    match (&facts.container, facts.sandbox) {
        (Container::Running, _) => Command::StopContainer,
        (Container::Created | Container::Exited(_), _) => Command::RemoveContainer,
        (Container::Absent, Sandbox::Open | Sandbox::Attached) => Command::CloseSandbox,
        (Container::Absent, Sandbox::Absent | Sandbox::Closed) => Command::Forget,
    }
}

/// The terminal state of a task whose process has ended.
fn ended(facts: &Facts, exit: &Exit) -> TaskState {
    match exit.code {
        _ if facts.stop_sent => TaskState::Shutdown,
        0 => TaskState::Complete,
        _ => TaskState::Failed,
    }
}

#[cfg(test)]
mod tests;
