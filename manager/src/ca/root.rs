//! The root of a cluster's trust: made once when the cluster is founded, kept in the replicated cluster object, used by
//! any manager to sign node certificates. Pure but for random numbers.
//!
//! The private key leaves this module only towards the cluster object, which is encrypted at rest and never shown.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use skep_proto::v1::{self, Role};

use super::certificate;
use crate::peer::Peer;

/// Certificates begin this long before they are made, so that clocks may differ by as much.
pub const BACKDATE: Duration = Duration::from_secs(3600);

/// Life of a node certificate when the cluster's settings name none: 90 days.
pub const DEFAULT_LIFE: Duration = Duration::from_secs(90 * 86_400);

/// Common name of the root, and a name of every manager.
pub const CA_NAME: &str = "swarm-ca";

/// Life of the root: 20 years of 365 days.
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 86_400);

/// A request for a P-256 key is some 250 bytes.
const MAX_REQUEST: usize = 8 * 1024;

/// Why the CA can't do what it was asked.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The root certificate is no certificate.
    #[error("the cluster's root certificate can't be read: {0}")]
    Certificate(String),
    /// The root key is not the root certificate's, or no key.
    #[error("the cluster's root key can't be used: {0}")]
    Key(String),
    /// A certificate request that is none, is not signed by its own key or has an unsuitable key.
    #[error("the certificate request was refused: {0}")]
    Request(String),
    /// A certificate that can't be made.
    #[error("no certificate could be made: {0}")]
    Sign(String),
}

/// A root CA with its private key.
#[derive(Clone)]
pub struct RootCa {
    certificate_pem: String,
    key_pem: String,
    digest: [u8; 32],
    token_key: hmac::Key,
}

impl std::fmt::Debug for RootCa {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootCa").field("digest", &hex::encode(self.digest)).finish_non_exhaustive()
    }
}

impl RootCa {
    /// A new root: P-256, valid for 20 years.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn create(now: SystemTime) -> Result<Self, Error> {
        let sign = |e: rcgen::Error| Error::Sign(e.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(sign)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, CA_NAME);
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, now, ROOT_LIFE);
        let certificate = params.self_signed(&key).map_err(sign)?;
        Self::load(&v1::RootCa { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// The root as the cluster object holds it.
    ///
    /// # Errors
    /// Certificate or key that can't be read. That they belong together is checked when the first certificate is signed.
    pub fn load(stored: &v1::RootCa) -> Result<Self, Error> {
        let key =
            PrivatePkcs8KeyDer::from_pem_slice(stored.key_pem.as_bytes()).map_err(|e| Error::Key(e.to_string()))?;
        let derived = Sha256::new().chain_update(b"skep join token\0").chain_update(key.secret_pkcs8_der()).finalize();
        Ok(Self {
            digest: digest(&stored.certificate_pem)?,
            certificate_pem: stored.certificate_pem.clone(),
            key_pem: stored.key_pem.clone(),
            token_key: hmac::Key::new(hmac::HMAC_SHA256, &derived),
        })
    }

    /// The form that goes into the cluster object, private key included.
    pub fn to_stored(&self) -> v1::RootCa {
        v1::RootCa { certificate_pem: self.certificate_pem.clone(), key_pem: self.key_pem.clone() }
    }

    /// The certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the certificate (DER).
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    pub(super) fn token_key(&self) -> &hmac::Key {
        &self.token_key
    }

    /// Signs a certificate for the key of a PKCS #10 request (DER). Whatever else the request asks for is ignored: names
    /// and role come from `subject`. Returns PEM.
    ///
    /// The subject is CN = node id, OU = role, O = cluster id; the names (SAN) are node id and role, for a manager also
    /// `swarm-ca`. A worker's certificate is good for clients only.
    ///
    /// # Errors
    /// A request that is malformed, not signed by its key or not for P-256; a root that can't sign.
    pub fn sign(&self, request: &[u8], subject: &Peer, life: Duration, now: SystemTime) -> Result<String, Error> {
        let public_key = requested_key(request)?;
        let sign = |e: rcgen::Error| Error::Sign(e.to_string());
        let mut params = CertificateParams::default();
        let role = certificate::role_name(subject.role);
        let name = &mut params.distinguished_name;
        *name = rcgen::DistinguishedName::new();
        name.push(DnType::OrganizationName, subject.cluster_id.as_str());
        name.push(DnType::OrganizationalUnitName, role);
        name.push(DnType::CommonName, subject.node_id.as_str());
        let mut names = vec![subject.node_id.as_str(), role];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if subject.role == Role::Manager {
            names.push(CA_NAME);
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.try_into().map_err(sign)?));
        }
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, now, life);
        let key = KeyPair::from_pem(&self.key_pem).map_err(|e| Error::Key(e.to_string()))?;
        let issuer =
            Issuer::from_ca_cert_pem(&self.certificate_pem, key).map_err(|e| Error::Certificate(e.to_string()))?;
        Ok(params.signed_by(&public_key, &issuer).map_err(sign)?.pem())
    }
}

/// SHA-256 of a PEM certificate's DER form: what a join token carries of the root.
///
/// # Errors
/// [`Error::Certificate`].
pub fn digest(certificate_pem: &str) -> Result<[u8; 32], Error> {
    let der =
        CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|e| Error::Certificate(e.to_string()))?;
    Ok(Sha256::digest(&der).into())
}

/// The key of a request whose signature proves that the asker holds the private one.
fn requested_key(request: &[u8]) -> Result<rcgen::PublicKey, Error> {
    let refused = |why: &str| Error::Request(why.to_owned());
    if request.len() > MAX_REQUEST {
        return Err(refused("it is larger than 8 KiB"));
    }
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
        .map_err(|e| Error::Request(e.to_string()))?;
    let key = request.public_key;
    // An uncompressed P-256 point is 65 bytes; the signature's algorithm alone does not say which curve it is.
    if PublicKeyData::algorithm(&key) != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != 65 {
        return Err(refused("its key is not a P-256 key"));
    }
    Ok(key)
}

/// 20 bytes at most, positive (RFC 5280, 4.1.2.2), with more than 64 random bits.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0_u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Sign("the system gives no random numbers".into()))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sets the validity in the library's own kind of date. Moments before 1970 become 1970.
fn validity(params: &mut CertificateParams, now: SystemTime, life: Duration) {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + life.min(ROOT_LIFE);
}
