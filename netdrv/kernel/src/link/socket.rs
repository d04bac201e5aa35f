//! The rtnetlink socket of one namespace: requests that are made at once go to the kernel in one call, and only the last
//! of them is acknowledged, for the kernel answers an error in any case. It works on requests inside the sending call,
//! so that their answers are there when it returns: nothing waits on the socket, and no task serves it.
//!
//! Must never keep what nobody asks for any more. [`Handle`](super::Handle) is the only caller.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::DEADLINE;
use crate::netlink::split;

/// Largest datagram of the kernel.
const LARGEST: usize = 32 * 1024;
/// Bytes of requests that are sent at once: well below what a socket takes.
const AT_ONCE: usize = 64 * 1024;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;

/// Why there is no answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Failed {
    /// The kernel refuses.
    Refused(Errno),
    /// It doesn't answer.
    TimedOut,
    /// Something changed while it was listed.
    Interrupted,
    /// The socket failed.
    Socket(Errno),
}

#[derive(Debug)]
pub(super) struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    /// Requests that are not sent yet, and where the last of them begins.
    outbox: Vec<u8>,
    last: usize,
    /// Who waits for them.
    posted: Vec<u32>,
    /// How those ended that were sent, until it is asked for.
    outcomes: BTreeMap<u32, std::result::Result<(), Failed>>,
    /// Answers to something else may be queued.
    dirty: bool,
}

impl Socket {
    /// Opens one in the namespace of the calling thread.
    pub(super) fn here() -> std::io::Result<Self> {
        let socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))?;
        set_socket_timeout(&socket, Timeout::Send, Some(DEADLINE))?;
        let (posted, outcomes) = (Vec::new(), BTreeMap::new());
        Ok(Self { socket, sequence: 0, outbox: Vec::new(), last: 0, posted, outcomes, dirty: false })
    }

    /// Puts a request with the others; gives its number, under which its outcome is asked for.
    pub(super) fn post(&mut self, message: RouteNetlinkMessage, flags: u16) -> u32 {
        if self.outbox.len() > AT_ONCE {
            self.flush();
        }
        let (sequence, bytes) = self.numbered(message, flags);
        self.last = self.outbox.len();
        self.outbox.extend(bytes);
        self.posted.push(sequence);
        sequence
    }

    /// How a request ended; sends it, with all others, if it has not been sent yet.
    pub(super) fn outcome(&mut self, sequence: u32) -> std::result::Result<(), Failed> {
        if self.posted.contains(&sequence) {
            self.flush();
        }
        self.outcomes.remove(&sequence).unwrap_or(Ok(()))
    }

    /// Nobody asks for the outcome any more; what is not sent yet is sent with the next.
    pub(super) fn abandon(&mut self, sequence: u32) {
        self.posted.retain(|s| *s != sequence);
        self.outcomes.remove(&sequence);
    }

    fn numbered(&mut self, message: RouteNetlinkMessage, flags: u16) -> (u32, Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        // The next message begins at a multiple of four.
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        (self.sequence, bytes)
    }

    /// Sends what was posted, and takes in how it ended.
    fn flush(&mut self) {
        let posted = std::mem::take(&mut self.posted);
        let mut bytes = std::mem::take(&mut self.outbox);
        if bytes.is_empty() {
            return;
        }
        let last = header(bytes.get(self.last..).unwrap_or_default());
        if let Some(flags) = bytes.get_mut(self.last + 6..self.last + 8) {
            flags.copy_from_slice(&(last.flags | NLM_F_ACK).to_ne_bytes());
        }
        let mut refused = BTreeMap::new();
        let ended = self.exchange(&bytes, 4096, |message, head| {
            if let Some(errno) = errno(message, head) {
                refused.insert(head.sequence, Failed::Refused(errno));
            }
            Ok(head.kind == TYPE_ERROR && head.sequence == last.sequence)
        });
        for sequence in posted {
            let outcome = match (refused.get(&sequence), ended) {
                (Some(failed), _) => Err(*failed),
                (None, ended) => ended,
            };
            self.outcomes.insert(sequence, outcome);
        }
        bytes.clear();
        self.outbox = bytes;
    }

    /// Sends one query, after all that was posted, and hands every object of the answer to `pick`.
    pub(super) fn query<T>(
        &mut self,
        message: RouteNetlinkMessage,
        dump: bool,
        mut pick: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> std::result::Result<Vec<T>, Failed> {
        self.flush();
        let (sequence, bytes) = self.numbered(message, if dump { NLM_F_DUMP } else { 0 });
        let (mut found, mut interrupted) = (Vec::new(), false);
        self.exchange(&bytes, LARGEST, |message, head| {
            if head.sequence != sequence {
                return Ok(false);
            }
            interrupted |= head.flags & NLM_F_DUMP_INTR != 0;
            match (head.kind, errno(message, head)) {
                (TYPE_ERROR, Some(Errno::BUSY)) => return Err(Failed::Interrupted),
                (TYPE_ERROR | TYPE_DONE, Some(errno)) => return Err(Failed::Refused(errno)),
                (TYPE_ERROR | TYPE_DONE, None) => return Ok(true),
                _ => {}
            }
            // What this version of the library can't read is nothing that we ask about.
            if let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(object), .. }) =
                NetlinkMessage::deserialize(message)
            {
                found.extend(pick(object));
            }
            Ok(!dump)
        })?;
        if interrupted { Err(Failed::Interrupted) } else { Ok(found) }
    }

    /// Sends, and reads messages until `each` has seen the last of the answer.
    fn exchange(
        &mut self,
        bytes: &[u8],
        largest: usize,
        mut each: impl FnMut(&[u8], Header) -> std::result::Result<bool, Failed>,
    ) -> std::result::Result<(), Failed> {
        let mut buffer = vec![0; largest];
        if self.dirty {
            // Reading also carries an unfinished listing to its end.
            while recv(self.socket.as_fd(), &mut buffer[..], RecvFlags::DONTWAIT).is_ok() {}
        }
        self.dirty = true;
        send(self.socket.as_fd(), bytes, SendFlags::empty()).map_err(Failed::Socket)?;
        loop {
            let length = match recv(self.socket.as_fd(), &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Err(Failed::TimedOut),
                Err(errno) => return Err(Failed::Socket(errno)),
            };
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((message, after)) = split(rest) {
                rest = after;
                if each(message, header(message))? {
                    self.dirty = false;
                    return Ok(());
                }
            }
        }
    }
}

/// What a message says of itself.
#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn header(message: &[u8]) -> Header {
    let short = |at: usize| message.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes);
    let sequence = message.get(8..12).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    Header { kind: short(4), flags: short(6), sequence }
}

/// The error in an answer that tells an outcome; `None` is success, or another kind of answer.
fn errno(message: &[u8], head: Header) -> Option<Errno> {
    if !matches!(head.kind, TYPE_ERROR | TYPE_DONE) {
        return None;
    }
    let code = message.get(16..20).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    // The kernel's error numbers are below 4096.
    (code != 0).then(|| Errno::from_raw_os_error(code.saturating_abs().min(4095)))
}
