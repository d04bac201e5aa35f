//! A node for tests of the API: a swarm of one, a few images and containers, all in memory. Tasks take one step
//! forward each time somebody looks at them, so waiting clients see a service come up.
#![allow(dead_code, reason = "each user of this module needs another part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use futures::StreamExt;
use skep_daemon::api::backend::*;
use skep_daemon::api::{Api, Backend, EventHub};
use skep_proto::v1::{self, control_server, service_spec};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

const SECOND: i64 = 1_000_000_000;

/// The whole node.
pub(crate) struct Fake {
    state: Mutex<State>,
    events: broadcast::Sender<v1::ClusterEvent>,
}

#[derive(Default)]
struct State {
    version: u64,
    swarm: SwarmFacts,
    cluster: v1::Cluster,
    nodes: BTreeMap<String, v1::Node>,
    services: BTreeMap<String, v1::Service>,
    tasks: BTreeMap<String, v1::Task>,
    specs: BTreeMap<(String, u64), v1::TaskSpec>,
    networks: BTreeMap<String, v1::Network>,
    secrets: BTreeMap<String, v1::Secret>,
    configs: BTreeMap<String, v1::Config>,
    images: Vec<Image>,
    containers: Vec<Container>,
}

/// An API over a fresh node.
pub(crate) fn api() -> (Api, Arc<Fake>) {
    let fake = Arc::new(Fake { state: Mutex::default(), events: broadcast::channel(64).0 });
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

    /// Makes the tasks of a service what its spec says.
    fn reconcile(&mut self, service_id: &str) {
        let service = self.services[service_id].clone();
        let spec = service.spec.clone().unwrap_or_default();
        let wanted = match spec.mode {
            Some(service_spec::Mode::Global(_)) => self.nodes.len() as u64,
            Some(service_spec::Mode::Replicated(r)) => r.replicas,
            None => 1,
        };
        for task in self.tasks.values_mut().filter(|t| t.service_id == service_id) {
            if task.desired_state() <= v1::TaskState::Running
                && (task.slot > wanted || task.spec_version != service.spec_version)
            {
                task.set_desired_state(v1::TaskState::Shutdown);
                task.status.get_or_insert_default().set_state(v1::TaskState::Shutdown);
            }
        }
        let name = spec.annotations.unwrap_or_default().name;
        for slot in 1..=wanted {
            let live = |t: &&v1::Task| t.service_id == service_id && t.slot == slot && t.in_service();
            if self.tasks.values().any(|t| live(&t)) {
                continue;
            }
            let id = skep_proto::id::new();
            let meta = self.meta(None);
            let status = v1::TaskStatus { at_ns: now_ns(), ..Default::default() };
            let task = v1::Task {
                name: format!("{name}.{slot}.{id}"),
                meta,
                id: id.clone(),
                service_id: service_id.to_owned(),
                spec_version: service.spec_version,
                slot,
                status: Some(status),
                desired_state: v1::TaskState::Running.into(),
                networks: vec![v1::TaskNetwork {
                    network_id: "ingress0000000000000000000".to_owned(),
                    address: format!("10.0.0.{}", slot + 10),
                    aliases: Vec::new(),
                }],
                ..Default::default()
            };
            self.tasks.insert(id, task);
        }
    }

    /// Every task takes one step.
    fn step(&mut self) {
        use v1::TaskState::*;
        let node = self.nodes.keys().next().cloned().unwrap_or_default();
        for task in self.tasks.values_mut().filter(|t| t.in_service()) {
            let next = match task.observed() {
                New => Pending,
                Pending => Assigned,
                Assigned => Preparing,
                Preparing => Starting,
                _ => Running,
            };
            if next >= Assigned {
                task.node_id = node.clone();
            }
            let status = task.status.get_or_insert_default();
            if status.state() != next {
                status.set_state(next);
                status.at_ns = now_ns();
                status.message = next.word().to_owned();
            }
        }
        for service in self.services.values_mut() {
            let all = self.tasks.values().filter(|t| t.service_id == service.id && t.in_service());
            let ready = all.clone().all(|t| t.is_ready());
            if let Some(status) = &mut service.update_status
                && status.state() == v1::UpdateState::Updating
                && ready
            {
                status.set_state(v1::UpdateState::Completed);
                status.completed_ns = now_ns();
                status.message = "update completed".to_owned();
            }
        }
    }

    fn view(&self, task: &v1::Task) -> v1::TaskView {
        let service = self.services.get(&task.service_id).and_then(|s| s.spec.clone()).unwrap_or_default();
        let annotations = service.annotations.unwrap_or_default();
        v1::TaskView {
            task: Some(task.clone()),
            spec: self.specs.get(&(task.service_id.clone(), task.spec_version)).cloned(),
            service_name: annotations.name,
            service_labels: annotations.labels,
        }
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

    /// Adds an image, as loading one would.
    pub(crate) fn add_image(&self, reference: &str) {
        let mut state = self.state();
        let id = format!("sha256:{:0>64x}", state.images.len() + 10);
        state.images.push(Image {
            id,
            references: vec![reference.to_owned()],
            created_ns: now_ns(),
            size: 1_234_567,
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            config: ImageConfig { cmd: vec!["sh".to_owned()], ..ImageConfig::default() },
            layers: vec![format!("sha256:{:0>64x}", 5)],
            history: vec![ImageHistory { created_by: "load".to_owned(), ..ImageHistory::default() }],
            ..Image::default()
        });
    }

    /// Adds a running container.
    pub(crate) fn add_container(&self, name: &str) {
        self.state().containers.push(Container {
            id: format!("{:0>64x}", 0xc0ff_ee00_u64 << 32),
            name: name.to_owned(),
            image: "busybox:latest".to_owned(),
            image_id: format!("sha256:{:0>64x}", 10),
            command: vec!["sleep".to_owned(), "1000".to_owned()],
            created_ns: now_ns() - 65 * SECOND,
            started_ns: now_ns() - 64 * SECOND,
            state: ContainerState::Running,
            pid: 4711,
            ..Container::default()
        });
    }
}

// ---- the cluster --------------------------------------------------------------------------------------------

#[async_trait]
impl control_server::Control for Fake {
    async fn get_cluster(&self, _: Request<v1::GetClusterRequest>) -> Answer<v1::Cluster> {
        Ok(Response::new(self.state().cluster.clone()))
    }

    async fn update_cluster(&self, request: Request<v1::UpdateClusterRequest>) -> Answer<v1::Cluster> {
        let request = request.into_inner();
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
        Ok(Response::new(state.cluster.clone()))
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Answer<v1::ListNodesResponse> {
        Ok(Response::new(v1::ListNodesResponse { nodes: self.state().nodes.values().cloned().collect() }))
    }

    async fn get_node(&self, request: Request<v1::GetRequest>) -> Answer<v1::Node> {
        let state = self.state();
        let id = find("node", &state.nodes, &request.get_ref().reference, hostname)?;
        Ok(Response::new(state.nodes[&id].clone()))
    }

    async fn update_node(&self, request: Request<v1::UpdateNodeRequest>) -> Answer<v1::Node> {
        let request = request.into_inner();
        let mut state = self.state();
        let id = find("node", &state.nodes, &request.reference, hostname)?;
        let mut node = state.nodes[&id].clone();
        fresh(request.version, node.meta.as_ref())?;
        node.meta = state.meta(node.meta.as_ref());
        node.spec = request.spec;
        state.nodes.insert(id, node.clone());
        Ok(Response::new(node))
    }

    async fn remove_node(&self, request: Request<v1::RemoveNodeRequest>) -> Answer<v1::Empty> {
        let state = self.state();
        let id = find("node", &state.nodes, &request.get_ref().reference, hostname)?;
        Err(Status::failed_precondition(format!("node {id} is not down and can't be removed")))
    }

    async fn create_service(&self, request: Request<v1::CreateServiceRequest>) -> Answer<v1::CreateServiceResponse> {
        let request = request.into_inner();
        let spec = request.spec.ok_or_else(|| Status::invalid_argument("a service needs a spec"))?;
        let mut state = self.state();
        let name = annotations_name(spec.annotations.as_ref());
        if state.services.values().any(|s| service_name(s) == name) {
            return Err(Status::already_exists(format!("name conflicts with an existing object: service {name}")));
        }
        let meta = state.meta(None);
        let version = state.version;
        let endpoint = spec.endpoint.clone().unwrap_or_default();
        let ports = endpoint.ports.iter().map(|p| v1::PortConfig {
            published_port: if p.published_port == 0 { 30_000 } else { p.published_port },
            ..p.clone()
        });
        let service = v1::Service {
            id: request.id.clone(),
            meta,
            endpoint: Some(v1::Endpoint {
                ports: ports.collect(),
                spec: Some(endpoint),
                virtual_ips: vec![v1::VirtualIp {
                    network_id: "ingress0000000000000000000".to_owned(),
                    address: "10.0.0.5".to_owned(),
                }],
            }),
            spec_version: version,
            spec: Some(spec.clone()),
            ..Default::default()
        };
        state.specs.insert((request.id.clone(), version), spec.task.unwrap_or_default());
        state.services.insert(request.id.clone(), service);
        state.reconcile(&request.id);
        drop(state);
        self.tell(v1::ObjectKind::Service, v1::EventAction::Create, &request.id, name);
        Ok(Response::new(v1::CreateServiceResponse { id: request.id, warnings: Vec::new() }))
    }

    async fn update_service(&self, request: Request<v1::UpdateServiceRequest>) -> Answer<v1::UpdateServiceResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        let id = find("service", &state.services, &request.reference, service_name)?;
        let mut service = state.services[&id].clone();
        fresh(request.version, service.meta.as_ref())?;
        let spec = if request.rollback { service.previous_spec.clone() } else { request.spec };
        let spec = spec.ok_or_else(|| Status::failed_precondition(format!("service {id} has no previous spec")))?;
        service.meta = state.meta(service.meta.as_ref());
        if service.spec.as_ref().and_then(|s| s.task.as_ref()) != spec.task.as_ref() {
            service.spec_version = state.version;
            let status = service.update_status.insert(v1::UpdateStatus { started_ns: now_ns(), ..Default::default() });
            status.set_state(v1::UpdateState::Updating);
            state.specs.insert((id.clone(), service.spec_version), spec.task.clone().unwrap_or_default());
        }
        service.previous_spec = service.spec.replace(spec);
        let name = service_name(&service);
        state.services.insert(id.clone(), service);
        state.reconcile(&id);
        drop(state);
        self.tell(v1::ObjectKind::Service, v1::EventAction::Update, &id, name);
        Ok(Response::new(v1::UpdateServiceResponse::default()))
    }

    async fn remove_service(&self, request: Request<v1::GetRequest>) -> Answer<v1::Empty> {
        let mut state = self.state();
        let id = find("service", &state.services, &request.get_ref().reference, service_name)?;
        let service = state.services.remove(&id).unwrap_or_default();
        state.tasks.retain(|_, task| task.service_id != id);
        drop(state);
        self.tell(v1::ObjectKind::Service, v1::EventAction::Remove, &id, service_name(&service));
        Ok(Response::new(v1::Empty {}))
    }

    async fn get_service(&self, request: Request<v1::GetRequest>) -> Answer<v1::Service> {
        let mut state = self.state();
        state.step();
        let id = find("service", &state.services, &request.get_ref().reference, service_name)?;
        Ok(Response::new(state.services[&id].clone()))
    }

    async fn list_services(&self, _: Request<v1::ListServicesRequest>) -> Answer<v1::ListServicesResponse> {
        let mut state = self.state();
        state.step();
        let views = state.services.values().map(|service| {
            let tasks = || state.tasks.values().filter(|t| t.service_id == service.id && t.in_service());
            v1::ServiceView {
                service: Some(service.clone()),
                running: tasks().filter(|t| t.is_ready()).count() as u64,
                desired: tasks().count() as u64,
                completed: 0,
            }
        });
        Ok(Response::new(v1::ListServicesResponse { services: views.collect() }))
    }

    async fn get_task(&self, request: Request<v1::GetRequest>) -> Answer<v1::TaskView> {
        let state = self.state();
        let id = find("task", &state.tasks, &request.get_ref().reference, |t| t.name.clone())?;
        Ok(Response::new(state.view(&state.tasks[&id])))
    }

    async fn list_tasks(&self, request: Request<v1::ListTasksRequest>) -> Answer<v1::ListTasksResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        state.step();
        let chosen = state.tasks.values().filter(|t| {
            (request.service_id.is_empty() || t.service_id == request.service_id)
                && (request.node_id.is_empty() || t.node_id == request.node_id)
        });
        Ok(Response::new(v1::ListTasksResponse { tasks: chosen.map(|t| state.view(t)).collect() }))
    }

    async fn create_network(&self, request: Request<v1::CreateNetworkRequest>) -> Answer<v1::Network> {
        let request = request.into_inner();
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
        Ok(Response::new(network))
    }

    async fn get_network(&self, request: Request<v1::GetRequest>) -> Answer<v1::Network> {
        let state = self.state();
        let id = find("network", &state.networks, &request.get_ref().reference, network_name)?;
        Ok(Response::new(state.networks[&id].clone()))
    }

    async fn list_networks(&self, _: Request<v1::ListNetworksRequest>) -> Answer<v1::ListNetworksResponse> {
        Ok(Response::new(v1::ListNetworksResponse { networks: self.state().networks.values().cloned().collect() }))
    }

    async fn remove_network(&self, request: Request<v1::GetRequest>) -> Answer<v1::Empty> {
        let mut state = self.state();
        let id = find("network", &state.networks, &request.get_ref().reference, network_name)?;
        let targets = |s: &v1::Service| s.spec.as_ref().and_then(|s| s.task.clone()).unwrap_or_default().networks;
        if state.services.values().flat_map(targets).any(|n| n.target == id) {
            return Err(Status::failed_precondition(format!("network {id} is in use by a service")));
        }
        state.networks.remove(&id);
        Ok(Response::new(v1::Empty {}))
    }

    async fn create_secret(&self, request: Request<v1::CreateSecretRequest>) -> Answer<v1::Secret> {
        let request = request.into_inner();
        let mut state = self.state();
        let meta = state.meta(None);
        let secret = v1::Secret { id: request.id, meta, spec: request.spec };
        state.secrets.insert(secret.id.clone(), secret.clone());
        Ok(Response::new(secret))
    }

    async fn get_secret(&self, request: Request<v1::GetRequest>) -> Answer<v1::Secret> {
        let state = self.state();
        let id = find("secret", &state.secrets, &request.get_ref().reference, secret_name)?;
        Ok(Response::new(state.secrets[&id].clone()))
    }

    async fn list_secrets(&self, _: Request<v1::ListSecretsRequest>) -> Answer<v1::ListSecretsResponse> {
        Ok(Response::new(v1::ListSecretsResponse { secrets: self.state().secrets.values().cloned().collect() }))
    }

    async fn update_secret(&self, request: Request<v1::UpdateSecretRequest>) -> Answer<v1::Secret> {
        let request = request.into_inner();
        let mut state = self.state();
        let id = find("secret", &state.secrets, &request.reference, secret_name)?;
        let mut secret = state.secrets[&id].clone();
        fresh(request.version, secret.meta.as_ref())?;
        secret.meta = state.meta(secret.meta.as_ref());
        secret.spec = request.spec;
        state.secrets.insert(id, secret.clone());
        Ok(Response::new(secret))
    }

    async fn remove_secret(&self, request: Request<v1::GetRequest>) -> Answer<v1::Empty> {
        let mut state = self.state();
        let id = find("secret", &state.secrets, &request.get_ref().reference, secret_name)?;
        state.secrets.remove(&id);
        Ok(Response::new(v1::Empty {}))
    }

    async fn create_config(&self, request: Request<v1::CreateConfigRequest>) -> Answer<v1::Config> {
        let request = request.into_inner();
        let mut state = self.state();
        let meta = state.meta(None);
        let config = v1::Config { id: request.id, meta, spec: request.spec };
        state.configs.insert(config.id.clone(), config.clone());
        Ok(Response::new(config))
    }

    async fn get_config(&self, request: Request<v1::GetRequest>) -> Answer<v1::Config> {
        let state = self.state();
        let id = find("config", &state.configs, &request.get_ref().reference, config_name)?;
        Ok(Response::new(state.configs[&id].clone()))
    }

    async fn list_configs(&self, _: Request<v1::ListConfigsRequest>) -> Answer<v1::ListConfigsResponse> {
        Ok(Response::new(v1::ListConfigsResponse { configs: self.state().configs.values().cloned().collect() }))
    }

    async fn update_config(&self, request: Request<v1::UpdateConfigRequest>) -> Answer<v1::Config> {
        let request = request.into_inner();
        let mut state = self.state();
        let id = find("config", &state.configs, &request.reference, config_name)?;
        let mut config = state.configs[&id].clone();
        fresh(request.version, config.meta.as_ref())?;
        config.meta = state.meta(config.meta.as_ref());
        config.spec = request.spec;
        state.configs.insert(id, config.clone());
        Ok(Response::new(config))
    }

    async fn remove_config(&self, request: Request<v1::GetRequest>) -> Answer<v1::Empty> {
        let mut state = self.state();
        let id = find("config", &state.configs, &request.get_ref().reference, config_name)?;
        state.configs.remove(&id);
        Ok(Response::new(v1::Empty {}))
    }

    type WatchEventsStream = BoxStream<Result<v1::ClusterEvent, Status>>;

    async fn watch_events(&self, _: Request<v1::WatchEventsRequest>) -> Answer<Self::WatchEventsStream> {
        let events = BroadcastStream::new(self.events.subscribe())
            .map(|event| event.map_err(|_| Status::resource_exhausted("too slow")));
        Ok(Response::new(Box::pin(events)))
    }
}

fn hostname(node: &v1::Node) -> String {
    node.description.clone().unwrap_or_default().hostname
}

fn service_name(service: &v1::Service) -> String {
    annotations_name(service.spec.as_ref().and_then(|s| s.annotations.as_ref()))
}

fn network_name(network: &v1::Network) -> String {
    annotations_name(network.spec.as_ref().and_then(|s| s.annotations.as_ref()))
}

fn secret_name(secret: &v1::Secret) -> String {
    annotations_name(secret.spec.as_ref().and_then(|s| s.annotations.as_ref()))
}

fn config_name(config: &v1::Config) -> String {
    annotations_name(config.spec.as_ref().and_then(|s| s.annotations.as_ref()))
}

/// Membership, which hands out the node itself as the cluster's API.
struct Membership(Arc<Fake>);

#[async_trait]
impl Cluster for Membership {
    fn control(&self) -> Option<Arc<Control>> {
        let manager = self.0.state().swarm.manager;
        manager.then(|| self.0.clone() as Arc<Control>)
    }

    async fn init(&self, request: Init) -> Result<String, Failure> {
        let mut state = self.0.state();
        let id = skep_proto::id::new();
        state.swarm = SwarmFacts {
            state: SwarmState::Active,
            node_id: id.clone(),
            node_address: "10.9.8.7".to_owned(),
            manager: true,
            managers: vec![(id.clone(), "10.9.8.7:2377".to_owned())],
            ..SwarmFacts::default()
        };
        let meta = state.meta(None);
        state.cluster = v1::Cluster {
            id: skep_proto::id::new(),
            meta,
            spec: Some(v1::ClusterSpec { task_history_limit: 5, heartbeat_ns: SECOND, ..request.spec }),
            root_ca: Some(v1::RootCa { certificate_pem: "PEM".to_owned(), key_pem: String::new() }),
            join_tokens: Some(v1::JoinTokens { worker: "SWMTKN-1-a-w".to_owned(), manager: "SWMTKN-1-a-m".to_owned() }),
            data_path_port: 4789,
            default_address_pools: vec!["10.0.0.0/8".to_owned()],
            subnet_size: 24,
            generation_base: 0,
        };
        let node = v1::Node {
            id: id.clone(),
            meta,
            spec: Some(v1::NodeSpec {
                role: v1::Role::Manager.into(),
                availability: request.availability.into(),
                ..Default::default()
            }),
            description: Some(v1::NodeDescription {
                hostname: "fake".to_owned(),
                platform: Some(v1::Platform { architecture: "x86_64".to_owned(), os: "linux".to_owned() }),
                resources: Some(v1::Resources { nano_cpus: 2 * SECOND, memory_bytes: 1 << 30 }),
                engine_version: "0.1.0".to_owned(),
                root_ca_pem: "PEM".to_owned(),
                ..Default::default()
            }),
            status: Some(v1::NodeStatus {
                state: v1::NodeState::Ready.into(),
                address: "10.9.8.7".to_owned(),
                ..Default::default()
            }),
            manager: Some(v1::ManagerInfo {
                raft_id: 1,
                address: "10.9.8.7:2377".to_owned(),
                leader: true,
                reachable: true,
            }),
            ..Default::default()
        };
        state.nodes.insert(id.clone(), node);
        let ingress = v1::Network {
            id: "ingress0000000000000000000".to_owned(),
            meta,
            spec: Some(v1::NetworkSpec {
                annotations: Some(v1::Annotations { name: "ingress".to_owned(), ..Default::default() }),
                ingress: true,
                ..Default::default()
            }),
            vni: 4096,
            subnet: "10.0.0.0/24".to_owned(),
            gateway: "10.0.0.1".to_owned(),
            ..Default::default()
        };
        state.networks.insert(ingress.id.clone(), ingress);
        Ok(id)
    }

    async fn join(&self, request: Join) -> Result<(), Failure> {
        Err(Failure::Invalid(format!("manager {} can't be reached", request.remotes.join(","))))
    }

    async fn leave(&self, force: bool) -> Result<(), Failure> {
        if !force {
            let text =
                "You are attempting to leave the swarm on a node that is participating as a manager. Use --force";
            return Err(Failure::Unavailable(text.to_owned()));
        }
        *self.0.state() = State::default();
        Ok(())
    }
}

// ---- the node -----------------------------------------------------------------------------------------------

#[async_trait]
impl NodeInfo for Fake {
    async fn facts(&self) -> NodeFacts {
        NodeFacts {
            engine_id: "fake-engine".to_owned(),
            hostname: "fake".to_owned(),
            version: "0.1.0".to_owned(),
            kernel: "6.18.0".to_owned(),
            operating_system: "Debian GNU/Linux 12 (bookworm)".to_owned(),
            architecture: "x86_64".to_owned(),
            resources: v1::Resources { nano_cpus: 2 * SECOND, memory_bytes: 1 << 30 },
            data_dir: "/var/lib/skep".to_owned(),
            cgroup_version: 2,
            started_ns: now_ns(),
            gateway: Some(GatewayFacts {
                name: "skep_gwbridge".to_owned(),
                subnet: "172.18.0.0/16".to_owned(),
                gateway: "172.18.0.1".to_owned(),
            }),
            swarm: self.state().swarm.clone(),
            ..NodeFacts::default()
        }
    }
}

#[async_trait]
impl Images for Fake {
    async fn list(&self) -> Result<Vec<Image>, Failure> {
        Ok(self.state().images.clone())
    }

    async fn inspect(&self, name: &str) -> Result<Image, Failure> {
        let state = self.state();
        let short = |image: &&Image| {
            image.id == name
                || image.id.trim_start_matches("sha256:").starts_with(name)
                || image.references.iter().any(|r| r == name || r.trim_end_matches(":latest") == name)
        };
        let found = state.images.iter().find(short).cloned();
        found.ok_or_else(|| Failure::NotFound(format!("No such image: {name}")))
    }

    async fn load(&self, mut archive: Upload) -> Result<Vec<String>, Failure> {
        let mut size = 0;
        while let Some(piece) = archive.next().await {
            size += piece.map_err(|e| Failure::Invalid(format!("the archive is truncated: {e}")))?.len();
        }
        if size == 0 {
            return Err(Failure::Invalid("the archive is empty".to_owned()));
        }
        self.add_image("loaded:latest");
        Ok(vec!["loaded:latest".to_owned()])
    }

    async fn import(&self, root: Upload, request: Import) -> Result<String, Failure> {
        root.for_each(|_| std::future::ready(())).await;
        self.add_image(&request.reference);
        Ok(self.inspect_last())
    }

    async fn save(&self, names: Vec<String>) -> Result<Upload, Failure> {
        for name in &names {
            Images::inspect(self, name).await?;
        }
        let pieces = names.into_iter().map(|name| Ok(bytes::Bytes::from(name)));
        Ok(Box::pin(futures::stream::iter(pieces.collect::<Vec<_>>())))
    }

    async fn tag(&self, name: &str, reference: &str) -> Result<(), Failure> {
        let image = Images::inspect(self, name).await?;
        let mut state = self.state();
        for found in state.images.iter_mut().filter(|i| i.id == image.id) {
            found.references.push(reference.to_owned());
        }
        Ok(())
    }

    async fn remove(&self, name: &str, _: bool) -> Result<Vec<Removed>, Failure> {
        let image = Images::inspect(self, name).await?;
        self.state().images.retain(|i| i.id != image.id);
        let mut removed: Vec<Removed> = image.references.into_iter().map(Removed::Untagged).collect();
        removed.push(Removed::Deleted(image.id));
        Ok(removed)
    }
}

impl Fake {
    fn inspect_last(&self) -> String {
        self.state().images.last().map(|i| i.id.clone()).unwrap_or_default()
    }
}

fn two_lines(task_id: &str, node_id: &str) -> v1::LogBatch {
    let line = |stderr: bool, data: &'static str| v1::LogLine {
        task_id: task_id.to_owned(),
        node_id: node_id.to_owned(),
        at_ns: 1_700_000_000 * SECOND,
        stderr,
        data: bytes::Bytes::from_static(data.as_bytes()),
    };
    v1::LogBatch { lines: vec![line(false, "hello\n"), line(true, "trouble\n")], ..Default::default() }
}

#[async_trait]
impl Containers for Fake {
    async fn list(&self) -> Result<Vec<Container>, Failure> {
        Ok(self.state().containers.clone())
    }

    async fn inspect(&self, name: &str) -> Result<Container, Failure> {
        let found = self.state().containers.iter().find(|c| c.id.starts_with(name) || c.name == name).cloned();
        found.ok_or_else(|| Failure::NotFound(format!("No such container: {name}")))
    }

    async fn logs(&self, _: &str, _: v1::LogOptions) -> Result<BoxStream<Result<v1::LogBatch, Failure>>, Failure> {
        Ok(Box::pin(futures::stream::iter([Ok(two_lines("", ""))])))
    }

    async fn stats(&self, _: &str) -> Result<Option<Stats>, Failure> {
        Ok(Some(Stats { cpu_ns: 5, system_cpu_ns: 100, cpus: 2, memory_bytes: 1 << 20, ..Stats::default() }))
    }
}

#[async_trait]
impl TaskLogs for Fake {
    async fn task_logs(
        &self,
        task_ids: Vec<String>,
        _: v1::LogOptions,
    ) -> Result<BoxStream<Result<v1::LogBatch, Failure>>, Failure> {
        let node = self.state().swarm.node_id.clone();
        let batches: Vec<_> = task_ids.iter().map(|id| Ok(two_lines(id, &node))).collect();
        Ok(Box::pin(futures::stream::iter(batches)))
    }
}
