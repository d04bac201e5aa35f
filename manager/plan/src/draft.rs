//! One round's decisions so far: a clone of the state in which they are already in force, so that each module stands on
//! what the earlier ones decided, and the list of actions that brings the real state there.
//!
//! Several decisions on one object become one action. What the state would refuse is refused here already and left out.

use std::collections::{BTreeMap, BTreeSet};

use skep_proto::v1::{
    Action, Meta, Network, NodeChange, Object, ObjectKind, ObjectRef, Service, Task, TaskChange, action, object,
};
use skep_state::State;

use crate::Plan;

/// Stands for the log index that the round's command will have: greater than all that are known.
pub(crate) const PROVISIONAL: u64 = u64::MAX;

/// See the module.
pub(crate) struct Draft<'a> {
    base: &'a State,
    /// The state as it will be.
    pub(crate) state: State,
    pub(crate) now_ns: i64,
    networks: BTreeSet<String>,
    services: BTreeSet<String>,
    nodes: BTreeMap<String, NodeChange>,
    created: Vec<String>,
    tasks: BTreeMap<String, TaskChange>,
    removed_tasks: BTreeSet<String>,
    removed_services: BTreeSet<String>,
    wake: Option<i64>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(base: &'a State, now_ns: i64) -> Self {
        Self {
            base,
            state: base.clone(),
            now_ns,
            networks: BTreeSet::new(),
            services: BTreeSet::new(),
            nodes: BTreeMap::new(),
            created: Vec::new(),
            tasks: BTreeMap::new(),
            removed_tasks: BTreeSet::new(),
            removed_services: BTreeSet::new(),
            wake: None,
        }
    }

    /// Asks for another round at that moment.
    pub(crate) fn wake_at(&mut self, at_ns: i64) {
        if at_ns > self.now_ns {
            self.wake = Some(self.wake.map_or(at_ns, |earlier| earlier.min(at_ns)));
        }
    }

    /// Replaces a network that was read from this draft.
    pub(crate) fn put_network(&mut self, network: Network) {
        let id = network.id.clone();
        if self.put(object::Kind::Network(network)) {
            self.networks.insert(id);
        }
    }

    /// Replaces a service that was read from this draft.
    pub(crate) fn put_service(&mut self, service: Service) -> bool {
        let id = service.id.clone();
        let accepted = self.put(object::Kind::Service(service));
        if accepted {
            self.services.insert(id);
        }
        accepted
    }

    /// Creates a task.
    pub(crate) fn create_task(&mut self, task: Task) {
        let id = task.id.clone();
        if self.put(object::Kind::Task(task)) {
            self.created.push(id);
        }
    }

    fn put(&mut self, kind: object::Kind) -> bool {
        self.apply(action::Kind::Put(Object { kind: Some(kind) }))
    }

    /// Changes fields of a task.
    pub(crate) fn change_task(&mut self, change: TaskChange) {
        if !self.apply(action::Kind::Task(change.clone())) {
            return;
        }
        let Some(earlier) = self.tasks.get_mut(&change.id) else {
            self.tasks.insert(change.id.clone(), change);
            return;
        };
        earlier.node_id = change.node_id.or(earlier.node_id.take());
        earlier.desired_state = earlier.desired_state.max(change.desired_state);
        earlier.status = change.status.or(earlier.status.take());
        if !change.networks.is_empty() {
            earlier.networks = change.networks;
        }
        earlier.drain |= change.drain;
    }

    /// Changes fields of a node.
    pub(crate) fn change_node(&mut self, change: NodeChange) {
        if !self.apply(action::Kind::Node(change.clone())) {
            return;
        }
        let Some(earlier) = self.nodes.get_mut(&change.id) else {
            self.nodes.insert(change.id.clone(), change);
            return;
        };
        earlier.status = change.status.or(earlier.status.take());
        earlier.attachments.extend(change.attachments);
        earlier.detach_network_ids.extend(change.detach_network_ids);
    }

    pub(crate) fn remove_task(&mut self, id: &str) {
        if self.remove(ObjectKind::Task, id) {
            self.removed_tasks.insert(id.to_owned());
        }
    }

    pub(crate) fn remove_service(&mut self, id: &str) {
        if self.remove(ObjectKind::Service, id) {
            self.removed_services.insert(id.to_owned());
        }
    }

    fn remove(&mut self, kind: ObjectKind, id: &str) -> bool {
        self.apply(action::Kind::Remove(ObjectRef { kind: kind.into(), id: id.to_owned(), version: 0 }))
    }

    /// Whether the action fits and holds something new.
    fn apply(&mut self, kind: action::Kind) -> bool {
        matches!(self.state.apply_action(PROVISIONAL, self.now_ns, &Action { kind: Some(kind) }), Ok(Some(_)))
    }

    /// The actions, in an order in which each finds what it needs.
    pub(crate) fn finish(self) -> Plan {
        let Self {
            base, state, networks, services, nodes, created, tasks, removed_tasks, removed_services, wake, ..
        } = self;
        let put = |kind| action::Kind::Put(Object { kind: Some(kind) });
        let mut actions = Vec::new();
        for id in networks {
            if let (Some(network), Some(old)) = (state.network(&id), base.network(&id)) {
                let network = Network { meta: old.meta, ..network.as_ref().clone() };
                actions.push(put(object::Kind::Network(network)));
            }
        }
        for id in services {
            if let (Some(service), Some(old)) = (state.service(&id), base.service(&id)) {
                let service = Service { meta: old.meta, ..service.as_ref().clone() };
                actions.push(put(object::Kind::Service(service)));
            }
        }
        actions.extend(nodes.into_values().map(action::Kind::Node));
        for id in &created {
            if let Some(task) = state.task(id) {
                let task = Task { meta: None, ..task.as_ref().clone() };
                actions.push(put(object::Kind::Task(task)));
            }
        }
        let created: BTreeSet<String> = created.into_iter().collect();
        let changed = tasks.into_iter().filter(|(id, _)| !created.contains(id) && !removed_tasks.contains(id));
        actions.extend(changed.map(|(_, change)| action::Kind::Task(change)));
        let remove = |kind: ObjectKind, id| action::Kind::Remove(ObjectRef { kind: kind.into(), id, version: 0 });
        actions.extend(
            removed_tasks.into_iter().filter(|id| !created.contains(id)).map(|id| remove(ObjectKind::Task, id)),
        );
        actions.extend(removed_services.into_iter().map(|id| remove(ObjectKind::Service, id)));
        let actions = actions.into_iter().map(|kind| Action { kind: Some(kind) }).collect();
        Plan { actions, next_wake_ns: wake }
    }
}

/// When an object was last changed, Unix nanoseconds.
pub(crate) fn updated_ns(meta: Option<&Meta>) -> i64 {
    meta.map_or(0, |m| m.updated_ns)
}

/// When an object was created, Unix nanoseconds.
pub(crate) fn created_ns(meta: Option<&Meta>) -> i64 {
    meta.map_or(0, |m| m.created_ns)
}
