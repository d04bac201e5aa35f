//! The worker's half of a session: finds a manager, takes in what it assigns, tells it what happened. When a manager
//! goes, another one is found; the node runs on meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use skep_proto::pace::Pace;
use skep_proto::v1::dispatcher_client::DispatcherClient;
use skep_proto::v1::session_message::Kind;
use skep_proto::v1::{NodeDescription, ReportRequest, SessionMessage, SessionRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::assignments::Pieces;
use crate::{Connector, logs};

/// How long a manager may take to open a session.
const OPEN_WITHIN: Duration = Duration::from_secs(3);
/// How long it may take to answer a report, before the next manager is tried.
const REPORT_WITHIN: Duration = Duration::from_millis(900);
/// How long more news is waited for after the first while tasks are on their way to running: those that start together are
/// told of together, and steps on the way not one by one. Every report costs all managers a turn.
const LINGER: Duration = Duration::from_millis(100);
/// Statuses in one report.
const REPORT_SIZE: usize = 1000;
/// Pause after every known manager was tried in vain; doubles.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A session that was open for this long was one; a manager that ends it sooner is as good as none.
const STEADY: Duration = Duration::from_secs(5);
/// Largest message that a manager may send.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// A node's last word to the managers.
#[derive(Debug, Default)]
pub(crate) struct Goodbye {
    /// It is to be said.
    pub(crate) wanted: CancellationToken,
    /// A manager has heard it.
    pub(crate) said: CancellationToken,
}

/// What a session works on: the rest of the worker, seen from here.
pub(crate) trait Owner: Send + Sync {
    /// Who this node is and what it has.
    fn description(&self) -> NodeDescription;
    /// Newest generation that is held.
    fn generation(&self) -> u64;
    /// A manager's wish. An error ends the session.
    fn assign(&self, change: skep_proto::v1::AssignmentChange) -> Result<(), Status>;
    /// Where managers are.
    fn managers(&self, addresses: Vec<String>);
    /// Generation that the wires show.
    fn applied(&self) -> watch::Receiver<u64>;
    /// Statuses that nobody was told yet.
    fn statuses(&self) -> &crate::statuses::Statuses;
    /// Where logs come from.
    fn logs(&self) -> Arc<dyn logs::Source>;
    /// Whether the node is leaving.
    fn goodbye(&self) -> &Goodbye;
    /// Whether the last manager that was asked takes this node for one of the cluster's.
    fn known(&self, known: bool);
}

/// Keeps a session open until told to stop. `node_id`: this node's, which says where in the list of managers it begins.
pub(crate) async fn run<O: Owner>(
    owner: &O,
    node_id: &str,
    connector: &dyn Connector,
    managers: watch::Receiver<Vec<String>>,
    connected: &watch::Sender<Option<String>>,
    stop: &CancellationToken,
) {
    let mut turn = beginning(node_id);
    let mut pause = PAUSE;
    loop {
        let addresses = managers.borrow().clone();
        for _ in 0..addresses.len() {
            let address = &addresses[turn % addresses.len()];
            turn = turn.wrapping_add(1);
            let outcome = tokio::select! {
                outcome = one(owner, connector, address, connected) => outcome,
                () = stop.cancelled() => return,
            };
            connected.send_replace(None);
            if owner.goodbye().said.is_cancelled() {
                return;
            }
            match outcome {
                Ok(open) => pause = pause_after(pause, open),
                Err(status) => {
                    judged(owner, &status);
                    tracing::debug!(manager.address = address, error = status.message(), code = ?status.code(), "no session");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Where in the list of managers a node begins, to be taken modulo the number of managers: the same at every start, and
/// spread evenly over the nodes of a cluster.
fn beginning(node_id: &str) -> usize {
    let digest: [u8; 32] = Sha256::digest(node_id).into();
    usize::from(u16::from_be_bytes([digest[0], digest[1]]))
}

/// The pause once a session has ended that was `open` for so long.
fn pause_after(pause: Duration, open: Duration) -> Duration {
    if open >= STEADY { PAUSE } else { pause }
}

/// One session, from its beginning to its end. `Ok` says how long it was open.
async fn one<O: Owner>(
    owner: &O,
    connector: &dyn Connector,
    address: &str,
    connected: &watch::Sender<Option<String>>,
) -> Result<Duration, Status> {
    let channel = connector.channel(address).map_err(|e| Status::unavailable(e.to_string()))?;
    let mut client = DispatcherClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let request = SessionRequest { description: Some(owner.description()), generation: owner.generation() };
    let opened = async {
        let mut messages = client.session(request).await?.into_inner();
        match messages.message().await? {
            Some(SessionMessage { kind: Some(Kind::Registered(registered)) }) => Ok((registered, messages)),
            _ => Err(Status::internal("the manager opened the session with something else than a registration")),
        }
    };
    let (registered, messages) = tokio::time::timeout(OPEN_WITHIN, opened)
        .await
        .map_err(|_| Status::deadline_exceeded("the manager did not open a session within 3 s"))??;
    tracing::info!(manager.address = address, session.id = registered.session_id, "session open");
    let begun = Instant::now();
    connected.send_replace(Some(address.to_owned()));
    owner.known(true);
    owner.statuses().retell();
    let heartbeat = skep_proto::time::duration(registered.heartbeat_ns).max(Duration::from_millis(100));
    let ended = tokio::select! {
        ended = listen(owner, messages, &client) => ended,
        ended = tell(owner, client.clone(), &registered.session_id, heartbeat) => ended,
    };
    judged(owner, &ended);
    tracing::info!(manager.address = address, why = ended.message(), "session ended");
    Ok(begun.elapsed())
}

/// A manager refuses a node for one reason only: its state has no such node.
fn judged<O: Owner>(owner: &O, status: &Status) {
    if status.code() == Code::PermissionDenied {
        owner.known(false);
    }
}

/// Takes in what the manager says, until the stream ends.
async fn listen<O: Owner>(
    owner: &O,
    mut messages: Streaming<SessionMessage>,
    client: &DispatcherClient<Channel>,
) -> Status {
    // Each log stream is owned by this session and ends with it.
    let mut streams: HashMap<String, tokio_util::task::AbortOnDropHandle<()>> = HashMap::new();
    let mut pieces = Pieces::default();
    loop {
        let message = match messages.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Status::unavailable("the manager closed the session"),
            Err(status) => return status,
        };
        match message.kind {
            Some(Kind::Assignment(piece)) => {
                let taken = match pieces.add(piece) {
                    Ok(Some(change)) => owner.assign(change),
                    Ok(None) => Ok(()),
                    Err(refused) => Err(Status::failed_precondition(refused.to_string())),
                };
                if let Err(status) = taken {
                    return status;
                }
            }
            Some(Kind::Managers(list)) => owner.managers(list.addresses),
            Some(Kind::Logs(subscription)) => {
                streams.retain(|_, task| !task.is_finished());
                if streams.len() >= logs::MAX_STREAMS {
                    tracing::warn!(streams = streams.len(), "too many log streams; one more is refused");
                    continue;
                }
                let id = subscription.id.clone();
                let task = tokio::spawn(logs::publish(owner.logs(), client.clone(), subscription));
                streams.insert(id, tokio_util::task::AbortOnDropHandle::new(task));
            }
            Some(Kind::CloseLogSubscriptionId(id)) => drop(streams.remove(&id)),
            Some(Kind::Registered(_)) | None => {}
        }
    }
}

/// Tells the manager what happened, at once when there is news and with every heartbeat.
async fn tell<O: Owner>(
    owner: &O,
    mut client: DispatcherClient<Channel>,
    session_id: &str,
    heartbeat: Duration,
) -> Status {
    let mut news = owner.statuses().news();
    let mut applied = owner.applied();
    let mut pace = Pace::default();
    loop {
        let begun = Instant::now();
        news.borrow_and_update();
        let statuses = owner.statuses().take(REPORT_SIZE);
        let more = statuses.len() == REPORT_SIZE;
        let leaving = !more && owner.goodbye().wanted.is_cancelled();
        let report = ReportRequest {
            session_id: session_id.to_owned(),
            statuses,
            applied_generation: *applied.borrow_and_update(),
            leaving,
        };
        let within = REPORT_WITHIN.max(heartbeat * 9 / 10);
        match tokio::time::timeout(within, client.report(report)).await {
            Ok(Ok(_)) => {}
            // What was not heard is told again to the next manager: a new session retells everything.
            Ok(Err(status)) => return status,
            Err(_) => return Status::deadline_exceeded("the manager did not answer a heartbeat in time"),
        }
        if leaving {
            owner.goodbye().said.cancel();
            return Status::ok("this node leaves the swarm");
        }
        if more {
            continue;
        }
        pace.turned(begun, Instant::now());
        tokio::select! {
            _ = news.changed() => {}
            _ = applied.changed() => {}
            () = owner.goodbye().wanted.cancelled() => continue,
            // A sign of life does not wait for anything.
            () = tokio::time::sleep(heartbeat) => continue,
        }
        // Whichever is first: it was long enough, or nothing is on its way any more.
        let linger = LINGER.min(heartbeat / 4);
        let _ = tokio::time::timeout(linger, owner.statuses().settled()).await;
        tokio::time::sleep_until(pace.next(Instant::now()).into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_begin_at_managers_of_their_own() {
        for (node_id, of_three, of_five) in
            [("", 1, 3), ("a", 2, 3), ("b", 1, 2), ("c", 0, 1), ("4ad9u0gkqv3tq2j1y5b1y9w8s", 0, 3)]
        {
            let begins = beginning(node_id);
            assert_eq!((begins % 3, begins % 5), (of_three, of_five), "{node_id}");
        }
        for managers in [2, 3, 5, 7] {
            let mut nodes = vec![0; managers];
            for n in 0..1000 {
                nodes[beginning(&format!("node-{n}")) % managers] += 1;
            }
            let fair = 1000 / managers;
            assert!(nodes.iter().all(|n| (fair * 3 / 4..=fair * 5 / 4).contains(n)), "{nodes:?}");
        }
    }

    #[test]
    fn only_a_session_that_was_open_for_a_while_ends_the_pauses() {
        let (ms, longer) = (Duration::from_millis, Duration::from_millis(800));
        for (open, expected) in [(ms(0), longer), (ms(4999), longer), (ms(5000), PAUSE), (ms(60_000), PAUSE)] {
            assert_eq!(pause_after(longer, open), expected, "open for {open:?}");
        }
    }
}
