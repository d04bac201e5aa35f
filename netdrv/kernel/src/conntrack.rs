//! Connection tracking: finding and deleting entries.
//!
//! Decides nothing. Must never delete without a filter (that would cut every connection of the namespace), nor go on for
//! ever: a call lists and deletes at most as many entries as its caller says. Called by the driver when an endpoint is gone
//! for good: an entry keeps its packets going to the endpoint that it was made for, whatever the maps say since.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;

use crate::netlink::{self, Answer, Attributes, F_ACK, F_DUMP, F_REQUEST, Writer};
use crate::ns::{self, Namespace};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const GET_STATISTICS: u16 = 5;
/// In the statistics: how many entries there are.
const ENTRIES: u16 = 1;
/// How many entries one datagram deletes: as many acknowledgements fit a socket's buffer easily.
const DELETE_AT_ONCE: usize = 64;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const MARK: u16 = 8;
const ID: u16 = 12;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC: u16 = 2;
const PROTO_DST: u16 = 3;

/// Which fields of a tuple a filter gives: `CTA_FILTER_F_*`.
const BY_SOURCE: u32 = 1;
const BY_DESTINATION: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_SOURCE_PORT: u32 = 1 << 4;
const BY_DESTINATION_PORT: u32 = 1 << 5;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A filter that matches everything.
    #[error("connection tracking: a filter without any condition would delete every entry")]
    EmptyFilter,
    /// A filter with addresses of both families, or with ports but no protocol.
    #[error("connection tracking: {0}")]
    BadFilter(&'static str),
    /// The kernel refused.
    #[error("connection tracking: {what}: {}", std::io::Error::from(*errno))]
    Refused {
        /// The request.
        what: &'static str,
        /// The kernel's error number.
        errno: Errno,
    },
    /// The kernel did not answer.
    #[error("connection tracking: {what}: no answer from the kernel")]
    NoAnswer {
        /// The request.
        what: &'static str,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] ns::Error),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn from_netlink(what: &'static str, error: netlink::Error) -> Self {
        match error {
            netlink::Error::Namespace(e) => Self::Namespace(e),
            netlink::Error::Socket(Errno::NOBUFS) | netlink::Error::TimedOut | netlink::Error::Interrupted => {
                Self::NoAnswer { what }
            }
            netlink::Error::Socket(errno) | netlink::Error::Refused(errno, _) => Self::Refused { what, errno },
        }
    }
}

/// Conditions on one direction of a connection; `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tuple {
    /// Source address.
    pub source: Option<IpAddr>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// Source port; needs a protocol.
    pub source_port: Option<u16>,
    /// Destination port; needs a protocol.
    pub destination_port: Option<u16>,
}

/// Conditions on a connection; all have to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Filter {
    /// For IPv6 instead of IPv4.
    pub v6: bool,
    /// Transport protocol: 6 is TCP, 17 UDP, 132 SCTP.
    pub protocol: Option<u8>,
    /// The direction of the first packet, before any rewriting: to the published port or the virtual address.
    pub original: Tuple,
    /// The direction back, as the endpoint sends it: its source is the endpoint.
    pub reply: Tuple,
}

/// One direction of a connection. Ports are 0 for protocols without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Where from.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
}

/// A tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Transport protocol.
    pub protocol: u8,
    /// The direction of the first packet, before any rewriting.
    pub original: Flow,
    /// The direction back, as the other end sends it.
    pub reply: Flow,
    /// Its mark.
    pub mark: u32,
    /// Its status ([`crate::nft::ct_status`]).
    pub status: u32,
    /// The kernel's number for it.
    pub id: u32,
}

/// What a deletion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Entries deleted.
    pub count: usize,
    /// The limit was reached and more entries match: call again.
    pub more: bool,
}

/// A connection tracking socket in one namespace. Calls block: a dump walks the table of the whole machine, a few
/// milliseconds for 100,000 connections.
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

    /// The entries that match, at most `limit` of them.
    pub fn list(&mut self, filter: &Filter, limit: usize) -> Result<Vec<Entry>> {
        filter.check()?;
        self.find(filter, limit, |e| filter.matches(e))
    }

    /// The entries that `keep` wants, of those that match `filter`.
    fn find(&mut self, filter: &Filter, limit: usize, keep: impl Fn(&Entry) -> bool) -> Result<Vec<Entry>> {
        match self.dump(filter, &keep, limit, !filter.is_empty()) {
            // Kernels before 5.8 can't filter; they are asked for all.
            Err(Error::Refused { errno: Errno::INVAL | Errno::OPNOTSUPP, .. }) if !filter.is_empty() => {
                self.dump(filter, &keep, limit, false)
            }
            other => other,
        }
    }

    /// Deletes the entries that match, at most `limit` of them. Packets of a deleted connection start a new one.
    pub fn delete(&mut self, filter: &Filter, limit: usize) -> Result<Deleted> {
        if filter.is_empty() {
            return Err(Error::EmptyFilter);
        }
        let found = self.list(filter, limit.saturating_add(1))?;
        self.delete_found(&found, limit)
    }

    /// How many entries this namespace has. One small message.
    pub fn count(&mut self) -> Result<u32> {
        let mut w = Writer::default();
        w.start(SUBSYSTEM << 8 | GET_STATISTICS, F_REQUEST, self.netlink.next_sequence(), 0, 0);
        w.finish();
        let mut count = None;
        let each = |_, attributes: Attributes<'_>| count = attributes.get_be32(ENTRIES);
        self.netlink.query(w.bytes(), false, each).map_err(|e| Error::from_netlink("count entries", e))?;
        // A kernel that doesn't say may have any number.
        Ok(count.unwrap_or(u32::MAX))
    }

    /// Deletes the entries that `any` wants, at most `limit` of them, of those that match `shared`: one walk over the table,
    /// with only what `shared` says left to the kernel, so that it may say nothing.
    pub fn delete_where(&mut self, shared: &Filter, any: impl Fn(&Entry) -> bool, limit: usize) -> Result<Deleted> {
        shared.check()?;
        // The kernel has one table for all namespaces and walks over the whole of it, for milliseconds.
        if self.count()? == 0 {
            return Ok(Deleted { count: 0, more: false });
        }
        let found = self.find(shared, limit.saturating_add(1), |e| shared.matches(e) && any(e))?;
        self.delete_found(&found, limit)
    }

    fn delete_found(&mut self, found: &[Entry], limit: usize) -> Result<Deleted> {
        let mut count = 0;
        for entries in found.get(..limit.min(found.len())).unwrap_or_default().chunks(DELETE_AT_ONCE) {
            count += self.delete_entries(entries)?;
        }
        Ok(Deleted { count, more: found.len() > limit })
    }

    fn dump(
        &mut self,
        filter: &Filter,
        keep: &impl Fn(&Entry) -> bool,
        limit: usize,
        in_kernel: bool,
    ) -> Result<Vec<Entry>> {
        let mut w = Writer::default();
        w.start(SUBSYSTEM << 8 | GET, F_REQUEST | F_DUMP, self.netlink.next_sequence(), filter.family(), 0);
        if in_kernel {
            filter.write(&mut w);
        }
        w.finish();
        let mut found = Vec::new();
        let each = |_, attributes: Attributes<'_>| {
            if let Some(entry) = read_entry(attributes).filter(|e| keep(e))
                && found.len() < limit
            {
                found.push(entry);
            }
        };
        self.netlink.query(w.bytes(), true, each).map_err(|e| Error::from_netlink("list entries", e))?;
        Ok(found)
    }

    fn delete_entries(&mut self, entries: &[Entry]) -> Result<usize> {
        let mut w = Writer::default();
        let mut last = 0;
        for entry in entries {
            last = self.netlink.next_sequence();
            let family = if entry.original.source.is_ipv6() { 10 } else { 2 };
            w.start(SUBSYSTEM << 8 | DELETE, F_REQUEST | F_ACK, last, family, 0);
            write_tuple(&mut w, TUPLE_ORIGINAL, &entry.original.tuple(), Some(entry.protocol));
            // With its number, so that a new connection between the same ports is not taken for the old one.
            w.be32(ID, entry.id);
            w.finish();
        }
        let what = "delete entries";
        self.netlink.send(w.bytes()).map_err(|e| Error::from_netlink(what, e))?;
        let (mut count, mut refused) = (0, None);
        let complete = self.netlink.collect(|answer| {
            let Answer::Outcome(sequence, outcome) = answer else {
                return false;
            };
            match outcome {
                None => count += 1,
                // It ended by itself meanwhile.
                Some((Errno::NOENT, _)) => {}
                Some((errno, _)) => refused = Some(errno),
            }
            sequence == last
        });
        match (refused, complete.map_err(|e| Error::from_netlink(what, e))?) {
            (Some(errno), _) => Err(Error::Refused { what, errno }),
            (None, false) => Err(Error::NoAnswer { what }),
            (None, true) => Ok(count),
        }
    }
}

impl Flow {
    fn tuple(&self) -> Tuple {
        Tuple {
            source: Some(self.source.ip()),
            destination: Some(self.destination.ip()),
            source_port: Some(self.source.port()),
            destination_port: Some(self.destination.port()),
        }
    }
}

impl Tuple {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn matches(&self, flow: &Flow) -> bool {
        self.source.is_none_or(|a| a == flow.source.ip())
            && self.destination.is_none_or(|a| a == flow.destination.ip())
            && self.source_port.is_none_or(|p| p == flow.source.port())
            && self.destination_port.is_none_or(|p| p == flow.destination.port())
    }

    /// `CTA_FILTER_F_*` of the conditions.
    fn flags(&self, protocol: Option<u8>) -> u32 {
        let has_port = self.source_port.is_some() || self.destination_port.is_some();
        [
            (self.source.is_some(), BY_SOURCE),
            (self.destination.is_some(), BY_DESTINATION),
            (protocol.is_some() || has_port, BY_PROTOCOL),
            (self.source_port.is_some(), BY_SOURCE_PORT),
            (self.destination_port.is_some(), BY_DESTINATION_PORT),
        ]
        .into_iter()
        .filter_map(|(given, flag)| given.then_some(flag))
        .sum()
    }
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.protocol.is_none() && self.original.is_empty() && self.reply.is_empty()
    }

    fn family(&self) -> u8 {
        if self.v6 { 10 } else { 2 }
    }

    fn check(&self) -> Result<()> {
        let addresses = [self.original.source, self.original.destination, self.reply.source, self.reply.destination];
        if addresses.iter().flatten().any(|a| a.is_ipv6() != self.v6) {
            return Err(Error::BadFilter("an address is not of the filter's family"));
        }
        let ports = [
            self.original.source_port,
            self.original.destination_port,
            self.reply.source_port,
            self.reply.destination_port,
        ];
        if self.protocol.is_none() && ports.iter().any(Option::is_some) {
            return Err(Error::BadFilter("a port needs a protocol"));
        }
        Ok(())
    }

    /// Whether every condition holds of the entry.
    #[must_use]
    pub fn matches(&self, entry: &Entry) -> bool {
        self.protocol.is_none_or(|p| p == entry.protocol)
            && self.original.matches(&entry.original)
            && self.reply.matches(&entry.reply)
    }

    fn write(&self, w: &mut Writer) {
        // The protocol is the same in both directions; it is asked for where ports are, and else in the first.
        let original = self.original.flags(self.protocol);
        let reply = if self.reply.is_empty() { 0 } else { self.reply.flags(self.protocol) };
        w.nest(FILTER, |w| {
            w.attribute(FILTER_ORIGINAL, &original.to_ne_bytes());
            w.attribute(FILTER_REPLY, &reply.to_ne_bytes());
        });
        if original != 0 {
            write_tuple(w, TUPLE_ORIGINAL, &self.original, self.protocol);
        }
        if reply != 0 {
            write_tuple(w, TUPLE_REPLY, &self.reply, self.protocol);
        }
    }
}

fn write_tuple(w: &mut Writer, kind: u16, tuple: &Tuple, protocol: Option<u8>) {
    w.nest(kind, |w| {
        w.nest(TUPLE_IP, |w| {
            for (address, v4, v6) in [(tuple.source, IP_V4_SRC, IP_V6_SRC), (tuple.destination, IP_V4_DST, IP_V6_DST)] {
                match address {
                    Some(IpAddr::V4(a)) => w.attribute(v4, &a.octets()),
                    Some(IpAddr::V6(a)) => w.attribute(v6, &a.octets()),
                    None => {}
                }
            }
        });
        let Some(protocol) = protocol else { return };
        w.nest(TUPLE_PROTO, |w| {
            w.attribute(PROTO_NUM, &[protocol]);
            if let Some(port) = tuple.source_port {
                w.be16(PROTO_SRC, port);
            }
            if let Some(port) = tuple.destination_port {
                w.be16(PROTO_DST, port);
            }
        });
    });
}

fn read_entry(attributes: Attributes<'_>) -> Option<Entry> {
    let original = attributes.inside(TUPLE_ORIGINAL);
    let protocol = *original.inside(TUPLE_PROTO).get(PROTO_NUM)?.first()?;
    Some(Entry {
        protocol,
        original: read_flow(original)?,
        reply: read_flow(attributes.inside(TUPLE_REPLY))?,
        mark: attributes.get_be32(MARK).unwrap_or(0),
        status: attributes.get_be32(STATUS).unwrap_or(0),
        id: attributes.get_be32(ID)?,
    })
}

fn read_flow(tuple: Attributes<'_>) -> Option<Flow> {
    let (ip, proto) = (tuple.inside(TUPLE_IP), tuple.inside(TUPLE_PROTO));
    let address = |v4, v6| {
        let short = ip.get(v4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(|b| IpAddr::V4(Ipv4Addr::from(b)));
        short.or_else(|| ip.get(v6).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(|b| IpAddr::V6(Ipv6Addr::from(b))))
    };
    let source = SocketAddr::new(address(IP_V4_SRC, IP_V6_SRC)?, proto.get_be16(PROTO_SRC).unwrap_or(0));
    let destination = SocketAddr::new(address(IP_V4_DST, IP_V6_DST)?, proto.get_be16(PROTO_DST).unwrap_or(0));
    Some(Flow { source, destination })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry() -> Entry {
        let at = |s: &str| s.parse::<SocketAddr>().unwrap();
        Entry {
            protocol: 17,
            original: Flow { source: at("10.99.0.9:5000"), destination: at("10.99.0.1:8080") },
            reply: Flow { source: at("10.0.0.11:80"), destination: at("10.99.0.9:5000") },
            mark: 0,
            status: 0,
            id: 1,
        }
    }

    #[test]
    fn a_filter_matches_what_it_says() {
        let endpoint: IpAddr = "10.0.0.11".parse().unwrap();
        let by_endpoint = Tuple { source: Some(endpoint), source_port: Some(80), ..Tuple::default() };
        let table = [
            (Filter { protocol: Some(17), ..Filter::default() }, true),
            (Filter { protocol: Some(6), ..Filter::default() }, false),
            (Filter { protocol: Some(17), reply: by_endpoint, ..Filter::default() }, true),
            (Filter { protocol: Some(17), original: by_endpoint, ..Filter::default() }, false),
            (
                Filter { original: Tuple { destination: Some(endpoint), ..Tuple::default() }, ..Filter::default() },
                false,
            ),
        ];
        for (filter, expected) in table {
            assert_eq!(filter.matches(&entry()), expected, "{filter:?}");
        }
    }

    #[test]
    fn filters_that_say_nothing_or_nonsense_are_refused() {
        assert!(Filter::default().is_empty());
        let port_alone = Filter { original: Tuple { source_port: Some(1), ..Tuple::default() }, ..Filter::default() };
        assert!(matches!(port_alone.check(), Err(Error::BadFilter(_))));
        let mixed = Filter {
            original: Tuple { source: Some(IpAddr::V6(Ipv6Addr::LOCALHOST)), ..Tuple::default() },
            ..Filter::default()
        };
        assert!(matches!(mixed.check(), Err(Error::BadFilter(_))));
    }

    #[test]
    fn tuples_come_back_as_they_were_written() {
        let mut w = Writer::default();
        write_tuple(&mut w, TUPLE_ORIGINAL, &entry().original.tuple(), Some(17));
        assert_eq!(read_flow(Attributes(w.bytes()).inside(TUPLE_ORIGINAL)), Some(entry().original));
    }
}
