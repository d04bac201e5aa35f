//! A node for tests of the API: a swarm of one, a few images and containers, all in memory. Tasks take one step
//! forward each time somebody looks at them, so waiting clients see a service come up. One file a resource.
#![allow(dead_code, reason = "each user of this module needs another part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod containers;
mod images;
mod kept;
mod membership;
mod networks;
mod nodes;
mod services;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use futures::StreamExt;
use skep_daemon::api::backend::*;
use skep_daemon::api::{Api, Backend, EventHub};
use skep_proto::v1::{self, control_server};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use membership::Membership;

const SECOND: i64 = 1_000_000_000;

/// Who decides whether a spec is accepted, as a leader's validation does. Without one, every spec is.
pub(crate) trait Judge: Send + Sync {
    /// The spec as it is accepted, and what is warned of. `objects` are those that there are.
    fn service(
        &self,
        objects: Vec<v1::Object>,
        spec: v1::ServiceSpec,
        old: Option<&v1::Service>,
    ) -> Result<(v1::ServiceSpec, Vec<String>), Status>;
}

/// The whole node.
pub(crate) struct Fake {
    state: Mutex<State>,
    judge: Mutex<Option<Arc<dyn Judge>>>,
    events: broadcast::Sender<v1::ClusterEvent>,
}

#[derive(Default)]
struct State {
    version: u64,
    /// Updates of services before which somebody else changes the service.
    others: u32,
    swarm: SwarmFacts,
    cluster: v1::Cluster,
    nodes: BTreeMap<String, v1::Node>,
    services: BTreeMap<String, v1::Service>,
    tasks: BTreeMap<String, v1::Task>,
    specs: BTreeMap<(String, u64), v1::TaskSpec>,
    networks: BTreeMap<String, v1::Network>,
    /// How often removing a network is answered with: its tasks are about to end.
    draining: u32,
    secrets: BTreeMap<String, v1::Secret>,
    configs: BTreeMap<String, v1::Config>,
    images: Vec<Image>,
    containers: Vec<Container>,
}

/// An API over a fresh node.
pub(crate) fn api() -> (Api, Arc<Fake>) {
    let events = broadcast::channel(64).0;
    let fake = Arc::new(Fake { state: Mutex::default(), judge: Mutex::default(), events });
    let hub = EventHub::new();
    let node: Arc<dyn NodeInfo> = fake.clone();
    let cluster = Arc::new(Membership(fake.clone()));
    let backend =
        Backend { node, cluster, images: fake.clone(), containers: fake.clone(), logs: fake.clone(), events: hub };
    (Api::new(backend, CancellationToken::new()), fake)
}

fn now_ns() -> i64 {
    skep_proto::time::unix_ns(std::time::SystemTime::now())
}

impl State {
    fn meta(&mut self, old: Option<&v1::Meta>) -> Option<v1::Meta> {
        self.version += 1;
        let created_ns = old.map_or_else(now_ns, |m| m.created_ns);
        Some(v1::Meta { version: self.version, created_ns, updated_ns: now_ns() })
    }
}

fn annotations_name(annotations: Option<&v1::Annotations>) -> String {
    annotations.map(|a| a.name.clone()).unwrap_or_default()
}

/// The id of what a reference names: whole id, name, prefix.
fn find<T>(
    kind: &str,
    table: &BTreeMap<String, T>,
    reference: &str,
    name: impl Fn(&T) -> String,
) -> Result<String, Status> {
    if table.contains_key(reference) {
        return Ok(reference.to_owned());
    }
    let named = table.iter().find(|(_, value)| name(value) == reference);
    let mut prefixed = table.keys().filter(|id| !reference.is_empty() && id.starts_with(reference));
    match (named, prefixed.next(), prefixed.next()) {
        (Some((id, _)), _, _) => Ok(id.clone()),
        (None, Some(_), Some(_)) => Err(Status::invalid_argument(format!("{kind} {reference} is ambiguous"))),
        (None, Some(id), None) => Ok(id.clone()),
        (None, None, _) => Err(Status::not_found(format!("{kind} {reference} not found"))),
    }
}

fn fresh(version: u64, meta: Option<&v1::Meta>) -> Result<(), Status> {
    let current = meta.map_or(0, |m| m.version);
    if version == current {
        Ok(())
    } else {
        Err(Status::aborted(format!("update out of sequence: version is {current}, not {version}")))
    }
}

impl Fake {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn tell(&self, kind: v1::ObjectKind, action: v1::EventAction, id: &str, name: String) {
        let event = v1::ClusterEvent {
            at_ns: now_ns(),
            kind: kind.into(),
            action: action.into(),
            id: id.to_owned(),
            name,
            attributes: BTreeMap::new(),
        };
        let _ = self.events.send(event);
    }

    /// Has every spec of a service judged from now on.
    pub(crate) fn judge_by(&self, judge: impl Judge + 'static) {
        *self.judge.lock().unwrap() = Some(Arc::new(judge));
    }

    /// Has somebody else change services just before the next so many updates.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn others_change(&self, updates: u32) {
        self.state().others = updates;
    }

    fn judge(&self) -> Option<Arc<dyn Judge>> {
        self.judge.lock().unwrap().clone()
    }

    /// What specs may refer to.
    fn objects(&self) -> Vec<v1::Object> {
        use v1::object::Kind;
        let state = self.state();
        let networks = state.networks.values().cloned().map(|n| Kind::Network(v1::Network { meta: None, ..n }));
        let secrets = state.secrets.values().cloned().map(|s| Kind::Secret(v1::Secret { meta: None, ..s }));
        let configs = state.configs.values().cloned().map(|c| Kind::Config(v1::Config { meta: None, ..c }));
        networks.chain(secrets).chain(configs).map(|kind| v1::Object { kind: Some(kind) }).collect()
    }
}

/// One line a call: the method of the same name in the file of its resource answers it.
macro_rules! control {
    ($($method:ident($request:ident) -> $response:ident;)*) => {
        #[async_trait]
        impl control_server::Control for Fake {
            $(
                async fn $method(&self, request: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                    Fake::$method(self, request.into_inner()).map(Response::new)
                }
            )*

            type WatchEventsStream = BoxStream<Result<v1::ClusterEvent, Status>>;

            async fn watch_events(
                &self,
                _: Request<v1::WatchEventsRequest>,
            ) -> Result<Response<Self::WatchEventsStream>, Status> {
                let events = BroadcastStream::new(self.events.subscribe())
                    .map(|event| event.map_err(|_| Status::resource_exhausted("too slow")));
                Ok(Response::new(Box::pin(events)))
            }
        }
    };
}

control! {
    get_cluster(GetClusterRequest) -> Cluster;
    update_cluster(UpdateClusterRequest) -> Cluster;
    list_nodes(ListNodesRequest) -> ListNodesResponse;
    get_node(GetRequest) -> Node;
    update_node(UpdateNodeRequest) -> Node;
    remove_node(RemoveNodeRequest) -> Empty;
    create_service(CreateServiceRequest) -> CreateServiceResponse;
    update_service(UpdateServiceRequest) -> UpdateServiceResponse;
    remove_service(GetRequest) -> Empty;
    get_service(GetRequest) -> Service;
    list_services(ListServicesRequest) -> ListServicesResponse;
    get_task(GetRequest) -> TaskView;
    list_tasks(ListTasksRequest) -> ListTasksResponse;
    create_network(CreateNetworkRequest) -> Network;
    get_network(GetRequest) -> Network;
    list_networks(ListNetworksRequest) -> ListNetworksResponse;
    remove_network(GetRequest) -> Empty;
    create_secret(CreateSecretRequest) -> Secret;
    get_secret(GetRequest) -> Secret;
    list_secrets(ListSecretsRequest) -> ListSecretsResponse;
    update_secret(UpdateSecretRequest) -> Secret;
    remove_secret(GetRequest) -> Empty;
    create_config(CreateConfigRequest) -> Config;
    get_config(GetRequest) -> Config;
    list_configs(ListConfigsRequest) -> ListConfigsResponse;
    update_config(UpdateConfigRequest) -> Config;
    remove_config(GetRequest) -> Empty;
}
