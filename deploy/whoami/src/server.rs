//! The server: a thread for each connection, at most [`CONNECTIONS_MAX`] of them, and a graceful end.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::io::{self, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::Identity;
use crate::http::{self, Request};
use crate::udp::{self, canonical};

const CONNECTIONS_MAX: usize = 1024;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(60);
/// How long a peer may take to accept what it asked for.
const WRITE: Duration = Duration::from_secs(10);
/// How long running requests get after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);
/// How long reaching an own listener may take.
const WAKE: Duration = Duration::from_secs(1);
const STREAM_EVERY: Duration = Duration::from_millis(100);
const SLOW_MAX: u64 = 600_000;
const STACK: usize = 128 << 10;
/// Attempts to find a port that is free for TCP and UDP, if any port will do.
const BIND_TRIES: usize = 20;

pub(crate) struct Config {
    /// None: all addresses of both families.
    pub(crate) address: Option<IpAddr>,
    /// 0: any free port.
    pub(crate) port: u16,
    pub(crate) identity: Identity,
}

/// Serves until a byte arrives on `signals`.
pub(crate) fn serve(config: Config, mut signals: UnixStream) -> io::Result<ExitCode> {
    let sockets = bind(config.address, config.port)?;
    let identity = Arc::new(config.identity);
    let shared = Arc::new(Shared::default());
    let mut listening = Vec::new();
    for Sockets { tcp, udp } in sockets {
        let local = tcp.local_addr()?;
        writeln!(io::stdout(), "listening on {local} (tcp, udp), name {}", identity.name)?;
        listening.push(local);
        let (of_tcp, of_udp) = (Arc::clone(&identity), Arc::clone(&identity));
        let acceptor = Acceptor::new(&shared);
        spawn("accept", move || {
            accept(&tcp, &acceptor.0, &of_tcp);
            // Closed before it is counted as closed.
            drop(tcp);
        })?;
        // Ends with the process: a datagram that is not answered is nothing new to its sender.
        spawn("udp", move || {
            if let Err(error) = udp::echo(&udp, &of_udp) {
                let _ = writeln!(io::stderr(), "whoami: udp: {error}");
            }
        })?;
    }
    // An error here means that no signal can be heard: then it is time to go, too.
    let _ = signals.read(&mut [0]);
    shared.stop(&listening);
    let left = shared.drain(DRAIN);
    let _ = writeln!(io::stdout(), "stopped, {left} connections cut off");
    Ok(ExitCode::SUCCESS)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body)
}

struct Sockets {
    tcp: TcpListener,
    udp: UdpSocket,
}

fn pair(address: IpAddr, port: u16) -> io::Result<Sockets> {
    let mut last = None;
    for _ in 0..BIND_TRIES {
        let tcp = TcpListener::bind((address, port))?;
        match UdpSocket::bind((address, tcp.local_addr()?.port())) {
            Ok(udp) => return Ok(Sockets { tcp, udp }),
            Err(error) if port != 0 => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// One dual-stack socket where the kernel has it, else one for each family that it has.
fn bind(address: Option<IpAddr>, port: u16) -> io::Result<Vec<Sockets>> {
    if let Some(address) = address {
        return Ok(vec![pair(address, port)?]);
    }
    let mut sockets: Vec<Sockets> = pair(Ipv6Addr::UNSPECIFIED.into(), port).into_iter().collect();
    let port = match sockets.first() {
        Some(first) => first.tcp.local_addr()?.port(),
        None => port,
    };
    match pair(Ipv4Addr::UNSPECIFIED.into(), port) {
        Ok(v4) => sockets.push(v4),
        // The first one has this family already.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && !sockets.is_empty() => {}
        Err(error) => return Err(error),
    }
    Ok(sockets)
}

/// What the threads know of each other.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopping: bool,
    /// Own connections that tell the listeners to end. They queue behind all that came before the end, so
    /// nobody whose connection was established is turned away.
    wakes: HashSet<SocketAddr>,
    /// A listener could not be woken: it ends with the next connection, whosever it is.
    abrupt: bool,
    listeners: usize,
    next: u64,
    connections: HashMap<u64, Connection>,
}

struct Connection {
    stream: TcpStream,
    /// False between two requests. A new connection is busy: its first request is on the way.
    busy: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.state().stopping
    }

    fn stop(&self, listening: &[SocketAddr]) {
        let mut state = self.state();
        state.stopping = true;
        for connection in state.connections.values().filter(|connection| !connection.busy) {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
        for local in listening {
            let target = SocketAddr::new(crate::reachable(local.ip()), local.port());
            // The lock is held, so that the listener knows the connection when it sees it.
            let wake = TcpStream::connect_timeout(&target, WAKE).and_then(|stream| stream.local_addr());
            match wake {
                Ok(wake) => drop(state.wakes.insert(canonical(wake))),
                Err(_) => state.abrupt = true,
            }
        }
        self.changed.notify_all();
    }

    /// Whether a listener ends, now that `peer` has connected.
    fn ends(&self, peer: SocketAddr) -> bool {
        let state = self.state();
        state.abrupt || state.wakes.contains(&canonical(peer))
    }

    /// Waits until nothing listens and nothing is connected any more; gives what still is after `limit`.
    fn drain(&self, limit: Duration) -> usize {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        while state.listeners > 0 || !state.connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.connections.len()
    }

    /// None if there are too many.
    fn enter(self: &Arc<Self>, stream: &TcpStream) -> Option<Guest> {
        let stream = stream.try_clone().ok()?;
        let mut state = self.state();
        if state.connections.len() >= CONNECTIONS_MAX {
            return None;
        }
        state.next += 1;
        let id = state.next;
        state.connections.insert(id, Connection { stream, busy: false });
        Some(Guest { shared: Arc::clone(self), id })
    }

    /// Sleeps, but not past the end.
    fn pause(&self, time: Duration) {
        let state = self.state();
        let _ = self.changed.wait_timeout_while(state, time, |state| !state.stopping);
    }
}

/// Counts a listener; its end is told on drop.
struct Acceptor(Arc<Shared>);

impl Acceptor {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.state().listeners += 1;
        Self(Arc::clone(shared))
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.0.state().listeners -= 1;
        self.0.changed.notify_all();
    }
}

/// A connection's place; given back on drop, also when its thread panics.
struct Guest {
    shared: Arc<Shared>,
    id: u64,
}

impl Guest {
    /// False if the end has come and a new request must not begin.
    fn set_busy(&self, busy: bool) -> bool {
        let mut state = self.shared.state();
        let stopping = state.stopping;
        if let Some(connection) = state.connections.get_mut(&self.id) {
            connection.busy = busy;
        }
        !stopping
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.shared.state().connections.remove(&self.id);
        self.shared.changed.notify_all();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, identity: &Arc<Identity>) {
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // Most likely out of descriptors, which the end of some connection cures.
            Err(_) => {
                shared.pause(STREAM_EVERY);
                if shared.stopping() {
                    return;
                }
                continue;
            }
        };
        if shared.ends(peer) {
            return;
        }
        let Some(guest) = shared.enter(&stream) else {
            let _ = stream.set_write_timeout(Some(WRITE));
            let _ = http::write_response(&mut &stream, 503, "too many connections\n", false, false);
            continue;
        };
        let identity = Arc::clone(identity);
        let started = spawn("connection", move || {
            // The peer is gone or silent; there is nobody to tell.
            let _ = converse(&stream, &guest, &identity);
        });
        if started.is_err() {
            shared.pause(STREAM_EVERY);
        }
    }
}

/// Request after request until one side has enough.
fn converse(stream: &TcpStream, guest: &Guest, identity: &Identity) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(WRITE))?;
    let peer = canonical(stream.peer_addr()?);
    let mut reader = BufReader::new(stream);
    loop {
        // Blocks while the connection is idle, and is cut short by the end.
        if io::BufRead::fill_buf(&mut reader)?.is_empty() {
            return Ok(());
        }
        let open = guest.set_busy(true);
        let request = match http::read_request(&mut reader)? {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(http::Refusal(status)) => {
                return http::write_response(&mut &*stream, status, "request refused\n", false, false);
            }
        };
        let keep_alive = answer(&mut &*stream, &request, peer, identity, &guest.shared)?;
        if !guest.set_busy(false) || !open || !keep_alive {
            return Ok(());
        }
    }
}

/// Answers one request; says whether the connection goes on.
fn answer(
    stream: &mut impl Write,
    request: &Request,
    peer: SocketAddr,
    identity: &Identity,
    shared: &Shared,
) -> io::Result<bool> {
    let mut status = 200;
    let body = match request.path() {
        "/" => describe(request, peer, identity),
        "/health" => "ok\n".to_owned(),
        "/stream" if request.method != "HEAD" => {
            return endless(stream, identity, shared).map(|()| false);
        }
        "/slow" => match request.query("ms").unwrap_or("1000").parse::<u64>() {
            Ok(millis) if millis <= SLOW_MAX => {
                // Not `pause`: a running request finishes after SIGTERM as it would have before.
                thread::sleep(Duration::from_millis(millis));
                describe(request, peer, identity)
            }
            _ => {
                status = 400;
                format!("ms must be a number up to {SLOW_MAX}\n")
            }
        },
        _ => {
            status = 404;
            "try /, /health, /stream or /slow?ms=N\n".to_owned()
        }
    };
    let keep_alive = request.keep_alive() && !shared.stopping();
    http::write_response(stream, status, &body, request.method == "HEAD", keep_alive)?;
    Ok(keep_alive)
}

fn describe(request: &Request, peer: SocketAddr, identity: &Identity) -> String {
    let mut body = format!("Name: {}\nHostname: {}\n", identity.name, identity.hostname);
    for address in identity.addresses().iter() {
        let _ = writeln!(body, "IP: {address}");
    }
    let _ = writeln!(body, "RemoteAddr: {peer}");
    let _ = writeln!(body, "{} {} {}", request.method, request.target, request.version);
    for (name, value) in &request.headers {
        let _ = writeln!(body, "{name}: {value}");
    }
    body
}

/// A numbered line every 100 ms until the peer or the process has enough.
fn endless(stream: &mut impl Write, identity: &Identity, shared: &Shared) -> io::Result<()> {
    http::start_stream(stream)?;
    let mut line = 0_u64;
    while !shared.stopping() {
        line += 1;
        http::write_chunk(stream, &format!("{line} {}\n", identity.hostname))?;
        shared.pause(STREAM_EVERY);
    }
    http::write_chunk(stream, "")
}
