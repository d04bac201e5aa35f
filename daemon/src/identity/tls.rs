//! TLS settings: version 1.3, both sides with certificates of the cluster's root, HTTP/2, no resumption: a resumed session
//! would carry the certificate of the first one past its renewal.

use std::sync::Arc;
use std::time::SystemTime;

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use super::{Clock, Error};

const ALPN: &[u8] = b"h2";

/// Both sides' settings for one identity.
pub(super) struct Configs {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

/// Makes the settings. The chain must hang from the root; `at` is a time at which it is valid.
pub(super) fn configs(
    root_pem: &str,
    chain: Vec<CertificateDer<'static>>,
    key_pem: &str,
    at: SystemTime,
    clock: &Clock,
) -> Result<Configs, Error> {
    let tls = |e: rustls::Error| Error::Tls(e.to_string());
    let roots = Arc::new(roots(root_pem)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
        // Strangers get as far as the certificate authority: see `guard`.
        .allow_unauthenticated()
        .build()
        .map_err(|e| Error::Tls(e.to_string()))?;
    let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    if let Some((leaf, rest)) = chain.split_first() {
        verifier.verify_client_cert(leaf, rest, at).map_err(tls)?;
    }
    let mut server = ServerConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key(key_pem)?)
        .map_err(tls)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let client = ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(tls)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key(key_pem)?)
        .map_err(tls)?;
    Ok(Configs { server: Arc::new(server), client: client_defaults(client) })
}

/// For a node without a certificate that knows the root.
pub(super) fn joiner(root_pem: &str, clock: &Clock) -> Result<Arc<ClientConfig>, Error> {
    let config = ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| Error::Tls(e.to_string()))?
        .with_root_certificates(roots(root_pem)?)
        .with_no_client_auth();
    Ok(client_defaults(config))
}

/// For a node that knows nothing yet and only fetches the root certificate, which it then checks by its digest. Nothing
/// secret may be sent over such a connection.
pub(super) fn stranger(clock: &Clock) -> Result<Arc<ClientConfig>, Error> {
    let config = ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| Error::Tls(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    Ok(client_defaults(config))
}

fn client_defaults(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        use ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
        // Processors help with SHA-256 and not with SHA-384, which made up most of a handshake.
        let cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
        Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
    }))
}

fn roots(root_pem: &str) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in super::chain(root_pem)? {
        store.add(certificate).map_err(|e| Error::Tls(e.to_string()))?;
    }
    if store.is_empty() {
        return Err(Error::Unfit { why: "there is no root certificate" });
    }
    Ok(store)
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| Error::Pem { what: "private key", why: e.to_string() })
}

/// Believes any certificate, as long as the other side holds its key.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
