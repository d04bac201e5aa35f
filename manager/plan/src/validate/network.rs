//! A new network: checked, and given its subnet, gateway and VNI.

use skep_proto::v1::{Annotations, Driver, IpamConfig, Network, NetworkSpec, Service};
use skep_state::State;
use skep_state::subnet::{Subnet, parse_address};

use super::{Error, NAME, User, annotations, check_name, invalid, unused, users};
use crate::allocate::{self, is_mesh};

/// Names that mean something else on every node.
const RESERVED: [&str; 5] = ["bridge", "default", "docker_gwbridge", "host", "none"];
/// Longest prefix: below it there is no room for tasks.
const LONGEST_PREFIX: u8 = 29;

/// What to say of a network that every node has one of and no service can use; `None` of others.
pub fn only_overlay(name: &str) -> Option<&'static str> {
    let why = "it is a single node's own, and services use overlay networks only: create one, or leave the network out";
    RESERVED.contains(&name).then_some(why)
}

/// Addresses that no machine can have on a network, or that mean another thing on each: base, prefix, name (RFC 6890).
const NOT_FOR_NETWORKS: [(u32, u8, &str); 4] = [
    (0, 8, "unspecified"),
    (0x7F00_0000, 8, "loopback"),
    (0xA9FE_0000, 16, "link-local"),
    (0xE000_0000, 3, "multicast or reserved"),
];

/// The mesh's network as a new cluster gets it. Its subnet is the first of the default pools, 10.0.0.0/24.
pub fn default_ingress() -> NetworkSpec {
    NetworkSpec {
        annotations: Some(Annotations { name: "ingress".to_owned(), ..Annotations::default() }),
        driver: Some(Driver { name: "overlay".to_owned(), ..Driver::default() }),
        ingress: true,
        ..NetworkSpec::default()
    }
}

/// A new network with everything that it is given once and for all.
pub fn network(state: &State, mut spec: NetworkSpec, id: &str) -> Result<Network, Error> {
    let name = annotations(spec.annotations.as_ref())?.name.clone();
    check_name("Name", &name, NAME, "-_.")?;
    if only_overlay(&name).is_some() {
        return Err(invalid("Name", format!("{name} is the name of a predefined network: choose another")));
    }
    let named = |n: &Network| n.spec.as_ref().and_then(|s| s.annotations.as_ref()).is_some_and(|a| a.name == name);
    if state.networks().any(|n| named(n)) {
        return Err(Error::NameInUse { kind: "network", name });
    }
    let driver = spec.driver.get_or_insert_default();
    if driver.name.is_empty() {
        "overlay".clone_into(&mut driver.name);
    }
    if driver.name != "overlay" {
        return Err(invalid("Driver", format!("`{}` is not supported in a swarm: use overlay", driver.name)));
    }
    if spec.ipv6 {
        return Err(invalid("EnableIPv6", "IPv6 on overlay networks is not supported yet: leave it out"));
    }
    if let Some(option) = driver.options.keys().next() {
        let why = match option.as_str() {
            // Clear text where secrecy was asked for would be worse than no network.
            "encrypted" => "encryption of overlay networks is not supported yet: leave it out".to_owned(),
            option => format!("`{option}` is not supported on overlay networks: leave it out"),
        };
        return Err(invalid("Options", why));
    }
    if spec.internal {
        let why = "networks without a way to the outside are not supported yet: leave it out";
        return Err(invalid("Internal", why));
    }
    if spec.ingress {
        if let Some(other) = state.ingress() {
            return Err(invalid(
                "Ingress",
                format!("there is an ingress network already ({}): remove it first", other.id),
            ));
        }
        if spec.attachable {
            return Err(invalid("Ingress", "an ingress network can't be attachable"));
        }
    }
    let config = ipam(&spec)?;
    let plan = allocate::plan_network(state, &config).map_err(|e| invalid("IPAM.Config", e.to_string()))?;
    check_inside(&config, plan.subnet)?;
    Ok(network_of(id, spec, plan))
}

fn network_of(id: &str, spec: NetworkSpec, plan: allocate::NetworkPlan) -> Network {
    Network {
        id: id.to_owned(),
        meta: None,
        spec: Some(spec),
        vni: plan.vni,
        subnet: plan.subnet.to_string(),
        gateway: plan.gateway,
        last_address: String::new(),
    }
}

/// The one configuration of addresses that a network may have.
fn ipam(spec: &NetworkSpec) -> Result<IpamConfig, Error> {
    let Some(ipam) = &spec.ipam else { return Ok(IpamConfig::default()) };
    if !matches!(ipam.driver.as_str(), "" | "default") {
        return Err(invalid("IPAM.Driver", format!("`{}` is not supported: use default", ipam.driver)));
    }
    if let Some(option) = ipam.options.keys().next() {
        return Err(invalid("IPAM.Options", format!("`{option}` is not supported: leave it out")));
    }
    let config = match ipam.configs.as_slice() {
        [] => return Ok(IpamConfig::default()),
        [config] => config.clone(),
        _ => return Err(invalid("IPAM.Config", "several subnets are not supported: give one")),
    };
    if config.subnet.is_empty() {
        if config.gateway.is_empty() && config.range.is_empty() && config.reserved.is_empty() {
            return Ok(config);
        }
        return Err(invalid(
            "IPAM.Config.Subnet",
            "a subnet is needed when gateway, range or reserved addresses are given",
        ));
    }
    let subnet: Subnet = config.subnet.parse().map_err(|e| invalid("IPAM.Config.Subnet", format!("{e}")))?;
    if subnet.prefix() > LONGEST_PREFIX {
        return Err(invalid("IPAM.Config.Subnet", format!("{subnet} is too small: /{LONGEST_PREFIX} is the smallest")));
    }
    if subnet.prefix() < 8 {
        return Err(invalid("IPAM.Config.Subnet", format!("{subnet} is too large: /8 is the largest")));
    }
    for (base, prefix, what) in NOT_FOR_NETWORKS {
        if Subnet::of(base, prefix).is_some_and(|kept| kept.overlaps(subnet)) {
            return Err(invalid("IPAM.Config.Subnet", format!("{subnet} holds {what} addresses: give another one")));
        }
    }
    Ok(config)
}

fn check_inside(config: &IpamConfig, subnet: Subnet) -> Result<(), Error> {
    let inside = |field: &str, text: &str| match parse_address(text) {
        Some(address) if subnet.contains(address) && address != subnet.base() && address != subnet.last() => Ok(()),
        _ => Err(invalid(field, format!("`{text}` is no usable address of {subnet}"))),
    };
    if !config.gateway.is_empty() {
        inside("IPAM.Config.Gateway", &config.gateway)?;
    }
    for address in config.reserved.values() {
        inside("IPAM.Config.AuxiliaryAddresses", address)?;
    }
    if !config.range.is_empty() {
        let range: Subnet = config.range.parse().map_err(|e| invalid("IPAM.Config.IPRange", format!("{e}")))?;
        if !subnet.contains(range.base()) || !subnet.contains(range.last()) {
            return Err(invalid("IPAM.Config.IPRange", format!("{range} does not lie in {subnet}")));
        }
    }
    Ok(())
}

/// Whether nothing uses the network any more.
pub fn network_removal(state: &State, network: &Network) -> Result<(), Error> {
    let spec = network.spec.as_ref();
    let name = spec.and_then(|s| s.annotations.as_ref()).map_or("", |a| a.name.as_str());
    let mut users = users(state, |task| task.networks.iter().any(|n| n.target == network.id));
    if spec.is_some_and(|s| s.ingress) {
        let publishes = state
            .services()
            .filter(|s| !s.removing)
            .filter_map(|s| s.spec.as_ref())
            .filter(|s| s.endpoint.as_ref().is_some_and(|e| e.ports.iter().any(is_mesh)));
        let names = publishes.filter_map(|s| s.annotations.as_ref()).map(|a| a.name.clone());
        users.extend(names.map(|name| User { name, removing: false }));
    }
    users.extend(state.services().filter(|s| s.removing && has_address(s, &network.id)).map(|s| User::of(s)));
    users.sort();
    users.dedup();
    unused(&users, |users| format!("network {name} is in use by service {users}: remove or change it first"))
}

/// Whether the service holds a virtual address on the network. One that is being removed does until its very end, which
/// comes a round of planning after that of its last task.
fn has_address(service: &Service, network: &str) -> bool {
    service.endpoint.iter().flat_map(|e| &e.virtual_ips).any(|v| v.network_id == network && !v.address.is_empty())
}
