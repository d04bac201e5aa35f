//! Logs of tasks, through the sessions of this manager: a subscription goes down to the workers, their lines come back
//! in streams of their own and are joined here. One worker that fails does not end the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_proto::v1::session_message::Kind;
use skep_proto::v1::{LogBatch, LogFailure, LogSubscription, PublishLogsRequest, SessionMessage, TaskLogsRequest};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::Dispatcher;

/// Batches that may wait for a slow reader; beyond that the workers wait.
const QUEUE: usize = 64;

/// A worker that has not begun to answer by then counts as failed.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);

/// How often an open subscription is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A reader that takes nothing for this long loses its subscription.
const READER_DEADLINE: Duration = Duration::from_secs(60);

/// Subscriptions that may be open at once on one manager.
const MAX_OPEN: usize = 256;

#[derive(Debug)]
struct Open {
    reader: mpsc::Sender<Result<LogBatch, Status>>,
    /// Nodes that were asked and have not finished.
    pending: BTreeMap<String, BTreeSet<String>>,
    /// Of these, the ones that have begun to answer.
    begun: BTreeSet<String>,
}

/// The open subscriptions of one manager.
#[derive(Debug, Default, Clone)]
pub(crate) struct Subscriptions(Arc<Mutex<HashMap<String, Open>>>);

impl Subscriptions {
    /// Streams what a worker sends for a subscription to its reader.
    pub(super) async fn publish(&self, node_id: &str, mut stream: Streaming<PublishLogsRequest>) -> Result<(), Status> {
        let mut subscription = None;
        let outcome = loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            };
            subscription.get_or_insert_with(|| message.subscription_id.clone());
            let mut batch = message.batch;
            let Some(reader) = self.begin(&message.subscription_id, node_id, batch.as_mut()) else {
                break Err(Status::not_found("nobody reads this subscription any more"));
            };
            let Some(batch) = batch else { continue };
            match tokio::time::timeout(READER_DEADLINE, reader.send(Ok(batch))).await {
                Ok(Ok(())) => {}
                _ => break Err(Status::cancelled("the reader of these logs has gone")),
            }
        };
        if let Some(id) = subscription {
            self.finish(&id, node_id);
        }
        outcome
    }

    /// Who reads what the node sends, of which only what it was asked for is left.
    fn begin(
        &self,
        id: &str,
        node_id: &str,
        batch: Option<&mut LogBatch>,
    ) -> Option<mpsc::Sender<Result<LogBatch, Status>>> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let subscription = open.get_mut(id)?;
        let asked = subscription.pending.get(node_id)?;
        if let Some(batch) = batch {
            restrict(batch, node_id, asked);
        }
        subscription.begun.insert(node_id.to_owned());
        Some(subscription.reader.clone())
    }

    /// A node has sent all it has; the last one ends the subscription.
    fn finish(&self, id: &str, node_id: &str) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(subscription) = open.get_mut(id) {
            subscription.pending.remove(node_id);
            if subscription.pending.is_empty() {
                open.remove(id);
            }
        }
    }

    /// A node's session ended: its part of every subscription is a failure with words.
    pub(super) fn node_left(&self, node_id: &str) {
        self.fail(|_, pending, _| pending.contains_key(node_id).then(|| node_id.to_owned()), "the node left");
    }

    fn fail(
        &self,
        which: impl Fn(&str, &BTreeMap<String, BTreeSet<String>>, &BTreeSet<String>) -> Option<String>,
        why: &str,
    ) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|id, subscription| {
            while let Some(node_id) = which(id, &subscription.pending, &subscription.begun) {
                let tasks = subscription.pending.remove(&node_id).unwrap_or_default();
                let failures = tasks
                    .into_iter()
                    .map(|task_id| LogFailure { task_id, node_id: node_id.clone(), message: why.to_owned() })
                    .collect();
                let _ = subscription.reader.try_send(Ok(LogBatch { failures, ..LogBatch::default() }));
            }
            !subscription.pending.is_empty()
        });
    }
}

/// Leaves of a batch what the node may say: words of its own tasks, in its own name, which its certificate tells.
fn restrict(batch: &mut LogBatch, node_id: &str, asked: &BTreeSet<String>) {
    batch.covered_task_ids.clear();
    batch.lines.retain(|line| asked.contains(&line.task_id));
    batch.failures.retain(|failure| asked.contains(&failure.task_id));
    batch.lines.iter_mut().for_each(|line| node_id.clone_into(&mut line.node_id));
    batch.failures.iter_mut().for_each(|failure| node_id.clone_into(&mut failure.node_id));
}

impl Dispatcher {
    /// Asks the workers that have their session here for the logs of the given tasks.
    ///
    /// The first batch names the tasks that are covered. The stream ends once every worker has finished.
    pub(crate) async fn task_logs(
        self: &Arc<Self>,
        request: TaskLogsRequest,
    ) -> Result<mpsc::Receiver<Result<LogBatch, Status>>, Status> {
        let view = self.store.view();
        let mut by_node: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for task_id in &request.task_ids {
            if let Some(task) = view.state.task(task_id)
                && self.session_of(&task.node_id).is_some()
            {
                by_node.entry(task.node_id.clone()).or_default().insert(task_id.clone());
            }
        }
        let (reader, lines) = mpsc::channel(QUEUE);
        let covered = by_node.values().flatten().cloned().collect();
        let _ = reader.try_send(Ok(LogBatch { covered_task_ids: covered, ..LogBatch::default() }));
        if by_node.is_empty() {
            return Ok(lines);
        }
        let id = skep_proto::id::new();
        {
            let mut open = self.subscriptions.0.lock().unwrap_or_else(PoisonError::into_inner);
            open.retain(|_, s| !s.reader.is_closed());
            if open.len() >= MAX_OPEN {
                return Err(Status::resource_exhausted(format!("{MAX_OPEN} log streams are open on this manager")));
            }
            open.insert(id.clone(), Open { reader: reader.clone(), pending: by_node.clone(), begun: BTreeSet::new() });
        }
        for (node_id, tasks) in &by_node {
            let subscription =
                LogSubscription { id: id.clone(), task_ids: tasks.iter().cloned().collect(), options: request.options };
            let Some(session) = self.session_of(node_id) else { continue };
            let _ = session.to_worker.try_send(Ok(SessionMessage { kind: Some(Kind::Logs(subscription)) }));
        }
        let (owner, nodes) = (Arc::clone(self), by_node.into_keys().collect::<Vec<_>>());
        let reader = {
            let weak = reader.downgrade();
            drop(reader);
            weak
        };
        self.tasks.spawn(async move { owner.watch_subscription(&id, &nodes, reader).await });
        Ok(lines)
    }

    /// Fails workers that never begin, and tells all of them when the reader has gone. Holds the reader weakly: the last
    /// worker to finish ends the stream at once.
    async fn watch_subscription(&self, id: &str, nodes: &[String], reader: mpsc::WeakSender<Result<LogBatch, Status>>) {
        let begin_until = tokio::time::Instant::now() + BEGIN_WITHIN;
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.stop.cancelled() => return,
            }
            if !self.subscriptions.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id) {
                return;
            }
            if reader.upgrade().is_none_or(|r| r.is_closed()) {
                break;
            }
            if tokio::time::Instant::now() > begin_until {
                self.subscriptions.fail(
                    |this, pending, begun| {
                        (this == id).then(|| pending.keys().find(|n| !begun.contains(*n)).cloned()).flatten()
                    },
                    "the node did not answer within 5 s",
                );
            }
        }
        self.subscriptions.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        for node_id in nodes {
            if let Some(session) = self.session_of(node_id) {
                let close = SessionMessage { kind: Some(Kind::CloseLogSubscriptionId(id.to_owned())) };
                let _ = session.to_worker.try_send(Ok(close));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_proto::v1::LogLine;

    use super::*;

    #[test]
    fn a_node_speaks_for_itself_and_of_the_tasks_that_it_was_asked_for() {
        let subscriptions = Subscriptions::default();
        let (reader, _lines) = mpsc::channel(1);
        let pending = [("n".to_owned(), BTreeSet::from(["own".to_owned()]))].into();
        let open = Open { reader, pending, begun: BTreeSet::new() };
        subscriptions.0.lock().unwrap_or_else(PoisonError::into_inner).insert("s".into(), open);
        let line = |task: &str| LogLine { task_id: task.into(), node_id: "else".into(), ..LogLine::default() };
        let failure = |task: &str| LogFailure { task_id: task.into(), node_id: "else".into(), ..LogFailure::default() };
        let mut batch = LogBatch {
            lines: vec![line("other"), line("own")],
            failures: vec![failure("own"), failure("other")],
            covered_task_ids: vec!["other".into()],
        };
        assert!(subscriptions.begin("s", "n", Some(&mut batch)).is_some());
        let own = LogBatch {
            lines: vec![LogLine { node_id: "n".into(), ..line("own") }],
            failures: vec![LogFailure { node_id: "n".into(), ..failure("own") }],
            covered_task_ids: Vec::new(),
        };
        assert_eq!(batch, own);
        assert!(subscriptions.begin("s", "else", Some(&mut batch)).is_none(), "it was not asked");
        assert!(subscriptions.begin("t", "n", None).is_none());
    }
}
