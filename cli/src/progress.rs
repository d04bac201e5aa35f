//! Waiting for a service to become what its spec says, and showing how far it is. [`judge`] decides, purely; the loop
//! around it polls and prints.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::client::{Client, escape};
use crate::output;
use crate::value::At;

/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(200);

/// How many tasks are shown one by one on a terminal.
const MAX_BARS: i64 = 20;

/// How many different errors are told of one service.
const MAX_ERRORS: usize = 20;

/// How long a service has to stay up, unless its spec says otherwise.
const MONITOR_NS: i64 = 5_000_000_000;

/// What a look at a service shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not there yet.
    Going {
        /// Tasks that run.
        running: i64,
        /// Tasks that shall run.
        wanted: i64,
        /// Each task that is wanted, by slot.
        tasks: Vec<Bar>,
        /// Whether it is being rolled back, and why.
        rollback: Option<String>,
    },
    /// As wanted at this moment, and whether an update is still under way.
    There {
        /// Tasks that run.
        wanted: i64,
        /// Whether the managers say that the update is over.
        over: bool,
        /// Why it was rolled back, when it was.
        rollback: Option<String>,
    },
    /// It stopped on the way.
    Stopped(String),
}

/// What is shown of one task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bar {
    /// Slot, or place in the list.
    slot: i64,
    /// State.
    state: String,
    /// Why it, or the one before it in its slot, does not run; empty: nothing is known.
    error: String,
}

impl Bar {
    fn new(index: usize, task: &Value, all: &[Value]) -> Self {
        let slot = task.number("Slot");
        let state = task.text("Status.State").to_owned();
        // The one that failed is on its way out already; its successor waits and knows nothing.
        let same =
            |other: &&Value| other.number("Slot") == slot && (slot != 0 || other.text("NodeID") == task.text("NodeID"));
        let latest = all.iter().filter(same).filter(|t| !t.text("Status.Err").is_empty());
        let latest = latest.max_by_key(|t| t.text("Status.Timestamp")).map_or("", |t| t.text("Status.Err"));
        let error = match task.text("Status.Err") {
            "" if state != "running" => latest,
            own => own,
        };
        Self { slot: if slot == 0 { index as i64 + 1 } else { slot }, state, error: error.to_owned() }
    }

    fn text(&self) -> String {
        if self.error.is_empty() { self.state.clone() } else { format!("{}: {}", self.state, self.error) }
    }
}

/// Judges a service by itself, its tasks and the nodes that there are.
pub(crate) fn judge(service: &Value, tasks: &[Value], nodes: &[Value]) -> Verdict {
    let status = service.text("UpdateStatus.State");
    let message = service.text("UpdateStatus.Message");
    let mut rollback = None;
    match status {
        "paused" => return Verdict::Stopped(format!("service update paused: {message}")),
        "rollback_paused" => return Verdict::Stopped(format!("service rollback paused: {message}")),
        "rollback_started" | "rollback_completed" => rollback = Some(message.to_owned()),
        _ => {}
    }
    let up = |node: &str| nodes.iter().find(|n| n.text("ID") == node).is_none_or(|n| n.text("Status.State") != "down");
    let live: Vec<&Value> = tasks
        .iter()
        .filter(|task| {
            task.text("DesiredState") == "running" && (task.text("NodeID").is_empty() || up(task.text("NodeID")))
        })
        .collect();
    let running = live.iter().filter(|task| task.text("Status.State") == "running").count() as i64;
    let wanted = match service.at("Spec.Mode.Replicated") {
        Value::Null => live.len() as i64,
        replicated => replicated.number("Replicas"),
    };
    // A global service whose tasks the managers have not made yet is not there.
    let made = !service.at("Spec.Mode.Global").is_object() || !live.is_empty() || nodes.is_empty();
    let updating = matches!(status, "updating" | "rollback_started");
    if running == wanted && live.len() as i64 == wanted && made && !updating {
        let over = matches!(status, "completed" | "rollback_completed");
        return Verdict::There { wanted, over, rollback };
    }
    let mut shown: Vec<Bar> = live.iter().enumerate().map(|(index, task)| Bar::new(index, task, tasks)).collect();
    shown.sort();
    Verdict::Going { running, wanted, tasks: shown, rollback }
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A service as it was asked for; one that goes back to what it was has failed.
    Change,
    /// The service as it was before.
    Rollback,
}

/// Waits until the service has converged. An interrupted wait leaves the work going on.
pub(crate) async fn wait(client: &Client, id: &str, quiet: bool, asked: Asked) -> Result<()> {
    let mut screen = Screen::new(quiet);
    tokio::select! {
        done = converge(client, id, &mut screen, asked) => done,
        _ = tokio::signal::ctrl_c() => {
            screen.clear();
            bail!("interrupted; the operation continues in background: \"skep service ps {id}\" shows its progress")
        }
    }
}

async fn converge(client: &Client, id: &str, screen: &mut Screen, asked: Asked) -> Result<()> {
    let wanted = json!({ "service": [id], "_up-to-date": ["true"] }).to_string();
    let mut there_since: Option<Instant> = None;
    // Which task failed the managers say only while they roll back.
    let mut cause: Option<String> = None;
    loop {
        let service = client.get(&format!("/services/{}", escape(id)), &[]).await?;
        let tasks = client.get("/tasks", &[("filters", &wanted)]).await?;
        let nodes = client.get("/nodes", &[]).await?;
        let list = |value: Value| value.as_array().cloned().unwrap_or_default();
        match judge(&service, &list(tasks), &list(nodes)) {
            Verdict::Stopped(why) => {
                screen.clear();
                bail!(why);
            }
            Verdict::Going { running, wanted, tasks, rollback } => {
                there_since = None;
                cause = rollback.or(cause);
                screen.errors(wanted, &tasks)?;
                screen.rollback(cause.as_deref())?;
                screen.show(screen.count(running, wanted, &tasks), String::new())?;
            }
            Verdict::There { wanted, over, rollback } => {
                screen.rollback(cause.as_deref())?;
                let count = screen.count(wanted, wanted, &[]);
                let monitor = match service.number("Spec.UpdateConfig.Monitor") {
                    0 => MONITOR_NS,
                    ns => ns,
                };
                let monitor = Duration::from_nanos(u64::try_from(monitor).unwrap_or(0));
                let stable = there_since.get_or_insert_with(Instant::now).elapsed();
                // The managers have watched an update themselves.
                if over || stable >= monitor {
                    screen.show(count, "verify: Service converged\n".to_owned())?;
                    return match rollback.filter(|_| service.text("UpdateStatus.State") == "rollback_completed") {
                        Some(end) if asked == Asked::Change => bail!("service rolled back: {}", cause.unwrap_or(end)),
                        _ => Ok(()),
                    };
                }
                let left = (monitor - stable).as_secs() + 1;
                let verify = format!("verify: Waiting {left} seconds to verify that tasks are stable...\n");
                screen.show(count, verify)?;
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// How far it is as a whole. More than are wanted run while a service shrinks.
fn overall(running: i64, wanted: i64) -> String {
    let rest = match running - wanted {
        more if more > 0 => format!(", {more} to be removed"),
        _ => String::new(),
    };
    format!("overall progress: {} out of {wanted} tasks{rest}\n", running.min(wanted))
}

/// A line for each error that was not told yet.
fn news(told: &mut BTreeSet<String>, wanted: i64, tasks: &[Bar]) -> Vec<String> {
    let failing = tasks.iter().filter(|bar| !bar.error.is_empty());
    let new = failing.filter(|bar| told.len() < MAX_ERRORS && told.insert(bar.error.clone()));
    new.map(|bar| format!("{}/{wanted}: {}\n", bar.slot, bar.error)).collect()
}

/// What was shown last; on a terminal it is overwritten, elsewhere only changes are printed.
struct Screen {
    quiet: bool,
    terminal: bool,
    count: String,
    verify: String,
    /// Errors that were printed, where there are no bars to show them: at most [`MAX_ERRORS`].
    told: BTreeSet<String>,
    /// Why it is rolled back, as that was printed.
    rollback: String,
}

impl Screen {
    fn new(quiet: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self {
            quiet,
            terminal,
            count: String::new(),
            verify: String::new(),
            told: BTreeSet::new(),
            rollback: String::new(),
        }
    }

    fn count(&self, running: i64, wanted: i64, tasks: &[Bar]) -> String {
        let mut text = overall(running, wanted);
        if self.terminal && wanted <= MAX_BARS {
            for bar in tasks {
                text.push_str(&format!("{}/{wanted}: {}\n", bar.slot, bar.text()));
            }
        }
        text
    }

    /// Prints once, and where it stays, that and why the service is rolled back.
    fn rollback(&mut self, why: Option<&str>) -> Result<()> {
        let Some(why) = why.filter(|why| !self.quiet && !why.is_empty() && *why != self.rollback) else {
            return Ok(());
        };
        self.clear();
        (self.count, self.verify) = (String::new(), String::new());
        self.rollback = why.to_owned();
        output::raw(format!("rollback: {why}\n").as_bytes())
    }

    /// Prints each error once where no bars show it.
    fn errors(&mut self, wanted: i64, tasks: &[Bar]) -> Result<()> {
        if self.quiet || (self.terminal && wanted <= MAX_BARS) {
            return Ok(());
        }
        for line in news(&mut self.told, wanted, tasks) {
            output::raw(line.as_bytes())?;
        }
        Ok(())
    }

    fn show(&mut self, count: String, verify: String) -> Result<()> {
        let (new_count, new_verify) = (count != self.count, verify != self.verify);
        if self.quiet || !(new_count || new_verify) {
            return Ok(());
        }
        self.clear();
        let mut text = String::new();
        if new_count || self.terminal {
            text.push_str(&count);
        }
        if new_verify || self.terminal {
            text.push_str(&verify);
        }
        (self.count, self.verify) = (count, verify);
        output::raw(text.as_bytes())
    }

    /// Takes off a terminal what was shown.
    fn clear(&mut self) {
        let lines = self.count.lines().count() + self.verify.lines().count();
        if self.terminal && lines > 0 {
            // Up by so many lines, then erase to the end of the screen. If that fails the next print says so.
            let _ = write!(std::io::stdout().lock(), "\x1b[{lines}A\x1b[0J");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(slot: i64, state: &str) -> Value {
        json!({ "Slot": slot, "DesiredState": "running", "Status": { "State": state }, "NodeID": "n" })
    }

    fn replicated(replicas: i64, status: &str) -> Value {
        json!({ "Spec": { "Mode": { "Replicated": { "Replicas": replicas } } },
                "UpdateStatus": { "State": status, "Message": "why" } })
    }

    #[test]
    fn a_replicated_service_is_there_when_all_its_tasks_run() {
        let nodes = [json!({ "ID": "n", "Status": { "State": "ready" } })];
        let judged = |replicas, status: &str, tasks: &[Value]| judge(&replicated(replicas, status), tasks, &nodes);
        assert!(matches!(judged(2, "", &[]), Verdict::Going { running: 0, wanted: 2, .. }));
        let half = [task(1, "running"), task(2, "starting")];
        let Verdict::Going { running, tasks, .. } = judged(2, "", &half) else { unreachable!() };
        let shown: Vec<_> = tasks.iter().map(|bar| (bar.slot, bar.text())).collect();
        assert_eq!((running, shown), (1, vec![(1, "running".to_owned()), (2, "starting".to_owned())]));
        let full = [task(1, "running"), task(2, "running")];
        assert_eq!(judged(2, "", &full), Verdict::There { wanted: 2, over: false, rollback: None });
        assert!(matches!(judged(2, "updating", &full), Verdict::Going { .. }));
        assert!(matches!(judged(2, "completed", &full), Verdict::There { over: true, .. }));
        assert!(matches!(judged(1, "", &full), Verdict::Going { .. }), "one task too many still runs");
        assert_eq!(judged(2, "paused", &full), Verdict::Stopped("service update paused: why".to_owned()));
        assert!(matches!(judged(2, "rollback_completed", &full), Verdict::There { rollback: Some(_), .. }));
    }

    #[test]
    fn more_tasks_than_wanted_are_no_progress() {
        assert_eq!(overall(1, 3), "overall progress: 1 out of 3 tasks\n");
        assert_eq!(overall(5, 3), "overall progress: 3 out of 3 tasks, 2 to be removed\n");
    }

    #[test]
    fn the_error_of_a_task_is_told_once_though_its_successor_knows_nothing_of_it() {
        let failed = |slot: i64, time: &str, error: &str| {
            json!({ "Slot": slot, "DesiredState": "shutdown", "NodeID": "n",
                    "Status": { "State": "rejected", "Timestamp": time, "Err": error } })
        };
        let tasks = [
            failed(1, "2026-01-01T00:00:01Z", "older"),
            failed(1, "2026-01-01T00:00:02Z", "no such image: x"),
            task(1, "preparing"),
            failed(2, "2026-01-01T00:00:02Z", "no such image: x"),
            task(2, "preparing"),
            failed(3, "2026-01-01T00:00:02Z", "long over"),
            task(3, "running"),
        ];
        let nodes = [json!({ "ID": "n", "Status": { "State": "ready" } })];
        let Verdict::Going { tasks, .. } = judge(&replicated(3, ""), &tasks, &nodes) else { unreachable!() };
        let shown: Vec<_> = tasks.iter().map(Bar::text).collect();
        assert_eq!(shown, ["preparing: no such image: x", "preparing: no such image: x", "running"]);
        let mut told = BTreeSet::new();
        assert_eq!(news(&mut told, 3, &tasks), ["1/3: no such image: x\n"]);
        assert_eq!(news(&mut told, 3, &tasks), Vec::<String>::new());
    }

    #[test]
    fn tasks_of_dead_nodes_do_not_count() {
        let nodes = [json!({ "ID": "n", "Status": { "State": "down" } })];
        assert!(matches!(
            judge(&replicated(1, ""), &[task(1, "running")], &nodes),
            Verdict::Going { running: 0, wanted: 1, .. }
        ));
    }

    #[test]
    fn a_global_service_waits_for_its_tasks_to_be_made() {
        let service = json!({ "Spec": { "Mode": { "Global": {} } } });
        let nodes = [json!({ "ID": "n", "Status": { "State": "ready" } })];
        assert!(matches!(judge(&service, &[], &nodes), Verdict::Going { .. }));
        assert!(matches!(judge(&service, &[task(0, "running")], &nodes), Verdict::There { wanted: 1, .. }));
    }
}
