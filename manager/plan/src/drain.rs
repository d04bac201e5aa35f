//! How a task is stopped without losing a request: first every balancer forgets it, and only when all have said so (or
//! their time is over) is it told to stop. The orchestrators stop tasks through here only.

use std::collections::BTreeMap;

use skep_proto::v1::{NodeState, Task, TaskChange, TaskState, TaskStatus};

use crate::Inputs;
use crate::defaults::SECOND;
use crate::draft::Draft;
use crate::nodes::{is_lost, node_state};

/// How long the balancers may take.
const ACKNOWLEDGE_WITHIN: i64 = 5 * SECOND;

/// Takes a task out of service. One that carries traffic is told to stop by [`advance`] later, any other at once.
pub(crate) fn stop(draft: &mut Draft<'_>, task: &Task) {
    if task.drain_version != 0 {
        return;
    }
    let carries = task.observed() == TaskState::Running && !task.networks.is_empty();
    let mut change = TaskChange { id: task.id.clone(), drain: true, ..TaskChange::default() };
    if !carries || is_lost(&draft.state, task) {
        change.desired_state = Some(TaskState::Shutdown.into());
    }
    if task.observed() < TaskState::Assigned {
        // No node knows it, so nobody else will say that it is over.
        change.desired_state = Some(TaskState::Shutdown.into());
        change.status = Some(TaskStatus {
            at_ns: draft.now_ns,
            state: TaskState::Shutdown.into(),
            message: "stopped before a node had it".to_owned(),
            ..TaskStatus::default()
        });
    }
    draft.change_task(change);
}

/// Tells those tasks to stop that no balancer sends anything to any more.
pub(crate) fn advance(draft: &mut Draft<'_>, inputs: &Inputs) {
    let view = draft.state.clone();
    let mut shown: BTreeMap<String, u64> = BTreeMap::new();
    for task in view.tasks() {
        if task.drain_version == 0 || task.desired_state() > TaskState::Running {
            continue;
        }
        let deadline = task.drain_ns.saturating_add(ACKNOWLEDGE_WITHIN);
        let idle = task.observed() != TaskState::Running || is_lost(&view, task);
        let forgotten = idle || draft.now_ns >= deadline || {
            let generations = task.networks.iter().map(|network| {
                let id = &network.network_id;
                *shown.entry(id.clone()).or_insert_with(|| shown_everywhere(&view, id, inputs))
            });
            generations.min().unwrap_or(u64::MAX) >= task.drain_version
        };
        if forgotten {
            let change = TaskChange {
                id: task.id.clone(),
                desired_state: Some(TaskState::Shutdown.into()),
                ..TaskChange::default()
            };
            draft.change_task(change);
        } else {
            draft.wake_at(deadline);
        }
    }
}

/// The generation that every live balancer of a network is known to show.
fn shown_everywhere(state: &skep_state::State, network_id: &str, inputs: &Inputs) -> u64 {
    state
        .nodes()
        .filter(|n| node_state(n) == NodeState::Ready && n.attachments.iter().any(|a| a.network_id == network_id))
        .map(|n| inputs.acknowledged.get(&n.id).copied().unwrap_or(0))
        .min()
        .unwrap_or(u64::MAX)
}
