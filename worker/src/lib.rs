//! The hands of a cluster: one node's tasks, from assignment to running container and back to nothing.
//!
//! Listens to any manager, decides nothing about placement, and runs on when no manager is there. What comes next for a
//! task is `skep-task`'s word (pure), what the wires show is [`wires`] (pure); this crate carries both out. Only the
//! daemon calls it.
#![forbid(unsafe_code)]

pub mod assignments;
pub mod container;
mod hands;
mod listeners;
pub mod logs;
mod observer;
mod session;
mod statuses;
mod supervise;
pub mod wires;

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use prost::Message;
use skep_image::Store;
use skep_net_plan::{Desired, Subnet, Underlay};
use skep_netdrv::{Driver, Namespace, NamespaceError};
use skep_proto::v1::assignment::Kind;
use skep_proto::v1::{AssignmentChange, LogLine, LogOptions, NodeDescription, Role, TaskAssignment, TaskStatus};
use skep_runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::Channel;

use assignments::Assignments;
use hands::NodeHands;
use statuses::Statuses;
use supervise::Supervisors;

pub use observer::{ContainerAction, ContainerEvent, Observer};
pub use skep_netdrv as netdrv;

/// How long supervisors may take to put down what they hold when the daemon stops.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// Assignments are written for the next daemon this often at most.
const KEPT_EVERY: Duration = Duration::from_millis(200);

/// Gives channels to managers; the daemon's identity stands behind it.
pub trait Connector: Send + Sync + 'static {
    /// A channel to the manager at `host:port`, with mutual TLS. Connects when used.
    fn channel(&self, address: &str) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>>;
}

/// What a worker is started with.
pub struct Config {
    /// The node's id.
    pub node_id: String,
    /// For what must survive the daemon, not a reboot: what was assigned.
    pub run_dir: PathBuf,
    /// Where the namespaces of sandboxes are pinned.
    pub netns_dir: PathBuf,
    /// Where VXLAN is sent from.
    pub underlay: Underlay,
    /// Subnet of the gateway bridge.
    pub gateway: Subnet,
    /// The node's own resolvers and search domains.
    pub resolvers: Vec<SocketAddr>,
    /// Search domains of the node.
    pub search: Vec<String>,
    /// What managers are told of the node.
    pub description: NodeDescription,
    /// Managers to begin with, `host:port`.
    pub managers: Vec<String>,
}

/// The rooms that the worker works with.
pub struct Rooms {
    /// Images.
    pub images: Arc<Store>,
    /// Containers.
    pub runtime: Arc<Runtime>,
    /// How the wires are made and named.
    pub net: skep_netdrv::Config,
    /// Who hears of what happens to containers.
    pub observer: Arc<dyn Observer>,
}

struct Inner {
    description: NodeDescription,
    /// Where the assignments are kept for a restart; nowhere once the node leaves its swarm.
    file: Arc<std::sync::Mutex<Option<PathBuf>>>,
    assigned: watch::Sender<Arc<Assignments>>,
    managers: watch::Sender<Vec<String>>,
    connected: watch::Sender<Option<String>>,
    known: watch::Sender<bool>,
    goodbye: session::Goodbye,
    /// What an earlier daemon left has been taken up.
    adopted: AtomicBool,
    applied: watch::Receiver<u64>,
    statuses: Arc<Statuses>,
    supervisors: Supervisors<NodeHands>,
    runtime: Arc<Runtime>,
    driver: std::sync::Mutex<Option<Driver>>,
    net: skep_netdrv::Config,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// One node's worker. A handle: clones are the same worker.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

impl Worker {
    /// Takes up what runs already, and keeps a session with a manager.
    ///
    /// Fails when the node's network can't be worked on.
    ///
    /// Needs the async runtime, and is not async itself: what it spawns is compiled with this crate, and not again with
    /// each one that would await it.
    pub fn start(config: Config, rooms: Rooms, connector: Arc<dyn Connector>) -> Result<Self, skep_netdrv::Error> {
        let file = config.run_dir.join("assignments");
        let remembered = recall(&file);
        let file = Arc::new(std::sync::Mutex::new(Some(file)));
        let assigned = watch::Sender::new(Arc::new(remembered));
        // Namespaces that an earlier daemon left are wanted until their supervisors say otherwise.
        let sandboxes = watch::Sender::new(pinned(&config.netns_dir));
        let desired = watch::Sender::new(Arc::new(Desired::default()));
        let driver = Driver::start(rooms.net.clone(), desired.subscribe())?;
        let statuses = Arc::new(Statuses::default());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let hands = Arc::new(NodeHands {
            images: rooms.images,
            runtime: Arc::clone(&rooms.runtime),
            driver: driver.clone(),
            netns_dir: config.netns_dir,
            search: config.search,
            node: config.description.clone(),
            assignments: assigned.subscribe(),
            sandboxes: sandboxes.clone(),
            resolved: RwLock::new(HashMap::new()),
        });
        let (applied_sender, applied) = watch::channel(0);
        let connected = watch::Sender::new(None);
        let (observer, told) = (rooms.observer, connected.subscribe());
        let supervisors = Supervisors::new(hands, Arc::clone(&statuses), observer, told, stop.child_token());
        let worker = Self(Arc::new(Inner {
            description: config.description,
            file: Arc::clone(&file),
            assigned: assigned.clone(),
            managers: watch::Sender::new(config.managers),
            connected,
            known: watch::Sender::new(true),
            goodbye: session::Goodbye::default(),
            adopted: AtomicBool::new(false),
            applied,
            supervisors,
            statuses,
            runtime: rooms.runtime,
            driver: std::sync::Mutex::new(Some(driver.clone())),
            net: rooms.net,
            stop: stop.clone(),
            tasks: tasks.clone(),
        }));
        let facts = wires::Facts { underlay: config.underlay, gateway: config.gateway, upstream: config.resolvers };
        let wire = wire(assigned.subscribe(), sandboxes.subscribe(), desired, facts);
        let acknowledge = acknowledge(driver, applied_sender);
        let (run, supervise, node_id) = (worker.clone(), worker.clone(), config.node_id);
        let session = async move {
            let inner = &run.0;
            let (managers, connected) = (inner.managers.subscribe(), &inner.connected);
            session::run(inner.as_ref(), &node_id, connector.as_ref(), managers, connected, &inner.stop).await;
        };
        let keep = keep(file, assigned.subscribe());
        let jobs: [futures::future::BoxFuture<'static, ()>; 3] =
            [Box::pin(wire), Box::pin(acknowledge), Box::pin(keep)];
        for job in jobs {
            let stop = stop.clone();
            tasks.spawn(async move {
                tokio::select! { () = job => {}, () = stop.cancelled() => {} }
            });
        }
        tasks.spawn(session);
        tasks.spawn(async move { supervise.supervise().await });
        Ok(worker)
    }

    async fn supervise(self) {
        let mut assigned = self.0.assigned.subscribe();
        let adopted = &self.0.adopted;
        loop {
            let current = Arc::clone(&assigned.borrow_and_update());
            self.0.supervisors.reconcile(&current);
            // Only a manager's word makes a leftover one: before it, everything may still be wanted.
            if !adopted.load(Ordering::Acquire) && current.is_told() {
                adopted.store(self.0.supervisors.adopt_leftovers().await, Ordering::Release);
            }
            tokio::select! {
                changed = assigned.changed() => if changed.is_err() { return },
                () = self.0.stop.cancelled() => return,
            }
        }
    }

    /// What the managers want of this node now.
    pub fn assignments(&self) -> Arc<Assignments> {
        Arc::clone(&self.0.assigned.borrow())
    }

    /// Wakes when that changes.
    pub fn assignments_changed(&self) -> watch::Receiver<Arc<Assignments>> {
        self.0.assigned.subscribe()
    }

    /// The role that the managers want this node to have; `None` before they said so.
    pub fn wanted_role(&self) -> Option<Role> {
        self.assignments().kinds().find_map(|kind| match kind {
            Kind::Node(node) => Some(node.role()),
            _ => None,
        })
    }

    /// Every task of this node with its newest status.
    pub fn tasks(&self) -> Vec<(TaskAssignment, Option<TaskStatus>)> {
        let assignments = self.assignments();
        let tasks = assignments.kinds().filter_map(|kind| match kind {
            Kind::Task(task) => Some(task.clone()),
            _ => None,
        });
        tasks
            .map(|task| {
                let status = task.task.as_ref().and_then(|t| self.0.statuses.get(&t.id));
                (task, status)
            })
            .collect()
    }

    /// What an operator should know: ports that services publish on every node and somebody listens on here. The
    /// service gets their traffic.
    pub async fn warnings(&self) -> Vec<String> {
        let services = self.assignments();
        let ports: BTreeSet<_> = services.kinds().flat_map(wires::ingress_ports).collect();
        if ports.is_empty() {
            return Vec::new();
        }
        let taken = tokio::task::spawn_blocking(move || listeners::taken(ports)).await.unwrap_or_default();
        taken
            .into_iter()
            .map(|taken| format!("WARNING: {taken}, and published by a service, which gets its traffic"))
            .collect()
    }

    /// The manager with which a session is open.
    pub fn connected(&self) -> watch::Receiver<Option<String>> {
        self.0.connected.subscribe()
    }

    /// Whether the managers know this node, as far as the last one that was asked said. One may be behind: `false` is a
    /// reason to ask the cluster, not yet an answer.
    pub fn known(&self) -> watch::Receiver<bool> {
        self.0.known.subscribe()
    }

    /// Managers that this node knows, `host:port`.
    pub fn managers(&self) -> watch::Receiver<Vec<String>> {
        self.0.managers.subscribe()
    }

    /// Lines of one local task's log.
    pub fn log(&self, task_id: &str, options: &LogOptions) -> Result<logs::Lines, String> {
        logs::Source::lines(self.0.as_ref(), task_id, options)
    }

    /// Ends the session and the supervisors; containers and wires stay as they are.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.supervisors.drain(DRAIN_WITHIN).await;
        self.0.tasks.close();
        self.0.tasks.wait().await;
        let assignments = self.assignments();
        // Taken, so that a write from before, which still waits for its thread, does not come after this one.
        if let Some(path) = self.0.file.lock().unwrap_or_else(PoisonError::into_inner).take()
            && assignments.generation > 0
            && let Err(error) = remember(&path, &assignments)
        {
            tracing::warn!(error = %error, file = %path.display(), "assignments can't be kept for a restart");
        }
        let driver = self.0.driver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(driver) = driver {
            driver.stop().await;
        }
    }

    /// Removes every wire that this node has; to be called after [`Worker::shutdown`] when the node leaves its swarm.
    pub async fn remove_wires(&self) {
        if let Err(error) = Driver::teardown(&self.0.net).await {
            tracing::warn!(error = %error, "some wires could not be removed");
        }
    }

    /// Tells the managers that this node leaves, so that they need not wait for it. To nobody, if no session is open.
    pub async fn say_goodbye(&self, within: Duration) {
        if self.0.connected.borrow().is_none() {
            return;
        }
        self.0.goodbye.wanted.cancel();
        if tokio::time::timeout(within, self.0.goodbye.said.cancelled()).await.is_err() {
            tracing::info!("no manager has heard that this node leaves; they will find it silent");
        }
    }

    /// Ends every task of this node and removes what they leave: the node leaves its swarm.
    pub async fn remove_everything(&self, deadline: Duration) {
        self.0.assigned.send_replace(Arc::new(Assignments::farewell()));
        let file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(file) = file {
            let _ = std::fs::remove_file(file);
        }
        let until = tokio::time::Instant::now() + deadline;
        while tokio::time::Instant::now() < until {
            if self.0.adopted.load(Ordering::Acquire) && self.0.supervisors.idle() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tracing::warn!("some tasks did not end in time");
    }
}

impl session::Owner for Inner {
    fn goodbye(&self) -> &session::Goodbye {
        &self.goodbye
    }

    fn description(&self) -> NodeDescription {
        self.description.clone()
    }

    fn generation(&self) -> u64 {
        self.assigned.borrow().generation
    }

    fn assign(&self, change: AssignmentChange) -> Result<(), Status> {
        // In one step: a farewell in between must not be overwritten.
        let mut refused = None;
        self.assigned.send_if_modified(|held| match held.take(change) {
            Ok(next) => {
                *held = Arc::new(next);
                true
            }
            Err(error) => {
                refused = Some(error);
                false
            }
        });
        refused.map_or(Ok(()), |error| Err(Status::failed_precondition(error.to_string())))
    }

    fn managers(&self, addresses: Vec<String>) {
        if !addresses.is_empty() {
            self.managers.send_replace(addresses);
        }
    }

    fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    fn statuses(&self) -> &Statuses {
        &self.statuses
    }

    fn logs(&self) -> Arc<dyn logs::Source> {
        Arc::new(RuntimeLogs(Arc::clone(&self.runtime)))
    }

    fn known(&self, known: bool) {
        self.known.send_if_modified(|held| std::mem::replace(held, known) != known);
    }
}

impl logs::Source for Inner {
    fn lines(&self, task_id: &str, options: &LogOptions) -> Result<logs::Lines, String> {
        RuntimeLogs(Arc::clone(&self.runtime)).lines(task_id, options)
    }
}

/// Logs as the container runtime keeps them.
struct RuntimeLogs(Arc<Runtime>);

impl logs::Source for RuntimeLogs {
    fn lines(&self, task_id: &str, options: &LogOptions) -> Result<logs::Lines, String> {
        let time = |ns: i64| (ns > 0).then(|| Timestamp::from_nanosecond(i128::from(ns)).ok()).flatten();
        let tail = options.tail.and_then(|n| usize::try_from(n).ok());
        let id = container::id(task_id);
        let reader = self
            .0
            .logs(&id)
            .since(time(options.since_ns))
            .until(time(options.until_ns))
            .tail(tail)
            .follow(options.follow);
        let (stdout, stderr, task_id) = (options.stdout, options.stderr, task_id.to_owned());
        let lines = futures::stream::unfold(reader, |mut reader| async move { Some((reader.next().await?, reader)) });
        let lines = lines.map(move |line| line.map(|l| (l.stream == skep_runtime::Stream::Stderr, l)));
        let wanted = lines.filter_map(move |line| match line {
            Ok((is_stderr, line)) => {
                let at_ns = i64::try_from(line.time.as_nanosecond()).unwrap_or(0);
                let chosen = if is_stderr { stderr } else { stdout };
                let mut data = line.bytes;
                if !line.partial {
                    data.push(b'\n');
                }
                chosen.then(|| {
                    Ok(LogLine {
                        task_id: task_id.clone(),
                        node_id: String::new(),
                        at_ns,
                        stderr: is_stderr,
                        data: data.into(),
                    })
                })
            }
            Err(error) => Some(Err(error.to_string())),
        });
        Ok(Box::pin(wanted))
    }
}

/// Sandboxes whose namespaces are pinned.
fn pinned(dir: &std::path::Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    // A file without a namespace on it is what a crash or a reboot leaves; what can't be read counts as open.
    let stale = |error| matches!(error, NamespaceError::NotFound { .. } | NamespaceError::NotANamespace { .. });
    let open = entries.flatten().filter(|e| !Namespace::open(&e.path()).is_err_and(stale));
    open.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Keeps the desired wires in line with the assignments and the open sandboxes.
async fn wire(
    mut assigned: watch::Receiver<Arc<Assignments>>,
    mut sandboxes: watch::Receiver<Vec<String>>,
    desired: watch::Sender<Arc<Desired>>,
    facts: wires::Facts,
) {
    let mut wiring = wires::Wiring::new(facts);
    let mut published = BTreeSet::new();
    loop {
        let current = Arc::clone(&assigned.borrow_and_update());
        let open = sandboxes.borrow_and_update().clone();
        let (wires, problems) = wiring.desired(&current, &open);
        for problem in problems {
            tracing::error!(problem, generation = current.generation, "an assignment can't be wired");
        }
        let ports: BTreeSet<_> = current.kinds().flat_map(wires::ingress_ports).collect();
        // Before the first word of a manager the kernel stays as an earlier daemon left it, unless what that one was told
        // accounts for all that is there.
        if current.generation > 0 && current.explains(&open) {
            desired.send_if_modified(|held| {
                let news = **held != wires;
                if news {
                    *held = Arc::new(wires);
                }
                news
            });
        }
        let fresh: Vec<_> = ports.difference(&published).copied().collect();
        published = ports;
        if !fresh.is_empty() {
            for taken in tokio::task::spawn_blocking(move || listeners::taken(fresh)).await.unwrap_or_default() {
                tracing::warn!(problem = taken, "a service publishes a port that is listened on: it gets the traffic");
            }
        }
        tokio::select! {
            changed = assigned.changed() => if changed.is_err() { return },
            changed = sandboxes.changed() => if changed.is_err() { return },
        }
    }
}

/// Passes on which generation the wires show.
async fn acknowledge(driver: Driver, applied: watch::Sender<u64>) {
    let mut status = driver.status();
    loop {
        let generation = status.borrow_and_update().applied;
        applied.send_if_modified(|held| {
            let news = *held != generation;
            *held = generation;
            news
        });
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// What an earlier daemon was told, so that this one goes on without waiting for a manager. Secrets are not in it.
fn recall(file: &std::path::Path) -> Assignments {
    let Ok(bytes) = std::fs::read(file) else { return Assignments::default() };
    let change = AssignmentChange::decode(bytes.as_slice());
    change.ok().and_then(|c| Assignments::default().take(c).ok()).unwrap_or_default().remembered()
}

/// Keeps the assignments for the next daemon, a moment behind them: they are written in whole, which takes its time on a
/// node with much to know, and a manager repeats them anyway.
async fn keep(file: Arc<std::sync::Mutex<Option<PathBuf>>>, mut assigned: watch::Receiver<Arc<Assignments>>) {
    while assigned.changed().await.is_ok() {
        let (file, current) = (Arc::clone(&file), Arc::clone(&assigned.borrow_and_update()));
        let written = tokio::task::spawn_blocking(move || {
            // Held while it is written: afterwards nobody who forgets the file finds it again.
            let file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(path) = file.as_deref() else { return };
            if let Err(error) = remember(path, &current) {
                tracing::warn!(error = %error, file = %path.display(), "assignments can't be kept for a restart");
            }
        });
        if let Err(error) = written.await {
            tracing::error!(error = %error, "assignments can't be kept for a restart");
        }
        tokio::time::sleep(KEPT_EVERY).await;
    }
}

fn remember(file: &std::path::Path, assignments: &Assignments) -> std::io::Result<()> {
    let mut change = assignments.to_change();
    change.put.retain(|item| !matches!(item.kind, Some(Kind::Secret(_))));
    let temporary = file.with_extension("new");
    // Environments and configs are nobody else's business.
    let mut out = std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    out.write_all(&change.encode_to_vec())?;
    std::fs::rename(temporary, file)
}
