//! Subnet, gateway and VNI of a new network.

use std::sync::Arc;

use skep_proto::v1::{IpamConfig, Network, Node};
use skep_state::State;
use skep_state::subnet::{Subnet, format_address, parse_address};

/// The first VNI that is given out.
const FIRST_VNI: u32 = 4096;
/// VNIs have 24 bits.
const LAST_VNI: u32 = 0x00ff_ffff;
/// What networks are cut from when the cluster names no pools.
const DEFAULT_POOL: &str = "10.0.0.0/8";
const DEFAULT_SIZE: u8 = 24;

/// What a network is given once and for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) vni: u32,
    pub(crate) subnet: Subnet,
    pub(crate) gateway: String,
}

/// Why there is no place for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("subnet {wanted} overlaps with {other} of network {network}: choose another one")]
    Overlap { wanted: Subnet, other: Subnet, network: String },
    #[error(
        "subnet {wanted} holds {address}, the address of node {node}: the network would cut that node off from the others; \
         choose a subnet that no machine around has addresses in"
    )]
    NodeInside { wanted: Subnet, address: String, node: String },
    #[error(
        "subnet {wanted} overlaps with {other}, through which the containers of node {node} reach the outside: choose \
         another one, or give that node another gateway-subnet"
    )]
    Gateway { wanted: Subnet, other: Subnet, node: String },
    #[error("no subnet is left in the default address pools: name one, or remove networks")]
    NoSubnet,
    #[error("all {} VXLAN network identifiers are in use", LAST_VNI - FIRST_VNI + 1)]
    NoVni,
}

/// Chooses what `config` leaves open. Its texts are valid: the caller has checked them.
pub(crate) fn plan(state: &State, config: &IpamConfig) -> Result<Plan, Error> {
    let used: Vec<(Subnet, &str)> =
        state.networks().filter_map(|n| Some((n.subnet.parse().ok()?, network_name(n)))).collect();
    let subnet = match config.subnet.parse::<Subnet>() {
        Ok(wanted) => {
            is_free(state, wanted, &used)?;
            wanted
        }
        Err(_) => {
            let hosts = node_addresses(state).filter_map(|(address, _)| Subnet::of(address, 32));
            let gateways = gateways(state).map(|(subnet, _)| subnet);
            let taken: Vec<Subnet> = used.iter().map(|(subnet, _)| *subnet).chain(hosts).chain(gateways).collect();
            cut(state, &taken).ok_or(Error::NoSubnet)?
        }
    };
    let gateway = match parse_address(&config.gateway) {
        Some(gateway) => format_address(gateway),
        None => format_address(subnet.base().saturating_add(1)),
    };
    let mut vnis: Vec<u32> = state.networks().map(|n| n.vni).collect();
    vnis.sort_unstable();
    let vni = (FIRST_VNI..=LAST_VNI).find(|vni| vnis.binary_search(vni).is_err()).ok_or(Error::NoVni)?;
    Ok(Plan { vni, subnet, gateway })
}

/// Whether neither a network nor a node has addresses in the subnet that is wanted.
fn is_free(state: &State, wanted: Subnet, used: &[(Subnet, &str)]) -> Result<(), Error> {
    if let Some((other, network)) = used.iter().find(|(other, _)| other.overlaps(wanted)) {
        return Err(Error::Overlap { wanted, other: *other, network: (*network).to_owned() });
    }
    if let Some((address, node)) = node_addresses(state).find(|(address, _)| wanted.contains(*address)) {
        return Err(Error::NodeInside { wanted, address: format_address(address), node: name(&node) });
    }
    match gateways(state).find(|(other, _)| other.overlaps(wanted)) {
        Some((other, node)) => Err(Error::Gateway { wanted, other, node: name(&node) }),
        None => Ok(()),
    }
}

/// The subnets of the nodes' gateway bridges.
fn gateways(state: &State) -> impl Iterator<Item = (Subnet, Arc<Node>)> + '_ {
    let gateway = |node: &Node| node.description.as_ref()?.gateway_subnet.parse().ok();
    state.nodes().filter_map(move |node| Some((gateway(node)?, Arc::clone(node))))
}

/// The addresses by which nodes reach each other. What else their machines route to, nobody here knows.
fn node_addresses(state: &State) -> impl Iterator<Item = (u32, Arc<Node>)> + '_ {
    state.nodes().flat_map(|node| {
        let seen = node.status.as_ref().map(|s| s.address.as_str());
        let data_path = node.description.as_ref().map(|d| d.data_path_address.as_str());
        let manager = node.manager.as_ref().map(|m| m.address.as_str());
        let texts = [seen, data_path, manager].into_iter().flatten();
        let host = |text: &str| parse_address(text.rsplit_once(':').map_or(text, |(host, _)| host));
        texts.filter_map(host).map(|address| (address, Arc::clone(node))).collect::<Vec<_>>()
    })
}

fn network_name(network: &Network) -> &str {
    let annotations = network.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
    annotations.map_or(network.id.as_str(), |annotations| annotations.name.as_str())
}

fn name(node: &Node) -> String {
    let hostname = node.description.as_ref().map_or("", |d| d.hostname.as_str());
    if hostname.is_empty() { node.id.clone() } else { hostname.to_owned() }
}

/// The first subnet of the pools that overlaps with none in use.
fn cut(state: &State, used: &[Subnet]) -> Option<Subnet> {
    let cluster = state.cluster();
    let pools: Vec<Subnet> = cluster
        .iter()
        .flat_map(|c| &c.default_address_pools)
        .map(String::as_str)
        .filter_map(|pool| pool.parse().ok())
        .collect();
    let pools = if pools.is_empty() { DEFAULT_POOL.parse().ok().into_iter().collect() } else { pools };
    let size = cluster.as_ref().map_or(0, |c| c.subnet_size);
    let size = u8::try_from(size).ok().filter(|s| (1..=29).contains(s)).unwrap_or(DEFAULT_SIZE);
    for pool in pools {
        let mut base = pool.base();
        loop {
            let candidate = Subnet::of(base, size.max(pool.prefix()))?;
            // Go on behind whatever is in the way, however large it is.
            let behind = match used.iter().find(|other| other.overlaps(candidate)) {
                Some(other) => other.last().max(candidate.last()),
                None => return Some(candidate),
            };
            match behind.checked_add(1) {
                Some(next) if pool.contains(next) => base = next,
                _ => break,
            }
        }
    }
    None
}
