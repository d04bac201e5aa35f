//! Published ports: form, conflicts with other services, and those that the cluster itself needs.

use std::collections::BTreeSet;

use skep_proto::v1::{EndpointSpec, PortConfig, Protocol, ResolutionMode, Service};
use skep_state::State;

use super::{Error, invalid};
use crate::allocate::is_mesh;
use crate::reserved::{self, Reserved};

/// Ports in one service at most.
const PORTS: usize = 1000;

/// Checks the ports of a service; `own_id` is empty for a new one.
pub(super) fn check(state: &State, endpoint: &EndpointSpec, own_id: &str) -> Result<(), Error> {
    if endpoint.ports.len() > PORTS {
        return Err(invalid("EndpointSpec.Ports", format!("{PORTS} ports are the most that a service can publish")));
    }
    let (mut seen, reserved) = (BTreeSet::new(), Reserved::of(state));
    for port in &endpoint.ports {
        one(&reserved, port)?;
        if is_mesh(port) && endpoint.mode() == ResolutionMode::Dnsrr {
            let why = "a port can't be published through the mesh with endpoint mode dnsrr: use mode=host, or vip";
            return Err(invalid("EndpointSpec.Mode", why));
        }
        if port.published_port != 0 && !seen.insert((port.published_port, port.protocol)) {
            let why = format!("port {}/{} is published twice", port.published_port, word(port.protocol()));
            return Err(invalid("EndpointSpec.Ports", why));
        }
    }
    if endpoint.ports.iter().any(is_mesh) && state.ingress().is_none() {
        return Err(invalid(
            "EndpointSpec.Ports",
            "there is no ingress network: create one, or publish with mode=host",
        ));
    }
    for service in state.services().filter(|s| s.id != own_id && !s.removing) {
        conflict(&endpoint.ports, service)?;
    }
    Ok(())
}

/// Refuses an address, `host:port`, at which nobody could reach a manager: what the mesh publishes never gets to the node
/// itself.
pub fn manager_address(state: &State, address: &str) -> Result<(), Error> {
    let owner = |port| Some((port, state.port_owner(port, Protocol::Tcp.into())?));
    let Some((port, owner)) = reserved::port(address).and_then(owner) else { return Ok(()) };
    let service = state.service(owner);
    let spec = service.as_ref().and_then(|service| service.spec.as_ref());
    let name = spec.and_then(|spec| spec.annotations.as_ref()).map_or("", |a| a.name.as_str());
    Err(Error::InUse(format!(
        "port {port}/tcp is published by service {name}: no manager can listen there; choose another --listen-addr"
    )))
}

fn one(reserved: &Reserved, port: &PortConfig) -> Result<(), Error> {
    if !(1..=65535).contains(&port.target_port) {
        return Err(invalid(
            "EndpointSpec.Ports.TargetPort",
            format!("{} is no port: use 1 to 65535", port.target_port),
        ));
    }
    if port.published_port > 65535 {
        let why = format!("{} is no port: use 1 to 65535, or 0 to have one chosen", port.published_port);
        return Err(invalid("EndpointSpec.Ports.PublishedPort", why));
    }
    if port.protocol() == Protocol::Sctp {
        let why = "sctp is not supported yet: publish tcp or udp";
        return Err(invalid("EndpointSpec.Ports.Protocol", why));
    }
    if port.published_port == 0 && !is_mesh(port) {
        let why = format!("port {} with mode=host needs a published port: none is chosen there", port.target_port);
        return Err(invalid("EndpointSpec.Ports.PublishedPort", why));
    }
    match reserved.whom(port.published_port, port.protocol()) {
        Some(whom) => {
            let why = format!(
                "port {}/{} is reserved for {whom}: publish another one",
                port.published_port,
                word(port.protocol())
            );
            Err(invalid("EndpointSpec.Ports.PublishedPort", why))
        }
        None => Ok(()),
    }
}

/// A port of the mesh is taken on every node, one of the host on those with a task: two of the latter may share it.
fn conflict(ports: &[PortConfig], other: &Service) -> Result<(), Error> {
    let spec = other.spec.as_ref();
    let asked = spec.and_then(|s| s.endpoint.as_ref()).map_or(&[][..], |e| &e.ports);
    let given = other.endpoint.as_ref().map_or(&[][..], |e| &e.ports);
    for theirs in asked.iter().chain(given).filter(|p| p.published_port != 0) {
        let same = |p: &&PortConfig| {
            (p.published_port, p.protocol) == (theirs.published_port, theirs.protocol)
                && (is_mesh(p) || is_mesh(theirs))
        };
        if let Some(port) = ports.iter().find(same) {
            let name = spec.and_then(|s| s.annotations.as_ref()).map_or("", |a| a.name.as_str());
            let kind = if is_mesh(theirs) { "an ingress port" } else { "a host-published port" };
            return Err(Error::InUse(format!(
                "port '{}' is already in use by service '{name}' ({}) as {kind}; publish another one",
                port.published_port, other.id
            )));
        }
    }
    Ok(())
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}
