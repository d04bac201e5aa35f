//! The last steps inside the container, between libcontainer's work and the program.
//!
//! Decides which file is the program, puts signals back to their defaults, and reports why a program can't run. Runs in
//! the container's process 1 (a copy of the supervisor), which gives up its rights here; it must not return. Called by libcontainer.

use std::ffi::{CString, c_char};
use std::os::fd::RawFd;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rustix::pipe::{PipeFlags, pipe_with};

use super::exec::NOT_ENTERED;
use super::rights::Rights;
use super::verify;
use crate::user::Identity;

/// What process 1 does when it is told to start.
#[derive(Clone)]
pub(super) struct Payload {
    /// Pipe to the supervisor; closed by a successful exec.
    pub(super) error_fd: RawFd,
    /// Stay as process 1 and run the program as a child.
    pub(super) init: bool,
    /// What the program may do.
    pub(super) rights: Rights,
    /// Who it runs as.
    pub(super) identity: Identity,
}

impl Executor for Payload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let empty = Vec::new();
        let strings = |list: &Option<Vec<String>>| -> Vec<CString> {
            list.as_ref().unwrap_or(&empty).iter().filter_map(|text| CString::new(text.as_str()).ok()).collect()
        };
        let program = Program { args: strings(process.args()), env: strings(process.env()) };
        if let Err(error) = self.rights.take_on(&self.identity) {
            self.fail(NOT_ENTERED, &error.to_string());
        }
        if self.init {
            self.run_as_init(&program)
        } else {
            reset_signals();
            self.become_program(&program)
        }
    }

    /// The earliest hook inside (taking on the rights renews it): from here on, the container dies with its supervisor.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        // SAFETY: a plain prctl. The parent is the supervisor: libcontainer makes process 1 its child.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // Everything is mounted, and nothing of the image has run yet.
        verify::file_systems(spec).map_err(|error| ExecutorValidationError::ArgValidationError(error.to_string()))
    }

    /// Nothing: the program gets its environment with exec, in order, and this process needs none.
    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

/// A program with its arguments and environment.
pub(crate) struct Program {
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
}

impl Program {
    /// Becomes the program; returns only on failure: the exit code that shells use for it, and why.
    pub(crate) fn exec(&self) -> (i32, String) {
        let Some(name) = self.args.first() else { return (126, "no program was given".into()) };
        let shown = name.to_string_lossy().into_owned();
        let pointers = |list: &[CString]| -> Vec<*const c_char> {
            list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        let mut worst = libc::ENOENT;
        for candidate in candidates(&shown, self.path()) {
            let Ok(path) = CString::new(candidate) else { continue };
            // SAFETY: all three are NUL-terminated and outlive the call.
            unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
            match std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
                // Go on, but a file that was there and could not be run says more than one that wasn't.
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => worst = libc::EACCES,
                other => {
                    worst = other;
                    break;
                }
            }
        }
        let reason = std::io::Error::from_raw_os_error(worst);
        let code = if worst == libc::ENOENT { 127 } else { 126 };
        (code, format!("exec {shown:?}: {reason}; check the image's entrypoint, command and architecture"))
    }

    fn path(&self) -> String {
        let found = self.env.iter().find_map(|pair| pair.to_str().ok()?.strip_prefix("PATH="));
        found.unwrap_or("/bin:/usr/bin").to_owned()
    }
}

/// Where a program may be: itself when it has a slash, else in each directory of `path`.
fn candidates(name: &str, path: String) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    path.split(':')
        .map(|directory| if directory.is_empty() { format!("./{name}") } else { format!("{directory}/{name}") })
        .collect()
}

/// The supervisor ignores some signals, and Rust ignores SIGPIPE: a program expects neither, nor a blocked one.
pub(crate) fn reset_signals() {
    // The kernel's structure is at most 32 bytes on every architecture; all zero is the default action. Not by the C
    // library, which refuses to touch the two signals that it keeps for itself, and those can be inherited ignored.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads the array and writes nothing; for SIGKILL and SIGSTOP it fails, which is fine.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8usize) };
    }
    set_mask(false);
}

/// Blocks all signals, or none.
fn set_mask(block: bool) -> libc::sigset_t {
    // SAFETY: a signal set is plain data, filled by the call that follows.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::sigprocmask(if block { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK }, &set, std::ptr::null_mut());
        set
    }
}

impl Payload {
    fn become_program(&self, program: &Program) -> ! {
        let (code, reason) = program.exec();
        self.fail(code, &reason)
    }

    fn fail(&self, code: i32, reason: &str) -> ! {
        // SAFETY: a write of bytes that live, and the end of the process without its parent's destructors.
        unsafe {
            libc::write(self.error_fd, reason.as_ptr().cast(), reason.len());
            libc::_exit(code)
        }
    }

    /// A small init: one child is the program; orphans are reaped, signals forwarded, its exit code passed on.
    fn run_as_init(&self, program: &Program) -> ! {
        reset_signals();
        let set = set_mask(true);
        // Ends once this process has closed everything: the program must not be quicker than that.
        let closed = pipe_with(PipeFlags::CLOEXEC);
        // SAFETY: one thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            if let Ok((reader, writer)) = closed {
                drop(writer);
                let _ = rustix::io::retry_on_intr(|| rustix::io::read(&reader, &mut [0u8; 1]));
            }
            set_mask(false);
            self.become_program(program);
        }
        // Closed below, with all the others.
        std::mem::forget(closed);
        // Without an exec nothing closes the descriptors by itself; the program must not find them here.
        // SAFETY: only libcontainer's values own descriptors above 2, and this function never returns to them.
        unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
        if child < 0 {
            // SAFETY: see above.
            unsafe { libc::_exit(126) };
        }
        loop {
            let mut signal = 0;
            // SAFETY: both point to live values.
            if unsafe { libc::sigwait(&set, &mut signal) } != 0 {
                continue;
            }
            if signal == libc::SIGCHLD {
                reap_until(child);
            } else {
                // SAFETY: the child is ours and not reaped yet, so the number is still its.
                unsafe { libc::kill(child, signal) };
            }
        }
    }
}

/// Reaps whoever has died; ends this process when `main` has.
fn reap_until(main: i32) {
    loop {
        let mut status = 0;
        // SAFETY: waits for any child without blocking.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid <= 0 {
            return;
        }
        if pid == main {
            let code = if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
            // SAFETY: ends process 1, and with it the container.
            unsafe { libc::_exit(code) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_program_may_be() {
        assert_eq!(candidates("sh", "/a:/b".into()), ["/a/sh", "/b/sh"]);
        assert_eq!(candidates("sh", "/a:".into()), ["/a/sh", "./sh"]);
        assert_eq!(candidates("./sh", "/a".into()), ["./sh"]);
    }
}
