//! What holds where a spec says nothing, and the settings read with it.

use skep_proto::v1::{Cluster, FailureAction, RestartPolicy, Service, UpdateConfig, UpdateOrder};
use skep_state::State;

pub(crate) const SECOND: i64 = 1_000_000_000;
/// Finished tasks that are kept per slot.
const HISTORY: u32 = 5;
/// Period of a node's heartbeat.
const HEARTBEAT: i64 = SECOND;
/// Pause before a task that ended is replaced.
const RESTART_DELAY: i64 = 5 * SECOND;
/// How long an updated task is watched.
const MONITOR: i64 = 5 * SECOND;
/// Time between the stop signal and the kill.
const STOP_GRACE: i64 = 10 * SECOND;
/// Tasks on one node at most: a bridge of the kernel has 1,023 ports, and every task has one on the gateway's.
pub(crate) const TASKS_PER_NODE: u32 = 1000;
/// VXLAN port.
const DATA_PATH_PORT: u32 = 4789;

fn cluster(state: &State) -> Cluster {
    state.cluster().map(|c| c.as_ref().clone()).unwrap_or_default()
}

pub(crate) fn task_history(state: &State) -> usize {
    cluster(state).spec.and_then(|s| s.task_history_limit).unwrap_or(HISTORY) as usize
}

pub(crate) fn heartbeat_ns(state: &State) -> i64 {
    let period = cluster(state).spec.map_or(0, |s| s.heartbeat_ns);
    if period <= 0 { HEARTBEAT } else { period }
}

pub(crate) fn data_path_port(state: &State) -> u32 {
    let port = cluster(state).data_path_port;
    if port == 0 { DATA_PATH_PORT } else { port }
}

pub(crate) fn restart_delay_ns(policy: Option<&RestartPolicy>) -> i64 {
    policy.and_then(|p| p.delay_ns).unwrap_or(RESTART_DELAY).max(0)
}

pub(crate) fn stop_grace_ns(service: Option<&Service>) -> i64 {
    let container =
        service.and_then(|s| s.spec.as_ref()).and_then(|s| s.task.as_ref()).and_then(|t| t.container.as_ref());
    container.and_then(|c| c.stop_grace_period_ns).unwrap_or(STOP_GRACE).max(0)
}

/// How an update goes when the spec says nothing: one at a time, pausing on failure.
pub(crate) fn update(config: Option<&UpdateConfig>) -> UpdateConfig {
    let mut config = config.cloned().unwrap_or_else(|| UpdateConfig {
        parallelism: 1,
        delay_ns: 0,
        failure_action: FailureAction::Pause.into(),
        monitor_ns: MONITOR,
        max_failure_ratio: 0.0,
        order: UpdateOrder::StopFirst.into(),
    });
    if config.monitor_ns <= 0 {
        config.monitor_ns = MONITOR;
    }
    config
}
