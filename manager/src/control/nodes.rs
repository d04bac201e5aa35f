//! Nodes: availability, labels, role, removal.

use std::sync::Arc;

use skep_plan::validate;
use skep_proto::v1::{
    Action, Empty, GetRequest, ListNodesRequest, ListNodesResponse, Node, NodeState, ObjectKind, RemoveNodeRequest,
    Role, UpdateNodeRequest, object,
};
use skep_state::State;
use tonic::Status;

use super::{Control, errors};
use crate::action::{put, remove as remove_object};
use crate::raft;

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
    if role(&node) == Role::Manager && role(&next) == Role::Worker {
        may_demote(control, &view.state, &node).await?;
    }
    next.meta.get_or_insert_default().version = request.version;
    control.change(vec![put(object::Kind::Node(next))]).await?;
    let stored = control.store.view().state.node(&node.id);
    stored.map(|n| show(control, &n)).ok_or_else(|| Status::aborted("the node was removed meanwhile"))
}

/// Removes a node that is down and no manager; `force` removes one that is up, never a manager.
pub(super) async fn remove(control: &Control, request: RemoveNodeRequest) -> Result<Empty, Status> {
    let plan = |state: &State| {
        let node = find(state, &request.reference)?;
        if node.manager.is_some() && role(&node) == Role::Worker {
            let text = format!("node {} is being demoted; try again in a moment", request.reference);
            return Err(Status::failed_precondition(text));
        }
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
        Ok(removal(state, &node))
    };
    control.change_current(plan).await.map(|()| Empty {})
}

/// What takes a node and its tasks out of the state.
fn removal(state: &State, node: &Node) -> Vec<Action> {
    let mut actions: Vec<_> =
        state.tasks_of_node(&node.id).map(|t| remove_object(ObjectKind::Task, &t.id, 0)).collect();
    let version = node.meta.as_ref().map_or(0, |m| m.version);
    actions.push(remove_object(ObjectKind::Node, &node.id, version));
    actions
}

impl Control {
    /// Removes a node that does not join after all, by its whole id; harmless if it is gone.
    pub(crate) async fn forget_node(&self, id: &str) -> Result<(), Status> {
        self.change_current(|state| match state.node(id) {
            None => Ok(Vec::new()),
            Some(node) if node.manager.is_none() => Ok(removal(state, &node)),
            Some(_) => Err(Status::unavailable(format!("node {id} has just become a manager; it may try again"))),
        })
        .await
    }
}

/// Whether the manager with this number in the consensus group is wanted no more as one.
pub(super) fn demoted(state: &State, raft_id: u64) -> bool {
    state.nodes().any(|n| n.manager.as_ref().is_some_and(|m| m.raft_id == raft_id) && role(n) == Role::Worker)
}

fn role(node: &Node) -> Role {
    node.spec.as_ref().map_or(Role::Worker, |spec| spec.role())
}

/// Refuses a demotion after which the managers that remain could decide nothing. Those that are on their way out
/// already don't count among them.
async fn may_demote(control: &Control, state: &State, node: &Node) -> Result<(), Status> {
    let Some(manager) = &node.manager else { return Ok(()) };
    let others = state.nodes().filter(|other| other.id != node.id);
    let managers: Vec<(&Arc<Node>, u64)> = others.filter_map(|n| Some((n, n.manager.as_ref()?.raft_id))).collect();
    let leaving = managers.iter().filter(|(n, _)| role(n) == Role::Worker).map(|(_, id)| *id).collect();
    match control.raft.enough_without(manager.raft_id, &leaving).await {
        Err(raft::Error::WouldLoseQuorum { reachable, needed, .. }) => {
            let down = managers.iter().filter(|(n, id)| role(n) == Role::Manager && !control.raft.reachable(*id));
            let down: Vec<String> = down.map(|(n, _)| hostname(n)).collect();
            let way_out = match down.as_slice() {
                [] => "look at the disks of those that keep behind".to_owned(),
                down => format!("bring {} back, or demote the managers that are down first", down.join(", ")),
            };
            Err(Status::failed_precondition(format!(
                "manager {} can't be demoted now: {reachable} of the managers that remain would be reachable and keep up, \
                 and {needed} are needed; {way_out}",
                hostname(node)
            )))
        }
        // Whatever else is in the way shows when the leader takes it out of the group, and is tried again there.
        _ => Ok(()),
    }
}

fn hostname(node: &Node) -> String {
    let name = node.description.as_ref().map_or("", |d| d.hostname.as_str());
    if name.is_empty() { node.id.clone() } else { name.to_owned() }
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
