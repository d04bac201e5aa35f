//! The daemon's hold on the process that supervisors are forked from.
//!
//! Decides nothing. It is the daemon's child and ends with it; whoever it has forked doesn't. Called by the blocking half
//! of the client, one request at a time.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
    recv, sendmsg, shutdown, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::shim::protocol::{Answer, MAX_LINE};
use crate::shim::zygote::{MAX_PATH, STREAMS};

/// The longest that it may take to fork.
const ANSWER: Duration = Duration::from_secs(10);
/// The longest that it may take to end once it is asked, and once more when it is killed.
const LEAVING: Duration = Duration::from_secs(1);

/// As much of a container's id is shown on its supervisor's command line, in bytes.
const SHOWN_ID: usize = 66;

/// A running one.
pub(super) struct Zygote {
    /// `None` once it was given up.
    process: Option<Child>,
    socket: OwnedFd,
}

impl Zygote {
    /// Starts one, whose children will be in the supervisors' group below `cgroup_parent`, for containers in `run_dir`.
    pub(super) fn start(exe: &OwnedFd, cgroup_parent: &Path, run_dir: &Path) -> io::Result<Self> {
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let process = Command::new(format!("/proc/self/fd/{}", exe.as_raw_fd()))
            .arg0("skep")
            .args(["shim", "zygote"])
            .arg(cgroup_parent)
            .arg(" ".repeat(run_dir.as_os_str().len() + SHOWN_ID))
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Zygote { process: Some(process), socket })
    }

    /// Whether it has ended, or is about to: it says nothing unasked otherwise.
    pub(super) fn has_gone(&self) -> bool {
        readable(self.socket.as_fd(), Instant::now()).unwrap_or(true)
    }

    /// Has it fork a supervisor for the run directory, with these as its standard streams. What answers is the zygote; the
    /// supervisor answers to its second stream.
    pub(super) fn fork(&self, run: &Path, streams: [BorrowedFd<'_>; STREAMS]) -> io::Result<Answer> {
        let path = run.as_os_str().as_bytes();
        if path.is_empty() || path.len() > MAX_PATH {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&streams));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if let Err(errno) = sendmsg(&self.socket, &[io::IoSlice::new(path)], &mut control, flags) {
            // One that could not begin has said why.
            return self.answer().map_err(|_| errno.into());
        }
        if !readable(self.socket.as_fd(), Instant::now() + ANSWER)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match self.answer() {
            // It left the request unread; what it said comes after that.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.answer(),
            other => other,
        }
    }

    fn answer(&self) -> io::Result<Answer> {
        let mut answer = vec![0; MAX_LINE];
        let (count, _) = recv(&self.socket, &mut answer[..], RecvFlags::DONTWAIT)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&answer[..count])?)
    }

    fn ends_soon(&self) -> bool {
        let pid = self.process.as_ref().and_then(|process| Pid::from_raw(i32::try_from(process.id()).ok()?));
        pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .is_some_and(|handle| readable(handle.as_fd(), Instant::now() + LEAVING).unwrap_or(false))
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
        let mut ended = self.ends_soon();
        if !ended && let Some(process) = &mut self.process {
            let _ = process.kill();
            ended = self.ends_soon();
        }
        let Some(mut process) = self.process.take() else { return };
        if ended {
            let _ = process.wait();
        } else {
            // Stuck in the kernel; nobody waits for it but this.
            let reaper = std::thread::Builder::new().name("reaper".into());
            let _ = reaper.spawn(move || process.wait());
        }
    }
}

/// Whether a descriptor has something to read, or its other end has gone, before the deadline.
pub(super) fn readable(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: left.subsec_nanos().into(),
        };
        // A child's end interrupts the call as soon as anybody in the process handles that signal, as tokio does.
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(count) => return Ok(count > 0),
            Err(errno) => return Err(errno.into()),
        }
    }
}
