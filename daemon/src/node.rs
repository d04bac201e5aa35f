//! One node: the rooms that every node has, and the swarm that it may be in.
//!
//! Decides when a node may found, join or leave a swarm; one such change at a time. The API's facilities call it.

mod force;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use skep_image::Store;
use skep_manager::Manager;
use skep_manager::ca::{self, RootCa};
use skep_manager::peer::Peer;
use skep_proto::time::unix_ns;
use skep_proto::v1::{ClusterSpec, LogOptions, Role, TaskAssignment, TaskStatus};
use skep_runtime::Runtime;
use tokio::sync::{Mutex, watch};
use tokio_util::task::TaskTracker;

use crate::addresses::{self, Addresses};
use crate::api::backend::{Failure, Init, Join, SwarmFacts, SwarmState};
use crate::config::Config;
use crate::founding;
use crate::identity::{self, Clock, Holder, Identity, JoinError};
use crate::machine::{self, Machine};
use crate::member::{self, Beginning, Member, Parts, Removal, Withdrawn};
use crate::membership::{self, Membership};

/// One node.
pub(crate) struct Node {
    config: Arc<Config>,
    machine: Arc<Machine>,
    images: Arc<Store>,
    runtime: Arc<Runtime>,
    observer: Arc<dyn skep_worker::Observer>,
    engine_id: String,
    started_ns: i64,
    member: RwLock<Option<Arc<Member>>>,
    /// Why the node can't take part in its swarm.
    broken: RwLock<Option<String>>,
    /// The swarm's word that it has removed this node, from its member.
    removed: watch::Sender<Option<Removal>>,
    /// Founding, joining and leaving exclude each other.
    changing: Mutex<()>,
    /// Founding, joining and leaving that are under way: they go on when the client that asked has gone.
    changes: TaskTracker,
}

impl Node {
    /// Opens what is on disk; the swarm is entered by [`Node::resume`].
    pub(crate) fn open(config: Config, observer: Arc<dyn skep_worker::Observer>) -> Result<Arc<Self>> {
        let exe = std::env::current_exe().context("the path of this program is unknown")?;
        std::fs::create_dir_all(&config.run_dir)
            .with_context(|| format!("{} can't be made", config.run_dir.display()))?;
        let images = Store::open(&config.data_dir.join("images")).context("the image store can't be opened")?;
        let runtime = Runtime::new(skep_runtime::Config {
            run_dir: config.run_dir.join("c"),
            state_dir: config.data_dir.join("containers"),
            shim_exe: exe,
            cgroup_parent: config.cgroup_parent.clone(),
        })
        .context("containers can't be run")?;
        let engine_id = engine_id(&config.data_dir)?;
        Ok(Arc::new(Self {
            config: Arc::new(config),
            machine: Arc::new(machine::read()),
            images: Arc::new(images),
            runtime: Arc::new(runtime),
            observer,
            engine_id,
            started_ns: unix_ns(SystemTime::now()),
            member: RwLock::new(None),
            broken: RwLock::new(None),
            removed: watch::Sender::new(None),
            changing: Mutex::new(()),
            changes: TaskTracker::new(),
        }))
    }

    /// Goes on in the swarm that the node was in. A swarm that can't be entered leaves the node usable: `info` says
    /// why, and it can leave.
    pub(crate) async fn resume(&self) {
        let _one = self.changing.lock().await;
        if let Err(error) = self.try_resume().await {
            let why = format!(
                "{}; mend that and restart the daemon, or use \"docker swarm leave --force\" and join again",
                identity::causes(error.as_ref())
            );
            tracing::error!(error = why, "this node can't take part in its swarm");
            *self.broken.write().unwrap_or_else(PoisonError::into_inner) = Some(why);
        }
    }

    async fn try_resume(&self) -> Result<()> {
        let Some(membership) = membership::load(&self.config.data_dir).context("swarm.json is damaged")? else {
            return Ok(());
        };
        if membership.founding {
            tracing::warn!("a swarm was about to be founded here when the daemon ended: nothing of it is kept");
            return self.forget().context("a swarm that was never founded can't be forgotten");
        }
        let clock = Clock::default();
        let identity = Identity::load(&self.identity_dir(), &clock)?.context("this node's certificate is gone")?;
        if membership.forcing {
            return self.enter_forced(self.holder(identity), membership, None).await;
        }
        self.enter(self.holder(identity), membership, None, Beginning::Resume).await
    }

    fn holder(&self, identity: Identity) -> Holder {
        Holder::new(self.identity_dir(), identity, Clock::default())
    }

    async fn enter(
        &self,
        identity: Holder,
        membership: Membership,
        listener: Option<tokio::net::TcpListener>,
        beginning: Beginning,
    ) -> Result<()> {
        let parts = Parts {
            config: Arc::clone(&self.config),
            machine: Arc::clone(&self.machine),
            images: Arc::clone(&self.images),
            runtime: Arc::clone(&self.runtime),
            observer: Arc::clone(&self.observer),
            removed: self.removed.clone(),
        };
        let member = Member::start(parts, identity, membership, listener, beginning).await?;
        *self.member.write().unwrap_or_else(PoisonError::into_inner) = Some(member);
        *self.broken.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// Runs a change of membership to its end, whether or not anybody waits for it.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        match self.changes.spawn(change).await {
            Ok(done) => done,
            Err(error) => Err(Failure::Internal(format!("the change of membership failed: {error}"))),
        }
    }

    // ---- swarm --------------------------------------------------------------------------------------------------

    /// Founds a swarm. Input is checked, and the port bound, before anything is written.
    pub(crate) async fn init(self: Arc<Self>, request: Init) -> Result<String, Failure> {
        let _one = self.changing.lock().await;
        if request.force_new_cluster {
            // Boxed by hand: the compiler loses count of the futures otherwise.
            let forced: BoxFuture<'_, _> = Box::pin(self.force_new_cluster(&request));
            return forced.await;
        }
        self.require_no_swarm()?;
        let addresses = self.addresses(&request.addresses)?;
        let listener = member::listen(addresses.listen).await.map_err(internal)?;
        let node_id = skep_proto::id::new();
        let founding = founding::Founding {
            cluster_id: skep_proto::id::new(),
            node_id: node_id.clone(),
            raft_id: membership::new_raft_id(),
            address: addresses.advertise.to_string(),
            description: self.machine.description(&self.config, addresses.data_path),
            data_path_port: if request.data_path_port == 0 {
                u32::from(self.config.data_path_port)
            } else {
                request.data_path_port
            },
            pools: request.default_address_pools,
            subnet_size: request.subnet_size,
            availability: request.availability,
            spec: request.spec,
        };
        let root = RootCa::create(SystemTime::now()).map_err(internal)?;
        for line in skep_plan::validate::cluster_warnings(
            &founding.spec,
            Some(&founding::with_defaults(ClusterSpec::default())),
        ) {
            tracing::warn!("{line}");
        }
        let first = founding::first_objects(&founding, &root, &mut skep_proto::id::new)?;
        let subject = Peer { node_id: node_id.clone(), role: Role::Manager, cluster_id: founding.cluster_id.clone() };
        let life = match founding.spec.certificate_expiry_ns {
            0 => ca::DEFAULT_LIFE,
            ns => skep_proto::time::duration(ns),
        };
        let identity = Identity::found(&root, &subject, life, &Clock::default()).map_err(internal)?;
        let membership = Membership { founding: true, ..self.new_membership(addresses, founding.raft_id, Vec::new()) };
        self.enter_new(identity, membership, Some(listener), Beginning::Found(first)).await.map_err(internal)?;
        if let Some(member) = self.member() {
            member.founded().map_err(internal)?;
        }
        Ok(node_id)
    }

    fn new_membership(&self, addresses: Addresses, raft_id: u64, managers: Vec<String>) -> Membership {
        Membership { addresses, raft_id, former_raft_ids: Vec::new(), founding: false, forcing: false, managers }
    }

    /// Joins a swarm.
    pub(crate) async fn join(self: Arc<Self>, request: Join) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        self.require_no_swarm()?;
        let addresses = self.addresses(&request.addresses)?;
        if request.remotes.is_empty() {
            return Err(Failure::Invalid("give the address of a manager to join".to_owned()));
        }
        let remotes: Vec<String> = request.remotes.iter().map(|r| addresses::with_port(r)).collect();
        // Before the certificate: whoever has one is a member, and a manager that can't listen would be listed for ever. A
        // worker gives the port back; it may be promoted one day, so it too is told that the port is taken.
        let listener = member::listen(addresses.listen).await.map_err(internal)?;
        let identity = self.identity_from(&remotes, &request).await?;
        let listener = (identity.subject.role == Role::Manager).then_some(listener);
        let membership = self.new_membership(addresses, membership::new_raft_id(), remotes);
        let node_id = identity.subject.node_id.clone();
        self.enter_new(identity, membership, listener, Beginning::Join).await.map_err(|error| {
            let advice =
                "if the swarm lists this node now, `node rm` removes it there (`node demote` first, if as a manager)";
            let error = if error.is::<Withdrawn>() { error } else { error.context(advice) };
            internal(error.context(format!("this node, {node_id}, could not join")))
        })
    }

    /// Asks one manager after the other for a certificate.
    async fn identity_from(&self, remotes: &[String], request: &Join) -> Result<Identity, Failure> {
        let mut last = Failure::Invalid("give the address of a manager to join".to_owned());
        for remote in remotes {
            match identity::join(remote, &request.token, request.availability, &Clock::default()).await {
                Ok(identity) => return Ok(identity),
                // No other manager would judge the token differently.
                Err(
                    error @ (JoinError::Token(_)
                    | JoinError::OtherCluster { .. }
                    | JoinError::TokenWrong { .. }
                    | JoinError::TokenRotated { .. }),
                ) => {
                    return Err(Failure::Invalid(error.to_string()));
                }
                Err(error) => last = internal(error),
            }
        }
        Err(last)
    }

    /// Enters a swarm that the node was not in; when that fails, nothing of it is left.
    async fn enter_new(
        &self,
        identity: Identity,
        membership: Membership,
        listener: Option<tokio::net::TcpListener>,
        beginning: Beginning,
    ) -> Result<()> {
        let _ = std::fs::remove_file(self.config.run_dir.join("assignments"));
        identity.save(&self.identity_dir())?;
        membership::save(&self.config.data_dir, &membership)?;
        let entered = self.enter(self.holder(identity), membership, listener, beginning).await;
        if entered.is_err() {
            let _ = self.forget();
        }
        entered
    }

    /// Leaves the swarm.
    pub(crate) async fn leave(&self, force: bool) -> Result<(), Failure> {
        let _one = self.changing.lock().await;
        let member = self.member();
        let broken = self.broken.read().unwrap_or_else(PoisonError::into_inner).is_some();
        let Some(member) = member else {
            // Without a log of the managers nothing is lost that only this node may have.
            if broken && (force || !self.config.data_dir.join("raft").exists()) {
                return self.forget_broken();
            }
            if broken {
                return Err(Failure::Unavailable(
                    "This node was a manager and can't take part in its swarm any more. Leaving gives up the state of \
                     the swarm that it has: use \"docker swarm leave --force\" to do so."
                        .to_owned(),
                ));
            }
            return Err(Failure::Unavailable("This node is not part of a swarm".to_owned()));
        };
        if !force {
            member.demoted().await;
        }
        if let Some(manager) = member.manager()
            && !force
        {
            return Err(Failure::Unavailable(leave_warning(manager.other_managers().len())));
        }
        let left = member.leave().await;
        *self.member.write().unwrap_or_else(PoisonError::into_inner) = None;
        if let Err(error) = &left {
            let why = format!("leaving did not succeed wholly: {}", identity::causes(error.as_ref()));
            *self.broken.write().unwrap_or_else(PoisonError::into_inner) = Some(why);
        }
        left.map_err(internal)
    }

    /// Stops taking part when the swarm has removed this node, for as long as the daemon runs.
    pub(crate) async fn heed_removals(self: Arc<Self>) {
        let mut removed = self.removed.subscribe();
        while removed.changed().await.is_ok() {
            let removal = removed.borrow_and_update().clone();
            if let Some(removal) = removal {
                self.end_membership(removal).await;
            }
        }
    }

    async fn end_membership(&self, removal: Removal) {
        let _one = self.changing.lock().await;
        let Some(member) = self.member().filter(|member| member.node_id() == removal.node_id) else { return };
        let why = removal.to_string();
        tracing::error!(node.id = removal.node_id, error = why, "this node's tasks end");
        *self.broken.write().unwrap_or_else(PoisonError::into_inner) = Some(why);
        // `info` is to say so at once, not when the last task has ended.
        *self.member.write().unwrap_or_else(PoisonError::into_inner) = None;
        member.end().await;
    }

    fn forget_broken(&self) -> Result<(), Failure> {
        self.forget().map_err(internal)?;
        *self.broken.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// Removes all that the disk remembers of a swarm. Its note goes last: until then the next start does this again.
    fn forget(&self) -> std::io::Result<()> {
        for dir in ["raft", "identity"] {
            let _ = std::fs::remove_dir_all(self.config.data_dir.join(dir));
        }
        // What an old cluster assigned has generations that a new one would have to outgrow.
        let _ = std::fs::remove_file(self.config.run_dir.join("assignments"));
        membership::forget(&self.config.data_dir)
    }

    fn require_no_swarm(&self) -> Result<(), Failure> {
        let broken = self.broken.read().unwrap_or_else(PoisonError::into_inner).is_some();
        if self.member().is_some() || broken {
            return Err(Failure::Unavailable(
                "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another \
                 one."
                .to_owned(),
            ));
        }
        Ok(())
    }

    fn addresses(&self, given: &crate::api::backend::Addresses) -> Result<Addresses, Failure> {
        let or = |given: &str, default: &str| if given.is_empty() { default.to_owned() } else { given.to_owned() };
        let machine = addresses::interfaces().map_err(internal)?;
        addresses::choose(
            &or(&given.listen, &self.config.listen_addr),
            &or(&given.advertise, &self.config.advertise_addr),
            &or(&given.data_path, &self.config.data_path_addr),
            &machine,
        )
        .map_err(|e| Failure::Invalid(e.to_string()))
    }

    fn identity_dir(&self) -> PathBuf {
        self.config.data_dir.join("identity")
    }

    // ---- what the facilities ask --------------------------------------------------------------------------------

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(crate) fn images(&self) -> &Arc<Store> {
        &self.images
    }

    pub(crate) fn runtime(&self) -> &Arc<Runtime> {
        &self.runtime
    }

    pub(crate) fn engine_id(&self) -> &str {
        &self.engine_id
    }

    pub(crate) fn started_ns(&self) -> i64 {
        self.started_ns
    }

    pub(crate) fn member(&self) -> Option<Arc<Member>> {
        self.member.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The manager of this node, while it is one.
    pub(crate) fn manager(&self) -> Option<Manager> {
        self.member().and_then(|m| m.manager())
    }

    /// Tasks of this node with their newest status.
    pub(crate) fn local_tasks(&self) -> Vec<(TaskAssignment, Option<TaskStatus>)> {
        self.member().map(|m| m.worker().tasks()).unwrap_or_default()
    }

    /// Lines of one local task's log.
    pub(crate) fn local_log(&self, task_id: &str, options: &LogOptions) -> Result<skep_worker::logs::Lines, String> {
        let member = self.member().ok_or("this node is in no swarm")?;
        member.worker().log(task_id, options)
    }

    /// Id of the image behind a reference; empty when it is not here.
    pub(crate) async fn image_id(&self, reference: &str) -> String {
        let (images, reference) = (Arc::clone(&self.images), reference.to_owned());
        let found = tokio::task::spawn_blocking(move || images.resolve(&reference)).await;
        found.ok().and_then(Result::ok).map(|image| image.id).unwrap_or_default()
    }

    /// Name and prefix length of a network that tasks of this node are on.
    pub(crate) fn network_name(&self, id: &str) -> (String, u8) {
        use skep_proto::v1::{AssignmentKind, assignment::Kind};
        let Some(member) = self.member() else { return (id.to_owned(), 0) };
        match member.worker().assignments().get(AssignmentKind::Network, id) {
            Some(Kind::Network(network)) => {
                let prefix = network.subnet.rsplit_once('/').and_then(|(_, p)| p.parse().ok()).unwrap_or(0);
                (network.name.clone(), prefix)
            }
            _ => (id.to_owned(), 0),
        }
    }

    /// Name, subnet and address of the gateway bridge, while there is one.
    pub(crate) fn gateway(&self) -> Option<(String, String, String)> {
        self.member()?;
        let subnet = self.config.gateway_subnet.clone();
        let bridge = skep_worker::netdrv::Config::new(self.config.run_dir.join("net")).gateway_bridge;
        let parsed: skep_net_plan::Subnet = subnet.parse().ok()?;
        let gateway = std::net::Ipv4Addr::from(u32::from(parsed.addr) & parsed.mask() | 1);
        Some((bridge, subnet, gateway.to_string()))
    }

    /// Membership, for `info`.
    pub(crate) fn swarm_facts(&self) -> SwarmFacts {
        let broken = self.broken.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(member) = self.member() else {
            return match broken {
                Some(error) => SwarmFacts { state: SwarmState::Error, error, ..SwarmFacts::default() },
                None => on_its_way(&self.config.data_dir),
            };
        };
        let membership = member.membership();
        let manager = member.manager();
        let managers = match &manager {
            Some(manager) => {
                let view = manager.store().view();
                let listed =
                    view.state.nodes().filter_map(|n| Some((n.id.clone(), n.manager.as_ref()?.address.clone())));
                listed.collect()
            }
            None => membership.managers.iter().map(|address| (String::new(), address.clone())).collect(),
        };
        SwarmFacts {
            state: SwarmState::Active,
            node_id: member.node_id(),
            node_address: membership.addresses.advertise.ip().to_string(),
            manager: manager.is_some(),
            error: String::new(),
            managers,
        }
    }

    /// Stops what runs in this process; containers and wires stay.
    pub(crate) async fn shutdown(&self) {
        let _one = self.changing.lock().await;
        let member = self.member.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(member) = member {
            member.shutdown().await;
        }
    }
}

/// A node without a member: on its way into the swarm that its disk remembers, or in none.
fn on_its_way(data_dir: &std::path::Path) -> SwarmFacts {
    let Ok(Some(membership)) = membership::load(data_dir) else { return SwarmFacts::default() };
    SwarmFacts {
        state: SwarmState::Pending,
        node_id: Identity::load(&data_dir.join("identity"), &Clock::default())
            .ok()
            .flatten()
            .map(|identity| identity.subject.node_id)
            .unwrap_or_default(),
        node_address: membership.addresses.advertise.ip().to_string(),
        managers: membership.managers.into_iter().map(|address| (String::new(), address)).collect(),
        ..SwarmFacts::default()
    }
}

fn leave_warning(others: usize) -> String {
    let start = "You are attempting to leave the swarm on a node that is participating as a manager. ";
    let rest = match others {
        0 => "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message."
            .to_owned(),
        others => {
            let (now, needed) = (others + 1, others.div_euclid(2) + 1);
            format!(
                "Removing this node leaves {others} managers out of {now}; {needed} of them have to be up for the \
                 cluster to accept changes. Demote it first, or use `--force` to ignore this message."
            )
        }
    };
    format!("{start}{rest}")
}

fn internal(error: impl Into<anyhow::Error>) -> Failure {
    Failure::Internal(identity::causes(error.into().as_ref()))
}

/// An id of this installation, made once.
fn engine_id(data_dir: &std::path::Path) -> Result<String> {
    let path = data_dir.join("engine-id");
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        _ => {
            let id = skep_proto::id::new();
            std::fs::write(&path, &id).with_context(|| format!("{} can't be written", path.display()))?;
            Ok(id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_has_just_started_is_on_its_way_into_the_swarm_that_it_remembers() -> Result<()> {
        let dir = tempfile::tempdir()?;
        assert_eq!(on_its_way(dir.path()).state, SwarmState::Inactive);
        let addresses = Addresses {
            listen: "0.0.0.0:2377".parse()?,
            advertise: "10.0.0.1:2377".parse()?,
            data_path: "10.0.0.1".parse()?,
        };
        let managers = vec!["10.0.0.2:2377".to_owned()];
        let membership = Membership {
            addresses,
            raft_id: 7,
            former_raft_ids: Vec::new(),
            founding: false,
            forcing: false,
            managers,
        };
        membership::save(dir.path(), &membership)?;
        let facts = on_its_way(dir.path());
        assert_eq!((facts.state, facts.node_address.as_str()), (SwarmState::Pending, "10.0.0.1"));
        assert_eq!(facts.managers, [(String::new(), "10.0.0.2:2377".to_owned())]);
        membership::forget(dir.path())?;
        assert_eq!(on_its_way(dir.path()).state, SwarmState::Inactive);
        Ok(())
    }
}
