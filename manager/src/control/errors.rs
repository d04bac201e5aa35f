//! How failures of the rooms below become answers of the API. Codes: `INVALID_ARGUMENT` bad input, `NOT_FOUND`,
//! `ALREADY_EXISTS` a name or port in use, `ABORTED` a stale version, `FAILED_PRECONDITION` something still in use,
//! `UNAVAILABLE` no leader or no quorum, `DEADLINE_EXCEEDED` nobody knows.

use skep_plan::validate;
use skep_proto::v1::{ObjectKind, RefusalReason};
use skep_state::FindError;
use tonic::{Code, Status};

use crate::{raft, store};

/// What clients know as the sign that there is no leader.
const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more \
                         than half of the managers are online.";

/// Metadata key by which managers tell each other the same.
const LEADERLESS: &str = "skep-leaderless";

/// There is no leader, and has not been one for a while.
pub(crate) fn leaderless(why: Option<&str>) -> Status {
    let why = why.unwrap_or_default();
    // What to do is said in every such answer, and once.
    let text = match (why, why.contains(raft::FORCE)) {
        ("", _) => format!("{NO_LEADER} ({})", raft::FORCE),
        (why, true) => format!("{NO_LEADER} ({why})"),
        (why, false) => format!("{NO_LEADER} ({why}; {})", raft::FORCE),
    };
    let mut status = Status::unavailable(text);
    status.metadata_mut().insert(LEADERLESS, tonic::metadata::MetadataValue::from_static("1"));
    status
}

/// Whether a manager answered that there is no leader.
pub(crate) fn is_leaderless(status: &Status) -> bool {
    status.metadata().contains_key(LEADERLESS)
}

/// A failure of consensus.
pub(crate) fn raft(error: raft::Error) -> Status {
    match &error {
        raft::Error::NotLeader { leader: None } => return leaderless(None),
        raft::Error::NoQuorum { .. } => return leaderless(Some(&error.to_string())),
        _ => {}
    }
    let code = match &error {
        raft::Error::TooLarge { .. } => Code::InvalidArgument,
        // It may have happened: nobody may try it again unseen.
        raft::Error::OutcomeUnknown { .. } => Code::DeadlineExceeded,
        raft::Error::WouldLoseQuorum { .. }
        | raft::Error::LastMember { .. }
        | raft::Error::AddressTaken { .. }
        | raft::Error::NotReached { .. } => Code::FailedPrecondition,
        _ => Code::Unavailable,
    };
    Status::new(code, chain(&error))
}

/// A failed change.
pub(crate) fn store(error: store::Error) -> Status {
    match error {
        store::Error::Refused(refusal) => Status::new(code(refusal.reason()), refusal.message),
        store::Error::Raft(error) => raft(error),
        store::Error::Reply(_) => Status::internal(chain(&error)),
    }
}

/// Input that can't be accepted.
pub(crate) fn invalid(error: validate::Error) -> Status {
    let mut status = Status::new(code(error.reason()), error.to_string());
    if matches!(error, validate::Error::Draining(_)) {
        status.metadata_mut().insert(skep_proto::DRAINING, tonic::metadata::MetadataValue::from_static("1"));
    }
    status
}

fn code(reason: RefusalReason) -> Code {
    match reason {
        RefusalReason::Exists | RefusalReason::NameInUse => Code::AlreadyExists,
        RefusalReason::NotFound => Code::NotFound,
        RefusalReason::StaleVersion => Code::Aborted,
        RefusalReason::InUse => Code::FailedPrecondition,
        RefusalReason::Invalid => Code::InvalidArgument,
        RefusalReason::Unknown => Code::Unknown,
    }
}

/// A reference that names no object, or several.
pub(crate) fn find(kind: ObjectKind, reference: &str, error: &FindError) -> Status {
    let word = word(kind);
    match error {
        FindError::NotFound => {
            let hint = (kind == ObjectKind::Network).then(|| validate::only_overlay(reference)).flatten();
            let hint = hint.map_or(String::new(), |hint| format!(": {hint}"));
            Status::not_found(format!("{word} {reference} not found{hint}"))
        }
        FindError::Ambiguous { candidates } => Status::invalid_argument(format!(
            "{word} {reference} is ambiguous: it fits {}; give more characters of the id",
            candidates.join(", ")
        )),
    }
}

/// An update names the version that it was made from; no object has the version 0, which means a new one.
pub(super) fn versioned(kind: ObjectKind, reference: &str, version: u64) -> Result<(), Status> {
    if version > 0 {
        return Ok(());
    }
    let kind = word(kind);
    let text =
        format!("update out of sequence: {kind} {reference} is not at version 0; read it again and repeat the change");
    Err(Status::aborted(text))
}

/// The word for a kind of object.
pub(crate) fn word(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Cluster => "cluster",
        ObjectKind::Node => "node",
        ObjectKind::Service => "service",
        ObjectKind::Task => "task",
        ObjectKind::Network => "network",
        ObjectKind::Secret => "secret",
        ObjectKind::Config => "config",
    }
}

/// The error and all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_without_a_leader_says_once_what_to_do() {
        let lost = raft::Error::NoQuorum { reachable: 1, needed: 2, voters: 3 };
        let unknown = raft::Error::OutcomeUnknown { waited: std::time::Duration::from_secs(1), why: lost.to_string() };
        for status in [
            raft(raft::Error::NotLeader { leader: None }),
            raft(lost),
            raft(unknown),
            leaderless(None),
            leaderless(Some("2 managers of 3 are needed")),
        ] {
            assert_eq!(status.message().matches("force-new-cluster").count(), 1, "{}", status.message());
        }
    }
}
