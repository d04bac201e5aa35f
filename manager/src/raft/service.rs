//! The server side: what this manager answers to the others.
//!
//! Mounted by the daemon behind mutual TLS that admits managers only; nothing here checks who calls, only whether the
//! caller means this manager. Every stream that is read has a deadline between messages, and one snapshot is received at
//! a time.

use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use openraft::ReadPolicy;
use openraft::raft::AppendEntriesResponse;
use skep_proto::v1;
use skep_proto::v1::raft_server;
use skep_proto::v1::raft_snapshot_chunk::Kind;
use tonic::{Request, Response, Status, Streaming};

use super::Inner;
use super::error::Error;
use super::snapshot::{CHUNK, FrameWriter, SnapshotData, SnapshotFile};
use super::types::{Snapshot, Vote};
use super::wire;

/// Wait for the next part of a snapshot.
const CHUNK_WAIT: Duration = Duration::from_secs(30);
/// Largest snapshot that is accepted, compressed.
const MAX_SNAPSHOT: u64 = 16 << 30;
/// Time for a removal that another manager asks for.
const REMOVE_WAIT: Duration = Duration::from_secs(10);

/// Answers the other managers; made by [`super::Raft::service`].
pub struct Service {
    pub(crate) inner: Arc<Inner>,
}

type Answer<T> = Result<Response<T>, Status>;
type AppendReplies = Pin<Box<dyn Stream<Item = Result<v1::RaftAppendResponse, Status>> + Send>>;

impl Service {
    /// Refuses a call that means another node: addresses get reused, logs must not mix.
    fn meant(&self, to: u64) -> Result<(), Status> {
        let me = self.inner.config.node;
        if to == me {
            return Ok(());
        }
        Err(Status::failed_precondition(format!("this is manager {me:x}, not {to:x}: the address has changed hands")))
    }
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
        let request = request.into_inner();
        self.meant(request.to)?;
        let request = wire::append_of(request).map_err(bad)?;
        let response = self.inner.core.append_entries(request).await.map_err(stopped)?;
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            self.inner.heard.now();
        }
        Ok(Response::new(wire::append_response_to(&response)))
    }

    async fn append_stream(&self, request: Request<Streaming<v1::RaftAppendRequest>>) -> Answer<AppendReplies> {
        let me = self.inner.config.node;
        // An idle stream may be silent for long; the transport's keepalive finds a dead peer.
        let requests = futures::stream::unfold(request.into_inner(), move |mut requests| async move {
            let request = match requests.message().await {
                Ok(request) => request?,
                Err(status) => {
                    tracing::debug!(error = %status, "append stream ended");
                    return None;
                }
            };
            if request.to != me {
                tracing::warn!(node.id = me, to = request.to, "append stream for another manager refused");
                return None;
            }
            match wire::append_of(request) {
                Ok(request) => Some((request, requests)),
                Err(e) => {
                    tracing::warn!(error = %e, "append stream refused");
                    None
                }
            }
        });
        let replies = self.inner.core.stream_append(requests).map(|reply| match reply {
            Ok(result) => Ok(wire::appended_to(&result)),
            Err(fatal) => Err(stopped(fatal)),
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn vote(&self, request: Request<v1::RaftVoteRequest>) -> Answer<v1::RaftVoteResponse> {
        let request = request.into_inner();
        self.meant(request.to)?;
        let pre_vote = request.pre_vote;
        let request = wire::vote_request_of(request).map_err(bad)?;
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
        let mut chunks = request.into_inner();
        let (vote, writer) = self.snapshot_header(&mut chunks).await?;
        let file = receive(&mut chunks, writer).await?;
        let snapshot = Snapshot { meta: file.meta.clone(), snapshot: SnapshotData(file) };
        let response = self.inner.core.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(v1::RaftSnapshotResponse { vote: Some(wire::vote_to(&response.vote)) }))
    }

    async fn transfer_leader(&self, request: Request<v1::RaftTransferRequest>) -> Answer<v1::RaftTransferResponse> {
        let request = wire::transfer_of(request.into_inner()).map_err(bad)?;
        let response = self.inner.core.handle_transfer_leader(request).await.map_err(stopped)?;
        Ok(Response::new(wire::transfer_response_to(&response)))
    }

    async fn read_index(&self, request: Request<v1::RaftReadIndexRequest>) -> Answer<v1::RaftReadIndexResponse> {
        self.meant(request.into_inner().to)?;
        let linearizer = self.inner.core.get_read_linearizer(ReadPolicy::ReadIndex).await;
        let linearizer = linearizer.map_err(|e| Status::unavailable(e.to_string()))?;
        let id = Some(wire::log_id_to(linearizer.read_log_id().log_id()));
        Ok(Response::new(v1::RaftReadIndexResponse { id }))
    }

    async fn remove_member(
        &self,
        request: Request<v1::RaftRemoveMemberRequest>,
    ) -> Answer<v1::RaftRemoveMemberResponse> {
        let request = request.into_inner();
        self.meant(request.to)?;
        match self.inner.remove_other(request.id, REMOVE_WAIT).await {
            Ok(()) => Ok(Response::new(v1::RaftRemoveMemberResponse {})),
            Err(e @ Error::NotLeader { .. }) => Err(Status::unavailable(e.to_string())),
            Err(e) => Err(Status::failed_precondition(e.to_string())),
        }
    }
}

impl Service {
    async fn snapshot_header(
        &self,
        chunks: &mut Streaming<v1::RaftSnapshotChunk>,
    ) -> Result<(Vote, FrameWriter), Status> {
        let Some(Kind::Header(header)) = next(chunks).await? else {
            return Err(Status::invalid_argument("a snapshot starts with its header"));
        };
        self.meant(header.to)?;
        let vote = header.vote.ok_or_else(|| Status::invalid_argument("a snapshot header lacks its vote"))?;
        let meta = header.meta.ok_or_else(|| Status::invalid_argument("a snapshot header lacks its position"))?;
        let meta = wire::meta_of(meta).map_err(bad)?;
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
