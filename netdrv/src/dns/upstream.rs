//! Questions to the servers that know the rest of the world, asked from the node's own namespace.
//!
//! Every question has its own socket, so its own port, and its own random id: somebody who wants to slip in an answer
//! has to guess both. The whole of it has a deadline below the five seconds after which clients ask again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use skep_net_kernel::ns::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

/// Deadline of a question, all servers together.
const DEADLINE: Duration = Duration::from_secs(4);
/// Deadline of one server, if there are more.
const ONE: Duration = Duration::from_millis(1500);
/// Largest answer over UDP in bytes.
const MAX_DATAGRAM: usize = 4096;

/// Asks upstream servers.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    node: Namespace,
}

impl Upstream {
    /// Asks from namespace `node`.
    pub(crate) fn new(node: Namespace) -> Self {
        Self { node }
    }

    /// The first proper answer, with the question's id, or the last improper one (a server's own failure); `None` if
    /// no server answered in time.
    pub(super) async fn ask(&self, question: &[u8], servers: &[SocketAddr], udp: bool) -> Option<Vec<u8>> {
        let until = Instant::now() + DEADLINE;
        let mut second_best = None;
        for (i, server) in servers.iter().enumerate() {
            let patience = if i + 1 == servers.len() { DEADLINE } else { ONE };
            let asked = async {
                if udp { self.by_datagram(question, *server).await } else { self.by_stream(question, *server).await }
            };
            let Ok(Ok(Some((answer, code)))) = timeout_at(until, timeout(patience, asked)).await else { continue };
            if matches!(code, ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp) {
                second_best = Some(answer);
            } else {
                return Some(answer);
            }
        }
        second_best
    }

    async fn by_datagram(&self, question: &[u8], server: SocketAddr) -> Option<(Vec<u8>, ResponseCode)> {
        let any = if server.is_ipv4() {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
        } else {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
        };
        let node = self.node.clone();
        let socket = tokio::task::spawn_blocking(move || node.udp_socket(any)).await.ok()?.ok()?;
        let socket = UdpSocket::from_std(socket).ok()?;
        socket.connect(server).await.ok()?;
        let sent = with_id(question, random_id());
        socket.send(&sent).await.ok()?;
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let length = socket.recv(&mut buffer).await.ok()?;
            // Anything else is somebody else's: keep waiting for the right one.
            if let Some(found) = matching(&sent, buffer.get(..length).unwrap_or_default()) {
                return Some((with_id(&found.0, id_of(question)), found.1));
            }
        }
    }

    async fn by_stream(&self, question: &[u8], server: SocketAddr) -> Option<(Vec<u8>, ResponseCode)> {
        let node = self.node.clone();
        // Only the socket is made on a helper thread: nobody but this task waits for a server.
        let v6 = server.is_ipv6();
        let socket = tokio::task::spawn_blocking(move || node.tcp_socket(v6)).await.ok()?.ok()?;
        let mut stream = TcpSocket::from_std_stream(socket).connect(server).await.ok()?;
        let sent = with_id(question, random_id());
        let mut framed = u16::try_from(sent.len()).ok()?.to_be_bytes().to_vec();
        framed.extend(&sent);
        stream.write_all(&framed).await.ok()?;
        let length = usize::from(stream.read_u16().await.ok()?);
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await.ok()?;
        let (answer, code) = matching(&sent, &answer)?;
        Some((with_id(&answer, id_of(question)), code))
    }
}

/// The answer and its code, if it answers `question`.
fn matching(question: &[u8], answer: &[u8]) -> Option<(Vec<u8>, ResponseCode)> {
    if id_of(question) != id_of(answer) {
        return None;
    }
    let (asked, answered) = (Message::from_vec(question).ok()?, Message::from_vec(answer).ok()?);
    let same = asked.queries == answered.queries || answered.queries.is_empty();
    same.then(|| (answer.to_vec(), answered.metadata.response_code))
}

fn id_of(message: &[u8]) -> [u8; 2] {
    message.first_chunk().copied().unwrap_or_default()
}

fn with_id(message: &[u8], id: [u8; 2]) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(first) = message.first_chunk_mut() {
        *first = id;
    }
    message
}

/// An id that nobody can foresee: a keyed hash under a key that the operating system gave.
fn random_id() -> [u8; 2] {
    let [a, b, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    [a, b]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hickory_proto::op::Query;
    use hickory_proto::rr::{Name, RecordType};
    use skep_net_kernel::link::{Bridge, Handle, IpNet, Neighbour};

    use super::*;

    /// A server that takes packets and never says anything.
    const NOWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

    /// A namespace in which packets to [`NOWHERE`] leave for nobody.
    async fn black_hole() -> Namespace {
        let node = Namespace::create_unnamed().unwrap();
        let link = Handle::open(&node).unwrap();
        link.add_bridge(&Bridge { name: "hole", up: true, ..Bridge::default() }).await.unwrap();
        let device = link.index("hole").await.unwrap();
        link.add_address(device, IpNet::new(Ipv4Addr::new(192, 0, 2, 1), 24)).await.unwrap();
        let mac = skep_net_kernel::link::Mac::of(NOWHERE);
        link.replace_neighbour(&Neighbour { device, address: NOWHERE.into(), mac }).await.unwrap();
        node
    }

    /// Containers may ask as they like: whoever else needs a helper thread gets one.
    #[test]
    fn a_server_that_is_silent_holds_no_helper_thread() {
        if !rustix::process::geteuid().is_root() {
            println!("UNTESTED: upstream servers (needs root)");
            return;
        }
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).max_blocking_threads(4).enable_all().build().unwrap();
        let found = runtime.block_on(async {
            let upstream = Upstream::new(black_hole().await);
            let mut question = Message::query();
            question.add_query(Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::A));
            let question = question.to_vec().unwrap();
            let mut asking = tokio::task::JoinSet::new();
            let begun = Arc::new(AtomicUsize::new(0));
            for _ in 0..32 {
                let (upstream, question, begun) = (upstream.clone(), question.clone(), begun.clone());
                let servers = [SocketAddr::from((NOWHERE, 53)); 2];
                asking.spawn(async move {
                    begun.fetch_add(1, Ordering::Relaxed);
                    upstream.ask(&question, &servers, false).await
                });
            }
            let all = timeout(Duration::from_secs(10), async {
                while begun.load(Ordering::Relaxed) < 32 {
                    tokio::task::yield_now().await;
                }
            });
            all.await.unwrap();
            let helper = timeout(Duration::from_secs(1), tokio::task::spawn_blocking(|| ())).await;
            let waiting = asking.try_join_next().is_none();
            asking.abort_all();
            (helper.is_ok(), waiting)
        });
        assert_eq!(found, (true, true), "(a helper thread was free, the server was silent)");
    }
}
