//! What the tests of whole clusters share: a lab that goes away with its test, and words for what is looked at.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use skep_deploy::lab::layout::OUTSIDE;
use skep_deploy::lab::{Lab, Plan, Stage, leftovers};

/// How long anything that should happen may take. Generous: it bounds a failure, it measures nothing.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How long one request may take.
pub const REQUEST: Duration = Duration::from_secs(3);

/// One test at a time has a cluster: `cargo test` runs the tests of a program beside each other, and whole clusters share
/// a machine badly.
static CLUSTERS: Mutex<()> = Mutex::new(());

/// The right to have clusters, until dropped.
pub struct Turn {
    _guard: MutexGuard<'static, ()>,
}

impl Turn {
    /// Waits for it. A test that failed with it has given it back like any other.
    pub fn wait() -> Rc<Self> {
        Rc::new(Self { _guard: CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner) })
    }
}

/// The name of a test's lab: no other process has it.
pub fn lab_name(what: &str) -> String {
    format!("{what}-{}", std::process::id())
}

/// A cluster for one test. Taken down when dropped, and looked after.
pub struct Cluster {
    /// The lab under it.
    pub lab: Lab,
    name: String,
    turn: Rc<Turn>,
}

impl Cluster {
    /// A cluster of so many nodes, the first of them managers, with the `whoami` image on every node.
    pub fn up(what: &str, nodes: usize, managers: usize) -> Result<Self> {
        Self::swarm(what, nodes, managers, Turn::wait())
    }

    /// Another one, at the same time.
    pub fn beside(&self, what: &str, nodes: usize, managers: usize) -> Result<Self> {
        Self::swarm(what, nodes, managers, Rc::clone(&self.turn))
    }

    /// A lab that is built only so far, without images.
    pub fn staged(what: &str, nodes: usize, managers: usize, stage: Stage) -> Result<Self> {
        Self::build(what, nodes, managers, stage, Turn::wait())
    }

    fn build(what: &str, nodes: usize, managers: usize, stage: Stage, turn: Rc<Turn>) -> Result<Self> {
        let name = lab_name(what);
        let plan = Plan { name: name.clone(), nodes, managers, stage };
        Ok(Self { lab: Lab::up(&plan, &program("skep")?, &mut |_| {})?, name, turn })
    }

    fn swarm(what: &str, nodes: usize, managers: usize, turn: Rc<Turn>) -> Result<Self> {
        let cluster = Self::build(what, nodes, managers, Stage::Swarm, turn)?;
        let image = program("whoami.tar")?;
        for node in cluster.lab.nodes() {
            cluster.lab.skep_ok(&node, &["image", "load", "--input", &image.to_string_lossy()])?;
        }
        Ok(cluster)
    }

    /// Runs `skep` against a node and expects success.
    pub fn skep(&self, node: &str, args: &[&str]) -> Result<String> {
        self.lab.skep_ok(node, args)
    }

    /// Makes the service `web`: published on 8080, on the overlay network `net`.
    pub fn web(&self, replicas: usize) -> Result<()> {
        self.skep("n1", &["network", "create", "--driver", "overlay", "net"])?;
        let replicas_text = replicas.to_string();
        self.skep(
            "n1",
            &[
                "service",
                "create",
                "--detach",
                "--name",
                "web",
                "--replicas",
                &replicas_text,
                "--publish",
                "8080:80",
                "--network",
                "net",
                "--restart-delay",
                "100ms",
                "whoami",
            ],
        )?;
        self.running("n1", "web", replicas).map(|_| ())
    }

    /// Waits until a service has exactly so many running tasks and no others that are wanted; task id to node.
    pub fn running(&self, asked: &str, service: &str, tasks: usize) -> Result<BTreeMap<String, String>> {
        let shown = eventually(&format!("{tasks} running tasks of {service}"), || {
            let all = self.tasks(asked, service)?;
            let running: BTreeMap<String, String> =
                all.iter().filter(|t| t.state.starts_with("Running")).map(|t| (t.id.clone(), t.node.clone())).collect();
            if running.len() == tasks && all.len() == tasks {
                return Ok(running);
            }
            bail!("{all:?}")
        });
        shown.with_context(|| self.skep(asked, &["service", "ps", "--no-trunc", service]).unwrap_or_default())
    }

    /// The tasks of a service that are wanted running, as listed.
    pub fn tasks(&self, asked: &str, service: &str) -> Result<Vec<Task>> {
        let format = "{{.ID}}|{{.Node}}|{{.CurrentState}}";
        let list = self.skep(
            asked,
            &["service", "ps", "--no-trunc", "--filter", "desired-state=running", "--format", format, service],
        )?;
        Ok(list
            .lines()
            .filter_map(|line| {
                let mut fields = line.split('|').map(str::to_owned);
                Some(Task { id: fields.next()?, node: fields.next()?, state: fields.next()? })
            })
            .collect())
    }

    /// The published port of a node.
    pub fn published(&self, node: &str) -> Result<SocketAddr> {
        Ok(format!("{}:8080", self.lab.address(node)?).parse()?)
    }

    /// Waits until every node answers on the published port from outside, with every one of so many tasks.
    pub fn reachable(&self, tasks: usize) -> Result<()> {
        for node in self.lab.nodes() {
            let address = self.published(&node)?;
            eventually(&format!("{tasks} tasks answering through {node}"), || {
                let mut seen = std::collections::BTreeSet::new();
                for _ in 0..tasks * 4 {
                    seen.insert(self.lab.ask(OUTSIDE, address, REQUEST)?.hostname);
                }
                if seen.len() == tasks { Ok(()) } else { bail!("only {seen:?}") }
            })?;
        }
        Ok(())
    }

    /// The node that leads, as another node sees it.
    pub fn leader(&self, asked: &str) -> Result<String> {
        let list = self.skep(asked, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
        let leader = list.lines().find_map(|l| l.strip_suffix(" Leader"));
        leader.map(|l| l.trim().to_owned()).with_context(|| format!("no leader in {list:?}"))
    }

    /// Fails unless the swarm lists exactly so many nodes.
    pub fn only(&self, asked: &str, nodes: usize) -> Result<()> {
        let list = self.skep(asked, &["node", "ls", "--quiet"])?;
        if list.lines().count() == nodes { Ok(()) } else { bail!("{nodes} nodes wanted: {list:?}") }
    }

    /// Name of its lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the cluster down and fails when something of it is left.
    pub fn down(self) -> Result<()> {
        let name = self.name.clone();
        drop(self);
        let left = leftovers(&name);
        if left.is_empty() { Ok(()) } else { bail!("left behind: {left:?}") }
    }
}

impl Drop for Cluster {
    #[expect(clippy::print_stderr, reason = "a failed test shows what the daemons said")]
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("SKEP_TEST_LOGS").is_some() {
            for node in self.lab.nodes() {
                let log = std::fs::read_to_string(self.lab.log(&node)).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(40).collect();
                eprintln!("--- {node}:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        if let Err(error) = Lab::down(&self.name) {
            eprintln!("lab {} could not be taken down: {error:#}", self.name);
        }
    }
}

/// A listed task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Id.
    pub id: String,
    /// Node's host name; empty before it has one.
    pub node: String,
    /// State with its age.
    pub state: String,
}

/// What is tested, `skep` or `whoami.tar`: as built together with this test, or what is in the directory `SKEP_TESTED`,
/// seen from the checkout.
pub fn program(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("SKEP_TESTED") {
        Some(directory) => checkout().join(directory),
        // This program is in `deps` below.
        None => std::env::current_exe()?.ancestors().nth(2).context("a test in no directory")?.to_owned(),
    };
    built(&directory.join(name), "make test")
}

/// What users get, `skep` or `whoami.tar`.
pub fn released(name: &str) -> Result<PathBuf> {
    built(&checkout().join("target").join(name), "make build")
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn built(path: &Path, by: &str) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("{} is not built; run: {by}", path.display()))
}

/// Tries until it succeeds; the last failure after the deadline.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let until = Instant::now() + DEADLINE;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > until => return Err(error.context(format!("{what}: not within 60 s"))),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Requests that go on in the background until stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    workers: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    /// One stream of requests to each address, from outside.
    pub fn start(lab: &Lab, addresses: &[SocketAddr]) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let workers = addresses
            .iter()
            .map(|address| {
                let (lab, address) = (lab.clone(), *address);
                let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
                std::thread::spawn(move || {
                    let mut failed = Vec::new();
                    while !stop.load(Ordering::Relaxed) && failed.len() < 20 {
                        sent.fetch_add(1, Ordering::Relaxed);
                        if let Err(error) = lab.get(OUTSIDE, address, REQUEST) {
                            failed.push(format!("{address}: {error:#}"));
                        }
                    }
                    failed
                })
            })
            .collect();
        Self { stop, sent, workers }
    }

    /// Requests that were sent so far.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until so many more requests were sent.
    pub fn more(&self, requests: usize) -> Result<()> {
        let goal = self.sent() + requests;
        eventually("requests", || if self.sent() >= goal { Ok(()) } else { bail!("{} sent", self.sent()) })
    }

    /// Ends it: how many were sent, and what failed.
    pub fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.workers.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect();
        (self.sent.load(Ordering::Relaxed), failed)
    }
}

/// One call of the Engine API.
pub fn api(socket: &Path, path: &str) -> Result<serde_json::Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(REQUEST))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: skep\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    serde_json::from_str(body).with_context(|| format!("{path}: {body}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_test_at_a_time_has_clusters_and_a_failed_one_gives_its_turn_back() {
        let turn = Turn::wait();
        assert!(matches!(CLUSTERS.try_lock(), Err(std::sync::TryLockError::WouldBlock)));
        let shared = Rc::clone(&turn);
        drop(turn);
        assert!(
            matches!(CLUSTERS.try_lock(), Err(std::sync::TryLockError::WouldBlock)),
            "a cluster of it still stands"
        );
        drop(shared);
        let failed = std::thread::spawn(|| {
            let _turn = Turn::wait();
            std::panic::resume_unwind(Box::new("as a failed test does"));
        });
        assert!(failed.join().is_err());
        let _next = Turn::wait();
    }
}
