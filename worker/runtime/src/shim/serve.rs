//! The life of a supervisor: one loop that waits for output, requests and the end.
//!
//! Decides the order in which things that happen at once are handled: output first, so that nothing is lost; the end
//! last. Every buffer has a bound, every client can be dropped, no call in the loop waits. Called once, by `mod`.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use jiff::Timestamp;
use libcontainer::notify_socket::NotifySocket;
use rustix::event::{PollFd, PollFlags, poll};

use super::create::{Made, bind};
use super::logs::{Lines, LogWriter};
use super::protocol::{Answer, MAX_LINE, Request, line};
use super::{Error, failed, reap};
use crate::cgroup::Cgroups;
use crate::state::Dirs;

/// The most clients at once; the daemon needs a handful.
const MAX_CLIENTS: usize = 64;
/// Read at once from one output; its neighbours get their turn in between.
const CHUNK: usize = 16 << 10;
/// The most that a container can have left in its outputs when it ends: a pipe's largest default-privileged size.
const MAX_DRAIN: usize = 1 << 20;
/// The longest reason of a failed start that is kept.
const MAX_REASON: usize = 4096;

/// How far the container has come.
enum Phase {
    Created,
    Starting,
    Running,
    /// The program could not be started: why.
    Failed(String),
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    /// Waits for the start to be done.
    starts: bool,
}

/// One output of the container.
struct Output {
    fd: Option<OwnedFd>,
    lines: Lines,
}

/// A supervisor with a container that was made.
pub(super) struct Supervisor {
    dirs: Dirs,
    cgroup: PathBuf,
    cgroups: Cgroups,
    pid: i32,
    pidfd: OwnedFd,
    outputs: Vec<Output>,
    exec_error: OwnedFd,
    notify: PathBuf,
    log: LogWriter,
    listener: UnixListener,
    clients: Vec<Client>,
    phase: Phase,
    reason: Vec<u8>,
    started_at: Option<Timestamp>,
}

/// What one turn of the loop found.
#[derive(Default)]
struct Ready {
    ended: bool,
    connection: bool,
    exec: bool,
    outputs: [bool; 2],
    clients: Vec<bool>,
}

impl Supervisor {
    pub(super) fn new(dirs: Dirs, cgroup: PathBuf, cgroups: Cgroups, made: Made) -> Result<Self, Error> {
        let log = LogWriter::new(dirs.logs(), made.log).map_err(failed("open the log"))?;
        let listener = bind(&dirs.socket()).map_err(failed("bind the socket"))?;
        listener.set_nonblocking(true).map_err(failed("bind the socket"))?;
        let mut outputs = vec![Output { fd: Some(made.stdout), lines: Lines::new("stdout") }];
        outputs.extend(made.stderr.map(|fd| Output { fd: Some(fd), lines: Lines::new("stderr") }));
        Ok(Supervisor {
            dirs,
            cgroup,
            cgroups,
            pid: made.pid,
            pidfd: made.pidfd,
            outputs,
            exec_error: made.exec_error,
            notify: made.notify,
            log,
            listener,
            clients: Vec::new(),
            phase: Phase::Created,
            reason: Vec::new(),
            started_at: None,
        })
    }

    /// Until the container has ended and that is written down.
    pub(super) fn run(mut self) {
        // What making the container needed goes back to the kernel: from here on this process is small and idle.
        // SAFETY: gives free heap pages back, nothing else.
        unsafe { libc::malloc_trim(0) };
        loop {
            let ready = self.wait();
            for (index, readable) in ready.outputs.iter().enumerate() {
                if *readable {
                    self.read_output(index);
                }
            }
            if ready.exec {
                self.read_exec_result();
            }
            if ready.ended {
                return self.finish();
            }
            if ready.connection {
                self.accept();
            }
            self.serve(&ready.clients);
        }
    }

    fn wait(&self) -> Ready {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        let starting = matches!(self.phase, Phase::Starting);
        if starting {
            fds.push(PollFd::new(&self.exec_error, PollFlags::IN));
        }
        let open: Vec<usize> = (0..self.outputs.len()).filter(|index| self.outputs[*index].fd.is_some()).collect();
        fds.extend(
            self.outputs.iter().filter_map(|output| output.fd.as_ref()).map(|fd| PollFd::new(fd, PollFlags::IN)),
        );
        fds.extend(self.clients.iter().map(|client| PollFd::new(&client.stream, PollFlags::IN)));
        if poll(&mut fds, None).is_err() {
            return Ready { clients: vec![false; self.clients.len()], ..Ready::default() };
        }
        let mut hits = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || hits.next().unwrap_or(false);
        let mut ready = Ready { ended: next(), connection: next(), exec: starting && next(), ..Ready::default() };
        for index in open {
            ready.outputs[index] = next();
        }
        ready.clients = self.clients.iter().map(|_| next()).collect();
        ready
    }

    /// Reads one chunk; how many bytes it had.
    fn read_output(&mut self, index: usize) -> usize {
        let output = &mut self.outputs[index];
        let Some(fd) = &output.fd else { return 0 };
        // Not cleared first: what isn't written to costs no memory, and this process lives long.
        let mut buffer = [MaybeUninit::uninit(); CHUNK];
        match rustix::io::read(fd, &mut buffer) {
            Ok(([], _)) => {}
            Ok((bytes, _)) => {
                output.lines.push(bytes, Timestamp::now(), &mut self.log);
                return bytes.len();
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return 0,
            // A terminal ends with EIO.
            Err(_) => {}
        }
        output.fd = None;
        0
    }

    /// The pipe from process 1 ends silently when exec succeeded, and with a reason when it did not.
    fn read_exec_result(&mut self) {
        let mut buffer = [MaybeUninit::uninit(); MAX_REASON];
        match rustix::io::read(&self.exec_error, &mut buffer) {
            Ok(([], _)) => {}
            Ok((bytes, _)) => {
                let room = MAX_REASON.saturating_sub(self.reason.len());
                self.reason.extend_from_slice(&bytes[..bytes.len().min(room)]);
                return;
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            Err(_) => {}
        }
        let answer = if self.reason.is_empty() {
            self.started_at = Some(Timestamp::now());
            self.phase = Phase::Running;
            Answer::Running { pid: self.pid, started_at: self.started_at }
        } else {
            let reason = String::from_utf8_lossy(&self.reason).into_owned();
            self.phase = Phase::Failed(reason.clone());
            Answer::Failed { reason }
        };
        let bytes = line(&answer);
        self.clients
            .retain_mut(|client| !std::mem::take(&mut client.starts) || client.stream.write_all(&bytes).is_ok());
    }

    fn accept(&mut self) {
        if let Ok((stream, _)) = self.listener.accept()
            && self.clients.len() < MAX_CLIENTS
            && stream.set_nonblocking(true).is_ok()
        {
            self.clients.push(Client { stream, input: Vec::new(), starts: false });
        }
    }

    /// Serves the clients that sent something; those that are gone, talk nonsense or don't read are dropped.
    fn serve(&mut self, ready: &[bool]) {
        let mut clients = std::mem::take(&mut self.clients);
        let mut ready = ready.iter();
        clients.retain_mut(|client| !ready.next().copied().unwrap_or(false) || self.serve_one(client).is_ok());
        self.clients = clients;
    }

    fn serve_one(&mut self, client: &mut Client) -> io::Result<()> {
        let mut buffer = [0u8; 512];
        match client.stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => client.input.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(end) = client.input.iter().position(|byte| *byte == b'\n') {
            let request: Request = serde_json::from_slice(&client.input[..end])?;
            client.input.drain(..=end);
            if let Some(answer) = self.handle(request, client) {
                client.stream.write_all(&line(&answer))?;
            }
        }
        if client.input.len() > MAX_LINE { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
    }

    fn handle(&mut self, request: Request, client: &mut Client) -> Option<Answer> {
        let failed = |reason: String| Some(Answer::Failed { reason });
        match request {
            Request::Wait => None,
            Request::State => Some(match &self.phase {
                Phase::Created | Phase::Starting => Answer::Created,
                Phase::Running => Answer::Running { pid: self.pid, started_at: self.started_at },
                Phase::Failed(reason) => Answer::Failed { reason: reason.clone() },
            }),
            Request::Start => match &self.phase {
                Phase::Created => match NotifySocket::new(self.notify.clone()).notify_container_start() {
                    Ok(()) => {
                        self.phase = Phase::Starting;
                        client.starts = true;
                        None
                    }
                    Err(error) => failed(format!("the container doesn't answer any more: {error}")),
                },
                Phase::Starting => {
                    client.starts = true;
                    None
                }
                Phase::Running => Some(Answer::Running { pid: self.pid, started_at: self.started_at }),
                Phase::Failed(reason) => failed(reason.clone()),
            },
            Request::Signal(signal) => match self.signal(signal) {
                Ok(()) => Some(Answer::Done),
                Err(error) => failed(format!("signal {signal}: {error}")),
            },
        }
    }

    /// By handle, never by number. Real-time signals too, which is why this is the raw call.
    fn signal(&self, signal: i32) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a signal to a process that the descriptor names; no pointer is read.
        let done =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_fd().as_raw_fd(), signal, none, 0) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn finish(mut self) {
        if matches!(self.phase, Phase::Starting) {
            // Twice: a reason, and the end after it.
            self.read_exec_result();
            self.read_exec_result();
        }
        // All writers are dead, so what is there now is all there will be: no waiting.
        for index in 0..self.outputs.len() {
            let mut left = MAX_DRAIN;
            while left > 0 {
                match self.read_output(index) {
                    0 => break,
                    count => left = left.saturating_sub(count),
                }
            }
            self.outputs[index].lines.finish(Timestamp::now(), &mut self.log);
        }
        let reason = match self.phase {
            Phase::Failed(reason) => Some(reason),
            _ => None,
        };
        reap::finish(&self.dirs, &self.cgroups, &self.cgroup, &self.pidfd, self.started_at, reason);
    }
}
