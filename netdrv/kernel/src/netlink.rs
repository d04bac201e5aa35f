//! Netfilter netlink, the part that nftables and connection tracking share: writing messages and attributes, reading them
//! back, and a socket with a deadline.
//!
//! Decides nothing and knows no object. The kernel handles a netfilter request inside the sending call, so a blocking socket
//! with a deadline is the simplest thing that is fast.

use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size_force, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags};

use crate::ns::{self, Namespace};

pub(crate) const F_REQUEST: u16 = 1;
pub(crate) const F_ACK: u16 = 4;
pub(crate) const F_DUMP: u16 = 0x300;
pub(crate) const F_EXCL: u16 = 0x200;
pub(crate) const F_CREATE: u16 = 0x400;
pub(crate) const F_APPEND: u16 = 0x800;

/// In an answer: the table changed while it was being dumped.
const F_DUMP_INTERRUPTED: u16 = 0x10;
/// In an error: the request's payload is not repeated.
const F_CAPPED: u16 = 0x100;
/// In an error: attributes with more words follow.
const F_ACK_TLVS: u16 = 0x200;

const TYPE_NOOP: u16 = 1;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;

/// `NLMSGERR_ATTR_MSG`: the kernel's own words about an error.
const ERROR_TEXT: u16 = 1;

const MESSAGE_HEADER: usize = 16;
/// The netlink header and the netfilter header after it (family, version, resource).
pub(crate) const HEADER: usize = MESSAGE_HEADER + 4;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// Longest time that one datagram of an answer may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Largest datagram that the kernel sends in a dump is 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Above this a request needs a bigger send buffer than sockets have.
const DEFAULT_SEND: usize = 128 * 1024;

/// Builds netlink messages one after the other in one buffer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    message: usize,
    overflow: bool,
}

impl Writer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Did an attribute exceed the 64 KiB that its length field can say?
    pub(crate) fn overflowed(&self) -> bool {
        self.overflow
    }

    /// Starts a message; [`Writer::finish`] ends it.
    pub(crate) fn start(&mut self, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) {
        self.message = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
    }

    /// Ends the message that was started last.
    pub(crate) fn finish(&mut self) {
        let length = self.bytes.len() - self.message;
        // A message is at most a batch long, and a batch is bounded far below 4 GiB.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.put(self.message, &length.to_ne_bytes());
    }

    /// Adds flags to the message that starts at `offset`.
    pub(crate) fn add_flags(&mut self, offset: usize, flags: u16) {
        if let Some([a, b]) = self.bytes.get(offset + 6..offset + 8) {
            let old = u16::from_ne_bytes([*a, *b]);
            self.put(offset + 6, &(old | flags).to_ne_bytes());
        }
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.head(kind, value.len());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// A text, with its final NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        self.head(kind, value.len() + 1);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    pub(crate) fn be16(&mut self, kind: u16, value: u16) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute that holds the attributes that `inner` writes.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.head(kind | NESTED, 0);
        inner(self);
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.put(start, &length.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
    }

    fn head(&mut self, kind: u16, length: usize) {
        let length = u16::try_from(length + 4).unwrap_or_else(|_| {
            self.overflow = true;
            u16::MAX
        });
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

/// Iterates over attributes: their type without flags, and their value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of that type.
    pub(crate) fn get(self, wanted: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }

    /// The attributes inside the first attribute of that type; none if there is none.
    pub(crate) fn inside(self, wanted: u16) -> Attributes<'a> {
        Attributes(self.get(wanted).unwrap_or_default())
    }

    pub(crate) fn get_be32(self, wanted: u16) -> Option<u32> {
        self.get(wanted)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(crate) fn get_be16(self, wanted: u16) -> Option<u16> {
        self.get(wanted)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub(crate) fn get_be64(self, wanted: u16) -> Option<u64> {
        self.get(wanted)?.try_into().ok().map(u64::from_be_bytes)
    }

    pub(crate) fn get_text(self, wanted: u16) -> Option<String> {
        self.get(wanted).map(text_of)
    }
}

pub(crate) fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// One message of an answer.
#[derive(Debug)]
pub(crate) enum Answer<'a> {
    /// An object: its family and attributes.
    Object(u8, Attributes<'a>),
    /// The outcome of the request with that sequence number; `None` is success.
    Outcome(u32, Option<(Errno, Option<String>)>),
    /// A dump is complete, or failed half-way.
    Done(Option<Errno>),
}

/// Why talking to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Namespace(#[from] ns::Error),
    #[error("netfilter socket: {}", std::io::Error::from(*.0))]
    Socket(Errno),
    #[error("no answer from the kernel within {} s", DEADLINE.as_secs())]
    TimedOut,
    #[error("{}{}", std::io::Error::from(*.0), .1.as_deref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Refused(Errno, Option<String>),
    #[error("the table kept changing while it was read")]
    Interrupted,
}

/// A netfilter netlink socket in one namespace.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: netlink_sys::Socket,
    buffer: Box<[u8]>,
    send_buffer: usize,
    /// Answers of an earlier request may still be queued.
    dirty: bool,
    sequence: u32,
}

impl Socket {
    pub(crate) fn open(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::here)?
    }

    /// Opens one in the namespace of the calling thread.
    pub(crate) fn here() -> Result<Self, Error> {
        let open = || {
            let socket = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
            // Errors carry the kernel's words and leave out the request, which can be long.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket =
            open().map_err(|e: std::io::Error| Error::Socket(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE)).map_err(Error::Socket)?;
        set_socket_timeout(&socket, Timeout::Send, Some(DEADLINE)).map_err(Error::Socket)?;
        let buffer = vec![0; RECEIVE_BUFFER].into_boxed_slice();
        Ok(Self { socket, buffer, send_buffer: DEFAULT_SEND, dirty: false, sequence: 0 })
    }

    /// A sequence number for a query.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a request, however long.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.dirty {
            self.drain()?;
        }
        if bytes.len() > self.send_buffer {
            set_socket_send_buffer_size_force(&self.socket, bytes.len().saturating_mul(2)).map_err(Error::Socket)?;
            self.send_buffer = bytes.len();
        }
        self.dirty = true;
        rustix::net::send(&self.socket, bytes, SendFlags::empty()).map_err(Error::Socket)?;
        Ok(())
    }

    /// Throws away what is left of an earlier answer; reading also carries an unfinished dump to its end.
    fn drain(&mut self) -> Result<(), Error> {
        loop {
            match self.receive(RecvFlags::DONTWAIT, |_| Ok(())) {
                Ok(Some(())) | Err(Error::Interrupted) => {}
                Ok(None) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    /// Reads what the kernel has answered already, until `each` says that it has seen all. `Ok(false)`: nothing more is
    /// queued.
    pub(crate) fn collect(&mut self, mut each: impl FnMut(Answer<'_>) -> bool) -> Result<bool, Error> {
        let mut complete = false;
        while !complete {
            let more = self.receive(RecvFlags::DONTWAIT, |answer| {
                complete |= each(answer);
                Ok(())
            })?;
            if more.is_none() {
                return Ok(false);
            }
        }
        self.dirty = false;
        Ok(true)
    }

    /// Sends a query and hands each object of the answer to `each`. The query has to carry the dump flag, or to be one that
    /// is answered by one object.
    pub(crate) fn query(
        &mut self,
        request: &[u8],
        dump: bool,
        mut each: impl FnMut(u8, Attributes<'_>),
    ) -> Result<(), Error> {
        self.send(request)?;
        let mut done = false;
        while !done {
            let received = self.receive(RecvFlags::empty(), |answer| {
                match answer {
                    Answer::Object(family, attributes) => {
                        each(family, attributes);
                        done |= !dump;
                    }
                    Answer::Outcome(_, Some((errno, text))) => {
                        return Err(Error::Refused(errno, text));
                    }
                    Answer::Done(Some(errno)) => return Err(Error::Refused(errno, None)),
                    Answer::Outcome(_, None) | Answer::Done(None) => done = true,
                }
                Ok(())
            })?;
            if received.is_none() {
                return Err(Error::TimedOut);
            }
        }
        self.dirty = false;
        Ok(())
    }

    /// Reads one datagram and hands its messages to `each`; `None`: none came.
    fn receive(
        &mut self,
        flags: RecvFlags,
        mut each: impl FnMut(Answer<'_>) -> Result<(), Error>,
    ) -> Result<Option<()>, Error> {
        let length = loop {
            match rustix::net::recv(&self.socket, &mut *self.buffer, flags) {
                Ok((length, _)) => break length,
                Err(Errno::INTR) => {}
                // Some answers found no room. Those that did are still queued, and tell what failed first.
                Err(Errno::NOBUFS) if flags.contains(RecvFlags::DONTWAIT) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(Error::Socket(errno)),
            }
        };
        let mut rest = self.buffer.get(..length).unwrap_or_default();
        while let Some((message, after)) = split(rest) {
            rest = after;
            if let Some(answer) = parse(message)? {
                each(answer)?;
            }
        }
        Ok(Some(()))
    }
}

/// Splits the first message off.
pub(crate) fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(0..4)?.try_into().ok()?)).ok()?;
    if length < MESSAGE_HEADER {
        return None;
    }
    let message = bytes.get(..length)?;
    Some((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn parse(message: &[u8]) -> Result<Option<Answer<'_>>, Error> {
    let short = |at: usize| message.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes);
    let long = |at: usize| message.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let (kind, flags) = (short(4), short(6));
    if flags & F_DUMP_INTERRUPTED != 0 {
        return Err(Error::Interrupted);
    }
    let errno = |at: usize| match long(at).cast_signed() {
        0 => None,
        code => Some(Errno::from_raw_os_error(code.saturating_abs())),
    };
    Ok(match kind {
        TYPE_NOOP => None,
        TYPE_ERROR => {
            // After the code comes the header of the request, whole or cut, then the attributes.
            let request = MESSAGE_HEADER + 4;
            let repeated = if flags & F_CAPPED != 0 {
                MESSAGE_HEADER
            } else {
                usize::try_from(long(request)).unwrap_or(usize::MAX)
            };
            let words = request.saturating_add(repeated.next_multiple_of(4));
            let words = if flags & F_ACK_TLVS != 0 { message.get(words..).unwrap_or_default() } else { &[] };
            let text = Attributes(words).get_text(ERROR_TEXT);
            Some(Answer::Outcome(long(request + 8), errno(MESSAGE_HEADER).map(|e| (e, text))))
        }
        TYPE_DONE => Some(Answer::Done(errno(MESSAGE_HEADER))),
        _ => {
            let family = message.get(MESSAGE_HEADER).copied().unwrap_or(0);
            Some(Answer::Object(family, Attributes(message.get(HEADER..).unwrap_or_default())))
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_written() {
        let mut w = Writer::default();
        w.start(0x0a06, F_REQUEST, 7, 2, 0);
        w.text(1, "skep");
        w.nest(2, |w| {
            w.be32(1, 5);
            w.attribute(2, &[1, 2, 3]);
        });
        w.finish();
        assert_eq!(w.len() % 4, 0);
        assert!(!w.overflowed());
        let (message, rest) = split(w.bytes()).unwrap();
        assert!(rest.is_empty());
        let Some(Answer::Object(family, attributes)) = parse(message).unwrap() else { unreachable!() };
        assert_eq!(family, 2);
        assert_eq!(attributes.get_text(1).as_deref(), Some("skep"));
        assert_eq!(attributes.inside(2).get_be32(1), Some(5));
        assert_eq!(attributes.inside(2).get(2), Some(&[1, 2, 3][..]));
        assert_eq!(attributes.get(3), None);
    }

    #[test]
    fn hostile_lengths_end_the_walk() {
        for bytes in [&[][..], &[0; 3], &[3, 0, 1, 0], &[200, 0, 1, 0, 9], &[255; 16]] {
            assert!(Attributes(bytes).count() <= 1, "{bytes:?}");
            assert!(split(bytes).is_none());
        }
    }

    #[test]
    fn an_attribute_beyond_64_kib_is_noticed() {
        let mut w = Writer::default();
        w.nest(1, |w| (0..5).for_each(|_| w.attribute(2, &[0; 16_000])));
        assert!(w.overflowed());
    }
}
