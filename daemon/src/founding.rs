//! The first objects of a new cluster. Pure: ids come from the caller.

use skep_manager::ca::{self, RootCa};
use skep_plan::validate;
use skep_proto::v1::{
    Action, Annotations, Availability, Cluster, ClusterSpec, Command, ManagerInfo, Node, NodeDescription, NodeSpec,
    NodeState, NodeStatus, Object, Role, action, object,
};
use skep_state::State;

use crate::api::backend::Failure;

/// VXLAN's port.
const VXLAN_PORT: u32 = 4789;
/// Where networks are cut from, and the prefix length of each.
const DEFAULT_POOL: &str = "10.0.0.0/8";
const SUBNET_SIZE: u32 = 24;
/// Finished tasks kept per slot.
const TASK_HISTORY: u32 = 5;
/// Period of a node's heartbeat; down after three.
const HEARTBEAT_NS: i64 = 1_000_000_000;
/// Log entries between snapshots.
const SNAPSHOT_INTERVAL: u64 = 10_000;

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
        spec: Some(validate::cluster(with_defaults(spec)).map_err(invalid)?),
        root_ca: Some(stored),
        join_tokens: Some(tokens),
        data_path_port: or(founding.data_path_port, VXLAN_PORT),
        default_address_pools: if founding.pools.is_empty() {
            vec![DEFAULT_POOL.to_owned()]
        } else {
            founding.pools.clone()
        },
        subnet_size: or(founding.subnet_size, SUBNET_SIZE),
        generation_base: 0,
        meta: None,
    };
    validate::pools(&cluster).map_err(invalid)?;
    let put_cluster = put(object::Kind::Cluster(cluster));
    let put_node = put(object::Kind::Node(first_node(founding)));
    // The network is cut from the cluster's pools and apart from the node's own addresses, so it is planned against a
    // state that has both.
    let mut scratch = State::default();
    let command = Command { actions: vec![put_cluster.clone(), put_node.clone()], ..Command::default() };
    let _ = scratch.apply(1, &command);
    let ingress = validate::network(&scratch, validate::default_ingress(), &ids()).map_err(invalid)?;
    Ok(vec![put_cluster, put_node, put(object::Kind::Network(ingress))])
}

/// Settings that were not given, as they are in force: so that `info` and `inspect` show them.
pub(crate) fn with_defaults(mut spec: ClusterSpec) -> ClusterSpec {
    spec.task_history_limit.get_or_insert(TASK_HISTORY);
    spec.heartbeat_ns = or(spec.heartbeat_ns, HEARTBEAT_NS);
    spec.certificate_expiry_ns = or(spec.certificate_expiry_ns, skep_proto::time::duration_ns(ca::DEFAULT_LIFE));
    spec.snapshot_interval = or(spec.snapshot_interval, SNAPSHOT_INTERVAL);
    spec
}

/// The value, or what holds when it was not given.
fn or<T: Default + PartialEq>(given: T, default: T) -> T {
    if given == T::default() { default } else { given }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_ingress_network_is_cut_apart_from_the_node_s_own_addresses() {
        let root = RootCa::create(std::time::SystemTime::now()).unwrap();
        let subnet = |pools: &[&str]| {
            let description = NodeDescription {
                data_path_address: "192.168.77.1".to_owned(),
                gateway_subnet: "10.5.0.0/16".to_owned(),
                ..NodeDescription::default()
            };
            let founding = Founding {
                cluster_id: "c".to_owned(),
                node_id: "n".to_owned(),
                raft_id: 1,
                address: "192.168.77.1:2377".to_owned(),
                description,
                data_path_port: 0,
                pools: pools.iter().map(|pool| (*pool).to_owned()).collect(),
                subnet_size: 0,
                availability: Availability::Active,
                spec: ClusterSpec::default(),
            };
            let objects = first_objects(&founding, &root, &mut skep_proto::id::new).map_err(|e| e.to_string())?;
            let network = objects.into_iter().find_map(|action| match action.kind {
                Some(action::Kind::Put(Object { kind: Some(object::Kind::Network(network)) })) => Some(network.subnet),
                _ => None,
            });
            network.ok_or_else(|| "no network".to_owned())
        };
        assert_eq!(subnet(&[]).as_deref(), Ok("10.0.0.0/24"));
        assert_eq!(subnet(&["192.168.77.0/24", "10.9.0.0/16"]).as_deref(), Ok("10.9.0.0/24"));
        assert_eq!(subnet(&["192.168.76.0/22"]).as_deref(), Ok("192.168.76.0/24"));
        assert_eq!(subnet(&["10.4.255.0/24", "10.5.0.0/16"]).as_deref(), Ok("10.4.255.0/24"));
        for pool in ["192.168.77.0/24", "10.5.0.0/16"] {
            let refused = subnet(&[pool]).unwrap_err();
            assert!(refused.contains("no subnet is left"), "{refused}");
        }
    }
}
