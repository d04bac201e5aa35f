//! What this manager's sessions hear, brought to the leader in batches: heartbeats and acknowledgements for its memory,
//! statuses and registrations for the log.
//!
//! Bounded: a full queue makes workers wait for the answer to their report. A batch is kept and tried again until a
//! leader has it, so that a status is lost only together with the manager, and then the worker opens a new session and
//! reports everything anew.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use skep_proto::pace::Pace;
use skep_proto::v1::peers_client::PeersClient;
use skep_proto::v1::{NodeBeat, NodeChange, RelayRequest, TaskStatusReport};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use crate::intake::Intake;
use crate::line::Line;
use crate::raft::Raft;

/// Items that may wait.
const QUEUE: usize = 8192;
/// Items that travel together.
const BATCH: usize = 1024;
/// How long the leader may take for one batch.
const DEADLINE: Duration = Duration::from_secs(3);
/// A manager that has not reached a leader for this long sends its workers elsewhere.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// One thing to pass on.
#[derive(Debug)]
pub(crate) enum Item {
    /// A node is alive and shows a generation.
    Beat(NodeBeat),
    /// A worker's word on one of its tasks.
    Status(TaskStatusReport),
    /// A node has opened a session.
    Registration(Box<NodeChange>),
}

/// The way in.
#[derive(Debug, Clone)]
pub(crate) struct Relay {
    items: mpsc::Sender<Item>,
    stuck: Stuck,
}

/// Since when no batch has reached a leader; `None` while they do.
type Stuck = Arc<Mutex<Option<Instant>>>;

impl Relay {
    /// Queues an item; waits while the queue is full.
    pub(crate) async fn send(&self, item: Item) -> Result<(), Status> {
        // Workers are better off with a manager that is in touch; an election is shorter than this.
        let stuck = *self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        if stuck.is_some_and(|since| since.elapsed() > STUCK_AFTER) {
            return Err(Status::unavailable("this manager can't reach the leader; try another one"));
        }
        match tokio::time::timeout(DEADLINE, self.items.send(item)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::unavailable("this manager is shutting down")),
            Err(_) => Err(Status::resource_exhausted("this manager can't reach the leader; try another one")),
        }
    }

    /// Queues an item if there is room.
    pub(crate) fn offer(&self, item: Item) {
        let _ = self.items.try_send(item);
    }
}

/// The queue and the end that [`run`] reads.
pub(crate) fn queue() -> (Relay, Queue) {
    let (items, receiver) = mpsc::channel(QUEUE);
    let stuck = Stuck::default();
    (Relay { items, stuck: Arc::clone(&stuck) }, Queue { items: receiver, stuck })
}

/// The end of the queue that [`run`] reads.
#[derive(Debug)]
pub(crate) struct Queue {
    items: mpsc::Receiver<Item>,
    stuck: Stuck,
}

/// Carries items to whoever leads, until told to stop.
pub(crate) async fn run(queue: Queue, raft: Arc<Raft>, line: Line, intake: Arc<Intake>, stop: CancellationToken) {
    let Queue { mut items, stuck } = queue;
    let mut pace = Pace::default();
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            n = items.recv_many(&mut batch, BATCH) => if n == 0 { return },
            () = stop.cancelled() => return,
        }
        tokio::time::sleep_until(pace.next(Instant::now()).into()).await;
        let begun = Instant::now();
        while batch.len() < BATCH {
            match items.try_recv() {
                Ok(item) => batch.push(item),
                Err(_) => break,
            }
        }
        let request = gather(batch);
        tokio::select! {
            () = deliver(&request, &raft, &line, &intake, &stuck) => {}
            () = stop.cancelled() => return,
        }
        pace.turned(begun, Instant::now());
    }
}

/// Puts a batch into one message; of one node's heartbeats only the newest counts.
fn gather(batch: Vec<Item>) -> RelayRequest {
    let mut request = RelayRequest::default();
    for item in batch {
        match item {
            Item::Beat(mut beat) => {
                beat.heard |= request.beats.iter().any(|b| b.node_id == beat.node_id && b.heard);
                request.beats.retain(|b| b.node_id != beat.node_id);
                request.beats.push(beat);
            }
            Item::Status(report) => request.reports.push(report),
            Item::Registration(change) => request.registrations.push(*change),
        }
    }
    request
}

async fn deliver(request: &RelayRequest, raft: &Raft, line: &Line, intake: &Intake, stuck: &Stuck) {
    let mut leadership = raft.leadership();
    loop {
        let current = leadership.borrow_and_update().clone();
        let outcome = if current.is_self {
            intake.take(Instant::now(), request.clone()).await
        } else if let Some(leader) = &current.leader {
            pass_on(request, &leader.address, line).await
        } else {
            Err(Status::unavailable("no leader"))
        };
        let Err(status) = outcome else {
            *stuck.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return;
        };
        if matches!(status.code(), Code::InvalidArgument | Code::OutOfRange) {
            // No leader will ever take it, and what comes after it must not wait for ever.
            tracing::warn!(error = status.message(), "reports were refused for good and are dropped");
            return;
        }
        stuck.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        tracing::debug!(error = status.message(), "reports wait for a leader");
        // The next leader, or the same one after a pause.
        let _ = tokio::time::timeout(Duration::from_millis(100), leadership.changed()).await;
    }
}

async fn pass_on(request: &RelayRequest, address: &str, line: &Line) -> Result<(), Status> {
    let channel = line.to(address).map_err(|e| Status::unavailable(e.to_string()))?;
    let call = async { PeersClient::new(channel).relay(Request::new(request.clone())).await };
    let answer = tokio::time::timeout(DEADLINE, call).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the leader did not answer")));
    answer.map(|_| ()).inspect_err(|_| line.cut())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_nodes_beats_the_newest_travels() {
        let beat = |node: &str, generation| {
            Item::Beat(NodeBeat { node_id: node.into(), applied_generation: generation, heard: true })
        };
        let request = gather(vec![beat("a", 1), beat("b", 1), beat("a", 2)]);
        let beats: Vec<_> = request.beats.iter().map(|b| (b.node_id.as_str(), b.applied_generation)).collect();
        assert_eq!(beats, [("b", 1), ("a", 2)]);
    }
}
