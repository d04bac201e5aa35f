//! The process that supervisors are forked from.
//!
//! What a supervisor needs of this program is the same for all: loaded, relocated, in the supervisors' control groups. Here
//! that is done once, and all of them share the memory. Decides nothing: it forks for whoever holds the other end of its
//! socket, the daemon, and ends with it; its children live on. It never sees an order, which may hold secrets: what its
//! children find of each other in their memory are names of run directories, and an address layout. Called by
//! [`super::shim_main`].

use std::ffi::OsStr;
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send};
use rustix::pipe::{PipeFlags, pipe_with};

use super::protocol::{Answer, line};
use super::{Error, answer, be_born, check_binary, close_inherited, failed, redirect_to};
use crate::cgroup::Cgroups;
use crate::state::{Dirs, ProcessId, write_atomic};

/// What a supervisor is given: its order, a place for its answer, and one for its last words.
pub(crate) const STREAMS: usize = 3;
/// The longest run directory in a request, as the kernel has it for paths.
pub(crate) const MAX_PATH: usize = 4096;

/// A wish for a supervisor.
struct Birth {
    run: PathBuf,
    streams: [OwnedFd; STREAMS],
}

/// Serves until the daemon has gone. In the child that a request is answered with, this is that child's whole life.
pub(super) fn main(cgroup_parent: &OsStr) -> i32 {
    // SAFETY: the daemon made its end of the socket standard input, and only a child replaces that, by its order.
    let socket = unsafe { BorrowedFd::borrow_raw(0) };
    let cgroup_parent = Path::new(cgroup_parent);
    let cgroups = match prepare(cgroup_parent) {
        Ok(cgroups) => cgroups,
        Err(error) => {
            let failed = Answer::Failed { reason: error.to_string() };
            // Whoever started it by hand reads this, the daemon that.
            answer(&failed);
            reply(socket, &failed);
            return 1;
        }
    };
    loop {
        let birth = match receive(socket) {
            Ok(Some(birth)) => birth,
            Ok(None) => {
                cgroups.leave_shims(cgroup_parent);
                return 0;
            }
            Err(error) => {
                reply(socket, &Answer::Failed { reason: format!("a request for a supervisor: {error}") });
                return 1;
            }
        };
        let (told, tell) = match pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe")) {
            Ok(ends) => ends,
            Err(error) => {
                reply(socket, &Answer::Failed { reason: error.to_string() });
                continue;
            }
        };
        // SAFETY: this process has one thread, so the child is as whole as its parent.
        match unsafe { libc::fork() } {
            -1 => reply(socket, &Answer::Failed { reason: failed("fork")(io::Error::last_os_error()).to_string() }),
            0 => {
                drop(tell);
                // Nobody would know of one that is not written down, or whose zygote died before that: it does nothing.
                let known = rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut [0u8; 1])) == Ok(1);
                drop(told);
                return if known { live(birth, cgroups) } else { 1 };
            }
            child => {
                let noted = note(child, &birth.run).and_then(|()| Ok(rustix::io::write(&tell, b"!")?));
                reply(
                    socket,
                    &match noted {
                        Ok(_) => Answer::Done,
                        Err(error) => Answer::Failed { reason: format!("note the supervisor's process id: {error}") },
                    },
                );
            }
        }
    }
}

/// All that supervisors have in common.
fn prepare(cgroup_parent: &Path) -> Result<Cgroups, Error> {
    check_binary()?;
    close_inherited();
    // Apart from the daemon's terminal and process group, as are its children later.
    rustix::process::setsid().map_err(failed("make a session"))?;
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGPIPE, libc::SIGCHLD] {
        // SAFETY: ignoring a signal installs no handler; the last one lets dead children go at once. The container gets the
        // defaults back before its program runs.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let _ = rustix::thread::set_name(c"skep-zygote");
    std::env::set_current_dir("/").map_err(failed("change to /"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let cgroups = Cgroups::detect()?;
    cgroups.join_shims(cgroup_parent)?;
    Ok(cgroups)
}

/// A request, with all its descriptors; `None` once nobody can send one any more.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Birth>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut path = vec![0; MAX_PATH];
    let got = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut path)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            // The daemon was killed with answers unread.
            Err(Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    if got.bytes == 0 {
        return Ok(None);
    }
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let whole = !got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    match <[OwnedFd; STREAMS]>::try_from(fds) {
        Ok(streams) if whole => Ok(Some(Birth { run: OsStr::from_bytes(&path[..got.bytes]).into(), streams })),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is malformed")),
    }
}

/// Writes down whom to kill, while the child waits for that: so its number can't have passed to another.
fn note(child: i32, run: &Path) -> io::Result<()> {
    write_atomic(&Dirs { run: run.to_owned(), state: PathBuf::new() }.shim_pid(), &ProcessId::of(child)?)
}

/// The child: from here on a supervisor.
fn live(birth: Birth, cgroups: Cgroups) -> i32 {
    // SAFETY: back to the default, which installs no handler: it waits for children of its own.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    for (fd, stream) in birth.streams.iter().zip(0..) {
        if redirect_to(fd, &[stream]).is_err() {
            return 1;
        }
    }
    drop(birth.streams);
    show(&birth.run);
    match be_born(cgroups) {
        Ok(()) => 0,
        Err(error) => {
            answer(&Answer::Failed { reason: error.to_string() });
            1
        }
    }
}

/// Makes this process's command line that of a supervisor of its own, for whoever lists processes: over the zygote's, which
/// has room for it. Nothing else depends on it.
fn show(run: &Path) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let Some((start, end)) = arguments(&stat) else { return };
    let mut line = [b"skep\0shim\0", run.as_os_str().as_bytes()].concat();
    let room = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    // The last byte stays zero, or the kernel would show what comes after it.
    line.truncate(room.saturating_sub(1));
    line.resize(room, 0);
    let _ =
        fs::OpenOptions::new().write(true).open("/proc/self/mem").and_then(|memory| memory.write_all_at(&line, start));
}

/// Where a process's arguments lie in its memory, from its stat file: fields 48 and 49.
fn arguments(stat: &str) -> Option<(u64, u64)> {
    // The name (second field) may contain spaces and parentheses, so count from its end.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(45);
    let (start, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (start != 0 && start < end).then_some((start, end))
}

fn reply(socket: BorrowedFd<'_>, answer: &Answer) {
    // It fails when the daemon has gone, which the next receive tells.
    let _ = send(socket, &line(answer), SendFlags::NOSIGNAL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_arguments_lie() {
        let stat = |start: u64, end: u64| {
            let before: Vec<String> = (3..48).map(|field| field.to_string()).collect();
            format!("7 (a) b) {} {start} {end} 50 51", before.join(" "))
        };
        assert_eq!(arguments(&stat(1000, 1010)), Some((1000, 1010)));
        assert_eq!(arguments(&stat(0, 0)), None);
        assert_eq!(arguments("7 (a) S 1 2"), None);
    }
}
