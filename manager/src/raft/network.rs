//! The client side: what this manager says to the others.
//!
//! Each peer has up to three connections (signs of life and votes; the log; snapshots), so that a large transfer delays
//! no heartbeat. The caller's [`Dialer`] makes them, with its own TLS and connect timeout. A connection on which nothing
//! has succeeded for a while is dialled anew: one that died silently (a partition, a lost peer) would otherwise be waited
//! for until its TCP timers expire. Nothing here waits without a deadline.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use skep_proto::v1;
use skep_proto::v1::raft_client::RaftClient;
use tonic::transport::Channel;

use super::Dialer;
use super::config::MESSAGE_BYTES;
use super::snapshot::SnapshotData;
use super::types::{Node, Snapshot, TypeConfig, Vote};
use super::wire;

type RpcResult<T> = Result<T, RPCError<TypeConfig>>;

/// Silence on a connection, with calls under way, after which it is dialled anew.
const STALE: Duration = Duration::from_millis(400);
/// Calls without a success before a silent connection is given up.
const STALE_CALLS: u64 = 3;
/// Wait for an answer on an append stream that has requests under way.
const STALL: Duration = Duration::from_secs(1);
/// Time for a snapshot, plus [`SNAPSHOT_PER_MIB`] for each MiB.
const SNAPSHOT: Duration = Duration::from_secs(60);
const SNAPSHOT_PER_MIB: Duration = Duration::from_secs(1);
/// Connections kept; more only come with addresses that are no longer in use.
const CONNECTIONS: usize = 128;

/// Metadata key of a refusal: the member that was meant has forced a new cluster and goes on alone.
pub(crate) const SUPERSEDED: &str = "skep-superseded";

/// Which of a peer's connections.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Lane {
    Control,
    Log,
    Snapshot,
}

/// How a connection has fared.
pub(crate) struct Health {
    born: Instant,
    /// Milliseconds after `born`.
    success: AtomicU64,
    calls: AtomicU64,
}

impl Health {
    fn millis(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn success(&self) {
        self.success.store(self.millis(), Ordering::Relaxed);
        self.calls.store(0, Ordering::Relaxed);
    }

    /// A call hung for so long that one is enough.
    fn hung(&self) {
        self.calls.store(STALE_CALLS, Ordering::Relaxed);
    }

    fn stale(&self) -> bool {
        let silent = self.millis().saturating_sub(self.success.load(Ordering::Relaxed));
        self.calls.load(Ordering::Relaxed) >= STALE_CALLS && u128::from(silent) > STALE.as_millis()
    }
}

/// The connections to all peers.
pub(crate) struct Pool {
    dialer: Arc<dyn Dialer>,
    open: Mutex<HashMap<(String, Lane), Connection>>,
    superseded: AtomicU8,
    refusal: Mutex<Option<(Instant, String)>>,
}

/// How long the word of a peer counts that it does not take this node for a manager of the group. One without a leader
/// asks for votes more than once in this time.
const REFUSAL_COUNTS: Duration = Duration::from_secs(10);

/// What became of another manager's word that it has gone on without this one: nothing was said, it was, it is true of
/// this group, it is of no account.
const UNHEARD: u8 = 0;
const HEARD: u8 = 1;
const ENDED: u8 = 2;
const DISREGARDED: u8 = 3;

type Connection = (Channel, Arc<Health>);

impl Pool {
    pub(crate) fn new(dialer: Arc<dyn Dialer>) -> Self {
        Self { dialer, open: Mutex::new(HashMap::new()), superseded: AtomicU8::new(UNHEARD), refusal: Mutex::new(None) }
    }

    /// Which peer said lately that this node is no manager of the group, and how.
    pub(crate) fn refusal(&self) -> Option<String> {
        let last = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _)| at.elapsed() <= REFUSAL_COUNTS).map(|(_, said)| said.clone())
    }

    fn note_refusal(&self, address: &str, status: &tonic::Status) {
        let said = format!("the manager at {address} says: {}", status.message());
        let mut last = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(at, _)| at.elapsed() > REFUSAL_COUNTS) {
            tracing::warn!(
                peer.address = address,
                error = status.message(),
                "a manager does not take this node for one"
            );
        }
        *last = Some((Instant::now(), said));
    }

    /// Whether a member of this node's group has said that it has gone on without the others, and nothing was done
    /// about it yet.
    pub(crate) fn heard_superseded(&self) -> bool {
        self.superseded.load(Ordering::Relaxed) == HEARD
    }

    /// This node's part is at its end.
    pub(crate) fn superseded(&self) -> bool {
        self.superseded.load(Ordering::Relaxed) == ENDED
    }

    /// Settles for good what that means for this node: its end, or nothing.
    pub(crate) fn settle_superseded(&self, ends: bool) {
        self.superseded.store(if ends { ENDED } else { DISREGARDED }, Ordering::Relaxed);
    }

    /// A client for one call.
    pub(crate) fn client(&self, address: &str, lane: Lane) -> io::Result<(RaftClient<Channel>, Arc<Health>)> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (address.to_owned(), lane);
        if open.get(&slot).is_some_and(|(_, health)| health.stale()) {
            tracing::debug!(peer.address = address, ?lane, "connection dialled anew");
            open.remove(&slot);
        }
        if open.len() >= CONNECTIONS {
            open.clear();
        }
        let (channel, health) = match open.entry(slot) {
            std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => {
                let health = Health { born: Instant::now(), success: AtomicU64::new(0), calls: AtomicU64::new(0) };
                free.insert((self.dialer.channel(address)?, Arc::new(health)))
            }
        };
        health.calls.fetch_add(1, Ordering::Relaxed);
        let client = RaftClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        Ok((client, Arc::clone(health)))
    }
}

/// Makes the clients for the library.
pub(crate) struct Network {
    pub(crate) me: u64,
    pub(crate) pool: Arc<Pool>,
}

/// Speaks to one peer.
pub(crate) struct Peer {
    me: u64,
    target: u64,
    address: String,
    lane: Lane,
    pool: Arc<Pool>,
}

impl Network {
    fn peer(&self, target: u64, node: &Node, lane: Lane) -> Peer {
        Peer { me: self.me, target, address: node.addr.clone(), lane, pool: Arc::clone(&self.pool) }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Node) -> Peer {
        self.peer(target, node, Lane::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Node) -> Peer {
        self.peer(target, node, Lane::Control)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Node) -> Peer {
        self.peer(target, node, Lane::Snapshot)
    }
}

impl Peer {
    fn client(&self, lane: Lane) -> RpcResult<(RaftClient<Channel>, Arc<Health>)> {
        self.pool.client(&self.address, lane).map_err(|e| Unreachable::new(&e).into())
    }

    /// One unary call on the control connection (or the log's, for an append), cut off at the library's limit.
    async fn call<T, F>(
        &self,
        lane: Lane,
        action: RPCTypes,
        option: &RPCOption,
        call: impl FnOnce(RaftClient<Channel>) -> F,
    ) -> RpcResult<T>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let (client, health) = self.client(lane)?;
        let limit = option.hard_ttl();
        match tokio::time::timeout(limit, call(client)).await {
            Ok(Ok(response)) => {
                health.success();
                Ok(response.into_inner())
            }
            Ok(Err(status)) => Err(self.refused(&status)),
            Err(_) => Err(Timeout { action, id: self.me, target: self.target, timeout: limit }.into()),
        }
    }

    /// An answer that is none; one of them may end this node's part in the group.
    fn refused(&self, status: &tonic::Status) -> RPCError<TypeConfig> {
        if status.metadata().contains_key(SUPERSEDED) {
            let noted = self.pool.superseded.compare_exchange(UNHEARD, HEARD, Ordering::Relaxed, Ordering::Relaxed);
            if noted.is_ok() {
                tracing::warn!(
                    peer.id = self.target,
                    peer.address = self.address,
                    "a manager says that it left the group"
                );
            }
        }
        if status.code() == tonic::Code::PermissionDenied {
            self.pool.note_refusal(&self.address, status);
        }
        refused(status)
    }

    fn stalled(&self) -> RPCError<TypeConfig> {
        Timeout { action: RPCTypes::AppendEntries, id: self.me, target: self.target, timeout: STALL }.into()
    }
}

/// A status as the library sorts errors: `Unreachable` makes it wait before it tries again.
fn refused(status: &tonic::Status) -> RPCError<TypeConfig> {
    match status.code() {
        tonic::Code::Unavailable
        | tonic::Code::FailedPrecondition
        | tonic::Code::Unauthenticated
        | tonic::Code::PermissionDenied => Unreachable::from_string(status).into(),
        _ => NetworkError::from_string(status).into(),
    }
}

fn bad(error: &wire::WireError) -> RPCError<TypeConfig> {
    NetworkError::from_string(error).into()
}

fn whole(request: &AppendEntriesRequest<TypeConfig>) -> RpcResult<()> {
    wire::gapless(request.prev_log_id.as_ref().map(|id| id.index), &request.entries).map_err(|e| bad(&e))
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<TypeConfig>> {
        whole(&rpc)?;
        let request = wire::append_to(self.target, &rpc);
        let response = self
            .call(self.lane, RPCTypes::AppendEntries, &option, |mut client| async move { client.append(request).await })
            .await?;
        wire::append_response_of(response).map_err(|e| bad(&e))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, RpcResult<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        if self.lane == Lane::Control {
            // A heartbeat is one request: a plain call is cheaper than a stream.
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let (mut client, health) = self.client(self.lane)?;
            let target = self.target;
            let (sent, torn) = (Arc::default(), Torn::default());
            let requests = requests(target, input, &sent, &torn);
            let opened = tokio::time::timeout(STALL, client.append_stream(requests)).await;
            let responses = match opened {
                Ok(Ok(response)) => response.into_inner(),
                Ok(Err(status)) => return Err(self.refused(&status)),
                Err(_) => {
                    health.hung();
                    return Err(self.stalled());
                }
            };
            let replies = Replies { peer: self, responses, health, sent, received: 0, torn };
            let stream = futures::stream::unfold(Some(replies), |replies| async move {
                let mut replies = replies?;
                let reply = replies.next().await?;
                let more = matches!(reply, Ok(Ok(_)));
                Some((reply, more.then_some(replies)))
            });
            let stream: BoxStream<'s, _> = Box::pin(stream);
            Ok(stream)
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> RpcResult<VoteResponse<TypeConfig>> {
        let request = wire::vote_request_to(self.target, &rpc, false);
        let call = |mut client: RaftClient<Channel>| async move { client.vote(request).await };
        let response = self.call(Lane::Control, RPCTypes::Vote, &option, call).await?;
        wire::vote_response_of(response).map_err(|e| bad(&e))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<TypeConfig>> {
        let request = wire::vote_request_to(self.target, &rpc, true);
        let call = |mut client: RaftClient<Channel>| async move { client.vote(request).await };
        let response = self.call(Lane::Control, RPCTypes::Vote, &option, call).await?;
        wire::vote_response_of(response).map_err(|e| bad(&e))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (mut client, health) = self.client(Lane::Snapshot)?;
        let (chunks, bytes) = chunks(self.target, &vote, snapshot);
        let mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
        let limit = SNAPSHOT.saturating_add(SNAPSHOT_PER_MIB.saturating_mul(mib));
        let sent = tokio::select! {
            closed = cancel => return Err(closed.into()),
            sent = tokio::time::timeout(limit, client.install_snapshot(chunks)) => sent,
        };
        let response = match sent {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(self.refused(&status).into()),
            Err(_) => {
                let action = RPCTypes::InstallSnapshot;
                return Err(Timeout { action, id: self.me, target: self.target, timeout: limit }.into());
            }
        };
        health.success();
        let vote = response.vote.ok_or_else(|| NetworkError::from_string("a snapshot response lacks its vote"))?;
        Ok(SnapshotResponse::new(wire::vote_of(vote)))
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<TransferLeaderResponse<TypeConfig>> {
        let request = wire::transfer_to(&req);
        let call = |mut client: RaftClient<Channel>| async move { client.transfer_leader(request).await };
        let response = self.call(Lane::Control, RPCTypes::TransferLeader, &option, call).await?;
        Ok(wire::transfer_response_of(&req, response))
    }
}

/// Why no more requests of an append stream are sent.
type Torn = Arc<OnceLock<RPCError<TypeConfig>>>;

/// The requests of an append stream as messages, counted in `sent`. One with a hole ends it: told of the error, the
/// library plans anew what this peer needs.
fn requests<S: Stream<Item = AppendEntriesRequest<TypeConfig>>>(
    to: u64,
    input: S,
    sent: &Arc<AtomicU64>,
    torn: &Torn,
) -> impl Stream<Item = v1::RaftAppendRequest> + use<S> {
    let (sent, torn) = (Arc::clone(sent), Arc::clone(torn));
    tokio_stream::StreamExt::map_while(input, move |request| match whole(&request) {
        Ok(()) => {
            sent.fetch_add(1, Ordering::Relaxed);
            Some(wire::append_to(to, &request))
        }
        Err(error) => {
            tracing::warn!(peer.id = to, %error, "append stream ended");
            let _ = torn.set(error);
            None
        }
    })
}

/// The answers of an append stream.
struct Replies<'a> {
    peer: &'a Peer,
    responses: tonic::Streaming<v1::RaftAppendResponse>,
    health: Arc<Health>,
    sent: Arc<AtomicU64>,
    received: u64,
    torn: Torn,
}

impl Replies<'_> {
    async fn next(&mut self) -> Option<RpcResult<StreamAppendResult<TypeConfig>>> {
        loop {
            let waiting = self.sent.load(Ordering::Relaxed) > self.received;
            match tokio::time::timeout(STALL, self.responses.message()).await {
                Ok(Ok(Some(response))) => {
                    self.received += 1;
                    self.health.success();
                    return Some(wire::appended_of(response).map_err(|e| bad(&e)));
                }
                Ok(Ok(None)) => return self.torn.get().cloned().map(Err),
                Ok(Err(status)) => return Some(Err(self.peer.refused(&status))),
                Err(_) if waiting => {
                    self.health.hung();
                    return Some(Err(self.peer.stalled()));
                }
                // Nothing was asked: an idle stream may be silent, unless it is to end.
                Err(_) => {
                    if let Some(error) = self.torn.get() {
                        return Some(Err(error.clone()));
                    }
                }
            }
        }
    }
}

/// A snapshot as messages, read on a blocking thread a little ahead of the connection, and the file's size.
fn chunks(to: u64, vote: &Vote, snapshot: Snapshot) -> (impl Stream<Item = v1::RaftSnapshotChunk> + use<>, u64) {
    use v1::raft_snapshot_chunk::Kind;
    let header =
        v1::RaftSnapshotHeader { to, vote: Some(wire::vote_to(vote)), meta: Some(wire::meta_to(&snapshot.meta)) };
    let file = snapshot.snapshot.0;
    let size = file.size();
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let send = |kind: Kind| sender.blocking_send(v1::RaftSnapshotChunk { kind: Some(kind) }).is_ok();
        if !send(Kind::Header(header)) {
            return;
        }
        let mut frames = file.frames();
        let mut bytes = 0;
        loop {
            match frames.next_frame() {
                Ok(Some(frame)) => {
                    bytes += frame.len() as u64;
                    if !send(Kind::Data(Bytes::from(frame))) {
                        return;
                    }
                }
                Ok(None) => break,
                // Without its end the receiver refuses what it has.
                Err(e) => return tracing::error!(error = %e, "snapshot not sent"),
            }
        }
        send(Kind::End(v1::RaftSnapshotEnd { bytes }));
    });
    (tokio_stream::wrappers::ReceiverStream::new(receiver), size)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::super::types::{Entry, LeaderId, LogId, Payload};
    use super::*;

    #[tokio::test]
    async fn a_request_with_a_hole_ends_the_stream_and_says_why() {
        let id = |index| LogId { leader_id: LeaderId { term: 2, node_id: 1 }, index };
        let request = |prev, index| AppendEntriesRequest {
            vote: Vote::new_committed(2, 1),
            prev_log_id: Some(id(prev)),
            entries: vec![Entry { log_id: id(index), payload: Payload::Blank }],
            leader_commit: None,
        };
        for (input, through, tears) in [
            (vec![request(7, 8), request(8, 9)], 2, false),
            (vec![request(7, 8), request(8, 50), request(50, 51)], 1, true),
        ] {
            let (sent, torn) = (Arc::default(), Torn::default());
            let messages: Vec<_> = requests(4, futures::stream::iter(input), &sent, &torn).collect().await;
            assert_eq!((messages.len(), sent.load(Ordering::Relaxed)), (through, through as u64));
            assert_eq!(torn.get().is_some_and(|error| error.to_string().contains("hole")), tears);
        }
    }
}
