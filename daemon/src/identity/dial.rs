//! Connections to managers: TCP, then TLS in which the other side proves that it is a manager of this cluster. Every step
//! has a deadline, every failure says what it was.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error as TlsError};
use tonic::transport::{Channel, Endpoint};

use super::{Error, Holder, clock};
use skep_manager::ca::certificate::{self, MANAGER};

/// The port of managers when an address names none.
pub const DEFAULT_PORT: u16 = 2377;

/// A connection that is silent for so long is asked whether it lives, and dropped when it does not answer within as long
/// again.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Why there is no connection to a manager.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers at the address.
    #[error(
        "{address} can't be reached: {source}; is a manager listening there, and does a firewall let 2377/tcp pass?"
    )]
    Unreachable {
        /// `host:port`.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Somebody answers who is no manager.
    #[error("{address} answers, but not as a manager: {why}")]
    NotAManager {
        /// `host:port`.
        address: String,
        /// How it was noticed.
        why: String,
    },
    /// A certificate of another cluster, or not a manager's.
    #[error("{address} is not a manager of this cluster: {why}")]
    Untrusted {
        /// `host:port`.
        address: String,
        /// What is wrong with its certificate.
        why: String,
    },
    /// By this machine's clock the manager's certificate is not valid.
    #[error("the certificate of manager {address} is {state}, and this machine's clock says {now}; compare the clocks")]
    PeerClock {
        /// `host:port`.
        address: String,
        /// `valid from …` or `valid until …`.
        state: String,
        /// This machine's clock.
        now: String,
    },
    /// This node's own certificate can't be used.
    #[error(transparent)]
    Own(#[from] Error),
}

/// Opens channels to managers with the node's current identity. Clones share the identity.
#[derive(Debug, Clone)]
pub struct Dialer {
    holder: Holder,
}

impl Dialer {
    /// A dialer for a node.
    pub fn new(holder: Holder) -> Self {
        Self { holder }
    }

    /// A channel to the manager at `address` (`host` or `host:port`). It connects with its first call, and again after a
    /// loss with whatever certificate is current then; `deadline` bounds the TCP and the TLS part of that separately.
    /// Calls fail with `UNAVAILABLE` while there is no connection; [`explain`] tells why.
    ///
    /// # Errors
    /// An address that is none.
    pub fn channel(&self, address: &str, deadline: Duration) -> io::Result<Channel> {
        let address = with_port(address);
        let endpoint = endpoint(&address)?;
        let holder = self.holder.clone();
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let (holder, address) = (holder.clone(), address.clone());
            async move { connect_as_node(&holder, &address, deadline).await.map(TokioIo::new) }
        })))
    }
}

impl skep_manager::raft::Dialer for Dialer {
    fn channel(&self, address: &str) -> io::Result<Channel> {
        Dialer::channel(self, address, Duration::from_secs(1))
    }
}

async fn connect_as_node(
    holder: &Holder,
    address: &str,
    deadline: Duration,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let identity = holder.current();
    identity.check(holder.clock().now())?;
    let stream = connect(address, Arc::clone(&identity.client), deadline).await?;
    // The root is the cluster's own, but one may have been given by hand to two clusters.
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    match chain.first().map(|leaf| certificate::read(leaf)) {
        Some(Ok(read)) if read.subject.cluster_id == identity.subject.cluster_id => Ok(stream),
        _ => Err(ConnectError::Untrusted { address: address.to_owned(), why: "it belongs to another cluster".into() }),
    }
}

/// TCP and TLS. What the other side has to prove is in the settings.
pub(super) async fn connect(
    address: &str,
    config: Arc<ClientConfig>,
    deadline: Duration,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let not_a_manager = |why: String| ConnectError::NotAManager { address: address.to_owned(), why };
    let tcp = timeout(deadline, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {deadline:?}"))));
    let tcp = tcp.map_err(|source| ConnectError::Unreachable { address: address.to_owned(), source })?;
    // Small messages that others wait for; a socket that can't be set is about to fail anyway.
    let _ = tcp.set_nodelay(true);
    #[expect(clippy::expect_used, reason = "a constant that is a valid DNS name")]
    let name = ServerName::try_from(MANAGER).expect("a DNS name");
    let tls = timeout(deadline, TlsConnector::from(config).connect(name, tcp)).await;
    let stream = match tls {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(classify(address, &error)),
        Err(_) => return Err(not_a_manager(format!("no TLS handshake within {deadline:?}"))),
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        Ok(stream)
    } else {
        Err(not_a_manager("it does not speak HTTP/2".into()))
    }
}

/// A channel over one established connection; when that is lost, so is the channel.
pub(super) async fn channel_over(stream: TlsStream<TcpStream>, address: &str) -> Result<Channel, ConnectError> {
    let not_a_manager = |why: String| ConnectError::NotAManager { address: address.to_owned(), why };
    let endpoint = endpoint(address).map_err(|e| not_a_manager(e.to_string()))?;
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { stream }
    });
    endpoint.connect_with_connector(connector).await.map_err(|e| not_a_manager(chain(&e)))
}

/// The address with the default port, if it names none.
pub fn with_port(address: &str) -> String {
    let bare_v6 = address.parse::<std::net::Ipv6Addr>().is_ok();
    match address.rsplit_once(':') {
        _ if bare_v6 => format!("[{address}]:{DEFAULT_PORT}"),
        Some((host, port)) if !port.is_empty() && !host.is_empty() && !port.ends_with(']') => address.to_owned(),
        _ => format!("{}:{DEFAULT_PORT}", address.trim_end_matches(':')),
    }
}

/// What the identity layer knows about a failed call: the reason in words, when it was for want of a connection or the
/// other side refused this node's certificate.
pub fn explain(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(known) = error.downcast_ref::<ConnectError>() {
            return Some(known.to_string());
        }
        if let Some(alert) = alert(error) {
            return Some(alert_text(&alert));
        }
        next = error.source();
    }
    None
}

/// The TLS error inside; an I/O error's own `source` skips it.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a TlsError> {
    error
        .downcast_ref::<TlsError>()
        .or_else(|| error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<TlsError>())
}

/// The name of the alert that the other side ended TLS with.
fn alert(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(TlsError::AlertReceived(alert)) = tls_error(error) {
        return Some(format!("{alert:?}"));
    }
    // In TLS 1.3 a client hears of a refusal after its handshake, and HTTP/2 keeps only the text of what happened.
    let text = error.downcast_ref::<io::Error>()?.to_string();
    text.strip_prefix("received fatal alert: ").map(str::to_owned)
}

fn alert_text(alert: &str) -> String {
    match alert {
        "CertificateExpired" => {
            "the manager refused this node's certificate: by the manager's clock it has expired; compare the clocks"
                .into()
        }
        "UnknownCA" | "DecryptError" | "BadCertificate" => {
            "the manager refused this node's certificate: it is another cluster's, or not valid by the manager's clock"
                .into()
        }
        other => format!("the manager ended the TLS connection: {other}"),
    }
}

fn classify(address: &str, error: &io::Error) -> ConnectError {
    let address = address.to_owned();
    let time = |at: UnixTime| clock::text(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(at.as_secs()));
    let Some(tls) = tls_error(error) else {
        return ConnectError::NotAManager { address, why: format!("it ended the TLS handshake ({error})") };
    };
    match tls {
        TlsError::InvalidCertificate(CertificateError::ExpiredContext { time: now, not_after }) => {
            ConnectError::PeerClock { address, state: format!("valid until {}", time(*not_after)), now: time(*now) }
        }
        TlsError::InvalidCertificate(CertificateError::NotValidYetContext { time: now, not_before }) => {
            ConnectError::PeerClock { address, state: format!("valid from {}", time(*not_before)), now: time(*now) }
        }
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            ConnectError::Untrusted { address, why: "its certificate was not issued by this cluster's root".into() }
        }
        TlsError::InvalidCertificate(_) => {
            ConnectError::Untrusted { address, why: format!("its certificate is not a manager's ({tls})") }
        }
        TlsError::AlertReceived(alert) => ConnectError::NotAManager { address, why: alert_text(&format!("{alert:?}")) },
        other => ConnectError::NotAManager { address, why: other.to_string() },
    }
}

fn endpoint(address: &str) -> io::Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("{address:?} is no address: {e}")))?;
    Ok(endpoint.http2_keep_alive_interval(KEEPALIVE).keep_alive_timeout(KEEPALIVE).keep_alive_while_idle(true))
}

/// An error with all its causes.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::with_port;

    #[test]
    fn an_address_gets_the_default_port() {
        for (given, full) in [
            ("10.0.0.1", "10.0.0.1:2377"),
            ("10.0.0.1:99", "10.0.0.1:99"),
            ("host:", "host:2377"),
            ("fd00::1", "[fd00::1]:2377"),
            ("[fd00::1]", "[fd00::1]:2377"),
            ("[fd00::1]:99", "[fd00::1]:99"),
        ] {
            assert_eq!(with_port(given), full);
        }
    }
}
