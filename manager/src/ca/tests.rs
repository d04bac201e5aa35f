//! The CA end to end without a network: signing, verifying with a real verifier, and what the service answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use skep_proto::v1::certificate_authority_server::CertificateAuthority;
use skep_proto::v1::{
    Cluster, ClusterSpec, GetRootCaRequest, IssueCertificateRequest, IssueCertificateResponse, JoinTokens, Node,
    NodeSpec, Role,
};
use tonic::{Request, Status};

use super::service::{CaService, Membership, NewNode, Reason};
use super::{BACKDATE, RootCa, certificate, new_tokens};
use crate::peer::Peer;

const HOUR: Duration = Duration::from_secs(3600);

fn peer(node: &str, role: Role) -> Peer {
    Peer { node_id: node.into(), role, cluster_id: "cluster1".into() }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// What rustls says to a server that shows `chain` when `name` is asked for.
fn verify(root: &RootCa, chain: &str, name: &'static str, at: SystemTime) -> Result<(), rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der(root.certificate_pem())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let name = ServerName::try_from(name).unwrap();
    rustls::client::danger::ServerCertVerifier::verify_server_cert(&*verifier, &der(chain), &[], &name, &[], at)
        .map(|_| ())
}

#[test]
fn a_signed_certificate_says_and_proves_what_it_should() {
    let now = SystemTime::now();
    let root = RootCa::create(now).unwrap();
    for (role, ou) in [(Role::Worker, "swarm-worker"), (Role::Manager, "swarm-manager")] {
        let (key, request) = certificate::request().unwrap();
        let pem = root.sign(&request, &peer("node1", role), HOUR, now).unwrap();
        let read = certificate::read(&der(&pem)).unwrap();
        assert_eq!(read.subject, peer("node1", role));
        assert_eq!(read.public_key, certificate::public_key(&key).unwrap());
        assert!(now.duration_since(read.not_before).unwrap() >= BACKDATE);
        let left = read.not_after.duration_since(now).unwrap();
        assert!(left <= HOUR && left > HOUR - Duration::from_secs(2), "{left:?}");
        // Only a manager's is good for a server, and under its role's name only.
        assert_eq!(verify(&root, &pem, "swarm-manager", now).is_ok(), role == Role::Manager, "{ou}");
        assert_eq!(verify(&root, &pem, "swarm-ca", now).is_ok(), role == Role::Manager, "{ou}");
        assert!(verify(&root, &pem, "other", now).is_err());
        assert!(verify(&root, &pem, "swarm-manager", now + HOUR + HOUR).is_err(), "expired");
        assert!(verify(&root, &pem, "swarm-manager", now - BACKDATE - HOUR).is_err(), "not yet valid");
        let stranger = RootCa::create(now).unwrap();
        assert!(verify(&stranger, &pem, "swarm-manager", now).is_err(), "another root");
    }
}

#[test]
fn a_root_survives_being_stored() {
    let now = SystemTime::now();
    let root = RootCa::create(now).unwrap();
    let again = RootCa::load(&root.to_stored()).unwrap();
    assert_eq!(root.digest(), again.digest());
    let pem = again.sign(&certificate::request().unwrap().1, &peer("n", Role::Manager), HOUR, now).unwrap();
    verify(&root, &pem, "swarm-manager", now).unwrap();
    assert!(!format!("{root:?}").contains("PRIVATE"));
    let mut broken = root.to_stored();
    broken.key_pem.clear();
    assert!(RootCa::load(&broken).is_err());
}

#[test]
fn unsuitable_requests_are_refused() {
    let now = SystemTime::now();
    let root = RootCa::create(now).unwrap();
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = rcgen::CertificateParams::default().serialize_request(&p384).unwrap().der().to_vec();
    let mut forged = certificate::request().unwrap().1;
    *forged.last_mut().unwrap() ^= 1;
    for (name, request) in
        [("empty", vec![]), ("noise", vec![0x30; 200]), ("huge", vec![0x30; 9000]), ("p384", p384), ("forged", forged)]
    {
        let error = root.sign(&request, &peer("n", Role::Worker), HOUR, now).unwrap_err();
        assert!(matches!(error, super::root::Error::Request(_)), "{name}: {error}");
    }
}

#[test]
fn names_in_a_request_count_for_nothing() {
    let root = RootCa::create(SystemTime::now()).unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["swarm-manager".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "swarm-manager");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = params.serialize_request(&key).unwrap().der().to_vec();
    let pem = root.sign(&request, &peer("n", Role::Worker), HOUR, SystemTime::now()).unwrap();
    assert_eq!(certificate::read(&der(&pem)).unwrap().subject.role, Role::Worker);
    assert!(verify(&root, &pem, "swarm-manager", SystemTime::now()).is_err());
}

#[test]
fn what_is_no_node_certificate_is_not_read_as_one() {
    let root = RootCa::create(SystemTime::now()).unwrap();
    assert!(matches!(certificate::read(&der(root.certificate_pem())), Err(certificate::Error::NotANode(_))));
    assert!(matches!(certificate::read(b"noise"), Err(certificate::Error::Malformed(_))));
}

// ---- the service --------------------------------------------------------------------------------------------

struct Fake {
    cluster: Cluster,
    nodes: Mutex<Vec<Node>>,
}

#[async_trait::async_trait]
impl Membership for Fake {
    async fn cluster(&self) -> Result<Arc<Cluster>, Status> {
        Ok(Arc::new(self.cluster.clone()))
    }
    fn known_cluster(&self) -> Option<Arc<Cluster>> {
        Some(Arc::new(self.cluster.clone()))
    }
    async fn node(&self, id: &str) -> Result<Option<Arc<Node>>, Status> {
        Ok(self.nodes.lock().unwrap().iter().find(|n| n.id == id).cloned().map(Arc::new))
    }
    async fn register(&self, node: NewNode) -> Result<(), Status> {
        let spec = NodeSpec { role: node.role.into(), availability: node.availability.into(), ..NodeSpec::default() };
        let node = Node { id: node.id, spec: Some(spec), certificate_role: node.role.into(), ..Node::default() };
        self.nodes.lock().unwrap().push(node);
        Ok(())
    }
    async fn certified(&self, node_id: &str, role: Role) -> Result<(), Status> {
        let mut nodes = self.nodes.lock().unwrap();
        nodes.iter_mut().find(|n| n.id == node_id).unwrap().certificate_role = role.into();
        Ok(())
    }
}

fn cluster(life: Duration) -> (Arc<Fake>, CaService, JoinTokens) {
    let root = RootCa::create(SystemTime::now()).unwrap().to_stored();
    let tokens = new_tokens(&root).unwrap();
    let spec = ClusterSpec { certificate_expiry_ns: i64::try_from(life.as_nanos()).unwrap(), ..ClusterSpec::default() };
    let cluster = Cluster {
        id: "cluster1".into(),
        root_ca: Some(root),
        join_tokens: Some(tokens.clone()),
        spec: Some(spec),
        ..Cluster::default()
    };
    let fake = Arc::new(Fake { cluster, nodes: Mutex::default() });
    (Arc::clone(&fake), CaService::new(fake), tokens)
}

fn asking(token: &str) -> IssueCertificateRequest {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    IssueCertificateRequest {
        csr: certificate::request().unwrap().1.into(),
        token: token.into(),
        now_ns: i64::try_from(now.as_nanos()).unwrap(),
        ..IssueCertificateRequest::default()
    }
}

async fn issue(service: &CaService, request: IssueCertificateRequest) -> Result<IssueCertificateResponse, Status> {
    service.issue_certificate(Request::new(request)).await.map(tonic::Response::into_inner)
}

async fn renew(service: &CaService, peer: Peer) -> Result<IssueCertificateResponse, Status> {
    let mut request = Request::new(asking(""));
    request.extensions_mut().insert(peer);
    service.issue_certificate(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_token_makes_a_node_of_its_role() {
    let (fake, service, tokens) = cluster(HOUR);
    let root = service.get_root_ca(Request::new(GetRootCaRequest {})).await.unwrap().into_inner();
    assert!(root.root_pem.contains("CERTIFICATE") && !root.root_pem.contains("PRIVATE"));
    for (token, role) in [(tokens.worker, Role::Worker), (tokens.manager, Role::Manager)] {
        let answer = issue(&service, asking(&token)).await.unwrap();
        assert_eq!(answer.role(), role);
        assert_eq!(answer.root_pem, root.root_pem);
        let read = certificate::read(&der(&answer.chain_pem)).unwrap();
        assert_eq!(read.subject, peer(&answer.node_id, role));
        let node = fake.node(&answer.node_id).await.unwrap().unwrap();
        assert_eq!(node.certificate_role(), role);
    }
}

#[tokio::test]
async fn refusals_say_why_and_leave_nothing() {
    let (fake, service, tokens) = cluster(HOUR);
    let (_, _, others) = cluster(HOUR);
    let rotated = new_tokens(fake.cluster.root_ca.as_ref().unwrap()).unwrap();
    let mut behind = asking(&tokens.worker);
    behind.now_ns -= i64::try_from((BACKDATE + HOUR).as_nanos()).unwrap();
    let mut ahead = asking(&tokens.worker);
    ahead.now_ns += i64::try_from((HOUR * 2).as_nanos()).unwrap();
    let mut unset = asking(&tokens.worker);
    unset.now_ns = 0;
    let mut no_key = asking(&tokens.worker);
    no_key.csr = tonic::codegen::Bytes::new();
    let mut wrong = tokens.worker.clone();
    wrong.replace_range(wrong.len() - 3.., "000");
    let table = [
        (asking("SWMTKN-1-x"), Some(Reason::TokenMalformed)),
        (asking(&others.worker), Some(Reason::TokenOtherCluster)),
        (asking(&wrong), Some(Reason::TokenWrong)),
        (asking(&rotated.manager), Some(Reason::TokenRotated)),
        (behind, Some(Reason::Clock)),
        (ahead, Some(Reason::Clock)),
        (unset, Some(Reason::Clock)),
        (no_key, Some(Reason::Request)),
        (asking(""), None),
    ];
    for (request, reason) in table {
        let status = issue(&service, request).await.unwrap_err();
        assert_eq!(Reason::of(&status), reason, "{status:?}");
        assert!(!status.message().contains(&tokens.worker[60..]), "a refusal must not tell the secret: {status:?}");
    }
    assert!(fake.nodes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn renewal_gives_the_role_that_the_cluster_wants() {
    let (fake, service, tokens) = cluster(HOUR);
    let joined = issue(&service, asking(&tokens.worker)).await.unwrap();
    let me = peer(&joined.node_id, Role::Worker);
    assert_eq!(renew(&service, me.clone()).await.unwrap().role(), Role::Worker);
    fake.nodes.lock().unwrap()[0].spec.as_mut().unwrap().role = Role::Manager.into();
    let promoted = renew(&service, me.clone()).await.unwrap();
    assert_eq!((promoted.role(), &promoted.node_id), (Role::Manager, &joined.node_id));
    assert_eq!(fake.nodes.lock().unwrap()[0].certificate_role(), Role::Manager);

    let stranger = Peer { cluster_id: "other".into(), ..me.clone() };
    assert_eq!(Reason::of(&renew(&service, stranger).await.unwrap_err()), Some(Reason::NodeRemoved));
    fake.nodes.lock().unwrap().clear();
    assert_eq!(Reason::of(&renew(&service, me).await.unwrap_err()), Some(Reason::NodeRemoved));
}

#[test]
fn a_certificate_lives_90_days_unless_the_cluster_says_otherwise() {
    let set = |ns| Cluster {
        spec: Some(ClusterSpec { certificate_expiry_ns: ns, ..Default::default() }),
        ..Default::default()
    };
    for (cluster, life) in
        [(Cluster::default(), HOUR * 24 * 90), (set(0), HOUR * 24 * 90), (set(3_600_000_000_000), HOUR)]
    {
        assert_eq!(super::life(&cluster), life, "{cluster:?}");
    }
}
