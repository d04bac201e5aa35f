//! Puts objects into the tables and takes them out, with everything that is derived from them. Checks nothing: that is
//! `apply`'s work. The only place that writes to a table.

use std::sync::Arc;

use skep_proto::v1::{Annotations, Config, Network, Node, PortConfig, PublishMode, Secret, Service, Task, TaskSpec};

use crate::subnet::parse_address;
use crate::tables::{Id, Named, Owner, SharedSpec, State};

impl State {
    pub(crate) fn insert_node(&mut self, node: Arc<Node>) {
        let id = Id::from(node.id.as_str());
        if let Some(old) = self.nodes.insert(Arc::clone(&id), Arc::clone(&node)) {
            self.release_node(&id, &old);
        }
        for (network, address) in node_addresses(&node) {
            self.addresses.insert((network, address), Owner::Node(Arc::clone(&id)));
        }
    }

    pub(crate) fn remove_node(&mut self, id: &str) {
        if let Some((id, old)) = self.nodes.remove_with_key(id) {
            self.release_node(&id, &old);
        }
    }

    fn release_node(&mut self, id: &Id, old: &Node) {
        for key in node_addresses(old) {
            self.release(&key, &Owner::Node(Arc::clone(id)));
        }
    }

    pub(crate) fn insert_task(&mut self, task: Arc<Task>) {
        let id = Id::from(task.id.as_str());
        let old = self.tasks.insert(Arc::clone(&id), Arc::clone(&task));
        let service = Id::from(task.service_id.as_str());
        match &old {
            Some(old) => self.release_task(&id, old),
            None => {
                if let Some(shared) = self.specs.get_mut(&(Arc::clone(&service), task.spec_version)) {
                    shared.tasks += 1;
                }
            }
        }
        if !task.observed().is_terminal() {
            for (network, address) in task_addresses(&task) {
                self.addresses.insert((network, address), Owner::Task(Arc::clone(&id)));
            }
        }
        self.by_service.insert((service, task.slot, Arc::clone(&id)), Arc::clone(&task));
        if !task.node_id.is_empty() {
            self.by_node.insert((Id::from(task.node_id.as_str()), id), task);
        }
    }

    pub(crate) fn remove_task(&mut self, id: &str) {
        let Some((id, old)) = self.tasks.remove_with_key(id) else { return };
        self.release_task(&id, &old);
        let service = Id::from(old.service_id.as_str());
        self.by_service.remove(&(Arc::clone(&service), old.slot, Arc::clone(&id)));
        if !old.node_id.is_empty() {
            self.by_node.remove(&(Id::from(old.node_id.as_str()), id));
        }
        if let Some(shared) = self.specs.get_mut(&(Arc::clone(&service), old.spec_version)) {
            shared.tasks = shared.tasks.saturating_sub(1);
        }
        self.drop_unnamed_spec(&service, old.spec_version);
    }

    fn release_task(&mut self, id: &Id, old: &Task) {
        for key in task_addresses(old) {
            self.release(&key, &Owner::Task(Arc::clone(id)));
        }
    }

    /// Forgets an address if it is still `owner`'s.
    fn release(&mut self, key: &(Id, u32), owner: &Owner) {
        if self.addresses.get(key) == Some(owner) {
            self.addresses.remove(key);
        }
    }

    /// Stores a spec that tasks may name from now on.
    pub(crate) fn insert_spec(&mut self, service: &Id, version: u64, spec: Arc<TaskSpec>) {
        let key = (Arc::clone(service), version);
        let tasks = self.specs.get(&key).map_or(0, |shared| shared.tasks);
        self.specs.insert(key, SharedSpec { spec, tasks });
    }

    fn drop_unnamed_spec(&mut self, service: &Id, version: u64) {
        let named =
            self.services.get(service).is_some_and(|s| s.spec_version == version || s.previous_spec_version == version);
        let key = (Arc::clone(service), version);
        if !named && self.specs.get(&key).is_some_and(|shared| shared.tasks == 0) {
            self.specs.remove(&key);
        }
    }

    pub(crate) fn insert_service(&mut self, service: Arc<Service>) {
        let id = Id::from(service.id.as_str());
        if let Some(old) = self.services.insert(Arc::clone(&id), Arc::clone(&service)) {
            self.release_service(&id, &old);
            self.drop_unnamed_spec(&id, old.spec_version);
            self.drop_unnamed_spec(&id, old.previous_spec_version);
        }
        // A service that is being removed gives its name and its ports to whoever comes next.
        if !service.removing {
            self.names.insert((Named::Service, Id::from(service_name(&service))), Arc::clone(&id));
            for key in mesh_ports(&service) {
                self.ports.insert(key, Arc::clone(&id));
            }
        }
        for (network, address) in service_addresses(&service) {
            self.addresses.insert((network, address), Owner::Service(Arc::clone(&id)));
        }
    }

    pub(crate) fn remove_service(&mut self, id: &str) {
        let Some((id, old)) = self.services.remove_with_key(id) else { return };
        self.release_service(&id, &old);
        self.drop_unnamed_spec(&id, old.spec_version);
        self.drop_unnamed_spec(&id, old.previous_spec_version);
    }

    fn release_service(&mut self, id: &Id, old: &Service) {
        self.release_name(Named::Service, service_name(old), id);
        for key in mesh_ports(old) {
            if self.ports.get(&key) == Some(id) {
                self.ports.remove(&key);
            }
        }
        for key in service_addresses(old) {
            self.release(&key, &Owner::Service(Arc::clone(id)));
        }
    }

    fn note_ingress(&mut self) {
        let ingress = self.networks.iter().find(|(_, n)| n.spec.as_ref().is_some_and(|s| s.ingress));
        self.ingress = ingress.map(|(id, _)| Arc::clone(id));
    }

    fn release_name(&mut self, kind: Named, name: &str, id: &Id) {
        let key = (kind, Id::from(name));
        if self.names.get(&key) == Some(id) {
            self.names.remove(&key);
        }
    }
}

/// The tables that have a name index and nothing else.
macro_rules! named_tables {
    ($($object:ident: $table:ident, $insert:ident, $remove:ident $(, $note:ident)?;)*) => {
        impl State {
            $(
                pub(crate) fn $insert(&mut self, object: Arc<$object>) {
                    let id = Id::from(object.id.as_str());
                    let name = Id::from(name_of(object.spec.as_ref().and_then(|s| s.annotations.as_ref())));
                    if let Some(old) = self.$table.insert(Arc::clone(&id), object) {
                        let old = name_of(old.spec.as_ref().and_then(|s| s.annotations.as_ref()));
                        self.release_name(Named::$object, old, &id);
                    }
                    self.names.insert((Named::$object, name), id);
                    $(self.$note();)?
                }

                pub(crate) fn $remove(&mut self, id: &str) {
                    if let Some((id, old)) = self.$table.remove_with_key(id) {
                        let old = name_of(old.spec.as_ref().and_then(|s| s.annotations.as_ref()));
                        self.release_name(Named::$object, old, &id);
                    }
                    $(self.$note();)?
                }
            )*
        }
    };
}

named_tables! {
    Network: networks, insert_network, remove_network, note_ingress;
    Secret: secrets, insert_secret, remove_secret;
    Config: configs, insert_config, remove_config;
}

pub(crate) fn name_of(annotations: Option<&Annotations>) -> &str {
    annotations.map_or("", |a| a.name.as_str())
}

pub(crate) fn service_name(service: &Service) -> &str {
    name_of(service.spec.as_ref().and_then(|s| s.annotations.as_ref()))
}

/// The ports that a service takes on every node: those its spec asks for and those it was given.
pub(crate) fn mesh_ports(service: &Service) -> impl Iterator<Item = (u32, i32)> {
    let asked = service.spec.iter().flat_map(|s| &s.endpoint).flat_map(|e| &e.ports);
    let given = service.endpoint.iter().flat_map(|e| &e.ports);
    let mesh = |p: &&PortConfig| p.mode() == PublishMode::Ingress && p.published_port != 0;
    asked.chain(given).filter(mesh).map(|p| (p.published_port, p.protocol))
}

fn key(network: &str, address: &str) -> Option<(Id, u32)> {
    Some((Id::from(network), parse_address(address)?))
}

pub(crate) fn task_addresses(task: &Task) -> impl Iterator<Item = (Id, u32)> {
    task.networks.iter().filter_map(|n| key(&n.network_id, &n.address))
}

pub(crate) fn node_addresses(node: &Node) -> impl Iterator<Item = (Id, u32)> {
    node.attachments.iter().filter_map(|a| key(&a.network_id, &a.address))
}

pub(crate) fn service_addresses(service: &Service) -> impl Iterator<Item = (Id, u32)> {
    service.endpoint.iter().flat_map(|e| &e.virtual_ips).filter_map(|v| key(&v.network_id, &v.address))
}
