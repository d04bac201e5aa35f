//! The brain of a cluster: consensus, the cluster's API, sessions with workers, the certificate authority, and the
//! loops that the leader runs.
//!
//! Decisions are pure and live in `skep-state` and `skep-plan`; this crate reads the world, asks them, and carries the
//! answers out. It knows no worker, no network and no container. Only the daemon calls it.
#![forbid(unsafe_code)]

mod action;
pub mod ca;
pub mod control;
pub mod dispatch;
mod door;
mod forced;
mod intake;
mod leader;
mod line;
pub mod liveness;
pub mod logs;
mod membership;
pub mod peer;
pub mod peers;
pub mod raft;
pub mod store;
#[cfg(test)]
mod testing;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::v1::control_server::ControlServer;
use skep_proto::v1::dispatcher_server::DispatcherServer;
use skep_proto::v1::peers_client::PeersClient;
use skep_proto::v1::peers_server::PeersServer;
use skep_proto::v1::{Action, JoinRaftRequest, LeaveRaftRequest};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use control::Control;
use dispatch::{Dispatcher, DispatcherService, pulse, relay};
use intake::Intake;
use liveness::Liveness;
use peers::PeersService;
use raft::{Dialer, Raft};
use store::Store;

/// Messages of our own calls: an assignment of a big node, a secret, a service list.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// How long the state of a forced cluster may take to be told.
const FORCE_DEADLINE: Duration = Duration::from_secs(10);

/// Managers that one call asks at most, those among them that others have named.
const MAX_ASKED: usize = 32;

/// Why nobody could be asked.
const UNASKED: &str = "no manager's address is known";

/// How long a new manager keeps asking to be taken into the group.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);

/// How long a manager that stops tries to hand leadership over.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(1);

/// What a manager is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its directory: log, votes, snapshots.
    pub dir: PathBuf,
    /// The node's id in the cluster.
    pub node_id: String,
    /// Its number in the consensus group; chosen at random once, never 0.
    pub raft_id: u64,
    /// `host:port` at which the other managers reach it.
    pub address: String,
    /// Numbers that it had before it forced a new cluster.
    pub former_raft_ids: Vec<u64>,
    /// Encrypts what is on disk.
    pub key: [u8; 32],
}

/// Why a manager could not start, join or leave.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Consensus.
    #[error(transparent)]
    Raft(#[from] raft::Error),
    /// The first state was refused.
    #[error("the new cluster's first state was not accepted")]
    FirstState(#[source] store::Error),
    /// The state of a forced cluster still lists other managers.
    #[error("the new cluster was forced, but its state could not be told so; force it again")]
    Forced(#[source] store::Error),
    /// The other managers would not have it.
    #[error("manager {address} did not take this node into the group: {why}")]
    Membership {
        /// Who was asked last.
        address: String,
        /// Its answer.
        why: String,
    },
}

/// One running manager. A handle: clones are the same manager.
#[derive(Debug, Clone)]
pub struct Manager {
    node_id: String,
    raft_id: u64,
    address: String,
    control: Control,
    dispatcher: Arc<Dispatcher>,
    intake: Arc<Intake>,
    raft: Arc<Raft>,
    store: Arc<Store>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Manager {
    /// Opens the state on disk and starts every loop. A manager that is in no group yet waits to be joined.
    pub async fn start(config: Config, dialer: Arc<dyn Dialer>) -> Result<Self, Error> {
        let (store, raft_config) = Self::prepare(&config);
        let raft = Raft::open(raft_config, Arc::clone(&store) as _, Arc::clone(&dialer)).await?;
        Ok(Self::over(config, store, raft, dialer))
    }

    /// Opens the state on disk as that of a new cluster whose only manager is this one, under a number that it did not
    /// have before. Doing it again, after a crash at any point, is harmless.
    ///
    /// # Errors
    /// There is no state, or it can't be written. Afterwards it is as it was, or the cluster is this manager's alone.
    pub async fn force_new_cluster(config: Config, dialer: Arc<dyn Dialer>) -> Result<Self, Error> {
        let (store, raft_config) = Self::prepare(&config);
        let raft = Raft::force_new_cluster(raft_config, Arc::clone(&store) as _, Arc::clone(&dialer)).await?;
        let manager = Self::over(config, store, raft, dialer);
        let told = manager.tell_state().await;
        if told.is_err() {
            manager.shutdown().await;
        }
        told.map(|()| manager)
    }

    /// Has the state say what consensus knows: that there is no other manager.
    async fn tell_state(&self) -> Result<(), Error> {
        let until = tokio::time::Instant::now() + FORCE_DEADLINE;
        self.raft.read_barrier(FORCE_DEADLINE).await?;
        loop {
            let view = self.store.view();
            let actions = forced::sole_manager(&view.state, &self.node_id, self.raft_id, &self.address);
            if actions.is_empty() {
                return Ok(());
            }
            match store::propose(&self.raft, control::now_ns(), actions, FORCE_DEADLINE).await {
                // Somebody else wrote to one of the nodes meanwhile.
                Ok(_) | Err(store::Error::Refused(_)) if tokio::time::Instant::now() < until => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(Error::Forced(error)),
            }
        }
    }

    fn prepare(config: &Config) -> (Arc<Store>, raft::Config) {
        let mut raft_config = raft::Config::new(config.dir.clone(), config.raft_id, config.address.clone(), config.key);
        raft_config.former.clone_from(&config.former_raft_ids);
        (Arc::default(), raft_config)
    }

    /// Starts every loop of a manager.
    fn over(config: Config, store: Arc<Store>, raft: Raft, dialer: Arc<dyn Dialer>) -> Self {
        let raft = Arc::new(raft);
        let liveness = Arc::new(Liveness::default());
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let pulse = pulse::Pulse::default();
        // Not the one of the reports: that is cut whenever one of them fails.
        let line = line::Line::new(Arc::clone(&dialer));
        let control = Control::new(Arc::clone(&raft), Arc::clone(&store), Arc::clone(&liveness), dialer, stop.clone());
        let intake =
            Arc::new(Intake { raft: Arc::clone(&raft), store: Arc::clone(&store), liveness, caught_up: 0.into() });
        let (relay, items) = relay::queue(pulse.clone());
        tasks.spawn(pulse::run(pulse, Arc::clone(&raft), line, Arc::clone(&intake), stop.clone()));
        tasks.spawn(relay::run(items, Arc::clone(&raft), control.line.clone(), Arc::clone(&intake), stop.clone()));
        tasks.spawn(leader::run(control.clone(), stop.clone()));
        let dispatcher = Arc::new(Dispatcher::new(Arc::clone(&store), relay, stop.child_token()));
        Self {
            node_id: config.node_id,
            raft_id: config.raft_id,
            address: config.address,
            control,
            dispatcher,
            intake,
            raft,
            store,
            tasks,
            stop,
        }
    }

    /// Founds a cluster with this manager alone and the given first objects.
    pub async fn bootstrap(&self, first: Vec<Action>) -> Result<(), Error> {
        self.raft.bootstrap().await?;
        let mut leadership = self.raft.leadership();
        let led = tokio::time::timeout(JOIN_DEADLINE, leadership.wait_for(|l| l.is_self)).await;
        if !matches!(led, Ok(Ok(_))) {
            return Err(Error::Membership {
                address: self.address.clone(),
                why: "it did not become leader".to_owned(),
            });
        }
        drop(led);
        store::propose(&self.raft, control::now_ns(), first, JOIN_DEADLINE).await.map(|_| ()).map_err(Error::FirstState)
    }

    /// Asks the managers at the given addresses, one after the other, to be taken into their group. Returns once this
    /// manager votes. Asking again is harmless.
    pub async fn join(&self, managers: &[String]) -> Result<(), Error> {
        let request =
            JoinRaftRequest { node_id: self.node_id.clone(), address: self.address.clone(), raft_id: self.raft_id };
        self.ask_leader(managers, move |mut client| {
            let request = request.clone();
            Box::pin(async move { client.join_raft(request).await.map(|_| ()) })
        })
        .await
    }

    /// Leaves the group in good order; refused when the rest would have no quorum. Asked are the managers that this one
    /// knows, then `others`.
    pub async fn leave(&self, others: &[String]) -> Result<(), Error> {
        self.part(others, false).await
    }

    /// Undoes a join that came to nothing: leaves the group, as far as it was entered, and the list of nodes.
    pub async fn withdraw(&self, others: &[String]) -> Result<(), Error> {
        self.part(others, true).await
    }

    async fn part(&self, others: &[String], withdraw: bool) -> Result<(), Error> {
        let mut managers = self.other_managers();
        // Who withdraws may have been refused because the address is another one's.
        managers.extend(others.iter().filter(|other| withdraw || **other != self.address).cloned());
        managers.sort_unstable();
        managers.dedup();
        let request = LeaveRaftRequest { node_id: self.node_id.clone(), withdraw };
        if self.raft.leadership().borrow().is_self {
            // Hand over first: the one who leads can't take itself out in one step.
            self.raft.transfer_leadership().await?;
        }
        self.ask_leader(&managers, move |mut client| {
            let request = request.clone();
            Box::pin(async move { client.leave_raft(request).await.map(|_| ()) })
        })
        .await
    }

    async fn ask_leader(
        &self,
        managers: &[String],
        call: impl Fn(
            PeersClient<tonic::transport::Channel>,
        ) -> futures::future::BoxFuture<'static, Result<(), tonic::Status>>,
    ) -> Result<(), Error> {
        let mut why = UNASKED.to_owned();
        let mut asked = String::new();
        let mut managers = managers.to_vec();
        let until = tokio::time::Instant::now() + JOIN_DEADLINE;
        while tokio::time::Instant::now() < until {
            let mut leader = None;
            for address in &managers {
                asked.clone_from(address);
                let channel = match self.control.dialer.channel(address) {
                    Ok(channel) => channel,
                    Err(error) => {
                        why = error.to_string();
                        continue;
                    }
                };
                match tokio::time::timeout(JOIN_DEADLINE, call(PeersClient::new(channel))).await {
                    Ok(Ok(())) => return Ok(()),
                    // Not the leader, or an election: the next one may know.
                    Ok(Err(status)) if status.code() == tonic::Code::Unavailable => {
                        leader = leader.or_else(|| peers::leader_of(&status));
                        // What the leader says is worth more.
                        if status.message() != peers::NOT_LEADING || why == UNASKED {
                            status.message().clone_into(&mut why);
                        }
                    }
                    Ok(Err(status)) => {
                        return Err(Error::Membership { address: asked, why: status.message().to_owned() });
                    }
                    Err(_) => "it did not answer".clone_into(&mut why),
                }
            }
            if let Some(leader) = leader
                && !managers.contains(&leader)
                && managers.len() < MAX_ASKED
            {
                managers.push(leader);
                continue;
            }
            if managers.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Err(Error::Membership { address: asked, why })
    }

    /// Addresses of the other managers, as this one knows them.
    pub fn other_managers(&self) -> Vec<String> {
        let view = self.store.view();
        view.state
            .nodes()
            .filter(|n| n.id != self.node_id)
            .filter_map(|n| n.manager.as_ref().map(|m| m.address.clone()))
            .collect()
    }

    /// The cluster's API, for callers in this process.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The state that this manager has applied.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Who leads.
    pub fn raft(&self) -> &Arc<Raft> {
        &self.raft
    }

    /// Every gRPC service of a manager, to be served on 2377/tcp behind mutual TLS.
    pub fn routes(&self) -> Routes {
        let peers = PeersService {
            control: self.control.clone(),
            intake: Arc::clone(&self.intake),
            dispatcher: Arc::clone(&self.dispatcher),
        };
        Routes::new(ControlServer::new(self.control.clone()).max_decoding_message_size(MAX_MESSAGE))
            .add_service(
                DispatcherServer::new(DispatcherService(Arc::clone(&self.dispatcher)))
                    .max_decoding_message_size(MAX_MESSAGE),
            )
            .add_service(PeersServer::new(peers).max_decoding_message_size(MAX_MESSAGE))
            .add_service(self.raft.service(Arc::new(door::Door(Arc::clone(&self.store)))))
            .add_service(ca::service(Arc::new(membership::Members(self.control.clone()))))
    }

    /// Hands leadership over, if it is here and somebody can take it: that takes a fraction of an election's time. Then
    /// stops every loop, ends every session and closes the log. What was acknowledged is on disk.
    pub async fn shutdown(&self) {
        match tokio::time::timeout(HAND_OVER_WITHIN, self.raft.step_down()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = %error, "leadership was not handed over"),
            Err(_) => tracing::debug!(waited = ?HAND_OVER_WITHIN, "leadership was not handed over in time"),
        }
        self.stop.cancel();
        self.dispatcher.shutdown().await;
        self.tasks.close();
        self.tasks.wait().await;
        self.raft.shutdown().await;
    }
}
