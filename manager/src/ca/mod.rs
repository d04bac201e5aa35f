//! The certificate authority of a cluster: who may become a node, and what its certificate says.
//!
//! [`root`] makes and uses the root, [`token`] the join tokens, [`certificate`] asks for and reads node certificates; all
//! three are pure but for random numbers. [`service`] answers nodes and asks the cluster's state through [`Membership`].
//! Nothing here opens a connection or decides about TLS: that is the daemon's. The root's private key must never leave
//! towards anything but the replicated cluster object.

mod base36;
pub mod certificate;
pub mod root;
mod service;
#[cfg(test)]
mod tests;
pub mod token;

use std::sync::Arc;

use skep_proto::v1::certificate_authority_server::CertificateAuthorityServer;
use skep_proto::v1::{self, Role};

pub use root::{BACKDATE, DEFAULT_LIFE, RootCa};
pub use service::{CaService, Membership, NewNode, Reason, life};
pub use token::JoinToken;

/// The largest message that the CA's service reads; a request is under 1 KiB.
const MAX_MESSAGE: usize = 64 * 1024;

/// The gRPC service to mount on a manager.
pub fn service(membership: Arc<dyn Membership>) -> CertificateAuthorityServer<CaService> {
    CertificateAuthorityServer::new(CaService::new(membership)).max_decoding_message_size(MAX_MESSAGE)
}

/// A new join token for a role, as text. The one that it replaces in the cluster object is refused from then on.
///
/// # Errors
/// A root that can't be read; no random numbers.
pub fn new_token(root: &v1::RootCa, role: Role) -> Result<String, token::Error> {
    Ok(JoinToken::generate(&RootCa::load(root)?, role)?.to_string())
}

/// Join tokens of a new cluster.
///
/// # Errors
/// As for [`new_token`].
pub fn new_tokens(root: &v1::RootCa) -> Result<v1::JoinTokens, token::Error> {
    Ok(v1::JoinTokens { worker: new_token(root, Role::Worker)?, manager: new_token(root, Role::Manager)? })
}
