//! Making, joining and leaving a swarm of one.

use std::sync::Arc;

use futures::future::BoxFuture;
use skep_daemon::api::backend::*;
use skep_proto::v1;

use super::{Fake, SECOND, State};

/// Membership, which hands out the node itself as the cluster's API.
pub(super) struct Membership(pub(super) Arc<Fake>);

impl Cluster for Membership {
    fn control(&self) -> Option<Arc<Control>> {
        let manager = self.0.state().swarm.manager;
        manager.then(|| self.0.clone() as Arc<Control>)
    }

    fn init(&self, request: Init) -> BoxFuture<'_, Result<String, Failure>> {
        Box::pin(async move {
            let mut state = self.0.state();
            let id = skep_proto::id::new();
            state.swarm = SwarmFacts {
                state: SwarmState::Active,
                node_id: id.clone(),
                node_address: "10.9.8.7".to_owned(),
                manager: true,
                managers: vec![(id.clone(), "10.9.8.7:2377".to_owned())],
                ..SwarmFacts::default()
            };
            let meta = state.meta(None);
            state.cluster = v1::Cluster {
                id: skep_proto::id::new(),
                meta,
                spec: Some(v1::ClusterSpec { task_history_limit: Some(5), heartbeat_ns: SECOND, ..request.spec }),
                root_ca: Some(v1::RootCa { certificate_pem: "PEM".to_owned(), key_pem: String::new() }),
                join_tokens: Some(v1::JoinTokens {
                    worker: "SWMTKN-1-a-w".to_owned(),
                    manager: "SWMTKN-1-a-m".to_owned(),
                }),
                data_path_port: 4789,
                default_address_pools: vec!["10.0.0.0/8".to_owned()],
                subnet_size: 24,
                generation_base: 0,
            };
            let node = v1::Node {
                id: id.clone(),
                meta,
                spec: Some(v1::NodeSpec {
                    role: v1::Role::Manager.into(),
                    availability: request.availability.into(),
                    ..Default::default()
                }),
                description: Some(v1::NodeDescription {
                    hostname: "fake".to_owned(),
                    platform: Some(v1::Platform { architecture: "x86_64".to_owned(), os: "linux".to_owned() }),
                    resources: Some(v1::Resources { nano_cpus: 2 * SECOND, memory_bytes: 1 << 30 }),
                    engine_version: "0.1.0".to_owned(),
                    root_ca_pem: "PEM".to_owned(),
                    ..Default::default()
                }),
                status: Some(v1::NodeStatus {
                    state: v1::NodeState::Ready.into(),
                    address: "10.9.8.7".to_owned(),
                    ..Default::default()
                }),
                manager: Some(v1::ManagerInfo {
                    raft_id: 1,
                    address: "10.9.8.7:2377".to_owned(),
                    leader: true,
                    reachable: true,
                }),
                ..Default::default()
            };
            state.nodes.insert(id.clone(), node);
            let ingress = v1::Network {
                id: "ingress0000000000000000000".to_owned(),
                meta,
                spec: Some(v1::NetworkSpec {
                    annotations: Some(v1::Annotations { name: "ingress".to_owned(), ..Default::default() }),
                    ingress: true,
                    ..Default::default()
                }),
                vni: 4096,
                subnet: "10.0.0.0/24".to_owned(),
                gateway: "10.0.0.1".to_owned(),
                ..Default::default()
            };
            state.networks.insert(ingress.id.clone(), ingress);
            Ok(id)
        })
    }

    fn join(&self, request: Join) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(
            async move { Err(Failure::Invalid(format!("manager {} can't be reached", request.remotes.join(",")))) },
        )
    }

    fn leave(&self, force: bool) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            if !force {
                let text =
                    "You are attempting to leave the swarm on a node that is participating as a manager. Use --force";
                return Err(Failure::Unavailable(text.to_owned()));
            }
            *self.0.state() = State::default();
            Ok(())
        })
    }
}
