//! What the kernel tells about changes in network namespaces, as mere wake-ups: "something was taken away or changed in
//! this one, look". What it was is for the reader of the namespace to find; nothing here is believed.
//!
//! Decides nothing but what can't be drift: things that were added leave the wanted ones as they are. Must never wait
//! for room: the kernel drops what a full socket can't hold, which counts as a change. One epoll descriptor holds the
//! sockets of all namespaces (two each), so that watching many costs a runtime no more than watching one. The caller is
//! the driver's reconcile loop, which also throws away the echo of its own changes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use futures::FutureExt;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::ns::{self, Namespace};

/// `RTNLGRP_LINK`, `_NEIGH` (forwarding entries too), `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV4_RULE`.
const ROUTE_GROUPS: [u32; 5] = [1, 3, 5, 7, 8];
/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 7;
/// `RTM_NEWLINK`, and the removals of links, addresses, routes, neighbours and rules.
const NEW_LINK: u16 = 16;
const REMOVALS: [u16; 5] = [17, 21, 25, 29, 33];
/// `IFF_UP` in the flags of a link.
const UP: u32 = 1;
/// Bytes that the kernel keeps for a socket that isn't read: some hundred messages. More is an overrun, and no loss.
const QUEUE: usize = 64 * 1024;
/// Largest part of a datagram that is looked at: the kernel makes them up to 32 KiB for nftables, where the first header
/// tells all.
const LOOKED_AT: usize = 8 * 1024;
/// Datagrams of one socket that are looked at in one go; the rest waits for the next.
const AT_ONCE: usize = 1024;
/// Sockets that are asked for at once.
const READY: usize = 64;

/// Why a namespace can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket or the descriptor of all of them failed.
    #[error("watch a network namespace: {what}: {source}; changes in it are found by the timer alone")]
    Socket {
        /// The step.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] ns::Error),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

fn failed(what: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Socket { what, source: errno.into() }
}

/// A watched namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(u64);

/// Watches any number of namespaces.
#[derive(Debug)]
pub struct Watcher {
    epoll: AsyncFd<OwnedFd>,
    sockets: BTreeMap<u64, (Token, netlink_sys::Socket)>,
    last: u64,
    buffer: Vec<u8>,
}

impl Watcher {
    /// Watches nothing yet. Call it inside a tokio runtime.
    pub fn new() -> Result<Self> {
        let made = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("make an epoll descriptor"))?;
        // SAFETY: the value owns its descriptor, is moved into the registration, and names the same one until it is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(made, Interest::READABLE) };
        let epoll = registered.map_err(|error| Error::Socket { what: "register it", source: error.into() })?;
        Ok(Self { epoll, sockets: BTreeMap::new(), last: 0, buffer: Vec::with_capacity(LOOKED_AT) })
    }

    /// Watches a namespace from now on. Neighbours only if asked for: where others have very many, their coming and going
    /// would wake us for nothing.
    pub fn add(&mut self, namespace: &Namespace, neighbours: bool) -> Result<Token> {
        let groups = ROUTE_GROUPS.into_iter().filter(|group| neighbours || *group != 3);
        let route = open(namespace, NETLINK_ROUTE, groups)?;
        let nftables = open(namespace, NETLINK_NETFILTER, [NFTABLES_GROUP].into_iter())?;
        let token = Token(self.last + 1);
        for socket in [route, nftables] {
            self.last += 1;
            let data = epoll::EventData::new_u64(self.last);
            epoll::add(self.epoll.get_ref(), &socket, data, epoll::EventFlags::IN)
                .map_err(failed("register a socket"))?;
            self.sockets.insert(self.last, (token, socket));
        }
        Ok(token)
    }

    /// Watches a namespace no longer.
    pub fn remove(&mut self, token: Token) {
        // A closed socket leaves the epoll descriptor by itself.
        self.sockets.retain(|_, (of, _)| *of != token);
    }

    /// Returns when something may have changed; then [`Watcher::collect`] tells where.
    pub async fn changed(&self) -> Result<()> {
        let ready = self.epoll.readable().await;
        drop(ready.map_err(|source| Error::Socket { what: "wait", source })?);
        Ok(())
    }

    /// The namespaces in which something was taken away or changed since the last call, each once; whatever else was told
    /// is thrown away. Never waits.
    pub fn collect(&mut self) -> Vec<Token> {
        let mut changed = Vec::new();
        // So many rounds that every socket may be asked once and seen to be empty; more is left to the next call.
        for _ in 0..=2 + self.sockets.len() / READY {
            let ready = self.ready();
            if ready.is_empty() {
                break;
            }
            for number in ready {
                let Some((token, socket)) = self.sockets.get(&number) else { continue };
                if drain(socket.as_fd(), &mut self.buffer) {
                    changed.push(*token);
                }
            }
        }
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    /// Sockets that have something; if none has, [`Watcher::changed`] waits again.
    fn ready(&self) -> Vec<u64> {
        // Taken before the question, so that what comes after it is not cleared away.
        let mut guard = self.epoll.readable().now_or_never().and_then(std::result::Result::ok);
        let mut events: Vec<epoll::Event> = Vec::with_capacity(READY);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let found: Vec<u64> = match epoll::wait(self.epoll.get_ref(), spare_capacity(&mut events), Some(&now)) {
            Ok(_) => events.iter().map(|event| event.data.u64()).collect(),
            Err(_) => Vec::new(),
        };
        if let Some(guard) = guard.as_mut().filter(|_| found.is_empty()) {
            guard.clear_ready();
        }
        found
    }
}

fn open(
    namespace: &Namespace,
    protocol: isize,
    groups: impl Iterator<Item = u32> + Send,
) -> Result<netlink_sys::Socket> {
    let opened = namespace.run(|| {
        let mut socket = netlink_sys::Socket::new(protocol)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(group)?;
        }
        Ok(socket)
    })?;
    let socket = opened.map_err(|source| Error::Socket { what: "open a socket", source })?;
    sockopt::set_socket_recv_buffer_size(&socket, QUEUE).map_err(failed("set a queue's size"))?;
    Ok(socket)
}

/// Reads what a socket has; whether any of it may be drift.
fn drain(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> bool {
    let mut changed = false;
    for _ in 0..AT_ONCE {
        buffer.clear();
        match recv(socket, spare_capacity(buffer), RecvFlags::DONTWAIT) {
            Ok(_) => changed = changed || tells(buffer),
            Err(Errno::INTR) => {}
            // Something was lost: whatever it was, look.
            Err(Errno::NOBUFS) => changed = true,
            Err(_) => break,
        }
    }
    changed
}

/// Whether a datagram tells of something that may be drift.
fn tells(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    loop {
        // The header is looked at even if the message is longer than what was read of it.
        let kind = rest.get(4..6).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes);
        let flags = rest.get(24..28).and_then(|b| b.try_into().ok()).map_or(UP, u32::from_ne_bytes);
        // Netfilter's numbers have the subsystem in their upper byte; all changes of rulesets are of interest.
        if kind >= 0x100 || REMOVALS.contains(&kind) || (kind == NEW_LINK && flags & UP == 0) {
            return true;
        }
        match crate::netlink::split(rest) {
            Some((_, after)) if !after.is_empty() => rest = after,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u32) -> Vec<u8> {
        let mut bytes = vec![32, 0, 0, 0];
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(24, 0);
        bytes.extend(flags.to_ne_bytes());
        bytes.resize(32, 0);
        bytes
    }

    #[test]
    fn only_what_can_be_drift_wakes() {
        for (kind, flags, tells_it) in [
            (16, 1, false), // a link that is up
            (16, 0, true),  // one that is down
            (17, 1, true),  // one that went
            (20, 0, false), // a new address
            (21, 0, true),
            (28, 0, false), // a new neighbour
            (29, 0, true),
            (0x0a0f, 0, true), // a ruleset
        ] {
            assert_eq!(tells(&message(kind, flags)), tells_it, "{kind}");
            assert_eq!(tells(&[message(20, 0), message(kind, flags)].concat()), tells_it, "{kind} behind another");
        }
        assert!(!tells(&[]) && !tells(&[7, 0, 0, 0]));
    }
}
