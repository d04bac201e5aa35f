//! What this manager's sessions hear, brought to the leader in batches: acknowledgements for its memory, statuses and
//! registrations for the log. That a node lives travels apart from it ([`super::pulse`]).
//!
//! Bounded: a full queue makes workers wait for the answer to their report. A batch is kept and tried again until a
//! leader has it, so that a status is lost only together with the manager, and then the worker opens a new session and
//! reports everything anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_proto::pace::Pace;
use skep_proto::v1::peers_client::PeersClient;
use skep_proto::v1::{NodeBeat, NodeChange, RelayRequest, TaskStatusReport};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use super::pulse::Pulse;
use crate::intake::Intake;
use crate::line::Line;
use crate::raft::Raft;

/// Items that may wait.
const QUEUE: usize = 8192;
/// Items that travel together.
const BATCH: usize = 1024;
/// How long the leader may take for one batch.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long an item may wait for room: less than a worker waits for the answer to its report.
const ROOM: Duration = Duration::from_millis(800);
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
    pub(super) pulse: Pulse,
}

impl Relay {
    /// Queues an item; waits while the queue is full.
    pub(crate) async fn send(&self, item: Item) -> Result<(), Status> {
        // Workers are better off with a manager that is in touch; an election is shorter than this.
        if self.pulse.out_of_touch().is_some_and(|so_long| so_long > STUCK_AFTER) {
            return Err(Status::unavailable("this manager can't reach the leader; try another one"));
        }
        match tokio::time::timeout(ROOM, self.items.send(item)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::unavailable("this manager is shutting down")),
            Err(_) => Err(Status::resource_exhausted("this manager can't pass on what it hears; try another one")),
        }
    }

    /// Queues an item if there is room.
    pub(crate) fn offer(&self, item: Item) {
        let _ = self.items.try_send(item);
    }
}

/// The queue and the end that [`run`] reads. `pulse` knows whether a leader is there to be told.
pub(crate) fn queue(pulse: Pulse) -> (Relay, Queue) {
    let (items, receiver) = mpsc::channel(QUEUE);
    (Relay { items, pulse }, Queue { items: receiver })
}

/// The end of the queue that [`run`] reads.
#[derive(Debug)]
pub(crate) struct Queue {
    items: mpsc::Receiver<Item>,
}

/// Carries items to whoever leads, until told to stop.
pub(crate) async fn run(queue: Queue, raft: Arc<Raft>, line: Line, intake: Arc<Intake>, stop: CancellationToken) {
    let Queue { mut items } = queue;
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
            () = deliver(request, &raft, &line, &intake) => {}
            () = stop.cancelled() => return,
        }
        pace.turned(begun, Instant::now());
    }
}

/// Puts a batch into one message; of one node's heartbeats only the newest counts.
fn gather(batch: Vec<Item>) -> RelayRequest {
    let mut request = RelayRequest::default();
    let mut beats: BTreeMap<String, NodeBeat> = BTreeMap::new();
    for item in batch {
        match item {
            Item::Beat(mut beat) => {
                let before = beats.get(&beat.node_id);
                beat.heard |= before.is_some_and(|b| b.heard);
                beat.left |= before.is_some_and(|b| b.left);
                beats.insert(beat.node_id.clone(), beat);
            }
            Item::Status(report) => request.reports.push(report),
            Item::Registration(change) => request.registrations.push(*change),
        }
    }
    request.beats.extend(beats.into_values());
    request
}

async fn deliver(mut request: RelayRequest, raft: &Raft, line: &Line, intake: &Intake) {
    let mut leadership = raft.leadership();
    loop {
        let current = leadership.borrow_and_update().clone();
        let outcome = if current.is_self {
            intake.take(Instant::now(), request.clone()).await
        } else if let Some(leader) = &current.leader {
            pass_on(&request, &leader.address, line).await
        } else {
            Err(Status::unavailable("no leader"))
        };
        let Err(status) = outcome else { return };
        if matches!(status.code(), Code::InvalidArgument | Code::OutOfRange) {
            // No leader will ever take it, and what comes after it must not wait for ever.
            tracing::warn!(error = status.message(), "reports were refused for good and are dropped");
            return;
        }
        // By the next try it is an old story that they live.
        request.beats.iter_mut().for_each(|beat| beat.heard = false);
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
            Item::Beat(NodeBeat { node_id: node.into(), applied_generation: generation, heard: true, left: false })
        };
        let request = gather(vec![beat("a", 1), beat("b", 1), beat("a", 2)]);
        let beats: Vec<_> = request.beats.iter().map(|b| (b.node_id.as_str(), b.applied_generation)).collect();
        assert_eq!(beats, [("a", 2), ("b", 1)]);
        let left = NodeBeat { node_id: "a".into(), applied_generation: 2, heard: false, left: true };
        let request = gather(vec![beat("a", 1), Item::Beat(left.clone()), beat("a", 2)]);
        assert_eq!(request.beats, [NodeBeat { heard: true, ..left }], "a goodbye is not lost among the others");
    }
}
