//! What only the leader does: run the plans (`skep-plan`, pure) against the newest state and propose what they say.
//!
//! Level-triggered: a wake-up carries nothing, every round reads everything again. Starts and stops with leadership;
//! whatever a former leader left half done, the next round finds in the state.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use skep_plan::Inputs;
use skep_proto::pace::Pace;
use skep_proto::v1::{Node, ObjectKind, Role};
use tokio_util::sync::CancellationToken;

use crate::control::{Control, now_ns};
use crate::peers::remove_member;
use crate::store;

/// Changes that come this close together are looked at once, where a look costs little.
const GATHER: Duration = Duration::from_millis(2);
/// A round happens at least this often: silent nodes make no noise.
const AT_LEAST: Duration = Duration::from_millis(250);
/// A rest that takes so much longer than it should shows that this process, or its machine, stood still.
const STOOD_STILL: Duration = Duration::from_secs(1);
/// Leadership that could not be confirmed is asked for again after this.
const CONFIRM_AGAIN: Duration = Duration::from_millis(20);
/// Managers that are to be demoted are looked for at least this often.
const DEMOTIONS: Duration = Duration::from_secs(1);
/// A demotion that was refused is tried again after the first of these, then after twice as long, up to the second: what
/// is in its way is a manager that is away, and that may last.
const DEMOTE_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long the proposals of one round may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Runs the loops whenever this manager leads, until told to stop.
pub(crate) async fn run(control: Control, stop: CancellationToken) {
    let mut leadership = control.raft.leadership();
    loop {
        tokio::select! {
            led = leadership.wait_for(|l| l.is_self) => if led.is_err() { return },
            () = stop.cancelled() => return,
        }
        let term = leadership.borrow().term;
        tracing::info!(raft.term = term, "leadership begins");
        tokio::select! {
            () = lead(&control) => {}
            _ = leadership.wait_for(|l| !l.is_self) => {}
            () = stop.cancelled() => return,
        }
        tracing::info!(raft.term = term, "leadership ends");
    }
}

async fn lead(control: &Control) {
    // Decide nothing before everything that is committed is applied here.
    while let Err(error) = control.raft.read_barrier(DEADLINE).await {
        tracing::debug!(error = %error, "leadership is not confirmed yet");
        // It may fail at once, as when the engine has ended: no reason to turn in circles.
        tokio::time::sleep(CONFIRM_AGAIN).await;
    }
    control.liveness.reset(Instant::now());
    tokio::join!(rounds(control), demotions(control));
}

/// Takes managers whose role was taken away out of the group. Beside the rounds: it may wait for a member to catch up.
async fn demotions(control: &Control) {
    let mut applied = control.store.applied();
    let mut refused = Refused::default();
    loop {
        applied.borrow_and_update();
        let view = control.store.view();
        let wanted: Vec<&str> = demoted(&view).map(|node| node.id.as_str()).collect();
        refused.retain(&wanted);
        let now = Instant::now();
        for id in wanted {
            if !refused.is_due(id, now) {
                continue;
            }
            if let Err(status) = remove_member(control, id).await {
                let again = refused.note(id, Instant::now());
                let error = status.message();
                tracing::warn!(node.id = id, error, again = ?again, "the manager could not be demoted yet");
            }
        }
        tokio::select! {
            _ = applied.changed() => {}
            () = tokio::time::sleep(DEMOTIONS) => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Managers whose role was taken away and who are still in the group.
fn demoted(view: &store::View) -> impl Iterator<Item = &Node> {
    let is_worker = |node: &Node| node.spec.as_ref().is_some_and(|s| s.role() == Role::Worker);
    view.state.nodes().map(AsRef::as_ref).filter(move |node: &&Node| node.manager.is_some() && is_worker(node))
}

/// Demotions that were refused: when each is due again, and the pause before that.
#[derive(Debug, Default)]
struct Refused(BTreeMap<String, (Instant, Duration)>);

impl Refused {
    /// Forgets those that are not wanted any more.
    fn retain(&mut self, wanted: &[&str]) {
        self.0.retain(|id, _| wanted.contains(&id.as_str()));
    }

    fn is_due(&self, id: &str, now: Instant) -> bool {
        self.0.get(id).is_none_or(|(due, _)| *due <= now)
    }

    /// One more refusal; returns the pause.
    fn note(&mut self, id: &str, now: Instant) -> Duration {
        let (first, longest) = DEMOTE_AGAIN;
        let pause = self.0.get(id).map_or(first, |(_, pause)| (*pause * 2).min(longest));
        self.0.insert(id.to_owned(), (now + pause, pause));
        pause
    }
}

async fn rounds(control: &Control) {
    let mut applied = control.store.applied();
    let mut beats = control.liveness.changed();
    let mut pace = Pace::default();
    loop {
        let begun = Instant::now();
        applied.borrow_and_update();
        beats.borrow_and_update();
        let wake = match round(control).await {
            Ok(wake) => wake,
            Err(error) => {
                // No quorum, or leadership is about to end; either shows elsewhere too.
                tracing::debug!(error = %error, "a round of planning was not accepted");
                AT_LEAST
            }
        };
        let rest = Instant::now();
        pace.turned(begun, rest);
        tokio::select! {
            _ = applied.changed() => {}
            _ = beats.changed() => {}
            () = tokio::time::sleep(wake.min(AT_LEAST)) => {}
        }
        tokio::time::sleep_until(pace.next(Instant::now()).into()).await;
        if rest.elapsed() > AT_LEAST + STOOD_STILL {
            tracing::warn!(for_ms = rest.elapsed().as_millis(), "this manager stood still; nodes are given time anew");
            control.liveness.pardon(Instant::now());
        }
    }
}

/// One round: returns when the next one is due at the latest.
async fn round(control: &Control) -> Result<Duration, store::Error> {
    let view = control.store.view();
    let state = &view.state;
    let now = now_ns();
    control.liveness.retain(|id| state.node(id).is_some());
    let silence = control.liveness.silence(Instant::now(), state.nodes().map(|n| n.id.as_str()));
    let inputs = Inputs {
        acknowledged: control.liveness.acknowledged(),
        silence_ns: silence
            .into_iter()
            .map(|(id, s)| (id, skep_proto::time::duration_ns(s)))
            .collect::<BTreeMap<_, _>>(),
        left: control.liveness.left(),
    };
    let plan = {
        let view = view.clone();
        // Planning a big cluster takes a while; the other tasks of this thread must go on.
        tokio::task::spawn_blocking(move || skep_plan::plan(&view.state, now, &inputs, &mut skep_proto::id::new)).await
    };
    let plan = match plan {
        Ok(plan) => plan,
        Err(panic) => {
            tracing::error!(error = %panic, "planning failed; nothing is changed until the state does");
            return Ok(AT_LEAST);
        }
    };
    if !plan.actions.is_empty() {
        for refusal in store::propose_plan(&control.raft, now, plan.actions, DEADLINE).await? {
            let kind = crate::control::word(ObjectKind::try_from(refusal.kind).unwrap_or_default());
            tracing::debug!(
                object.kind = kind,
                object.id = refusal.id,
                why = refusal.message,
                "left out; planned anew"
            );
        }
    }
    let wake = plan.next_wake_ns.map_or(AT_LEAST, |at| skep_proto::time::duration(at.saturating_sub(now)));
    Ok(wake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_demotion_comes_back_later_each_time_and_is_forgotten_when_it_is_not_wanted() {
        let mut refused = Refused::default();
        let start = Instant::now();
        assert!(refused.is_due("a", start));
        let pauses: Vec<u64> = (0..7).map(|_| refused.note("a", start).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert!(!refused.is_due("a", start + Duration::from_secs(29)));
        assert!(refused.is_due("a", start + Duration::from_secs(30)));
        assert!(refused.is_due("b", start));
        refused.retain(&["a"]);
        assert!(!refused.is_due("a", start));
        refused.retain(&[]);
        assert!(refused.is_due("a", start));
    }
}
