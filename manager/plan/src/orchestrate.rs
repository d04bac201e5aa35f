//! Sees to it that every service has the tasks it should have: as many as asked for, none on nodes that are lost,
//! drained or no longer fitting, ended ones replaced as the restart policy says.
//!
//! A task that was asked to stop carries `drain_version`; one that ended by itself does not. That difference is all the
//! memory there is: from it each round finds out again what every slot needs.

pub(crate) mod restart;
pub(crate) mod slots;

use std::sync::Arc;

use skep_proto::v1::{
    Availability, Node, NodeState, PublishMode, Service, Task, TaskChange, TaskState, TaskStatus, UpdateOrder,
    service_spec,
};
use skep_state::State;

use crate::constraint::Class;
use crate::defaults;
use crate::draft::{Draft, PROVISIONAL};
use crate::drain::stop;
use crate::nodes::{is_lost, node_state};
use crate::update;
use slots::{Key, Kind, Slot};

/// Tasks that one round adds to one service at most.
const NEW_TASKS_PER_ROUND: u64 = 5_000;

/// Makes new ids.
pub(crate) type Ids<'a> = dyn FnMut() -> String + 'a;

/// See the module.
pub(crate) fn run(draft: &mut Draft<'_>, ids: &mut Ids<'_>) {
    let view = draft.state.clone();
    for service in view.services() {
        if service.removing {
            for task in view.tasks_of_service(&service.id).filter(|t| !t.observed().is_terminal()) {
                stop(draft, task);
            }
        } else {
            one(draft, &view, service, ids);
        }
    }
}

fn one(draft: &mut Draft<'_>, view: &State, service: &Arc<Service>, ids: &mut Ids<'_>) {
    let spec = service.spec.as_ref();
    let class = Class::of(spec.and_then(|s| s.task.as_ref()).and_then(|t| t.placement.as_ref()));
    let tasks: Vec<&Arc<Task>> = view.tasks_of_service(&service.id).collect();
    let mut slots = slots::group(&tasks);
    for slot in slots.values_mut() {
        leave_bad_nodes(draft, view, service, &class, slot);
        settle(draft, view, service, slot);
    }
    match spec.and_then(|s| s.mode) {
        Some(service_spec::Mode::Global(_)) => global(draft, view, service, &class, &mut slots, ids),
        Some(service_spec::Mode::Replicated(replicated)) => {
            scale(draft, service, replicated.replicas, &mut slots, ids);
        }
        None => {}
    }
    update::run(draft, service, &mut slots, ids);
}

/// Stops tasks whose node is lost, drained or no longer fits. With start-first order, a task on a node that still works
/// goes only when its successor runs.
fn leave_bad_nodes<'a>(draft: &mut Draft<'_>, view: &State, service: &Service, class: &Class, slot: &mut Slot<'a>) {
    let start_first = update::config_of(service, false).order() == UpdateOrder::StartFirst;
    let mut kept = Vec::with_capacity(slot.live.len());
    for task in std::mem::take(&mut slot.live) {
        if is_lost(view, task) {
            stop(draft, task);
            slot.lost = true;
        } else if view.node(&task.node_id).is_some_and(|n| must_leave(&n, class)) {
            let global = matches!(slot.key, Key::Node(_));
            if start_first && !global && task.observed() == TaskState::Running {
                slot.leaving = true;
                kept.push(task);
            } else {
                stop(draft, task);
                slot.stopping.push(task);
            }
        } else {
            kept.push(task);
        }
    }
    slot.live = kept;
}

fn must_leave(node: &Node, class: &Class) -> bool {
    availability(node) == Availability::Drain || class.check(node).is_err()
}

fn availability(node: &Node) -> Availability {
    node.spec.as_ref().map_or(Availability::Active, skep_proto::v1::NodeSpec::availability)
}

/// Finds out what a slot is, and brings the tasks in it in order.
fn settle(draft: &mut Draft<'_>, view: &State, service: &Service, slot: &mut Slot<'_>) {
    // What ended by itself is not wanted any more; what follows is the policy's matter.
    for task in slot.ended.iter().filter(|t| t.desired_state() <= TaskState::Running) {
        let shutdown = TaskState::Shutdown.into();
        draft.change_task(TaskChange { id: task.id.clone(), desired_state: Some(shutdown), ..TaskChange::default() });
    }
    // Once the newest of several runs, the others have done their duty.
    if slot.live.len() > 1 && slot.live.last().is_some_and(|newest| newest.is_ready()) {
        let newest = slot.live.pop();
        for older in std::mem::take(&mut slot.live) {
            stop(draft, older);
            slot.stopping.push(older);
        }
        slot.live.extend(newest);
        slot.leaving = false;
    }
    slot.kind = kind(draft, view, service, slot);
}

fn kind(draft: &mut Draft<'_>, view: &State, service: &Service, slot: &Slot<'_>) -> Kind {
    if !slot.live.is_empty() {
        return Kind::Live;
    }
    // A slot has one owner: the next one waits for the end of the last one, but not for ever.
    let patience = slots::STOP_PATIENCE.saturating_add(defaults::stop_grace_ns(Some(service)));
    for task in slot.stopping.iter().filter(|t| !is_lost(view, t)) {
        let since = if task.drain_version == 0 { draft.now_ns } else { task.drain_ns };
        if draft.now_ns < since.saturating_add(patience) {
            draft.wake_at(since.saturating_add(patience));
            return Kind::Stopping;
        }
    }
    match slot.newest {
        // A slot that lost its node is filled again whatever the policy: that is for tasks that end by themselves.
        Some(newest) if newest.drain_version == 0 && newest.observed().is_terminal() && !slot.lost => {
            let task = service.spec.as_ref().and_then(|s| s.task.as_ref());
            match restart::delay(task.and_then(|t| t.restart.as_ref()), newest, &slot.ended) {
                Some(delay) => Kind::Restart { not_before_ns: draft.now_ns.saturating_add(delay) },
                None => Kind::Done,
            }
        }
        _ => Kind::Empty,
    }
}

/// Brings a replicated service to `replicas` slots.
fn scale(draft: &mut Draft<'_>, service: &Service, replicas: u64, slots: &mut slots::Slots<'_>, ids: &mut Ids<'_>) {
    let filled = |slots: &slots::Slots<'_>| slots.values().filter(|s| s.is_filled()).count() as u64;
    let surplus = filled(slots).saturating_sub(replicas);
    for key in slots::to_remove(slots, surplus) {
        if let Some(slot) = slots.get_mut(&key) {
            for task in slot.live.drain(..).chain(slot.newest.filter(|n| n.observed().is_terminal())) {
                stop(draft, task);
            }
            slot.kind = Kind::Removed;
        }
    }
    for slot in slots.values_mut() {
        match slot.kind {
            Kind::Restart { not_before_ns } => fill(draft, service, slot, not_before_ns, ids),
            Kind::Live if slot.leaving && slot.live.len() == 1 => {
                let not_before_ns = back_off(draft, service, slot);
                fill(draft, service, slot, not_before_ns, ids);
            }
            _ => {}
        }
    }
    // A round has a bound, so that one huge service holds up nobody else; the next round goes on.
    let mut missing = replicas.saturating_sub(filled(slots)).min(NEW_TASKS_PER_ROUND);
    let mut number = 0;
    while missing > 0 {
        number += 1;
        let slot = slots.entry(Key::Slot(number)).or_insert_with(|| Slot::empty(Key::Slot(number)));
        match slot.kind {
            Kind::Empty => fill(draft, service, slot, 0, ids),
            Kind::Stopping => slot.wanted = true,
            Kind::Removed | Kind::Live | Kind::Done | Kind::Restart { .. } => continue,
        }
        missing -= 1;
    }
}

/// Brings a global service to one task on every node that fits.
fn global<'a>(
    draft: &mut Draft<'_>,
    view: &'a State,
    service: &Service,
    class: &Class,
    slots: &mut slots::Slots<'a>,
    ids: &mut Ids<'_>,
) {
    for node in view.nodes() {
        let key = Key::Node(node.id.as_str());
        let fits = node_state(node) == NodeState::Ready && !must_leave(node, class);
        if !fits {
            continue;
        }
        let open = availability(node) == Availability::Active;
        let slot = slots.entry(key).or_insert_with(|| Slot::empty(key));
        match slot.kind {
            Kind::Empty if open => fill(draft, service, slot, 0, ids),
            Kind::Restart { not_before_ns } if open => fill(draft, service, slot, not_before_ns, ids),
            Kind::Stopping => slot.wanted = true,
            _ => {}
        }
    }
}

/// When a second task for a slot whose first one still serves may start: later if the last attempt failed.
pub(crate) fn back_off(draft: &Draft<'_>, service: &Service, slot: &Slot<'_>) -> i64 {
    let policy = service.spec.as_ref().and_then(|s| s.task.as_ref()).and_then(|t| t.restart.as_ref());
    match slot.newest.filter(|n| n.observed().is_terminal() && n.drain_version == 0) {
        Some(failed) => draft.now_ns.saturating_add(restart::pause(policy, failed, &slot.ended)),
        None => 0,
    }
}

/// Creates the next task of a slot.
pub(crate) fn fill(
    draft: &mut Draft<'_>,
    service: &Service,
    slot: &mut Slot<'_>,
    not_before_ns: i64,
    ids: &mut Ids<'_>,
) {
    // The log decides what a spec made in this very round is called; its tasks follow in the next.
    if service.spec_version == PROVISIONAL {
        return;
    }
    let id = ids();
    let spec = service.spec.as_ref();
    let service_name = spec.and_then(|s| s.annotations.as_ref()).map_or("", |a| a.name.as_str());
    let (number, node_id) = match slot.key {
        Key::Slot(number) => (number, String::new()),
        Key::Node(node) => (0, node.to_owned()),
    };
    let place = if node_id.is_empty() { number.to_string() } else { node_id.clone() };
    let ports = spec.and_then(|s| s.endpoint.as_ref()).map_or(&[][..], |e| &e.ports);
    let status = TaskStatus {
        at_ns: draft.now_ns,
        state: TaskState::New.into(),
        message: "created".into(),
        ..TaskStatus::default()
    };
    draft.create_task(Task {
        name: format!("{service_name}.{place}.{id}"),
        id,
        service_id: service.id.clone(),
        spec_version: service.spec_version,
        slot: number,
        node_id,
        status: Some(status),
        desired_state: TaskState::Running.into(),
        host_ports: ports.iter().filter(|p| p.mode() == PublishMode::Host).cloned().collect(),
        not_before_ns,
        ..Task::default()
    });
    slot.created = true;
    slot.kind = Kind::Live;
}
