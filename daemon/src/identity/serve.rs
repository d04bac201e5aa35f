//! A manager's port: accepts connections, shakes hands within a deadline, serves the gRPC services behind [`super::guard`].
//!
//! Each handshake uses the identity that is current then. Handshakes under way are bounded, and so are strangers
//! (connections without a certificate), which are also cut off soon: they have one thing to do here.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use skep_manager::ca::certificate;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::guard::{Caller, Gate, GuardLayer};
use super::{Error, Holder};

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// A cluster that reconnects all at once must not wait for those who never finish their handshake; some 40 KiB each.
const HANDSHAKES: usize = 1024;

/// Nodes that join at the same moment.
const STRANGERS: usize = 128;

/// A stranger's connection lives no longer: a join is two calls.
const STRANGER_DEADLINE: Duration = Duration::from_secs(30);

/// Accepted connections that the server has not picked up yet.
const QUEUE: usize = 64;

const KEEPALIVE: Duration = Duration::from_secs(10);

/// How long calls that are under way get to finish when serving ends.
const GRACE: Duration = Duration::from_secs(5);

/// What is served, and under which rules.
pub struct Serving {
    /// Where connections come in.
    pub listener: TcpListener,
    /// The services.
    pub routes: Routes,
    /// This node's identity.
    pub holder: Holder,
    /// A further say in who may call.
    pub gate: Option<Gate>,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Serves until `stop` is cancelled; then no call is taken any more, those under way get 5 s, and every connection is
/// closed.
///
/// # Errors
/// The server itself failed.
pub async fn serve(serving: Serving, stop: CancellationToken) -> Result<(), Error> {
    let Serving { listener, routes, holder, gate } = serving;
    let (connections, incoming) = mpsc::channel(QUEUE);
    let cut = CancellationToken::new();
    let _cut_at_the_end = cut.clone().drop_guard();
    let guard = GuardLayer { clock: holder.clock().clone(), gate };
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(guard)
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.clone().cancelled_owned());
    let accepting = stop.run_until_cancelled(accept(listener, holder, connections, cut));
    let forced = async {
        stop.cancelled().await;
        sleep(GRACE).await;
    };
    let served = async { tokio::join!(server, accepting).0 };
    tokio::select! {
        served = served => served.map_err(|e| Error::Tls(super::dial::chain(&e))),
        () = forced => {
            tracing::warn!("calls were still under way after {} s and are cut off", GRACE.as_secs());
            Ok(())
        }
    }
}

/// Accepts for ever. Whoever drops this ends the handshakes that are under way.
async fn accept(
    listener: TcpListener,
    holder: Holder,
    connections: mpsc::Sender<Result<Connection, io::Error>>,
    cut: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    let mut under_way = JoinSet::new();
    loop {
        while under_way.try_join_next().is_some() {}
        // With all of them taken, new connections wait in the kernel's queue.
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let (tcp, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // No descriptors left, or a connection that died in the queue: neither gets better by hurrying.
                tracing::warn!(error = %error, "connection not accepted");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let handshake =
            Handshake { holder: holder.clone(), strangers: Arc::clone(&strangers), cut: cut.clone(), address };
        let connections = connections.clone();
        under_way.spawn(async move {
            let _permit = permit;
            match timeout(HANDSHAKE_DEADLINE, handshake.shake(tcp)).await {
                Ok(Some(connection)) => drop(connections.send(Ok(connection)).await),
                Ok(None) => {}
                Err(_) => tracing::debug!(peer = %address, "no TLS handshake within 10 s"),
            }
        });
    }
}

struct Handshake {
    holder: Holder,
    strangers: Arc<Semaphore>,
    cut: CancellationToken,
    address: SocketAddr,
}

impl Handshake {
    async fn shake(self, tcp: TcpStream) -> Option<Connection> {
        let _ = tcp.set_nodelay(true);
        let identity = self.holder.current();
        let accepting = TlsAcceptor::from(Arc::clone(&identity.server)).accept(tcp).into_fallible();
        let stream = match accepting.await {
            Ok(stream) => stream,
            Err((error, tcp)) => {
                tracing::info!(peer = %self.address, error = %error, "TLS handshake failed");
                part(tcp).await;
                return None;
            }
        };
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
        // Genuine or the handshake would have failed; whether it is a node's of this very cluster is asked here.
        let peer = leaf
            .and_then(|leaf| certificate::read(leaf).ok())
            .filter(|read| read.subject.cluster_id == identity.subject.cluster_id)
            .map(|read| (read.subject, read.not_after));
        let cut = self.cut.cancelled_owned();
        let (end, permit): (Pin<Box<dyn Future<Output = ()> + Send>>, _) = if peer.is_some() {
            (Box::pin(cut), None)
        } else {
            let Ok(permit) = self.strangers.try_acquire_owned() else {
                tracing::warn!(peer = %self.address, "connection refused: too many without a certificate");
                return None;
            };
            let end = async {
                tokio::select! { () = cut => {} () = sleep(STRANGER_DEADLINE) => {} }
            };
            (Box::pin(end), Some(permit))
        };
        let caller = Caller { address: Some(self.address), peer };
        Some(Connection { stream, caller, end, _permit: permit })
    }
}

/// Lets the other side read the alert: closing with its bytes unread would reset the connection instead.
async fn part(mut tcp: TcpStream) {
    let _ = tcp.shutdown().await;
    let mut rest = [0; 4096];
    let _ =
        timeout(Duration::from_millis(500), async { while tcp.read(&mut rest).await.is_ok_and(|n| n > 0) {} }).await;
}

/// A connection after its handshake; it ends itself when it must.
struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(context).is_ready() {
            // Polled again after its end it would panic; what follows is only ever another error.
            self.end = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
