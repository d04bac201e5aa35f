//! Changes single fields of one task. States move forward only; a word that comes late is not an error, it is old news.

use std::sync::Arc;

use skep_proto::v1::{ObjectKind, Refusal, TaskChange, TaskState};

use super::put::change;
use super::{Moment, invalid, not_found};
use crate::change::{Change, Value};
use crate::index::task_addresses;
use crate::tables::{Id, Owner, State};

const KIND: ObjectKind = ObjectKind::Task;

impl State {
    pub(super) fn change_task(&mut self, now: Moment, wanted: &TaskChange) -> Result<Option<Change>, Refusal> {
        let old = self.task(&wanted.id).ok_or_else(|| not_found(KIND, &wanted.id))?;
        let mut new = old.as_ref().clone();
        if !wanted.reporter_node_id.is_empty() {
            check_reporter(wanted, &old.node_id)?;
        }
        if let Some(node_id) = &wanted.node_id {
            if !old.node_id.is_empty() && old.node_id != *node_id {
                return Err(invalid(KIND, &old.id, format!("the task is given to node {} already", old.node_id)));
            }
            if !self.nodes.contains_key(node_id.as_str()) {
                return Err(not_found(ObjectKind::Node, node_id));
            }
            new.node_id.clone_from(node_id);
        }
        if !wanted.networks.is_empty() && wanted.networks != old.networks {
            if old.observed() >= TaskState::Assigned {
                return Err(invalid(KIND, &old.id, "the addresses of a task stay as they are once a node has it"));
            }
            new.networks.clone_from(&wanted.networks);
            self.check_addresses(KIND, &old.id, task_addresses(&new), &Owner::Task(Id::from(old.id.as_str())))?;
        }
        new.desired_state = new.desired_state.max(wanted.desired_state.unwrap_or_default());
        if let Some(status) = &wanted.status
            && !old.observed().is_terminal()
            && status.state() >= old.observed()
        {
            new.status = Some(status.clone());
        }
        if wanted.drain && old.drain_version == 0 {
            new.drain_version = now.index;
            new.drain_ns = now.at_ns;
        }
        if new == *old {
            return Ok(None);
        }
        new.meta = now.meta(old.meta.as_ref());
        let new = Arc::new(new);
        self.insert_task(Arc::clone(&new));
        Ok(Some(change(KIND, &wanted.id, Some(Value::Task(old)), Value::Task(new))))
    }
}

/// A worker speaks for its own tasks, and only about what it sees.
fn check_reporter(wanted: &TaskChange, node_id: &str) -> Result<(), Refusal> {
    if wanted.reporter_node_id != node_id {
        let message = format!("node {} reports on a task that it was not given", wanted.reporter_node_id);
        return Err(invalid(KIND, &wanted.id, message));
    }
    if wanted.node_id.is_some() || wanted.desired_state.is_some() || wanted.drain || !wanted.networks.is_empty() {
        return Err(invalid(KIND, &wanted.id, "a worker's report carries a status and nothing else"));
    }
    Ok(())
}
