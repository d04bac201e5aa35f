//! Calls that only managers make to each other: joining and leaving the consensus group, relayed reports, and logs of
//! the tasks whose workers have their session elsewhere.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_plan::validate;
use skep_proto::v1::action::Kind;
use skep_proto::v1::{
    Action, Empty, JoinRaftRequest, LeaveRaftRequest, LogBatch, ManagerInfo, Node, NodeChange, ProposeRequest,
    ProposeResponse, RelayRequest, RelayResponse, TaskLogsRequest, peers_server,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::control::{Control, invalid, now_ns, raft_error, store_error};
use crate::dispatch::Dispatcher;
use crate::intake::Intake;
use crate::peer::require_manager;
use crate::raft;
use crate::store;

/// The answer of a manager that can't decide.
pub(crate) const NOT_LEADING: &str = "this manager does not lead; ask the leader";

/// Metadata key of that answer: where the leader is reached.
const LEADER: &str = "skep-leader";

/// Where a manager that can't decide sends its caller.
pub(crate) fn leader_of(status: &Status) -> Option<String> {
    status.metadata().get(LEADER)?.to_str().ok().map(str::to_owned)
}

/// How long a change of the group's members may take, catching up included.
const MEMBERSHIP_DEADLINE: Duration = Duration::from_secs(30);

/// The service to mount.
#[derive(Debug, Clone)]
pub struct PeersService {
    pub(crate) control: Control,
    pub(crate) intake: Arc<Intake>,
    pub(crate) dispatcher: Arc<Dispatcher>,
}

#[tonic::async_trait]
impl peers_server::Peers for PeersService {
    type TaskLogsStream = Pin<Box<dyn futures::Stream<Item = Result<LogBatch, Status>> + Send>>;

    async fn join_raft(&self, request: Request<JoinRaftRequest>) -> Result<Response<Empty>, Status> {
        let peer = self.control.require_current_manager(&request)?;
        let request = request.into_inner();
        if peer.node_id != request.node_id {
            return Err(Status::permission_denied("a manager joins for itself only"));
        }
        self.require_leader()?;
        let view = self.control.store.view();
        let node = view.state.node(&request.node_id);
        let node = node.ok_or_else(|| Status::not_found(format!("node {} is not known", request.node_id)))?;
        // A member that asks again, after a restart or a lost answer, has its number already.
        let raft_id = request.raft_id;
        let other =
            view.state.nodes().find(|n| n.id != node.id && n.manager.as_ref().is_some_and(|m| m.raft_id == raft_id));
        if let Some(other) = other.filter(|_| raft_id != 0) {
            return Err(Status::already_exists(format!(
                "raft number {raft_id} is node {}'s; choose another",
                other.id
            )));
        }
        validate::manager_address(&view.state, &request.address).map_err(invalid)?;
        let has = |n: &Node| n.id != node.id && n.manager.as_ref().is_some_and(|m| m.address == request.address);
        if let Some(owner) = view.state.nodes().find(|n| has(n)) {
            let name = owner.description.as_ref().map_or("", |d| d.hostname.as_str());
            return Err(Status::already_exists(format!(
                "address {} belongs to manager {name} (node {}): give this one an address of its own with \
                 --advertise-addr, or demote that one first",
                request.address, owner.id
            )));
        }
        // The store knows the manager before the group counts on it; the same command twice changes nothing.
        let manager = ManagerInfo { raft_id, address: request.address.clone(), ..ManagerInfo::default() };
        let change = NodeChange { id: request.node_id.clone(), manager: Some(manager), ..NodeChange::default() };
        let action = Action { kind: Some(Kind::Node(change)) };
        store::propose(&self.control.raft, now_ns(), vec![action], MEMBERSHIP_DEADLINE).await.map_err(store_error)?;
        let added = self.control.raft.add_member(raft_id, &request.address);
        match tokio::time::timeout(MEMBERSHIP_DEADLINE, added).await {
            Ok(Ok(())) => Ok(Response::new(Empty {})),
            Ok(Err(error)) => {
                if is_outside(&error) {
                    self.forget_candidate(&node).await;
                }
                Err(raft_error(error))
            }
            Err(_) => Err(Status::deadline_exceeded("the new manager did not catch up within 30 s; it may try again")),
        }
    }

    async fn leave_raft(&self, request: Request<LeaveRaftRequest>) -> Result<Response<Empty>, Status> {
        // Also one whose role was taken away already: that is when it leaves.
        let peer = require_manager(&request)?;
        let request = request.into_inner();
        if peer.node_id != request.node_id {
            return Err(Status::permission_denied("a manager leaves for itself only"));
        }
        self.require_leader()?;
        remove_member(&self.control, &request.node_id).await?;
        if request.withdraw {
            self.control.forget_node(&request.node_id).await?;
        }
        Ok(Response::new(Empty {}))
    }

    async fn relay(&self, request: Request<RelayRequest>) -> Result<Response<RelayResponse>, Status> {
        self.control.require_current_manager(&request)?;
        self.intake.take(Instant::now(), request.into_inner()).await?;
        Ok(Response::new(RelayResponse {}))
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        self.control.require_current_manager(&request)?;
        self.require_leader()?;
        let command = request.into_inner().command.unwrap_or_default();
        let reply =
            store::propose_command(&self.control.raft, &command, MEMBERSHIP_DEADLINE).await.map_err(store_error)?;
        Ok(Response::new(ProposeResponse { reply: Some(reply) }))
    }

    async fn task_logs(&self, request: Request<TaskLogsRequest>) -> Result<Response<Self::TaskLogsStream>, Status> {
        self.control.require_current_manager(&request)?;
        let lines = self.dispatcher.task_logs(request.into_inner()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(lines))))
    }
}

impl PeersService {
    /// Gives the store back what it knew of a node before that asked to be taken into the group and was not: nodes must
    /// not be sent to a manager that there is not.
    async fn forget_candidate(&self, before: &Node) {
        let change = NodeChange {
            id: before.id.clone(),
            clear_manager: true,
            manager: before.manager.clone(),
            ..NodeChange::default()
        };
        let action = Action { kind: Some(Kind::Node(change)) };
        let told = store::propose(&self.control.raft, now_ns(), vec![action], MEMBERSHIP_DEADLINE).await;
        if let Err(error) = told {
            tracing::warn!(node.id = before.id, error = %error, "a manager that was not added is still listed");
        }
    }

    fn require_leader(&self) -> Result<(), Status> {
        let leadership = self.control.raft.leadership().borrow().clone();
        if leadership.is_self {
            return Ok(());
        }
        let mut status = Status::unavailable(NOT_LEADING);
        if let Some(address) = leadership.leader.and_then(|leader| leader.address.parse().ok()) {
            status.metadata_mut().insert(LEADER, address);
        }
        Err(status)
    }
}

/// Whether the group certainly does not count on the manager that was to be added.
fn is_outside(error: &raft::Error) -> bool {
    use raft::Error;
    matches!(error, Error::AddressTaken { .. } | Error::NotReached { .. } | Error::NotCaughtUp { .. })
}

/// Takes a manager out of the group, then out of the store's list of managers.
pub(crate) async fn remove_member(control: &Control, node_id: &str) -> Result<(), Status> {
    let view = control.store.view();
    let Some(manager) = view.state.node(node_id).and_then(|n| n.manager.clone()) else { return Ok(()) };
    match tokio::time::timeout(MEMBERSHIP_DEADLINE, control.raft.remove_member(manager.raft_id)).await {
        // Out already: an earlier try came that far.
        Ok(Ok(()) | Err(raft::Error::UnknownMember { .. })) => {}
        Ok(Err(error)) => return Err(raft_error(error)),
        Err(_) => return Err(Status::deadline_exceeded("the change of members did not finish within 30 s")),
    }
    let change = NodeChange { id: node_id.to_owned(), clear_manager: true, ..NodeChange::default() };
    let action = Action { kind: Some(Kind::Node(change)) };
    store::propose(&control.raft, now_ns(), vec![action], MEMBERSHIP_DEADLINE).await.map_err(store_error)?;
    Ok(())
}
