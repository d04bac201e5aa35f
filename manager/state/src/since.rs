//! What differs between two states: how whoever has understood one of them gets to the next without reading it all.
//!
//! States that stem from each other share nearly everything, and what is shared is not looked at.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use skep_proto::v1::{Network, Node, Service, Task};

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
    /// The cluster, a network, a secret or a config differs. Of a network, only its version and where the next address
    /// is looked for may have changed: that happens with every task that is made.
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
                || old.networks.diff(&self.networks).any(|item| !is_cursor(&item))
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

/// Whether nothing of a network has changed that anybody but the allocator reads.
fn is_cursor(item: &DiffItem<'_, '_, Id, Arc<Network>>) -> bool {
    let DiffItem::Update { old: (_, old), new: (_, new) } = item else { return false };
    let rest = |network: &Network| Network { meta: None, last_address: String::new(), ..network.clone() };
    rest(old) == rest(new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::Meta;

    use super::*;

    #[test]
    fn an_address_taken_is_no_difference_of_a_network() {
        let network = Network { id: "n".into(), subnet: "10.0.1.0/24".into(), ..Network::default() };
        let with = |network: &Network| {
            let mut state = State::default();
            state.networks.insert(network.id.as_str().into(), Arc::new(network.clone()));
            state
        };
        let old = with(&network);
        let cursor = Network { last_address: "10.0.1.9".into(), meta: Some(Meta::default()), ..network.clone() };
        assert!(!with(&cursor).since(&old).others);
        for (what, other) in [
            ("the identifier", Network { vni: 7, ..cursor.clone() }),
            ("the subnet", Network { subnet: "10.0.2.0/24".into(), ..cursor.clone() }),
        ] {
            assert!(with(&other).since(&old).others, "{what}");
        }
        assert!(with(&network).since(&State::default()).others, "a new one");
        assert!(State::default().since(&old).others, "one that is gone");
    }
}
