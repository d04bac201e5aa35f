//! The server side: what this manager answers to the others.
//!
//! Mounted behind mutual TLS. Every call says from which member it comes and which one it means: the [`Door`] checks
//! the first against the caller's certificate, [`super::admission`] decides whether that member is listened to, and a
//! call for another member is refused. Every stream that is read has a deadline between messages, and one snapshot is
//! received at a time.

use std::io::Write as _;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _};
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use openraft::type_config::TypeConfigExt as _;
use skep_proto::v1;
use skep_proto::v1::raft_server;
use skep_proto::v1::raft_snapshot_chunk::Kind;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::admission::Own;
use super::error::Error;
use super::network::SUPERSEDED;
use super::snapshot::{CHUNK, FrameWriter, SnapshotData, SnapshotFile};
use super::types::{LogId, Snapshot, TypeConfig, Vote};
use super::{Door, Inner, wire};

/// Wait for the next part of a snapshot.
const CHUNK_WAIT: Duration = Duration::from_secs(30);
/// Largest snapshot that is accepted, compressed.
const MAX_SNAPSHOT: u64 = 16 << 30;
/// Time for a removal that another manager asks for.
const REMOVE_WAIT: Duration = Duration::from_secs(10);

/// Answers the other managers; made by [`super::Raft::service`].
#[derive(Clone)]
pub struct Service {
    pub(crate) inner: Arc<Inner>,
    pub(crate) door: Arc<dyn Door>,
}

type Answer<T> = Result<Response<T>, Status>;
type AppendReplies = Pin<Box<dyn Stream<Item = Result<v1::RaftAppendResponse, Status>> + Send>>;

impl Service {
    /// Refuses a call that means another node: addresses get reused, logs must not mix.
    fn meant(&self, to: u64) -> Result<(), Status> {
        if self.inner.ending.is_cancelled() {
            return Err(stopped("it is being shut down"));
        }
        let me = self.inner.config.node;
        if to == me {
            return Ok(());
        }
        let mut status =
            Status::failed_precondition(format!("this is manager {me:x}, not {to:x}: the address has changed hands"));
        if self.inner.config.former.contains(&to) {
            status.metadata_mut().insert(SUPERSEDED, tonic::metadata::MetadataValue::from_static("1"));
        }
        Err(status)
    }

    /// Refuses a caller that is not the member it says it is, or is none.
    fn member(&self, caller: &Extensions, from: u64) -> Result<(), Status> {
        self.door.admit(caller, from)?;
        if self.own(|own| own.is_member(from)) { Ok(()) } else { Err(stranger(from)) }
    }

    /// Refuses a caller that is not the member it says it is, or must not ask for votes or lead any more.
    fn listen(&self, caller: &Extensions, from: u64, last: Option<LogId>) -> Result<(), Status> {
        self.door.admit(caller, from)?;
        if self.own(|own| own.listens_to(from, last)) { Ok(()) } else { Err(stranger(from)) }
    }

    fn append_from(&self, caller: &Extensions, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), Status> {
        let sent = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        self.listen(caller, request.vote.leader_id.node_id, sent.max(request.leader_commit))
    }

    /// What becomes of a request. The core answers once everything that it was sent before is durable, to a sign of life
    /// too; but that asks for no more than whether this manager follows the leader, and a slow disk must not pass for a
    /// dead manager. It is answered as soon as the core has seen it, if the leader's vote is durable.
    ///
    /// Such an answer must not be read as a word about the log: leaders send entries, and learn from answers what a
    /// manager has, in streams only (see `Peer::stream_append`).
    async fn appended(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<TypeConfig>, Status> {
        let (arrived, vote) = (TypeConfig::now(), request.vote);
        let sign_of_life = request.entries.is_empty();
        let mut answer = pin!(self.inner.core.append_entries(request));
        if sign_of_life {
            let (seen, mut see) = tokio::sync::oneshot::channel();
            // The core takes this up after the request.
            let look = self.inner.core.external_request(move |state| {
                let renewed = state.vote_last_modified().is_some_and(|renewed| renewed >= arrived);
                seen.send(renewed && *state.vote_ref() == vote).ok();
            });
            let mut look = pin!(async {
                look.await.ok();
                (&mut see).await.unwrap_or(false)
            });
            tokio::select! {
                biased;
                answer = &mut answer => return answer.map_err(stopped),
                follows = &mut look => {
                    if follows && self.inner.log.mark().vote == Some(vote) {
                        // A refusal seldom waits for the disk: if there is one, it has come by now.
                        let answer = (&mut answer).now_or_never();
                        return answer.unwrap_or(Ok(AppendEntriesResponse::Success)).map_err(stopped);
                    }
                }
            }
        }
        answer.await.map_err(stopped)
    }

    fn own<T>(&self, judge: impl FnOnce(&Own<'_>) -> T) -> T {
        let metrics = self.inner.core.metrics();
        let metrics = metrics.borrow_watched();
        let in_touch = self.inner.leadership.borrow().leader.is_some();
        let mark = self.inner.log.mark();
        let membership = metrics.membership_config.membership();
        judge(&Own { me: self.inner.config.node, membership, last: mark.last, vote: mark.vote, in_touch })
    }
}

fn stranger(id: u64) -> Status {
    Status::permission_denied(format!("manager {id:x} is no member of this group (any more)"))
}

fn bad(error: wire::WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the raft engine of this manager has stopped: {error}"))
}

#[tonic::async_trait]
impl raft_server::Raft for Service {
    type AppendStreamStream = AppendReplies;

    async fn append(&self, request: Request<v1::RaftAppendRequest>) -> Answer<v1::RaftAppendResponse> {
        let (_, caller, request) = request.into_parts();
        self.meant(request.to)?;
        let request = wire::append_of(request).map_err(bad)?;
        self.append_from(&caller, &request)?;
        let response = self.appended(request).await?;
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            self.inner.heard.now();
        }
        Ok(Response::new(wire::append_response_to(&response)))
    }

    async fn append_stream(&self, request: Request<Streaming<v1::RaftAppendRequest>>) -> Answer<AppendReplies> {
        let (_, caller, requests) = request.into_parts();
        let refusal = Arc::new(OnceLock::new());
        let (this, refused) = (self.clone(), Arc::clone(&refusal));
        // An idle stream may be silent for long; the transport's keepalive finds a dead peer.
        let accepted = futures::stream::unfold(requests, move |mut requests| {
            let (this, caller, refused) = (this.clone(), caller.clone(), Arc::clone(&refused));
            async move {
                let request = match requests.message().await {
                    Ok(request) => request?,
                    Err(status) => {
                        tracing::debug!(error = %status, "append stream ended");
                        return None;
                    }
                };
                match this.streamed(&caller, request) {
                    Ok(request) => Some((request, requests)),
                    Err(status) => {
                        tracing::debug!(error = status.message(), "append stream refused");
                        let _ = refused.set(status);
                        None
                    }
                }
            }
        });
        let accepted = accepted.take_until(self.inner.ending.clone().cancelled_owned());
        let replies = self.inner.core.stream_append(Box::pin(accepted)).map(|reply| match reply {
            Ok(result) => Ok(wire::appended_to(&result)),
            Err(fatal) => Err(stopped(fatal)),
        });
        // Why it ended, after the answers to what was accepted.
        let end = futures::stream::once(async move { refusal.get().cloned() });
        let end = end.filter_map(|refusal| async move { refusal.map(Err) });
        Ok(Response::new(Box::pin(replies.chain(end))))
    }

    async fn vote(&self, request: Request<v1::RaftVoteRequest>) -> Answer<v1::RaftVoteResponse> {
        let (_, caller, request) = request.into_parts();
        self.meant(request.to)?;
        let pre_vote = request.pre_vote;
        let request = wire::vote_request_of(request).map_err(bad)?;
        self.listen(&caller, request.vote.leader_id.node_id, request.last_log_id)?;
        let response =
            if pre_vote { self.inner.core.pre_vote(request).await } else { self.inner.core.vote(request).await };
        Ok(Response::new(wire::vote_response_to(&response.map_err(stopped)?)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::RaftSnapshotChunk>>,
    ) -> Answer<v1::RaftSnapshotResponse> {
        let _one = self
            .inner
            .incoming
            .try_acquire()
            .map_err(|_| Status::aborted("another snapshot is being received; send it again later"))?;
        let (_, caller, mut chunks) = request.into_parts();
        let (vote, writer) = self.snapshot_header(&caller, &mut chunks).await?;
        let file = receive(&mut chunks, writer).await?;
        let snapshot = Snapshot { meta: file.meta.clone(), snapshot: SnapshotData(file) };
        let response = self.inner.core.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(v1::RaftSnapshotResponse { vote: Some(wire::vote_to(&response.vote)) }))
    }

    async fn transfer_leader(&self, request: Request<v1::RaftTransferRequest>) -> Answer<v1::RaftTransferResponse> {
        let (_, caller, request) = request.into_parts();
        // Named in it is the next leader: the message goes to every voter.
        self.meant(self.inner.config.node)?;
        let request = wire::transfer_of(request).map_err(bad)?;
        self.listen(&caller, request.from_leader().leader_id.node_id, request.last_log_id().copied())?;
        let response = self.inner.core.handle_transfer_leader(request).await.map_err(stopped)?;
        Ok(Response::new(wire::transfer_response_to(&response)))
    }

    async fn read_index(&self, request: Request<v1::RaftReadIndexRequest>) -> Answer<v1::RaftReadIndexResponse> {
        let (_, caller, request) = request.into_parts();
        self.meant(request.to)?;
        self.member(&caller, request.from)?;
        let linearizer = self.inner.core.get_read_linearizer(ReadPolicy::ReadIndex).await;
        let linearizer = linearizer.map_err(|e| Status::unavailable(e.to_string()))?;
        let id = Some(wire::log_id_to(linearizer.read_log_id().log_id()));
        Ok(Response::new(v1::RaftReadIndexResponse { id }))
    }

    async fn probe(&self, request: Request<v1::RaftProbeRequest>) -> Answer<v1::RaftProbeResponse> {
        let (_, caller, request) = request.into_parts();
        self.door.admit(&caller, request.from)?;
        self.meant(request.to)?;
        Ok(Response::new(v1::RaftProbeResponse {}))
    }

    async fn remove_member(
        &self,
        request: Request<v1::RaftRemoveMemberRequest>,
    ) -> Answer<v1::RaftRemoveMemberResponse> {
        let (_, caller, request) = request.into_parts();
        self.meant(request.to)?;
        self.member(&caller, request.from)?;
        match self.inner.remove_other(request.id, REMOVE_WAIT).await {
            Ok(()) => Ok(Response::new(v1::RaftRemoveMemberResponse {})),
            Err(e @ Error::NotLeader { .. }) => Err(Status::unavailable(e.to_string())),
            Err(e) => Err(Status::failed_precondition(e.to_string())),
        }
    }
}

impl Service {
    fn streamed(
        &self,
        caller: &Extensions,
        request: v1::RaftAppendRequest,
    ) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
        self.meant(request.to)?;
        let request = wire::append_of(request).map_err(bad)?;
        self.append_from(caller, &request)?;
        Ok(request)
    }

    async fn snapshot_header(
        &self,
        caller: &Extensions,
        chunks: &mut Streaming<v1::RaftSnapshotChunk>,
    ) -> Result<(Vote, FrameWriter), Status> {
        let Some(Kind::Header(header)) = next(chunks).await? else {
            return Err(Status::invalid_argument("a snapshot starts with its header"));
        };
        self.meant(header.to)?;
        let vote = header.vote.ok_or_else(|| Status::invalid_argument("a snapshot header lacks its vote"))?;
        let meta = header.meta.ok_or_else(|| Status::invalid_argument("a snapshot header lacks its position"))?;
        let meta = wire::meta_of(meta).map_err(bad)?;
        self.listen(caller, vote.node, meta.last_log_id)?;
        let snapshots = Arc::clone(&self.inner.snapshots);
        let writer = blocking(move || snapshots.writer(&meta)).await?;
        Ok((wire::vote_of(vote), writer))
    }
}

/// Reads the data chunks and the end into a complete file, or removes what came.
async fn receive(
    chunks: &mut Streaming<v1::RaftSnapshotChunk>,
    mut writer: FrameWriter,
) -> Result<Arc<SnapshotFile>, Status> {
    let mut bytes = 0;
    loop {
        match next(chunks).await? {
            Some(Kind::Data(data)) => {
                bytes += data.len() as u64;
                if data.len() > CHUNK || bytes > MAX_SNAPSHOT {
                    return Err(Status::out_of_range("the snapshot or a chunk of it is too large"));
                }
                writer = blocking(move || writer.write_all(&data).map(|()| writer)).await?;
            }
            Some(Kind::End(end)) if end.bytes == bytes => return blocking(move || writer.finish()).await,
            Some(_) | None => return Err(Status::data_loss("the snapshot ended early")),
        }
    }
}

async fn next(chunks: &mut Streaming<v1::RaftSnapshotChunk>) -> Result<Option<Kind>, Status> {
    match tokio::time::timeout(CHUNK_WAIT, chunks.message()).await {
        Ok(message) => Ok(message?.and_then(|chunk| chunk.kind)),
        Err(_) => Err(Status::deadline_exceeded("no part of the snapshot came for a while")),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))?;
    done.map_err(|e| Status::internal(format!("the snapshot cannot be stored: {e}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use raft_server::Raft as _;

    use super::super::types::{Entry, LeaderId, Payload};
    use super::super::{Config, Dialer, Raft, SnapshotFn, StateMachine};
    use super::*;

    struct Nothing;

    impl StateMachine for Nothing {
        fn apply(&self, _: u64, _: &[u8]) -> Vec<u8> {
            Vec::new()
        }
        fn snapshot(&self) -> SnapshotFn {
            Box::new(|_| Ok(()))
        }
        fn restore(&self, _: &mut dyn std::io::Read) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Dialer for Nothing {
        fn channel(&self, _: &str) -> std::io::Result<tonic::transport::Channel> {
            Err(std::io::Error::other("nobody is there"))
        }
    }

    impl Door for Nothing {
        fn admit(&self, _: &Extensions, _: u64) -> Result<(), Status> {
            Ok(())
        }
    }

    const LEADER: u64 = 2;

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term, node_id: LEADER }, index }
    }

    async fn soon<T>(answer: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(10), answer).await.unwrap()
    }

    #[tokio::test]
    async fn a_sign_of_life_is_answered_while_the_disk_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path(), 1, "127.0.0.1:1", [5; 32]);
        let raft = Raft::open(config, Arc::new(Nothing), Arc::new(Nothing)).await.unwrap();
        let service = Service { inner: Arc::clone(&raft.inner), door: Arc::new(Nothing) };
        let send = |term, prev: Option<LogId>, new: Option<LogId>| {
            let entries = new.map(|log_id| Entry { log_id, payload: Payload::Blank }).into_iter().collect();
            let vote = Vote::new_committed(term, LEADER);
            let request = AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit: None };
            let service = service.clone();
            async move {
                let answer = service.append(Request::new(wire::append_to(1, &request))).await.unwrap();
                wire::append_response_of(answer.into_inner()).unwrap()
            }
        };
        assert!(soon(send(3, None, Some(id(3, 0)))).await.is_success());

        let hung = raft.inner.log.hang().await.unwrap();
        let mut write = pin!(send(3, Some(id(3, 0)), Some(id(3, 1))));
        assert!((&mut write).now_or_never().is_none());
        assert!(soon(send(3, Some(id(3, 0)), None)).await.is_success());
        assert_eq!(raft.inner.log.mark().last, Some(id(3, 1)), "the write came first");
        // What a refusal is stays one.
        assert!(soon(send(3, Some(id(3, 7)), None)).await.is_conflict());
        assert!((&mut write).now_or_never().is_none(), "it is not durable");
        // A new leader is acknowledged when its vote can't be forgotten any more.
        let mut next = pin!(send(4, Some(id(3, 0)), None));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut next).await;
        assert!(early.is_err(), "{early:?}");

        drop(hung);
        assert!(soon(next).await.is_success());
        assert!(soon(write).await.is_success());
        raft.shutdown().await;
    }
}
