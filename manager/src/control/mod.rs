//! The cluster's API among managers: checks who calls, sends the call to the leader, and there to its handler.
//!
//! Every manager serves every call. A handler works against a state that is known to be current. One that changes
//! something runs on the leader only: it validates with `skep-plan` (pure) and proposes one all-or-nothing command. One
//! that only reads the state (`anywhere`) runs where it is asked, behind a read barrier: it sees everything that was
//! acknowledged before the call, by any manager. Callers: the Engine API of the same node (in process), other managers
//! (gRPC).

mod cluster;
mod errors;
mod events;
mod networks;
mod nodes;
mod route;
mod secrets;
mod services;
mod tasks;

pub(crate) use errors::{invalid, is_leaderless, leaderless, raft as raft_error, store as store_error, word};
pub use route::InProcess;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use skep_proto::time::unix_ns;
use skep_proto::v1::{Action, Role, control_server};
use skep_state::State;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::line::Line;
use crate::liveness::Liveness;
use crate::peer::{Peer, require_manager};
use crate::raft::{self, Dialer, Raft};
use crate::store::{self, Store, View};

/// How long one call may take on the leader, forwarding and elections included.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How often a change is tried whose object changes meanwhile. An update writes its progress a few times a second, and a
/// try takes some milliseconds.
const TRIES: u32 = 10;

/// The API of one manager.
#[derive(Clone)]
pub struct Control {
    pub(crate) raft: Arc<Raft>,
    pub(crate) store: Arc<Store>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) dialer: Arc<dyn Dialer>,
    /// To whoever leads.
    pub(crate) line: Line,
    /// The manager stops: streams that live off it end.
    pub(crate) stop: CancellationToken,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

impl Control {
    /// The API over this manager's consensus and state.
    pub fn new(
        raft: Arc<Raft>,
        store: Arc<Store>,
        liveness: Arc<Liveness>,
        dialer: Arc<dyn Dialer>,
        stop: CancellationToken,
    ) -> Self {
        let line = Line::new(Arc::clone(&dialer));
        Self { raft, store, liveness, dialer, line, stop }
    }

    /// The caller, if it holds a manager's certificate and the cluster still wants it to be one: a certificate outlives
    /// a demotion. Not asked of consensus itself, where a member that is behind has to hear leaders it does not know.
    pub(crate) fn require_current_manager<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let peer = require_manager(request)?;
        let node = self.store.view().state.node(&peer.node_id);
        match node.as_ref().and_then(|n| n.spec.as_ref()).map(skep_proto::v1::NodeSpec::role) {
            Some(Role::Manager) => Ok(peer),
            Some(Role::Worker) => {
                Err(Status::permission_denied(format!("node {} is no manager any more", peer.node_id)))
            }
            // This manager may be behind, or the node was removed: another manager knows.
            None => Err(Status::unavailable(format!("node {} is not known to this manager", peer.node_id))),
        }
    }

    /// The state, known to be no older than the moment of the call.
    async fn current(&self) -> Result<View, Status> {
        self.raft.read_barrier(CALL_DEADLINE).await.map_err(|error| match error {
            raft::Error::NotLeader { leader: None } => self.leaderless(None),
            error => errors::raft(error),
        })?;
        Ok(self.store.view())
    }

    /// What to answer where no leader is known; `last`: what the last one asked said. A manager that was demoted hears of
    /// none any more, though the swarm may well have one.
    fn leaderless(&self, last: Option<&str>) -> Status {
        if let Some(error) = self.raft.failure() {
            return errors::raft(error);
        }
        if nodes::demoted(&self.store.view().state, self.raft.id()) {
            return Status::unavailable("this node was demoted and is no manager any more: ask another manager");
        }
        if let Some(error) = self.raft.removal() {
            return errors::raft(error);
        }
        // Who of them is reachable, only a leader knows.
        let voters = self.raft.members().iter().filter(|member| member.voter).count();
        if voters == 0 {
            return Status::unavailable("this manager has not been taken into its group yet: ask another manager");
        }
        let group = format!("{} of the swarm's {voters} managers are needed", voters / 2 + 1);
        errors::leaderless(Some(&last.map_or(group.clone(), |last| format!("{group}; last answer: {last}"))))
    }

    /// Changes whatever is there, as often as it changes meanwhile: for calls that name no version of an object.
    async fn change_current(&self, plan: impl Fn(&State) -> Result<Vec<Action>, Status>) -> Result<(), Status> {
        let mut tries = 0;
        loop {
            let view = self.current().await?;
            let actions = plan(&view.state)?;
            if actions.is_empty() {
                return Ok(());
            }
            tries += 1;
            match self.change(actions).await {
                Err(status) if status.code() == Code::Aborted && tries < TRIES => {}
                done => return done.map(|_| ()),
            }
        }
    }

    /// Proposes a new object. A call that is tried again may find its first try, which was on its way still: that is
    /// the object that it wants, by the id that both carry.
    async fn create(&self, action: Action, is_there: impl Fn(&State) -> bool) -> Result<(), Status> {
        match self.change(vec![action]).await {
            Err(status) if status.code() == Code::AlreadyExists && is_there(&self.store.view().state) => Ok(()),
            done => done.map(|_| ()),
        }
    }

    /// Proposes an all-or-nothing change and returns its index.
    async fn change(&self, actions: Vec<Action>) -> Result<u64, Status> {
        store::propose(&self.raft, now_ns(), actions, CALL_DEADLINE).await.map_err(errors::store)
    }
}

/// The clock, asked at the edge only.
pub(crate) fn now_ns() -> i64 {
    unix_ns(SystemTime::now())
}

/// One line a call: the trait's method, its messages, and the handler that answers it: on the leader, or `anywhere`.
macro_rules! control_calls {
    (
        anywhere { $($r_method:ident($r_request:ident) -> $r_response:ident = $r_module:ident::$r_handler:ident;)* }
        leader {
            $($method:ident($request:ident) -> $response:ident = $module:ident::$handler:ident
                $(, identified by $id:ident)?;)*
        }
    ) => {
        #[tonic::async_trait]
        impl control_server::Control for Control {
            $(
                async fn $r_method(
                    &self,
                    request: Request<skep_proto::v1::$r_request>,
                ) -> Result<Response<skep_proto::v1::$r_response>, Status> {
                    route::authorise(self, &request)?;
                    $r_module::$r_handler(self, request.into_inner()).await.map(Response::new)
                }
            )*

            $(
                async fn $method(
                    &self,
                    request: Request<skep_proto::v1::$request>,
                ) -> Result<Response<skep_proto::v1::$response>, Status> {
                    route::authorise(self, &request)?;
                    let hops = route::hops(&request);
                    #[allow(unused_mut, reason = "creations only are given an id")]
                    let mut message = request.into_inner();
                    $(route::identify(&mut message.$id);)?
                    let mut router = route::Router::new(self, hops);
                    loop {
                        match router.next().await? {
                            route::Target::Here => {
                                let answer = $module::$handler(self, message.clone()).await;
                                if let Some(answer) = router.answered(answer).await {
                                    return answer;
                                }
                            }
                            route::Target::Leader(mut client) => {
                                let forwarded = route::forwarded(message.clone(), hops);
                                if let Some(answer) = router.attempt(client.$method(forwarded)).await {
                                    return answer;
                                }
                            }
                        }
                    }
                }
            )*

            type WatchEventsStream = events::Stream;

            async fn watch_events(
                &self,
                request: Request<skep_proto::v1::WatchEventsRequest>,
            ) -> Result<Response<Self::WatchEventsStream>, Status> {
                route::authorise(self, &request)?;
                Ok(Response::new(events::watch(&self.store, self.stop.clone())))
            }
        }
    };
}

control_calls! {
    anywhere {
        get_cluster(GetClusterRequest) -> Cluster = cluster::get;
        get_service(GetRequest) -> Service = services::get;
        list_services(ListServicesRequest) -> ListServicesResponse = services::list;
        get_task(GetRequest) -> TaskView = tasks::get;
        list_tasks(ListTasksRequest) -> ListTasksResponse = tasks::list;
        get_network(GetRequest) -> Network = networks::get;
        list_networks(ListNetworksRequest) -> ListNetworksResponse = networks::list;
        get_secret(GetRequest) -> Secret = secrets::get_secret;
        list_secrets(ListSecretsRequest) -> ListSecretsResponse = secrets::list_secrets;
        get_config(GetRequest) -> Config = secrets::get_config;
        list_configs(ListConfigsRequest) -> ListConfigsResponse = secrets::list_configs;
    }
    leader {
        update_cluster(UpdateClusterRequest) -> Cluster = cluster::update;
        // Only the leader knows which managers answer it.
        list_nodes(ListNodesRequest) -> ListNodesResponse = nodes::list;
        get_node(GetRequest) -> Node = nodes::get;
        update_node(UpdateNodeRequest) -> Node = nodes::update;
        remove_node(RemoveNodeRequest) -> Empty = nodes::remove;
        create_service(CreateServiceRequest) -> CreateServiceResponse = services::create, identified by id;
        update_service(UpdateServiceRequest) -> UpdateServiceResponse = services::update;
        remove_service(GetRequest) -> Empty = services::remove;
        create_network(CreateNetworkRequest) -> Network = networks::create, identified by id;
        remove_network(GetRequest) -> Empty = networks::remove;
        create_secret(CreateSecretRequest) -> Secret = secrets::create_secret, identified by id;
        update_secret(UpdateSecretRequest) -> Secret = secrets::update_secret;
        remove_secret(GetRequest) -> Empty = secrets::remove_secret;
        create_config(CreateConfigRequest) -> Config = secrets::create_config, identified by id;
        update_config(UpdateConfigRequest) -> Config = secrets::update_config;
        remove_config(GetRequest) -> Empty = secrets::remove_config;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;

    use skep_proto::v1::{Annotations, Config, ConfigSpec, Node, object};

    use super::*;
    use crate::action::put;
    use crate::testing::alone;

    #[tokio::test]
    async fn a_creation_that_finds_its_first_try_has_done_its_work_and_no_other_one_has() {
        let (_dir, manager) = alone(Vec::new()).await;
        let control = manager.control();
        let config = |id: &str| {
            let annotations = Some(Annotations { name: "c".into(), ..Annotations::default() });
            let spec = Some(ConfigSpec { annotations, ..ConfigSpec::default() });
            put(object::Kind::Config(Config { id: id.into(), spec, meta: None }))
        };
        let there = |id: &'static str| move |state: &State| state.config(id).is_some();
        control.create(config("own"), there("own")).await.unwrap();
        control.create(config("own"), there("own")).await.unwrap();
        let taken = control.create(config("other"), there("other")).await.unwrap_err();
        assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
        manager.shutdown().await;
    }

    #[tokio::test]
    async fn a_change_is_tried_again_while_its_object_changes() {
        let (_dir, manager) = alone(vec![put(object::Kind::Node(Node { id: "n".into(), ..Node::default() }))]).await;
        let control = manager.control();
        for (meanwhile, expected) in [(0, Ok(())), (3, Ok(())), (TRIES, Err(Code::Aborted))] {
            let tries = Cell::new(0);
            let plan = |state: &State| {
                let mut next = state.node("n").unwrap().as_ref().clone();
                // As if somebody had changed it since it was looked at.
                let behind = u64::from(tries.get() < meanwhile);
                next.meta.as_mut().unwrap().version -= behind;
                tries.set(tries.get() + 1);
                Ok(vec![put(object::Kind::Node(next))])
            };
            let changed = control.change_current(plan).await.map_err(|status| status.code());
            assert_eq!((changed, tries.get()), (expected, TRIES.min(meanwhile + 1)), "{meanwhile}");
        }
        let refused = control.change_current(|_| Err(Status::not_found("x"))).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        manager.shutdown().await;
    }
}
