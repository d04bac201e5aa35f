//! A task's life with hands that only remember what they were asked to do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use skep_proto::v1::assignment::Kind;
use skep_proto::v1::{Assignment, AssignmentChange, Task, TaskSpec};
use tokio::sync::Notify;

use super::*;

/// Does everything at once; the process ends when it is told to, or killed by `end`.
#[derive(Default)]
struct Fake {
    exits: Notify,
    found: Facts,
    unreadable: AtomicBool,
    renews_badly: bool,
    /// What creations wait for, and how many do now and did at most.
    gate: Option<Semaphore>,
    making: AtomicUsize,
    most: AtomicUsize,
    done: Mutex<Vec<&'static str>>,
}

impl Fake {
    fn note(&self, step: &'static str) {
        self.done.lock().unwrap().push(step);
    }
}

impl Hands for Fake {
    async fn find(&self, _: &str) -> Result<(Facts, Process), Failure> {
        if self.unreadable.load(Ordering::Relaxed) {
            return Err(Failure { message: "its record is torn".to_owned(), rejected: false });
        }
        Ok((self.found.clone(), Process { pid: 7, started_ns: 1_000 }))
    }
    async fn ensure_image(&self, _: &TaskAssignment) -> Result<(), Failure> {
        self.note("image");
        Ok(())
    }
    async fn open_sandbox(&self, _: &TaskAssignment) -> Result<(), Failure> {
        self.note("open");
        Ok(())
    }
    async fn await_networks(&self, _: &str) -> Result<(), Failure> {
        self.note("wires");
        Ok(())
    }
    async fn create(&self, _: &TaskAssignment) -> Result<(), Failure> {
        self.note("create");
        if let Some(gate) = &self.gate {
            let making = self.making.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(making, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            self.making.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(())
    }
    async fn start(&self, _: &str) -> Result<Process, Failure> {
        self.note("start");
        Ok(Process { pid: 42, started_ns: 2_000 })
    }
    async fn wait(&self, _: &str) -> Result<Exit, Failure> {
        self.exits.notified().await;
        self.note("wait");
        Ok(Exit { code: 137, oom_killed: true, ..Exit::default() })
    }
    async fn stop_signal(&self, _: &str) -> Option<i32> {
        Some(3)
    }
    async fn stop(&self, id: &str, _: &TaskAssignment) -> Result<Exit, Failure> {
        assert_eq!(id, "t", "also where no manager assigns it any more");
        self.note("stop");
        Ok(Exit { code: 0, ..Exit::default() })
    }
    async fn close_sandbox(&self, _: &str) -> Result<(), Failure> {
        self.note("close");
        Ok(())
    }
    async fn renew(&self, _: &TaskAssignment) -> Result<(), Failure> {
        self.note("renew");
        if self.renews_badly {
            return Err(Failure { message: "the disk is full".to_owned(), rejected: false });
        }
        Ok(())
    }
    async fn remove(&self, _: &str) -> Result<(), Failure> {
        self.note("remove");
        Ok(())
    }
    async fn leftovers(&self) -> Result<Vec<String>, Failure> {
        let running = self.found.container == Container::Running;
        Ok(running.then(|| "t".to_owned()).into_iter().collect())
    }
}

/// Remembers what it was told.
#[derive(Default)]
struct Memory(Mutex<Vec<ContainerAction>>);

impl Observer for Memory {
    fn saw(&self, event: ContainerEvent) {
        assert_eq!(event.container_id, container::id("t"));
        self.0.lock().unwrap().push(event.action);
    }
}

struct World {
    hands: Arc<Fake>,
    memory: Arc<Memory>,
    statuses: Arc<Statuses>,
    supervisors: Supervisors<Fake>,
    connected: watch::Sender<Option<String>>,
}

impl World {
    fn new(fake: Fake) -> Self {
        let (hands, memory, statuses) = (Arc::new(fake), Arc::new(Memory::default()), Arc::new(Statuses::default()));
        let connected = watch::Sender::new(Some("manager".to_owned()));
        let (told, session) = (Arc::clone(&memory), connected.subscribe());
        let supervisors =
            Supervisors::new(Arc::clone(&hands), Arc::clone(&statuses), told, session, CancellationToken::new());
        Self { hands, memory, statuses, supervisors, connected }
    }

    /// The managers want the task to be in this state; `None`: they assign it no more.
    fn want(&self, desired: Option<TaskState>) {
        let put = desired.map(|state| {
            let task = Task { id: "t".to_owned(), desired_state: state.into(), ..Task::default() };
            let assignment = TaskAssignment { task: Some(task), spec: Some(TaskSpec::default()), ..Default::default() };
            Assignment { kind: Some(Kind::Task(assignment)) }
        });
        let change =
            AssignmentChange { complete: true, generation: 1, put: put.into_iter().collect(), ..Default::default() };
        self.supervisors.reconcile(&Assignments::default().take(change).unwrap());
    }

    async fn reach(&self, state: TaskState) {
        let mut news = self.statuses.news();
        let there = async {
            while self.statuses.get("t").is_none_or(|s| s.state() != state) {
                news.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), there).await.unwrap_or_else(|_| panic!("never {state:?}"));
    }

    async fn gone(&self) {
        self.want(None);
        let gone = async {
            while !self.supervisors.idle() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the task never went");
    }

    fn told(&self) -> Vec<ContainerAction> {
        self.memory.0.lock().unwrap().clone()
    }
}

use ContainerAction::{Create, Destroy, Die, Kill, Oom, Start, Stop};

#[tokio::test]
async fn a_life_that_is_asked_to_end_is_told_in_order() {
    let world = World::new(Fake::default());
    world.want(Some(TaskState::Running));
    world.reach(TaskState::Running).await;
    assert_eq!(world.told(), [Create, Start]);
    world.want(Some(TaskState::Shutdown));
    world.reach(TaskState::Shutdown).await;
    world.gone().await;
    let end = [Kill { signal: 3 }, Die { exit_code: 0 }, Stop, Destroy];
    assert_eq!(world.told()[2..], end);
    let done = world.hands.done.lock().unwrap().clone();
    assert_eq!(done, ["image", "open", "wires", "create", "start", "stop", "close", "remove"]);
}

#[tokio::test]
async fn a_process_that_the_kernel_killed_is_told_with_the_reason() {
    let world = World::new(Fake::default());
    world.want(Some(TaskState::Running));
    world.reach(TaskState::Running).await;
    world.hands.exits.notify_one();
    world.reach(TaskState::Failed).await;
    assert_eq!(world.told(), [Create, Start, Oom, Die { exit_code: 137 }]);
}

#[tokio::test(start_paused = true)]
async fn without_a_manager_a_container_is_started_again_as_the_same_task() {
    let world = World::new(Fake::default());
    world.want(Some(TaskState::Running));
    world.reach(TaskState::Running).await;
    world.connected.send_replace(None);
    world.hands.exits.notify_one();
    let mut news = world.statuses.news();
    let again = async {
        while !world.statuses.get("t").is_some_and(|s| s.message.contains("restarted once")) {
            assert_eq!(world.statuses.get("t").map(|s| s.state()), Some(TaskState::Running), "no state goes back");
            news.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("it was not started again");
    let done = world.hands.done.lock().unwrap().clone();
    assert_eq!(done[4..], ["start", "wait", "renew", "start"], "the sandbox stays");
    assert_eq!(world.told()[2..], [Oom, Die { exit_code: 137 }, Start], "it is the same container");
    // With a manager that can replace the task, its end is reported.
    world.connected.send_replace(Some("manager".to_owned()));
    world.hands.exits.notify_one();
    world.reach(TaskState::Failed).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_daemon_left_running_is_stopped_and_goes() {
    let found = Facts { image: true, sandbox: Sandbox::Attached, container: Container::Running, ..Facts::default() };
    let world = World::new(Fake { found, ..Fake::default() });
    assert!(world.supervisors.adopt_leftovers().await);
    assert!(!world.supervisors.idle());
    world.gone().await;
    assert_eq!(*world.hands.done.lock().unwrap(), ["stop", "remove", "close"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_can_not_be_made_anew_has_failed_for_that_reason() {
    let world = World::new(Fake { renews_badly: true, ..Fake::default() });
    world.want(Some(TaskState::Running));
    world.reach(TaskState::Running).await;
    let known = world.statuses.get("t").and_then(|s| s.container).map(|c| c.container_id);
    assert_eq!(known, Some(container::id("t")), "what inspecting a container takes");
    world.connected.send_replace(None);
    world.hands.exits.notify_one();
    world.reach(TaskState::Failed).await;
    assert_eq!(world.statuses.get("t").map(|s| s.error), Some("the disk is full".to_owned()));
    let done = world.hands.done.lock().unwrap().clone();
    assert_eq!(done[4..], ["start", "wait", "renew", "close"], "its log stays");
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_comes_back_during_the_pause_decides() {
    let world = World::new(Fake::default());
    world.want(Some(TaskState::Running));
    world.reach(TaskState::Running).await;
    world.connected.send_replace(None);
    world.hands.exits.notify_one();
    tokio::time::sleep(MANAGER_WITHIN - Duration::from_millis(1)).await;
    assert_eq!(world.statuses.get("t").map(|s| s.state()), Some(TaskState::Running));
    world.connected.send_replace(Some("manager".to_owned()));
    world.reach(TaskState::Failed).await;
}

#[tokio::test]
async fn an_end_that_no_daemon_saw_is_told_by_the_next_one() {
    let exit = Exit { code: 1, ..Exit::default() };
    let found =
        Facts { container: Container::Exited(exit), sandbox: Sandbox::Attached, image: true, ..Facts::default() };
    let world = World::new(Fake { found, ..Fake::default() });
    world.want(Some(TaskState::Running));
    world.reach(TaskState::Failed).await;
    assert_eq!(world.told(), [Die { exit_code: 1 }]);
}

#[tokio::test]
async fn times_are_those_of_the_process_whichever_daemon_tells_them() {
    let running = Facts { image: true, sandbox: Sandbox::Attached, container: Container::Running, ..Facts::default() };
    let world = World::new(Fake { found: running, ..Fake::default() });
    world.want(Some(TaskState::Running));
    world.reach(TaskState::Running).await;
    assert_eq!(world.statuses.get("t").map(|s| s.at_ns), Some(1_000));
    let why = Some("its supervisor was killed".to_owned());
    let exit = Exit { code: 255, error: why, at_ns: 3_000, ..Exit::default() };
    let found = Facts { container: Container::Exited(exit), sandbox: Sandbox::Closed, image: true, ..Facts::default() };
    let world = World::new(Fake { found, ..Fake::default() });
    world.want(Some(TaskState::Running));
    world.reach(TaskState::Failed).await;
    let said = world.statuses.get("t").map(|s| (s.at_ns, s.error));
    assert_eq!(said, Some((3_000, "task: non-zero exit (255): its supervisor was killed".to_owned())));
}

#[tokio::test]
async fn what_an_earlier_daemon_asked_to_stop_was_stopped() {
    let exit = Exit { code: 143, ..Exit::default() };
    let container = Container::Exited(exit);
    let found = Facts { container, sandbox: Sandbox::Attached, image: true, stop_sent: true, ..Facts::default() };
    let world = World::new(Fake { found, ..Fake::default() });
    // What that daemon remembered is older than the wish to stop it, and no manager is there.
    world.connected.send_replace(None);
    world.want(Some(TaskState::Running));
    world.reach(TaskState::Shutdown).await;
    assert_eq!(*world.hands.done.lock().unwrap(), ["close"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_can_not_be_read_is_looked_at_again_and_never_started() {
    let running = Facts { image: true, sandbox: Sandbox::Attached, container: Container::Running, ..Facts::default() };
    let world = World::new(Fake { found: running, unreadable: AtomicBool::new(true), ..Fake::default() });
    world.want(Some(TaskState::Running));
    tokio::time::sleep(READABLE_WITHIN / 2).await;
    assert!(world.hands.done.lock().unwrap().is_empty());
    world.hands.unreadable.store(false, Ordering::Relaxed);
    world.reach(TaskState::Running).await;
    assert!(world.hands.done.lock().unwrap().is_empty(), "it runs on");

    let world = World::new(Fake { unreadable: AtomicBool::new(true), ..Fake::default() });
    world.want(Some(TaskState::Running));
    tokio::time::sleep(READABLE_WITHIN).await;
    world.reach(TaskState::Failed).await;
    assert_eq!(world.statuses.get("t").map(|s| s.error), Some("its record is torn".to_owned()));
    assert_eq!(*world.hands.done.lock().unwrap(), ["remove", "close"]);
}

/// Hears nothing.
struct Deaf;

impl Observer for Deaf {
    fn saw(&self, _: ContainerEvent) {}
}

#[tokio::test]
async fn so_many_are_made_at_a_time_and_the_rest_waits_its_turn() {
    let limit = std::thread::available_parallelism().map_or(1, usize::from) * TURNS_PER_CORE;
    let hands = Arc::new(Fake { gate: Some(Semaphore::new(0)), ..Fake::default() });
    let (_connected, session) = watch::channel(Some("manager".to_owned()));
    let supervisors =
        Supervisors::new(Arc::clone(&hands), Arc::default(), Arc::new(Deaf), session, CancellationToken::new());
    let assigned = |tasks: std::ops::Range<usize>, state: TaskState| {
        let task = |id: usize| Task { id: format!("t{id}"), desired_state: state.into(), ..Task::default() };
        let assignment =
            |task| TaskAssignment { task: Some(task), spec: Some(TaskSpec::default()), ..Default::default() };
        let put = tasks.map(|id| Assignment { kind: Some(Kind::Task(assignment(task(id)))) }).collect();
        let change = AssignmentChange { complete: true, generation: 1, put, ..Default::default() };
        Assignments::default().take(change).unwrap()
    };
    let until = async |what: &str, holds: &dyn Fn() -> bool| {
        let waited = async {
            while !holds() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waited).await.unwrap_or_else(|_| panic!("not {what}"));
    };
    let done = |step: &str| hands.done.lock().unwrap().iter().filter(|done| **done == step).count();
    let all = limit * 3;
    // Who comes first is first: what is assigned at once begins in no order.
    supervisors.reconcile(&assigned(0..limit, TaskState::Running));
    until("so many are being made", &|| hands.making.load(Ordering::SeqCst) == limit).await;
    supervisors.reconcile(&assigned(0..all, TaskState::Running));
    until("the rest is ready for its turn", &|| done("image") == all).await;
    assert_eq!((done("open"), done("start")), (limit, 0), "those that wait hold nothing");
    // One that is not wanted any more waits no longer.
    supervisors.reconcile(&assigned(0..all - 1, TaskState::Running));
    until("it is gone", &|| done("remove") == 0 && supervisors.wishes.lock().unwrap().len() == all - 1).await;
    hands.gate.as_ref().unwrap().add_permits(all);
    until("all run", &|| done("start") == all - 1).await;
    assert_eq!(hands.most.load(Ordering::SeqCst), limit);
}
