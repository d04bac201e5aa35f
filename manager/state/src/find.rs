//! How people name objects: by id, by name, by the beginning of an id.

use std::sync::Arc;

use imbl::OrdMap;
use skep_proto::v1::{Config, Network, Node, Secret, Service, Task};

use crate::tables::{Id, Named, State};

/// Candidates that an ambiguous reference lists at most.
const CANDIDATES: usize = 10;

/// Why a reference names no single object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No id, name or beginning of an id is like this.
    #[error("not found")]
    NotFound,
    /// Several are.
    #[error("ambiguous: it fits {}", candidates.join(", "))]
    Ambiguous {
        /// Ids of what it fits; ten at most.
        candidates: Vec<String>,
    },
}

impl State {
    /// A node by id, host name, or unambiguous beginning of an id.
    pub fn find_node(&self, reference: &str) -> Result<Arc<Node>, FindError> {
        if let Some(node) = self.nodes.get(reference) {
            return Ok(Arc::clone(node));
        }
        let named: Vec<_> = self
            .nodes
            .values()
            .filter(|n| !reference.is_empty() && n.description.as_ref().is_some_and(|d| d.hostname == reference))
            .take(CANDIDATES)
            .collect();
        match named.as_slice() {
            [] => by_prefix(&self.nodes, reference),
            [node] => Ok(Arc::clone(node)),
            several => Err(FindError::Ambiguous { candidates: several.iter().map(|n| n.id.clone()).collect() }),
        }
    }

    /// A service by id, name, or unambiguous beginning of an id.
    pub fn find_service(&self, reference: &str) -> Result<Arc<Service>, FindError> {
        self.find(&self.services, Named::Service, reference)
    }

    /// A task by id, name, unambiguous beginning of an id, or by service and slot (`web.1`, as lists show it): the one in
    /// service there, or the last that was.
    pub fn find_task(&self, reference: &str) -> Result<Arc<Task>, FindError> {
        if let Some(task) = self.tasks.get(reference) {
            return Ok(Arc::clone(task));
        }
        // A task's name ends in its id.
        let named = reference.rsplit_once('.').and_then(|(_, id)| self.tasks.get(id)).filter(|t| t.name == reference);
        if let Some(task) = named {
            return Ok(Arc::clone(task));
        }
        by_prefix(&self.tasks, reference).or_else(|error| self.task_of_slot(reference).ok_or(error))
    }

    fn task_of_slot(&self, reference: &str) -> Option<Arc<Task>> {
        let (service, _) = reference.rsplit_once('.')?;
        let service = self.names.get(&(Named::Service, Id::from(service)))?;
        let of_slot = |task: &&Arc<Task>| {
            task.name.strip_prefix(reference).is_some_and(|id| id.strip_prefix('.') == Some(task.id.as_str()))
        };
        let newest = |task: &&Arc<Task>| (task.in_service(), task.meta.as_ref().map_or(0, |meta| meta.created_ns));
        self.tasks_of_service(service).filter(of_slot).max_by_key(newest).cloned()
    }

    /// A network by id, name, or unambiguous beginning of an id.
    pub fn find_network(&self, reference: &str) -> Result<Arc<Network>, FindError> {
        self.find(&self.networks, Named::Network, reference)
    }

    /// A secret by id, name, or unambiguous beginning of an id.
    pub fn find_secret(&self, reference: &str) -> Result<Arc<Secret>, FindError> {
        self.find(&self.secrets, Named::Secret, reference)
    }

    /// A config by id, name, or unambiguous beginning of an id.
    pub fn find_config(&self, reference: &str) -> Result<Arc<Config>, FindError> {
        self.find(&self.configs, Named::Config, reference)
    }

    fn find<T>(&self, table: &OrdMap<Id, Arc<T>>, kind: Named, reference: &str) -> Result<Arc<T>, FindError> {
        if let Some(object) = table.get(reference) {
            return Ok(Arc::clone(object));
        }
        let named = self.names.get(&(kind, Id::from(reference))).and_then(|id| table.get(id));
        named.map_or_else(|| by_prefix(table, reference), |object| Ok(Arc::clone(object)))
    }
}

fn by_prefix<T>(table: &OrdMap<Id, Arc<T>>, prefix: &str) -> Result<Arc<T>, FindError> {
    if prefix.is_empty() {
        return Err(FindError::NotFound);
    }
    let mut fits = table.range(Id::from(prefix)..).take_while(|(id, _)| id.starts_with(prefix));
    let Some((first, object)) = fits.next() else { return Err(FindError::NotFound) };
    let mut candidates: Vec<String> = fits.take(CANDIDATES - 1).map(|(id, _)| id.to_string()).collect();
    if candidates.is_empty() {
        return Ok(Arc::clone(object));
    }
    candidates.insert(0, first.to_string());
    Err(FindError::Ambiguous { candidates })
}
