//! Networks: their addresses are the allocator's; the API takes only what a client may ask for.

use std::sync::Arc;

use skep_plan::validate;
use skep_proto::v1::{
    CreateNetworkRequest, Empty, GetRequest, ListNetworksRequest, ListNetworksResponse, Network, ObjectKind, object,
};
use skep_state::State;
use tonic::{Code, Status};

use super::{Control, TRIES, errors};
use crate::action::{put, remove as remove_object};

/// Accepts a network, with its subnet and VNI allocated in the same command.
pub(super) async fn create(control: &Control, request: CreateNetworkRequest) -> Result<Network, Status> {
    let spec = request.spec.ok_or_else(|| Status::invalid_argument("a network needs a spec"))?;
    let mut tries = 0;
    loop {
        let view = control.current().await?;
        if let Some(network) = view.state.network(&request.id) {
            return Ok(network.as_ref().clone());
        }
        let network = validate::network(&view.state, spec.clone(), &request.id).map_err(errors::invalid)?;
        tries += 1;
        match control.change(vec![put(object::Kind::Network(network))]).await {
            // What was free has just been given to another one: the next look says what is, or why nothing can be.
            Err(status) if is_taken(&status) && tries < TRIES => {}
            done => {
                done?;
                break;
            }
        }
    }
    let stored = control.store.view().state.network(&request.id);
    stored.map(|n| n.as_ref().clone()).ok_or_else(|| Status::aborted("the network was removed again at once"))
}

/// Whether what was planned did not fit the state any more.
fn is_taken(status: &Status) -> bool {
    matches!(status.code(), Code::AlreadyExists | Code::FailedPrecondition)
}

/// One network by id, prefix or name.
pub(super) async fn get(control: &Control, request: GetRequest) -> Result<Network, Status> {
    let view = control.current().await?;
    Ok(find(&view.state, &request.reference)?.as_ref().clone())
}

/// All networks.
pub(super) async fn list(control: &Control, _: ListNetworksRequest) -> Result<ListNetworksResponse, Status> {
    let view = control.current().await?;
    Ok(ListNetworksResponse { networks: view.state.networks().map(|n| n.as_ref().clone()).collect() })
}

/// Removes a network that no service and no task uses.
pub(super) async fn remove(control: &Control, request: GetRequest) -> Result<Empty, Status> {
    let plan = |state: &State| {
        let network = find(state, &request.reference)?;
        validate::network_removal(state, &network).map_err(errors::invalid)?;
        let version = network.meta.as_ref().map_or(0, |m| m.version);
        Ok(vec![remove_object(ObjectKind::Network, &network.id, version)])
    };
    control.change_current(plan).await.map(|()| Empty {})
}

fn find(state: &State, reference: &str) -> Result<Arc<Network>, Status> {
    state.find_network(reference).map_err(|e| errors::find(ObjectKind::Network, reference, &e))
}
