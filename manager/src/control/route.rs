//! Which manager answers a call: the leader; whoever else is asked forwards, waits out an election, and tries again as
//! long as the deadline lasts. Trying again is safe: creations carry the id that the first manager chose, updates name
//! the version they were made from. Calls that only read the state are answered by whoever is asked. When there has been
//! no leader for some seconds, there won't be one soon, and the caller is told.

use std::future::Future;
use std::time::{Duration, Instant};

use skep_proto::v1::control_client::ControlClient;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::{CALL_DEADLINE, Control, errors};
use crate::raft::Leadership;

/// Metadata key that counts how often a call was forwarded.
const HOPS: &str = "skep-hops";

/// Two managers that each believe the other leads must not play ping-pong for ever.
const MAX_HOPS: u32 = 3;

/// How long a call is tried again after a leader has said that it has no quorum: an election takes less.
const LEADERLESS: Duration = Duration::from_secs(3);

/// How long the leader is given for one attempt before the next one is tried.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Marks a call that comes from the Engine API of this very node.
#[derive(Debug, Clone, Copy)]
pub struct InProcess;

/// Refuses everybody but managers and this node itself.
pub(super) fn authorise<T>(control: &Control, request: &Request<T>) -> Result<(), Status> {
    if request.extensions().get::<InProcess>().is_some() {
        return Ok(());
    }
    control.require_current_manager(request).map(|_| ())
}

/// How often the call was forwarded already.
pub(super) fn hops<T>(request: &Request<T>) -> u32 {
    request.metadata().get(HOPS).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// The call as it goes to the next manager.
pub(super) fn forwarded<T>(message: T, hops: u32) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(HOPS, (hops + 1).into());
    request.set_timeout(ATTEMPT);
    request
}

/// Gives a creation its id, so that doing it again is the same creation.
pub(super) fn identify(id: &mut String) {
    if id.is_empty() {
        *id = skep_proto::id::new();
    }
}

/// Where the call goes next.
pub(super) enum Target {
    /// This manager leads.
    Here,
    /// Another one does.
    Leader(ControlClient<Channel>),
}

/// The attempts of one call.
pub(super) struct Router<'a> {
    control: &'a Control,
    hops: u32,
    begun: Instant,
    until: Instant,
    last: Option<Status>,
}

impl<'a> Router<'a> {
    pub(super) fn new(control: &'a Control, hops: u32) -> Self {
        let begun = Instant::now();
        Self { control, hops, begun, until: begun + CALL_DEADLINE, last: None }
    }

    /// Waits for a leader and says where it is; an error once the deadline has passed.
    pub(super) async fn next(&mut self) -> Result<Target, Status> {
        if self.hops >= MAX_HOPS {
            return Err(Status::unavailable("the managers do not agree on a leader yet; try again"));
        }
        let mut leadership = self.control.raft.leadership();
        let known = tokio::select! {
            biased;
            known = leadership.wait_for(|l| l.is_self || l.leader.is_some()) => Some(known.map(|found| found.clone())),
            () = self.control.raft.leaderless() => None,
            () = tokio::time::sleep_until(self.until.into()) => None,
        };
        let Leadership { leader, is_self, .. } = match known {
            Some(Ok(found)) => found,
            Some(Err(_)) => return Err(Status::unavailable("this manager is shutting down")),
            None => return Err(self.exhausted()),
        };
        if is_self {
            return Ok(Target::Here);
        }
        let Some(leader) = leader else { return Err(self.exhausted()) };
        let channel = self
            .control
            .line
            .to(&leader.address)
            .map_err(|e| Status::unavailable(format!("the leader at {} can't be dialled: {e}", leader.address)))?;
        Ok(Target::Leader(ControlClient::new(channel).max_decoding_message_size(crate::MAX_MESSAGE)))
    }

    /// Awaits one attempt at the leader. `None` means: try again.
    pub(super) async fn attempt<T>(
        &mut self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Option<Result<Response<T>, Status>> {
        let mut leadership = self.control.raft.leadership();
        let asked = leadership.borrow_and_update().leader.clone();
        let answer = tokio::select! {
            answer = call => answer,
            // The leader that was asked is none any more: its answer may never come.
            _ = leadership.wait_for(|l| l.leader != asked) => {
                self.control.line.cut();
                self.last = Some(Status::unavailable("the leader changed while the call was on its way"));
                return None;
            }
        };
        if answer.as_ref().is_err_and(|status| is_of_the_line(status.code())) {
            self.control.line.cut();
        }
        self.settle(answer, &mut leadership).await
    }

    /// Takes what this manager answered itself, as the leader. `None` means: try again. It may have lost its office since
    /// it was asked, and then nothing was done.
    pub(super) async fn answered<T>(&mut self, answer: Result<T, Status>) -> Option<Result<Response<T>, Status>> {
        let mut leadership = self.control.raft.leadership();
        self.settle(answer.map(Response::new), &mut leadership).await
    }

    async fn settle<T>(
        &mut self,
        answer: Result<Response<T>, Status>,
        leadership: &mut tokio::sync::watch::Receiver<Leadership>,
    ) -> Option<Result<Response<T>, Status>> {
        match answer {
            Err(status) if is_worth_another(&status, self.begun.elapsed(), Instant::now() < self.until) => {
                self.last = Some(status);
                // A dead leader refuses at once; its successor takes an election to appear.
                let _ = tokio::time::timeout(Duration::from_millis(50), leadership.changed()).await;
                None
            }
            other => Some(other),
        }
    }

    fn exhausted(&self) -> Status {
        let last = self.last.as_ref().filter(|s| !errors::is_leaderless(s));
        self.control.leaderless(last.map(Status::message))
    }
}

/// Whether a failed call may have failed because of the connection or the certificates it was made with.
fn is_of_the_line(code: Code) -> bool {
    use Code::{Cancelled, DeadlineExceeded, Internal, Unauthenticated, Unavailable, Unknown};
    matches!(code, Cancelled | DeadlineExceeded | Internal | Unauthenticated | Unavailable | Unknown)
}

/// Whether a failed attempt did nothing and another one may do better.
fn is_worth_another(status: &Status, elapsed: Duration, in_time: bool) -> bool {
    // A leader that has lost its quorum says so to others sooner than it shows.
    let given_up = errors::is_leaderless(status) && elapsed >= LEADERLESS;
    let lost = status.code() == Code::Unavailable || is_broken_off(status);
    lost && in_time && !given_up
}

/// Whether the connection broke while the call was on its way, as when the leader's process dies.
fn is_broken_off(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::transport::Error>() {
            return status.code() == Code::Unknown;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft;

    #[test]
    fn what_an_election_may_mend_is_tried_again_and_nothing_else_is() {
        let leader = raft::Leader { id: 2, address: "192.0.2.2:2377".into() };
        let waited = Duration::from_secs(1);
        let table = [
            (raft::Error::NotLeader { leader: Some(leader) }, 9, true),
            (raft::Error::NotLeader { leader: None }, 2, true),
            (raft::Error::NotLeader { leader: None }, 3, false),
            (raft::Error::NoQuorum { reachable: 1, needed: 2, voters: 3 }, 1, true),
            (raft::Error::NoQuorum { reachable: 1, needed: 2, voters: 3 }, 4, false),
            (raft::Error::OutcomeUnknown { waited, why: String::new() }, 0, false),
            (raft::Error::LastMember { id: 1 }, 0, false),
            (raft::Error::AddressTaken { address: "192.0.2.1:2377".into(), id: 1 }, 0, false),
        ];
        for (error, seconds, again) in table {
            let status = errors::raft(error);
            assert_eq!(is_worth_another(&status, Duration::from_secs(seconds), true), again, "{seconds} s: {status}");
            assert!(!is_worth_another(&status, Duration::from_secs(seconds), false), "the deadline is over");
        }
    }
}
