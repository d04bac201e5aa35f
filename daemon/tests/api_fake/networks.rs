//! Networks.

use skep_proto::v1;
use tonic::Status;

use super::{Fake, annotations_name, find};

impl Fake {
    pub(super) fn create_network(&self, request: v1::CreateNetworkRequest) -> Result<v1::Network, Status> {
        let mut state = self.state();
        let meta = state.meta(None);
        let spec = request.spec.unwrap_or_default();
        let name = annotations_name(spec.annotations.as_ref());
        if state.networks.values().any(|n| network_name(n) == name) {
            return Err(Status::already_exists(format!("network with name {name} already exists")));
        }
        let number = state.networks.len();
        let network = v1::Network {
            id: request.id.clone(),
            meta,
            spec: Some(spec),
            vni: 4096 + number as u32,
            subnet: format!("10.0.{number}.0/24"),
            gateway: format!("10.0.{number}.1"),
            ..Default::default()
        };
        state.networks.insert(request.id.clone(), network.clone());
        drop(state);
        self.tell(v1::ObjectKind::Network, v1::EventAction::Create, &request.id, name);
        Ok(network)
    }

    pub(super) fn get_network(&self, request: v1::GetRequest) -> Result<v1::Network, Status> {
        let state = self.state();
        let id = find("network", &state.networks, &request.reference, network_name)?;
        Ok(state.networks[&id].clone())
    }

    pub(super) fn list_networks(&self, _: v1::ListNetworksRequest) -> Result<v1::ListNetworksResponse, Status> {
        Ok(v1::ListNetworksResponse { networks: self.state().networks.values().cloned().collect() })
    }

    pub(super) fn remove_network(&self, request: v1::GetRequest) -> Result<v1::Empty, Status> {
        let mut state = self.state();
        let id = find("network", &state.networks, &request.reference, network_name)?;
        let targets = |s: &v1::Service| s.spec.as_ref().and_then(|s| s.task.clone()).unwrap_or_default().networks;
        if state.services.values().flat_map(targets).any(|n| n.target == id) {
            return Err(Status::failed_precondition(format!("network {id} is in use by a service")));
        }
        if let Some(left) = state.draining.checked_sub(1) {
            state.draining = left;
            let mut status = Status::failed_precondition(format!("network {id} is in use by a task that is stopping"));
            status.metadata_mut().insert(skep_proto::DRAINING, tonic::metadata::MetadataValue::from_static("1"));
            return Err(status);
        }
        state.networks.remove(&id);
        Ok(v1::Empty {})
    }

    /// The tasks on every network need that many more looks to end.
    pub(crate) fn drain_networks(&self, looks: u32) {
        self.state().draining = looks;
    }
}

fn network_name(network: &v1::Network) -> String {
    annotations_name(network.spec.as_ref().and_then(|s| s.annotations.as_ref()))
}
