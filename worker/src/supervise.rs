//! One supervisor per task: asks `skep-task` (pure) what comes next, lets the [`Hands`] do it, notes the outcome.
//!
//! A supervisor ends when its task is gone, or when the daemon stops; then the container runs on, and the next daemon's
//! supervisor finds it. Decides nothing itself.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use skep_proto::time::unix_ns;
use skep_proto::v1::assignment::Kind;
use skep_proto::v1::{ContainerStatus, RestartCondition, TaskAssignment, TaskState, TaskStatus};
use skep_task::{Command, Container, Desired, Exit, Facts, Failure, Next, Policy, Restart, Sandbox, next};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::assignments::Assignments;
use crate::container;
use crate::observer::{ContainerAction, ContainerEvent, Observer, ending};
use crate::statuses::Statuses;

/// First pause after taking something down has failed; doubles up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How long what an earlier daemon left may be unreadable before it is taken down.
const READABLE_WITHIN: Duration = Duration::from_secs(30);

/// Pause before a restart, unless the spec says otherwise.
const DEFAULT_DELAY: Duration = Duration::from_secs(5);
/// Time in which a node that lost its manager finds another one, if there is one with a leader.
const MANAGER_WITHIN: Duration = Duration::from_secs(3);

/// Characters of an error that managers are told; they refuse statuses over 8 KiB.
const MAX_ERROR: usize = 1024;

/// Tasks that are made or taken away at a time for each core: a thousand at once would starve each other, the network
/// driver, and a manager on the same machine.
const TURNS_PER_CORE: usize = 8;

/// How long a task that is being made may wait for its networks before others come first.
const TURN: Duration = Duration::from_secs(1);

/// What a supervisor needs done. Every call may be repeated; none blocks for ever.
pub(crate) trait Hands: Send + Sync + 'static {
    /// What is there already of a task; an error when that can't be found out.
    fn find(&self, task_id: &str) -> impl Future<Output = Result<(Facts, Process), Failure>> + Send;
    /// The image is on this node.
    fn ensure_image(&self, task: &TaskAssignment) -> impl Future<Output = Result<(), Failure>> + Send;
    /// The network namespace exists; refused while a process of this node holds a port that the task publishes on it.
    fn open_sandbox(&self, task: &TaskAssignment) -> impl Future<Output = Result<(), Failure>> + Send;
    /// The wires are plugged in.
    fn await_networks(&self, task_id: &str) -> impl Future<Output = Result<(), Failure>> + Send;
    /// The container exists.
    fn create(&self, task: &TaskAssignment) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Its process runs.
    fn start(&self, task_id: &str) -> impl Future<Output = Result<Process, Failure>> + Send;
    /// Its process has ended.
    fn wait(&self, task_id: &str) -> impl Future<Output = Result<Exit, Failure>> + Send;
    /// The signal that asks its process to end; `None` when the container can't be read.
    fn stop_signal(&self, task_id: &str) -> impl Future<Output = Option<i32>> + Send;
    /// Its process was told to end and has ended.
    fn stop(&self, task_id: &str, task: &TaskAssignment) -> impl Future<Output = Result<Exit, Failure>> + Send;
    /// The network namespace is gone.
    fn close_sandbox(&self, task_id: &str) -> impl Future<Output = Result<(), Failure>> + Send;
    /// The container is made anew in place of the one that ended; what that one printed stays.
    fn renew(&self, task: &TaskAssignment) -> impl Future<Output = Result<(), Failure>> + Send;
    /// The container is gone.
    fn remove(&self, task_id: &str) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Tasks of which something is left on this node.
    fn leftovers(&self) -> impl Future<Output = Result<Vec<String>, Failure>> + Send;
}

/// The process of a task's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Process {
    /// Its number on this node; 0 when there is none.
    pub(crate) pid: i32,
    /// Since when it runs, in Unix nanoseconds; 0 when that is not known.
    pub(crate) started_ns: i64,
}

/// What is wanted of one task.
#[derive(Debug, Clone)]
struct Wish {
    desired: Desired,
    assignment: Arc<TaskAssignment>,
}

/// All supervisors of this node.
pub(crate) struct Supervisors<H> {
    hands: Arc<H>,
    statuses: Arc<Statuses>,
    observer: Arc<dyn Observer>,
    connected: watch::Receiver<Option<String>>,
    wishes: Arc<Mutex<HashMap<String, watch::Sender<Wish>>>>,
    tasks: TaskTracker,
    /// How many may be made or taken away at a time.
    turns: Arc<Semaphore>,
    stop: CancellationToken,
}

impl<H: Hands> Supervisors<H> {
    /// `connected`: the manager with which a session is open.
    pub(crate) fn new(
        hands: Arc<H>,
        statuses: Arc<Statuses>,
        observer: Arc<dyn Observer>,
        connected: watch::Receiver<Option<String>>,
        stop: CancellationToken,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = Arc::new(Semaphore::new(cores * TURNS_PER_CORE));
        Self { hands, statuses, observer, connected, wishes: Arc::default(), tasks: TaskTracker::new(), turns, stop }
    }

    /// Brings the supervisors in line with the assignments: new tasks get one, known ones the new wish, and what is
    /// assigned no more is to be gone.
    pub(crate) fn reconcile(&self, assignments: &Assignments) {
        let assigned: HashMap<&str, &TaskAssignment> = assignments
            .kinds()
            .filter_map(|kind| match kind {
                Kind::Task(task) => task.task.as_ref().map(|t| (t.id.as_str(), task)),
                _ => None,
            })
            .collect();
        let mut wishes = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, sender) in wishes.iter() {
            if !assigned.contains_key(id.as_str()) {
                sender.send_if_modified(|wish| {
                    let news = wish.desired != Desired::Gone;
                    wish.desired = Desired::Gone;
                    news
                });
            }
        }
        for (id, assignment) in assigned {
            let desired = assignment.task.as_ref().map_or(Desired::Gone, |t| Desired::from_state(t.desired_state()));
            match wishes.get(id) {
                Some(sender) => {
                    sender.send_if_modified(|wish| {
                        // A wish never goes back.
                        let news = desired > wish.desired;
                        wish.desired = wish.desired.max(desired);
                        news
                    });
                }
                None => self.hire(&mut wishes, id, Wish { desired, assignment: Arc::new(assignment.clone()) }),
            }
        }
    }

    /// Takes charge of what an earlier daemon left and nobody assigns any more, so that it goes. `false`: what there is
    /// could not be found out.
    pub(crate) async fn adopt_leftovers(&self) -> bool {
        let left = match self.hands.leftovers().await {
            Ok(left) => left,
            Err(error) => {
                tracing::warn!(
                    error = error.message,
                    "what an earlier daemon left could not be listed; tried again with the next word of a manager"
                );
                return false;
            }
        };
        for id in left {
            let mut wishes = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
            if !wishes.contains_key(&id) {
                tracing::info!(task.id = id, "container of a task that is assigned no more: removing it");
                self.hire(&mut wishes, &id, Wish { desired: Desired::Gone, assignment: Arc::default() });
            }
        }
        true
    }

    /// Whether no task is left.
    pub(crate) fn idle(&self) -> bool {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Waits until every supervisor has put down what it holds, or the deadline has passed.
    pub(crate) async fn drain(&self, deadline: Duration) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "supervisors did not finish in time");
        }
    }

    fn hire(&self, wishes: &mut HashMap<String, watch::Sender<Wish>>, id: &str, wish: Wish) {
        let (sender, receiver) = watch::channel(wish);
        wishes.insert(id.to_owned(), sender);
        let (hands, statuses, stop) = (Arc::clone(&self.hands), Arc::clone(&self.statuses), self.stop.clone());
        let (id, registry, observer) = (id.to_owned(), Arc::clone(&self.wishes), Arc::clone(&self.observer));
        let (connected, turns) = (self.connected.clone(), Arc::clone(&self.turns));
        self.tasks.spawn(async move {
            let (hands, observer) = (hands.as_ref(), observer.as_ref());
            let supervisor =
                Supervisor { id: &id, hands, statuses: &statuses, observer, connected, turns: &turns, stop: &stop };
            if supervisor.run(receiver).await == Ended::Gone {
                statuses.forget(&id);
                registry.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            }
        });
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Gone,
    DaemonStops,
}

/// The supervisor of one task.
struct Supervisor<'a, H> {
    id: &'a str,
    hands: &'a H,
    statuses: &'a Statuses,
    observer: &'a dyn Observer,
    connected: watch::Receiver<Option<String>>,
    turns: &'a Semaphore,
    stop: &'a CancellationToken,
}

impl<H: Hands> Supervisor<'_, H> {
    async fn run(mut self, mut wishes: watch::Receiver<Wish>) -> Ended {
        let Some((mut facts, mut process)) = self.take_up(&mut wishes).await else { return Ended::DaemonStops };
        facts.failure = facts.failure.take().or_else(|| lost(&wishes.borrow().assignment, &facts));
        if let (Container::Exited(exit), Sandbox::Open | Sandbox::Attached) = (&facts.container, facts.sandbox) {
            // It ended while no daemon was there to see it.
            ending(exit).for_each(|action| self.tell(&wishes.borrow().assignment, action));
        }
        let mut pause = RETRY;
        let mut turn = None;
        loop {
            let wish = wishes.borrow_and_update().clone();
            facts.alone = self.connected.borrow_and_update().is_none();
            facts.policy = policy(&wish.assignment);
            let Next { state, command } = next(wish.desired, &facts);
            if wish.desired != Desired::Gone {
                self.statuses.set(self.id, status(self.id, state, &facts, process));
            }
            match command {
                Command::Forget => return Ended::Gone,
                Command::Rest => {
                    tokio::select! {
                        changed = wishes.changed() => if changed.is_err() { return Ended::DaemonStops },
                        () = self.stop.cancelled() => return Ended::DaemonStops,
                    }
                    continue;
                }
                _ => {}
            }
            // Who is being made keeps its turn until it runs, so that the first are not kept waiting for the last.
            if !takes_turns(command) && command != Command::AwaitNetworks {
                turn = None;
            } else if turn.is_none() && takes_turns(command) {
                turn = tokio::select! {
                    turn = self.turns.acquire() => turn.ok(),
                    changed = wishes.changed() => if changed.is_err() { return Ended::DaemonStops } else { continue },
                    () = self.stop.cancelled() => return Ended::DaemonStops,
                };
            }
            // Waiting gives way to a new wish and to the end of the daemon; doing is finished first.
            let pauses = command == Command::AwaitRestart;
            let waits = pauses || matches!(command, Command::EnsureImage | Command::AwaitNetworks | Command::AwaitExit);
            // A receiver of its own: the steps borrow the supervisor.
            let mut connected = self.connected.clone();
            let outcome = tokio::select! {
                _ = connected.wait_for(Option::is_some), if pauses => continue,
                () = tokio::time::sleep(TURN), if waits && turn.is_some() => {
                    turn = None;
                    continue;
                }
                outcome = self.carry_out(command, &wish.assignment, &mut facts, &mut process) => outcome,
                changed = wishes.changed(), if waits => if changed.is_err() { return Ended::DaemonStops } else { continue },
                () = self.stop.cancelled(), if waits => return Ended::DaemonStops,
            };
            match outcome {
                Ok(()) => pause = RETRY,
                Err(failure) if takes_down(command) => {
                    turn = None;
                    tracing::warn!(task.id = self.id, command = ?command, error = failure.message, "taking down failed; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.stop.cancelled() => return Ended::DaemonStops,
                    }
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(failure) => {
                    if command == Command::CreateContainer {
                        // Half of it may be there, or still being made; removing is right in any case.
                        facts.container = Container::Created;
                    }
                    tracing::info!(task.id = self.id, command = ?command, error = failure.message, "task failed");
                    facts.failure = Some(failure);
                }
            }
            if self.stop.is_cancelled() {
                return Ended::DaemonStops;
            }
        }
    }

    /// What is there already of the task. What stays unreadable can't be judged: it is never started, only taken down.
    /// `None`: the daemon stops.
    async fn take_up(&self, wishes: &mut watch::Receiver<Wish>) -> Option<(Facts, Process)> {
        let begun = tokio::time::Instant::now();
        let mut pause = RETRY;
        loop {
            let failure = match self.hands.find(self.id).await {
                Ok(found) => return Some(found),
                Err(failure) => failure,
            };
            if wishes.borrow().desired == Desired::Gone || begun.elapsed() >= READABLE_WITHIN {
                tracing::warn!(task.id = self.id, error = failure.message, "taking down what can't be read");
                let (container, sandbox) = (Container::Created, Sandbox::Open);
                let facts = Facts { container, sandbox, failure: Some(failure), ..Facts::default() };
                return Some((facts, Process::default()));
            }
            tracing::warn!(task.id = self.id, error = failure.message, "trying again");
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
                changed = wishes.changed() => changed.ok()?,
                () = self.stop.cancelled() => return None,
            }
        }
    }

    fn tell(&self, task: &Arc<TaskAssignment>, action: ContainerAction) {
        self.observer.saw(ContainerEvent {
            at_ns: unix_ns(SystemTime::now()),
            container_id: container::id_of(self.id),
            task: Arc::clone(task),
            action,
        });
    }

    async fn carry_out(
        &self,
        command: Command,
        task: &Arc<TaskAssignment>,
        facts: &mut Facts,
        process: &mut Process,
    ) -> Result<(), Failure> {
        let hands = self.hands;
        match command {
            Command::EnsureImage => {
                hands.ensure_image(task).await?;
                facts.image = true;
            }
            Command::OpenSandbox => {
                hands.open_sandbox(task).await?;
                facts.sandbox = Sandbox::Open;
            }
            Command::AwaitNetworks => {
                hands.await_networks(self.id).await?;
                facts.sandbox = Sandbox::Attached;
            }
            Command::CreateContainer => {
                hands.create(task).await?;
                facts.container = Container::Created;
                self.tell(task, ContainerAction::Create);
            }
            Command::StartContainer => {
                *process = hands.start(self.id).await?;
                facts.container = Container::Running;
                self.tell(task, ContainerAction::Start);
            }
            Command::AwaitExit => {
                let exit = hands.wait(self.id).await?;
                ending(&exit).for_each(|action| self.tell(task, action));
                facts.exited(exit);
            }
            Command::AwaitRestart => {
                tokio::time::sleep(restart_delay(task)).await;
                facts.rested = true;
                tracing::info!(task.id = self.id, restarts = facts.restarts, "no manager is there: starting it again");
            }
            Command::StopContainer => {
                if !facts.stop_sent
                    && let Some(signal) = hands.stop_signal(self.id).await
                {
                    self.tell(task, ContainerAction::Kill { signal });
                }
                facts.stop_sent = true;
                let exit = hands.stop(self.id, task).await?;
                ending(&exit).chain([ContainerAction::Stop]).for_each(|action| self.tell(task, action));
                facts.exited(exit);
            }
            Command::CloseSandbox => {
                hands.close_sandbox(self.id).await?;
                facts.sandbox = Sandbox::Closed;
            }
            Command::RenewContainer => {
                hands.renew(task).await?;
                facts.renewed();
            }
            Command::RemoveContainer => {
                hands.remove(self.id).await?;
                facts.container = Container::Absent;
                self.tell(task, ContainerAction::Destroy);
            }
            Command::Rest | Command::Forget => {}
        }
        Ok(())
    }
}

/// What the spec says of restarts.
fn policy(assignment: &TaskAssignment) -> Policy {
    let Some(spec) = &assignment.spec else { return Policy::default() };
    let wanted = spec.restart.unwrap_or_default();
    let restart = match wanted.condition() {
        RestartCondition::None => Restart::Never,
        RestartCondition::OnFailure => Restart::OnFailure,
        RestartCondition::Any => Restart::Always,
    };
    Policy { restart, attempts: Some(wanted.max_attempts).filter(|most| *most > 0) }
}

/// The pause before a restart: as the spec has it, and long enough for a session with another manager to open first.
fn restart_delay(assignment: &TaskAssignment) -> Duration {
    let wanted = assignment.spec.as_ref().and_then(|s| s.restart).and_then(|r| r.delay_ns);
    wanted.map_or(DEFAULT_DELAY, skep_proto::time::duration).max(MANAGER_WITHIN)
}

/// A task that had begun to run and whose container is gone does not run a second time: it has failed, and the managers
/// replace it.
fn lost(assignment: &TaskAssignment, facts: &Facts) -> Option<Failure> {
    let known = assignment.task.as_ref().map(skep_proto::v1::Task::observed)?;
    let began = known >= TaskState::Starting && !known.is_terminal();
    (began && facts.container == Container::Absent).then(|| Failure {
        message: "the container was lost: the node was restarted, or somebody removed it".to_owned(),
        rejected: false,
    })
}

/// Commands that need the machine, and wait for nothing but it.
fn takes_turns(command: Command) -> bool {
    use Command::{CloseSandbox, CreateContainer, OpenSandbox, RemoveContainer, RenewContainer, StartContainer};
    matches!(command, OpenSandbox | CreateContainer | StartContainer | RenewContainer | CloseSandbox | RemoveContainer)
}

/// Commands that are repeated until they succeed: giving up would leave something behind.
fn takes_down(command: Command) -> bool {
    matches!(command, Command::AwaitExit | Command::StopContainer | Command::CloseSandbox | Command::RemoveContainer)
}

fn status(id: &str, state: TaskState, facts: &Facts, process: Process) -> TaskStatus {
    let exit = match &facts.container {
        Container::Exited(exit) => Some(exit),
        _ => None,
    };
    let (code, oom_killed) = exit.map_or((0, false), |exit| (exit.code, exit.oom_killed));
    let error = match (&facts.failure, state, exit.and_then(|exit| exit.error.as_deref())) {
        (Some(failure), _, _) => failure.message.clone(),
        (None, TaskState::Failed, Some(why)) => format!("task: non-zero exit ({code}): {why}"),
        (None, TaskState::Failed, None) if oom_killed => format!("task: out of memory; non-zero exit ({code})"),
        (None, TaskState::Failed, None) => format!("task: non-zero exit ({code})"),
        _ => String::new(),
    };
    // When it came to be so, which may be long before this daemon found it.
    let at_ns = match (state, exit) {
        (TaskState::Running, _) => process.started_ns,
        (state, Some(exit)) if state.is_terminal() => exit.at_ns,
        _ => 0,
    };
    let made = !matches!(facts.container, Container::Absent);
    let error: String = error.chars().take(MAX_ERROR).collect();
    TaskStatus {
        at_ns: if at_ns > 0 { at_ns } else { unix_ns(SystemTime::now()) },
        state: state.into(),
        message: match facts.restarts {
            0 => message(state).to_owned(),
            1 => format!("{}; restarted once while no manager was there", message(state)),
            n => format!("{}; restarted {n} times while no manager was there", message(state)),
        },
        error,
        container: made.then(|| ContainerStatus {
            container_id: container::id_of(id),
            pid: process.pid,
            exit_code: code,
            oom_killed,
        }),
    }
}

/// The words that `service ps` users know.
fn message(state: TaskState) -> &'static str {
    match state {
        TaskState::Preparing => "preparing",
        TaskState::Ready => "prepared",
        TaskState::Running | TaskState::Failed => "started",
        TaskState::Complete => "finished",
        TaskState::Shutdown => "shutdown",
        other => other.word(),
    }
}

#[cfg(test)]
mod tests;
