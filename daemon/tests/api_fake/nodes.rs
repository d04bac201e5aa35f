//! The cluster and its nodes, as managers know them.

use skep_proto::v1;
use tonic::Status;

use super::{Fake, find, fresh};

impl Fake {
    pub(super) fn get_cluster(&self, _: v1::GetClusterRequest) -> Result<v1::Cluster, Status> {
        Ok(self.state().cluster.clone())
    }

    pub(super) fn update_cluster(&self, request: v1::UpdateClusterRequest) -> Result<v1::Cluster, Status> {
        let mut state = self.state();
        fresh(request.version, state.cluster.meta.as_ref())?;
        let old = state.cluster.meta;
        state.cluster.meta = state.meta(old.as_ref());
        state.cluster.spec = request.spec;
        let token = || format!("SWMTKN-1-{}-{}", skep_proto::id::new(), skep_proto::id::new());
        let tokens = state.cluster.join_tokens.get_or_insert_default();
        if request.rotate_worker_token {
            tokens.worker = token();
        }
        if request.rotate_manager_token {
            tokens.manager = token();
        }
        Ok(state.cluster.clone())
    }

    pub(super) fn list_nodes(&self, _: v1::ListNodesRequest) -> Result<v1::ListNodesResponse, Status> {
        Ok(v1::ListNodesResponse { nodes: self.state().nodes.values().cloned().collect() })
    }

    pub(super) fn get_node(&self, request: v1::GetRequest) -> Result<v1::Node, Status> {
        let state = self.state();
        let id = find("node", &state.nodes, &request.reference, hostname)?;
        Ok(state.nodes[&id].clone())
    }

    pub(super) fn update_node(&self, request: v1::UpdateNodeRequest) -> Result<v1::Node, Status> {
        let mut state = self.state();
        let id = find("node", &state.nodes, &request.reference, hostname)?;
        let mut node = state.nodes[&id].clone();
        fresh(request.version, node.meta.as_ref())?;
        node.meta = state.meta(node.meta.as_ref());
        node.spec = request.spec;
        state.nodes.insert(id, node.clone());
        Ok(node)
    }

    pub(super) fn remove_node(&self, request: v1::RemoveNodeRequest) -> Result<v1::Empty, Status> {
        let state = self.state();
        let id = find("node", &state.nodes, &request.reference, hostname)?;
        Err(Status::failed_precondition(format!("node {id} is not down and can't be removed")))
    }
}

fn hostname(node: &v1::Node) -> String {
    node.description.clone().unwrap_or_default().hostname
}
