//! What the node knows about itself.

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::api::backend::{GatewayFacts, NodeFacts, NodeInfo};
use crate::node::Node;

/// Facts as the API wants them.
pub(crate) struct InfoFacility(pub(crate) Arc<Node>);

impl NodeInfo for InfoFacility {
    fn facts(&self) -> BoxFuture<'_, NodeFacts> {
        Box::pin(async move {
            let node = &self.0;
            let machine = node.machine();
            NodeFacts {
                engine_id: node.engine_id().to_owned(),
                hostname: machine.hostname.clone(),
                version: crate::VERSION.to_owned(),
                commit: String::new(),
                kernel: machine.kernel.clone(),
                operating_system: machine.operating_system.clone(),
                architecture: machine.architecture.clone(),
                resources: machine.resources,
                labels: node.config().labels.clone(),
                data_dir: node.config().data_dir.display().to_string(),
                cgroup_version: machine.cgroup_version,
                started_ns: node.started_ns(),
                gateway: node.gateway().map(|(name, subnet, gateway)| GatewayFacts { name, subnet, gateway }),
                swarm: node.swarm_facts(),
            }
        })
    }
    fn warnings(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async move {
            match self.0.member() {
                Some(member) => member.worker().warnings().await,
                None => Vec::new(),
            }
        })
    }
}
