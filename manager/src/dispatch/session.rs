//! The manager's half of one session: sends a node its part of the state, whole at first, then the differences.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;
use skep_plan::assignment::Part;
use skep_proto::pace::Pace;
use skep_proto::v1::session_message::Kind;
use skep_proto::v1::{AssignmentChange, ManagerList, NodeBeat, Registered, SessionMessage};
use tonic::Status;

use super::relay::Item;
use super::{Dispatcher, Session, generation_base};

/// A worker that takes nothing for this long has its session closed.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of one message of an assignment: a node may have more secrets and configs than a message can be large.
const PIECE: usize = 4 << 20;

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
                more: false,
            };
            session.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).sent(view.index);
            for piece in pieces(change, PIECE) {
                send(session, Kind::Assignment(piece)).await?;
            }
        } else {
            let (before, now) = {
                let mut book = session.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
                (book.acknowledged(), book.nothing_new(view.index))
            };
            if before != now {
                let beat = NodeBeat { node_id: node_id.to_owned(), applied_generation: now, heard: false, left: false };
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

/// Cuts a change into messages of about `bytes` encoded bytes; an item that is larger stands alone. All but the last say
/// that there is more.
fn pieces(change: AssignmentChange, bytes: usize) -> Vec<AssignmentChange> {
    let AssignmentChange { generation, complete, put, remove, .. } = change;
    let mut pieces = vec![AssignmentChange { generation, complete, remove, ..AssignmentChange::default() }];
    let mut size = 0;
    for item in put {
        let len = item.encoded_len();
        if size > 0 && size + len > bytes {
            // Whether it is complete, the first one says for all.
            pieces.push(AssignmentChange { generation, ..AssignmentChange::default() });
            size = 0;
        }
        size += len;
        if let Some(piece) = pieces.last_mut() {
            piece.put.push(item);
        }
    }
    let last = pieces.len() - 1;
    pieces[..last].iter_mut().for_each(|piece| piece.more = true);
    pieces
}

async fn send(session: &Session, kind: Kind) -> Result<(), Ended> {
    let message = Ok(SessionMessage { kind: Some(kind) });
    match tokio::time::timeout(SEND_DEADLINE, session.to_worker.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::WorkerGone),
        Err(_) => Err(Ended::TooSlow),
    }
}

#[cfg(test)]
mod tests {
    use skep_proto::v1::{Assignment, AssignmentKey, Config, ConfigSpec, assignment};

    use super::*;

    #[test]
    fn a_change_is_cut_by_bytes_and_comes_together_again() {
        let config = |id: usize| Assignment {
            kind: Some(assignment::Kind::Config(Config {
                id: id.to_string(),
                spec: Some(ConfigSpec { data: vec![7; 1000].into(), ..ConfigSpec::default() }),
                ..Config::default()
            })),
        };
        let put: Vec<_> = (0..20).map(config).collect();
        let remove = vec![AssignmentKey { kind: 0, id: "gone".into() }];
        let change = AssignmentChange { generation: 9, complete: true, put: put.clone(), remove, more: false };
        assert_eq!(pieces(change.clone(), 1 << 20), std::slice::from_ref(&change));
        for bytes in [1, 3000] {
            let cut = pieces(change.clone(), bytes);
            assert_eq!(cut.len(), if bytes == 1 { 20 } else { 10 });
            let (last, rest) = cut.split_last().unwrap_or((&change, &[]));
            assert!(!last.more && rest.iter().all(|piece| piece.more));
            assert!(cut.iter().all(|piece| piece.generation == 9));
            let flags: Vec<_> = cut.iter().map(|piece| (piece.complete, piece.remove.len())).collect();
            assert_eq!(flags[0], (true, 1));
            assert!(flags[1..].iter().all(|flags| *flags == (false, 0)));
            assert_eq!(cut.into_iter().flat_map(|piece| piece.put).collect::<Vec<_>>(), put);
        }
        let nothing = AssignmentChange { generation: 1, complete: true, ..AssignmentChange::default() };
        assert_eq!(pieces(nothing.clone(), 1), [nothing]);
    }
}
