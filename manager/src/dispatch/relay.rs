//! What this manager's sessions hear, brought to the leader in batches: heartbeats and acknowledgements for its memory,
//! statuses and registrations for the log.
//!
//! Bounded: a full queue makes workers wait for the answer to their report. A batch is kept and tried again until a
//! leader has it, so that a status is lost only together with the manager, and then the worker opens a new session and
//! reports everything anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_proto::v1::peers_client::PeersClient;
use skep_proto::v1::{NodeBeat, NodeChange, RelayRequest, TaskStatusReport};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::intake::Intake;
use crate::raft::{Dialer, Raft};

/// Items that may wait.
const QUEUE: usize = 8192;
/// Items that travel together.
const BATCH: usize = 1024;
/// How long the leader may take for one batch.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long to wait for items that come right after the first.
const GATHER: Duration = Duration::from_millis(2);

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
pub(crate) struct Relay(mpsc::Sender<Item>);

impl Relay {
    /// Queues an item; waits while the queue is full.
    pub(crate) async fn send(&self, item: Item) -> Result<(), Status> {
        match tokio::time::timeout(DEADLINE, self.0.send(item)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::unavailable("this manager is shutting down")),
            Err(_) => Err(Status::resource_exhausted("this manager can't reach the leader; try another one")),
        }
    }

    /// Queues an item if there is room.
    pub(crate) fn offer(&self, item: Item) {
        let _ = self.0.try_send(item);
    }
}

/// The queue and the end that [`run`] reads.
pub(crate) fn queue() -> (Relay, mpsc::Receiver<Item>) {
    let (send, receive) = mpsc::channel(QUEUE);
    (Relay(send), receive)
}

/// Carries items to whoever leads, until told to stop.
pub(crate) async fn run(
    mut items: mpsc::Receiver<Item>,
    raft: Arc<Raft>,
    dialer: Arc<dyn Dialer>,
    intake: Arc<Intake>,
    stop: CancellationToken,
) {
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            n = items.recv_many(&mut batch, BATCH) => if n == 0 { return },
            () = stop.cancelled() => return,
        }
        tokio::time::sleep(GATHER).await;
        while batch.len() < BATCH {
            match items.try_recv() {
                Ok(item) => batch.push(item),
                Err(_) => break,
            }
        }
        let request = gather(batch);
        tokio::select! {
            () = deliver(&request, &raft, dialer.as_ref(), &intake) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Puts a batch into one message; of one node's heartbeats only the newest counts.
fn gather(batch: Vec<Item>) -> RelayRequest {
    let mut request = RelayRequest::default();
    for item in batch {
        match item {
            Item::Beat(beat) => {
                request.beats.retain(|b| b.node_id != beat.node_id);
                request.beats.push(beat);
            }
            Item::Status(report) => request.reports.push(report),
            Item::Registration(change) => request.registrations.push(*change),
        }
    }
    request
}

async fn deliver(request: &RelayRequest, raft: &Raft, dialer: &dyn Dialer, intake: &Intake) {
    let mut leadership = raft.leadership();
    loop {
        let current = leadership.borrow_and_update().clone();
        let outcome = if current.is_self {
            intake.take(Instant::now(), request.clone()).await
        } else if let Some(leader) = &current.leader {
            pass_on(request, &leader.address, dialer).await
        } else {
            Err(Status::unavailable("no leader"))
        };
        let Err(status) = outcome else { return };
        tracing::debug!(error = status.message(), "reports wait for a leader");
        // The next leader, or the same one after a pause.
        let _ = tokio::time::timeout(Duration::from_millis(100), leadership.changed()).await;
    }
}

async fn pass_on(request: &RelayRequest, address: &str, dialer: &dyn Dialer) -> Result<(), Status> {
    let channel = dialer.channel(address).map_err(|e| Status::unavailable(e.to_string()))?;
    let call = async { PeersClient::new(channel).relay(Request::new(request.clone())).await };
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer.map(|_| ()),
        Err(_) => Err(Status::deadline_exceeded("the leader did not answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_nodes_beats_the_newest_travels() {
        let beat =
            |node: &str, generation| Item::Beat(NodeBeat { node_id: node.into(), applied_generation: generation });
        let request = gather(vec![beat("a", 1), beat("b", 1), beat("a", 2)]);
        let beats: Vec<_> = request.beats.iter().map(|b| (b.node_id.as_str(), b.applied_generation)).collect();
        assert_eq!(beats, [("b", 1), ("a", 2)]);
    }
}
