//! Which nodes are alive: down after three missed heartbeats, or when they never connected; ready again once heard of.

use skep_proto::v1::{Node, NodeChange, NodeState, NodeStatus, Task};
use skep_state::State;

use crate::Inputs;
use crate::defaults;
use crate::draft::{Draft, updated_ns};

/// Heartbeats that a node may miss.
const MISSED: i64 = 3;
/// Nanoseconds that a node may take from its certificate to its first session: it starts a manager in between, or its
/// data plane. One that needs longer is ready as soon as it is there.
const ARRIVAL: i64 = 15_000_000_000;

/// Moves nodes between READY and DOWN, and those that went away before they arrived from UNKNOWN to DOWN.
pub(crate) fn judge(draft: &mut Draft<'_>, inputs: &Inputs) {
    let patience = defaults::heartbeat_ns(&draft.state).saturating_mul(MISSED);
    let view = draft.state.clone();
    for node in view.nodes() {
        let Some(silence) = inputs.silence_ns.get(&node.id).copied() else { continue };
        // A node that has just registered may not have sent its first heartbeat to this leader. An object of the future
        // was written by a manager whose clock is ahead of this one's, and tells nothing.
        let since_registered = draft.now_ns.saturating_sub(updated_ns(node.meta.as_ref()));
        let silence = if since_registered < 0 { silence } else { silence.min(since_registered) };
        let heard = inputs.acknowledged.contains_key(&node.id);
        match node_state(node) {
            NodeState::Down if inputs.left.contains(&node.id) => {}
            _ if inputs.left.contains(&node.id) => set(draft, node, NodeState::Down, "left the swarm"),
            NodeState::Ready | NodeState::Disconnected if silence > patience => {
                set(draft, node, NodeState::Down, "heartbeat failure");
            }
            NodeState::Ready | NodeState::Disconnected => {
                draft.wake_at(draft.now_ns.saturating_add(patience - silence + 1));
            }
            NodeState::Unknown if silence > patience.max(ARRIVAL) => {
                set(draft, node, NodeState::Down, "has a certificate and never connected");
            }
            NodeState::Unknown => {
                draft.wake_at(draft.now_ns.saturating_add(patience.max(ARRIVAL) - silence + 1));
            }
            // A new leader has heard of nobody yet: silence that is short because its watch began just now is no sign
            // of life.
            NodeState::Down if heard && inputs.silence_ns.get(&node.id).is_some_and(|s| *s <= patience) => {
                set(draft, node, NodeState::Ready, "");
            }
            NodeState::Down => {}
        }
    }
}

fn set(draft: &mut Draft<'_>, node: &Node, state: NodeState, message: &str) {
    let address = node.status.as_ref().map(|s| s.address.clone()).unwrap_or_default();
    let status = NodeStatus { state: state.into(), message: message.to_owned(), address };
    draft.change_node(NodeChange { id: node.id.clone(), status: Some(status), ..NodeChange::default() });
}

/// The state of a node; one that never registered is unknown.
pub(crate) fn node_state(node: &Node) -> NodeState {
    node.status.as_ref().map_or(NodeState::Unknown, NodeStatus::state)
}

/// Whether nobody can be asked about the task any more: its node is down or gone.
pub(crate) fn is_lost(state: &State, task: &Task) -> bool {
    !task.node_id.is_empty() && state.node(&task.node_id).is_none_or(|n| node_state(&n) == NodeState::Down)
}
