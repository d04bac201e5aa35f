//! Managers in one process, each with its own directory, port and server; connections that can be cut.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use skep_manager::raft::{Config, Dialer, Error, Raft, SnapshotFn, StateMachine};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Server};

pub const SECOND: Duration = Duration::from_secs(1);
pub const KEY: [u8; 32] = [9; 32];
/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);

/// A map of strings; `restores` counts the snapshots it was given.
#[derive(Default)]
pub struct Map {
    pub entries: Mutex<BTreeMap<String, String>>,
    pub restores: AtomicU64,
}

/// The command that sets a key.
pub fn put(key: &str, value: &str) -> Vec<u8> {
    [key.as_bytes(), b"\0", value.as_bytes()].concat()
}

impl StateMachine for Map {
    fn apply(&self, _index: u64, command: &[u8]) -> Vec<u8> {
        let command = String::from_utf8_lossy(command);
        let Some((key, value)) = command.split_once('\0') else { return b"?".to_vec() };
        self.entries.lock().unwrap().insert(key.into(), value.into());
        format!("{key}={value}").into_bytes()
    }

    fn snapshot(&self) -> SnapshotFn {
        let entries = self.entries.lock().unwrap().clone();
        Box::new(move |out| {
            for (key, value) in &entries {
                writeln!(out, "{key}\0{value}")?;
            }
            Ok(())
        })
    }

    fn restore(&self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut text = String::new();
        snapshot.read_to_string(&mut text)?;
        let entries = text.lines().filter_map(|line| line.split_once('\0'));
        *self.entries.lock().unwrap() = entries.map(|(k, v)| (k.into(), v.into())).collect();
        self.restores.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Printable characters that compress badly.
pub fn noise(len: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + (state % 90) as u8)
    })
    .take(len)
    .collect()
}

/// Which managers are cut off, and who has which address.
#[derive(Default)]
struct Wires {
    cut: Mutex<HashSet<u64>>,
    addresses: Mutex<BTreeMap<String, u64>>,
}

impl Wires {
    fn cut(&self, from: u64, to: u64) -> bool {
        let cut = self.cut.lock().unwrap();
        from != to && (cut.contains(&from) || cut.contains(&to))
    }
}

/// A connection that falls silent for good once either end is cut off.
struct Wire {
    stream: TcpStream,
    wires: Arc<Wires>,
    ends: (u64, u64),
}

impl Wire {
    fn silent(&self) -> bool {
        self.wires.cut(self.ends.0, self.ends.1)
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.silent() { Poll::Pending } else { Pin::new(&mut self.stream).poll_read(cx, buf) }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.silent() { Poll::Pending } else { Pin::new(&mut self.stream).poll_write(cx, buf) }
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct Plain {
    me: u64,
    wires: Arc<Wires>,
}

impl Dialer for Plain {
    fn channel(&self, address: &str) -> io::Result<Channel> {
        let (me, wires, target) = (self.me, Arc::clone(&self.wires), address.to_owned());
        let connect = tower::service_fn(move |_| {
            let (wires, target) = (Arc::clone(&wires), target.clone());
            async move {
                let to = wires.addresses.lock().unwrap().get(&target).copied().unwrap_or(0);
                if wires.cut(me, to) {
                    // Silence, until the connect timeout.
                    std::future::pending::<()>().await;
                }
                let stream = TcpStream::connect(&target).await?;
                stream.set_nodelay(true)?;
                Ok::<_, io::Error>(TokioIo::new(Wire { stream, wires, ends: (me, to) }))
            }
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(io::Error::other)?;
        let endpoint = endpoint.http2_keep_alive_interval(SECOND).keep_alive_timeout(SECOND);
        Ok(endpoint.connect_timeout(CONNECT).connect_with_connector_lazy(connect))
    }
}

/// Lets everybody in: who calls is for other tests.
pub struct Open;

impl skep_manager::raft::Door for Open {
    fn admit(&self, _caller: &tonic::Extensions, _id: u64) -> Result<(), tonic::Status> {
        Ok(())
    }
}

struct Manager {
    dir: TempDir,
    address: String,
    /// Its number in the group, and those that it had before.
    number: u64,
    former: Vec<u64>,
    map: Arc<Map>,
    raft: Option<Raft>,
    /// A runtime of its own: when it goes, so do all connections that it accepted.
    server: Option<Runtime>,
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

pub struct Cluster {
    managers: BTreeMap<u64, Manager>,
    wires: Arc<Wires>,
    tweak: fn(&mut Config),
}

/// Polls a condition until it holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Cluster {
    pub async fn start(count: u64) -> Self {
        Self::with(count, |_| {}).await
    }

    /// Manager 1 founds the cluster, the others join it.
    pub async fn with(count: u64, tweak: fn(&mut Config)) -> Self {
        let mut cluster = Self { managers: BTreeMap::new(), wires: Arc::default(), tweak };
        cluster.add(1).await;
        cluster.raft(1).bootstrap().await.unwrap();
        for id in 2..=count {
            cluster.join(id).await;
        }
        cluster
    }

    async fn add(&mut self, id: u64) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        self.wires.addresses.lock().unwrap().insert(address.clone(), id);
        let dir = tempfile::tempdir().unwrap();
        let manager =
            Manager { dir, address, number: id, former: Vec::new(), map: Arc::default(), raft: None, server: None };
        self.managers.insert(id, manager);
        self.restart(id).await;
    }

    pub async fn join(&mut self, id: u64) {
        self.add(id).await;
        let leader = self.leader().await;
        let address = self.address(id);
        self.raft(leader).add_member(id, &address).await.unwrap();
    }

    fn config(&self, id: u64) -> Config {
        let manager = &self.managers[&id];
        let mut config = Config::new(self.dir(id), manager.number, self.address(id), KEY);
        config.former.clone_from(&manager.former);
        (self.tweak)(&mut config);
        config
    }

    /// Ends a manager without warning: connections break, nothing is handed over.
    pub async fn kill(&mut self, id: u64) {
        let manager = self.managers.get_mut(&id).unwrap();
        if let Some(server) = manager.server.take() {
            server.shutdown_background();
        }
        if let Some(raft) = manager.raft.take() {
            raft.shutdown().await;
        }
    }

    /// Starts a manager from its directory, with an empty state machine.
    pub async fn restart(&mut self, id: u64) {
        let map = Arc::new(Map::default());
        self.managers.get_mut(&id).unwrap().map = Arc::clone(&map);
        let raft = Raft::open(self.config(id), map, self.dialer(id)).await.unwrap();
        self.serve(id, raft);
    }

    /// Starts a manager as the only one left, under a new number.
    pub async fn force(&mut self, id: u64) {
        let map = Arc::new(Map::default());
        let manager = self.managers.get_mut(&id).unwrap();
        manager.map = Arc::clone(&map);
        manager.former.push(manager.number);
        manager.number += 100;
        let raft = Raft::force_new_cluster(self.config(id), map, self.dialer(id)).await.unwrap();
        self.serve(id, raft);
    }

    fn serve(&mut self, id: u64, raft: Raft) {
        let manager = self.managers.get_mut(&id).unwrap();
        let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (service, address) = (raft.service(Arc::new(Open)), manager.address.clone());
        server.spawn(async move {
            // The port may linger for a moment after a kill.
            let end = Instant::now() + PATIENCE;
            let listener = loop {
                match TcpListener::bind(&address).await {
                    Ok(listener) => break listener,
                    Err(e) if Instant::now() > end => panic!("{address} can't be bound: {e}"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            };
            // Without this an answer waits for the peer's delayed acknowledgement.
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener)
                .map(|stream| stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream)));
            Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        manager.raft = Some(raft);
        manager.server = Some(server);
    }

    pub fn ids(&self) -> std::vec::IntoIter<u64> {
        self.managers.keys().copied().collect::<Vec<_>>().into_iter()
    }

    pub fn running(&self) -> std::vec::IntoIter<u64> {
        let up = self.managers.iter().filter(|(_, manager)| manager.raft.is_some());
        up.map(|(id, _)| *id).collect::<Vec<_>>().into_iter()
    }

    pub fn raft(&self, id: u64) -> &Raft {
        self.managers[&id].raft.as_ref().expect("the manager is down")
    }

    pub fn dir(&self, id: u64) -> PathBuf {
        self.managers[&id].dir.path().into()
    }

    pub fn address(&self, id: u64) -> String {
        self.managers[&id].address.clone()
    }

    pub fn machine(&self, id: u64) -> Arc<Map> {
        Arc::clone(&self.managers[&id].map)
    }

    pub fn dialer(&self, id: u64) -> Arc<dyn Dialer> {
        Arc::new(Plain { me: id, wires: Arc::clone(&self.wires) })
    }

    pub fn get(&self, id: u64, key: &str) -> Option<String> {
        self.managers[&id].map.entries.lock().unwrap().get(key).cloned()
    }

    pub fn restores(&self, id: u64) -> u64 {
        self.managers[&id].map.restores.load(Ordering::SeqCst)
    }

    pub fn snapshots(&self, id: u64) -> usize {
        let files = std::fs::read_dir(self.dir(id).join("snapshots")).unwrap();
        files.filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "snap")).count()
    }

    pub fn leads(&self, id: u64) -> bool {
        self.managers[&id].raft.as_ref().is_some_and(|raft| raft.leadership().borrow().is_self)
    }

    pub async fn leader(&self) -> u64 {
        until("a manager leads", || self.ids().any(|id| self.leads(id))).await;
        self.ids().find(|id| self.leads(*id)).expect("it led a moment ago")
    }

    /// A running manager that does not lead.
    pub async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        self.running().find(|id| *id != leader).unwrap()
    }

    /// Proposes to whoever leads, as a client does that tries again.
    pub async fn propose_anywhere(&self, command: Vec<u8>, within: Duration) -> u64 {
        let end = Instant::now() + within;
        loop {
            for id in self.running() {
                match self.raft(id).propose(command.clone(), Duration::from_millis(50)).await {
                    Ok(_) => return id,
                    Err(
                        Error::NotLeader { .. }
                        | Error::NoQuorum { .. }
                        | Error::OutcomeUnknown { .. }
                        | Error::Timeout { .. },
                    ) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            assert!(Instant::now() < end, "no manager accepted a write within {within:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Cuts a manager off from all others, silently.
    pub fn cut(&self, id: u64) {
        self.wires.cut.lock().unwrap().insert(id);
    }

    pub fn heal(&self, id: u64) {
        self.wires.cut.lock().unwrap().remove(&id);
    }

    pub async fn stop(mut self) {
        for id in self.ids() {
            self.kill(id).await;
        }
    }
}
