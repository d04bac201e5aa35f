//! The wires of a node, kept right: one loop reads what is wanted, compares it with what the kernel holds, and mends the
//! difference. Containers' namespaces, the gateway bridge, overlay networks with their balancers, published ports,
//! virtual addresses, names.
//!
//! Decides nothing that `skep-net-plan` can decide, and touches the kernel through `skep-net-kernel` alone. Must never
//! change what others made, disturb flows when it is started again, or take generation 0 (nothing known yet) for a
//! wish to remove everything. The worker is the only caller.
//!
//! What it can't mend: base chains of others that drop forwarded packets (a FORWARD policy of DROP). A packet passes only
//! if every table lets it pass; such hosts have to accept what comes in or leaves by links whose names start with the
//! prefix, and by the gateway bridge.

#![forbid(unsafe_code)]

mod apply;
mod dns;
mod driver;
mod error;
mod firewall;
mod gateway;
mod observe;
mod pins;
mod reconcile;
mod status;
mod watches;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

pub use dns::Error as DnsError;
pub use driver::Driver;
pub use error::{Error, Result};
pub use skep_net_kernel::ns::{Error as NamespaceError, Namespace};
pub use skep_net_plan as plan;
pub use skep_net_plan::{
    Attachment, Desired, DnsConfig, Endpoint, HostPort, Network, Peer, Protocol, PublishedPort, Sandbox, Service,
    ServiceNetwork, Subnet, Underlay,
};
pub use status::{SandboxState, Status};

/// Where a driver keeps its namespaces, and how it names what it makes.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory for pinned namespaces (`netns/<sandbox>`, `balancers/<network>`); on a file system that a reboot clears.
    pub run_dir: PathBuf,
    /// Name of the gateway bridge, at most 15 letters.
    pub gateway_bridge: String,
    /// First letters of all other links in the node's namespace, 1 to 4.
    pub prefix: String,
    /// First range for the links between the node and its ingress balancers; node-local.
    pub ingress_link: Subnet,
    /// The node's namespace; `None` = that of the caller.
    pub node_ns: Option<Namespace>,
    /// How often the kernel is read and mended without any other reason.
    pub verify: Duration,
}

impl Config {
    /// The usual names, with namespaces below `run_dir`.
    #[must_use]
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        let names = plan::Config::default();
        Self {
            run_dir: run_dir.into(),
            gateway_bridge: names.gateway_bridge,
            prefix: names.prefix,
            ingress_link: names.ingress_link,
            node_ns: None,
            verify: Duration::from_secs(2),
        }
    }

    /// The part that the plan needs, checked.
    fn names(&self) -> Result<plan::Config> {
        let word = |text: &str, most: usize| {
            (1..=most).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if !word(&self.prefix, 4) {
            return Err(Error::Config {
                what: format!("link prefix {:?} has not 1 to 4 letters or digits", self.prefix),
            });
        }
        if !word(&self.gateway_bridge, 15) {
            return Err(Error::Config {
                what: format!("bridge name {:?} has not 1 to 15 letters or digits", self.gateway_bridge),
            });
        }
        if self.ingress_link.prefix > 30 {
            return Err(Error::Config {
                what: format!("ingress link range {} holds no two hosts; use a /30", self.ingress_link),
            });
        }
        Ok(plan::Config {
            prefix: self.prefix.clone(),
            gateway_bridge: self.gateway_bridge.clone(),
            ingress_link: self.ingress_link,
        })
    }
}
