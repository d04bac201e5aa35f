//! The consensus room: a replicated log that feeds a state machine given by the caller, in the same order everywhere.
//!
//! Decides who leads, when a command counts as committed (on disk at a quorum), what is kept and what is compacted. It
//! knows nothing of services or tasks: commands and replies are bytes. The engine is openraft; its types do not leave
//! this directory, its serialised form neither travels nor rests anywhere, and everything on disk is encrypted.
//!
//! Called by the manager's control and leader loops (`propose`, `read_barrier`, `leadership`), and by the daemon, which
//! mounts [`Raft::service`] and provides the [`Dialer`].

mod admission;
mod anchor;
mod config;
mod crypt;
mod disk;
mod error;
mod log_store;
mod log_writer;
mod membership;
mod monitor;
mod network;
mod propose;
mod recover;
mod service;
mod snapshot;
mod state_machine;
mod supersede;
#[cfg(test)]
mod tests;
mod types;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::errors::{Fatal, InitializeError, RaftError};
use skep_proto::v1::raft_server::RaftServer;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub use config::Config;
pub(crate) use error::FORCE;
pub use error::{Error, Result};
pub use service::Service;

use crypt::Cipher;
use log_store::{Closer, LogStore};
use monitor::{Heard, Leaderless};
use network::{Network, Pool};
use propose::Limit;
use snapshot::SnapshotStore;
use state_machine::Machine;
use types::{Core, Node, TypeConfig};

/// Encodes a state that was frozen when it was made; runs on a thread of low priority.
pub type SnapshotFn = Box<dyn FnOnce(&mut dyn io::Write) -> io::Result<()> + Send>;

/// Time in which a node alone has to lead.
const SETTLE: Duration = Duration::from_secs(10);
/// Time that ending the engine may take.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// What the log feeds. Calls come one at a time, in the order of the log.
pub trait StateMachine: Send + Sync + 'static {
    /// Applies a committed command and returns the reply for its proposer. Deterministic: every manager gets the same
    /// calls and must end up in the same state; no clock, no randomness. Must not panic: a command it cannot read is
    /// answered with an error reply.
    fn apply(&self, index: u64, command: &[u8]) -> Vec<u8>;

    /// Freezes the state now (cheap) and returns what encodes it later.
    fn snapshot(&self) -> SnapshotFn;

    /// Replaces the state by one that [`StateMachine::snapshot`] encoded, here or on another manager.
    ///
    /// # Errors
    /// An image that does not decode; the old state should be kept. The engine stops with the error.
    fn restore(&self, snapshot: &mut dyn io::Read) -> io::Result<()>;
}

/// Opens connections to other managers.
pub trait Dialer: Send + Sync + 'static {
    /// A channel to `address`, connecting lazily, with a connect timeout (a second or less) and HTTP/2 keepalive. Called
    /// again for the same address when a channel has gone silent.
    ///
    /// # Errors
    /// An address or identity that cannot be used.
    fn channel(&self, address: &str) -> io::Result<Channel>;
}

/// Tells who is at the other end of a call. Asked at every call, so it has to be quick.
pub trait Door: Send + Sync + 'static {
    /// Whether the caller may speak as the member `id`: it holds a manager's certificate, and nothing is known that
    /// contradicts. That a node is a member is decided by the consensus room itself.
    ///
    /// # Errors
    /// The answer for the caller.
    fn admit(&self, caller: &tonic::Extensions, id: u64) -> Result<(), tonic::Status>;
}

/// A manager that leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its id.
    pub id: u64,
    /// Where the other managers reach it.
    pub address: String,
}

/// Who leads, as far as this node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The election period; grows with every election.
    pub term: u64,
    /// The leader; `None` during an election, on a leader that has lost its quorum, and on a follower that has heard
    /// nothing of its leader for [`Config::election_max`] times two.
    pub leader: Option<Leader>,
    /// This node leads and a quorum has confirmed it within the last [`Config::election_max`] times two. Before acting
    /// on the state, a new leader awaits [`Raft::read_barrier`].
    pub is_self: bool,
}

/// A command that every later leader knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place in the log.
    pub index: u64,
    /// What the state machine answered.
    pub reply: Vec<u8>,
}

/// A manager as the membership lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Where the other managers reach it.
    pub address: String,
    /// It counts towards the quorum; a new member does not until it has caught up.
    pub voter: bool,
    /// It leads.
    pub leader: bool,
    /// Age of its last acknowledgement. Known to the leader only; zero for the node itself.
    pub last_ack: Option<Duration>,
    /// It acknowledged lately. Known to the leader only, and to each node of itself.
    pub reachable: Option<bool>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) core: Core,
    pub(crate) log: LogStore,
    pub(crate) snapshots: Arc<SnapshotStore>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) in_flight: Semaphore,
    pub(crate) in_flight_bytes: Semaphore,
    /// Held during a membership change.
    pub(crate) changes: Mutex<()>,
    /// Held while a snapshot is received.
    pub(crate) incoming: Semaphore,
    pub(crate) heard: Heard,
    pub(crate) leaderless: Leaderless,
    /// Cancelled when the engine is about to be ended on purpose: nobody is let in any more.
    pub(crate) ending: CancellationToken,
}

/// One node of the consensus.
pub struct Raft {
    inner: Arc<Inner>,
    /// What shutdown ends: the log's writer and the monitor.
    owned: Mutex<Option<(Closer, JoinHandle<()>)>>,
}

/// Starts consensus on what the stores hold.
fn core(
    id: u64,
    engine: Arc<openraft::Config>,
    network: Network,
    log: LogStore,
    machine: Machine,
) -> BoxFuture<'static, Result<Core, Fatal<TypeConfig>>> {
    Box::pin(Core::new(id, engine, network, log, machine))
}

impl Raft {
    /// Opens the node in `config.dir` and rebuilds the state machine from what is there. A node with an empty directory
    /// waits for [`Raft::bootstrap`] or for a leader that adds it.
    ///
    /// # Errors
    /// `Storage` with the reason: another key, a damaged log or snapshot, a directory in use.
    pub async fn open(config: Config, machine: Arc<dyn StateMachine>, dialer: Arc<dyn Dialer>) -> Result<Self> {
        config.check()?;
        let engine = Arc::new(config.engine()?);
        let (dir, key) = (config.dir.clone(), config.key);
        let opened = tokio::task::spawn_blocking(move || -> Result<_> {
            let cipher = Arc::new(Cipher::new(key).map_err(Error::storage)?);
            let (log, closer) = LogStore::open(&dir, Arc::clone(&cipher)).map_err(Error::storage)?;
            match SnapshotStore::open(dir.join("snapshots"), cipher) {
                Ok(snapshots) => Ok((log, closer, Arc::new(snapshots))),
                Err(e) => {
                    closer.close().ok();
                    Err(Error::storage(e))
                }
            }
        });
        let (log, closer, snapshots) = opened.await.map_err(Error::storage)??;
        let pool = Arc::new(Pool::new(dialer));
        let network = Network { me: config.node, pool: Arc::clone(&pool) };
        let machine = Machine::new(machine, Arc::clone(&snapshots));
        let core = match core(config.node, engine, network, log.clone(), machine).await {
            Ok(core) => core,
            Err(fatal) => {
                close(closer).await.ok();
                return Err(Error::storage(fatal));
            }
        };
        Ok(Self::over(config, core, log, closer, snapshots, pool))
    }

    // Async code is compiled by who awaits it. What is spawned here, and consensus below, is large: neither function is
    // async, so that it is compiled with this crate, and not again with the daemon and with each test program.
    fn over(
        config: Config,
        core: Core,
        log: LogStore,
        closer: Closer,
        snapshots: Arc<SnapshotStore>,
        pool: Arc<Pool>,
    ) -> Self {
        let inner = Arc::new(Inner {
            core,
            log,
            snapshots,
            pool,
            leadership: watch::Sender::new(Leadership::default()),
            in_flight: Semaphore::new(config.max_in_flight),
            in_flight_bytes: Semaphore::new(config.max_in_flight_bytes),
            changes: Mutex::new(()),
            incoming: Semaphore::new(1),
            heard: Heard::default(),
            leaderless: Leaderless::default(),
            ending: CancellationToken::new(),
            config,
        });
        let monitor = tokio::spawn(Arc::clone(&inner).monitor());
        Self { inner, owned: Mutex::new(Some((closer, monitor))) }
    }

    /// Makes this node the first manager of a new cluster and waits until it leads and has committed that.
    ///
    /// # Errors
    /// `AlreadyBootstrapped` if it belongs to a cluster.
    pub async fn bootstrap(&self) -> Result<()> {
        let config = &self.inner.config;
        let members = BTreeMap::from([(config.node, Node { addr: config.address.clone() })]);
        match self.inner.core.initialize(members).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                return Err(Error::AlreadyBootstrapped { id: config.node });
            }
            Err(RaftError::APIError(other)) => return Err(Error::Membership { reason: other.to_string() }),
            Err(RaftError::Fatal(fatal)) => return Err(fatal.into()),
        }
        self.settle().await?;
        self.inner.read_barrier(SETTLE).await.map(|_| ())
    }

    /// Waits until this node, which is alone, leads.
    async fn settle(&self) -> Result<()> {
        let mut leadership = self.inner.leadership.subscribe();
        let led = tokio::time::timeout(SETTLE, leadership.wait_for(|now| now.is_self)).await;
        if matches!(led, Ok(Ok(_))) {
            return Ok(());
        }
        self.inner.running()?;
        Err(Error::NotLeader { leader: None })
    }

    /// Commits a command and returns what the state machine answered on this node. Waits for an election or a lost
    /// quorum to pass while `within` lasts.
    ///
    /// # Errors
    /// `NotLeader`, `NoQuorum`, `TooLarge`, `Timeout`: nothing was done. `OutcomeUnknown`: it may still be committed.
    /// `Stopped`: this node's engine has ended.
    pub async fn propose(&self, command: Vec<u8>, within: Duration) -> Result<Committed> {
        self.inner.propose(command, within).await
    }

    /// Waits until this node, leader or follower, has applied everything acknowledged anywhere before the call: a read
    /// of the state machine afterwards is linearizable. Returns the index that has been applied.
    ///
    /// # Errors
    /// `NotLeader` (none is known), `NoQuorum`, `Timeout`, `Stopped`.
    pub async fn read_barrier(&self, within: Duration) -> Result<u64> {
        self.inner.read_barrier(within).await
    }

    /// Returns once no leader has been known for [`Config::leaderless`], at once if that is so already: whoever waits for
    /// one had better say so to those who wait for him.
    pub async fn leaderless(&self) {
        self.inner.leaderless().await;
    }

    /// Who leads, as it changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// Adds a manager or changes its address: sends it the log, then gives it a vote. Leader only; repeating it is
    /// harmless. Takes [`Config::change_limit`] at most, as do the other changes of members and leaders.
    ///
    /// # Errors
    /// `NotReached`, `NotCaughtUp` (it is taken out again), `AddressTaken`, and those of [`Raft::propose`].
    pub async fn add_member(&self, id: u64, address: &str) -> Result<()> {
        self.inner.add_member(id, address, self.inner.config.change_limit).await
    }

    /// Removes a manager. Leader only; a leader that removes itself hands leadership over first and has its successor
    /// do it.
    ///
    /// # Errors
    /// `WouldLoseQuorum`, `LastMember`, `UnknownMember`, `Transfer`, and those of [`Raft::propose`].
    pub async fn remove_member(&self, id: u64) -> Result<()> {
        self.inner.remove_member(id, self.inner.config.change_limit).await
    }

    /// This manager's own number in the group.
    pub fn id(&self) -> u64 {
        self.inner.config.node
    }

    /// The managers, as this node knows them.
    pub fn members(&self) -> Vec<Member> {
        self.inner.members()
    }

    /// Whether a manager acknowledged lately; a follower knows it of itself and of the leader only.
    pub fn reachable(&self, id: u64) -> bool {
        let metrics = self.inner.metrics();
        let leads = self.inner.leadership.borrow().leader.as_ref().is_some_and(|leader| leader.id == id);
        leads || self.inner.reachable(&metrics, id)
    }

    /// Whether those could decide that remain after manager `id` and `others`, which are on their way out already. To be
    /// asked on the leader: it alone knows who is reachable.
    ///
    /// # Errors
    /// `WouldLoseQuorum`, `LastMember`.
    pub async fn enough_without(&self, id: u64, others: &std::collections::BTreeSet<u64>) -> Result<()> {
        self.inner.enough_without(id, others).await
    }

    /// Hands leadership to the manager that is closest behind and returns it.
    ///
    /// # Errors
    /// `Transfer` if nobody can take over or does, `NotLeader`.
    pub async fn transfer_leadership(&self) -> Result<Leader> {
        self.inner.hand_over(None, &Limit::new(self.inner.config.change_limit)).await
    }

    /// Hands leadership to the given manager.
    ///
    /// # Errors
    /// `Transfer` if it is no voter, is not reachable or does not take over; `NotLeader`.
    pub async fn transfer_leadership_to(&self, id: u64) -> Result<()> {
        self.inner.hand_over(Some(id), &Limit::new(self.inner.config.change_limit)).await.map(|_| ())
    }

    /// Gives up leadership, to whoever is closest behind; nothing to do for a follower.
    ///
    /// # Errors
    /// `Transfer` if nobody can take over or does.
    pub async fn step_down(&self) -> Result<()> {
        if !self.inner.leadership.borrow().is_self {
            return Ok(());
        }
        self.transfer_leadership().await.map(|_| ())
    }

    /// The gRPC service that the other managers call, behind a door.
    pub fn service(&self, door: Arc<dyn Door>) -> RaftServer<Service> {
        RaftServer::new(Service { inner: Arc::clone(&self.inner), door })
            .max_decoding_message_size(config::MESSAGE_BYTES)
            .max_encoding_message_size(config::MESSAGE_BYTES)
    }

    /// Why the engine has ended, if it has: a failed disk, a broken invariant.
    pub fn failure(&self) -> Option<Error> {
        self.inner.running().err()
    }

    /// `Removed` if another manager said in the last seconds that this node is none of the group's. One that was removed
    /// while it was away hears of it in no other way: nobody sends it the log. Without meaning while there is a leader.
    pub fn removal(&self) -> Option<Error> {
        self.inner.pool.refusal().map(|said| Error::Removed { said })
    }

    /// Ends the engine and closes the files; services that are still mounted answer `unavailable` from then on, and so
    /// does everything else here. Does not hand leadership over: call [`Raft::step_down`] before. Calling it again does
    /// nothing. What was acknowledged is on disk whatever happens here, so a failure is logged only.
    pub async fn shutdown(&self) {
        let Some((closer, monitor)) = self.owned.lock().await.take() else { return };
        self.inner.in_flight.close();
        self.inner.ending.cancel();
        monitor.abort();
        match tokio::time::timeout(SHUTDOWN, self.inner.core.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::error!(error = %e, "raft engine did not end in order"),
            Err(_) => tracing::error!(waited = ?SHUTDOWN, "raft engine did not end"),
        }
        self.inner.nobody_leads();
        if let Err(e) = close(closer).await {
            tracing::error!(error = %e, "raft log did not close in order");
        }
    }
}

impl Drop for Raft {
    fn drop(&mut self) {
        // Without a shutdown the engine ends when the last service that uses it is gone.
        if let Some((_, monitor)) = self.owned.get_mut().take() {
            monitor.abort();
        }
    }
}

impl fmt::Debug for Raft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raft").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

async fn close(closer: Closer) -> Result<()> {
    tokio::task::spawn_blocking(move || closer.close()).await.map_err(Error::storage)?.map_err(Error::storage)
}
