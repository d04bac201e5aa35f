//! What the managers want of this node: the set as it is held, and how a change is taken in. Pure.
//!
//! Every change carries a generation; an older one is refused, whichever manager it comes from.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use skep_proto::v1::assignment::Kind;
use skep_proto::v1::{Assignment, AssignmentChange, AssignmentKey, AssignmentKind};

/// The assignments of one node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Assignments {
    /// Generation of the newest change that was taken in.
    pub generation: u64,
    /// A manager has said so to this daemon, not to one before it: what is not here is wanted no more.
    told: bool,
    /// Shared between one set and the next: what is the same is known by its address.
    items: BTreeMap<(AssignmentKind, String), Arc<Assignment>>,
}

/// Bytes of one change at most, in all of its messages.
const BYTES: usize = 512 << 20;

/// Messages of one change, until it is whole.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    held: Option<AssignmentChange>,
    bytes: usize,
}

impl Pieces {
    /// One more message. Returns the change once it is whole.
    pub(crate) fn add(&mut self, next: AssignmentChange) -> Result<Option<AssignmentChange>, Refused> {
        let more = next.more;
        self.bytes = self.bytes.saturating_add(next.encoded_len());
        if self.bytes > BYTES {
            return Err(Refused::TooLarge);
        }
        let whole = match self.held.take() {
            None => next,
            Some(held) if held.generation != next.generation => {
                return Err(Refused::Torn(held.generation, next.generation));
            }
            Some(mut held) => {
                held.put.extend(next.put);
                held.remove.extend(next.remove);
                held
            }
        };
        if more {
            self.held = Some(whole);
            return Ok(None);
        }
        self.bytes = 0;
        Ok(Some(AssignmentChange { more: false, ..whole }))
    }
}

/// Why a change was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is older than what is held.
    #[error("assignment of generation {offered} is older than generation {held}, which this node holds")]
    Older {
        /// Its generation.
        offered: u64,
        /// Ours.
        held: u64,
    },
    /// Its messages don't belong together.
    #[error("the parts of an assignment have generations {0} and {1}; the manager's version differs")]
    Torn(u64, u64),
    /// It is larger than any node's part can be.
    #[error(
        "an assignment of more than {BYTES} bytes is not taken in; have fewer large secrets and configs on this node"
    )]
    TooLarge,
    /// It lacks what it is about.
    #[error("assignment of generation {0} has an item without content; the manager's version differs")]
    Empty(u64),
}

impl Assignments {
    /// The set of a node that leaves its cluster: nothing is wanted any more, and no manager has a say.
    pub(crate) fn farewell() -> Self {
        Self { generation: u64::MAX, told: true, items: BTreeMap::new() }
    }

    /// The set after a change.
    pub fn take(&self, change: AssignmentChange) -> Result<Self, Refused> {
        if change.generation < self.generation {
            return Err(Refused::Older { offered: change.generation, held: self.generation });
        }
        let mut items = if change.complete { BTreeMap::new() } else { self.items.clone() };
        for AssignmentKey { kind, id } in change.remove {
            if let Ok(kind) = AssignmentKind::try_from(kind) {
                items.remove(&(kind, id));
            }
        }
        for item in change.put {
            let key = key(&item).ok_or(Refused::Empty(change.generation))?;
            items.insert(key, Arc::new(item));
        }
        Ok(Self { generation: change.generation, told: true, items })
    }

    /// The same set as an earlier daemon left it behind: it may have been told of more than it could write down.
    pub(crate) fn remembered(self) -> Self {
        Self { told: false, ..self }
    }

    /// Whether what is not here is wanted no more.
    pub(crate) fn is_told(&self) -> bool {
        self.told
    }

    /// Whether the set may be all that is wanted on a node with these sandboxes. One from before the task of some of
    /// them is not: to follow it would take away what runs.
    pub(crate) fn explains(&self, sandboxes: &[String]) -> bool {
        self.told || sandboxes.iter().all(|id| self.items.contains_key(&(AssignmentKind::Task, id.clone())))
    }

    /// Everything, as one change that makes the same set anew.
    pub fn to_change(&self) -> AssignmentChange {
        AssignmentChange {
            generation: self.generation,
            complete: true,
            put: self.items.values().map(|item| Assignment::clone(item)).collect(),
            ..AssignmentChange::default()
        }
    }

    /// All items.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.items.values().filter_map(|item| item.kind.as_ref())
    }

    /// All items, as they are shared.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &Arc<Assignment>> {
        self.items.values()
    }

    /// One item.
    pub fn get(&self, kind: AssignmentKind, id: &str) -> Option<&Kind> {
        self.items.get(&(kind, id.to_owned())).and_then(|item| item.kind.as_ref())
    }
}

fn key(item: &Assignment) -> Option<(AssignmentKind, String)> {
    Some(match item.kind.as_ref()? {
        Kind::Node(_) => (AssignmentKind::Node, String::new()),
        Kind::Task(task) => (AssignmentKind::Task, task.task.as_ref()?.id.clone()),
        Kind::Network(network) => (AssignmentKind::Network, network.id.clone()),
        Kind::Service(service) => (AssignmentKind::Service, service.id.clone()),
        Kind::Secret(secret) => (AssignmentKind::Secret, secret.id.clone()),
        Kind::Config(config) => (AssignmentKind::Config, config.id.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::v1::NetworkAssignment;

    fn network(id: &str, vni: u32) -> Assignment {
        Assignment {
            kind: Some(Kind::Network(NetworkAssignment { id: id.into(), vni, ..NetworkAssignment::default() })),
        }
    }

    fn change(generation: u64, complete: bool, put: Vec<Assignment>, remove: &[&str]) -> AssignmentChange {
        let remove = remove
            .iter()
            .map(|id| AssignmentKey { kind: AssignmentKind::Network.into(), id: (*id).to_owned() })
            .collect();
        AssignmentChange { generation, complete, put, remove, more: false }
    }

    #[test]
    fn what_is_remembered_explains_only_what_it_knows() -> Result<(), Refused> {
        let task = |id: &str| {
            let task = skep_proto::v1::Task { id: id.into(), ..Default::default() };
            Assignment {
                kind: Some(Kind::Task(skep_proto::v1::TaskAssignment { task: Some(task), ..Default::default() })),
            }
        };
        let told = Assignments::default().take(change(5, true, vec![task("a"), task("b")], &[]))?;
        let remembered = told.clone().remembered();
        assert!(told.is_told() && !remembered.is_told());
        for (open, explained) in [(&["a"][..], true), (&["b", "a"], true), (&["a", "c"], false), (&[], true)] {
            let open: Vec<String> = open.iter().map(|id| (*id).to_owned()).collect();
            assert_eq!(remembered.explains(&open), explained, "{open:?}");
            assert!(told.explains(&open), "a manager's word is all there is");
        }
        assert!(remembered.take(change(6, false, Vec::new(), &[]))?.is_told());
        assert!(Assignments::farewell().explains(&["c".to_owned()]));
        Ok(())
    }

    #[test]
    fn a_change_in_several_messages_counts_when_it_is_whole() -> Result<(), Refused> {
        let piece = |change: AssignmentChange| AssignmentChange { more: true, ..change };
        let mut pieces = Pieces::default();
        assert_eq!(pieces.add(piece(change(5, true, vec![network("a", 1)], &[])))?, None);
        assert_eq!(pieces.add(piece(change(5, false, vec![network("b", 2)], &["x"])))?, None);
        let whole = change(5, true, vec![network("a", 1), network("b", 2), network("c", 3)], &["x"]);
        assert_eq!(pieces.add(change(5, false, vec![network("c", 3)], &[]))?, Some(whole));
        let single = change(6, false, vec![network("a", 2)], &[]);
        assert_eq!(pieces.add(single.clone())?, Some(single));
        pieces.add(piece(change(7, false, Vec::new(), &[])))?;
        assert_eq!(pieces.add(change(8, false, Vec::new(), &[])), Err(Refused::Torn(7, 8)));
        let mut full = Pieces { held: None, bytes: BYTES };
        assert_eq!(full.add(change(9, true, Vec::new(), &[])), Err(Refused::TooLarge));
        Ok(())
    }

    #[test]
    fn changes_add_up_and_older_ones_are_refused() -> Result<(), Refused> {
        let held = Assignments::default().take(change(5, true, vec![network("a", 1), network("b", 2)], &[]))?;
        let held = held.take(change(6, false, vec![network("a", 9)], &["b"]))?;
        assert_eq!(held.kinds().count(), 1);
        assert!(matches!(held.get(AssignmentKind::Network, "a"), Some(Kind::Network(n)) if n.vni == 9));
        let older = held.take(change(4, true, vec![network("z", 1)], &[]));
        assert_eq!(older, Err(Refused::Older { offered: 4, held: 6 }));
        assert_eq!(held.take(change(7, false, vec![Assignment { kind: None }], &[])), Err(Refused::Empty(7)));
        // Saved and read back, it is the same set.
        assert_eq!(Assignments::default().take(held.to_change())?, held);
        Ok(())
    }
}
