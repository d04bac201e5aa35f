//! From the bytes of a question to the bytes of an answer, or to the servers to ask. Pure.
//!
//! A known name has a NOERROR answer whatever is asked about it, with nothing in it if there is nothing (an AAAA of an
//! IPv4 service): NXDOMAIN would make clients give up on the name. NXDOMAIN comes from upstream, or where there is no
//! upstream; SERVFAIL only where an upstream was asked in vain.

use std::net::SocketAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use skep_net_plan::{Answer, NameTable, Sandbox};

/// Seconds that an answer may be kept: none, or clients would go on calling an endpoint that left.
const TTL: u32 = 0;
/// Largest answer over UDP to a client that names no size (RFC 1035), and the most that we send to one that does
/// (without fragments, RFC 9715).
const UDP_SIZES: (u16, u16) = (512, 1400);
/// Length of a header in bytes.
const HEADER: usize = 12;

/// What to do about a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Send this.
    Answer(Vec<u8>),
    /// Ask these servers.
    Forward(Vec<SocketAddr>),
    /// Stay silent: it is no question.
    Nothing,
}

/// The reply to `bytes` from a container in `sandbox` (`None` = it is attached to nothing).
pub(super) fn reply(bytes: &[u8], names: &NameTable, sandbox: Option<&Sandbox>, turn: usize, udp: bool) -> Reply {
    let Ok(question) = Message::from_vec(bytes) else {
        return refusal(bytes, ResponseCode::FormErr).map_or(Reply::Nothing, Reply::Answer);
    };
    if question.metadata.message_type == MessageType::Response {
        return Reply::Nothing;
    }
    let code = |code| encode(&question, Vec::new(), code, udp);
    if question.metadata.op_code != OpCode::Query {
        return code(ResponseCode::NotImp);
    }
    let [query] = question.queries.as_slice() else { return code(ResponseCode::FormErr) };
    match known(query, names, sandbox) {
        Some(mut records) => {
            let turn = turn.checked_rem(records.len()).unwrap_or(0);
            records.rotate_left(turn);
            encode(&question, records, ResponseCode::NoError, udp)
        }
        None => match sandbox.map(|s| s.dns.upstream.as_slice()) {
            None | Some([]) => code(ResponseCode::NXDomain),
            Some(servers) => Reply::Forward(servers.to_vec()),
        },
    }
}

/// SERVFAIL for a question that nobody answered; empty only if it was no message at all.
pub(super) fn failure(bytes: &[u8]) -> Vec<u8> {
    let answer = Message::from_vec(bytes).map(|q| encode(&q, Vec::new(), ResponseCode::ServFail, true));
    match answer {
        Ok(Reply::Answer(answer)) => answer,
        _ => refusal(bytes, ResponseCode::ServFail).unwrap_or_default(),
    }
}

/// The records of a name that the cluster knows.
fn known(query: &Query, names: &NameTable, sandbox: Option<&Sandbox>) -> Option<Vec<Record>> {
    let networks = || sandbox.into_iter().flat_map(|s| s.networks.keys());
    if query.query_class() != DNSClass::IN {
        return None;
    }
    let name = query.name().to_ascii();
    let record = |data| Record::from_rdata(query.name().clone(), TTL, data);
    if let Some(address) = super::reversed(&name) {
        let Answer::Name(found) = names.reverse(networks(), address) else { return None };
        let target = Name::from_ascii(format!("{found}.")).ok()?;
        let asked = matches!(query.query_type(), RecordType::PTR | RecordType::ANY);
        return Some(asked.then(|| record(RData::PTR(PTR(target)))).into_iter().collect());
    }
    let Answer::Addresses(addresses) = names.lookup(networks(), &name) else { return None };
    let asked = matches!(query.query_type(), RecordType::A | RecordType::ANY);
    Some(addresses.into_iter().filter(|_| asked).map(|a| record(RData::A(A(a)))).collect())
}

fn encode(question: &Message, records: Vec<Record>, code: ResponseCode, udp: bool) -> Reply {
    let mut answer = Message::error_msg(question.metadata.id, question.metadata.op_code, code);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(question.queries.iter().cloned());
    answer.add_answers(records);
    let limit = if question.edns.is_some() { question.max_payload() } else { 0 };
    let limit = usize::from(limit.clamp(UDP_SIZES.0, UDP_SIZES.1));
    let Ok(bytes) = answer.to_vec() else { return Reply::Nothing };
    if udp && bytes.len() > limit {
        return answer.truncate().to_vec().map_or(Reply::Nothing, Reply::Answer);
    }
    Reply::Answer(bytes)
}

/// A bare header with a code, for what can't be read; `None` for what has no header or is an answer itself.
fn refusal(bytes: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let mut header = [0_u8; HEADER];
    let [a, b, flags, ..] = bytes.get(..HEADER)? else { return None };
    if flags & 0x80 != 0 {
        return None;
    }
    [header[0], header[1]] = [*a, *b];
    (header[2], header[3]) = (0x80 | (flags & 0x79), 0x80 | code.low());
    Some(header.to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use skep_net_plan::{Attachment, Desired, DnsConfig, Endpoint, Network, Service, ServiceNetwork, Subnet};

    use super::*;

    fn ip(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 1, n)
    }

    fn world(endpoints: u8) -> NameTable {
        let network = Network {
            id: "n".into(),
            name: "app".into(),
            vni: 4097,
            subnet: Subnet::new(ip(0), 24),
            balancer: ip(2),
            ingress: false,
            internal: false,
            peers: BTreeMap::new(),
        };
        let endpoint = |n: u8| Endpoint {
            task_id: format!("t{n}"),
            name: format!("rr.{n}"),
            node_id: "n1".into(),
            underlay: ip(1),
            ready: true,
            addresses: BTreeMap::from([("n".into(), ip(n))]),
        };
        let service = |id: &str, vip| Service {
            id: id.into(),
            name: id.into(),
            networks: BTreeMap::from([("n".into(), ServiceNetwork { vip, aliases: vec![] })]),
            ports: vec![],
            endpoints: if vip.is_none() { (10..10 + endpoints).map(endpoint).collect() } else { vec![] },
        };
        NameTable::new(&Desired {
            networks: BTreeMap::from([("n".into(), network.into())]),
            services: [service("web", Some(ip(250))), service("rr", None)].map(|s| (s.id.clone(), s.into())).into(),
            ..Desired::default()
        })
    }

    fn sandbox(upstream: bool) -> Sandbox {
        let server: SocketAddr = "192.0.2.53:53".parse().unwrap();
        Sandbox {
            networks: BTreeMap::from([("n".into(), Attachment { address: ip(9), aliases: vec![] })]),
            dns: DnsConfig { upstream: if upstream { vec![server] } else { vec![] }, ..DnsConfig::default() },
            ..Sandbox::default()
        }
    }

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut q = Message::query();
        q.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        q.to_vec().unwrap()
    }

    fn ask(name: &str, kind: RecordType, turn: usize) -> (ResponseCode, Vec<String>) {
        let bytes = question(name, kind);
        let Reply::Answer(answer) = reply(&bytes, &world(3), Some(&sandbox(false)), turn, true) else {
            panic!("{name}")
        };
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.id, Message::from_vec(&bytes).unwrap().metadata.id);
        (answer.metadata.response_code, answer.answers.iter().map(|r| r.data.to_string()).collect())
    }

    #[test]
    fn table() {
        use RecordType as T;
        let none: [&str; 0] = [];
        for (name, kind, code, answers) in [
            ("web.", T::A, ResponseCode::NoError, &["10.0.1.250"][..]),
            ("WEB.", T::A, ResponseCode::NoError, &["10.0.1.250"]),
            ("web.", T::AAAA, ResponseCode::NoError, &none),
            ("web.", T::MX, ResponseCode::NoError, &none),
            ("tasks.web.", T::A, ResponseCode::NoError, &none),
            ("rr.", T::A, ResponseCode::NoError, &["10.0.1.10", "10.0.1.11", "10.0.1.12"]),
            ("250.1.0.10.in-addr.arpa.", T::PTR, ResponseCode::NoError, &["web.app."]),
            ("nobody.", T::A, ResponseCode::NXDomain, &none),
            ("1.10.in-addr.arpa.", T::PTR, ResponseCode::NXDomain, &none),
        ] {
            let expected = (code, answers.iter().map(ToString::to_string).collect());
            assert_eq!(ask(name, kind, 0), expected, "{name} {kind}");
        }
    }

    #[test]
    fn several_addresses_take_turns() {
        let firsts: Vec<_> = (0..4).map(|turn| ask("rr.", RecordType::A, turn).1[0].clone()).collect();
        assert_eq!(firsts, ["10.0.1.10", "10.0.1.11", "10.0.1.12", "10.0.1.10"]);
    }

    #[test]
    fn unknown_names_go_upstream_and_known_ones_never() {
        let upstream = |name, kind| reply(&question(name, kind), &world(1), Some(&sandbox(true)), 0, true);
        assert!(matches!(upstream("example.org.", RecordType::A), Reply::Forward(_)));
        assert!(matches!(upstream("web.", RecordType::AAAA), Reply::Answer(_)));
    }

    #[test]
    fn what_does_not_fit_a_datagram_is_truncated_and_fits_a_stream() {
        let names = world(100);
        let size = |udp| match reply(&question("rr.", RecordType::A), &names, Some(&sandbox(false)), 0, udp) {
            Reply::Answer(bytes) => (bytes.len() <= 512, Message::from_vec(&bytes).unwrap().metadata.truncation),
            other => panic!("{other:?}"),
        };
        assert_eq!((size(true), size(false)), ((true, true), (false, false)));
    }

    #[test]
    fn what_is_no_question_gets_no_answer_or_a_refusal() {
        let r = |bytes: &[u8]| reply(bytes, &world(1), Some(&sandbox(false)), 0, true);
        assert_eq!(r(b""), Reply::Nothing);
        assert_eq!(r(b"short"), Reply::Nothing);
        let mut garbage = vec![0_u8; 40];
        garbage[5] = 9;
        let Reply::Answer(bytes) = r(&garbage) else { panic!("no refusal") };
        assert_eq!(bytes[3] & 0x0f, 1, "FORMERR");
        let mut response = question("web.", RecordType::A);
        response[2] |= 0x80;
        assert_eq!(r(&response), Reply::Nothing);
        assert_eq!(failure(&question("x.", RecordType::A))[3] & 0x0f, 2, "SERVFAIL");
    }
}
