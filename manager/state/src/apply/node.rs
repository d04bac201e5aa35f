//! Changes single fields of one node.

use std::sync::Arc;

use skep_proto::v1::{NodeChange, ObjectKind, Refusal};

use super::put::change;
use super::{Moment, not_found};
use crate::change::{Change, Value};
use crate::index::node_addresses;
use crate::tables::{Id, Owner, State};

impl State {
    pub(super) fn change_node(&mut self, now: Moment, wanted: &NodeChange) -> Result<Option<Change>, Refusal> {
        let old = self.node(&wanted.id).ok_or_else(|| not_found(ObjectKind::Node, &wanted.id))?;
        let mut new = old.as_ref().clone();
        if let Some(status) = &wanted.status {
            new.status = Some(status.clone());
        }
        if let Some(description) = &wanted.description {
            new.description = Some(description.clone());
        }
        new.attachments.retain(|a| !wanted.detach_network_ids.contains(&a.network_id));
        for attachment in &wanted.attachments {
            // A node has one address on a network.
            new.attachments.retain(|a| a.network_id != attachment.network_id);
            new.attachments.push(attachment.clone());
        }
        new.attachments.sort_by(|a, b| a.network_id.cmp(&b.network_id));
        if let Some(role) = wanted.certificate_role {
            new.certificate_role = role;
        }
        if wanted.clear_manager {
            new.manager = None;
        }
        if let Some(manager) = &wanted.manager {
            new.manager = Some(manager.clone());
        }
        if new == *old {
            return Ok(None);
        }
        let owner = Owner::Node(Id::from(wanted.id.as_str()));
        self.check_addresses(ObjectKind::Node, &wanted.id, node_addresses(&new), &owner)?;
        new.meta = now.meta(old.meta.as_ref());
        let new = Arc::new(new);
        self.insert_node(Arc::clone(&new));
        Ok(Some(change(ObjectKind::Node, &wanted.id, Some(Value::Node(old)), Value::Node(new))))
    }
}
