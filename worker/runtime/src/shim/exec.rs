//! A further program in a running container: a helper process that enters it and becomes the program's parent.
//!
//! Decides the order of entering: control groups, all namespaces at once by the handle of process 1, then the rights
//! (see `rights`), the program. libcontainer's own exec is not used: it sets no filter. The helper stays outside of the container's process namespace, out of sight, and passes the exit code
//! on; when it is killed, so is the program. Called by `mod` for `skep shim exec`.
//!
//! The order comes first on standard input, the program's own input after it, so the helper reads not a byte too much.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use super::payload::{Program, reset_signals};
use super::rights::Rights;
use super::{Error, check_binary, close_inherited, failed};
use crate::cgroup::Cgroups;
use crate::oci;
use crate::rootfs::Root;
use crate::spec::ContainerSpec;
use crate::state::ProcessId;
use crate::user::{self, Identity};

/// The exit code that says that the container could not be entered, as users know it.
pub(crate) const NOT_ENTERED: i32 = 125;
/// The largest order, in bytes.
const MAX_ORDER: u64 = 4 << 20;

/// What a helper is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExecOrder {
    /// Process 1 of the container.
    pub(crate) init: ProcessId,
    /// Its group within the cgroup hierarchies.
    pub(crate) cgroup: PathBuf,
    /// The container's wish, with the program, environment, account and directory of this one in the place of its own.
    pub(crate) spec: ContainerSpec,
    /// What the program may do: the container's.
    pub(crate) rights: Rights,
}

impl ExecOrder {
    /// As it goes over standard input.
    pub(crate) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
    }

    fn read(mut input: impl Read) -> io::Result<Self> {
        let mut len = [0u8; 8];
        input.read_exact(&mut len)?;
        let len = u64::from_le_bytes(len);
        if len > MAX_ORDER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the order is too large"));
        }
        let mut json = Vec::new();
        input.take(len).read_to_end(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

/// The helper's whole life.
pub(super) fn main() -> i32 {
    match enter_and_run() {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            NOT_ENTERED
        }
    }
}

fn enter_and_run() -> Result<i32, Error> {
    check_binary()?;
    close_inherited();
    // SAFETY: descriptor 0 is open for the whole life of the process; a file of its own would close it.
    let stdin = unsafe { BorrowedFd::borrow_raw(0) };
    let order = ExecOrder::read(Unbuffered(stdin)).map_err(failed("read the order"))?;
    let _ = rustix::thread::set_name(c"skep-exec");
    // Whoever is inside must not look into this process while it is on its way in.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(failed("protect the helper"))?;
    let cgroups = Cgroups::detect()?;
    // Inside, the container decides what /dev/null is, and this process still has every right.
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed("open /dev/null"))?;
    enter(&order, &cgroups)?;
    let root = Root::open(Path::new("/"))?;
    let account = |path| root.read(path, user::MAX_FILE).map(Option::unwrap_or_default);
    let identity =
        user::resolve(&order.spec.user, &order.spec.groups, &account("etc/passwd")?, &account("etc/group")?)?;
    drop(root);
    // The namespace of processes takes effect with the next child.
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(failed("fork")(io::Error::last_os_error())),
        0 => {
            let error = become_program(&order, &identity);
            complain(&error.1);
            // SAFETY: ends the child without the parent's destructors.
            unsafe { libc::_exit(error.0) }
        }
        child => Ok(wait(child, &null)),
    }
}

/// Control groups, then every namespace at once.
fn enter(order: &ExecOrder, cgroups: &Cgroups) -> Result<(), Error> {
    let gone = || Error::Container("the container is not running".into());
    let pid = Pid::from_raw(order.init.pid).ok_or_else(gone)?;
    let init = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
    // With the handle in hand: it is the right process, or nothing.
    if !order.init.alive() {
        return Err(gone());
    }
    if cgroups.frozen(&order.cgroup) {
        return Err(Error::Container("the container is paused; unpause it first".into()));
    }
    if let Ok(score) = fs::read_to_string(format!("/proc/{}/oom_score_adj", order.init.pid)) {
        let _ = fs::write("/proc/self/oom_score_adj", score.trim());
    }
    cgroups.join(&order.cgroup)?;
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    move_into_thread_name_spaces(init.as_fd(), all).map_err(failed("enter the container"))
}

/// The child's way to the program; returns only on failure, with the exit code.
fn become_program(order: &ExecOrder, identity: &Identity) -> (i32, Error) {
    let spec = &order.spec;
    if let Err(error) = settle(spec).and_then(|()| order.rights.take_on(identity)) {
        return (NOT_ENTERED, error);
    }
    let strings = |list: Vec<String>| list.into_iter().filter_map(|text| CString::new(text).ok()).collect();
    let program = Program { args: strings(spec.args.clone()), env: strings(oci::environment(spec, &identity.home)) };
    reset_signals();
    let (code, reason) = program.exec();
    (code, Error::Container(reason))
}

/// Session, descriptors and working directory.
fn settle(spec: &ContainerSpec) -> Result<(), Error> {
    // Before the working directory: no descriptor of the host's may be there for it to name.
    close_inherited();
    rustix::process::setsid().map_err(failed("make a session"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let cwd = if spec.cwd.is_empty() { "/" } else { &spec.cwd };
    std::env::set_current_dir(cwd).map_err(failed("change to the working directory"))?;
    let real = std::env::current_dir().map_err(failed("the working directory is outside of the container"))?;
    if !real.is_absolute() {
        return Err(Error::Container("the working directory is outside of the container".into()));
    }
    Ok(())
}

/// Until the program has ended; its exit code, or 128 + signal.
fn wait(child: i32, null: &OwnedFd) -> i32 {
    // The program's ends alone: a reader must see them close with it.
    let _ = super::redirect_to(null, &[0, 1, 2]);
    loop {
        let mut status = 0;
        // SAFETY: waits for the one child.
        let pid = unsafe { libc::waitpid(child, &mut status, 0) };
        if pid == child {
            return if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
        }
        if pid < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return NOT_ENTERED;
        }
    }
}

fn complain(error: &Error) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "{error}");
}

/// Reads from a descriptor without taking more than asked for.
struct Unbuffered<'a>(BorrowedFd<'a>);

impl Read for Unbuffered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn an_order_ends_where_the_input_begins() {
        let init = ProcessId { pid: 7, start_time: 8, boot: "b".into() };
        let order =
            ExecOrder { init, cgroup: "/skep/x".into(), spec: ContainerSpec::default(), rights: Rights::default() };
        let mut bytes = order.to_bytes().unwrap();
        bytes.extend(b"input");
        let mut rest = bytes.as_slice();
        assert_eq!(ExecOrder::read(&mut rest).unwrap(), order);
        assert_eq!(rest, b"input");
        assert!(ExecOrder::read(&[255u8; 32][..]).is_err());
        assert!(ExecOrder::read(&b"abc"[..]).is_err());
    }
}
