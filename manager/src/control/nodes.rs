//! Nodes: availability, labels, role, removal.

use std::sync::Arc;

use skep_plan::validate;
use skep_proto::v1::{
    Empty, GetRequest, ListNodesRequest, ListNodesResponse, Node, NodeState, ObjectKind, RemoveNodeRequest,
    UpdateNodeRequest, object,
};
use skep_state::State;
use tonic::Status;

use super::{Control, errors};
use crate::action::{put, remove as remove_object};

/// One node by id, prefix or host name.
pub(super) async fn get(control: &Control, request: GetRequest) -> Result<Node, Status> {
    let view = control.current().await?;
    let node = find(&view.state, &request.reference)?;
    Ok(show(control, &node))
}

/// All nodes.
pub(super) async fn list(control: &Control, _: ListNodesRequest) -> Result<ListNodesResponse, Status> {
    let view = control.current().await?;
    Ok(ListNodesResponse { nodes: view.state.nodes().map(|n| show(control, n)).collect() })
}

/// Changes the spec of a node.
pub(super) async fn update(control: &Control, request: UpdateNodeRequest) -> Result<Node, Status> {
    let view = control.current().await?;
    let node = find(&view.state, &request.reference)?;
    let spec = request.spec.ok_or_else(|| Status::invalid_argument("a node needs a spec"))?;
    let mut next = node.as_ref().clone();
    next.spec = Some(validate::node(&view.state, &node, spec).map_err(errors::invalid)?);
    next.meta.get_or_insert_default().version = request.version;
    control.change(vec![put(object::Kind::Node(next))]).await?;
    let stored = control.store.view().state.node(&node.id);
    stored.map(|n| show(control, &n)).ok_or_else(|| Status::aborted("the node was removed meanwhile"))
}

/// Removes a node that is down and no manager; `force` removes one that is up, never a manager.
pub(super) async fn remove(control: &Control, request: RemoveNodeRequest) -> Result<Empty, Status> {
    let view = control.current().await?;
    let node = find(&view.state, &request.reference)?;
    if node.manager.is_some() {
        return Err(Status::failed_precondition(format!(
            "node {} is a manager and a member of the consensus group; demote it first",
            request.reference
        )));
    }
    let ready = node.status.as_ref().is_some_and(|s| s.state() == NodeState::Ready);
    if ready && !request.force {
        return Err(Status::failed_precondition(format!(
            "node {} is not down; let it leave the swarm first, or use force",
            request.reference
        )));
    }
    let mut actions: Vec<_> =
        view.state.tasks_of_node(&node.id).map(|t| remove_object(ObjectKind::Task, &t.id, 0)).collect();
    let version = node.meta.as_ref().map_or(0, |m| m.version);
    actions.push(remove_object(ObjectKind::Node, &node.id, version));
    control.change(actions).await?;
    Ok(Empty {})
}

fn find(state: &State, reference: &str) -> Result<Arc<Node>, Status> {
    state.find_node(reference).map_err(|e| errors::find(ObjectKind::Node, reference, &e))
}

/// The node with what only consensus knows.
fn show(control: &Control, node: &Node) -> Node {
    let mut shown = node.clone();
    if let Some(manager) = &mut shown.manager {
        let leader = control.raft.leadership().borrow().leader.as_ref().map(|l| l.id);
        manager.leader = leader == Some(manager.raft_id);
        manager.reachable = control.raft.reachable(manager.raft_id);
    }
    shown
}
