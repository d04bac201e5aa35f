//! nftables over netlink: tables, chains, sets, maps, rules, in atomic batches.
//!
//! Decides nothing: it encodes what it is given. Must never touch a table that the caller did not name, and must never read
//! state back on the way to a change. Called by the driver, which owns one table a family and namespace.
//!
//! The wire format is the kernel's `linux/netfilter/nf_tables.h`. A change of one element of a map is one message of some
//! hundred bytes, whatever the size of the map.

mod batch;
mod dump;
mod encode;
mod expr;
mod object;
mod rule;
mod value;

use rustix::io::Errno;

use crate::netlink;
use crate::ns::{self, Namespace};

pub use batch::Batch;
pub use dump::{ChainInfo, Generation, RuleInfo, SetInfo, TableInfo};
pub use expr::{
    Base, Checksum, CmpOp, CtDirection, CtKey, Expr, FibAddress, Meta, NatKind, Numgen, Reg, Reject, Verdict,
};
pub use object::{Chain, ChainType, Data, Hook, Policy, Set};
pub use rule::Rule;
pub use value::{Element, ElementData, Field, Type, Value};

/// Bits of a packet's state as `ct state` yields it, in the byte order of the machine.
pub mod ct_state {
    /// Belongs to no connection that could be understood.
    pub const INVALID: u32 = 1;
    /// Belongs to a connection that has seen both directions.
    pub const ESTABLISHED: u32 = 2;
    /// Starts a connection that another one announced.
    pub const RELATED: u32 = 4;
    /// Starts a connection.
    pub const NEW: u32 = 8;
    /// Not tracked.
    pub const UNTRACKED: u32 = 64;
}

/// Bits of a connection's status as `ct status` yields it, in the byte order of the machine.
pub mod ct_status {
    /// Packets were seen in both directions.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// Its source is rewritten.
    pub const SRC_NAT: u32 = 1 << 4;
    /// Its destination is rewritten.
    pub const DST_NAT: u32 = 1 << 5;
}

/// What kind of packets a table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// IPv4 and IPv6.
    Inet,
    /// Frames of one link.
    Netdev,
    /// Frames that cross a bridge.
    Bridge,
    /// ARP or a family of a later kernel, by number.
    Other(u8),
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ip6 => 10,
            Self::Other(n) => n,
        }
    }

    pub(crate) fn of(number: u8) -> Self {
        match number {
            1 => Self::Inet,
            2 => Self::Ip,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ip6,
            n => Self::Other(n),
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip => f.write_str("ip"),
            Self::Ip6 => f.write_str("ip6"),
            Self::Inet => f.write_str("inet"),
            Self::Netdev => f.write_str("netdev"),
            Self::Bridge => f.write_str("bridge"),
            Self::Other(n) => write!(f, "family {n}"),
        }
    }
}

/// Names a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name, unique in the family.
    pub name: String,
}

impl Table {
    /// The table of that family and name.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into() }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// Why a request failed. A batch that failed changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a message of a batch; the first is named.
    #[error("nftables: {what}: {}{}", std::io::Error::from(*errno), text.as_deref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Refused {
        /// The message, with its object.
        what: String,
        /// Position of the message in its batch, from 0; `None` is the batch as a whole.
        position: Option<usize>,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's own words, where it has some.
        text: Option<String>,
        /// How many messages of the batch were refused in all.
        refused: usize,
    },
    /// The ruleset is not of the generation that the batch was made for; read it again and plan anew.
    #[error("nftables: the ruleset was changed by somebody else since it was read")]
    Changed,
    /// A batch exceeds what one transaction may hold; split it.
    #[error("nftables: a batch of {bytes} bytes is too large; split it")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A value exceeds its field (an attribute of 64 KiB, a comment of 127 bytes, a register beyond the last).
    #[error("nftables: {what}: a value is too long")]
    TooLong {
        /// The message, with its object.
        what: String,
    },
    /// The ruleset kept changing while it was read; try again later.
    #[error("nftables: {what}: the ruleset kept changing while it was read")]
    Interrupted {
        /// The query.
        what: String,
    },
    /// The kernel did not answer, or the answers overran the socket. Whether a batch is in force is not known: read the
    /// generation.
    #[error("nftables: {what}: no answer from the kernel")]
    NoAnswer {
        /// The request.
        what: String,
    },
    /// The socket failed.
    #[error("nftables: {what}: {}", std::io::Error::from(*errno))]
    Socket {
        /// The request.
        what: String,
        /// The kernel's error number.
        errno: Errno,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] ns::Error),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An object that the request names does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { errno: Errno::NOENT, .. })
    }

    /// An object that the request would make exists.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Refused { errno: Errno::EXIST, .. })
    }

    fn from_netlink(what: &str, error: netlink::Error) -> Self {
        let what = what.to_owned();
        match error {
            netlink::Error::Namespace(e) => Self::Namespace(e),
            netlink::Error::Socket(Errno::NOBUFS) | netlink::Error::TimedOut => Self::NoAnswer { what },
            netlink::Error::Socket(errno) => Self::Socket { what, errno },
            netlink::Error::Interrupted => Self::Interrupted { what },
            netlink::Error::Refused(errno, text) => Self::Refused { what, position: None, errno, text, refused: 1 },
        }
    }
}

/// An nftables socket in one namespace. Calls block, for microseconds.
#[derive(Debug)]
pub struct Socket {
    netlink: netlink::Socket,
}

impl Socket {
    /// Opens a socket in `namespace`.
    pub fn open(namespace: &Namespace) -> Result<Self> {
        let netlink = netlink::Socket::open(namespace).map_err(|e| Error::from_netlink("open a socket", e))?;
        Ok(Self { netlink })
    }

    /// Opens a socket in the namespace of the calling thread.
    pub fn here() -> Result<Self> {
        let netlink = netlink::Socket::here().map_err(|e| Error::from_netlink("open a socket", e))?;
        Ok(Self { netlink })
    }
}

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;

/// Types of messages: `enum nf_tables_msg_types`.
pub(crate) mod message {
    pub(crate) const NEW_TABLE: u16 = 0;
    pub(crate) const GET_TABLE: u16 = 1;
    pub(crate) const DELETE_TABLE: u16 = 2;
    pub(crate) const NEW_CHAIN: u16 = 3;
    pub(crate) const GET_CHAIN: u16 = 4;
    pub(crate) const DELETE_CHAIN: u16 = 5;
    pub(crate) const NEW_RULE: u16 = 6;
    pub(crate) const GET_RULE: u16 = 7;
    pub(crate) const DELETE_RULE: u16 = 8;
    pub(crate) const NEW_SET: u16 = 9;
    pub(crate) const GET_SET: u16 = 10;
    pub(crate) const DELETE_SET: u16 = 11;
    pub(crate) const NEW_ELEMENT: u16 = 12;
    pub(crate) const GET_ELEMENT: u16 = 13;
    pub(crate) const DELETE_ELEMENT: u16 = 14;
    pub(crate) const GET_GENERATION: u16 = 16;
}
