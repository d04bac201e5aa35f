//! The first objects of a new cluster. Pure: ids come from the caller.

use skep_manager::ca::{self, RootCa};
use skep_plan::validate;
use skep_proto::v1::{
    Action, Annotations, Availability, Cluster, ClusterSpec, Command, ManagerInfo, Node, NodeDescription, NodeSpec,
    NodeState, NodeStatus, Object, Role, action, object,
};
use skep_state::State;
use skep_state::subnet::Subnet;

use crate::api::backend::Failure;

/// What a new cluster is made of.
#[derive(Debug, Clone)]
pub(crate) struct Founding {
    pub(crate) cluster_id: String,
    pub(crate) node_id: String,
    pub(crate) raft_id: u64,
    /// `host:port` of the first manager.
    pub(crate) address: String,
    pub(crate) description: NodeDescription,
    /// 0: the default.
    pub(crate) data_path_port: u32,
    pub(crate) pools: Vec<String>,
    /// 0: the default.
    pub(crate) subnet_size: u32,
    pub(crate) availability: Availability,
    pub(crate) spec: ClusterSpec,
}

/// The cluster, its first node, and the ingress network. Fails on input that no cluster can have.
pub(crate) fn first_objects(
    founding: &Founding,
    root: &RootCa,
    ids: &mut dyn FnMut() -> String,
) -> Result<Vec<Action>, Failure> {
    let stored = root.to_stored();
    let tokens = ca::new_tokens(&stored).map_err(|e| Failure::Internal(e.to_string()))?;
    let invalid = |e: validate::Error| Failure::Invalid(e.to_string());
    let mut spec = founding.spec.clone();
    spec.annotations.get_or_insert_with(|| Annotations { name: "default".to_owned(), ..Annotations::default() });
    let cluster = Cluster {
        id: founding.cluster_id.clone(),
        spec: Some(validate::cluster(spec).map_err(invalid)?),
        root_ca: Some(stored),
        join_tokens: Some(tokens),
        data_path_port: founding.data_path_port,
        default_address_pools: founding.pools.clone(),
        subnet_size: founding.subnet_size,
        meta: None,
    };
    check_pools(&cluster)?;
    let put_cluster = put(object::Kind::Cluster(cluster));
    // The network is cut from the cluster's pools, so it is planned against a state that has the cluster.
    let mut scratch = State::default();
    let command = Command { actions: vec![put_cluster.clone()], ..Command::default() };
    let _ = scratch.apply(1, &command);
    let ingress = validate::network(&scratch, validate::default_ingress(), &ids()).map_err(invalid)?;
    Ok(vec![put_cluster, put(object::Kind::Node(first_node(founding))), put(object::Kind::Network(ingress))])
}

fn check_pools(cluster: &Cluster) -> Result<(), Failure> {
    if cluster.subnet_size > 29 {
        return Err(Failure::Invalid(format!("subnet size {}: give 29 at most", cluster.subnet_size)));
    }
    for pool in &cluster.default_address_pools {
        let subnet: Subnet =
            pool.parse().map_err(|_| Failure::Invalid(format!("address pool {pool:?}: write it like 10.0.0.0/8")))?;
        if cluster.subnet_size != 0 && u32::from(subnet.prefix()) > cluster.subnet_size {
            let why = format!("address pool {pool} holds no subnet of size {}", cluster.subnet_size);
            return Err(Failure::Invalid(why));
        }
    }
    Ok(())
}

fn first_node(founding: &Founding) -> Node {
    let host = founding.address.rsplit_once(':').map_or(founding.address.as_str(), |(host, _)| host);
    Node {
        id: founding.node_id.clone(),
        spec: Some(NodeSpec {
            annotations: Some(Annotations::default()),
            role: Role::Manager.into(),
            availability: founding.availability.into(),
        }),
        description: Some(founding.description.clone()),
        status: Some(NodeStatus { state: NodeState::Ready.into(), message: String::new(), address: host.to_owned() }),
        manager: Some(ManagerInfo {
            raft_id: founding.raft_id,
            address: founding.address.clone(),
            ..ManagerInfo::default()
        }),
        certificate_role: Role::Manager.into(),
        ..Node::default()
    }
}

fn put(kind: object::Kind) -> Action {
    Action { kind: Some(action::Kind::Put(Object { kind: Some(kind) })) }
}
