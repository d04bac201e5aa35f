//! A service's logs, wherever its tasks run: asks every manager for the tasks whose workers it serves and joins the
//! streams. What can't be had is said per task; the rest goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, SelectAll};
use skep_proto::v1::peers_client::PeersClient;
use skep_proto::v1::{LogBatch, LogFailure, LogOptions, Task, TaskLogsRequest, TaskState};
use skep_state::State;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::Manager;

/// Batches that may wait for a slow reader.
const QUEUE: usize = 64;
/// How long a manager may take to begin its answer.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);

/// How often somebody who follows logs looks for more tasks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Whose logs are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogTasks {
    /// These tasks'.
    pub task_ids: Vec<String>,
    /// And, when they are followed, those of all tasks that this service gets.
    pub service_id: Option<String>,
}

/// What managers answered.
struct Asked {
    streams: Vec<(Vec<String>, Batches)>,
    /// Tasks whose node has a session with nobody.
    missing: BTreeSet<String>,
}

/// Which tasks are to be asked for next by somebody who reads all that comes. Pure.
#[derive(Debug, Default)]
struct Following {
    tasks: LogTasks,
    options: LogOptions,
    /// Tasks that were asked for and whose lines come.
    reading: BTreeSet<String>,
    /// Tasks from which nothing will come any more.
    over: BTreeSet<String>,
    /// Time of the newest line of each, Unix nanoseconds.
    last_ns: BTreeMap<String, i64>,
}

impl Following {
    fn new(tasks: LogTasks, options: LogOptions) -> Self {
        Self { tasks, options, ..Self::default() }
    }

    /// All tasks that are followed and there.
    fn all<'a>(&'a self, state: &'a State) -> impl Iterator<Item = Arc<Task>> + 'a {
        let given = self.tasks.task_ids.iter().filter_map(|id| state.task(id));
        let service = self.tasks.service_id.as_deref();
        let of_service = service.into_iter().flat_map(|id| state.tasks_of_service(id)).cloned();
        given.chain(of_service)
    }

    /// The time that the reader named as the end has come.
    fn is_late(&self, now_ns: i64) -> bool {
        self.options.until_ns > 0 && now_ns > self.options.until_ns
    }

    /// What to ask for now, and how; it counts as being read from now on.
    fn requests(&mut self, state: &State, now_ns: i64) -> Vec<(Vec<String>, LogOptions)> {
        if self.is_late(now_ns) {
            return Vec::new();
        }
        // Whoever follows for a year must not remember every task of it.
        self.over.retain(|id| state.task(id).is_some());
        self.last_ns.retain(|id, _| state.task(id).is_some());
        // A container that is not there yet has no log.
        let begun = |task: &Arc<Task>| task.observed() >= TaskState::Running && !task.node_id.is_empty();
        let new = |task: &Arc<Task>| !self.reading.contains(&task.id) && !self.over.contains(&task.id);
        let wanted: BTreeSet<String> = self.all(state).filter(begun).filter(new).map(|task| task.id.clone()).collect();
        let mut requests: Vec<(Vec<String>, LogOptions)> = Vec::new();
        for id in wanted {
            let options = self.options_of(&id);
            match requests.iter_mut().find(|(_, of_others)| *of_others == options) {
                Some((ids, _)) => ids.push(id.clone()),
                None => requests.push((vec![id.clone()], options)),
            }
            self.reading.insert(id);
        }
        requests
    }

    /// A task that has been read goes on behind its last line; one that came later is read from its beginning.
    fn options_of(&self, id: &str) -> LogOptions {
        match self.last_ns.get(id) {
            Some(last) => LogOptions { since_ns: last + 1, tail: None, ..self.options },
            None if self.tasks.task_ids.iter().any(|given| given == id) => self.options,
            None => LogOptions { tail: None, ..self.options },
        }
    }

    /// Notes what came. A task that may say more is asked again: that is no failure for somebody who waits. What one
    /// that has ended had said can't be had.
    fn heard(&mut self, state: &State, mut batch: LogBatch) -> LogBatch {
        for line in &batch.lines {
            let last = self.last_ns.entry(line.task_id.clone()).or_default();
            *last = line.at_ns.max(*last);
        }
        batch.failures.retain(|failure| {
            let tasks = std::slice::from_ref(&failure.task_id);
            self.ended(state, tasks);
            self.over.contains(&failure.task_id)
        });
        batch
    }

    /// No more comes of these tasks for now: for ever, if they have ended.
    fn ended(&mut self, state: &State, tasks: &[String]) {
        for id in tasks {
            let was_read = self.reading.remove(id);
            if was_read && state.task(id).is_some_and(|task| task.observed().is_terminal()) {
                self.over.insert(id.clone());
            }
        }
    }

    /// Whether nothing can come any more.
    fn is_over(&self, state: &State, now_ns: i64) -> bool {
        let service = self.tasks.service_id.as_deref();
        let may_come = service.is_some_and(|id| state.service(id).is_some());
        self.is_late(now_ns) || (!may_come && self.all(state).all(|task| self.over.contains(&task.id)))
    }
}

/// What to say of tasks whose node has a session with nobody. One that was never placed has no log, and that is no
/// failure.
fn out_of_reach(state: &State, tasks: BTreeSet<String>) -> Vec<LogFailure> {
    let failure = |task_id: String| {
        let node_id = state.task(&task_id).map(|task| task.node_id.clone()).filter(|node| !node.is_empty())?;
        Some(LogFailure { task_id, node_id, message: "the node is not connected to any manager".to_owned() })
    };
    tasks.into_iter().filter_map(failure).collect()
}

type Batches = std::pin::Pin<Box<dyn futures::Stream<Item = Result<LogBatch, Status>> + Send>>;

impl Manager {
    /// Logs of tasks from all nodes. Ends when every worker has finished; with `follow` when no task is left that may
    /// say more, or the reader goes. Failures of single nodes are part of the stream, unless it goes on.
    pub fn task_logs(&self, tasks: LogTasks, options: LogOptions) -> mpsc::Receiver<LogBatch> {
        let (out, reader) = mpsc::channel(QUEUE);
        let this = self.clone();
        self.tasks.spawn(async move {
            let read = out.clone();
            let gather = async {
                if options.follow {
                    this.follow_logs(Following::new(tasks, options), out).await;
                } else {
                    this.gather_logs(tasks.task_ids, options, out).await;
                }
            };
            tokio::select! {
                () = gather => {}
                () = read.closed() => {}
                () = this.stop.cancelled() => {}
            }
        });
        reader
    }

    async fn gather_logs(&self, task_ids: Vec<String>, options: LogOptions, out: mpsc::Sender<LogBatch>) {
        let view = self.store.view();
        let asked = self.open_logs(task_ids, options).await;
        let failures = out_of_reach(&view.state, asked.missing);
        if !failures.is_empty() && out.send(LogBatch { failures, ..LogBatch::default() }).await.is_err() {
            return;
        }
        let mut all = futures::stream::select_all(asked.streams.into_iter().map(|(_, stream)| stream));
        while let Some(batch) = all.next().await {
            match batch {
                Ok(batch) => {
                    if out.send(batch).await.is_err() {
                        return;
                    }
                }
                Err(status) => tracing::debug!(error = status.message(), "a stream of logs broke off"),
            }
        }
    }

    /// Reads on when tasks come, when a node is back that was away, and when another manager serves it.
    async fn follow_logs(&self, mut following: Following, out: mpsc::Sender<LogBatch>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let (mut opening, mut streams) = (FuturesUnordered::new(), SelectAll::new());
        loop {
            tokio::select! {
                _ = look.tick() => {
                    let (view, now) = (self.store.view(), crate::control::now_ns());
                    for (tasks, options) in following.requests(&view.state, now) {
                        let this = self.clone();
                        opening.push(async move { this.open_logs(tasks, options).await });
                    }
                    if streams.is_empty() && opening.is_empty() && following.is_over(&view.state, now) {
                        return;
                    }
                }
                Some(asked) = opening.next(), if !opening.is_empty() => {
                    let state = &self.store.view().state;
                    let failures = out_of_reach(state, asked.missing);
                    let batch = following.heard(state, LogBatch { failures, ..LogBatch::default() });
                    if !batch.failures.is_empty() && out.send(batch).await.is_err() {
                        return;
                    }
                    for (tasks, stream) in asked.streams {
                        // The last item says whose lines have come to their end.
                        let end = futures::stream::once(std::future::ready(Err(tasks)));
                        streams.push(Box::pin(stream.filter_map(Result::ok).map(Ok).chain(end)));
                    }
                }
                Some(item) = streams.next(), if !streams.is_empty() => match item {
                    Ok(batch) => {
                        let batch = following.heard(&self.store.view().state, batch);
                        let says = !batch.lines.is_empty() || !batch.failures.is_empty();
                        if says && out.send(batch).await.is_err() {
                            return;
                        }
                    }
                    Err(tasks) => following.ended(&self.store.view().state, &tasks),
                },
            }
        }
    }

    /// Asks all managers for the logs of tasks. Each stream comes with the tasks that it covers.
    async fn open_logs(&self, task_ids: Vec<String>, options: LogOptions) -> Asked {
        let view = self.store.view();
        let request =
            TaskLogsRequest { task_ids: task_ids.clone(), options: Some(options), ..TaskLogsRequest::default() };
        let mut missing: BTreeSet<String> = task_ids.into_iter().collect();
        let mut begun = Vec::new();
        for node in view.state.nodes() {
            let Some(manager) = &node.manager else { continue };
            let stream = if node.id == self.node_id {
                self.dispatcher
                    .task_logs(request.clone())
                    .await
                    .map(|lines| Box::pin(ReceiverStream::new(lines)) as Batches)
            } else {
                self.remote_logs(&manager.address, request.clone()).await
            };
            match stream {
                Ok(stream) => begun.push(stream),
                Err(status) => {
                    tracing::debug!(node.id = node.id, error = status.message(), "a manager has no logs to give")
                }
            }
        }
        // The first batch of each tells which tasks it covers; what nobody covers has no connected worker.
        let mut streams = Vec::new();
        for mut stream in begun {
            if let Ok(Some(Ok(batch))) = tokio::time::timeout(BEGIN_WITHIN, stream.next()).await {
                for task in &batch.covered_task_ids {
                    missing.remove(task);
                }
                streams.push((batch.covered_task_ids, stream));
            }
        }
        Asked { streams, missing }
    }

    async fn remote_logs(&self, address: &str, request: TaskLogsRequest) -> Result<Batches, Status> {
        let channel = self.control.dialer.channel(address).map_err(|e| Status::unavailable(e.to_string()))?;
        let mut client = PeersClient::new(channel);
        let answer = tokio::time::timeout(BEGIN_WITHIN, client.task_logs(request))
            .await
            .map_err(|_| Status::deadline_exceeded("the manager did not answer"))??;
        Ok(Box::pin(answer.into_inner()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use skep_proto::v1::{
        Action, Annotations, Command, ContainerSpec, LogLine, Node, NodeSpec, Object, ObjectKind, Service, ServiceSpec,
        TaskSpec, TaskStatus, action, object,
    };

    use super::*;

    struct World {
        state: State,
        index: u64,
    }

    impl World {
        /// With the service `web` and the node `n`.
        fn new() -> Self {
            let mut world = Self { state: State::default(), index: 0 };
            let annotations = Some(Annotations { name: "web".into(), ..Annotations::default() });
            let task = Some(TaskSpec { container: Some(ContainerSpec::default()), ..TaskSpec::default() });
            let spec = Some(ServiceSpec { annotations, task, ..ServiceSpec::default() });
            let service = Service { id: "web".into(), spec, ..Service::default() };
            world.apply(action::Kind::Put(Object { kind: Some(object::Kind::Service(service)) }));
            let spec = Some(NodeSpec { annotations: Some(Annotations::default()), ..NodeSpec::default() });
            let node = Node { id: "n".into(), spec, ..Node::default() };
            world.apply(action::Kind::Put(Object { kind: Some(object::Kind::Node(node)) }));
            world
        }

        fn apply(&mut self, kind: action::Kind) {
            self.index += 1;
            let command = Command { actions: vec![Action { kind: Some(kind) }], ..Command::default() };
            let (reply, _) = self.state.apply(self.index, &command);
            assert_eq!(reply.refusal, None);
        }

        fn task(&mut self, id: &str, state: TaskState) {
            let status = Some(TaskStatus { state: state.into(), ..TaskStatus::default() });
            let task = Task {
                id: id.into(),
                service_id: "web".into(),
                node_id: "n".into(),
                spec_version: self.state.service("web").unwrap().spec_version,
                status,
                meta: self.state.task(id).and_then(|task| task.meta),
                ..Task::default()
            };
            self.apply(action::Kind::Put(Object { kind: Some(object::Kind::Task(task)) }));
        }
    }

    fn line(task: &str, at_ns: i64) -> LogLine {
        LogLine { task_id: task.into(), at_ns, ..LogLine::default() }
    }

    /// Tasks, since when, and how many of the last lines.
    fn shown(requests: &[(Vec<String>, LogOptions)]) -> Vec<String> {
        let show = |(ids, o): &(Vec<String>, LogOptions)| {
            format!("{} {} {}", ids.join(","), o.since_ns, o.tail.map_or("all".to_owned(), |tail| tail.to_string()))
        };
        let mut shown: Vec<String> = requests.iter().map(show).collect();
        shown.sort();
        shown
    }

    #[test]
    fn who_follows_hears_of_tasks_that_come_and_goes_on_behind_the_last_line() {
        let mut w = World::new();
        w.task("a", TaskState::Running);
        w.task("b", TaskState::Starting);
        let tasks = LogTasks { task_ids: vec!["a".into(), "b".into()], service_id: Some("web".into()) };
        let options = LogOptions { follow: true, tail: Some(3), since_ns: 5, ..LogOptions::default() };
        let mut following = Following::new(tasks, options);
        // One that has not begun has no log yet; what is being read is asked for once.
        assert_eq!(shown(&following.requests(&w.state, 0)), ["a 5 3"]);
        assert!(following.requests(&w.state, 0).is_empty());
        w.task("b", TaskState::Running);
        w.task("new", TaskState::Running);
        assert_eq!(shown(&following.requests(&w.state, 0)), ["b 5 3", "new 5 all"]);
        // The node of one is lost, nobody has a session with that of another one.
        let failure = LogFailure { task_id: "a".into(), ..LogFailure::default() };
        let batch =
            LogBatch { lines: vec![line("a", 70), line("a", 60)], failures: vec![failure], ..LogBatch::default() };
        let heard = following.heard(&w.state, batch);
        assert_eq!((heard.lines.len(), heard.failures.len()), (2, 0));
        let failures = out_of_reach(&w.state, BTreeSet::from(["b".to_owned(), "none".to_owned()]));
        let heard = following.heard(&w.state, LogBatch { failures, ..LogBatch::default() });
        assert!(heard.failures.is_empty());
        assert_eq!(shown(&following.requests(&w.state, 0)), ["a 71 all", "b 5 3"]);
        // What has ended is read to its end, and then no more.
        w.task("a", TaskState::Complete);
        following.ended(&w.state, &["a".into()]);
        assert!(following.requests(&w.state, 0).is_empty());
        assert!(!following.is_over(&w.state, 0));
        // Of one that has ended, nothing more can be had: that is said, and it is not asked for again.
        w.task("b", TaskState::Failed);
        let failures = out_of_reach(&w.state, BTreeSet::from(["b".to_owned()]));
        let heard = following.heard(&w.state, LogBatch { failures, ..LogBatch::default() });
        assert_eq!(heard.failures.len(), 1);
        assert!(following.requests(&w.state, 0).is_empty());
        // What the cluster has forgotten is forgotten here.
        assert_eq!((following.over.len(), following.last_ns.len()), (2, 1));
        for id in ["a", "b", "new"] {
            w.apply(crate::action::remove(ObjectKind::Task, id, 0).kind.unwrap());
        }
        assert!(following.requests(&w.state, 0).is_empty());
        assert_eq!((following.over.len(), following.last_ns.len()), (0, 0));
    }

    #[test]
    fn following_ends_with_the_tasks_or_at_the_time_that_was_named() {
        let mut w = World::new();
        w.task("a", TaskState::Running);
        let tasks = LogTasks { task_ids: vec!["a".into()], service_id: None };
        let options = LogOptions { follow: true, until_ns: 100, ..LogOptions::default() };
        let mut following = Following::new(tasks, options);
        assert_eq!(following.requests(&w.state, 100).len(), 1);
        assert!(!following.is_over(&w.state, 100) && following.is_over(&w.state, 101));
        following.ended(&w.state, &["a".into()]);
        assert!(following.requests(&w.state, 101).is_empty());
        assert_eq!(following.requests(&w.state, 100).len(), 1);
        w.task("a", TaskState::Failed);
        following.ended(&w.state, &["a".into()]);
        assert!(following.is_over(&w.state, 0));
        // Neither the task nor the service is there.
        let gone = LogTasks { task_ids: vec!["gone".into()], service_id: Some("none".into()) };
        assert!(Following::new(gone, LogOptions::default()).is_over(&w.state, 0));
    }
}
