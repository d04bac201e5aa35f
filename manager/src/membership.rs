//! What the certificate authority asks of the cluster's state. Any manager may be asked; what has to be written goes to
//! the leader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_proto::v1::action::Kind;
use skep_proto::v1::peers_client::PeersClient;
use skep_proto::v1::{
    Action, Annotations, Cluster, Command, Node, NodeChange, NodeSpec, NodeState, NodeStatus, ProposeRequest, Role,
    object,
};
use tonic::{Code, Status};

use crate::action::put;
use crate::ca::{Membership, NewNode};
use crate::control::{Control, is_leaderless, leaderless, now_ns, raft_error, store_error};
use crate::store;

/// How long a read or a write may take, elections included.
const DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// The cluster's members, seen from one manager.
pub(crate) struct Members(pub(crate) Control);

#[async_trait::async_trait]
impl Membership for Members {
    async fn cluster(&self) -> Result<Arc<Cluster>, Status> {
        self.0.raft.read_barrier(DEADLINE).await.map_err(raft_error)?;
        let cluster = self.0.store.view().state.cluster();
        cluster.ok_or_else(|| Status::failed_precondition("the cluster is not initialised yet"))
    }

    fn known_cluster(&self) -> Option<Arc<Cluster>> {
        self.0.store.view().state.cluster()
    }

    async fn node(&self, id: &str) -> Result<Option<Arc<Node>>, Status> {
        self.0.raft.read_barrier(DEADLINE).await.map_err(raft_error)?;
        Ok(self.0.store.view().state.node(id))
    }

    async fn register(&self, new: NewNode) -> Result<(), Status> {
        let node = Node {
            id: new.id,
            spec: Some(NodeSpec {
                annotations: Some(Annotations::default()),
                role: new.role.into(),
                availability: new.availability.into(),
            }),
            status: Some(NodeStatus {
                state: NodeState::Unknown.into(),
                message: "has a certificate and has not connected yet".to_owned(),
                address: new.address.map(|a| a.ip().to_string()).unwrap_or_default(),
            }),
            certificate_role: new.role.into(),
            ..Node::default()
        };
        self.write(put(object::Kind::Node(node))).await
    }

    async fn certified(&self, node_id: &str, role: Role) -> Result<(), Status> {
        let change =
            NodeChange { id: node_id.to_owned(), certificate_role: Some(role.into()), ..NodeChange::default() };
        self.write(Action { kind: Some(Kind::Node(change)) }).await
    }
}

impl Members {
    /// Has the leader commit an action. It may be tried again after a change of leader; an object that is there by then
    /// is the one of the first try.
    async fn write(&self, action: Action) -> Result<(), Status> {
        let command = Command { at_ns: now_ns(), actions: vec![action], best_effort: false };
        let until = Instant::now() + DEADLINE;
        let mut again = false;
        loop {
            match self.write_once(&command).await {
                Err(status) if status.code() == Code::AlreadyExists && again => return Ok(()),
                Err(status) if status.code() == Code::Unavailable && Instant::now() < until => {
                    // An election is over before this; what isn't, the caller has to know.
                    if tokio::time::timeout(Duration::ZERO, self.0.raft.leaderless()).await.is_ok() {
                        return Err(if is_leaderless(&status) { status } else { leaderless(Some(status.message())) });
                    }
                    again = true;
                }
                done => return done,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn write_once(&self, command: &Command) -> Result<(), Status> {
        let leadership = self.0.raft.leadership().borrow().clone();
        let reply = if leadership.is_self {
            store::propose_command(&self.0.raft, command, DEADLINE).await.map_err(store_error)?
        } else {
            let leader = leadership.leader.ok_or_else(|| Status::unavailable("the managers are electing a leader"))?;
            let channel = self.0.dialer.channel(&leader.address).map_err(|e| Status::unavailable(e.to_string()))?;
            let mut client = PeersClient::new(channel);
            let call = client.propose(ProposeRequest { command: Some(command.clone()) });
            let answer = tokio::time::timeout(DEADLINE, call).await;
            let answer = answer.map_err(|_| Status::unavailable("the leader did not answer"))??;
            answer.into_inner().reply.unwrap_or_default()
        };
        store::accepted(reply).map(|_| ()).map_err(store_error)
    }
}
