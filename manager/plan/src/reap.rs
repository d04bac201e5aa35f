//! Removes what is over: old tasks beyond the history, tasks of slots and services that are gone, and services whose
//! removal has come to its end.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_proto::v1::{Service, Task, TaskState, service_spec};
use skep_state::State;

use crate::defaults;
use crate::draft::{Draft, created_ns};
use crate::nodes::is_lost;

/// See the module.
pub(crate) fn run(draft: &mut Draft<'_>) {
    let view = draft.state.clone();
    let history = defaults::task_history(&view);
    for service in view.services() {
        if service.removing {
            removal(draft, &view, service);
        } else {
            old_tasks(draft, &view, service, history);
        }
    }
    for task in view.tasks() {
        if task.observed().is_terminal() && view.service(&task.service_id).is_none() {
            draft.remove_task(&task.id);
        }
    }
}

/// Ends the removal of a service once nothing of it can run any more. A task on a node that is down stays behind, with
/// its addresses, until that node tells of its end or is removed.
fn removal(draft: &mut Draft<'_>, view: &State, service: &Service) {
    let mut over = true;
    for task in view.tasks_of_service(&service.id) {
        if task.observed().is_terminal() {
            draft.remove_task(&task.id);
        } else {
            over &= task.desired_state() > TaskState::Running && is_lost(view, task);
        }
    }
    if over {
        draft.remove_service(&service.id);
    }
}

fn old_tasks(draft: &mut Draft<'_>, view: &State, service: &Service, history: usize) {
    let spec = service.spec.as_ref();
    // Attempts are counted by what the history shows.
    let attempts = spec.and_then(|s| s.task.as_ref()).and_then(|t| t.restart.as_ref()).map_or(0, |r| r.max_attempts);
    let keep = history.max(usize::try_from(attempts).unwrap_or(usize::MAX));
    let mut slots: BTreeMap<(u64, &str), Vec<&Arc<Task>>> = BTreeMap::new();
    for task in view.tasks_of_service(&service.id) {
        let node = if task.slot == 0 { task.node_id.as_str() } else { "" };
        slots.entry((task.slot, node)).or_default().push(task);
    }
    let mut filled = 0;
    for tasks in slots.values_mut() {
        tasks.sort_by(|a, b| (created_ns(b.meta.as_ref()), &b.id).cmp(&(created_ns(a.meta.as_ref()), &a.id)));
        filled += u64::from(is_filled(tasks));
    }
    let complete = match spec.and_then(|s| s.mode.as_ref()) {
        Some(service_spec::Mode::Replicated(replicated)) => filled >= replicated.replicas,
        _ => false,
    };
    for ((_, node), tasks) in slots {
        let gone = (complete && !is_filled(&tasks)) || (!node.is_empty() && view.node(node).is_none());
        let keep = if gone { 0 } else { keep };
        // The newest task says what becomes of its slot.
        let newest = usize::from(!gone);
        let ended = tasks.iter().enumerate().filter(|(_, t)| t.observed().is_terminal());
        for (_, task) in ended.skip(keep).filter(|(at, _)| *at >= newest) {
            draft.remove_task(&task.id);
        }
    }
}

/// Whether a slot has a task in service, or one that ended by itself and rests there. Newest first.
fn is_filled(tasks: &[&Arc<Task>]) -> bool {
    tasks.iter().any(|t| t.in_service()) || tasks.first().is_some_and(|t| t.drain_version == 0)
}
