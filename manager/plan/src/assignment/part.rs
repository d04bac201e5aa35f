//! The part of the state that one node was told, and how it follows the state: at a cost of what has changed.
//!
//! Most changes are of one task and concern one service: these are followed item by item. What changes who sees what (a
//! node's attachments, networks, secrets, the cluster) is rare, and the part is put together anew. Either way the result
//! is that of [`super::for_node`]. Pure; the dispatcher keeps one for every session.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_proto::v1::{Assignment, AssignmentKey, AssignmentKind, Node, Task, assignment::Kind};
use skep_state::{Difference, State};

use super::{AssignmentSet, Change, data_path_address, diff, networks_of, own, same, service_assignment, whole};

/// What a node holds, if it took all that it was sent.
#[derive(Debug)]
pub struct Part {
    node_id: String,
    /// The state that the set was made of; `None` before the first.
    state: Option<State>,
    /// Networks that the node sees, and its address on each.
    networks: BTreeMap<String, String>,
    set: AssignmentSet,
}

impl Part {
    /// A node that was told nothing yet.
    pub fn new(node_id: impl Into<String>) -> Self {
        Self { node_id: node_id.into(), state: None, networks: BTreeMap::new(), set: AssignmentSet::new() }
    }

    /// Everything that the node is to hold.
    pub fn set(&self) -> &AssignmentSet {
        &self.set
    }

    /// Goes on to another state. Returns what the node has to be sent: to put, and to remove.
    pub fn follow(&mut self, state: &State) -> Change {
        let before = self.state.replace(state.clone());
        let followed = before.and_then(|before| self.follow_items(state, &state.since(&before)));
        followed.unwrap_or_else(|| self.anew(state))
    }

    fn anew(&mut self, state: &State) -> Change {
        let (networks, next) = whole(state, &self.node_id);
        let change = diff(&self.set, &next);
        (self.networks, self.set) = (networks, next);
        change
    }

    /// `None`: too much has changed for that.
    fn follow_items(&mut self, state: &State, difference: &Difference) -> Option<Change> {
        let id = self.node_id.as_str();
        if difference.others || difference.nodes.iter().any(|(old, new)| is_seen(id, old.as_deref(), new.as_deref())) {
            return None;
        }
        let node = state.node(id)?;
        let changed: BTreeSet<&str> = difference
            .services
            .iter()
            .filter_map(|(old, new)| Some(new.as_ref().or(old.as_ref())?.id.as_str()))
            .collect();
        let here = |task: &Option<Arc<Task>>| task.as_ref().is_some_and(|t| t.node_id == id);
        let own_changed = difference.tasks.iter().any(|(old, new)| here(old) || here(new))
            || (!changed.is_empty() && state.tasks_of_node(id).any(|t| changed.contains(t.service_id.as_str())));
        let (mut put, mut remove) = (Vec::new(), Vec::new());
        if own_changed {
            let (wanted, next) = own(state, &node);
            if networks_of(&node, &wanted) != self.networks {
                return None;
            }
            self.replace_own(&next, &mut put, &mut remove);
        }
        let tasks = difference.tasks.iter().flat_map(|(old, new)| [old, new]).flatten();
        let concerned: BTreeSet<&str> = tasks.map(|t| t.service_id.as_str()).chain(changed).collect();
        for service_id in concerned {
            let service = state.service(service_id);
            let next = service.and_then(|service| service_assignment(state, &service, &self.networks));
            let key = (AssignmentKind::Service, service_id.to_owned());
            let next = next.map(|service| Arc::new(Assignment { kind: Some(Kind::Service(service)) }));
            replace(&mut self.set, key, next, &mut put, &mut remove);
        }
        Some((put, remove))
    }

    /// Takes over what comes from the node's own tasks.
    fn replace_own(&mut self, next: &AssignmentSet, put: &mut Vec<Arc<Assignment>>, remove: &mut Vec<AssignmentKey>) {
        let shared = [AssignmentKind::Network, AssignmentKind::Service];
        let gone: Vec<_> =
            self.set.keys().filter(|key| !shared.contains(&key.0) && !next.contains_key(*key)).cloned().collect();
        for key in gone {
            replace(&mut self.set, key, None, put, remove);
        }
        for (key, assignment) in next {
            replace(&mut self.set, key.clone(), Some(Arc::clone(assignment)), put, remove);
        }
    }
}

fn replace(
    set: &mut AssignmentSet,
    key: (AssignmentKind, String),
    next: Option<Arc<Assignment>>,
    put: &mut Vec<Arc<Assignment>>,
    remove: &mut Vec<AssignmentKey>,
) {
    match next {
        Some(next) => {
            if set.get(&key).is_none_or(|old| !same(old, &next)) {
                put.push(Arc::clone(&next));
            }
            set.insert(key, next);
        }
        None => {
            if set.remove(&key).is_some() {
                remove.push(AssignmentKey { kind: key.0.into(), id: key.1 });
            }
        }
    }
}

/// Whether the change of a node is one that others see in their networks and services, or that this node sees of itself.
fn is_seen(own_id: &str, old: Option<&Node>, new: Option<&Node>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return true };
    let role = |node: &Node| node.spec.as_ref().map(|s| s.role);
    old.attachments != new.attachments
        || data_path_address(old) != data_path_address(new)
        || (new.id == own_id && role(old) != role(new))
}
