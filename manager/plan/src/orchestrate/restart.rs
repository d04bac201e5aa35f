//! Whether, and how soon, a task that ended by itself is followed by another one.

use std::sync::Arc;

use skep_proto::v1::{RestartCondition, RestartPolicy, Task, TaskState};

use crate::defaults::{self, SECOND};
use crate::draft::{created_ns, updated_ns};

/// Quick ends in a row that cost nothing beyond the policy's delay: a dependency may not have been there yet.
const UNPUNISHED: u32 = 2;
/// Back-off after one more of them; doubles with each that follows.
const BACK_OFF: i64 = SECOND / 2;
const BACK_OFF_MAX: i64 = 30 * SECOND;
/// A task that lasted this long was no quick end.
const LASTED: i64 = 60 * SECOND;

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
    Some(pause(policy, newest, ended))
}

/// The policy's delay, or a longer back-off when the tasks of the slot end soon after they start, one after the other:
/// nothing after the first two, then half a second, doubling up to 30 s. A program that ran for a minute, or a new spec,
/// begins anew; so does a slot whose last task didn't end by itself.
pub(crate) fn pause(policy: Option<&RestartPolicy>, newest: &Task, ended: &[&Arc<Task>]) -> i64 {
    defaults::restart_delay_ns(policy).max(back_off(quick_ends(newest, ended)))
}

/// The back-off after so many quick ends in a row.
fn back_off(quick: u32) -> i64 {
    match quick.checked_sub(UNPUNISHED + 1) {
        Some(doublings) => BACK_OFF.saturating_mul(1 << doublings.min(16)).min(BACK_OFF_MAX),
        None => 0,
    }
}

/// How many tasks of the slot, up to `newest`, ended by themselves soon after they could start: as many as the history
/// shows. `ended` is in the order of creation.
fn quick_ends(newest: &Task, ended: &[&Arc<Task>]) -> u32 {
    let mut quick = 0;
    let mut followed_ns = None;
    for task in ended.iter().rev().filter(|t| t.spec_version == newest.spec_version) {
        let by_itself = matches!(task.observed(), TaskState::Complete | TaskState::Failed | TaskState::Rejected);
        let over_ns = updated_ns(task.meta.as_ref());
        let begun_ns = created_ns(task.meta.as_ref()).max(task.not_before_ns);
        // A successor is created at once; when it was not, something that was stopped ran in between.
        let until_ns = followed_ns.unwrap_or(over_ns).max(over_ns);
        if !by_itself || over_ns.saturating_sub(begun_ns) >= LASTED || until_ns.saturating_sub(over_ns) >= LASTED {
            break;
        }
        quick += 1;
        followed_ns = Some(created_ns(task.meta.as_ref()));
    }
    quick
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

    #[test]
    fn quick_ends_in_a_row_are_followed_by_longer_pauses() {
        const S: i64 = SECOND;
        // Tasks of a slot: created, not before, ended, state, spec.
        type Row = (i64, i64, i64, TaskState, u64);
        let (failed, complete, rejected) = (TaskState::Failed, TaskState::Complete, TaskState::Rejected);
        let row = |n: i64| -> Row { (n * S, 0, n * S + 1, failed, 1) };
        let row_of = |count: i64| (0..count).map(row).collect::<Vec<_>>();
        let with = |count: i64, at: usize, changed: Row| {
            let mut rows = row_of(count);
            rows[at] = changed;
            rows
        };
        let table: Vec<(&str, Vec<Row>, i64)> = vec![
            ("the first", row_of(1), 0),
            ("the second", row_of(2), 0),
            ("the third", row_of(3), S / 2),
            ("the fourth", row_of(4), S),
            ("the fifth", row_of(5), 2 * S),
            ("the sixth", row_of(6), 4 * S),
            ("the eighth", row_of(8), 16 * S),
            ("the ninth", row_of(9), 30 * S),
            ("many", row_of(80), 30 * S),
            ("completed ones count", with(3, 1, (S, 0, S + 1, complete, 1)), S / 2),
            ("rejected ones count", with(3, 1, (S, 0, S + 1, rejected, 1)), S / 2),
            ("orphaned ones don't", with(3, 1, (S, 0, S + 1, TaskState::Orphaned, 1)), 0),
            ("nor those of another spec", with(3, 0, (0, 0, 1, failed, 2)), 0),
            ("the newest lasted", vec![row(0), row(1), row(2), (3 * S, 0, 63 * S, failed, 1)], 0),
            ("it almost lasted", vec![row(0), row(1), row(2), (3 * S, 0, 63 * S - 1, failed, 1)], S),
            ("it waited for long and ended at once", vec![row(0), row(1), (2 * S, 32 * S, 63 * S, failed, 1)], S / 2),
            (
                "one before lasted",
                vec![row(0), row(1), (2 * S, 0, 70 * S, failed, 1), (70 * S, 0, 71 * S, failed, 1)],
                0,
            ),
            ("one that was stopped ran in between", vec![row(0), row(1), (90 * S, 0, 91 * S, failed, 1)], 0),
        ];
        for (what, rows, expected) in table {
            let tasks: Vec<_> = rows
                .into_iter()
                .enumerate()
                .map(|(n, (created_ns, not_before_ns, updated_ns, state, spec_version))| {
                    let mut task = Task::clone(&task(&format!("{n:02}"), created_ns, state));
                    task.meta = Some(Meta { created_ns, updated_ns, version: 1 });
                    Arc::new(Task { not_before_ns, spec_version, ..task })
                })
                .collect();
            let ended: Vec<_> = tasks.iter().collect();
            let pause = |delay_ns| {
                let policy = RestartPolicy { delay_ns: Some(delay_ns), ..RestartPolicy::default() };
                delay(Some(&policy), ended[ended.len() - 1], &ended)
            };
            assert_eq!(pause(0), Some(expected), "{what}");
            assert_eq!(pause(3 * S), Some(expected.max(3 * S)), "{what}, with a longer policy");
        }
    }
}
