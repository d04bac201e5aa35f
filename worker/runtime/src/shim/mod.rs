//! The supervisor of one container: a process of its own, one thread, no async runtime.
//!
//! It makes the container, holds its standard streams and its exit status, and outlives the daemon. Decides nothing
//! about tasks: it does what its order and its socket say, and writes down how the container ended. It must never block
//! on anyone (clients, readers of logs, a full disk), and never run with a binary that a container could write to.
//! Called by the `skep` binary as its very first act, through [`shim_main`], when its first argument is `shim`.

mod create;
pub(crate) mod exec;
pub(crate) mod logs;
mod payload;
pub(crate) mod protocol;
mod reap;
pub(crate) mod rights;
mod serve;
mod shed;
mod verify;
pub(crate) mod zygote;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstatvfs, open};

use crate::cgroup::Cgroups;
use crate::state::Dirs;
use protocol::{Answer, Order, line};

/// Why a supervisor could not do what it was born for.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The binary is in reach of the container.
    #[error("the supervisor's binary is on a writable mount; it is started by `skep daemon` only, not by hand")]
    WritableBinary,
    /// A system call.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::Error),
    /// The image.
    #[error(transparent)]
    Rootfs(#[from] crate::rootfs::Error),
    /// The account.
    #[error(transparent)]
    User(#[from] crate::user::Error),
    /// The container library.
    #[error("{0}")]
    Container(String),
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Io { what, source: source.into() }
}

/// Runs the process that supervisors are forked from (`skep shim zygote <cgroup parent>`), each of these, or one of their
/// exec helpers (`skep shim exec`); the arguments are those after `shim`. The result is the exit code.
///
/// Must be called before the process has a second thread or any state worth keeping.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let mut args = args.into_iter();
    if args.next().is_some_and(|word| word == "exec") {
        return exec::main();
    }
    zygote::main(&args.next().unwrap_or_default())
}

/// From a fork of the zygote, with its streams in place, to the end of the supervisor's life.
fn be_born(cgroups: Cgroups) -> Result<(), Error> {
    let order = Order::read(io::stdin().lock()).map_err(failed("read the order"))?;
    redirect(&[0]).map_err(failed("open /dev/null"))?;
    let dirs = Dirs { run: order.run.clone(), state: order.state.clone() };
    rustix::process::setsid().map_err(failed("make a session"))?;
    let _ = rustix::thread::set_name(c"skep-shim");

    let cgroup = order.cgroup();
    let supervisor = create::create(order, &cgroups)
        .and_then(|made| serve::Supervisor::new(dirs, cgroup.clone(), cgroups.clone(), made));
    match supervisor {
        Ok(supervisor) => {
            answer(&Answer::Created);
            redirect(&[1, 2]).map_err(failed("open /dev/null"))?;
            shed::shed();
            supervisor.run();
            Ok(())
        }
        Err(error) => {
            let _ = cgroups.kill(&cgroup);
            let _ = cgroups.remove(&cgroup);
            Err(error)
        }
    }
}

/// CVE-2019-5736: whoever in a container gets hold of this binary through /proc must not be able to write to it. The
/// client starts it from a read-only mount of its own; that holds for as long as the process lives.
fn check_binary() -> Result<(), Error> {
    let exe =
        open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed("open /proc/self/exe"))?;
    let flags = fstatvfs(&exe).map_err(failed("look at /proc/self/exe"))?.f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) { Ok(()) } else { Err(Error::WritableBinary) }
}

/// Closes whatever the daemon left open by mistake.
fn close_inherited() {
    // SAFETY: nothing in this process owns a descriptor above 2 yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}

/// Points standard descriptors to /dev/null.
fn redirect(fds: &[i32]) -> io::Result<()> {
    redirect_to(&open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?, fds)
}

/// Points standard descriptors to an open file.
fn redirect_to(file: &OwnedFd, fds: &[i32]) -> io::Result<()> {
    for fd in fds {
        // SAFETY: dup2 onto a standard descriptor, which no Rust value owns.
        if unsafe { libc::dup2(file.as_raw_fd(), *fd) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Answers the order.
fn answer(answer: &Answer) {
    // SAFETY: descriptor 1 is open for the whole life of the process.
    let stdout = unsafe { BorrowedFd::borrow_raw(1) };
    if let Ok(fd) = rustix::io::fcntl_dupfd_cloexec(stdout, 3) {
        let _ = File::from(fd).write_all(&line(answer));
    }
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd.as_fd())?;
    Ok(rustix::fs::fcntl_setfl(fd.as_fd(), flags | OFlags::NONBLOCK)?)
}
