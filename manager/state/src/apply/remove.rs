//! Removes objects that nothing else stands on.

use skep_proto::v1::{Meta, ObjectKind, ObjectRef, Refusal, RefusalReason, TaskSpec, TaskState};

use super::{in_use, invalid, not_found, refuse, word};
use crate::change::{Change, Value};
use crate::index::service_name;
use crate::tables::State;

/// What to do about an address that is still held.
const AGAIN: &str = "try again once that has ended";

impl State {
    pub(super) fn remove(&mut self, reference: &ObjectRef) -> Result<Change, Refusal> {
        let (kind, id) = (reference.kind(), reference.id.as_str());
        let found = match kind {
            ObjectKind::Cluster => return Err(invalid(kind, id, "the cluster itself can't be removed")),
            ObjectKind::Node => self.node(id).map(|o| (o.meta, Value::Node(o))),
            ObjectKind::Service => self.service(id).map(|o| (o.meta, Value::Service(o))),
            ObjectKind::Task => self.task(id).map(|o| (o.meta, Value::Task(o))),
            ObjectKind::Network => self.network(id).map(|o| (o.meta, Value::Network(o))),
            ObjectKind::Secret => self.secret(id).map(|o| (o.meta, Value::Secret(o))),
            ObjectKind::Config => self.config(id).map(|o| (o.meta, Value::Config(o))),
        };
        let (meta, old) = found.ok_or_else(|| not_found(kind, id))?;
        let version = meta.map_or(0, |m: Meta| m.version);
        if reference.version != 0 && reference.version != version {
            let message = format!("{} {id} has changed meanwhile; read it again and repeat the removal", word(kind));
            return Err(refuse(RefusalReason::StaleVersion, kind, id, message));
        }
        self.check_unused(kind, id)?;
        match kind {
            ObjectKind::Cluster => {}
            ObjectKind::Node => self.remove_node(id),
            ObjectKind::Service => self.remove_service(id),
            ObjectKind::Task => self.remove_task(id),
            ObjectKind::Network => self.remove_network(id),
            ObjectKind::Secret => self.remove_secret(id),
            ObjectKind::Config => self.remove_config(id),
        }
        Ok(Change { kind, id: id.to_owned(), old: Some(old), new: None })
    }

    fn check_unused(&self, kind: ObjectKind, id: &str) -> Result<(), Refusal> {
        match kind {
            ObjectKind::Cluster | ObjectKind::Task => Ok(()),
            ObjectKind::Node => match self.tasks_of_node(id).next() {
                Some(task) => Err(in_use(kind, id, format!("task {} is still given to node {id}", task.id))),
                None => Ok(()),
            },
            ObjectKind::Service => {
                let wanted = |t: &&std::sync::Arc<skep_proto::v1::Task>| {
                    t.desired_state() <= TaskState::Running && !t.observed().is_terminal()
                };
                match self.tasks_of_service(id).find(wanted) {
                    Some(task) => Err(in_use(kind, id, format!("task {} of service {id} is still wanted", task.id))),
                    None => Ok(()),
                }
            }
            ObjectKind::Network => {
                self.check_no_service(kind, id, |spec| spec.networks.iter().any(|n| n.target == id))?;
                match self.addresses_of(id).find(|(_, owner)| !matches!(owner, crate::tables::Owner::Node(_))) {
                    Some((_, owner)) => Err(in_use(kind, id, format!("network {id} is in use by {owner}: {AGAIN}"))),
                    None => Ok(()),
                }
            }
            ObjectKind::Secret => self.check_no_service(kind, id, |spec| {
                spec.container.iter().flat_map(|c| &c.secrets).any(|s| s.secret_id == id)
            }),
            ObjectKind::Config => self.check_no_service(kind, id, |spec| {
                spec.container.iter().flat_map(|c| &c.configs).any(|s| s.config_id == id)
            }),
        }
    }

    /// No service and no task that may still run has a spec like this.
    fn check_no_service(&self, kind: ObjectKind, id: &str, uses: impl Fn(&TaskSpec) -> bool) -> Result<(), Refusal> {
        for ((service_id, version), shared) in &self.specs {
            if !uses(&shared.spec) {
                continue;
            }
            let service = self.services.get(service_id);
            let current = service.filter(|s| s.spec_version == *version && !s.removing);
            let running =
                || self.tasks_of_service(service_id).any(|t| t.spec_version == *version && !t.observed().is_terminal());
            if current.is_some() || running() {
                let name = service.map_or("", |s| service_name(s));
                let message = format!("{} {id} is in use by service '{name}' ({service_id})", word(kind));
                return Err(in_use(kind, id, message));
            }
        }
        Ok(())
    }
}
