//! How a node becomes a member: it fetches the root certificate from whoever answers, checks it against the digest in its
//! token, connects again to someone whom that root vouches for, and only then shows the token.

use std::io;
use std::time::Duration;

use skep_manager::ca::token::{self, JoinToken, digest_text};
use skep_manager::ca::{Reason, certificate, root};
use skep_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use skep_proto::v1::{
    Availability, GetRootCaRequest, GetRootCaResponse, IssueCertificateRequest, IssueCertificateResponse,
};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::dial::{ConnectError, channel_over, connect};
use super::{Clock, Error, Identity, clock, dial, tls};

/// For TCP, and again for TLS.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// For the root certificate: a manager without a leader says so after 3 s, a slow one has 10.
const ROOT_DEADLINE: Duration = Duration::from_secs(12);

/// For the certificate: the manager may have to wait out an election to register the node.
const ISSUE_DEADLINE: Duration = Duration::from_secs(20);

/// A root certificate is under 1 KiB, a chain not much more.
const MAX_ANSWER: usize = 64 * 1024;

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The text is no token.
    #[error(transparent)]
    Token(#[from] token::Error),
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
    #[error("{address} is not a manager: {why}")]
    NotAManager {
        /// `host:port`.
        address: String,
        /// How it was noticed.
        why: String,
    },
    /// The root certificate there is not the one that the token is for. The token was not sent.
    #[error(
        "the manager at {address} belongs to another cluster than the join token: its root certificate has the digest \
         {found}, the token is for {expected}; the token was not sent"
    )]
    OtherCluster {
        /// `host:port`.
        address: String,
        /// From the token.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The secret was never valid.
    #[error("manager {address} refused the join token: {why}")]
    TokenWrong {
        /// `host:port`.
        address: String,
        /// The manager's words.
        why: String,
    },
    /// The token was valid once.
    #[error("manager {address} refused the join token: {why}")]
    TokenRotated {
        /// `host:port`.
        address: String,
        /// The manager's words.
        why: String,
    },
    /// The clocks differ by more than certificates bear.
    #[error(
        "this machine's clock says {ours}, that of manager {address} {theirs}: a certificate of the one is not valid for \
         the other; set the clock (for instance by NTP) and join again"
    )]
    Clock {
        /// `host:port`.
        address: String,
        /// This machine's clock.
        ours: String,
        /// The manager's.
        theirs: String,
    },
    /// The manager there can't register a node now.
    #[error("manager {address} can't take a node in now: {why}")]
    Unavailable {
        /// `host:port`.
        address: String,
        /// Its words.
        why: String,
    },
    /// The answer is not what was asked for.
    #[error("manager {address} gave an unusable answer: {why}")]
    Answer {
        /// `host:port`.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// This machine can't make a key or set up TLS.
    #[error(transparent)]
    Own(#[from] Error),
}

/// Gets a first certificate from the manager at `address` (`host` or `host:port`). Nothing is written to disk. At most
/// about 45 s; every refusal comes as soon as it is known.
///
/// # Errors
/// One variant a cause.
pub async fn join(
    address: &str,
    join_token: &str,
    availability: Availability,
    clock: &Clock,
) -> Result<Identity, JoinError> {
    let token = JoinToken::parse(join_token)?;
    let address = dial::with_port(address);
    let found = fetch_root(&address, clock).await?;
    let digest = root::digest(&found.root_pem)
        .map_err(|e| JoinError::NotAManager { address: address.clone(), why: e.to_string() })?;
    if digest != token.digest() {
        let (expected, found) = (token.digest_text(), digest_text(&digest));
        return Err(JoinError::OtherCluster { address, expected, found });
    }
    let now = || (clock::text(clock.now()), theirs(&found));
    let (key_pem, csr) = certificate::request().map_err(Error::from)?;
    let request = IssueCertificateRequest {
        csr: csr.into(),
        token: token.to_string(),
        now_ns: clock.unix_ns(),
        availability: availability.into(),
    };
    let stream = connect(&address, tls::joiner(&found.root_pem, clock)?, CONNECT_DEADLINE)
        .await
        .map_err(|error| connect_error(error, now))?;
    let channel = channel_over(stream, &address).await.map_err(|error| connect_error(error, now))?;
    let answer = timeout(ISSUE_DEADLINE, client(channel).issue_certificate(request)).await.unwrap_or_else(|_| {
        Err(Status::unavailable(format!("no answer within {ISSUE_DEADLINE:?}; is there a quorum of managers?")))
    });
    let answer = answer.map_err(|status| refusal(&address, &status, now))?.into_inner();
    accept(&address, &found.root_pem, &answer, &key_pem, clock)
}

/// The root certificate as somebody at the address tells it. Not to be believed before its digest is checked.
async fn fetch_root(address: &str, clock: &Clock) -> Result<GetRootCaResponse, JoinError> {
    let none = || (String::new(), String::new());
    let stream = connect(address, tls::stranger(clock)?, CONNECT_DEADLINE).await.map_err(|e| connect_error(e, none))?;
    let channel = channel_over(stream, address).await.map_err(|e| connect_error(e, none))?;
    let unavailable = |why: String| JoinError::Unavailable { address: address.to_owned(), why };
    match timeout(ROOT_DEADLINE, client(channel).get_root_ca(GetRootCaRequest {})).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::FailedPrecondition => {
                Err(unavailable(dial::explain(&status).unwrap_or_else(|| status.message().to_owned())))
            }
            _ => Err(JoinError::NotAManager { address: address.to_owned(), why: status.message().to_owned() }),
        },
        Err(_) => Err(unavailable(format!("no answer within {ROOT_DEADLINE:?}; is there a quorum of managers?"))),
    }
}

fn client(channel: Channel) -> CertificateAuthorityClient<Channel> {
    CertificateAuthorityClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

/// Checks that the certificate is what was asked for, and that it works here and now.
fn accept(
    address: &str,
    root_pem: &str,
    answer: &IssueCertificateResponse,
    key_pem: &str,
    clock: &Clock,
) -> Result<Identity, JoinError> {
    let unusable = |why: String| JoinError::Answer { address: address.to_owned(), why };
    let identity = Identity::new(root_pem, &answer.chain_pem, key_pem, clock).map_err(|e| unusable(e.to_string()))?;
    let said = &identity.subject;
    if said.node_id != answer.node_id || said.cluster_id != answer.cluster_id || said.role != answer.role() {
        return Err(unusable("the certificate says something else than the answer around it".into()));
    }
    identity.check(clock.now()).map_err(|e| unusable(e.to_string()))?;
    Ok(identity)
}

fn theirs(found: &GetRootCaResponse) -> String {
    let since = Duration::from_nanos(u64::try_from(found.now_ns).unwrap_or_default());
    clock::text(std::time::SystemTime::UNIX_EPOCH + since)
}

fn connect_error(error: ConnectError, clocks: impl Fn() -> (String, String)) -> JoinError {
    match error {
        ConnectError::Unreachable { address, source } => JoinError::Unreachable { address, source },
        ConnectError::NotAManager { address, why } | ConnectError::Untrusted { address, why } => {
            JoinError::NotAManager { address, why }
        }
        ConnectError::PeerClock { address, .. } => {
            let (ours, theirs) = clocks();
            JoinError::Clock { address, ours, theirs }
        }
        ConnectError::Own(error) => JoinError::Own(error),
    }
}

fn refusal(address: &str, status: &Status, clocks: impl Fn() -> (String, String)) -> JoinError {
    let (address, why) = (address.to_owned(), status.message().to_owned());
    match Reason::of(status) {
        Some(Reason::TokenRotated) => JoinError::TokenRotated { address, why },
        Some(Reason::TokenWrong | Reason::TokenMalformed | Reason::TokenOtherCluster) => {
            JoinError::TokenWrong { address, why }
        }
        Some(Reason::Clock) => {
            let (ours, theirs) = clocks();
            JoinError::Clock { address, ours, theirs }
        }
        Some(Reason::NodeRemoved | Reason::Request) => JoinError::Answer { address, why },
        None if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) => {
            JoinError::Unavailable { address, why }
        }
        None => JoinError::Answer { address, why },
    }
}
