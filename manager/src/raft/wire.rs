//! Conversions between our protobuf and the consensus library's values; the same form travels and rests.
//!
//! Reading is strict: a message that lacks what the protocol needs is refused by name, never filled with a default.

use std::collections::{BTreeMap, BTreeSet};

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult};
use openraft::raft::{TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse};
use prost::Message as _;
use skep_proto::v1;

use super::types::{
    Blob, Entry, LeaderId, LogId, Membership, Node, Payload, SnapshotMeta, StoredMembership, TypeConfig, Vote,
};

/// A message that does not say what it has to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a {message} from another manager or from disk lacks its {field}")]
    Missing { message: &'static str, field: &'static str },
    #[error("a {message} does not decode: {source}")]
    Decode { message: &'static str, source: prost::DecodeError },
    #[error("a membership is not usable: {reason}")]
    Membership { reason: String },
    #[error("entries to append leave a hole: entry {found} stands where {expected} belongs")]
    Hole { expected: u64, found: u64 },
}

fn need<T>(value: Option<T>, message: &'static str, field: &'static str) -> Result<T, WireError> {
    value.ok_or(WireError::Missing { message, field })
}

pub(crate) fn log_id_to(id: &LogId) -> v1::RaftLogId {
    v1::RaftLogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(crate) fn log_id_of(id: v1::RaftLogId) -> LogId {
    LogId { leader_id: LeaderId { term: id.term, node_id: id.node }, index: id.index }
}

pub(crate) fn vote_to(vote: &Vote) -> v1::RaftVote {
    v1::RaftVote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn vote_of(vote: v1::RaftVote) -> Vote {
    Vote { leader_id: LeaderId { term: vote.term, node_id: vote.node }, committed: vote.committed }
}

pub(crate) fn membership_to(membership: &Membership) -> v1::RaftMembership {
    v1::RaftMembership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|ids| v1::RaftVoters { ids: ids.iter().copied().collect() })
            .collect(),
        nodes: membership.nodes().map(|(id, node)| v1::RaftNode { id: *id, address: node.addr.clone() }).collect(),
    }
}

pub(crate) fn membership_of(membership: v1::RaftMembership) -> Result<Membership, WireError> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|voters| voters.ids.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Node> =
        membership.nodes.into_iter().map(|node| (node.id, Node { addr: node.address })).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|e| WireError::Membership { reason: e.to_string() })
}

pub(crate) fn meta_to(meta: &SnapshotMeta) -> v1::RaftSnapshotMeta {
    v1::RaftSnapshotMeta {
        last: meta.last_log_id.as_ref().map(log_id_to),
        membership_id: meta.last_membership.log_id().as_ref().map(log_id_to),
        membership: Some(membership_to(meta.last_membership.membership())),
    }
}

pub(crate) fn meta_of(meta: v1::RaftSnapshotMeta) -> Result<SnapshotMeta, WireError> {
    let membership = membership_of(need(meta.membership, "snapshot header", "membership")?)?;
    Ok(SnapshotMeta {
        last_log_id: meta.last.map(log_id_of),
        last_membership: StoredMembership::new(meta.membership_id.map(log_id_of), membership),
    })
}

pub(crate) fn entry_to(entry: &Entry) -> v1::RaftEntry {
    use v1::raft_entry::Payload as Wire;
    let payload = match &entry.payload {
        Payload::Blank => None,
        Payload::Normal(command) => Some(Wire::Command(command.0.clone())),
        Payload::Membership(membership) => Some(Wire::Membership(membership_to(membership))),
    };
    v1::RaftEntry { id: Some(log_id_to(&entry.log_id)), payload }
}

pub(crate) fn entry_of(entry: v1::RaftEntry) -> Result<Entry, WireError> {
    use v1::raft_entry::Payload as Wire;
    let log_id = log_id_of(need(entry.id, "log entry", "id")?);
    let payload = match entry.payload {
        None => Payload::Blank,
        Some(Wire::Command(command)) => Payload::Normal(Blob(command)),
        Some(Wire::Membership(membership)) => Payload::Membership(membership_of(membership)?),
    };
    Ok(Entry { log_id, payload })
}

pub(crate) fn append_to(to: u64, request: &AppendEntriesRequest<TypeConfig>) -> v1::RaftAppendRequest {
    v1::RaftAppendRequest {
        to,
        vote: Some(vote_to(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id_to),
        entries: request.entries.iter().map(entry_to).collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_to),
    }
}

/// Whether entries follow the one at index `prev`, and each other, without a hole.
///
/// The library checks this in debug builds only, and can break it: a stream that is started again with a request from
/// before a purge reads what the purge has left. A follower that appended that would skip commands for ever.
pub(crate) fn gapless(prev: Option<u64>, entries: &[Entry]) -> Result<(), WireError> {
    let first = prev.map_or(0, |prev| prev.saturating_add(1));
    for (n, entry) in (0..).zip(entries) {
        let (expected, found) = (first.saturating_add(n), entry.log_id.index);
        if found != expected {
            return Err(WireError::Hole { expected, found });
        }
    }
    Ok(())
}

pub(crate) fn append_of(request: v1::RaftAppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let entries: Vec<Entry> = request.entries.into_iter().map(entry_of).collect::<Result<_, _>>()?;
    gapless(request.prev.as_ref().map(|id| id.index), &entries)?;
    Ok(AppendEntriesRequest {
        vote: vote_of(need(request.vote, "append request", "vote")?),
        prev_log_id: request.prev.map(log_id_of),
        entries,
        leader_commit: request.leader_commit.map(log_id_of),
    })
}

/// Answer to one request of a stream.
pub(crate) fn appended_to(result: &StreamAppendResult<TypeConfig>) -> v1::RaftAppendResponse {
    use v1::raft_append_response::Outcome;
    let outcome = match result {
        Ok(last) => Outcome::Appended(v1::RaftAppended { last: last.as_ref().map(log_id_to) }),
        Err(StreamAppendError::Conflict(at)) => Outcome::Conflict(v1::RaftConflict { at: Some(log_id_to(at)) }),
        Err(StreamAppendError::HigherVote(vote)) => Outcome::HigherVote(vote_to(vote)),
    };
    v1::RaftAppendResponse { outcome: Some(outcome) }
}

pub(crate) fn appended_of(response: v1::RaftAppendResponse) -> Result<StreamAppendResult<TypeConfig>, WireError> {
    use v1::raft_append_response::Outcome;
    Ok(match need(response.outcome, "append response", "outcome")? {
        Outcome::Appended(appended) => Ok(appended.last.map(log_id_of)),
        Outcome::Conflict(conflict) => {
            Err(StreamAppendError::Conflict(log_id_of(need(conflict.at, "append conflict", "position")?)))
        }
        Outcome::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_of(vote))),
    })
}

/// Answer to a single request: the library keeps no position beside a conflict there.
pub(crate) fn append_response_to(response: &AppendEntriesResponse<TypeConfig>) -> v1::RaftAppendResponse {
    use v1::raft_append_response::Outcome;
    let outcome = match response {
        AppendEntriesResponse::Success => Outcome::Appended(v1::RaftAppended { last: None }),
        AppendEntriesResponse::PartialSuccess(last) => {
            Outcome::Appended(v1::RaftAppended { last: last.as_ref().map(log_id_to) })
        }
        AppendEntriesResponse::Conflict => Outcome::Conflict(v1::RaftConflict { at: None }),
        AppendEntriesResponse::HigherVote(vote) => Outcome::HigherVote(vote_to(vote)),
    };
    v1::RaftAppendResponse { outcome: Some(outcome) }
}

pub(crate) fn append_response_of(
    response: v1::RaftAppendResponse,
) -> Result<AppendEntriesResponse<TypeConfig>, WireError> {
    use v1::raft_append_response::Outcome;
    Ok(match need(response.outcome, "append response", "outcome")? {
        Outcome::Appended(v1::RaftAppended { last: None }) => AppendEntriesResponse::Success,
        Outcome::Appended(appended) => AppendEntriesResponse::PartialSuccess(appended.last.map(log_id_of)),
        Outcome::Conflict(_) => AppendEntriesResponse::Conflict,
        Outcome::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote_of(vote)),
    })
}

pub(crate) fn vote_request_to(to: u64, request: &VoteRequest<TypeConfig>, pre_vote: bool) -> v1::RaftVoteRequest {
    v1::RaftVoteRequest {
        to,
        vote: Some(vote_to(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id_to),
        transfer: request.leadership_transfer,
        pre_vote,
    }
}

pub(crate) fn vote_request_of(request: v1::RaftVoteRequest) -> Result<VoteRequest<TypeConfig>, WireError> {
    let vote = vote_of(need(request.vote, "vote request", "vote")?);
    let mut out = VoteRequest::new(vote, request.last.map(log_id_of));
    out.leadership_transfer = request.transfer;
    Ok(out)
}

pub(crate) fn vote_response_to(response: &VoteResponse<TypeConfig>) -> v1::RaftVoteResponse {
    v1::RaftVoteResponse {
        vote: Some(vote_to(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(log_id_to),
    }
}

pub(crate) fn vote_response_of(response: v1::RaftVoteResponse) -> Result<VoteResponse<TypeConfig>, WireError> {
    let vote = vote_of(need(response.vote, "vote response", "vote")?);
    Ok(VoteResponse::new(vote, response.last.map(log_id_of), response.granted))
}

pub(crate) fn transfer_to(request: &TransferLeaderRequest<TypeConfig>) -> v1::RaftTransferRequest {
    v1::RaftTransferRequest {
        from: Some(vote_to(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(log_id_to),
    }
}

pub(crate) fn transfer_of(request: v1::RaftTransferRequest) -> Result<TransferLeaderRequest<TypeConfig>, WireError> {
    let from = vote_of(need(request.from, "transfer request", "vote")?);
    Ok(TransferLeaderRequest::new(from, request.to, request.last.map(log_id_of)))
}

pub(crate) fn transfer_response_to(response: &TransferLeaderResponse<TypeConfig>) -> v1::RaftTransferResponse {
    use v1::raft_transfer_response::Refusal;
    let refusal = match response {
        Ok(()) => None,
        Err(TransferLeaderError::VoteChanged { actual, .. }) => Some(Refusal::VoteChanged(vote_to(actual))),
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            Some(Refusal::LogBehind(v1::RaftAppended { last: actual.as_ref().map(log_id_to) }))
        }
    };
    v1::RaftTransferResponse { refusal }
}

pub(crate) fn transfer_response_of(
    request: &TransferLeaderRequest<TypeConfig>,
    response: v1::RaftTransferResponse,
) -> TransferLeaderResponse<TypeConfig> {
    use v1::raft_transfer_response::Refusal;
    match response.refusal {
        None => Ok(()),
        Some(Refusal::VoteChanged(actual)) => {
            Err(TransferLeaderError::VoteChanged { expected: *request.from_leader(), actual: vote_of(actual) })
        }
        Some(Refusal::LogBehind(behind)) => Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: behind.last.map(log_id_of),
        }),
    }
}

/// Bytes of an entry as it rests in the log, before encryption.
pub(crate) fn encode_entry(entry: &Entry) -> Vec<u8> {
    entry_to(entry).encode_to_vec()
}

/// The reverse of [`encode_entry`].
pub(crate) fn decode_entry(bytes: Vec<u8>) -> Result<Entry, WireError> {
    let entry = v1::RaftEntry::decode(bytes::Bytes::from(bytes))
        .map_err(|source| WireError::Decode { message: "log entry", source })?;
    entry_of(entry)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id(term: u64, node_id: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term, node_id }, index }
    }

    fn joint() -> Membership {
        let nodes: BTreeMap<u64, Node> = (1..=5).map(|id| (id, Node { addr: format!("10.0.0.{id}:2377") })).collect();
        // Node 5 is a learner.
        Membership::new(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])], nodes).unwrap()
    }

    #[test]
    fn entries_come_back_as_they_were() {
        let payloads = [
            Payload::Blank,
            Payload::Normal(Blob::default()),
            Payload::Normal(Blob(vec![0, 255, 7].into())),
            Payload::Membership(joint()),
            Payload::Membership(Membership::default()),
        ];
        for payload in payloads {
            let entry = Entry { log_id: id(3, u64::MAX, 9), payload };
            assert_eq!(decode_entry(encode_entry(&entry)).unwrap(), entry);
        }
    }

    #[test]
    fn requests_and_answers_come_back_as_they_were() {
        for (prev_log_id, index, leader_commit) in [(None, 0, None), (Some(id(1, 1, 7)), 8, Some(id(1, 1, 0)))] {
            let entries = vec![Entry { log_id: id(2, 1, index), payload: Payload::Normal(Blob(vec![1].into())) }];
            let vote = Vote::new_committed(2, 1);
            let request = AppendEntriesRequest { vote, prev_log_id, entries: entries.clone(), leader_commit };
            let back = append_of(append_to(4, &request)).unwrap();
            assert_eq!((back.vote, back.prev_log_id, back.leader_commit), (vote, prev_log_id, leader_commit));
            assert_eq!(back.entries, entries);
        }
        let replies: [StreamAppendResult<TypeConfig>; 4] = [
            Ok(None),
            Ok(Some(id(1, 2, 0))),
            Err(StreamAppendError::Conflict(id(1, 2, 3))),
            Err(StreamAppendError::HigherVote(Vote::new(9, 3))),
        ];
        for reply in replies {
            assert_eq!(appended_of(appended_to(&reply)).unwrap(), reply);
        }
        let meta = SnapshotMeta {
            last_log_id: Some(id(5, 1, 70)),
            last_membership: StoredMembership::new(Some(id(4, 1, 60)), joint()),
        };
        assert_eq!(meta_of(meta_to(&meta)).unwrap(), meta);
    }

    #[test]
    fn a_request_with_a_hole_is_refused() {
        let table: [(Option<u64>, &[u64], bool); 10] = [
            (None, &[], true),
            (None, &[0, 1], true),
            (None, &[1], false),
            (Some(7), &[], true),
            (Some(7), &[8, 9, 10], true),
            (Some(7), &[9], false),
            (Some(7), &[7, 8], false),
            (Some(7), &[8, 10], false),
            (Some(7), &[8, 8], false),
            (Some(u64::MAX), &[0], false),
        ];
        for (prev, indexes, fits) in table {
            let entry = |index: &u64| Entry { log_id: id(2, 1, *index), payload: Payload::Blank };
            let request = AppendEntriesRequest {
                vote: Vote::new_committed(2, 1),
                prev_log_id: prev.map(|index| id(1, 1, index)),
                entries: indexes.iter().map(entry).collect(),
                leader_commit: None,
            };
            assert_eq!(append_of(append_to(4, &request)).is_ok(), fits, "{indexes:?} after {prev:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = append_of(v1::RaftAppendRequest::default()).unwrap_err().to_string();
        assert!(error.contains("append request") && error.contains("vote"), "{error}");
        let error = entry_of(v1::RaftEntry::default()).unwrap_err().to_string();
        assert!(error.contains("log entry") && error.contains("id"), "{error}");
        assert!(decode_entry(vec![0xff, 0xff, 0xff]).is_err());
        // A voter without an address could never be reached.
        let configs = vec![v1::RaftVoters { ids: vec![1] }];
        assert!(membership_of(v1::RaftMembership { configs, nodes: Vec::new() }).is_err());
    }
}
