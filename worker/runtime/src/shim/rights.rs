//! What a program may do, taken on in its own process right before it starts.
//!
//! One way for process 1 of a container and for what is exec'd in it, so that they can't differ: account, seccomp filter
//! while the right to load one is still there, capabilities. libcontainer does neither here: it sets no filter for
//! exec'd processes, and compiles it anew for each container. Called inside the container; everything after the filter
//! has to be on its list.

use std::io;

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::LinuxCapabilities;
use libcontainer::syscall::syscall::create_syscall;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Error, failed};
use crate::user::Identity;

/// Capabilities and filter of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Rights {
    /// Names, for the bounding, permitted and effective set.
    pub(crate) caps: Vec<String>,
    /// The seccomp program, one instruction a number; `None` without a filter.
    pub(crate) filter: Option<Vec<u64>>,
}

impl Rights {
    /// Turns the calling process, which has one thread and every right, into that account with these rights. When it
    /// dies by this process's parent, it is killed too.
    pub(super) fn take_on(&self, identity: &Identity) -> Result<(), Error> {
        // Neither inheritable nor ambient: a program of another user gets only what its file grants.
        let sets = json!({
            "bounding": self.caps, "effective": self.caps, "permitted": self.caps, "inheritable": [], "ambient": [],
        });
        let sets: LinuxCapabilities =
            serde_json::from_value(sets).map_err(|error| Error::Container(error.to_string()))?;
        let syscall = create_syscall();
        become_user(identity)?;
        // Changing the user took the effective ones, and with them the right to load a filter.
        reset_effective(&*syscall).map_err(|error| Error::Container(error.to_string()))?;
        // Changing the user also took this: the parent dies, the program dies.
        // SAFETY: a plain prctl.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if let Some(filter) = &self.filter {
            load(filter)?;
        }
        drop_privileges(&sets, &*syscall).map_err(|error| Error::Container(super::create::chain(&error)))
    }
}

fn become_user(identity: &Identity) -> Result<(), Error> {
    let groups = &identity.groups;
    // SAFETY: plain calls, and one that reads as many numbers as it is told there are. One thread, so the raw ones do.
    let done = unsafe {
        libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
            && libc::prctl(libc::PR_SET_KEEPCAPS, 1) == 0
            && libc::syscall(libc::SYS_setresgid, identity.gid, identity.gid, identity.gid) == 0
            && libc::syscall(libc::SYS_setresuid, identity.uid, identity.uid, identity.uid) == 0
            && libc::prctl(libc::PR_SET_KEEPCAPS, 0) == 0
    };
    if done { Ok(()) } else { Err(failed("become the user")(io::Error::last_os_error())) }
}

/// Without the no-new-privileges bit, since the right to do so is still there.
fn load(filter: &[u64]) -> Result<(), Error> {
    let too_long = |_| Error::Container("the seccomp filter is too long".into());
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(too_long)?,
        // An instruction is 8 bytes, whichever way they are called; the kernel only reads them.
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the program and its instructions live through the call.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if done == 0 { Ok(()) } else { Err(failed("load the seccomp filter")(io::Error::last_os_error())) }
}
