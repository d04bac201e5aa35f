//! The effects of a task's life: images, wires and containers of this node, each behind the room that owns it.

mod mapping;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use skep_image::{Image, Store};
use skep_netdrv::{Driver, Namespace, NamespaceError, SandboxState};
use skep_proto::v1::{NodeDescription, TaskAssignment};
use skep_runtime::{ContainerSpec, Runtime, State};
use skep_task::{Container, Exit, Facts, Failure, Sandbox};
use tokio::sync::watch;

use crate::assignments::Assignments;
use crate::container::{self, rejected};
use crate::listeners;
use crate::supervise::{Hands, Process};
use crate::wires;

/// How long the wires of a sandbox may take: longer than any transient trouble, shorter than an operator's patience.
const WIRES_WITHIN: Duration = Duration::from_secs(30);
/// How long one step of a container may take.
const STEP_WITHIN: Duration = Duration::from_secs(60);

/// Labels of a container's own book-keeping, invisible in the API.
pub(crate) const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// This node's hands.
pub(crate) struct NodeHands {
    pub(crate) images: Arc<Store>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) driver: Driver,
    pub(crate) netns_dir: PathBuf,
    pub(crate) search: Vec<String>,
    /// What managers are told of this node.
    pub(crate) node: NodeDescription,
    pub(crate) assignments: watch::Receiver<Arc<Assignments>>,
    /// Tasks whose sandbox is open: the wires are made for these.
    pub(crate) sandboxes: watch::Sender<Vec<String>>,
    /// Images that were resolved for tasks that wait for their container.
    pub(crate) resolved: RwLock<HashMap<String, Image>>,
}

impl NodeHands {
    fn sandbox_opened(&self, task_id: &str) {
        self.sandboxes.send_if_modified(|open| {
            let news = !open.iter().any(|id| id == task_id);
            if news {
                open.push(task_id.to_owned());
            }
            news
        });
    }

    fn image_of(&self, task_id: &str) -> Option<Image> {
        self.resolved.read().unwrap_or_else(PoisonError::into_inner).get(task_id).cloned()
    }

    async fn resolve(&self, reference: &str) -> Result<Image, Failure> {
        let (store, name) = (Arc::clone(&self.images), reference.to_owned());
        match tokio::task::spawn_blocking(move || store.resolve(&name)).await {
            Ok(Ok(image)) => Ok(image),
            Ok(Err(skep_image::Error::NotFound(_))) => Err(rejected(format!(
                "No such image: {reference}; load it on this node: skep image load --input ARCHIVE"
            ))),
            Ok(Err(error)) => Err(rejected(format!("image {reference}: {error}"))),
            Err(error) => Err(failed(format!("image {reference} could not be looked up: {error}"))),
        }
    }

    /// The container of a task. `made_of`: the id of the image to take, whatever the spec's name for it means by now.
    async fn spec(&self, task: &TaskAssignment, made_of: Option<&str>) -> Result<ContainerSpec, Failure> {
        let own = task.task.as_ref().ok_or_else(|| rejected("the assignment holds no task".to_owned()))?;
        let wanted = container::spec(task).ok_or_else(|| rejected("the task's spec has no container".to_owned()))?;
        let wanted = &mapping::template(wanted, own, task, &self.node)?;
        let image = match (made_of, self.image_of(&own.id)) {
            (Some(id), _) => self.resolve(id).await?,
            (None, Some(image)) => image,
            (None, None) => self.resolve(&wanted.image).await?,
        };
        let process = container::process(wanted, &image.config)?;
        let (store, id) = (Arc::clone(&self.images), image.id.clone());
        let layers = tokio::task::spawn_blocking(move || store.layers(&id)).await.map_err(|e| failed(e.to_string()))?;
        let layers = layers.map_err(|e| failed(format!("layers of image {}: {e}", wanted.image)))?;
        // Secrets are not kept on disk: after a restart they come with the first words of a manager.
        let mut assignments = self.assignments.clone();
        let delivered = assignments.wait_for(|a| container::files(a, wanted).is_ok());
        let _ = tokio::time::timeout(WIRES_WITHIN, delivered).await;
        let files = container::files(&self.assignments.borrow(), wanted)?;
        let given = mapping::Given {
            process,
            layers,
            image_id: image.id,
            files,
            netns: self.netns_dir.join(&own.id),
            search: &self.search,
        };
        mapping::container(task, own, wanted, given)
    }
}

impl Hands for NodeHands {
    async fn find(&self, task_id: &str) -> Result<(Facts, Process), Failure> {
        let id = container::id_of(task_id);
        let mut facts = Facts::default();
        let mut process = Process::default();
        let state = self.runtime.state(&id).await;
        facts.container = match state.map_err(|e| failed(format!("the container can't be read: {}", chain(&e))))? {
            State::Created => Container::Created,
            State::Running { pid, started_at } => {
                process = Process { pid, started_ns: nanoseconds(started_at) };
                Container::Running
            }
            State::Exited(exit) => Container::Exited(ended(exit)),
            State::Missing => Container::Absent,
        };
        match Namespace::open(&self.netns_dir.join(task_id)) {
            Ok(_) => {
                facts.sandbox = if facts.container == Container::Absent { Sandbox::Open } else { Sandbox::Attached };
                self.sandbox_opened(task_id);
            }
            Err(NamespaceError::NotFound { .. }) => {}
            // A pin without a namespace, as a crash or a reboot leaves it.
            Err(NamespaceError::NotANamespace { .. }) => self.close_sandbox(task_id).await?,
            Err(error) => return Err(failed(format!("network namespace: {}", chain(&error)))),
        }
        facts.image = facts.container != Container::Absent;
        facts.restarts = self.runtime.inspect(&id).await.map_or(0, |record| record.restarts);
        facts.stop_sent = self.runtime.asked_to_stop(&id);
        Ok((facts, process))
    }

    async fn ensure_image(&self, task: &TaskAssignment) -> Result<(), Failure> {
        let wanted = container::spec(task).ok_or_else(|| rejected("the task's spec has no container".to_owned()))?;
        let image = self.resolve(&wanted.image).await?;
        if let Some(own) = &task.task {
            self.resolved.write().unwrap_or_else(PoisonError::into_inner).insert(own.id.clone(), image);
        }
        Ok(())
    }

    async fn open_sandbox(&self, task: &TaskAssignment) -> Result<(), Failure> {
        let own = task.task.as_ref().ok_or_else(|| rejected("the assignment holds no task".to_owned()))?;
        let task_id = &own.id;
        // Before it has wires: with them the port's traffic would be the task's.
        let ports = wires::host_ports(own);
        if !ports.is_empty() {
            let taken = tokio::task::spawn_blocking(move || listeners::taken(ports)).await.unwrap_or_default();
            if let Some(taken) = taken.first() {
                return Err(failed(format!("address already in use: {taken}; stop that, or publish another port")));
            }
        }
        self.driver.open_sandbox(task_id).await.map_err(|e| failed(format!("network namespace: {e}")))?;
        self.sandbox_opened(task_id);
        Ok(())
    }

    async fn await_networks(&self, task_id: &str) -> Result<(), Failure> {
        let mut status = self.driver.status();
        // The driver tries again whatever failed, so a failure counts only when it lasts.
        let ready = status.wait_for(|s| matches!(s.sandboxes.get(task_id), Some(SandboxState::Ready { .. })));
        match tokio::time::timeout(WIRES_WITHIN, ready).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(_)) => return Err(failed("the network driver has stopped".to_owned())),
            Err(_) => {}
        }
        let last = self.driver.status().borrow().sandboxes.get(task_id).cloned();
        let why = match last {
            Some(SandboxState::Failed { why }) => why,
            _ => "a network of it is not known on this node".to_owned(),
        };
        Err(failed(format!("networks: not plugged in within {} s: {why}", WIRES_WITHIN.as_secs())))
    }

    async fn create(&self, task: &TaskAssignment) -> Result<(), Failure> {
        let spec = self.spec(task, None).await?;
        let made = timed("creating the container", self.runtime.create(&spec)).await;
        if let Some(own) = &task.task {
            self.resolved.write().unwrap_or_else(PoisonError::into_inner).remove(&own.id);
        }
        made
    }

    async fn renew(&self, task: &TaskAssignment) -> Result<(), Failure> {
        let own = task.task.as_ref().ok_or_else(|| rejected("the assignment holds no task".to_owned()))?;
        let record = self.runtime.inspect(&container::id_of(&own.id)).await;
        let labels = record.map_err(|e| failed(format!("the container can't be read: {}", chain(&e))))?.labels;
        let made_of = labels.into_iter().find(|(name, _)| name == container::IMAGE_LABEL).map(|(_, image)| image);
        let spec = self.spec(task, made_of.as_deref()).await?;
        timed("creating the container again", self.runtime.renew(&spec)).await
    }

    async fn start(&self, task_id: &str) -> Result<Process, Failure> {
        let started = timed("starting the container", self.runtime.start(&container::id_of(task_id))).await?;
        Ok(Process { pid: started.pid, started_ns: nanoseconds(started.started_at) })
    }

    async fn wait(&self, task_id: &str) -> Result<Exit, Failure> {
        exit_or_gone(self.runtime.wait(&container::id_of(task_id)).await)
    }

    async fn stop_signal(&self, task_id: &str) -> Option<i32> {
        let record = self.runtime.inspect(&container::id_of(task_id)).await.ok()?;
        Some(record.spec.stop_signal())
    }

    async fn stop(&self, task_id: &str, task: &TaskAssignment) -> Result<Exit, Failure> {
        let grace = skep_proto::time::duration(container::grace_ns(task));
        exit_or_gone(self.runtime.stop(&container::id_of(task_id), grace).await)
    }

    async fn close_sandbox(&self, task_id: &str) -> Result<(), Failure> {
        self.resolved.write().unwrap_or_else(PoisonError::into_inner).remove(task_id);
        self.sandboxes.send_if_modified(|open| {
            let before = open.len();
            open.retain(|id| id != task_id);
            open.len() != before
        });
        self.driver.close_sandbox(task_id).await.map_err(|e| failed(format!("network namespace: {e}")))
    }

    async fn remove(&self, task_id: &str) -> Result<(), Failure> {
        timed("removing the container", self.runtime.remove(&container::id_of(task_id))).await
    }

    async fn leftovers(&self) -> Result<Vec<String>, Failure> {
        let mut left = Vec::new();
        for id in self.runtime.list().await.map_err(|e| failed(chain(&e)))? {
            let task = match self.runtime.inspect(&id).await {
                Ok(record) => record.labels.into_iter().find(|(name, _)| name == TASK_LABEL).map(|(_, task)| task),
                Err(_) => None,
            };
            // Without a task's name the container goes by its own.
            left.push(task.unwrap_or(id));
        }
        if let Ok(entries) = std::fs::read_dir(&self.netns_dir) {
            left.extend(entries.flatten().filter_map(|e| e.file_name().into_string().ok()));
        }
        Ok(left)
    }
}

fn failed(message: String) -> Failure {
    Failure { message, rejected: false }
}

fn nanoseconds(at: Option<Timestamp>) -> i64 {
    at.map_or(0, |at| i64::try_from(at.as_nanosecond()).unwrap_or(0))
}

fn ended(exit: skep_runtime::Exit) -> Exit {
    let at_ns = nanoseconds(Some(exit.finished_at));
    Exit { code: exit.code, oom_killed: exit.oom_killed, error: exit.error, at_ns }
}

/// A container of which nothing is left has ended too: nothing would be found by waiting for it.
fn exit_or_gone(exit: Result<skep_runtime::Exit, skep_runtime::Error>) -> Result<Exit, Failure> {
    match exit {
        Ok(exit) => Ok(ended(exit)),
        Err(skep_runtime::Error::NotFound(_)) => {
            let error = Some("the container is gone: somebody removed it".to_owned());
            Ok(Exit { code: 255, error, ..Exit::default() })
        }
        Err(error) => Err(failed(chain(&error))),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

async fn timed<T, E: std::error::Error>(what: &str, step: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    match tokio::time::timeout(STEP_WITHIN, step).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(failed(format!("{what}: {}", chain(&error)))),
        Err(_) => Err(failed(format!("{what} took longer than {} s", STEP_WITHIN.as_secs()))),
    }
}
