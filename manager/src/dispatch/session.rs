//! The manager's half of one session: sends a node its part of the state, whole at first, then the differences.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use skep_plan::assignment::Part;
use skep_proto::pace::Pace;
use skep_proto::v1::session_message::Kind;
use skep_proto::v1::{AssignmentChange, ManagerList, NodeBeat, Registered, SessionMessage};
use tonic::Status;

use super::relay::Item;
use super::{Dispatcher, Session, generation_base};

/// A worker that takes nothing for this long has its session closed.
const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// Serves the session until the worker goes, a newer session takes over or the manager stops.
pub(super) async fn serve(dispatcher: &Dispatcher, node_id: &str, session: &Session) {
    let ended = tokio::select! {
        ended = converse(dispatcher, node_id, session) => ended,
        () = session.cancel.cancelled() => Err(Ended::Cancelled),
        () = session.to_worker.closed() => Err(Ended::WorkerGone),
    };
    match ended {
        Ok(()) | Err(Ended::WorkerGone) => tracing::debug!(node.id = node_id, "session ended by the worker"),
        Err(Ended::Cancelled) => {
            let _ = session.to_worker.try_send(Err(Status::unavailable("the session was closed by the manager")));
        }
        Err(Ended::Removed) => {
            let _ = session
                .to_worker
                .try_send(Err(Status::permission_denied(format!("node {node_id} was removed from the cluster"))));
        }
        Err(Ended::TooSlow) => tracing::warn!(node.id = node_id, "session closed: the worker took nothing for 10 s"),
    }
}

#[derive(Debug)]
enum Ended {
    Cancelled,
    WorkerGone,
    Removed,
    TooSlow,
}

async fn converse(dispatcher: &Dispatcher, node_id: &str, session: &Session) -> Result<(), Ended> {
    let mut applied = dispatcher.store.applied();
    let mut part = Part::new(node_id);
    let mut managers = Arc::default();
    let mut first = true;
    let mut pace = Pace::default();
    loop {
        let begun = Instant::now();
        applied.borrow_and_update();
        let view = dispatcher.store.view();
        let Some(_) = view.state.node(node_id) else { return Err(Ended::Removed) };
        if first {
            let heartbeat_ns = view.state.cluster().and_then(|c| c.spec.as_ref().map(|s| s.heartbeat_ns));
            let registered =
                Registered { session_id: session.id.clone(), heartbeat_ns: heartbeat_ns.unwrap_or(1_000_000_000) };
            send(session, Kind::Registered(registered)).await?;
        }
        let now_managers = dispatcher.managers(&view);
        if now_managers != managers {
            managers = now_managers;
            send(session, Kind::Managers(ManagerList { addresses: managers.to_vec() })).await?;
        }
        let (put, remove) = part.follow(&view.state);
        if first || !put.is_empty() || !remove.is_empty() {
            let change = AssignmentChange {
                generation: generation_base(&view.state) + view.index,
                complete: first,
                put: put.into_iter().map(Arc::unwrap_or_clone).collect(),
                remove,
            };
            session.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).sent(view.index);
            send(session, Kind::Assignment(change)).await?;
        } else {
            let (before, now) = {
                let mut book = session.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
                (book.acknowledged(), book.nothing_new(view.index))
            };
            if before != now {
                let beat = NodeBeat { node_id: node_id.to_owned(), applied_generation: now, heard: false };
                // A beat that is lost is repeated with the worker's next report.
                dispatcher.relay.offer(Item::Beat(beat));
            }
        }
        first = false;
        pace.turned(begun, Instant::now());
        if applied.changed().await.is_err() {
            return Err(Ended::Cancelled);
        }
        tokio::time::sleep_until(pace.next(Instant::now()).into()).await;
    }
}

async fn send(session: &Session, kind: Kind) -> Result<(), Ended> {
    let message = Ok(SessionMessage { kind: Some(kind) });
    match tokio::time::timeout(SEND_DEADLINE, session.to_worker.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::WorkerGone),
        Err(_) => Err(Ended::TooSlow),
    }
}
