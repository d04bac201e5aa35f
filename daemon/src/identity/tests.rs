//! Nodes and managers over loopback: joining and every way it fails, who may call what, renewal under live connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt as _};
use skep_manager::ca::{self, Membership, NewNode, RootCa};
use skep_manager::peer::{Address, Peer, require_manager, require_node};
use skep_proto::v1::dispatcher_client::DispatcherClient;
use skep_proto::v1::dispatcher_server::{Dispatcher, DispatcherServer};
use skep_proto::v1::{
    self, Availability, Node, NodeSpec, PublishLogsRequest, PublishLogsResponse, ReportRequest, ReportResponse, Role,
    SessionMessage, SessionRequest,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use super::*;

mod joining;
mod time;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const DEADLINE: Duration = Duration::from_secs(2);

// ---- a cluster of one manager -------------------------------------------------------------------------------

struct State {
    cluster: Mutex<v1::Cluster>,
    nodes: Mutex<Vec<Node>>,
    quorum: Mutex<bool>,
    reads: Mutex<bool>,
    asked: AtomicUsize,
}

impl State {
    fn found(life: Duration) -> Arc<Self> {
        let root = RootCa::create(SystemTime::now()).unwrap().to_stored();
        let spec = v1::ClusterSpec {
            certificate_expiry_ns: life.as_nanos().try_into().unwrap(),
            ..v1::ClusterSpec::default()
        };
        let cluster = v1::Cluster {
            id: skep_proto::id::new(),
            join_tokens: Some(ca::new_tokens(&root).unwrap()),
            root_ca: Some(root),
            spec: Some(spec),
            ..v1::Cluster::default()
        };
        let (quorum, reads) = (Mutex::new(true), Mutex::new(true));
        Arc::new(Self {
            cluster: Mutex::new(cluster),
            nodes: Mutex::default(),
            quorum,
            reads,
            asked: AtomicUsize::new(0),
        })
    }

    fn root(&self) -> RootCa {
        RootCa::load(self.cluster.lock().unwrap().root_ca.as_ref().unwrap()).unwrap()
    }

    fn tokens(&self) -> v1::JoinTokens {
        self.cluster.lock().unwrap().join_tokens.clone().unwrap()
    }

    /// An identity of this cluster made at any time by anyone's clock.
    fn identity(&self, role: Role, life: Duration, clock: &Clock) -> Identity {
        let cluster_id = self.cluster.lock().unwrap().id.clone();
        let subject = Peer { node_id: skep_proto::id::new(), role, cluster_id };
        Identity::found(&self.root(), &subject, life, clock).unwrap()
    }
}

#[async_trait::async_trait]
impl Membership for State {
    async fn cluster(&self) -> Result<Arc<v1::Cluster>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if !*self.reads.lock().unwrap() {
            return Err(Status::unavailable("no leader"));
        }
        Ok(Arc::new(self.cluster.lock().unwrap().clone()))
    }
    fn known_cluster(&self) -> Option<Arc<v1::Cluster>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Some(Arc::new(self.cluster.lock().unwrap().clone()))
    }
    async fn node(&self, id: &str) -> Result<Option<Arc<Node>>, Status> {
        Ok(self.nodes.lock().unwrap().iter().find(|n| n.id == id).cloned().map(Arc::new))
    }
    async fn register(&self, node: NewNode) -> Result<(), Status> {
        if !*self.quorum.lock().unwrap() {
            return Err(Status::unavailable("no leader"));
        }
        assert!(node.address.is_some_and(|a| a.ip().is_loopback()));
        let spec = NodeSpec { role: node.role.into(), availability: node.availability.into(), ..NodeSpec::default() };
        let node = Node { id: node.id, spec: Some(spec), certificate_role: node.role.into(), ..Node::default() };
        self.nodes.lock().unwrap().push(node);
        Ok(())
    }
    async fn certified(&self, node_id: &str, role: Role) -> Result<(), Status> {
        self.nodes.lock().unwrap().iter_mut().find(|n| n.id == node_id).unwrap().certificate_role = role.into();
        Ok(())
    }
}

/// Stands for the services of a manager: a call that tells who called, or wants a manager; and a stream.
struct Probe {
    ticks: watch::Receiver<u64>,
}

const MANAGERS_ONLY: &str = "managers only";

#[tonic::async_trait]
impl Dispatcher for Probe {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<SessionMessage, Status>> + Send>>;
    async fn session(&self, request: Request<SessionRequest>) -> Result<Response<Self::SessionStream>, Status> {
        require_node(&request)?;
        let ticks = tokio_stream::wrappers::WatchStream::new(self.ticks.clone());
        Ok(Response::new(Box::pin(ticks.map(|_| Ok(SessionMessage::default())))))
    }
    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        if request.get_ref().session_id == MANAGERS_ONLY {
            require_manager(&request)?;
            return Ok(Response::new(ReportResponse {}));
        }
        let peer = require_node(&request)?;
        assert!(request.extensions().get::<Address>().is_some());
        assert_eq!(peer.node_id, request.get_ref().session_id);
        Ok(Response::new(ReportResponse {}))
    }
    async fn publish_logs(
        &self,
        _: Request<tonic::Streaming<PublishLogsRequest>>,
    ) -> Result<Response<PublishLogsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn report(session_id: &str) -> ReportRequest {
    ReportRequest { session_id: session_id.to_owned(), ..ReportRequest::default() }
}

fn report_of(node: &Holder) -> ReportRequest {
    report(&node.current().subject.node_id)
}

struct Manager {
    state: Arc<State>,
    address: String,
    holder: Holder,
    tick: watch::Sender<u64>,
    stop: CancellationToken,
    served: AbortOnDropHandle<Result<(), Error>>,
    dir: tempfile::TempDir,
}

impl Manager {
    async fn start(state: Arc<State>) -> Self {
        let identity = state.identity(Role::Manager, DAY, &Clock::default());
        Self::start_as(state, identity, Clock::default(), None).await
    }

    async fn start_as(state: Arc<State>, identity: Identity, clock: Clock, gate: Option<Gate>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let holder = Holder::new(dir.path().join("identity"), identity, clock);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tick, ticks) = watch::channel(0);
        let routes = Routes::new(ca::service(Arc::clone(&state) as Arc<dyn Membership>))
            .add_service(DispatcherServer::new(Probe { ticks }));
        let stop = CancellationToken::new();
        let serving = Serving { listener, routes, holder: holder.clone(), gate };
        let served = AbortOnDropHandle::new(tokio::spawn(serve(serving, stop.clone())));
        Self { state, address, holder, tick, stop, served, dir }
    }

    async fn join(&self, token: &str, clock: &Clock) -> Result<Identity, JoinError> {
        join(&self.address, token, Availability::Active, clock).await
    }

    fn node(&self, identity: Identity, clock: Clock) -> Holder {
        Holder::new(self.dir.path().join(&identity.subject.node_id), identity, clock)
    }

    fn client(&self, holder: &Holder) -> DispatcherClient<tonic::transport::Channel> {
        DispatcherClient::new(Dialer::new(holder.clone()).channel(&self.address, DEADLINE).unwrap())
    }
}

async fn error_of(node: &Holder, manager: &Manager) -> String {
    let status = manager.client(node).report(report_of(node)).await.unwrap_err();
    explain(&status).unwrap_or_else(|| format!("not explained: {status:?}"))
}

async fn works(node: &Holder, manager: &Manager) {
    manager.client(node).report(report_of(node)).await.unwrap();
}

async fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < until, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn shifted(by: Duration, ahead: bool) -> Clock {
    Clock::new(move || if ahead { SystemTime::now() + by } else { SystemTime::now() - by })
}

// ---- who may call what --------------------------------------------------------------------------------------

#[tokio::test]
async fn a_role_opens_its_calls_and_no_others() {
    let manager = Manager::start(State::found(DAY)).await;
    let call = async |role| {
        let identity = manager.state.identity(role, DAY, &Clock::default());
        let node = manager.node(identity, Clock::default());
        works(&node, &manager).await;
        manager.client(&node).report(report(MANAGERS_ONLY)).await.map(|_| ()).map_err(|s| s.code())
    };
    assert_eq!(call(Role::Manager).await, Ok(()));
    assert_eq!(call(Role::Worker).await, Err(Code::PermissionDenied));

    // Without a certificate: the authority answers, everything else is closed.
    let config = tls::joiner(manager.state.root().certificate_pem(), &Clock::default()).unwrap();
    let stream = dial::connect(&manager.address, config, DEADLINE).await.unwrap();
    let channel = dial::channel_over(stream, &manager.address).await.unwrap();
    let status = DispatcherClient::new(channel.clone()).report(report("")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut authority = v1::certificate_authority_client::CertificateAuthorityClient::new(channel);
    authority.get_root_ca(v1::GetRootCaRequest {}).await.unwrap();
    let status = authority.issue_certificate(v1::IssueCertificateRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn certificates_of_other_clusters_are_refused_by_both_sides() {
    let manager = Manager::start(State::found(DAY)).await;
    let stranger = State::found(DAY).identity(Role::Manager, DAY, &Clock::default());
    let error = error_of(&manager.node(stranger, Clock::default()), &manager).await;
    assert!(error.contains("not issued by this cluster's root"), "{error}");

    // The same root in two clusters: the name of the cluster decides.
    let subject = Peer { node_id: "n".into(), role: Role::Manager, cluster_id: "elsewhere".into() };
    let other = Identity::found(&manager.state.root(), &subject, DAY, &Clock::default()).unwrap();
    let other = manager.node(other, Clock::default());
    let error = error_of(&other, &manager).await;
    assert!(error.contains("another cluster"), "{error}");
    let stream = dial::connect(&manager.address, Arc::clone(&other.current().client), DEADLINE).await.unwrap();
    let channel = dial::channel_over(stream, &manager.address).await.unwrap();
    let status = DispatcherClient::new(channel).report(report("n")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_worker_is_never_dialled_as_a_manager() {
    let state = State::found(DAY);
    let worker = state.identity(Role::Worker, DAY, &Clock::default());
    let impostor = Manager::start_as(Arc::clone(&state), worker, Clock::default(), None).await;
    let node = impostor.node(state.identity(Role::Worker, DAY, &Clock::default()), Clock::default());
    let error = error_of(&node, &impostor).await;
    assert!(error.contains("not a manager"), "{error}");
    let error = impostor.join(&state.tokens().worker, &Clock::default()).await.unwrap_err();
    assert!(matches!(error, JoinError::NotAManager { .. }), "{error}");
}

#[tokio::test]
async fn a_gate_shuts_out_a_node_at_once() {
    let state = State::found(DAY);
    let identity = state.identity(Role::Manager, DAY, &Clock::default());
    let (shut, is_shut) = watch::channel(false);
    let gate: Gate = Arc::new(move |peer| {
        if *is_shut.borrow() { Err(Status::permission_denied(format!("{} was removed", peer.node_id))) } else { Ok(()) }
    });
    let manager = Manager::start_as(Arc::clone(&state), identity, Clock::default(), Some(gate)).await;
    let node = manager.node(state.identity(Role::Worker, DAY, &Clock::default()), Clock::default());
    let mut client = manager.client(&node);
    let request = report_of(&node);
    client.report(request.clone()).await.unwrap();
    shut.send_replace(true);
    assert_eq!(client.report(request).await.unwrap_err().code(), Code::PermissionDenied);
}

// ---- the disk -----------------------------------------------------------------------------------------------

#[test]
fn an_identity_on_disk_is_private_and_replaced_whole() {
    let state = State::found(DAY);
    let clock = Clock::default();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("identity");
    assert!(Identity::load(&dir, &clock).unwrap().is_none());

    let first = state.identity(Role::Worker, DAY, &clock);
    let subject = first.subject.clone();
    first.save(&dir).unwrap();
    // What a crash in the middle of a replacement leaves behind is in nobody's way.
    std::fs::create_dir(temp.path().join("identity.new")).unwrap();
    std::fs::write(temp.path().join("identity.new/node.key"), "half").unwrap();
    let holder = Holder::new(dir.clone(), first, clock.clone());
    let second = Identity::found(&state.root(), &subject, DAY, &clock).unwrap();
    let key = second.key_pem.clone();
    holder.replace(second).unwrap();
    assert_eq!(Identity::load(&dir, &clock).unwrap().unwrap().key_pem, key);
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
    for (path, mode) in [("", 0o700), ("node.key", 0o600), ("node.crt", 0o600), ("ca.crt", 0o600)] {
        assert_eq!(std::fs::metadata(dir.join(path)).unwrap().permissions().mode() & 0o777, mode, "{path}");
    }

    let other = state.identity(Role::Worker, DAY, &clock);
    assert!(matches!(holder.replace(other), Err(Error::OtherNode { .. })));
    assert_eq!(holder.current().key_pem, key);
    assert!(!format!("{holder:?}").contains("PRIVATE"));

    Identity::remove(&dir).unwrap();
    Identity::remove(&dir).unwrap();
    assert!(Identity::load(&dir, &clock).unwrap().is_none());
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let (state, other, clock) = (State::found(DAY), State::found(DAY), Clock::default());
    let (a, b) = (state.identity(Role::Worker, DAY, &clock), state.identity(Role::Worker, DAY, &clock));
    let root = state.root();
    let root = root.certificate_pem();
    assert!(Identity::new(root, &a.chain_pem, &a.key_pem, &clock).is_ok());
    for (root, chain, key) in [
        (root, &a.chain_pem, &b.key_pem),
        (other.root().certificate_pem(), &a.chain_pem, &a.key_pem),
        (root, &String::new(), &a.key_pem),
        (root, &a.chain_pem, &String::new()),
        ("", &a.chain_pem, &a.key_pem),
    ] {
        assert!(Identity::new(root, chain, key, &clock).is_err());
    }
    let temp = tempfile::tempdir().unwrap();
    a.save(temp.path().join("i").as_path()).unwrap();
    std::fs::remove_file(temp.path().join("i/node.crt")).unwrap();
    let error = Identity::load(&temp.path().join("i"), &clock).unwrap_err().to_string();
    assert!(error.contains("node.crt"), "{error}");
}
