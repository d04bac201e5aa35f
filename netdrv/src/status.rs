//! What the driver tells the worker about its work.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The state of a node's wires.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Generation that is in force in the node's namespace and in every balancer: an endpoint that it does not list
    /// gets no new connection through this node.
    pub applied: u64,
    /// Every sandbox that is open or wanted.
    pub sandboxes: BTreeMap<String, SandboxState>,
    /// Steps that mended drift since the start.
    pub repaired: u64,
    /// How often notifications of the kernel, not the timer, made the driver look.
    pub woken: u64,
    /// What kept the last round from being complete; `None` = nothing.
    pub last_error: Option<String>,
}

/// The state of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxState {
    /// It isn't open yet, nothing is known about its attachments, or a network of it isn't.
    Pending,
    /// Attached to all its networks; its resolver answers.
    Ready {
        /// Its address on the gateway bridge.
        gateway_address: Option<Ipv4Addr>,
    },
    /// Something failed; it is tried again.
    Failed {
        /// What.
        why: String,
    },
}
