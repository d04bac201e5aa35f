//! The door of the consensus room: whether a caller may speak as the member that it says it is.
//!
//! Decides from the certificate and the replicated state. It must not demand that the state knows the caller as a
//! manager: a manager that is behind, or empty, has to hear one that was added since. It refuses what contradicts: a
//! worker's certificate, a node that speaks as another one. Mounted by [`crate::Manager::routes`].

use std::sync::Arc;

use skep_proto::v1::Node;
use tonic::{Extensions, Status};

use crate::peer;
use crate::raft;
use crate::store::Store;

/// Judges by the state that this manager has applied.
#[derive(Debug)]
pub(crate) struct Door(pub(crate) Arc<Store>);

impl raft::Door for Door {
    fn admit(&self, caller: &Extensions, id: u64) -> Result<(), Status> {
        let peer = peer::manager_of(caller)?;
        let view = self.0.view();
        let is = |node: &Node| node.manager.as_ref().is_some_and(|m| m.raft_id == id);
        if view.state.node(&peer.node_id).is_some_and(|node| is(&node)) {
            return Ok(());
        }
        // A number that is new to this manager is nobody's yet.
        if !view.state.nodes().any(|node| is(node)) {
            return Ok(());
        }
        Err(Status::permission_denied(format!("node {} is not manager {id:x} and must not speak as it", peer.node_id)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prost::Message as _;
    use skep_proto::v1::{Command, ManagerInfo, Role, object};
    use tonic::Code;

    use super::*;
    use crate::action::put;
    use crate::peer::Peer;
    use crate::raft::{Door as _, StateMachine as _};

    #[test]
    fn a_manager_speaks_for_itself_only_and_a_worker_not_at_all() {
        let store = Arc::new(Store::default());
        let node = |id: &str, raft_id: u64| {
            let manager = ManagerInfo { raft_id, ..ManagerInfo::default() };
            let manager = (raft_id != 0).then_some(manager);
            put(object::Kind::Node(Node { id: id.into(), manager, ..Node::default() }))
        };
        let command = Command { actions: vec![node("a", 1), node("b", 2), node("w", 0)], ..Command::default() };
        store.apply(1, &command.encode_to_vec());
        let door = Door(store);
        let ask = |node_id: &str, role: Role, id: u64| {
            let mut caller = Extensions::new();
            caller.insert(Peer { node_id: node_id.into(), role, cluster_id: "c".into() });
            door.admit(&caller, id).map_err(|status| status.code())
        };
        let table = [
            ("a", Role::Manager, 1, Ok(())),
            ("a", Role::Manager, 2, Err(Code::PermissionDenied)),
            ("a", Role::Worker, 1, Err(Code::PermissionDenied)),
            ("w", Role::Worker, 9, Err(Code::PermissionDenied)),
            // Promoted, removed or never heard of: whether that is a member is for the consensus room to say.
            ("a", Role::Manager, 9, Ok(())),
            ("w", Role::Manager, 9, Ok(())),
            ("w", Role::Manager, 2, Err(Code::PermissionDenied)),
            ("new", Role::Manager, 9, Ok(())),
            ("new", Role::Manager, 1, Err(Code::PermissionDenied)),
        ];
        for (node_id, role, id, expected) in table {
            assert_eq!(ask(node_id, role, id), expected, "{node_id} as {id}");
        }
        assert_eq!(door.admit(&Extensions::new(), 1).map_err(|s| s.code()), Err(Code::Unauthenticated));
    }
}
