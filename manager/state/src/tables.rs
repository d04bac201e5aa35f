//! The tables, and how they are read. A clone of [`State`] is a snapshot: it shares everything and never changes.

use std::sync::Arc;

use imbl::OrdMap;
use skep_proto::v1::{Cluster, Config, Network, Node, Secret, Service, Task, TaskSpec};

/// An id inside the tables, shared between them.
pub type Id = Arc<str>;

/// Who holds an address on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A task that is not known to have ended.
    Task(Id),
    /// A service, as its virtual address.
    Service(Id),
    /// A node, as the address of its balancer.
    Node(Id),
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Task(id) => write!(f, "task {id}"),
            Self::Service(id) => write!(f, "service {id}"),
            Self::Node(id) => write!(f, "node {id}"),
        }
    }
}

/// A task spec that tasks share, and how many of them name it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SharedSpec {
    pub(crate) spec: Arc<TaskSpec>,
    pub(crate) tasks: u64,
}

/// Kinds whose names are unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Named {
    Service,
    Network,
    Secret,
    Config,
}

/// All replicated objects with their indexes. Cloning costs a few reference counts.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) nodes: OrdMap<Id, Arc<Node>>,
    pub(crate) services: OrdMap<Id, Arc<Service>>,
    pub(crate) tasks: OrdMap<Id, Arc<Task>>,
    pub(crate) networks: OrdMap<Id, Arc<Network>>,
    pub(crate) secrets: OrdMap<Id, Arc<Secret>>,
    pub(crate) configs: OrdMap<Id, Arc<Config>>,
    /// (service, version of `spec.task`)
    pub(crate) specs: OrdMap<(Id, u64), SharedSpec>,

    // What follows is derived from the above; a test compares it with a full rescan.
    /// (service, slot, task)
    pub(crate) by_service: OrdMap<(Id, u64, Id), Arc<Task>>,
    /// (node, task)
    pub(crate) by_node: OrdMap<(Id, Id), Arc<Task>>,
    pub(crate) names: OrdMap<(Named, Id), Id>,
    /// (published port, protocol) of the mesh -> service
    pub(crate) ports: OrdMap<(u32, i32), Id>,
    /// (network, address) -> holder
    pub(crate) addresses: OrdMap<(Id, u32), Owner>,
    /// The network of the mesh.
    pub(crate) ingress: Option<Id>,
}

impl State {
    /// The cluster, once it is initialised.
    pub fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.clone()
    }

    /// One node by its whole id.
    pub fn node(&self, id: &str) -> Option<Arc<Node>> {
        self.nodes.get(id).cloned()
    }

    /// All nodes by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// One service by its whole id.
    pub fn service(&self, id: &str) -> Option<Arc<Service>> {
        self.services.get(id).cloned()
    }

    /// All services by id, those that are being removed too.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// One task by its whole id.
    pub fn task(&self, id: &str) -> Option<Arc<Task>> {
        self.tasks.get(id).cloned()
    }

    /// All tasks by id.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// How many tasks there are, ended ones too.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// The tasks of a service by slot, then id. The service itself may be gone already.
    pub fn tasks_of_service(&self, service_id: &str) -> impl Iterator<Item = &Arc<Task>> {
        let from = (Id::from(service_id), 0, Id::from(""));
        let id = Arc::clone(&from.0);
        self.by_service.range(from..).take_while(move |(key, _)| key.0 == id).map(|(_, task)| task)
    }

    /// The tasks that are given to a node, by id, ended ones too.
    pub fn tasks_of_node(&self, node_id: &str) -> impl Iterator<Item = &Arc<Task>> {
        let from = (Id::from(node_id), Id::from(""));
        let id = Arc::clone(&from.0);
        self.by_node.range(from..).take_while(move |(key, _)| key.0 == id).map(|(_, task)| task)
    }

    /// The spec that tasks of `service_id` with `spec_version` run.
    pub fn task_spec(&self, service_id: &str, spec_version: u64) -> Option<Arc<TaskSpec>> {
        self.specs.get(&(Id::from(service_id), spec_version)).map(|shared| Arc::clone(&shared.spec))
    }

    /// One network by its whole id.
    pub fn network(&self, id: &str) -> Option<Arc<Network>> {
        self.networks.get(id).cloned()
    }

    /// All networks by id.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// The network of the routing mesh, if there is one.
    pub fn ingress(&self) -> Option<&Arc<Network>> {
        self.networks.get(self.ingress.as_ref()?)
    }

    /// One secret by its whole id.
    pub fn secret(&self, id: &str) -> Option<Arc<Secret>> {
        self.secrets.get(id).cloned()
    }

    /// All secrets by id.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Secret>> {
        self.secrets.values()
    }

    /// One config by its whole id.
    pub fn config(&self, id: &str) -> Option<Arc<Config>> {
        self.configs.get(id).cloned()
    }

    /// All configs by id.
    pub fn configs(&self) -> impl Iterator<Item = &Arc<Config>> {
        self.configs.values()
    }

    /// Who holds an address of a network.
    pub fn address_owner(&self, network_id: &str, address: u32) -> Option<&Owner> {
        self.addresses.get(&(Id::from(network_id), address))
    }

    /// The held addresses of a network in ascending order.
    pub fn addresses_of(&self, network_id: &str) -> impl Iterator<Item = (u32, &Owner)> {
        let from = (Id::from(network_id), 0);
        let id = Arc::clone(&from.0);
        self.addresses.range(from..).take_while(move |(key, _)| key.0 == id).map(|(key, owner)| (key.1, owner))
    }

    /// Id of the service that publishes a port through the mesh.
    pub fn port_owner(&self, published: u32, protocol: i32) -> Option<&Id> {
        self.ports.get(&(published, protocol))
    }
}
