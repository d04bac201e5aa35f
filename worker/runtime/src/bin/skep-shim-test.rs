//! The supervisor alone, and two companions, for this crate's tests and examples.
//!
//! `shim` is what `skep shim` is in the product. `daemon` makes and starts one container and then hangs, so
//! that a test can kill it. `probe` runs inside a container and reports what it is allowed to do.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;

fn main() {
    let mut args = std::env::args_os().skip(1);
    let code = match args.next() {
        Some(first) if first == "shim" => skep_runtime::shim_main(args),
        Some(first) if first == "daemon" => report(daemon(&args.collect::<Vec<_>>())),
        Some(first) if first == "probe" => report(probe()),
        _ => 2,
    };
    std::process::exit(code);
}

fn report(result: io::Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            1
        }
    }
}

/// Arguments: run directory, state directory, cgroup parent, wish as JSON.
fn daemon(args: &[OsString]) -> io::Result<()> {
    let [run_dir, state_dir, parent, spec] = args else { return Err(io::ErrorKind::InvalidInput.into()) };
    let text = |arg: &OsStr| arg.to_string_lossy().into_owned();
    let config = skep_runtime::Config {
        run_dir: run_dir.into(),
        state_dir: state_dir.into(),
        shim_exe: std::env::current_exe()?,
        cgroup_parent: text(parent),
    };
    let spec: skep_runtime::ContainerSpec = serde_json::from_str(&text(spec))?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let runtime = skep_runtime::Runtime::new(config).map_err(io::Error::other)?;
        runtime.create(&spec).await.map_err(io::Error::other)?;
        runtime.start(&spec.id).await.map_err(io::Error::other)?;
        writeln!(io::stdout(), "ready")?;
        std::future::pending::<io::Result<()>>().await
    })
}

/// One line per attempt: its name, and `ok` or the error's number.
fn probe() -> io::Result<()> {
    let mut out = io::stdout().lock();
    // Fails with EROFS on the read-only mount, and works on any other: the canary for CVE-2019-5736.
    for (name, path) in [("chmod_own_exe", "/proc/self/exe"), ("chmod_init_exe", "/proc/1/exe")] {
        let done = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755));
        let result = done.as_ref().err().and_then(io::Error::raw_os_error).map_or("ok".to_owned(), |n| n.to_string());
        writeln!(out, "{name} {result}")?;
    }
    let mut say = |name: &str, result: i64| {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        if result < 0 { writeln!(out, "{name} {errno}") } else { writeln!(out, "{name} ok") }
    };
    const NEWUSER: i64 = 0x1000_0000;
    // SAFETY: each call is either refused or harmless, and no pointer is read or written by any.
    unsafe {
        say("keyctl", libc::syscall(libc::SYS_keyctl, 0, -3, 0))?;
        say("add_key", libc::syscall(libc::SYS_add_key, 0, 0, 0, 0, 0))?;
        say("unshare", libc::syscall(libc::SYS_unshare, NEWUSER))?;
        say("setns", libc::syscall(libc::SYS_setns, -1, 0))?;
        say("mount", libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0))?;
        say("bpf", libc::syscall(libc::SYS_bpf, 0, 0, 0))?;
        say("clone3", libc::syscall(libc::SYS_clone3, 0, 0))?;
        say("clone_newuser", fork_with(NEWUSER | i64::from(libc::SIGCHLD)))?;
        say("clone_plain", fork_with(i64::from(libc::SIGCHLD)))?;
        say("personality_query", libc::syscall(libc::SYS_personality, 0xffff_ffffu64))?;
        say("personality_norandom", libc::syscall(libc::SYS_personality, 0x004_0000u64))?;
        say("socket_vsock", libc::syscall(libc::SYS_socket, 40, 1, 0))?;
        say("socket_inet", libc::syscall(libc::SYS_socket, 2, 1, 0))?;
    }
    for line in std::fs::read_to_string("/proc/self/status")?.lines() {
        if ["SigBlk", "SigIgn", "NoNewPrivs", "Seccomp:", "CapEff", "CapBnd", "CapAmb", "Groups"]
            .iter()
            .any(|key| line.starts_with(key))
        {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// # Safety
/// One thread; the child ends at once.
unsafe fn fork_with(flags: i64) -> i64 {
    // SAFETY: without a stack of its own the child goes on with a copy of this one.
    unsafe {
        let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
        if pid == 0 {
            libc::_exit(0);
        }
        if pid > 0 {
            libc::waitpid(i32::try_from(pid).unwrap_or(-1), std::ptr::null_mut(), 0);
        }
        pid
    }
}
