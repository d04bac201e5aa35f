//! What differs between two states: how whoever has understood one of them gets to the next without reading it all.
//!
//! States that stem from each other share nearly everything, and what is shared is not looked at.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use skep_proto::v1::{Node, Service, Task};

use crate::tables::{Id, State};

/// An object before and after; one of them may be absent.
pub type Pair<T> = (Option<Arc<T>>, Option<Arc<T>>);

/// The differences between two states.
#[derive(Debug, Default)]
pub struct Difference {
    /// Nodes by id.
    pub nodes: Vec<Pair<Node>>,
    /// Services by id.
    pub services: Vec<Pair<Service>>,
    /// Tasks by id.
    pub tasks: Vec<Pair<Task>>,
    /// The cluster, a network, a secret or a config differs.
    pub others: bool,
}

impl State {
    /// What differs from an older state. Costs what has changed, not what there is.
    pub fn since(&self, old: &Self) -> Difference {
        Difference {
            nodes: pairs(&old.nodes, &self.nodes),
            services: pairs(&old.services, &self.services),
            tasks: pairs(&old.tasks, &self.tasks),
            others: old.cluster != self.cluster
                || old.ingress != self.ingress
                || differ(&old.networks, &self.networks)
                || differ(&old.secrets, &self.secrets)
                || differ(&old.configs, &self.configs),
        }
    }
}

fn pairs<T: PartialEq>(old: &OrdMap<Id, Arc<T>>, new: &OrdMap<Id, Arc<T>>) -> Vec<Pair<T>> {
    old.diff(new)
        .map(|item| match item {
            DiffItem::Add(_, new) => (None, Some(Arc::clone(new))),
            DiffItem::Update { old: (_, old), new: (_, new) } => (Some(Arc::clone(old)), Some(Arc::clone(new))),
            DiffItem::Remove(_, old) => (Some(Arc::clone(old)), None),
        })
        .collect()
}

fn differ<T: PartialEq>(old: &OrdMap<Id, Arc<T>>, new: &OrdMap<Id, Arc<T>>) -> bool {
    old.diff(new).next().is_some()
}
