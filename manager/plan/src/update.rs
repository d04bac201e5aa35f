//! Rolling updates: replaces the tasks of an older spec, a few at a time, watches the new ones, and pauses or goes back
//! when too many of them fail.
//!
//! All memory is `Service.update_status` and the tasks themselves. A slot is *dirty* while its task runs something else
//! than the spec asks for, and *settled* once its new task has run for the configured delay.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_proto::v1::{
    FailureAction, PortConfig, PublishMode, Service, Task, TaskSpec, TaskState, UpdateConfig, UpdateOrder, UpdateState,
    UpdateStatus,
};
use skep_state::State;

use crate::allocate::{is_mesh, networks_of};
use crate::defaults;
use crate::draft::{Draft, PROVISIONAL, created_ns, updated_ns};
use crate::drain::stop;
use crate::orchestrate::slots::{Kind, Slot, Slots};
use crate::orchestrate::{Ids, back_off, fill};

/// How the service is updated, or taken back.
pub(crate) fn config_of(service: &Service, rollback: bool) -> UpdateConfig {
    let spec = service.spec.as_ref();
    defaults::update(spec.and_then(|s| if rollback { s.rollback.as_ref() } else { s.update.as_ref() }))
}

/// What the slots look like to an update.
#[derive(Debug, Default)]
struct Survey {
    /// Slots that there should be.
    total: u64,
    /// Slots whose tasks are to be replaced, those that serve nobody first.
    dirty: Vec<usize>,
    /// Neither dirty nor at rest.
    in_flight: u64,
    /// Neither dirty nor settled: `in_flight` and those that still wait for the delay.
    unsettled: u64,
    /// Slots in which a task of the new spec failed.
    failed: u64,
    failed_task: String,
    /// When the last new task came up.
    last_ns: i64,
}

/// Advances the update of one service by as much as this round allows.
pub(crate) fn run(draft: &mut Draft<'_>, service: &Arc<Service>, slots: &mut Slots<'_>, ids: &mut Ids<'_>) {
    let state = service.update_status.as_ref().map_or(UpdateState::Unknown, UpdateStatus::state);
    let rollback = state == UpdateState::RollbackStarted;
    let active = rollback || state == UpdateState::Updating;
    if service.spec_version == PROVISIONAL || matches!(state, UpdateState::Paused | UpdateState::RollbackPaused) {
        return;
    }
    let config = config_of(service, rollback);
    let mut list: Vec<&mut Slot<'_>> = slots.values_mut().filter(|s| s.is_wanted()).collect();
    let survey = survey(draft, service, &config, &list);
    if active && over_limit(&survey, &config) && fail(draft, service, &survey, &config, rollback) {
        return;
    }
    if survey.dirty.is_empty() {
        if active && survey.in_flight == 0 {
            complete(draft, service, &survey, &config, rollback);
        }
        return;
    }
    if !active {
        set(draft, service, UpdateState::Updating, "update in progress");
    }
    let room = match config.parallelism {
        0 => u64::MAX,
        limit => limit.saturating_sub(survey.unsettled),
    };
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    for at in survey.dirty.into_iter().take(room) {
        if let Some(slot) = list.get_mut(at) {
            replace(draft, service, &config, slot, ids);
        }
    }
}

fn survey(draft: &mut Draft<'_>, service: &Service, config: &UpdateConfig, list: &[&mut Slot<'_>]) -> Survey {
    let started = service.update_status.as_ref().map_or(i64::MAX, |s| s.started_ns);
    let mut survey = Survey { total: list.len() as u64, ..Survey::default() };
    let view = draft.state.clone();
    let mut dirt = Dirt::new(&view, service);
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for (at, slot) in list.iter().enumerate() {
        let failed = slot.ended.iter().find(|t| {
            let failed = matches!(t.observed(), TaskState::Failed | TaskState::Rejected);
            failed && t.spec_version == service.spec_version && created_ns(t.meta.as_ref()) >= started
        });
        if let Some(task) = failed {
            survey.failed += 1;
            survey.failed_task.clone_from(&task.id);
        }
        let task = match slot.kind {
            _ if slot.created => None,
            Kind::Live => slot.live.last(),
            Kind::Done => slot.newest.as_ref(),
            _ => None,
        };
        match task {
            Some(task) if dirt.is_dirty(task) => {
                let serves = slot.live.iter().any(|t| t.is_ready());
                if serves { busy.push(at) } else { idle.push(at) }
            }
            Some(task) if slot.kind == Kind::Done || (task.is_ready() && slot.live.len() == 1) => {
                let since = updated_ns(task.meta.as_ref());
                survey.last_ns = survey.last_ns.max(since);
                let settled = since.saturating_add(config.delay_ns.max(0));
                if settled > draft.now_ns {
                    survey.unsettled += 1;
                    draft.wake_at(settled);
                }
            }
            _ => {
                survey.in_flight += 1;
                survey.unsettled += 1;
            }
        }
    }
    idle.append(&mut busy);
    survey.dirty = idle;
    survey
}

fn over_limit(survey: &Survey, config: &UpdateConfig) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "a ratio of counts far below 2^52")]
    let ratio = survey.failed as f64 / survey.total.max(1) as f64;
    ratio > config.max_failure_ratio
}

/// Does what the failure action says. True when the update goes no further.
fn fail(draft: &mut Draft<'_>, service: &Arc<Service>, survey: &Survey, config: &UpdateConfig, rollback: bool) -> bool {
    let task = &survey.failed_task;
    match config.failure_action() {
        FailureAction::Continue => false,
        FailureAction::Rollback if !rollback && service.previous_spec.is_some() => {
            let message = format!("update rolled back due to failure or early termination of task {task}");
            let status = UpdateStatus {
                state: UpdateState::RollbackStarted.into(),
                started_ns: draft.now_ns,
                completed_ns: 0,
                message,
            };
            let next = Service {
                spec: service.previous_spec.clone(),
                previous_spec: None,
                previous_spec_version: service.spec_version,
                update_status: Some(status),
                ..service.as_ref().clone()
            };
            draft.put_service(next)
        }
        FailureAction::Pause | FailureAction::Rollback => {
            let (state, word) =
                if rollback { (UpdateState::RollbackPaused, "rollback") } else { (UpdateState::Paused, "update") };
            set(draft, service, state, &format!("{word} paused due to failure or early termination of task {task}"));
            true
        }
    }
}

/// Ends the update once the last new task was watched for long enough.
fn complete(draft: &mut Draft<'_>, service: &Arc<Service>, survey: &Survey, config: &UpdateConfig, rollback: bool) {
    let watch = if config.failure_action() == FailureAction::Continue { 0 } else { config.monitor_ns };
    let over = survey.last_ns.saturating_add(watch);
    if over > draft.now_ns {
        draft.wake_at(over);
    } else if rollback {
        set(draft, service, UpdateState::RollbackCompleted, "rollback completed");
    } else {
        set(draft, service, UpdateState::Completed, "update completed");
    }
}

fn set(draft: &mut Draft<'_>, service: &Service, state: UpdateState, message: &str) {
    // An earlier module may have changed the service in this round.
    let Some(current) = draft.state.service(&service.id) else { return };
    let mut next = current.as_ref().clone();
    let mut status = next.update_status.take().unwrap_or_default();
    match state {
        UpdateState::Updating => status = UpdateStatus { started_ns: draft.now_ns, ..UpdateStatus::default() },
        UpdateState::Completed | UpdateState::RollbackCompleted => status.completed_ns = draft.now_ns,
        _ => {}
    }
    status.state = state.into();
    message.clone_into(&mut status.message);
    next.update_status = Some(status);
    draft.put_service(next);
}

/// Replaces the task of one slot: start-first adds the new one and leaves the rest to the orchestrator, stop-first
/// stops the old one, and its slot is filled again once it has ended.
fn replace(draft: &mut Draft<'_>, service: &Service, config: &UpdateConfig, slot: &mut Slot<'_>, ids: &mut Ids<'_>) {
    let serves = slot.live.iter().any(|t| t.is_ready());
    let numbered = matches!(slot.key, crate::orchestrate::slots::Key::Slot(_));
    if slot.kind == Kind::Done {
        fill(draft, service, slot, 0, ids);
    } else if config.order() == UpdateOrder::StartFirst && serves && numbered {
        // Of several old ones the last that serves stays until its successor does.
        let keep = slot.live.iter().rposition(|t| t.is_ready());
        for (at, task) in std::mem::take(&mut slot.live).into_iter().enumerate() {
            if Some(at) == keep { slot.live.push(task) } else { stop(draft, task) }
        }
        let not_before_ns = back_off(draft, service, slot);
        fill(draft, service, slot, not_before_ns, ids);
    } else {
        for task in slot.live.drain(..) {
            stop(draft, task);
        }
        slot.kind = Kind::Stopping;
    }
}

/// Compares tasks with what their service asks for now.
struct Dirt<'a> {
    state: &'a State,
    service: &'a Service,
    host_ports: Vec<&'a PortConfig>,
    /// Networks that every task has to be on.
    needed: Vec<String>,
    versions: BTreeMap<u64, bool>,
}

impl<'a> Dirt<'a> {
    fn new(state: &'a State, service: &'a Service) -> Self {
        let spec = service.spec.as_ref();
        let ports = spec.and_then(|s| s.endpoint.as_ref()).map_or(&[][..], |e| &e.ports);
        // Other networks are part of the task's spec; the mesh's follows from the service's ports.
        let needed = match spec.and_then(|s| s.task.as_ref()) {
            Some(task) if ports.iter().any(is_mesh) => {
                networks_of(state, service, task).into_iter().map(|n| n.target).collect()
            }
            _ => Vec::new(),
        };
        Self { state, service, host_ports: host_ports(service), needed, versions: BTreeMap::new() }
    }

    /// Whether the task has to be replaced by one of the present spec.
    fn is_dirty(&mut self, task: &Task) -> bool {
        if !is_wired(task, &self.host_ports, &self.needed) {
            return true;
        }
        if task.spec_version == self.service.spec_version {
            return false;
        }
        *self.versions.entry(task.spec_version).or_insert_with(|| {
            let old = self.state.task_spec(&self.service.id, task.spec_version);
            let new = self.service.spec.as_ref().and_then(|s| s.task.as_ref());
            old.zip(new).is_none_or(|(old, new)| needs_new_task(&old, new))
        })
    }
}

fn host_ports(service: &Service) -> Vec<&PortConfig> {
    let endpoint = service.spec.as_ref().and_then(|s| s.endpoint.as_ref());
    endpoint.map_or(&[][..], |e| &e.ports).iter().filter(|p| p.mode() == PublishMode::Host).collect()
}

/// Whether a task has the ports and the networks that its service asks for. Networks are given to it with its node.
fn is_wired(task: &Task, host_ports: &[&PortConfig], needed: &[String]) -> bool {
    let attached = |network: &String| task.networks.iter().any(|n| n.network_id == *network);
    task.host_ports.iter().eq(host_ports.iter().copied())
        && (task.observed() < TaskState::Pending || needed.iter().all(attached))
}

/// Whether a task is what its service asks for, so that an update leaves it: for those who watch one. `made_from`: the
/// spec that the task was made from; `ingress`: the network of published ports.
pub fn is_current(service: &Service, task: &Task, made_from: Option<&TaskSpec>, ingress: Option<&str>) -> bool {
    let spec = service.spec.as_ref();
    let meshed = spec.and_then(|s| s.endpoint.as_ref()).is_some_and(|e| e.ports.iter().any(is_mesh));
    let needed: Vec<String> = ingress.filter(|_| meshed).map(str::to_owned).into_iter().collect();
    let wanted = spec.and_then(|s| s.task.as_ref());
    is_wired(task, &host_ports(service), &needed)
        && (task.spec_version == service.spec_version
            || made_from.zip(wanted).is_some_and(|(old, new)| !needs_new_task(old, new)))
}

/// Whether going from one spec to the other needs a new container. Placement and restart policy are the managers' own
/// matter: tasks on nodes that no longer fit are moved by the orchestrator.
fn needs_new_task(old: &TaskSpec, new: &TaskSpec) -> bool {
    let relevant = |spec: &TaskSpec| TaskSpec { placement: None, restart: None, ..spec.clone() };
    relevant(old) != relevant(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::v1::{ContainerSpec, EndpointSpec, Placement, ServiceSpec, TaskNetwork, TaskStatus};

    #[test]
    fn those_who_watch_see_the_tasks_that_an_update_leaves() {
        let spec = |image: &str, constraint: &str| TaskSpec {
            container: Some(ContainerSpec { image: image.into(), ..Default::default() }),
            placement: Some(Placement { constraints: vec![constraint.into()], ..Default::default() }),
            ..Default::default()
        };
        let port = |mode: PublishMode| PortConfig { mode: mode.into(), target_port: 80, ..Default::default() };
        let service = |ports: &[PortConfig]| Service {
            spec_version: 9,
            spec: Some(ServiceSpec {
                task: Some(spec("web:1", "node.role==worker")),
                endpoint: Some(EndpointSpec { ports: ports.to_vec(), ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let running = |spec_version, networks: &[&str]| Task {
            spec_version,
            networks: networks.iter().map(|n| TaskNetwork { network_id: (*n).into(), ..Default::default() }).collect(),
            status: Some(TaskStatus { state: TaskState::Running.into(), ..Default::default() }),
            ..Default::default()
        };
        let (plain, meshed) = (service(&[]), service(&[port(PublishMode::Ingress)]));
        let hosted = service(&[port(PublishMode::Host)]);
        let same = spec("web:1", "node.role==manager");
        let table = [
            ("of this version", &plain, running(9, &[]), None, true),
            ("of a version that asks for the same container", &plain, running(7, &[]), Some(&same), true),
            ("of another image", &plain, running(8, &[]), Some(&spec("web:2", "")), false),
            ("of a version that nobody remembers", &plain, running(3, &[]), None, false),
            ("not on the network of a port", &meshed, running(9, &[]), None, false),
            ("on it", &meshed, running(9, &["mesh"]), None, true),
            ("without its node's port", &hosted, running(9, &[]), None, false),
        ];
        for (what, service, task, made_from, current) in table {
            assert_eq!(is_current(service, &task, made_from, Some("mesh")), current, "{what}");
        }
    }
}
