//! The CA as nodes see it: hands out the root certificate, takes in new nodes that show a join token, renews the
//! certificates of the nodes there are. Any manager answers; what has to be written goes to the leader by way of
//! [`Membership`].
//!
//! A certificate is signed before its node is registered and sent after: a refusal at any step leaves nothing behind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use skep_proto::v1::certificate_authority_server::CertificateAuthority;
use skep_proto::v1::{
    Availability, Cluster, GetRootCaRequest, GetRootCaResponse, IssueCertificateRequest, IssueCertificateResponse,
    Node, Role,
};
use tonic::{Request, Response, Status};

use super::root::{self, BACKDATE, DEFAULT_LIFE, RootCa};
use super::token::{JoinToken, Verdict};
use crate::peer::{Address, Peer};

/// Metadata key of a refusal's machine-readable reason.
const REASON: &str = "skep-reason";

/// What the CA asks of the cluster's state. Reads have to be current: a token that was rotated must not let anyone in
/// through a manager that is behind.
#[async_trait::async_trait]
pub trait Membership: Send + Sync + 'static {
    /// The cluster object, with root CA (private key included), tokens and settings.
    async fn cluster(&self) -> Result<Arc<Cluster>, Status>;
    /// The cluster object as this manager has it, at once; it may be old. `None` before it has any.
    fn known_cluster(&self) -> Option<Arc<Cluster>>;
    /// A node; `None` when it was never one or was removed.
    async fn node(&self, id: &str) -> Result<Option<Arc<Node>>, Status>;
    /// Adds a node; answers once that is committed.
    async fn register(&self, node: NewNode) -> Result<(), Status>;
    /// Notes the role of the certificate that a node is about to receive, if it changed; answers once that is committed.
    async fn certified(&self, node_id: &str, role: Role) -> Result<(), Status>;
}

/// A node that is about to get its first certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNode {
    /// Its id, new.
    pub id: String,
    /// Its role, from the token it showed; also that of its certificate.
    pub role: Role,
    /// Whether it takes tasks at once.
    pub availability: Availability,
    /// Where it called from.
    pub address: Option<SocketAddr>,
}

/// Why the CA refused, in a form that programs can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The text is no token.
    TokenMalformed,
    /// The token is for a cluster with another root.
    TokenOtherCluster,
    /// The token's secret was never valid.
    TokenWrong,
    /// The token was valid once.
    TokenRotated,
    /// The new certificate would not be valid by the caller's clock.
    Clock,
    /// The caller is no node of the cluster any more.
    NodeRemoved,
    /// The request for the certificate itself is unsuitable.
    Request,
}

impl Reason {
    const ALL: [Self; 7] = [
        Self::TokenMalformed,
        Self::TokenOtherCluster,
        Self::TokenWrong,
        Self::TokenRotated,
        Self::Clock,
        Self::NodeRemoved,
        Self::Request,
    ];

    /// The reason that a refusal carries, if it is one of the CA's.
    pub fn of(status: &Status) -> Option<Self> {
        let text = status.metadata().get(REASON)?.to_str().ok()?;
        Self::ALL.into_iter().find(|reason| reason.text() == text)
    }

    fn text(self) -> &'static str {
        match self {
            Self::TokenMalformed => "token-malformed",
            Self::TokenOtherCluster => "token-other-cluster",
            Self::TokenWrong => "token-wrong",
            Self::TokenRotated => "token-rotated",
            Self::Clock => "clock",
            Self::NodeRemoved => "node-removed",
            Self::Request => "request",
        }
    }

    fn status(self, message: impl Into<String>) -> Status {
        let mut status = match self {
            Self::TokenMalformed | Self::Request => Status::invalid_argument(message),
            Self::TokenOtherCluster | Self::TokenWrong | Self::TokenRotated => Status::unauthenticated(message),
            Self::Clock => Status::failed_precondition(message),
            Self::NodeRemoved => Status::permission_denied(message),
        };
        status.metadata_mut().insert(REASON, tonic::metadata::MetadataValue::from_static(self.text()));
        status
    }
}

/// The service. Clones are the same.
#[derive(Clone)]
pub struct CaService {
    membership: Arc<dyn Membership>,
}

impl std::fmt::Debug for CaService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaService").finish_non_exhaustive()
    }
}

impl CaService {
    pub(super) fn new(membership: Arc<dyn Membership>) -> Self {
        Self { membership }
    }

    async fn admit(
        &self,
        request: &IssueCertificateRequest,
        address: Option<SocketAddr>,
        now: SystemTime,
    ) -> Result<IssueCertificateResponse, Status> {
        let cluster = self.membership.cluster().await?;
        let root = load(&cluster)?;
        let role = judge(&request.token, &root, &cluster)?;
        let subject = Peer { node_id: skep_proto::id::new(), role, cluster_id: cluster.id.clone() };
        let chain_pem = sign(&root, request, &subject, life(&cluster), now)?;
        let node = NewNode { id: subject.node_id.clone(), role, availability: request.availability(), address };
        self.membership.register(node).await?;
        tracing::info!(node.id = subject.node_id, role = super::certificate::role_name(role), "node admitted");
        Ok(response(&root, subject, chain_pem))
    }

    async fn renew(
        &self,
        request: &IssueCertificateRequest,
        peer: &Peer,
        now: SystemTime,
    ) -> Result<IssueCertificateResponse, Status> {
        let cluster = self.membership.cluster().await?;
        let removed =
            || Reason::NodeRemoved.status(format!("node {} is not part of the cluster any more", peer.node_id));
        if peer.cluster_id != cluster.id {
            return Err(removed());
        }
        let node = self.membership.node(&peer.node_id).await?.ok_or_else(removed)?;
        let role = node.spec.as_ref().map(|spec| spec.role()).unwrap_or_default();
        let root = load(&cluster)?;
        let subject = Peer { role, ..peer.clone() };
        let chain_pem = sign(&root, request, &subject, life(&cluster), now)?;
        if node.certificate_role() != role {
            self.membership.certified(&peer.node_id, role).await?;
        }
        tracing::debug!(node.id = peer.node_id, role = super::certificate::role_name(role), "certificate renewed");
        Ok(response(&root, subject, chain_pem))
    }
}

#[tonic::async_trait]
impl CertificateAuthority for CaService {
    async fn get_root_ca(&self, _: Request<GetRootCaRequest>) -> Result<Response<GetRootCaResponse>, Status> {
        // Anybody may ask, so it costs nobody but this manager anything; and a root does not change.
        let known = self.membership.known_cluster();
        let cluster =
            known.ok_or_else(|| Status::unavailable("this manager does not know its cluster yet; try again"))?;
        let root_pem = cluster.root_ca.as_ref().map(|root| root.certificate_pem.clone()).unwrap_or_default();
        Ok(Response::new(GetRootCaResponse { root_pem, now_ns: unix_ns(SystemTime::now()) }))
    }

    async fn issue_certificate(
        &self,
        request: Request<IssueCertificateRequest>,
    ) -> Result<Response<IssueCertificateResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let address = request.extensions().get::<Address>().map(|address| address.0);
        let request = request.into_inner();
        let now = SystemTime::now();
        let answer = match peer {
            _ if !request.token.is_empty() => self.admit(&request, address, now).await,
            Some(peer) => self.renew(&request, &peer, now).await,
            None => Err(Status::unauthenticated("show a join token, or the certificate that is to be renewed")),
        };
        if let Err(status) = &answer {
            let peer = address.map(|a| a.to_string());
            tracing::info!(peer, reason = status.message(), "certificate refused");
        }
        answer.map(Response::new)
    }
}

fn load(cluster: &Cluster) -> Result<RootCa, Status> {
    let stored = cluster.root_ca.as_ref().ok_or_else(|| Status::unavailable("the cluster has no root CA yet"))?;
    RootCa::load(stored).map_err(|e| Status::internal(e.to_string()))
}

/// The role that a token grants.
fn judge(token: &str, root: &RootCa, cluster: &Cluster) -> Result<Role, Status> {
    let token = JoinToken::parse(token).map_err(|e| Reason::TokenMalformed.status(e.to_string()))?;
    let current = cluster.join_tokens.clone().unwrap_or_default();
    match token.judge(root, &current) {
        Verdict::Valid(role) => Ok(role),
        Verdict::Rotated(role) => {
            let role = if role == Role::Manager { "manager" } else { "worker" };
            Err(Reason::TokenRotated.status(format!(
                "this {role} token was rotated and is not valid any more; \
                 `skep swarm join-token {role}` on a manager shows the current one"
            )))
        }
        Verdict::OtherCluster => Err(Reason::TokenOtherCluster.status("the join token is for another cluster")),
        Verdict::Wrong => Err(Reason::TokenWrong.status(
            "the join token's secret is not valid for this cluster; \
             `skep swarm join-token worker` (or manager) on a manager shows the whole token",
        )),
    }
}

/// Life of a node certificate as the cluster's settings want it.
pub fn life(cluster: &Cluster) -> Duration {
    let set = cluster.spec.as_ref().map_or(0, |spec| spec.certificate_expiry_ns);
    u64::try_from(set).ok().filter(|ns| *ns > 0).map_or(DEFAULT_LIFE, Duration::from_nanos)
}

fn sign(
    root: &RootCa,
    request: &IssueCertificateRequest,
    subject: &Peer,
    life: Duration,
    now: SystemTime,
) -> Result<String, Status> {
    let theirs = SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(request.now_ns).unwrap_or_default());
    let early = now.duration_since(theirs).is_ok_and(|behind| behind > BACKDATE);
    let late = theirs.duration_since(now).is_ok_and(|ahead| ahead >= life);
    if early || late {
        let (side, by) =
            if early { ("behind", now.duration_since(theirs)) } else { ("ahead of", theirs.duration_since(now)) };
        return Err(Reason::Clock.status(format!(
            "the node's clock is {} s {side} the manager's; set it and try again",
            by.unwrap_or_default().as_secs()
        )));
    }
    root.sign(&request.csr, subject, life, now).map_err(|error| match error {
        root::Error::Request(_) => Reason::Request.status(error.to_string()),
        _ => Status::internal(error.to_string()),
    })
}

fn response(root: &RootCa, subject: Peer, chain_pem: String) -> IssueCertificateResponse {
    IssueCertificateResponse {
        node_id: subject.node_id,
        role: subject.role.into(),
        cluster_id: subject.cluster_id,
        chain_pem,
        root_pem: root.certificate_pem().to_owned(),
    }
}

fn unix_ns(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}
