//! Which tracked connections must go after a change. Flows of endpoints that are merely no longer ready go on (that is
//! draining), with two exceptions: UDP, which would never move, and endpoints that are gone.

use std::net::Ipv4Addr;

use imbl::ordmap::DiffItem;

use crate::desired::Protocol;
use crate::diff::{Op, Step};
use crate::nft::{NftOp, Value};
use crate::slots::{Front, Slots};
use crate::space::Place;

/// The address that a client called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Called {
    /// This one.
    Address(Ipv4Addr),
    /// Any that the namespace itself has, loopback included.
    Own,
}

/// Delete the tracked connections of a namespace that match every given condition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flush {
    /// The namespace.
    pub place: Place,
    /// Transport protocol.
    pub protocol: Option<Protocol>,
    /// The address that the client called.
    pub destination: Option<Called>,
    /// The port that the client called.
    pub port: Option<u16>,
    /// The endpoint that answers.
    pub endpoint: Option<Ipv4Addr>,
}

/// The flushes after `steps` led from the slots `before` to `after`; sorted, each once.
#[must_use]
pub fn flushes(before: &Slots, after: &Slots, steps: &[Step]) -> Vec<Flush> {
    let mut found = Vec::new();
    for item in before.diff(after) {
        let (key, held, kept) = match item {
            // What came before there was a translation was tracked as untranslated, and would stay so.
            DiffItem::Add(key, _) => {
                found.extend(udp(&key.network, key.front, None));
                continue;
            }
            DiffItem::Update { old: (key, held), new: (_, kept) } => (key, held, kept.as_slice()),
            DiffItem::Remove(key, held) => (key, held, [].as_slice()),
        };
        for backend in held.iter().filter(|b| !kept.contains(b)) {
            found.extend(udp(&key.network, key.front, Some(backend.address)));
        }
    }
    for step in steps {
        match (&step.place, &step.op) {
            (Place::Balancer(_), Op::DelNeighbour { address, .. }) => found.push(Flush {
                place: step.place.clone(),
                protocol: None,
                destination: None,
                port: None,
                endpoint: Some(*address),
            }),
            (Place::Host, Op::Nft { ops }) => found.extend(ops.iter().flat_map(host_ports)),
            _ => {}
        }
    }
    found.sort();
    found.dedup();
    found
}

fn udp(network: &str, front: Front, endpoint: Option<Ipv4Addr>) -> Option<Flush> {
    let (destination, port) = match front {
        Front::Vip(vip) => (Some(Called::Address(vip)), None),
        Front::Port(Protocol::Udp, port) => (None, Some(port)),
        Front::Port(Protocol::Tcp, _) => return None,
    };
    let place = Place::Balancer(network.to_owned());
    Some(Flush { place, protocol: Some(Protocol::Udp), destination, port, endpoint })
}

/// The node's own UDP ports that now lead elsewhere. Others' flows to the same port pass through the node, or lead from
/// it to somewhere: what led to a container or balancer is known by who answered, what was untranslated by whom it called.
fn host_ports(op: &NftOp) -> Vec<Flush> {
    let (elements, removed) = match op {
        NftOp::AddElements { elements, .. } => (elements, false),
        NftOp::DelElements { elements, .. } => (elements, true),
        _ => return Vec::new(),
    };
    let udp = Protocol::Udp.number();
    let flush = |(key, value): &(Vec<u8>, Value)| {
        let port = match key.as_slice() {
            [proto, _, _, _, hi, lo, ..] if *proto == udp => u16::from_be_bytes([*hi, *lo]),
            _ => return None,
        };
        let led_to = match value {
            Value::Bytes(bytes) => bytes.first_chunk::<4>().map(|a| Ipv4Addr::from(*a)),
            _ => None,
        };
        // One whose end isn't known had none that could be tracked.
        let (destination, endpoint) = if removed { (None, Some(led_to?)) } else { (Some(Called::Own), None) };
        Some(Flush { place: Place::Host, protocol: Some(Protocol::Udp), destination, port: Some(port), endpoint })
    };
    elements.iter().filter_map(flush).collect()
}
