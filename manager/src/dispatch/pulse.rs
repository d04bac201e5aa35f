//! Signs of life: which nodes this manager has heard of, told to the leader apart from what they report. A report waits
//! for disks and for its turn; a node that waits with it must not pass for dead.
//!
//! Decides nothing about a node. Nothing is tried again: the next heartbeat says the same. What it knows besides is
//! whether this manager is in touch with a leader, for [`super::relay`]. Callers: sessions; the manager runs [`run`].

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use skep_proto::pace::Pace;
use skep_proto::v1::peers_client::PeersClient;
use skep_proto::v1::{NodeBeat, RelayRequest};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::intake::Intake;
use crate::line::Line;
use crate::raft::Raft;

/// How long telling the leader may take: less than a heartbeat, of which a node may miss three.
const WITHIN: Duration = Duration::from_millis(900);

/// Where signs of life are left. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pulse(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Nodes that were heard of and that the leader was not told of yet. No more than there are nodes.
    heard: Mutex<BTreeSet<String>>,
    news: Notify,
    /// Since when no leader could be told; `None` while one can.
    out_of_touch: Mutex<Option<Instant>>,
}

impl Pulse {
    /// A node was heard of.
    pub(crate) fn heard(&self, node_id: &str) {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(node_id.to_owned());
        self.0.news.notify_one();
    }

    /// For how long no leader could be told anything.
    pub(crate) fn out_of_touch(&self) -> Option<Duration> {
        self.0.out_of_touch.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed())
    }

    fn take(&self) -> Vec<NodeBeat> {
        let heard = std::mem::take(&mut *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner));
        heard.into_iter().map(|node_id| NodeBeat { node_id, applied_generation: 0, heard: true, left: false }).collect()
    }

    fn told(&self, begun: Instant, outcome: &Result<(), Status>) {
        let mut out_of_touch = self.0.out_of_touch.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => *out_of_touch = None,
            Err(status) => {
                out_of_touch.get_or_insert(begun);
                tracing::debug!(error = status.message(), "the leader could not be told which nodes live");
            }
        }
    }
}

/// Tells whoever leads, until told to stop.
pub(crate) async fn run(pulse: Pulse, raft: Arc<Raft>, line: Line, intake: Arc<Intake>, stop: CancellationToken) {
    let mut pace = Pace::default();
    loop {
        tokio::select! {
            () = pulse.0.news.notified() => {}
            () = stop.cancelled() => return,
        }
        tokio::time::sleep_until(pace.next(Instant::now()).into()).await;
        let begun = Instant::now();
        let beats = pulse.take();
        if beats.is_empty() {
            continue;
        }
        let outcome = tokio::select! {
            told = tokio::time::timeout(WITHIN, tell(beats, &raft, &line, &intake)) => {
                told.unwrap_or_else(|_| Err(Status::deadline_exceeded("the leader did not answer")))
            }
            () = stop.cancelled() => return,
        };
        if outcome.is_err() {
            line.cut();
        }
        pulse.told(begun, &outcome);
        pace.turned(begun, Instant::now());
    }
}

async fn tell(beats: Vec<NodeBeat>, raft: &Raft, line: &Line, intake: &Intake) -> Result<(), Status> {
    let mut leadership = raft.leadership();
    let known = leadership.wait_for(|l| l.is_self || l.leader.is_some()).await;
    let current = known.map_err(|_| Status::unavailable("this manager is shutting down"))?.clone();
    let request = RelayRequest { beats, ..RelayRequest::default() };
    match current.leader {
        _ if current.is_self => intake.take(Instant::now(), request).await,
        Some(leader) => {
            let channel = line.to(&leader.address).map_err(|e| Status::unavailable(e.to_string()))?;
            PeersClient::new(channel).relay(Request::new(request)).await.map(|_| ())
        }
        None => Err(Status::unavailable("no leader is known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_counts_once_and_a_manager_is_in_touch_again_with_the_first_answer() {
        let pulse = Pulse::default();
        for node in ["b", "a", "b"] {
            pulse.heard(node);
        }
        let taken: Vec<_> = pulse.take().into_iter().map(|b| (b.node_id, b.heard)).collect();
        assert_eq!(taken, [("a".to_owned(), true), ("b".to_owned(), true)]);
        assert_eq!(pulse.take(), []);
        assert_eq!(pulse.out_of_touch(), None);
        let failed = Err(Status::unavailable("nobody leads"));
        let begun = Instant::now();
        pulse.told(begun, &failed);
        pulse.told(begun + Duration::from_secs(60), &failed);
        assert!(pulse.out_of_touch().is_some_and(|for_so_long| for_so_long < Duration::from_secs(60)));
        pulse.told(begun, &Ok(()));
        assert_eq!(pulse.out_of_touch(), None);
    }
}
