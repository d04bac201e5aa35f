//! Links, addresses, routes, rules, neighbours and forwarding entries of one network namespace, over rtnetlink.
//!
//! Decides nothing: every call is one request and its answer. Must never create or change an object of another name or
//! index than the one given. Called by the driver's reconcile loop, which keeps one [`Handle`] a namespace.
//!
//! Calls on one handle are put together: poll several at once (`futures::join!`, `join_all`) and the kernel receives them in
//! the order of their first poll, in one system call. It works on them inside that call.

mod address;
mod device;
mod dump;
mod neighbour;
mod route;
mod socket;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;

use self::socket::{Failed, Socket};
use crate::ns::{self, Namespace};

pub use address::Address;
pub use device::{Bridge, Change, Port, VethEnd, Vxlan};
pub use dump::{Kind, Link};
pub use neighbour::{Fdb, FdbPlace, Neighbour};
pub use route::{Route, RouteKind, Rule, Scope, TABLE_LOCAL, TABLE_MAIN};

/// How long the kernel may take for one answer. It takes microseconds; a second is a kernel in trouble.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often a dump is begun again when something changes meanwhile.
const ATTEMPTS: usize = 8;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object exists already.
    #[error("{what}: exists already")]
    AlreadyExists {
        /// The request, with its object.
        what: String,
    },
    /// The object, or the link that it should belong to, does not exist.
    #[error("{what}: no such object")]
    NotFound {
        /// The request, with its object.
        what: String,
    },
    /// Any other refusal of the kernel.
    #[error("{what}: {}", std::io::Error::from(*errno))]
    Refused {
        /// The request, with its object.
        what: String,
        /// The kernel's error number.
        errno: Errno,
    },
    /// A value that the kernel could not hold, caught before it was asked.
    #[error("{what}: {why}")]
    Invalid {
        /// The request, with its object.
        what: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The kernel did not answer within five seconds.
    #[error("{what}: no answer from the kernel within {} s", DEADLINE.as_secs())]
    TimedOut {
        /// The request, with its object.
        what: String,
    },
    /// The socket failed.
    #[error("{what}: netlink socket: {}", std::io::Error::from(*errno))]
    Broken {
        /// The request, with its object.
        what: String,
        /// The system's error number.
        errno: Errno,
    },
    /// What was listed kept changing; try again later.
    #[error("{what}: it kept changing while it was read")]
    Interrupted {
        /// The request.
        what: String,
    },
    /// The kernel's answer was not of the kind that the request asks for.
    #[error("{what}: unexpected answer from the kernel")]
    Unexpected {
        /// The request, with its object.
        what: String,
    },
    /// The socket could not be made.
    #[error("open a netlink socket: {0}")]
    Socket(#[source] std::io::Error),
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] ns::Error),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn from_errno(what: String, errno: Errno) -> Self {
        match errno {
            Errno::EXIST => Self::AlreadyExists { what },
            Errno::NODEV | Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL => Self::NotFound { what },
            errno => Self::Refused { what, errno },
        }
    }
}

/// For a removal: that the object is absent already is what was wanted.
pub fn absent_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::NotFound { .. }) => Ok(()),
        other => other,
    }
}

/// For an addition of something that has no other properties than its key: that it exists already is what was wanted.
pub fn present_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::AlreadyExists { .. }) => Ok(()),
        other => other,
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of an overlay endpoint: `02:42` and its IPv4 address. Balancers and endpoints rely on it: the last four
    /// bytes are the mark by which a reply finds its balancer.
    pub const fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address with the length of its network prefix, as in `10.0.0.11/24`. As a route's destination the host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpNet {
    /// The address.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

impl IpNet {
    /// Every IPv4 address: the destination of a default route.
    pub const ALL_V4: Self = Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0 };
    /// Every IPv6 address: the destination of a default route.
    pub const ALL_V6: Self = Self { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), prefix: 0 };

    /// `address/prefix`; the prefix is not checked here but by the kernel.
    pub fn new(address: impl Into<IpAddr>, prefix: u8) -> Self {
        Self { address: address.into(), prefix }
    }

    /// The single address.
    pub fn host(address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text was not of the form `address/prefix`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: expected an address and a prefix length, such as 10.0.0.1/24")]
pub struct ParseError(String);

impl FromStr for IpNet {
    type Err = ParseError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseError> {
        let parsed = text.split_once('/').and_then(|(a, p)| Some((a.parse::<IpAddr>().ok()?, p.parse::<u8>().ok()?)));
        match parsed {
            Some((address, prefix)) if prefix <= if address.is_ipv4() { 32 } else { 128 } => {
                Ok(Self { address, prefix })
            }
            _ => Err(ParseError(text.to_owned())),
        }
    }
}

/// A netlink socket in one namespace. Clones share it.
#[derive(Debug, Clone)]
pub struct Handle {
    socket: Arc<Mutex<Socket>>,
}

/// A request whose outcome somebody waits for.
struct Posted<'a> {
    handle: &'a Handle,
    sequence: u32,
}

impl Drop for Posted<'_> {
    fn drop(&mut self) {
        self.handle.socket().abandon(self.sequence);
    }
}

impl Handle {
    /// Opens a socket in `namespace`.
    pub fn open(namespace: &Namespace) -> Result<Self> {
        namespace.run(Self::here)?
    }

    /// Opens a socket in the namespace of the calling thread.
    pub fn here() -> Result<Self> {
        Ok(Self { socket: Arc::new(Mutex::new(Socket::here().map_err(Error::Socket)?)) })
    }

    /// Every call leaves the socket usable.
    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one request, together with those that others make at the same time, and tells how it ended.
    async fn act(&self, message: RouteNetlinkMessage, flags: u16, what: impl FnOnce() -> String) -> Result<()> {
        let posted = Posted { handle: self, sequence: self.socket().post(message, flags) };
        // Whoever is polled together with this one posts first.
        give_way().await;
        let outcome = self.socket().outcome(posted.sequence);
        outcome.map_err(|failed| failed_to(what(), failed))
    }

    /// Sends one query and collects what `pick` keeps of the answers. A dump during which something changed is begun again.
    async fn query<T>(
        &self,
        message: RouteNetlinkMessage,
        dump: bool,
        what: impl Fn() -> String,
        mut pick: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            let found = self.socket().query(message.clone(), dump, &mut pick);
            match found {
                Err(Failed::Interrupted) => give_way().await,
                other => return other.map_err(|failed| failed_to(what(), failed)),
            }
        }
        Err(Error::Interrupted { what: what() })
    }
}

fn failed_to(what: String, failed: Failed) -> Error {
    match failed {
        Failed::Refused(errno) => Error::from_errno(what, errno),
        Failed::TimedOut => Error::TimedOut { what },
        Failed::Interrupted => Error::Interrupted { what },
        Failed::Socket(errno) => Error::Broken { what, errno },
    }
}

/// Lets all that is polled together with the caller be polled once.
async fn give_way() {
    let mut given = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_mac_of_an_endpoint_holds_its_address() {
        assert_eq!(Mac::of(Ipv4Addr::new(10, 0, 0, 11)).to_string(), "02:42:0a:00:00:0b");
    }

    #[test]
    fn prefixes_are_read_and_written_alike() {
        for text in ["10.0.0.11/24", "0.0.0.0/0", "fd00::1/64"] {
            assert_eq!(text.parse::<IpNet>().unwrap().to_string(), text);
        }
        for text in ["10.0.0.11", "10.0.0.11/33", "x/8", "fd00::1/129", ""] {
            assert!(text.parse::<IpNet>().is_err(), "{text}");
        }
    }
}
