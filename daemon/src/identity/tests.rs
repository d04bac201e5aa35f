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

// ---- joining ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_node_joins_with_the_role_of_its_token() {
    let manager = Manager::start(State::found(DAY)).await;
    let tokens = manager.state.tokens();
    for (token, role) in [(&tokens.worker, Role::Worker), (&tokens.manager, Role::Manager)] {
        let identity = manager.join(token, &Clock::default()).await.unwrap();
        assert_eq!(identity.subject.role, role);
        assert_eq!(identity.is_manager(), role == Role::Manager);
        assert_eq!(identity.root_pem(), manager.state.root().certificate_pem());
        works(&manager.node(identity, Clock::default()), &manager).await;
    }
    assert_eq!(manager.state.nodes.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_refused_join_says_why_and_registers_nothing() {
    let manager = Manager::start(State::found(DAY)).await;
    let (clock, tokens) = (Clock::default(), manager.state.tokens());

    let error = manager.join("SWMTKN-1-nonsense", &clock).await.unwrap_err();
    assert!(matches!(error, JoinError::Token(_)), "{error}");

    let mut wrong = tokens.worker.clone();
    wrong.replace_range(wrong.len() - 4.., "0000");
    let error = manager.join(&wrong, &clock).await.unwrap_err();
    assert!(matches!(error, JoinError::TokenWrong { .. }), "{error}");
    assert!(error.to_string().contains("join-token"), "{error}");

    let root = manager.state.root().to_stored();
    manager.state.cluster.lock().unwrap().join_tokens.as_mut().unwrap().worker =
        ca::new_token(&root, Role::Worker).unwrap();
    let error = manager.join(&tokens.worker, &clock).await.unwrap_err();
    assert!(matches!(error, JoinError::TokenRotated { .. }), "{error}");
    assert!(error.to_string().contains("join-token worker"), "{error}");

    let current = manager.state.tokens().worker;
    for (by, ahead) in [(HOUR * 2, false), (DAY * 2, true), (DAY * 365 * 40, false)] {
        let error = manager.join(&current, &shifted(by, ahead)).await.unwrap_err();
        assert!(matches!(error, JoinError::Clock { .. }), "{by:?}, {ahead}: {error}");
        assert!(error.to_string().contains(&clock::text(SystemTime::now())[..10]), "both clocks: {error}");
    }
    // What certificates bear is no error.
    assert!(manager.state.nodes.lock().unwrap().is_empty());
    manager.join(&current, &shifted(HOUR / 2, false)).await.unwrap();
    manager.join(&current, &shifted(HOUR / 2, true)).await.unwrap();

    for lost in [&manager.state.quorum, &manager.state.reads] {
        *lost.lock().unwrap() = false;
        let error = manager.join(&current, &clock).await.unwrap_err();
        assert!(matches!(error, JoinError::Unavailable { .. }), "{error}");
    }
    assert_eq!(manager.state.nodes.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_token_is_not_sent_to_another_cluster() {
    let manager = Manager::start(State::found(DAY)).await;
    let token = State::found(DAY).tokens().worker;
    let error = manager.join(&token, &Clock::default()).await.unwrap_err();
    assert!(matches!(error, JoinError::OtherCluster { .. }), "{error}");
    assert!(error.to_string().contains("was not sent"), "{error}");
    assert_eq!(manager.state.asked.load(Ordering::SeqCst), 1, "only the root certificate was asked for");
}

#[tokio::test]
async fn an_impostor_who_repeats_the_root_certificate_gets_no_token() {
    let real = State::found(DAY);
    let impostor = State::found(DAY);
    // It can show the real root, but has no certificate from it.
    let identity = impostor.identity(Role::Manager, DAY, &Clock::default());
    impostor.cluster.lock().unwrap().root_ca.as_mut().unwrap().certificate_pem =
        real.root().certificate_pem().to_owned();
    let manager = Manager::start_as(Arc::clone(&impostor), identity, Clock::default(), None).await;
    let error = manager.join(&real.tokens().manager, &Clock::default()).await.unwrap_err();
    assert!(matches!(error, JoinError::NotAManager { .. }), "{error}");
    assert_eq!(impostor.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn joining_nobody_fails_at_once() {
    let token = State::found(DAY).tokens().worker;
    let attempt = async |address: SocketAddr| {
        let begun = std::time::Instant::now();
        let error = join(&address.to_string(), &token, Availability::Active, &Clock::default()).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(3), "{error} after {:?}", begun.elapsed());
        error
    };
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let error = attempt(address).await;
    assert!(matches!(error, JoinError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");

    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap();
    let _served = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut tcp, _)) = other.accept().await {
            let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    }));
    let error = attempt(address).await;
    assert!(matches!(error, JoinError::NotAManager { .. }), "{error}");
}

#[tokio::test]
async fn a_silent_listener_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let config = tls::stranger(&Clock::default()).unwrap();
    let error = dial::connect(&address, config, Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotAManager { .. }), "{error}");
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

// ---- time ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_expired_certificate_is_named_whoever_notices() {
    let state = State::found(DAY);
    let manager = Manager::start(Arc::clone(&state)).await;
    let past = shifted(DAY * 3, false);

    let own = manager.node(state.identity(Role::Worker, DAY, &past), Clock::default());
    let error = error_of(&own, &manager).await;
    assert!(error.contains("expired at") && error.contains("clock says"), "{error}");

    let early = manager.node(state.identity(Role::Worker, DAY, &Clock::default()), past.clone());
    let error = error_of(&early, &manager).await;
    assert!(error.contains("valid from") && error.contains("clock says"), "{error}");

    // Only the manager's clock says so.
    let theirs = manager.node(state.identity(Role::Worker, DAY * 10, &shifted(DAY * 12, false)), past);
    let stream = dial::connect(&manager.address, Arc::clone(&theirs.current().client), DEADLINE).await;
    let error = stream.unwrap_err();
    assert!(matches!(error, ConnectError::PeerClock { .. }), "the manager's certificate is too young: {error}");

    // The manager's own certificate has run out.
    let old = state.identity(Role::Manager, DAY, &shifted(DAY * 3, false));
    let expired = Manager::start_as(Arc::clone(&state), old, Clock::default(), None).await;
    let node = expired.node(state.identity(Role::Worker, DAY, &Clock::default()), Clock::default());
    let error = error_of(&node, &expired).await;
    assert!(error.contains("valid until"), "{error}");
    let error = expired.join(&state.tokens().worker, &Clock::default()).await.unwrap_err();
    assert!(matches!(error, JoinError::Clock { .. }), "{error}");
}

#[tokio::test]
async fn a_manager_whose_clock_is_ahead_says_so_to_the_client() {
    let state = State::found(DAY);
    let ahead = shifted(DAY * 3, true);
    // Valid by both clocks, so that only the client's certificate is in question.
    let made = state.identity(Role::Manager, DAY * 30, &Clock::default());
    let identity = Identity::new(&made.root_pem, &made.chain_pem, &made.key_pem, &ahead).unwrap();
    let manager = Manager::start_as(Arc::clone(&state), identity, ahead, None).await;
    let node = manager.node(state.identity(Role::Worker, DAY, &Clock::default()), Clock::default());
    let error = error_of(&node, &manager).await;
    assert!(error.contains("by the manager's clock it has expired"), "{error}");
}

#[tokio::test]
async fn a_connection_does_not_outlive_its_certificate() {
    let state = State::found(DAY);
    let manager = Manager::start(Arc::clone(&state)).await;
    let node = manager.node(state.identity(Role::Worker, Duration::from_secs(2), &Clock::default()), Clock::default());
    let mut client = manager.client(&node);
    let request = report_of(&node);
    client.report(request.clone()).await.unwrap();
    let until = node.current().not_after;
    soon("the certificate expires", || SystemTime::now() > until).await;
    let status = client.report(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("expired since it connected"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_serves_new_handshakes_and_leaves_connections_alone() {
    let manager = Manager::start(State::found(Duration::from_secs(4))).await;
    let clock = Clock::default();
    let joined = manager.join(&manager.state.tokens().worker, &clock).await.unwrap();
    let (first, first_key) = (joined.chain_pem.clone(), joined.key_pem.clone());
    let node = manager.node(joined, clock.clone());
    let mut stream = manager.client(&node).session(SessionRequest::default()).await.unwrap().into_inner();
    stream.next().await.unwrap().unwrap();

    let stop = CancellationToken::new();
    let address = manager.address.clone();
    let nobody = "127.0.0.1:1".to_owned();
    let managers = move || vec![nobody.clone(), address.clone()];
    let renewing = tokio::spawn(renew(node.clone(), managers, || None, stop.clone()));
    soon("the certificate is renewed twice", {
        let (mut changes, mut last, node) = (0, first.clone(), node.clone());
        move || {
            let now = node.current().chain_pem.clone();
            if now != last {
                last = now;
                changes += 1;
            }
            changes == 2
        }
    })
    .await;
    let renewed = node.current();
    assert_ne!(renewed.key_pem, first_key, "a new key each time");
    works(&node, &manager).await;
    let stored = Identity::load(&manager.dir.path().join(&renewed.subject.node_id), &clock).unwrap().unwrap();
    assert_eq!((stored.subject.clone(), stored.root_pem()), (renewed.subject.clone(), renewed.root_pem()));

    // The manager's own changes too; the stream, opened under two certificates that are gone, still carries.
    let next = Identity::found(&manager.state.root(), &manager.holder.current().subject, DAY, &clock).unwrap();
    manager.holder.replace(next).unwrap();
    let shown = dial::connect(&manager.address, Arc::clone(&node.current().client), DEADLINE).await.unwrap();
    let shown = shown.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    assert_eq!(shown, chain(manager.holder.current().chain_pem()).unwrap()[0].to_vec());
    manager.tick.send_replace(1);
    stream.next().await.unwrap().unwrap();

    // A new role comes with the next certificate, at once when asked for.
    let mut identities = node.watch();
    manager.state.nodes.lock().unwrap()[0].spec.as_mut().unwrap().role = Role::Manager.into();
    node.renew_now();
    tokio::time::timeout(Duration::from_secs(10), identities.wait_for(|i| i.is_manager())).await.unwrap().unwrap();
    stop.cancel();
    renewing.await.unwrap();
}

#[tokio::test]
async fn the_only_manager_signs_for_itself_once_its_certificate_is_of_no_use_any_more() {
    let state = State::found(DAY);
    let clock = Clock::default();
    let valid = state.identity(Role::Manager, DAY, &clock);
    // Made by a clock that was behind, or by one that was ahead.
    for ahead in [false, true] {
        let made = Identity::found(&state.root(), &valid.subject, DAY, &shifted(DAY * 30, ahead)).unwrap();
        let made = Identity::new(&made.root_pem, &made.chain_pem, &made.key_pem, &clock).unwrap();
        assert!(made.check(SystemTime::now()).is_err());
        let dir = tempfile::tempdir().unwrap();
        let holder = Holder::new(dir.path().join("identity"), made, clock.clone());
        let stop = CancellationToken::new();
        let alone = {
            let state = Arc::clone(&state);
            move || Some((state.root(), DAY))
        };
        let renewing = tokio::spawn(renew(holder.clone(), Vec::new, alone, stop.clone()));
        let mut identities = holder.watch();
        let signed = identities.wait_for(|i| i.check(SystemTime::now()).is_ok());
        let subject = tokio::time::timeout(Duration::from_secs(10), signed).await.unwrap().unwrap().subject.clone();
        assert_eq!(subject, valid.subject);
        let manager = Manager::start(Arc::clone(&state)).await;
        works(&holder, &manager).await;
        stop.cancel();
        renewing.await.unwrap();
    }
    // One that is still valid is the others' affair.
    let holder = Holder::new(tempfile::tempdir().unwrap().path().join("identity"), valid, clock);
    let (asked, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let counted = Arc::clone(&asked);
    let managers = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Vec::new()
    };
    let first = holder.current().chain_pem.clone();
    let renewing = tokio::spawn(renew(holder.clone(), managers, || unreachable!("it is valid"), stop.clone()));
    holder.renew_now();
    soon("it looks for somebody to ask", || asked.load(Ordering::Relaxed) > 0).await;
    assert_eq!(holder.current().chain_pem, first);
    stop.cancel();
    renewing.await.unwrap();
}

#[tokio::test]
async fn serving_ends_when_told_to() {
    let manager = Manager::start(State::found(DAY)).await;
    let node = manager.node(manager.state.identity(Role::Worker, DAY, &Clock::default()), Clock::default());
    works(&node, &manager).await;
    manager.stop.cancel();
    tokio::time::timeout(Duration::from_secs(4), manager.served).await.unwrap().unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(&manager.address).await.is_err());
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
