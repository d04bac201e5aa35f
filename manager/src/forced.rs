//! What a forced new cluster writes into its state: that this node is its only manager. Pure.
//!
//! Whoever was a manager beside it becomes a worker that may be promoted again: its node, labels and tasks stay. One that
//! is gone for good shows as down, like any other node.

use skep_proto::v1::{Action, ManagerInfo, Node, NodeChange, Role, action::Kind, object};
use skep_state::State;

use crate::action::put;

/// How far the generations of a new cluster begin above those of the one before it: no log grows that long.
const GENERATIONS: u64 = 1 << 40;

/// The changes that are missing; none when the state says so already.
pub(crate) fn sole_manager(state: &State, node_id: &str, raft_id: u64, address: &str) -> Vec<Action> {
    // This one first: a state is never without a manager.
    let own = state.node(node_id).into_iter().flat_map(|node| own(&node, raft_id, address));
    let others = state.nodes().filter(|node| node.id != node_id).flat_map(|node| other(node));
    generations(state, node_id, raft_id).into_iter().chain(own).chain(others).collect()
}

/// Nodes may hold what the lost managers told them and this one has never heard of, and refuse what is older. The new
/// number shows whether that was seen to.
fn generations(state: &State, node_id: &str, raft_id: u64) -> Option<Action> {
    let told = state.node(node_id).is_some_and(|n| n.manager.as_ref().is_some_and(|m| m.raft_id == raft_id));
    let mut cluster = state.cluster().filter(|_| !told)?.as_ref().clone();
    cluster.generation_base = cluster.generation_base.saturating_add(GENERATIONS);
    Some(put(object::Kind::Cluster(cluster)))
}

fn own(node: &Node, raft_id: u64, address: &str) -> Vec<Action> {
    let known = node.manager.as_ref().is_some_and(|m| m.raft_id == raft_id && m.address == address);
    let mut actions = with_role(node, Role::Manager);
    if !known {
        let manager = ManagerInfo { raft_id, address: address.to_owned(), ..ManagerInfo::default() };
        actions.push(change(NodeChange { id: node.id.clone(), manager: Some(manager), ..NodeChange::default() }));
    }
    actions
}

fn other(node: &Node) -> Vec<Action> {
    let mut actions = with_role(node, Role::Worker);
    if node.manager.is_some() {
        actions.push(change(NodeChange { id: node.id.clone(), clear_manager: true, ..NodeChange::default() }));
    }
    actions
}

fn with_role(node: &Node, role: Role) -> Vec<Action> {
    let spec = node.spec.clone().unwrap_or_default();
    if spec.role() == role {
        return Vec::new();
    }
    let mut next = node.clone();
    next.spec.get_or_insert_default().role = role.into();
    vec![put(object::Kind::Node(next))]
}

fn change(change: NodeChange) -> Action {
    Action { kind: Some(Kind::Node(change)) }
}

#[cfg(test)]
mod tests {
    use skep_proto::v1::{Cluster, Command, NodeSpec};

    use super::*;

    fn node(id: &str, role: Role, raft_id: u64) -> Action {
        let manager = ManagerInfo { raft_id, address: format!("{id}:2377"), ..ManagerInfo::default() };
        put(object::Kind::Node(Node {
            id: id.into(),
            spec: Some(NodeSpec { role: role.into(), ..NodeSpec::default() }),
            manager: (raft_id != 0).then_some(manager),
            ..Node::default()
        }))
    }

    #[test]
    fn one_manager_is_left_with_its_new_number_and_address_and_saying_so_again_changes_nothing() {
        let mut state = State::default();
        let actions = vec![
            put(object::Kind::Cluster(Cluster { id: "c".into(), ..Cluster::default() })),
            node("a", Role::Manager, 1),
            node("b", Role::Manager, 2),
            // Demoted, and not yet out of the group; promoted, and not yet in it.
            node("c", Role::Worker, 3),
            node("d", Role::Manager, 0),
            node("w", Role::Worker, 0),
        ];
        let _ = state.apply(1, &Command { actions, ..Command::default() });
        let actions = sole_manager(&state, "a", 7, "new:2377");
        let (reply, _) = state.apply(2, &Command { actions, ..Command::default() });
        assert_eq!(reply.refusal, None);
        let shown: Vec<_> = state
            .nodes()
            .map(|n| {
                let manager = n.manager.as_ref().map(|m| (m.raft_id, m.address.as_str()));
                (n.id.as_str(), n.spec.clone().unwrap_or_default().role(), manager)
            })
            .collect();
        let expected = [
            ("a", Role::Manager, Some((7, "new:2377"))),
            ("b", Role::Worker, None),
            ("c", Role::Worker, None),
            ("d", Role::Worker, None),
            ("w", Role::Worker, None),
        ];
        assert_eq!(shown, expected);
        let base = |state: &State| state.cluster().map(|c| c.generation_base);
        assert_eq!(base(&state), Some(GENERATIONS));
        assert_eq!(sole_manager(&state, "a", 7, "new:2377"), Vec::new());
        // Once more, and it is again ahead of everything that was told.
        let actions = sole_manager(&state, "a", 8, "new:2377");
        let _ = state.apply(3, &Command { actions, ..Command::default() });
        assert_eq!(base(&state), Some(2 * GENERATIONS));
    }
}
