//! Whether, and how soon, a task that ended by itself is followed by another one.

use std::sync::Arc;

use skep_proto::v1::{RestartCondition, RestartPolicy, Task, TaskState};

use crate::defaults;
use crate::draft::{created_ns, updated_ns};

/// The pause before the next task; `None`: there is none. `ended` are the tasks of the slot that ended by themselves.
pub(crate) fn delay(policy: Option<&RestartPolicy>, newest: &Task, ended: &[&Arc<Task>]) -> Option<i64> {
    let condition = policy.map_or(RestartCondition::Any, RestartPolicy::condition);
    let allowed = match condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => newest.observed() != TaskState::Complete,
        RestartCondition::None => false,
    };
    let (attempts, window) = policy.map_or((0, 0), |p| (p.max_attempts, p.window_ns));
    if !allowed || (attempts != 0 && made(newest, ended, window) >= attempts) {
        return None;
    }
    Some(defaults::restart_delay_ns(policy))
}

/// Restarts that led to `newest`: the tasks of the same spec but for the first, counted back from its end.
fn made(newest: &Task, ended: &[&Arc<Task>], window_ns: i64) -> u64 {
    let same = || ended.iter().filter(|t| t.spec_version == newest.spec_version);
    let first = same().map(|t| (created_ns(t.meta.as_ref()), t.id.as_str())).min();
    let since = if window_ns > 0 { updated_ns(newest.meta.as_ref()).saturating_sub(window_ns) } else { i64::MIN };
    same()
        .filter(|t| Some((created_ns(t.meta.as_ref()), t.id.as_str())) != first && created_ns(t.meta.as_ref()) >= since)
        .count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::v1::{Meta, TaskStatus};

    fn task(id: &str, created: i64, state: TaskState) -> Arc<Task> {
        Arc::new(Task {
            id: id.into(),
            spec_version: 1,
            meta: Some(Meta { created_ns: created, updated_ns: created + 10, version: 1 }),
            status: Some(TaskStatus { state: state.into(), ..TaskStatus::default() }),
            ..Task::default()
        })
    }

    fn policy(condition: RestartCondition, max_attempts: u64, window_ns: i64) -> RestartPolicy {
        RestartPolicy { condition: condition.into(), delay_ns: Some(7), max_attempts, window_ns }
    }

    #[test]
    fn conditions() {
        use RestartCondition::{Any, None as Never, OnFailure};
        for (condition, state, expected) in [
            (Any, TaskState::Complete, Some(7)),
            (Any, TaskState::Failed, Some(7)),
            (OnFailure, TaskState::Complete, None),
            (OnFailure, TaskState::Failed, Some(7)),
            (OnFailure, TaskState::Rejected, Some(7)),
            (Never, TaskState::Failed, None),
        ] {
            let ended = task("a", 0, state);
            assert_eq!(delay(Some(&policy(condition, 0, 0)), &ended, &[&ended]), expected, "{condition:?} {state:?}");
        }
        let ended = task("a", 0, TaskState::Failed);
        assert_eq!(delay(None, &ended, &[&ended]), Some(5 * defaults::SECOND));
    }

    #[test]
    fn attempts_are_counted_within_the_window() {
        let all: Vec<_> = (0..4).map(|n| task(&n.to_string(), n * 100, TaskState::Failed)).collect();
        let upto = |n: usize| -> Vec<&Arc<Task>> { all[..=n].iter().collect() };
        for (newest, attempts, window, expected) in [
            (0, 2, 0, true),
            (1, 2, 0, true),
            (2, 2, 0, false),
            (3, 4, 0, true),
            // Of the restarts at 100, 200 and 300 two lie in the last 150 (the end is at 310).
            (3, 3, 150, true),
            (3, 2, 150, false),
            (3, 2, 50, true),
        ] {
            let policy = policy(RestartCondition::Any, attempts, window);
            let verdict = delay(Some(&policy), &all[newest], &upto(newest)).is_some();
            assert_eq!(verdict, expected, "newest {newest}, {attempts} attempts in {window}");
        }
    }
}
