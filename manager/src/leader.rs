//! What only the leader does: run the plans (`skep-plan`, pure) against the newest state and propose what they say.
//!
//! Level-triggered: a wake-up carries nothing, every round reads everything again. Starts and stops with leadership;
//! whatever a former leader left half done, the next round finds in the state.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use skep_plan::Inputs;
use skep_proto::v1::{NodeState, ObjectKind, Role};
use tokio_util::sync::CancellationToken;

use crate::control::{Control, now_ns};
use crate::peers::remove_member;
use crate::store;

/// Changes that come this close together are planned for in one round.
const GATHER: Duration = Duration::from_millis(2);
/// A round happens at least this often: silent nodes make no noise.
const AT_LEAST: Duration = Duration::from_millis(250);
/// Leadership that could not be confirmed is asked for again after this.
const CONFIRM_AGAIN: Duration = Duration::from_millis(20);
/// A demotion that was refused is tried again this often.
const DEMOTE_AGAIN: Duration = Duration::from_secs(1);
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
    loop {
        applied.borrow_and_update();
        demote(control, &control.store.view()).await;
        tokio::select! {
            _ = applied.changed() => {}
            () = tokio::time::sleep(DEMOTE_AGAIN) => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

async fn rounds(control: &Control) {
    let mut applied = control.store.applied();
    let mut beats = control.liveness.changed();
    loop {
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
        tokio::select! {
            _ = applied.changed() => {}
            _ = beats.changed() => {}
            () = tokio::time::sleep(wake.min(AT_LEAST)) => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// One round: returns when the next one is due at the latest.
async fn round(control: &Control) -> Result<Duration, store::Error> {
    let view = control.store.view();
    let state = &view.state;
    let now = now_ns();
    let silence = control
        .liveness
        .silence(Instant::now(), state.nodes().map(|n| n.id.clone()).collect::<Vec<_>>().iter().map(String::as_str));
    let inputs = Inputs {
        acknowledged: control.liveness.acknowledged(),
        silence_ns: silence
            .into_iter()
            .map(|(id, s)| (id, skep_proto::time::duration_ns(s)))
            .collect::<BTreeMap<_, _>>(),
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

/// A manager whose role was taken away leaves the group, one a round; a group that would lose its quorum stays as it is.
async fn demote(control: &Control, view: &store::View) {
    let demoted =
        view.state.nodes().find(|n| n.manager.is_some() && n.spec.as_ref().is_some_and(|s| s.role() == Role::Worker));
    let Some(node) = demoted else { return };
    let reachable = node.status.as_ref().map(skep_proto::v1::NodeStatus::state);
    if let Err(status) = remove_member(control, &node.id).await {
        let up = reachable == Some(NodeState::Ready);
        tracing::warn!(
            node.id = node.id,
            node.ready = up,
            error = status.message(),
            "could not demote the manager yet"
        );
    }
}
