//! The cluster object: its settings and join tokens.

use skep_plan::validate;
use skep_proto::v1::{Cluster, GetClusterRequest, Role, RootCa, UpdateClusterRequest, object};
use skep_state::State;
use tonic::Status;

use super::{Control, errors};
use crate::action::put;
use crate::ca;

/// The cluster. The CA's private key stays where it is.
pub(super) async fn get(control: &Control, _: GetClusterRequest) -> Result<Cluster, Status> {
    let view = control.current().await?;
    shown(&view.state)
}

/// Changes settings, rotates tokens.
pub(super) async fn update(control: &Control, request: UpdateClusterRequest) -> Result<Cluster, Status> {
    let view = control.current().await?;
    let mut next = stored(&view.state)?.as_ref().clone();
    next.meta.get_or_insert_default().version = request.version;
    if let Some(spec) = request.spec {
        let spec = validate::cluster(spec).map_err(errors::invalid)?;
        for line in validate::cluster_warnings(&spec, next.spec.as_ref()) {
            tracing::warn!("{line}");
        }
        next.spec = Some(spec);
    }
    let root = next.root_ca.clone().unwrap_or_default();
    let tokens = next.join_tokens.get_or_insert_default();
    if request.rotate_worker_token {
        tokens.worker = token(&root, Role::Worker)?;
    }
    if request.rotate_manager_token {
        tokens.manager = token(&root, Role::Manager)?;
    }
    control.change(vec![put(object::Kind::Cluster(next))]).await?;
    shown(&control.store.view().state)
}

fn token(root: &RootCa, role: Role) -> Result<String, Status> {
    ca::new_token(root, role).map_err(|e| Status::internal(e.to_string()))
}

fn stored(state: &State) -> Result<std::sync::Arc<Cluster>, Status> {
    state.cluster().ok_or_else(|| Status::failed_precondition("the cluster is not initialised yet"))
}

fn shown(state: &State) -> Result<Cluster, Status> {
    let mut cluster = stored(state)?.as_ref().clone();
    if let Some(root) = &mut cluster.root_ca {
        root.key_pem.clear();
    }
    Ok(cluster)
}
