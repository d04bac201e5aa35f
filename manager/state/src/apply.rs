//! Applies one command. Each action either fits and is carried out whole, or is refused and changes nothing.
//!
//! A plain command is all or nothing; a best-effort one leaves out what does not fit. Times come from the command,
//! versions from its log index.

mod node;
mod put;
mod remove;
mod task;

use skep_proto::v1::{Action, Command, CommandReply, Meta, ObjectKind, Refusal, RefusalReason, action};

use crate::change::Change;
use crate::tables::State;

/// The moment a command takes effect, as every member sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) index: u64,
    pub(crate) at_ns: i64,
}

impl Moment {
    /// The meta of an object that is created (no `old`) or changed now.
    pub(crate) fn meta(self, old: Option<&Meta>) -> Option<Meta> {
        let created_ns = old.map_or(self.at_ns, |m| m.created_ns);
        Some(Meta { version: self.index, created_ns, updated_ns: self.at_ns })
    }
}

impl State {
    /// Applies the command at a log index. Deterministic: the same commands in the same order give the same state.
    pub fn apply(&mut self, index: u64, command: &Command) -> (CommandReply, Vec<Change>) {
        let mut reply = CommandReply { index, ..CommandReply::default() };
        let mut changes = Vec::new();
        let before = (!command.best_effort).then(|| self.clone());
        for action in &command.actions {
            match self.apply_action(index, command.at_ns, action) {
                Ok(change) => changes.extend(change),
                Err(refusal) => match before {
                    Some(before) => {
                        *self = before;
                        reply.refusal = Some(refusal);
                        return (reply, Vec::new());
                    }
                    None => reply.left_out.push(refusal),
                },
            }
        }
        (reply, changes)
    }

    /// Applies a single action; `Ok(None)` when it holds nothing new. A planner uses this on its own clone, to see what
    /// its next decision will stand on.
    pub fn apply_action(&mut self, index: u64, at_ns: i64, action: &Action) -> Result<Option<Change>, Refusal> {
        let now = Moment { index, at_ns };
        match &action.kind {
            Some(action::Kind::Put(object)) => self.put(now, object).map(Some),
            Some(action::Kind::Remove(reference)) => self.remove(reference).map(Some),
            Some(action::Kind::Task(change)) => self.change_task(now, change),
            Some(action::Kind::Node(change)) => self.change_node(now, change),
            None => Err(invalid(ObjectKind::Cluster, "", "the action is of a kind that this version does not know")),
        }
    }
}

pub(crate) fn refuse(reason: RefusalReason, kind: ObjectKind, id: &str, message: impl Into<String>) -> Refusal {
    Refusal { reason: reason.into(), kind: kind.into(), id: id.to_owned(), message: message.into() }
}

pub(crate) fn invalid(kind: ObjectKind, id: &str, message: impl Into<String>) -> Refusal {
    refuse(RefusalReason::Invalid, kind, id, message)
}

pub(crate) fn in_use(kind: ObjectKind, id: &str, message: impl Into<String>) -> Refusal {
    refuse(RefusalReason::InUse, kind, id, message)
}

pub(crate) fn not_found(kind: ObjectKind, id: &str) -> Refusal {
    refuse(RefusalReason::NotFound, kind, id, format!("{} {id} not found", word(kind)))
}

pub(crate) fn word(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Cluster => "cluster",
        ObjectKind::Node => "node",
        ObjectKind::Service => "service",
        ObjectKind::Task => "task",
        ObjectKind::Network => "network",
        ObjectKind::Secret => "secret",
        ObjectKind::Config => "config",
    }
}
