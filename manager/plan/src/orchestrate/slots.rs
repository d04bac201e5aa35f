//! The tasks of a service by the place that they fill: a numbered slot, or a node for a global service.

use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use skep_proto::v1::{Task, TaskState};

use crate::defaults::SECOND;
use crate::draft::created_ns;

/// How long, beyond the grace that its spec gives it, a task may take to stop before its slot goes to the next one.
pub(crate) const STOP_PATIENCE: i64 = 60 * SECOND;

/// The place that a task fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key<'a> {
    Slot(u64),
    Node(&'a str),
}

/// What a slot is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Has a task in service.
    Live,
    /// Its task ended by itself and the policy wants no other.
    Done,
    /// Its task ended by itself; another one follows.
    Restart { not_before_ns: i64 },
    /// Its last task was asked to stop and has not ended yet.
    Stopping,
    /// Nothing is in it.
    Empty,
    /// Was taken out of service in this round.
    Removed,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Slot<'a> {
    pub(crate) key: Key<'a>,
    pub(crate) kind: Kind,
    /// In service and not ended, oldest first.
    pub(crate) live: Vec<&'a Arc<Task>>,
    /// Asked to stop and not ended.
    pub(crate) stopping: Vec<&'a Arc<Task>>,
    /// Ended by themselves.
    pub(crate) ended: Vec<&'a Arc<Task>>,
    pub(crate) newest: Option<&'a Arc<Task>>,
    /// Its task was on a node that is lost.
    pub(crate) lost: bool,
    /// Its task runs on a node that it has to leave once another one runs.
    pub(crate) leaving: bool,
    /// Stopping, and to be filled again after that.
    pub(crate) wanted: bool,
    /// Was given a task in this round.
    pub(crate) created: bool,
}

/// All slots of a service.
pub(crate) type Slots<'a> = BTreeMap<Key<'a>, Slot<'a>>;

impl<'a> Slot<'a> {
    pub(crate) fn empty(key: Key<'a>) -> Self {
        Self {
            key,
            kind: Kind::Empty,
            live: Vec::new(),
            stopping: Vec::new(),
            ended: Vec::new(),
            newest: None,
            lost: false,
            leaving: false,
            wanted: false,
            created: false,
        }
    }

    /// Counts as one of the replicas.
    pub(crate) fn is_filled(&self) -> bool {
        matches!(self.kind, Kind::Live | Kind::Done | Kind::Restart { .. })
    }

    /// Counts as one of the replicas, or will.
    pub(crate) fn is_wanted(&self) -> bool {
        self.is_filled() || self.wanted
    }
}

/// Sorts tasks into slots.
pub(crate) fn group<'a>(tasks: &[&'a Arc<Task>]) -> Slots<'a> {
    let mut slots = Slots::new();
    let mut sorted: Vec<&'a Arc<Task>> = tasks.to_vec();
    sorted.sort_by(|a, b| (created_ns(a.meta.as_ref()), &a.id).cmp(&(created_ns(b.meta.as_ref()), &b.id)));
    for task in sorted {
        let key = if task.slot == 0 { Key::Node(task.node_id.as_str()) } else { Key::Slot(task.slot) };
        let slot = slots.entry(key).or_insert_with(|| Slot::empty(key));
        match (task.observed().is_terminal(), task.drain_version == 0) {
            (false, true) if task.desired_state() <= TaskState::Running => slot.live.push(task),
            (false, _) => slot.stopping.push(task),
            (true, true) => slot.ended.push(task),
            (true, false) => {}
        }
        slot.newest = Some(task);
    }
    slots
}

/// The slots that go when there are `surplus` too many: first those that do not run, then those on the nodes that have
/// most of the service, of these the highest.
pub(crate) fn to_remove<'a>(slots: &Slots<'a>, surplus: u64) -> Vec<Key<'a>> {
    if surplus == 0 {
        return Vec::new();
    }
    let mut removed: Vec<Key<'a>> = Vec::new();
    let mut on_node: BTreeMap<&str, Vec<Key<'a>>> = BTreeMap::new();
    for (key, slot) in slots.iter().filter(|(_, s)| s.is_filled()) {
        match slot.live.last().filter(|_| slot.live.iter().any(|t| t.observed() == TaskState::Running)) {
            // Ascending, because the map is.
            Some(task) => on_node.entry(task.node_id.as_str()).or_default().push(*key),
            None => removed.push(*key),
        }
    }
    let surplus = usize::try_from(surplus).unwrap_or(usize::MAX);
    removed.reverse();
    removed.truncate(surplus);
    let mut fullest: BinaryHeap<_> =
        on_node.into_values().filter_map(|keys| Some((keys.len(), *keys.last()?, keys))).collect();
    while removed.len() < surplus {
        let Some((count, key, mut keys)) = fullest.pop() else { break };
        removed.push(key);
        keys.pop();
        if let Some(next) = keys.last().copied() {
            fullest.push((count - 1, next, keys));
        }
    }
    removed
}
