//! Sessions with workers. Every manager serves them from its own applied state; what workers report goes to the leader
//! through the relay.
//!
//! Never decides what runs where: it shows each node its part of the state (`skep_plan::assignment`) and passes words
//! on. Callers: workers over gRPC, with a certificate of either role; a node speaks for itself only.

pub(crate) mod acknowledge;
mod logs;
pub(crate) mod pulse;
pub(crate) mod relay;
mod session;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use skep_proto::v1::{
    NodeBeat, NodeChange, NodeState, NodeStatus, PublishLogsRequest, PublishLogsResponse, ReportRequest,
    ReportResponse, SessionMessage, SessionRequest, TaskStatusReport, dispatcher_server,
};
use skep_state::State;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::peer::require_node;
use crate::store::{Store, View};
use relay::{Item, Relay};

pub(crate) use logs::Subscriptions;

/// Messages that may wait for a slow worker before its session is closed.
const SESSION_QUEUE: usize = 64;

/// Tasks whose status one report may carry.
const MAX_REPORTS: usize = 10_000;

/// Bytes of a node's description: host name, labels, addresses.
const MAX_DESCRIPTION: usize = 64 * 1024;

/// Bytes of one task's status; its error text is the largest part.
const MAX_STATUS: usize = 8 * 1024;

/// A node that has just been given its certificate by the leader may be news to this manager. Shorter than workers wait
/// for a session, so that they hear the answer.
const NODE_APPEARS_WITHIN: Duration = Duration::from_secs(2);

/// One open session.
#[derive(Debug)]
struct Session {
    id: String,
    cancel: CancellationToken,
    acknowledged: Mutex<acknowledge::Acknowledge>,
    to_worker: mpsc::Sender<Result<SessionMessage, Status>>,
}

/// The worker-facing side of one manager.
#[derive(Debug)]
pub struct Dispatcher {
    store: Arc<Store>,
    relay: Relay,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    /// The managers' addresses at one log index.
    managers: Mutex<(u64, Arc<[String]>)>,
    pub(crate) subscriptions: Subscriptions,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Dispatcher {
    /// A dispatcher without sessions.
    pub(crate) fn new(store: Arc<Store>, relay: Relay, stop: CancellationToken) -> Self {
        Self {
            store,
            relay,
            sessions: Mutex::default(),
            managers: Mutex::default(),
            subscriptions: Subscriptions::default(),
            tasks: TaskTracker::new(),
            stop,
        }
    }

    /// Ends every session and waits for their tasks.
    pub(crate) async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Where a worker may open its next session. All sessions ask at every index; the nodes are gone through once.
    fn managers(&self, view: &View) -> Arc<[String]> {
        let mut known = self.managers.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != view.index {
            let addresses = view.state.nodes().filter_map(|n| n.manager.as_ref().map(|m| m.address.clone()));
            *known = (view.index, addresses.collect());
        }
        Arc::clone(&known.1)
    }

    fn session_of(&self, node_id: &str) -> Option<Arc<Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(node_id).cloned()
    }

    /// Makes this the node's only session; an older one ends.
    fn open(&self, node_id: &str, to_worker: mpsc::Sender<Result<SessionMessage, Status>>) -> Arc<Session> {
        let session = Arc::new(Session {
            id: skep_proto::id::new(),
            cancel: self.stop.child_token(),
            acknowledged: Mutex::default(),
            to_worker,
        });
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let older = sessions.insert(node_id.to_owned(), Arc::clone(&session));
        drop(sessions);
        if let Some(older) = older {
            older.cancel.cancel();
            // What the node was asked for over that one, it will not send any more.
            self.subscriptions.node_left(node_id);
        }
        session
    }

    /// Forgets a session that has ended, unless a newer one has taken its place.
    fn close(&self, node_id: &str, session: &Session) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.get(node_id).is_some_and(|s| s.id == session.id) {
            sessions.remove(node_id);
            drop(sessions);
            self.subscriptions.node_left(node_id);
        }
    }
}

/// The service to mount: a handle, because sessions outlive the call that opened them.
#[derive(Debug, Clone)]
pub struct DispatcherService(pub(crate) Arc<Dispatcher>);

#[tonic::async_trait]
impl dispatcher_server::Dispatcher for DispatcherService {
    type SessionStream = Pin<Box<dyn futures::Stream<Item = Result<SessionMessage, Status>> + Send>>;

    async fn session(&self, request: Request<SessionRequest>) -> Result<Response<Self::SessionStream>, Status> {
        let peer = require_node(&request)?;
        let address = request.extensions().get::<crate::peer::Address>().map(|a| a.0.ip().to_string());
        let this = &self.0;
        wait_for_node(&this.store, &peer.node_id).await?;
        let message = request.into_inner();
        if message.description.as_ref().is_some_and(|d| d.encoded_len() > MAX_DESCRIPTION) {
            return Err(Status::invalid_argument(format!("a node's description has {MAX_DESCRIPTION} bytes at most")));
        }
        let change = NodeChange {
            id: peer.node_id.clone(),
            description: message.description,
            status: Some(NodeStatus {
                state: NodeState::Ready.into(),
                message: String::new(),
                address: address.unwrap_or_default(),
            }),
            certificate_role: Some(peer.role.into()),
            ..NodeChange::default()
        };
        if let Err(status) = this.relay.send(Item::Registration(Box::new(change))).await {
            // That it can't be written now is not the node's fault: it lives.
            this.relay.pulse.heard(&peer.node_id);
            return Err(status);
        }
        let (to_worker, from_manager) = mpsc::channel(SESSION_QUEUE);
        let session = this.open(&peer.node_id, to_worker);
        let (owner, node_id) = (Arc::clone(this), peer.node_id);
        this.tasks.spawn(async move {
            session::serve(&owner, &node_id, &session).await;
            owner.close(&node_id, &session);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(from_manager))))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let peer = require_node(&request)?;
        let message = request.into_inner();
        let this = &self.0;
        let session = this
            .session_of(&peer.node_id)
            .filter(|s| s.id == message.session_id)
            .ok_or_else(|| Status::not_found("this session has ended; open a new one"))?;
        if message.statuses.len() > MAX_REPORTS {
            return Err(Status::invalid_argument(format!("a report carries {MAX_REPORTS} tasks at most")));
        }
        if message.statuses.iter().any(|s| s.encoded_len() > MAX_STATUS) {
            return Err(Status::invalid_argument(format!("a task's status has {MAX_STATUS} bytes at most")));
        }
        let acknowledged = session
            .acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .worker_applied(message.applied_generation.saturating_sub(generation_base(&this.store.view().state)));
        if !message.leaving {
            // Whatever becomes of what it says, it lives.
            self.0.relay.pulse.heard(&peer.node_id);
        }
        // The statuses go first: whoever acts on the acknowledgement should know them.
        for report in message.statuses {
            self.0.relay.send(Item::Status(TaskStatusReport { node_id: peer.node_id.clone(), ..report })).await?;
        }
        let left = message.leaving;
        let beat = NodeBeat { node_id: peer.node_id, applied_generation: acknowledged, heard: !left, left };
        self.0.relay.send(Item::Beat(beat)).await?;
        Ok(Response::new(ReportResponse {}))
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<PublishLogsRequest>>,
    ) -> Result<Response<PublishLogsResponse>, Status> {
        let peer = require_node(&request)?;
        self.0.subscriptions.publish(&peer.node_id, request.into_inner()).await?;
        Ok(Response::new(PublishLogsResponse {}))
    }
}

/// What is added to a log index to make the generation that nodes are told.
fn generation_base(state: &State) -> u64 {
    state.cluster().map_or(0, |cluster| cluster.generation_base)
}

/// Waits until this manager knows the node; a node that stays unknown was removed from the cluster.
async fn wait_for_node(store: &Store, node_id: &str) -> Result<(), Status> {
    let mut applied = store.applied();
    let known = async {
        loop {
            applied.borrow_and_update();
            if store.view().state.node(node_id).is_some() {
                return true;
            }
            if applied.changed().await.is_err() {
                return false;
            }
        }
    };
    match tokio::time::timeout(NODE_APPEARS_WITHIN, known).await {
        Ok(true) => Ok(()),
        _ => Err(Status::permission_denied(format!(
            "this manager knows no node {node_id} (any more): if it was removed, leave the swarm and join again"
        ))),
    }
}
