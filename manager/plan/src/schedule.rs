//! Gives pending tasks to nodes.
//!
//! Tasks of one service and spec are placed together. Which nodes a spec allows at all is found out once per *class*
//! (constraints and platforms); a class keeps its nodes in a heap by load that is repaired when an entry is looked at.
//! Preference: not where the service keeps failing, then fewest tasks of the service, then fewest tasks, then id.

mod explain;
mod place;
mod spread;
mod table;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use skep_proto::v1::{PortConfig, Resources, Task, TaskChange, TaskState, TaskStatus};
use skep_state::State;

use crate::allocate::Pools;
use crate::constraint::Class;
use crate::draft::Draft;
use table::Table;

/// Tasks that are alike to the scheduler.
struct Group<'a> {
    service_id: &'a str,
    class: Class,
    spread: Vec<String>,
    reserved: Resources,
    host_ports: &'a [PortConfig],
    max_replicas: u64,
    networks: Vec<&'a str>,
    /// Placed anywhere.
    free: Vec<&'a Arc<Task>>,
    /// Bound to a node from the beginning.
    bound: Vec<&'a Arc<Task>>,
}

/// What the groups of a round share.
struct Round<'v> {
    table: Table<'v>,
    classes: BTreeMap<Class, place::ClassHeap>,
}

/// See the module.
pub(crate) fn run(draft: &mut Draft<'_>, pools: &mut Pools) {
    let view = draft.state.clone();
    let groups = pending(draft, &view);
    if groups.is_empty() {
        return;
    }
    let mut round = Round { table: Table::of(&view), classes: BTreeMap::new() };
    for group in groups.into_values() {
        // On a network without a free address only nodes that have theirs already can serve.
        let full: Vec<&str> = group.networks.iter().copied().filter(|n| !pools.has_room(&view, n)).collect();
        round.place_group(draft, &view, &group, &full);
    }
}

/// The tasks that may be placed now, in groups. Notes when the next one may.
fn pending<'a>(draft: &mut Draft<'_>, view: &'a State) -> BTreeMap<(&'a str, u64), Group<'a>> {
    let mut groups: BTreeMap<(&str, u64), Group<'_>> = BTreeMap::new();
    for task in view.tasks() {
        if task.observed() != TaskState::Pending || !task.in_service() {
            continue;
        }
        if task.not_before_ns > draft.now_ns {
            draft.wake_at(task.not_before_ns);
            continue;
        }
        let group = match groups.entry((task.service_id.as_str(), task.spec_version)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match group_of(view, task) {
                Some(group) => entry.insert(group),
                None => continue,
            },
        };
        if task.node_id.is_empty() {
            group.free.push(task);
        } else {
            group.bound.push(task);
        }
    }
    groups
}

/// The group that a task founds; `None` without its spec, which the state never lets happen.
fn group_of<'a>(view: &State, task: &'a Task) -> Option<Group<'a>> {
    let spec = view.task_spec(&task.service_id, task.spec_version)?;
    // Where a task may run is a matter of the service's present spec, not of the one it was made from.
    let service = view.service(&task.service_id);
    let current = service.as_ref().and_then(|s| s.spec.as_ref()).and_then(|s| s.task.as_ref());
    let placement = current.unwrap_or(&spec).placement.as_ref();
    Some(Group {
        service_id: &task.service_id,
        class: Class::of(placement),
        spread: placement.map(|p| p.spread.clone()).unwrap_or_default(),
        reserved: table::reservation(&spec),
        host_ports: &task.host_ports,
        max_replicas: placement.map_or(0, |p| p.max_replicas),
        networks: task.networks.iter().map(|n| n.network_id.as_str()).collect(),
        free: Vec::new(),
        bound: Vec::new(),
    })
}

impl<'v> Round<'v> {
    fn place_group(&mut self, draft: &mut Draft<'_>, view: &State, group: &Group<'v>, full: &[&str]) {
        for task in &group.bound {
            match self.table.index_of(&task.node_id) {
                Some(node)
                    if self.table.refusal(node, group, full).is_none()
                        && group.class.check(self.table.node(node)).is_ok() =>
                {
                    self.table.occupy(node, group);
                    assign(draft, task, &task.node_id);
                }
                node => {
                    let why = explain::one(&self.table, node, group, full);
                    refuse(draft, task, &why);
                }
            }
        }
        if group.free.is_empty() {
            return;
        }
        let heap =
            self.classes.entry(group.class.clone()).or_insert_with(|| place::ClassHeap::of(&self.table, &group.class));
        let chosen = if group.spread.is_empty() {
            heap.place(&mut self.table, view, group, full, draft.now_ns)
        } else {
            spread::place(&mut self.table, heap.members(), view, group, full, draft.now_ns)
        };
        for (task, node) in group.free.iter().zip(&chosen) {
            assign(draft, task, &self.table.node(*node).id);
        }
        if chosen.len() < group.free.len() {
            let why = explain::all(&self.table, group, full);
            for task in &group.free[chosen.len()..] {
                refuse(draft, task, &why);
            }
        }
    }
}

fn assign(draft: &mut Draft<'_>, task: &Task, node_id: &str) {
    let status = TaskStatus {
        at_ns: draft.now_ns,
        state: TaskState::Assigned.into(),
        message: "scheduler assigned task to node".to_owned(),
        ..TaskStatus::default()
    };
    draft.change_task(TaskChange {
        id: task.id.clone(),
        node_id: Some(node_id.to_owned()),
        desired_state: Some(TaskState::Running.into()),
        status: Some(status),
        ..TaskChange::default()
    });
}

/// Says why a task waits, unless it says so already.
fn refuse(draft: &mut Draft<'_>, task: &Task, why: &str) {
    let message = format!("no suitable node ({why})");
    if task.status.as_ref().is_some_and(|s| s.message == message) {
        return;
    }
    let status = TaskStatus {
        at_ns: draft.now_ns,
        state: TaskState::Pending.into(),
        error: message.clone(),
        message,
        ..TaskStatus::default()
    };
    draft.change_task(TaskChange { id: task.id.clone(), status: Some(status), ..TaskChange::default() });
}
