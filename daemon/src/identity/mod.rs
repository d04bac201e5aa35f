//! Who this node is to the others: its key and certificate, the mutual TLS 1.3 that they make possible, how a node gets
//! its first certificate ([`join()`]) and its next ones ([`renew`]).
//!
//! Everything between nodes goes through here: [`serve`] puts the caller's verified identity beside each request and lets
//! strangers reach nothing but the certificate authority; [`Dialer`] opens channels to managers and to nobody else. What
//! a role may do is decided by the services themselves.

mod clock;
mod dial;
mod error;
mod files;
mod guard;
mod holder;
mod join;
mod renew;
mod serve;
#[cfg(test)]
mod tests;
mod tls;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use skep_manager::ca::{self, RootCa, certificate};
use skep_manager::peer::Peer;
use skep_proto::v1::Role;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};

pub use clock::Clock;
pub(crate) use dial::chain as causes;
pub use dial::{ConnectError, DEFAULT_PORT, Dialer, explain, with_port};
pub use error::Error;
pub use guard::Gate;
pub use holder::Holder;
pub use join::{JoinError, join};
pub use renew::{Authority, renew};
pub use serve::{Serving, serve};

/// A node's certificate with its key and the root it hangs from, ready for use.
pub struct Identity {
    /// Node id, role and cluster, as the certificate says them.
    pub subject: Peer,
    /// First moment of the certificate's validity.
    pub not_before: SystemTime,
    /// Last moment of the certificate's validity.
    pub not_after: SystemTime,
    root_pem: String,
    chain_pem: String,
    key_pem: String,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl std::fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("subject", &self.subject)
            .field("not_after", &clock::text(self.not_after))
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Puts the parts together. They have to fit: the certificate is a node's, for this key, signed by this root and
    /// valid at some time; whether it is valid now is asked whenever it is used.
    ///
    /// # Errors
    /// Parts that can't be read or don't fit.
    pub fn new(root_pem: &str, chain_pem: &str, key_pem: &str, clock: &Clock) -> Result<Self, Error> {
        let chain = chain(chain_pem)?;
        let leaf = chain.first().ok_or(Error::Unfit { why: "there is no certificate in the chain" })?;
        let read = certificate::read(leaf)?;
        if certificate::public_key(key_pem)? != read.public_key {
            return Err(Error::Unfit { why: "the private key is not the certificate's" });
        }
        let tls = tls::configs(root_pem, chain, key_pem, read.not_before, clock)?;
        Ok(Self {
            subject: read.subject,
            not_before: read.not_before,
            not_after: read.not_after,
            root_pem: root_pem.to_owned(),
            chain_pem: chain_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            server: tls.server,
            client: tls.client,
        })
    }

    /// The identity of a cluster's first manager, which has nobody to ask.
    ///
    /// # Errors
    /// No random numbers, or a root that can't sign.
    pub fn found(root: &RootCa, subject: &Peer, life: Duration, clock: &Clock) -> Result<Self, Error> {
        let (key_pem, request) = certificate::request()?;
        let chain_pem = root.sign(&request, subject, life, clock.now())?;
        Self::new(root.certificate_pem(), &chain_pem, &key_pem, clock)
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The node's certificate, PEM.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// Whether the certificate is a manager's.
    pub fn is_manager(&self) -> bool {
        self.subject.role == Role::Manager
    }

    /// When to ask for the next certificate: at `fraction` (0 to 1) of its life, which begins when it was made and not at
    /// the backdated start of its validity.
    pub fn renewal_at(&self, fraction: f64) -> SystemTime {
        renewal_at(self.not_before, self.not_after, fraction)
    }

    /// Fails when the certificate is not valid at the time.
    ///
    /// # Errors
    /// [`Error::Expired`], [`Error::NotYetValid`].
    pub fn check(&self, now: SystemTime) -> Result<(), Error> {
        let (node_id, now_text) = (self.subject.node_id.clone(), clock::text(now));
        if now > self.not_after {
            return Err(Error::Expired { node_id, until: clock::text(self.not_after), now: now_text });
        }
        if now < self.not_before {
            return Err(Error::NotYetValid { node_id, from: clock::text(self.not_before), now: now_text });
        }
        Ok(())
    }
}

fn renewal_at(not_before: SystemTime, not_after: SystemTime, fraction: f64) -> SystemTime {
    let made = (not_before + ca::BACKDATE).min(not_after);
    let life = not_after.duration_since(made).unwrap_or_default();
    made + life.mul_f64(fraction.clamp(0.0, 1.0))
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Pem { what: "certificate", why: e.to_string() })
}
