//! Membership, and the way to the cluster's objects.

use std::sync::Arc;

use async_trait::async_trait;

use crate::api::backend::{Cluster, Control, Failure, Init, Join};
use crate::node::Node;

/// Membership as the API wants it.
pub(crate) struct ClusterFacility(pub(crate) Arc<Node>);

#[async_trait]
impl Cluster for ClusterFacility {
    fn control(&self) -> Option<Arc<Control>> {
        self.0.manager().map(|manager| Arc::new(manager.control().clone()) as Arc<Control>)
    }

    fn mark(&self, extensions: &mut tonic::Extensions) {
        extensions.insert(skep_manager::control::InProcess);
    }

    async fn init(&self, request: Init) -> Result<String, Failure> {
        self.0.to_the_end(Arc::clone(&self.0).init(request)).await
    }

    async fn join(&self, request: Join) -> Result<(), Failure> {
        self.0.to_the_end(Arc::clone(&self.0).join(request)).await
    }

    async fn leave(&self, force: bool) -> Result<(), Failure> {
        let node = Arc::clone(&self.0);
        self.0.to_the_end(async move { node.leave(force).await }).await
    }
}
