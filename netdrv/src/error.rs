//! Why the driver could not do something: which object, what the kernel said, what to do.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use skep_net_kernel::{conntrack, link, nft, ns};
use skep_net_plan::Subnet;

/// Result of the driver.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the driver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that can't work.
    #[error("network configuration: {what}")]
    Config {
        /// What is wrong with it.
        what: String,
    },
    /// An id that can't be a file name.
    #[error("{id:?} can't name a namespace; ids have 1 to 128 letters, digits, '-', '_' and '.'")]
    BadId {
        /// The id.
        id: String,
    },
    /// A directory of the driver.
    #[error("{}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Namespaces.
    #[error(transparent)]
    Namespace(#[from] ns::Error),
    /// Links, addresses, routes, neighbours.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// The firewall.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// Connection tracking.
    #[error(transparent)]
    Conntrack(#[from] conntrack::Error),
    /// The resolver.
    #[error(transparent)]
    Dns(#[from] crate::dns::Error),
    /// A link that a step needs isn't there.
    #[error("link {name} is missing; it is made again in the next round")]
    NoLink {
        /// Its name.
        name: String,
    },
    /// The namespace of a step isn't open.
    #[error("{place}: its namespace isn't open")]
    NoNamespace {
        /// The namespace.
        place: String,
    },
    /// No link of the node has the data-path address.
    #[error("data-path address {address} is on no link of this node; set it to an address that the node has")]
    NoUnderlay {
        /// The address.
        address: Ipv4Addr,
    },
    /// No gateway address is free.
    #[error("all {} addresses of gateway subnet {subnet} are in use; choose a larger one", subnet.hosts())]
    GatewayFull {
        /// The subnet.
        subnet: Subnet,
    },
    /// Sandboxes that an earlier daemon left could not be read yet.
    #[error("gateway addresses wait until sandboxes of an earlier daemon can be read ({sandboxes}); trying again")]
    Unread {
        /// Their ids.
        sandboxes: String,
    },
    /// A helper thread was lost.
    #[error("a helper thread of the network driver ended unexpectedly")]
    Lost,
    /// The driver was stopped, or takes too long.
    #[error("the network driver does not answer; it was stopped or is stuck")]
    Stopped,
}
