//! The resolver of every sandbox: 127.0.0.11, served by tasks of the daemon through sockets that were opened inside the
//! sandbox's namespace. Knows the names of the sandbox's networks, and asks upstream servers about all others.
//!
//! Must never: answer with names of networks that the sandbox isn't on, hold more than a bounded number of questions
//! and connections, or wait for an upstream server without a deadline. The reconcile loop starts and ends resolvers.

mod reply;
mod upstream;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use skep_net_kernel::ns::{self, Namespace};
use skep_net_plan::{DNS_ADDRESS, DNS_PORT, Desired, NameTable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

pub(crate) use upstream::Upstream;

/// Most questions of one sandbox that wait for an upstream server.
const MAX_PENDING: usize = 128;
/// Most TCP connections of one sandbox.
const MAX_CONNECTIONS: usize = 16;
/// Largest question in bytes.
const MAX_QUESTION: usize = 4096;
/// How long a TCP connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);

/// What resolvers answer from; the loop publishes a new one with each change.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) desired: Arc<Desired>,
    pub(crate) names: NameTable,
}

/// Why a resolver could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket could not be opened inside the sandbox.
    #[error("resolver of sandbox {sandbox}: {source}; is something else bound to {DNS_ADDRESS}:{DNS_PORT} in there?")]
    Socket {
        /// The sandbox.
        sandbox: String,
        /// What the kernel said.
        source: ns::Error,
    },
    /// The runtime refused a socket.
    #[error("resolver of sandbox {sandbox}: {source}")]
    Register {
        /// The sandbox.
        sandbox: String,
        /// What the runtime said.
        source: std::io::Error,
    },
}

/// A running resolver; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Resolver {
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What the tasks of one resolver share.
struct Shared {
    sandbox: String,
    book: watch::Receiver<Arc<Book>>,
    upstream: Upstream,
    pending: Arc<Semaphore>,
    /// Turns the order of several addresses, so that clients that take the first one spread.
    turn: AtomicUsize,
}

impl Resolver {
    /// Opens the sockets in `namespace` and serves them.
    pub(crate) fn start(
        sandbox: &str,
        namespace: &Namespace,
        upstream: Upstream,
        book: watch::Receiver<Arc<Book>>,
    ) -> Result<Self, Error> {
        let at = SocketAddr::from((DNS_ADDRESS, DNS_PORT));
        let socket = |source| Error::Socket { sandbox: sandbox.to_owned(), source };
        let register = |source| Error::Register { sandbox: sandbox.to_owned(), source };
        let (udp, tcp) = namespace.listeners(at).map_err(socket)?;
        let udp = UdpSocket::from_std(udp).map_err(register)?;
        let tcp = TcpListener::from_std(tcp).map_err(register)?;
        let shared = Arc::new(Shared {
            sandbox: sandbox.to_owned(),
            book,
            upstream,
            pending: Arc::new(Semaphore::new(MAX_PENDING)),
            turn: AtomicUsize::new(0),
        });
        Ok(Self { tasks: [tokio::spawn(serve_udp(udp, shared.clone())), tokio::spawn(serve_tcp(tcp, shared))] })
    }

    /// Whether it still serves.
    pub(crate) fn alive(&self) -> bool {
        self.tasks.iter().all(|t| !t.is_finished())
    }
}

impl Shared {
    /// The answer that needs nobody else, or the servers to ask.
    fn local(&self, question: &[u8], udp: bool) -> reply::Reply {
        let book = self.book.borrow().clone();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let sandbox = book.desired.attachments.get(&self.sandbox);
        reply::reply(question, &book.names, sandbox.map(Arc::as_ref), turn, udp)
    }

    /// Asks upstream.
    async fn forward(&self, question: &[u8], servers: &[SocketAddr], udp: bool) -> Vec<u8> {
        match self.upstream.ask(question, servers, udp).await {
            Some(answer) => answer,
            None => reply::failure(question),
        }
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let socket = Arc::new(socket);
    let mut asking = JoinSet::new();
    let mut buffer = vec![0; MAX_QUESTION];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = asking.join_next() => continue,
        };
        // An error here is the echo of an answer that nobody waited for; a dead socket is noticed by the next one.
        let Ok((length, client)) = received else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let question = buffer.get(..length).unwrap_or_default();
        match shared.local(question, true) {
            reply::Reply::Answer(answer) => {
                let _ = socket.send_to(&answer, client).await;
            }
            reply::Reply::Forward(servers) => {
                // Too many wait: refused at once, without so much as a task.
                let Ok(permit) = shared.pending.clone().try_acquire_owned() else {
                    let _ = socket.send_to(&reply::failure(question), client).await;
                    continue;
                };
                let (socket, shared, question) = (socket.clone(), shared.clone(), question.to_vec());
                asking.spawn(async move {
                    let answer = shared.forward(&question, &servers, true).await;
                    drop(permit);
                    let _ = socket.send_to(&answer, client).await;
                });
                while asking.try_join_next().is_some() {}
            }
            reply::Reply::Nothing => {}
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if clients.len() < MAX_CONNECTIONS => accepted,
            Some(_) = clients.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                clients.spawn(serve_client(stream, shared.clone()));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// One connection: questions and answers, each with its length in front (RFC 7766), one at a time.
async fn serve_client(mut stream: TcpStream, shared: Arc<Shared>) -> Option<()> {
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await.ok()?.ok()?);
        if length > MAX_QUESTION {
            return None;
        }
        let mut question = vec![0; length];
        timeout(IDLE, stream.read_exact(&mut question)).await.ok()?.ok()?;
        let answer = match shared.local(&question, false) {
            reply::Reply::Answer(answer) => answer,
            reply::Reply::Forward(servers) => match shared.pending.try_acquire() {
                Ok(_permit) => shared.forward(&question, &servers, false).await,
                Err(_) => reply::failure(&question),
            },
            reply::Reply::Nothing => return None,
        };
        let mut framed = u16::try_from(answer.len()).ok()?.to_be_bytes().to_vec();
        framed.extend(answer);
        timeout(IDLE, stream.write_all(&framed)).await.ok()?.ok()?;
    }
}

/// The address in a reverse name (`4.3.2.1.in-addr.arpa`), if it is a whole one.
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let labels: Vec<_> = name.trim_end_matches('.').strip_suffix(".in-addr.arpa")?.split('.').collect();
    let [d, c, b, a] = labels.as_slice() else { return None };
    Some(Ipv4Addr::new(a.parse().ok()?, b.parse().ok()?, c.parse().ok()?, d.parse().ok()?))
}
