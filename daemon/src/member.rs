//! A node that is in a swarm: its identity, its worker, and its manager while it has that role.
//!
//! Decides one thing: whether a manager runs here, from the role that the managers want (`NodeAssignment`). Everything
//! else is started here and stopped here, in order.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use skep_manager::Manager;
use skep_net_plan::Underlay;
use skep_proto::v1::{Action, Role};
use skep_runtime::Runtime;
use skep_worker::Worker;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::identity::{self, Dialer, Holder, Serving};
use crate::machine::Machine;
use crate::membership::{self, Membership};

/// VXLAN's port unless the cluster says otherwise.
const VXLAN_PORT: u16 = 4789;
/// How long connecting to a manager may take.
const DIAL_WITHIN: Duration = Duration::from_secs(1);
/// How long the tasks of a node that leaves may take to end.
const LEAVE_WITHIN: Duration = Duration::from_secs(30);
/// How long a manager may take to hear that the node leaves.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
/// How long a certificate for a new role may take.
const CERTIFICATE_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait before a change of role is tried again: at first, and, doubled each time, at most. What is in its way
/// is a manager that is away.
const ROLE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long a manager that does not join after all may take to tell the others.
const UNDO_WITHIN: Duration = Duration::from_secs(5);
/// Said of a join that failed: nothing of it is left in the swarm.
#[derive(Debug, thiserror::Error)]
#[error("the swarm does not list it")]
pub(crate) struct Withdrawn;

/// Why a change of role ended early.
const STOPPED: &str = "this node is about to stop or leave";
/// How often a manager looks whether it is in the group.
const LEADER_KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// How long a node that leaves waits for its demotion.
const DEMOTED_WITHIN: Duration = Duration::from_secs(10);
/// How often a node that a manager does not know asks whether it was removed.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// What a member is made of.
pub(crate) struct Parts {
    pub(crate) config: Arc<Config>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) images: Arc<skep_image::Store>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) observer: Arc<dyn skep_worker::Observer>,
    /// Hears that the swarm has removed this node.
    pub(crate) removed: watch::Sender<Option<Removal>>,
}

/// The swarm has removed a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this node was removed from the swarm and runs no tasks any more ({why}); use \"docker swarm leave --force\" and \
     join it again"
)]
pub(crate) struct Removal {
    /// Which one: this node may have joined again since.
    pub(crate) node_id: String,
    /// A manager's words.
    pub(crate) why: String,
}

/// How the manager of a member begins.
pub(crate) enum Beginning {
    /// It founds a cluster with these first objects.
    Found(Vec<Action>),
    /// New in the swarm, it asks to be taken into the group.
    Join,
    /// A worker until now, it asks to be taken into the group.
    Promote,
    /// It goes on with what is on disk.
    Resume,
    /// It goes on with what is on disk, as the only manager of a new cluster.
    Force,
}

/// A running member.
pub(crate) struct Member {
    identity: Holder,
    membership: RwLock<Membership>,
    config: Arc<Config>,
    worker: Worker,
    manager: RwLock<Option<Running>>,
    removed: watch::Sender<Option<Removal>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A manager with the server in front of it.
#[derive(Clone)]
struct Running {
    manager: Manager,
    stop: CancellationToken,
    server: TaskTracker,
}

impl Member {
    /// Starts everything that a member is.
    pub(crate) async fn start(
        parts: Parts,
        identity: Holder,
        membership: Membership,
        listener: Option<TcpListener>,
        beginning: Beginning,
    ) -> Result<Arc<Self>> {
        let gateway = parts.config.gateway_subnet.parse().context("gateway-subnet")?;
        let subject = identity.current().subject.clone();
        let managers = known_managers(&membership, subject.role);
        let joined = matches!(beginning, Beginning::Join);
        let stop = CancellationToken::new();
        let running = match subject.role {
            Role::Manager => {
                let start = start_manager(&parts.config, &identity, &membership, listener, beginning, &stop);
                Some(start.await?)
            }
            Role::Worker => None,
        };
        let worker_config = skep_worker::Config {
            node_id: subject.node_id,
            run_dir: parts.config.run_dir.clone(),
            netns_dir: parts.config.run_dir.join("net").join("netns"),
            underlay: Underlay { address: membership.addresses.data_path, port: VXLAN_PORT, mtu: 0 },
            gateway,
            resolvers: parts.machine.resolvers.clone(),
            search: parts.machine.search.clone(),
            description: skep_proto::v1::NodeDescription {
                root_ca_pem: identity.current().root_pem().to_owned(),
                ..parts.machine.description(&parts.config, membership.addresses.data_path)
            },
            managers,
        };
        let rooms = skep_worker::Rooms {
            images: parts.images,
            runtime: parts.runtime,
            net: skep_worker::netdrv::Config::new(parts.config.run_dir.join("net")),
            observer: parts.observer,
        };
        let worker = match Worker::start(worker_config, rooms, Arc::new(Dial(Dialer::new(identity.clone())))) {
            Ok(worker) => worker,
            Err(error) => {
                // A voter that vanishes would count against the others' quorum for ever.
                let mut error = anyhow::Error::from(error);
                if let Some(running) = running {
                    if joined {
                        error = withdraw(&running.manager, &[], error).await;
                    }
                    running.shutdown().await;
                }
                return Err(error);
            }
        };
        let member = Arc::new(Self {
            identity,
            membership: RwLock::new(membership),
            config: parts.config,
            worker,
            manager: RwLock::new(running),
            removed: parts.removed,
            stop,
            tasks: TaskTracker::new(),
        });
        member.spawn_keepers();
        Ok(member)
    }

    /// The tasks that keep a member what it should be: fresh certificate, right role, known managers.
    fn spawn_keepers(self: &Arc<Self>) {
        // A change of role is not cut off anywhere: what it has started would go on without an owner.
        self.tasks.spawn(Arc::clone(self).keep_role());
        let keepers: [futures::future::BoxFuture<'static, ()>; 4] = [
            Box::pin(Arc::clone(self).keep_admitted()),
            Box::pin(Arc::clone(self).ask_when_unknown()),
            Box::pin(Arc::clone(self).keep_certificate()),
            Box::pin(Arc::clone(self).keep_managers()),
        ];
        for keeper in keepers {
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                tokio::select! { () = keeper => {}, () = stop.cancelled() => {} }
            });
        }
    }

    async fn keep_certificate(self: Arc<Self>) {
        let managers = self.worker.managers();
        let alone = || self.manager().and_then(|manager| sole_authority(&manager));
        let managers = move || managers.borrow().clone();
        if let Some(why) = identity::renew(self.identity.clone(), managers, alone, self.stop.clone()).await {
            self.removed.send_replace(Some(Removal { node_id: self.node_id(), why }));
        }
    }

    /// A manager that does not know this node may be behind. Asked for a certificate, the cluster's quorum says whether
    /// the node was removed.
    async fn ask_when_unknown(self: Arc<Self>) {
        let mut known = self.worker.known();
        while known.wait_for(|known| !known).await.is_ok() {
            self.identity.renew_now();
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// A daemon that died between its start as a manager and its admission finds itself in no group, and asks again.
    async fn keep_admitted(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LEADER_KNOWN_WITHIN).await;
            let Some(manager) = self.manager() else { continue };
            let membership = self.membership();
            let own = membership.addresses.advertise.to_string();
            let others: Vec<String> = membership.managers.iter().filter(|m| **m != own).cloned().collect();
            let led = manager.raft().leadership().borrow().leader.is_some();
            if others.is_empty() || is_admitted(&manager.raft().members(), membership.raft_id, led) {
                continue;
            }
            match manager.join(&others).await {
                Ok(()) => tracing::info!("this manager is in the group"),
                Err(error) => tracing::warn!(error = %error, led, "this manager is not known to be in the group"),
            }
        }
    }

    /// Makes a manager of this node, or takes that away, as the managers want it, until told to stop.
    async fn keep_role(self: Arc<Self>) {
        let mut assigned = self.worker.assignments_changed();
        let mut pause = ROLE_RETRY.0;
        loop {
            assigned.borrow_and_update();
            if let Some(wanted) = self.worker.wanted_role()
                && wanted != self.role()
            {
                if let Err(error) = self.change_role(wanted).await {
                    let error = format!("{error:#}");
                    tracing::warn!(role = ?wanted, error, again = ?pause, "the change of role did not succeed yet");
                    if self.stop.run_until_cancelled(self.pause_while_wanted(wanted, pause)).await.is_none() {
                        return;
                    }
                    pause = (pause * 2).min(ROLE_RETRY.1);
                    continue;
                }
                tracing::info!(role = ?wanted, "this node has a new role");
            }
            pause = ROLE_RETRY.0;
            if !matches!(self.stop.run_until_cancelled(assigned.changed()).await, Some(Ok(()))) {
                return;
            }
        }
    }

    /// Waits; not any longer when the managers have changed their mind.
    async fn pause_while_wanted(&self, wanted: Role, pause: Duration) {
        let mut assigned = self.worker.assignments_changed();
        let other = async { while self.worker.wanted_role() == Some(wanted) && assigned.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(pause, other).await;
    }

    /// Ends soon when the member is told to stop, and leaves nothing half started.
    async fn change_role(&self, wanted: Role) -> Result<()> {
        if wanted == Role::Worker
            && let Some(manager) = self.manager()
        {
            // Out of the group first: a refusal, because the rest would have no quorum, leaves this manager what it is.
            // The managers of the session too: those that this one remembers may be gone.
            let known = self.worker.managers().borrow().clone();
            self.stop.run_until_cancelled(manager.leave(&known)).await.context(STOPPED)??;
        }
        let mut identity = self.identity.watch();
        if identity.borrow_and_update().subject.role != wanted {
            self.identity.renew_now();
            let renewed = identity.wait_for(|i| i.subject.role == wanted);
            let renewed = self.stop.run_until_cancelled(tokio::time::timeout(CERTIFICATE_WITHIN, renewed));
            match renewed.await.context(STOPPED)? {
                Ok(Ok(_)) => {}
                _ => anyhow::bail!("no certificate for the new role within 10 s"),
            }
        }
        match wanted {
            Role::Manager => {
                let membership = self.numbered()?;
                let start =
                    start_manager(&self.config, &self.identity, &membership, None, Beginning::Promote, &self.stop);
                let running = start.await?;
                *self.manager.write().unwrap_or_else(PoisonError::into_inner) = Some(running);
            }
            Role::Worker => {
                let running = self.manager.write().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(running) = running {
                    running.shutdown().await;
                    remove_dir(self.config.data_dir.join("raft"))?;
                }
            }
        }
        Ok(())
    }

    /// The membership with a number for the group that no member has ever had: a new log has made none of the promises
    /// of the one before it.
    fn numbered(&self) -> Result<Membership> {
        let has_log = self.config.data_dir.join("raft").exists();
        self.remember(|membership| {
            if !has_log {
                membership.raft_id = membership::new_raft_id();
            }
        })
    }

    /// Remembers where managers are, for the next start.
    async fn keep_managers(self: Arc<Self>) {
        let mut managers = self.worker.managers();
        loop {
            let known = managers.borrow_and_update().clone();
            if let Err(error) = self.remember(|membership| membership.managers = known) {
                tracing::warn!(error = format!("{error:#}"), "the managers' addresses can't be kept for a restart");
            }
            if managers.changed().await.is_err() {
                return;
            }
        }
    }

    /// The swarm that was founded here stands.
    pub(crate) fn founded(&self) -> Result<()> {
        self.remember(|membership| membership.founding = false).map(|_| ())
    }

    /// A forced cluster stands: remembers that nothing is left to be done.
    pub(crate) fn forced(&self) -> Result<()> {
        self.remember(|membership| membership.forcing = false).map(|_| ())
    }

    /// Changes what is remembered of the swarm, on disk and here.
    fn remember(&self, change: impl FnOnce(&mut Membership)) -> Result<Membership> {
        let mut held = self.membership.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = held.clone();
        change(&mut next);
        if next != *held {
            // Under the lock: of two changes the later one has to be the one that stays.
            membership::save(&self.config.data_dir, &next)
                .context("what this node knows of its swarm can't be kept")?;
            held.clone_from(&next);
        }
        Ok(next)
    }

    /// Who this node is.
    pub(crate) fn identity(&self) -> Holder {
        self.identity.clone()
    }

    pub(crate) fn node_id(&self) -> String {
        self.identity.current().subject.node_id.clone()
    }

    pub(crate) fn membership(&self) -> Membership {
        self.membership.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    pub(crate) fn manager(&self) -> Option<Manager> {
        self.manager.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|r| r.manager.clone())
    }

    /// The role that this node plays now: the running manager decides, not the certificate.
    fn role(&self) -> Role {
        if self.manager().is_some() { Role::Manager } else { Role::Worker }
    }

    /// Waits, bounded, while the managers' wish that this node be no manager any more is under way.
    pub(crate) async fn demoted(&self) {
        let under_way = || self.worker.wanted_role() == Some(Role::Worker) && self.role() == Role::Manager;
        let until = tokio::time::Instant::now() + DEMOTED_WITHIN;
        while under_way() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops everything in order; containers, wires and what is on disk stay.
    pub(crate) async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.worker.shutdown().await;
        let running = self.manager.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running {
            running.shutdown().await;
        }
    }

    /// Leaves the swarm: ends this node's tasks, leaves the group of managers, stops, and forgets.
    pub(crate) async fn leave(&self) -> Result<()> {
        self.end_tasks().await;
        self.worker.say_goodbye(GOODBYE_WITHIN).await;
        let manager = self.manager();
        if let Some(manager) = manager
            && !manager.other_managers().is_empty()
            && let Err(error) = manager.leave(&[]).await
        {
            tracing::warn!(error = %error, "the other managers still count on this one; remove it there");
        }
        self.shutdown().await;
        self.worker.remove_wires().await;
        let data = &self.config.data_dir;
        remove_dir(data.join("raft"))?;
        remove_dir(data.join("identity"))?;
        for file in [data.join("raft.key"), self.config.run_dir.join("assignments")] {
            let _ = std::fs::remove_file(file);
        }
        membership::forget(data).context("the swarm can't be forgotten")
    }

    /// The swarm has removed this node: ends its tasks, whose addresses are others' now, takes its wires away and
    /// stops. What the node knows of the swarm stays on disk: after a restart it is told once more, and says so, until
    /// it leaves.
    pub(crate) async fn end(&self) {
        self.end_tasks().await;
        self.shutdown().await;
        self.worker.remove_wires().await;
    }

    async fn end_tasks(&self) {
        self.stop.cancel();
        self.worker.remove_everything(LEAVE_WITHIN).await;
        // A change of role that was under way may have made this node a manager.
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Running {
    async fn shutdown(&self) {
        self.manager.shutdown().await;
        self.stop.cancel();
        self.server.close();
        self.server.wait().await;
    }
}

fn remove_dir(dir: PathBuf) -> Result<()> {
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} can't be removed", dir.display()))
        }
        _ => Ok(()),
    }
}

/// What the only manager of a cluster signs its own certificate with, when it leads and there is nobody else to ask.
fn sole_authority(manager: &Manager) -> Option<identity::Authority> {
    let raft = manager.raft();
    if !raft.leadership().borrow().is_self || raft.members().len() != 1 {
        return None;
    }
    let cluster = manager.store().view().state.cluster()?;
    let root = skep_manager::ca::RootCa::load(cluster.root_ca.as_ref()?).ok()?;
    Some((root, skep_manager::ca::life(&cluster)))
}

/// Whether this manager has its place in the group: a vote, and a leader that speaks to it. Without the one its admission
/// was cut short; without the other it may have been taken out and know nothing of it, or there is no leader, and then
/// asking does no harm.
fn is_admitted(members: &[skep_manager::raft::Member], raft_id: u64, led: bool) -> bool {
    led && members.iter().any(|m| m.id == raft_id && m.voter)
}

/// A manager's worker asks its own manager first, then the others.
fn known_managers(membership: &Membership, role: Role) -> Vec<String> {
    let own = (role == Role::Manager).then(|| membership.addresses.advertise.to_string());
    let mut seen = HashSet::new();
    own.into_iter().chain(membership.managers.iter().cloned()).filter(|m| seen.insert(m.clone())).collect()
}

/// Binds the port of the managers, with an error that says whose it may be.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} can't be listened on; is another manager or Docker's swarm using it? --listen-addr chooses another"))
}

async fn start_manager(
    config: &Config,
    identity: &Holder,
    membership: &Membership,
    listener: Option<TcpListener>,
    beginning: Beginning,
    stop: &CancellationToken,
) -> Result<Running> {
    let listener = match listener {
        Some(listener) => listener,
        None => listen(membership.addresses.listen).await?,
    };
    let manager_config = skep_manager::Config {
        dir: config.data_dir.join("raft"),
        node_id: identity.current().subject.node_id.clone(),
        raft_id: membership.raft_id,
        address: membership.addresses.advertise.to_string(),
        former_raft_ids: membership.former_raft_ids.clone(),
        key: membership::data_key(&config.data_dir)?,
    };
    let dialer = Arc::new(Dialer::new(identity.clone()));
    let manager = match beginning {
        Beginning::Force => Manager::force_new_cluster(manager_config, dialer).await?,
        _ => Manager::start(manager_config, dialer).await?,
    };
    let (unserved, server) = (CancellationToken::new(), TaskTracker::new());
    let serving = Serving { listener, routes: manager.routes(), holder: identity.clone(), gate: None };
    let serve = identity::serve(serving, unserved.clone());
    server.spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!(error = %error, "the managers' port is served no more");
        }
    });
    let running = Running { manager, stop: unserved, server };
    let (joins, is_promoted) = (matches!(beginning, Beginning::Join), matches!(beginning, Beginning::Promote));
    let begun = stop.run_until_cancelled(begin(&running.manager, membership, beginning)).await;
    if begun.is_none() && is_promoted {
        // The others may be about to count on it.
        let _ = tokio::time::timeout(UNDO_WITHIN, running.manager.leave(&membership.managers)).await;
    }
    let Err(mut error) = begun.context(STOPPED).flatten() else { return Ok(running) };
    if joins {
        error = withdraw(&running.manager, &membership.managers, error).await;
    }
    running.shutdown().await;
    Err(error)
}

/// Undoes a join that failed; the error says so if that was possible.
async fn withdraw(manager: &Manager, managers: &[String], error: anyhow::Error) -> anyhow::Error {
    match tokio::time::timeout(UNDO_WITHIN, manager.withdraw(managers)).await {
        Ok(Ok(())) => error.context(Withdrawn),
        Ok(Err(why)) => {
            tracing::warn!(error = %why, "the managers could not be told that this node does not join");
            error
        }
        Err(_) => error,
    }
}

async fn begin(manager: &Manager, membership: &Membership, beginning: Beginning) -> Result<()> {
    match beginning {
        Beginning::Found(first) => manager.bootstrap(first).await?,
        Beginning::Join | Beginning::Promote => manager.join(&membership.managers).await?,
        // Whether it is in the group yet, `keep_admitted` looks after.
        Beginning::Resume | Beginning::Force => {}
    }
    Ok(())
}

/// The identity, as the worker wants to dial with it.
struct Dial(Dialer);

impl skep_worker::Connector for Dial {
    fn channel(&self, address: &str) -> Result<tonic::transport::Channel, Box<dyn std::error::Error + Send + Sync>> {
        self.0.channel(address, DIAL_WITHIN).map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use skep_manager::raft::Member;

    use super::is_admitted;

    #[test]
    fn a_manager_is_admitted_once_it_votes_and_hears_a_leader() {
        let member =
            |id, voter| Member { id, address: String::new(), voter, leader: false, last_ack: None, reachable: None };
        let group = [member(1, true), member(2, false)];
        let table = [(1, true, true), (1, false, false), (2, true, false), (3, true, false)];
        for (id, led, admitted) in table {
            assert_eq!(is_admitted(&group, id, led), admitted, "{id} {led}");
        }
    }
}
