//! Creates and replaces whole objects: versions, unique names, and what must stay true between objects whoever asks.

use std::sync::Arc;

use skep_proto::v1::{
    Cluster, Config, Meta, Network, Node, Object, ObjectKind, Refusal, RefusalReason, Role, Secret, Service, Task,
    TaskSpec, object,
};

use super::{Moment, in_use, invalid, not_found, refuse, word};
use crate::change::{Change, Value};
use crate::index::{mesh_ports, name_of, node_addresses, service_addresses, service_name, task_addresses};
use crate::subnet::Subnet;
use crate::tables::{Id, Named, Owner, State};

/// Whether the node is wanted as a manager.
fn is_manager(node: &Node) -> bool {
    node.spec.as_ref().is_some_and(|spec| spec.role() == Role::Manager)
}

impl State {
    pub(super) fn put(&mut self, now: Moment, object: &Object) -> Result<Change, Refusal> {
        match &object.kind {
            Some(object::Kind::Cluster(cluster)) => self.put_cluster(now, cluster),
            Some(object::Kind::Node(node)) => self.put_node(now, node),
            Some(object::Kind::Service(service)) => self.put_service(now, service),
            Some(object::Kind::Task(task)) => self.put_task(now, task),
            Some(object::Kind::Network(network)) => self.put_network(now, network),
            Some(object::Kind::Secret(secret)) => self.put_secret(now, secret),
            Some(object::Kind::Config(config)) => self.put_config(now, config),
            None => Err(invalid(ObjectKind::Cluster, "", "the object is of a kind that this version does not know")),
        }
    }

    fn put_cluster(&mut self, now: Moment, cluster: &Cluster) -> Result<Change, Refusal> {
        let old = self.cluster.clone();
        if let Some(old) = &old
            && old.id != cluster.id
        {
            let message = format!("there is a cluster already: {}", old.id);
            return Err(refuse(RefusalReason::Exists, ObjectKind::Cluster, &cluster.id, message));
        }
        let meta =
            check(now, ObjectKind::Cluster, &cluster.id, cluster.meta.as_ref(), old.as_ref().map(|o| o.meta.as_ref()))?;
        let new = Arc::new(Cluster { meta, ..cluster.clone() });
        self.cluster = Some(Arc::clone(&new));
        Ok(change(ObjectKind::Cluster, &cluster.id, old.map(Value::Cluster), Value::Cluster(new)))
    }

    fn put_node(&mut self, now: Moment, node: &Node) -> Result<Change, Refusal> {
        let old = self.node(&node.id);
        let meta = check(now, ObjectKind::Node, &node.id, node.meta.as_ref(), old.as_ref().map(|o| o.meta.as_ref()))?;
        let owner = Owner::Node(Id::from(node.id.as_str()));
        self.check_addresses(ObjectKind::Node, &node.id, node_addresses(node), &owner)?;
        if old.as_deref().is_some_and(is_manager)
            && !is_manager(node)
            && !self.nodes().any(|other| other.id != node.id && is_manager(other))
        {
            let message = "it is the last manager: promote another node first".to_owned();
            return Err(in_use(ObjectKind::Node, &node.id, message));
        }
        let new = Arc::new(Node { meta, ..node.clone() });
        self.insert_node(Arc::clone(&new));
        Ok(change(ObjectKind::Node, &node.id, old.map(Value::Node), Value::Node(new)))
    }

    fn put_service(&mut self, now: Moment, service: &Service) -> Result<Change, Refusal> {
        const KIND: ObjectKind = ObjectKind::Service;
        let old = self.service(&service.id);
        let meta = check(now, KIND, &service.id, service.meta.as_ref(), old.as_ref().map(|o| o.meta.as_ref()))?;
        let id = Id::from(service.id.as_str());
        let spec = service.spec.as_ref().ok_or_else(|| invalid(KIND, &service.id, "the service has no spec"))?;
        let task = spec.task.as_ref().ok_or_else(|| invalid(KIND, &service.id, "the service's spec has no task"))?;
        if !service.removing {
            self.check_name(KIND, Named::Service, service_name(service), &service.id)?;
            self.check_ports(service, &id)?;
            if old.as_ref().is_none_or(|o| o.spec.as_ref() != Some(spec)) {
                self.check_references(&service.id, task)?;
            }
        }
        self.check_addresses(KIND, &service.id, service_addresses(service), &Owner::Service(Arc::clone(&id)))?;
        let mut new = Service { meta, ..service.clone() };
        let same_task = old.as_ref().filter(|o| o.spec.as_ref().and_then(|s| s.task.as_ref()) == Some(task));
        new.spec_version = same_task.map_or(now.index, |o| o.spec_version);
        // A previous version that nobody stored can't be gone back to.
        if !self.specs.contains_key(&(Arc::clone(&id), new.previous_spec_version)) {
            new.previous_spec_version = 0;
        }
        if same_task.is_none() {
            self.insert_spec(&id, new.spec_version, Arc::new(task.clone()));
        }
        let new = Arc::new(new);
        self.insert_service(Arc::clone(&new));
        Ok(change(KIND, &service.id, old.map(Value::Service), Value::Service(new)))
    }

    /// No other service may publish the same port through the mesh.
    fn check_ports(&self, service: &Service, id: &Id) -> Result<(), Refusal> {
        for key in mesh_ports(service) {
            if let Some(other) = self.ports.get(&key).filter(|other| *other != id) {
                let name = self.services.get(other).map_or("", |s| service_name(s));
                let message = format!(
                    "port {} is already in use by service '{name}' ({other}) as an ingress port; publish another one",
                    key.0
                );
                return Err(in_use(ObjectKind::Service, id, message));
            }
        }
        Ok(())
    }

    /// What a service names has to exist at the moment it is accepted.
    fn check_references(&self, id: &str, task: &TaskSpec) -> Result<(), Refusal> {
        let missing = |kind: ObjectKind, reference: &str| {
            let message = format!("the service names {} {reference}, which does not exist", word(kind));
            refuse(RefusalReason::NotFound, ObjectKind::Service, id, message)
        };
        let container = task.container.as_ref();
        for network in &task.networks {
            if !self.networks.contains_key(network.target.as_str()) {
                return Err(missing(ObjectKind::Network, &network.target));
            }
        }
        for secret in container.iter().flat_map(|c| &c.secrets) {
            if !self.secrets.contains_key(secret.secret_id.as_str()) {
                return Err(missing(ObjectKind::Secret, &secret.secret_id));
            }
        }
        for config in container.iter().flat_map(|c| &c.configs) {
            if !self.configs.contains_key(config.config_id.as_str()) {
                return Err(missing(ObjectKind::Config, &config.config_id));
            }
        }
        Ok(())
    }

    fn put_task(&mut self, now: Moment, task: &Task) -> Result<Change, Refusal> {
        const KIND: ObjectKind = ObjectKind::Task;
        let old = self.task(&task.id);
        let meta = check(now, KIND, &task.id, task.meta.as_ref(), old.as_ref().map(|o| o.meta.as_ref()))?;
        let id = Id::from(task.id.as_str());
        let spec = (Id::from(task.service_id.as_str()), task.spec_version);
        if let Some(old) = &old {
            let moved = !old.node_id.is_empty() && old.node_id != task.node_id;
            let other =
                (&old.service_id, old.spec_version, old.slot) != (&task.service_id, task.spec_version, task.slot);
            let back = old.observed() > task.observed() || old.desired_state > task.desired_state;
            if moved || other || back || old.observed().is_terminal() {
                let message = "a task keeps service, slot, spec and node, goes forward only, and is final once ended";
                return Err(invalid(KIND, &task.id, message));
            }
        } else if !self.specs.contains_key(&spec) {
            let message = format!("service {} has no spec of version {}", task.service_id, task.spec_version);
            return Err(refuse(RefusalReason::NotFound, KIND, &task.id, message));
        }
        if !task.node_id.is_empty() && !self.nodes.contains_key(task.node_id.as_str()) {
            return Err(not_found(ObjectKind::Node, &task.node_id));
        }
        if !task.observed().is_terminal() {
            self.check_addresses(KIND, &task.id, task_addresses(task), &Owner::Task(id))?;
        }
        let new = Arc::new(Task { meta, ..task.clone() });
        self.insert_task(Arc::clone(&new));
        Ok(change(KIND, &task.id, old.map(Value::Task), Value::Task(new)))
    }

    /// One address, one live owner.
    pub(super) fn check_addresses(
        &self,
        kind: ObjectKind,
        id: &str,
        addresses: impl Iterator<Item = (Id, u32)>,
        owner: &Owner,
    ) -> Result<(), Refusal> {
        for key in addresses {
            if self.addresses.get(&key).is_some_and(|holder| holder != owner) {
                let address = crate::subnet::format_address(key.1);
                return Err(in_use(kind, id, format!("address {address} of network {} is in use", key.0)));
            }
        }
        Ok(())
    }

    fn check_name(&self, kind: ObjectKind, named: Named, name: &str, id: &str) -> Result<(), Refusal> {
        if name.is_empty() {
            return Err(invalid(kind, id, format!("a {} needs a name", word(kind))));
        }
        match self.names.get(&(named, Id::from(name))) {
            Some(other) if other.as_ref() != id => {
                let message = format!("the name {name} is taken by {} {other}; choose another", word(kind));
                Err(refuse(RefusalReason::NameInUse, kind, id, message))
            }
            _ => Ok(()),
        }
    }

    fn put_network(&mut self, now: Moment, network: &Network) -> Result<Change, Refusal> {
        const KIND: ObjectKind = ObjectKind::Network;
        let old = self.network(&network.id);
        let meta = check(now, KIND, &network.id, network.meta.as_ref(), old.as_ref().map(|o| o.meta.as_ref()))?;
        let annotations = network.spec.as_ref().and_then(|s| s.annotations.as_ref());
        self.check_name(KIND, Named::Network, name_of(annotations), &network.id)?;
        let subnet: Option<Subnet> = network.subnet.parse().ok();
        for other in self.networks.values().filter(|n| n.id != network.id) {
            let overlap = subnet.zip(other.subnet.parse().ok()).is_some_and(|(a, b): (Subnet, Subnet)| a.overlaps(b));
            if overlap || (network.vni != 0 && network.vni == other.vni) {
                let message = format!(
                    "subnet {} or VNI {} overlaps with network {} ({}, VNI {}); try again or choose another subnet",
                    network.subnet, network.vni, other.id, other.subnet, other.vni
                );
                return Err(in_use(KIND, &network.id, message));
            }
            let ingress = |n: &Network| n.spec.as_ref().is_some_and(|s| s.ingress);
            if ingress(network) && ingress(other) {
                let message = format!("there is an ingress network already ({}); remove it first", other.id);
                return Err(refuse(RefusalReason::Exists, KIND, &network.id, message));
            }
        }
        let new = Arc::new(Network { meta, ..network.clone() });
        self.insert_network(Arc::clone(&new));
        Ok(change(KIND, &network.id, old.map(Value::Network), Value::Network(new)))
    }

    fn put_secret(&mut self, now: Moment, secret: &Secret) -> Result<Change, Refusal> {
        let old = self.secret(&secret.id);
        let meta =
            check(now, ObjectKind::Secret, &secret.id, secret.meta.as_ref(), old.as_ref().map(|o| o.meta.as_ref()))?;
        let annotations = secret.spec.as_ref().and_then(|s| s.annotations.as_ref());
        self.check_name(ObjectKind::Secret, Named::Secret, name_of(annotations), &secret.id)?;
        let new = Arc::new(Secret { meta, ..secret.clone() });
        self.insert_secret(Arc::clone(&new));
        Ok(change(ObjectKind::Secret, &secret.id, old.map(Value::Secret), Value::Secret(new)))
    }

    fn put_config(&mut self, now: Moment, config: &Config) -> Result<Change, Refusal> {
        let old = self.config(&config.id);
        let meta =
            check(now, ObjectKind::Config, &config.id, config.meta.as_ref(), old.as_ref().map(|o| o.meta.as_ref()))?;
        let annotations = config.spec.as_ref().and_then(|s| s.annotations.as_ref());
        self.check_name(ObjectKind::Config, Named::Config, name_of(annotations), &config.id)?;
        let new = Arc::new(Config { meta, ..config.clone() });
        self.insert_config(Arc::clone(&new));
        Ok(change(ObjectKind::Config, &config.id, old.map(Value::Config), Value::Config(new)))
    }
}

/// The version rule: 0 creates, anything else has to be the version that is there. Gives the new meta.
fn check(
    now: Moment,
    kind: ObjectKind,
    id: &str,
    given: Option<&Meta>,
    old: Option<Option<&Meta>>,
) -> Result<Option<Meta>, Refusal> {
    if id.is_empty() {
        return Err(invalid(kind, id, format!("a {} needs an id", word(kind))));
    }
    let given = given.map_or(0, |m| m.version);
    match old {
        None if given == 0 => Ok(now.meta(None)),
        None => Err(not_found(kind, id)),
        Some(_) if given == 0 => {
            Err(refuse(RefusalReason::Exists, kind, id, format!("{} {id} exists already", word(kind))))
        }
        Some(meta) if meta.map_or(0, |m| m.version) == given => Ok(now.meta(meta)),
        Some(meta) => {
            let message = format!(
                "update out of sequence: {} {id} is at version {}, not {given}; read it again and repeat the change",
                word(kind),
                meta.map_or(0, |m| m.version)
            );
            Err(refuse(RefusalReason::StaleVersion, kind, id, message))
        }
    }
}

pub(super) fn change(kind: ObjectKind, id: &str, old: Option<Value>, new: Value) -> Change {
    Change { kind, id: id.to_owned(), old, new: Some(new) }
}
