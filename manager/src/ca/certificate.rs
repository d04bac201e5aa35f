//! Node certificates from the outside: asking for one and reading what one says. Pure but for random numbers.
//!
//! Reading trusts nothing and proves nothing: whether a certificate is genuine is for TLS to decide.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use skep_proto::v1::Role;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use crate::peer::Peer;

/// What a worker's certificate carries as its organisational unit and as one of its names.
pub const WORKER: &str = "swarm-worker";

/// What a manager's certificate carries as its organisational unit and as one of its names: the name that clients ask for.
pub const MANAGER: &str = "swarm-manager";

/// Why a certificate or key can't be used.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No X.509 certificate.
    #[error("not a certificate: {0}")]
    Malformed(String),
    /// A certificate, but none of a node.
    #[error("not a node's certificate: {0}")]
    NotANode(&'static str),
    /// The private key can't be read or made.
    #[error("unusable private key: {0}")]
    Key(String),
}

/// What a node certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is.
    pub subject: Peer,
    /// First moment of its validity, backdated by [`super::BACKDATE`].
    pub not_before: SystemTime,
    /// Last moment of its validity.
    pub not_after: SystemTime,
    /// Its public key: an uncompressed P-256 point.
    pub public_key: Vec<u8>,
}

/// The value of a certificate's organisational unit for a role.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Worker => WORKER,
        Role::Manager => MANAGER,
    }
}

/// Reads a certificate (DER).
///
/// # Errors
/// [`Error::Malformed`], [`Error::NotANode`].
pub fn read(der: &[u8]) -> Result<Certificate, Error> {
    let (rest, parsed) = X509Certificate::from_der(der).map_err(|e| Error::Malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(Error::Malformed("something follows it".into()));
    }
    let subject = parsed.subject();
    let role = match only(subject.iter_organizational_unit()) {
        Some(WORKER) => Role::Worker,
        Some(MANAGER) => Role::Manager,
        _ => return Err(Error::NotANode("its organisational unit is neither swarm-worker nor swarm-manager")),
    };
    let node_id = node_id(subject).ok_or(Error::NotANode("its common name is not a node's id"))?;
    let cluster_id = only(subject.iter_organization()).ok_or(Error::NotANode("it names no cluster"))?.to_owned();
    Ok(Certificate {
        subject: Peer { node_id, role, cluster_id },
        not_before: time(parsed.validity().not_before.timestamp()),
        not_after: time(parsed.validity().not_after.timestamp()),
        public_key: parsed.public_key().subject_public_key.data.to_vec(),
    })
}

/// A new private key (PKCS #8, PEM) and a request (PKCS #10, DER) for a certificate for it.
///
/// # Errors
/// The system gives no random numbers.
pub fn request() -> Result<(String, Vec<u8>), Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| Error::Key(e.to_string()))?;
    // The CA decides about names; an empty subject says so.
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(|e| Error::Key(e.to_string()))?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

/// The public half of a private key (PEM), in the form of [`Certificate::public_key`].
///
/// # Errors
/// [`Error::Key`].
pub fn public_key(key_pem: &str) -> Result<Vec<u8>, Error> {
    KeyPair::from_pem(key_pem).map(|key| key.der_bytes().to_vec()).map_err(|e| Error::Key(e.to_string()))
}

fn node_id(subject: &X509Name<'_>) -> Option<String> {
    only(subject.iter_common_name()).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The one value of an attribute. Two would leave open which one counts.
fn only<'a>(mut values: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>) -> Option<&'a str> {
    let value = values.next()?;
    if values.next().is_some() { None } else { value.as_str().ok() }
}

fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}
