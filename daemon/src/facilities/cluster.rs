//! Membership, and the way to the cluster's objects.

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::api::backend::{Cluster, Control, Failure, Init, Join};
use crate::node::Node;

/// Membership as the API wants it.
pub(crate) struct ClusterFacility(pub(crate) Arc<Node>);

impl Cluster for ClusterFacility {
    fn control(&self) -> Option<Arc<Control>> {
        self.0.manager().map(|manager| Arc::new(manager.control().clone()) as Arc<Control>)
    }

    fn mark(&self, extensions: &mut tonic::Extensions) {
        extensions.insert(skep_manager::control::InProcess);
    }

    fn init(&self, request: Init) -> BoxFuture<'_, Result<String, Failure>> {
        Box::pin(self.0.to_the_end(Arc::clone(&self.0).init(request)))
    }

    fn join(&self, request: Join) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(self.0.to_the_end(Arc::clone(&self.0).join(request)))
    }

    fn leave(&self, force: bool) -> BoxFuture<'_, Result<(), Failure>> {
        let node = Arc::clone(&self.0);
        Box::pin(self.0.to_the_end(async move { node.leave(force).await }))
    }
}
