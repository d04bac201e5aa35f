//! Making a container: mounts, accounts, files, and the call into libcontainer.
//!
//! Decides where things lie; the spec itself comes from `oci`. Everything is mounted in a mount namespace that exists
//! only while the container is made: the container keeps a copy, the supervisor goes back to the host's. So the host's
//! mount table never sees a container, a container's mounts vanish with its last process, and no supervisor keeps
//! another's mounts (network namespaces among them) alive.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::payload::Payload;
use super::protocol::Order;
use super::{Error, failed, nonblocking};
use crate::cgroup::Cgroups;
use crate::oci::{self, Facts, PreparedFile};
use crate::rootfs::{Root, mount_overlay, mount_view};
use crate::spec::{ContainerSpec, LogOptions, Mount};
use crate::state::{ProcessId, write_atomic};
use crate::user::{self, Identity};

/// Room on the memory file system beyond what is put there: the container may write its own /etc/hosts.
const FILES_SLACK: usize = 1 << 20;

/// A container that waits to be started.
pub(super) struct Made {
    /// Process 1, as the host numbers it.
    pub(super) pid: i32,
    /// The same, beyond doubt.
    pub(super) pidfd: OwnedFd,
    /// What it prints, or its terminal.
    pub(super) stdout: OwnedFd,
    /// What it complains, unless it has a terminal.
    pub(super) stderr: Option<OwnedFd>,
    /// Ends when the program runs; says why when it can't.
    pub(super) exec_error: OwnedFd,
    /// Connect here to start the program.
    pub(super) notify: PathBuf,
    /// How much output to keep.
    pub(super) log: LogOptions,
}

/// Carries the order out, as far as the start.
pub(super) fn create(order: Order, cgroups: &Cgroups) -> Result<Made, Error> {
    let host = open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open the mount namespace"))?;
    // SAFETY: one thread; a new mount namespace changes no descriptor.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(failed("make a mount namespace"))?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(failed("keep mounts to the namespace"))?;
    let made = build(&order, cgroups);
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&host), Some(LinkNameSpaceType::Mount))
        .map_err(failed("go back to the host's mounts"))?;
    let made = made?;
    let id = ProcessId::of(made.pid).map_err(failed("read process 1 of the container"))?;
    write_atomic(&order.run.join("init.json"), &id).map_err(failed("write init.json"))?;
    tidy_up(&order, &made);
    Ok(made)
}

fn build(order: &Order, cgroups: &Cgroups) -> Result<Made, Error> {
    let spec = &order.spec;
    let rootfs = order.run.join("rootfs");
    for directory in [&rootfs, &order.run.join("files"), &order.run.join("oci"), &order.run.join("bundle")] {
        fs::DirBuilder::new().mode(0o700).recursive(true).create(directory).map_err(failed("make a directory"))?;
    }
    for mount in &spec.mounts {
        if let Mount::Bind { source, .. } = mount {
            fs::metadata(source).map_err(|error| {
                Error::Container(format!("mount source {}: {error}; make it first", source.display()))
            })?;
        }
    }
    mount_overlay(&spec.layers, &order.state.join("upper"), &order.state.join("work"), &rootfs)?;
    let root = Root::open(&rootfs)?;
    root.check_kernel_directories()?;
    for mount in &spec.mounts {
        root.check_mount_target(mount.target())?;
    }
    let account = |path| root.read(path, user::MAX_FILE).map(Option::unwrap_or_default);
    let identity = user::resolve(&spec.user, &spec.groups, &account("etc/passwd")?, &account("etc/group")?)?;
    let files = prepare_files(order, &root)?;
    let cgroup_view = prepare_cgroups(order, cgroups)?;
    if !spec.cwd.is_empty() {
        root.make_directory(Path::new(&spec.cwd))?;
    }
    drop(root);

    let facts = Facts {
        rootfs,
        cgroup: order.cgroup(),
        home: identity.home.clone(),
        files,
        swap_counted: cgroups.counts_swap(),
        cgroup_view,
        own_network: own_network(spec),
        throttle_counters: throttle_counters(Path::new("/sys/devices/system/cpu")),
    };
    let bundle = order.run.join("bundle");
    let config = serde_json::to_vec(&oci::build(spec, &facts)).map_err(|error| Error::Container(error.to_string()))?;
    fs::write(bundle.join("config.json"), config).map_err(failed("write config.json"))?;
    run_library(order, &bundle, identity)
}

/// The call into libcontainer, with the streams that the container gets.
fn run_library(order: &Order, bundle: &Path, identity: Identity) -> Result<Made, Error> {
    let library = |error: libcontainer::error::LibcontainerError| Error::Container(chain(&error));
    let (exec_error, exec_error_writer) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe"))?;
    nonblocking(&exec_error).map_err(failed("make a pipe"))?;
    let (uid, gid) = (identity.uid, identity.gid);
    let payload = Payload {
        error_fd: exec_error_writer.as_raw_fd(),
        init: order.spec.init,
        rights: order.rights.clone(),
        identity,
    };
    let builder = ContainerBuilder::new(order.spec.id.clone(), SyscallType::default())
        .with_root_path(order.run.join("oci"))
        .map_err(library)?
        .with_executor(payload);
    let (container, stdout, stderr) = if order.spec.tty {
        let path = order.run.join("console.sock");
        let listener = bind(&path).map_err(failed("make the console socket"))?;
        let built =
            builder.with_console_socket(Some(path)).as_init(bundle).with_systemd(false).with_detach(true).build();
        let container = built.map_err(library)?;
        (container, receive_terminal(&listener).map_err(failed("receive the terminal"))?, None)
    } else {
        let (stdout, stdout_writer) = output_pipe(uid, gid)?;
        let (stderr, stderr_writer) = output_pipe(uid, gid)?;
        let stdin =
            open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed("open /dev/null"))?;
        let builder = builder.with_stdin(stdin).with_stdout(stdout_writer).with_stderr(stderr_writer);
        let container = builder.as_init(bundle).with_systemd(false).with_detach(true).build().map_err(library)?;
        (container, stdout, Some(stderr))
    };
    // The only writer from now on is the container's process 1.
    drop(exec_error_writer);
    let pid = container.pid().ok_or_else(|| Error::Container("the container has no process".into()))?.as_raw();
    let number = Pid::from_raw(pid).ok_or_else(|| Error::Container("the container has no process".into()))?;
    let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(failed("hold process 1 of the container"))?;
    for fd in [Some(&stdout), stderr.as_ref()].into_iter().flatten() {
        nonblocking(fd).map_err(failed("set up an output"))?;
    }
    let notify = order.run.join("oci").join(&order.spec.id).join("notify.sock");
    Ok(Made { pid, pidfd, stdout, stderr, exec_error, notify, log: order.spec.log.clone() })
}

/// A pipe whose container end belongs to the program's user, who may open /dev/stdout anew.
fn output_pipe(uid: u32, gid: u32) -> Result<(OwnedFd, OwnedFd), Error> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe"))?;
    fchown(&writer, Some(uid), Some(gid)).map_err(failed("give a pipe to the program's user"))?;
    Ok((reader, writer))
}

/// Puts /etc/hosts and its like, secrets and configs on a memory file system that only this container has. Where
/// the caller mounts nothing, they are mounted at once, at a tenth of the library's price; else the library does it all, in
/// the order of the targets.
fn prepare_files(order: &Order, root: &Root) -> Result<Vec<PreparedFile>, Error> {
    let spec = &order.spec;
    let directory = order.run.join("files");
    let total: usize = spec.files.iter().map(|file| file.bytes.len().next_multiple_of(4096)).sum();
    mount_memory(&directory, total + FILES_SLACK, spec.files.len() + 16)?;
    let ours = [
        ("/etc/hosts", oci::hosts(spec)),
        ("/etc/hostname", format!("{}\n", oci::hostname(spec))),
        ("/etc/resolv.conf", spec.resolv_conf.clone()),
    ];
    let mut out = Vec::new();
    for (target, content) in &ours {
        // Root's and everybody's to read; the container's root may change them, as it is used to.
        let source = write_file(&directory, out.len(), content.as_bytes(), 0, 0, 0o644)?;
        out.push(PreparedFile { source, target: target.into(), read_only: false });
    }
    for file in &spec.files {
        let source = write_file(&directory, out.len(), &file.bytes, file.uid, file.gid, file.mode)?;
        let target = crate::spec::normalize(&file.path).unwrap_or_else(|| file.path.clone());
        out.push(PreparedFile { source, target, read_only: true });
    }
    for file in &out {
        // What the caller mounts there himself stays as it is.
        if !spec.mounts.iter().any(|mount| file.target.starts_with(mount.target())) {
            root.make_plain_file(&file.target)?;
        }
    }
    if !spec.mounts.is_empty() {
        return Ok(out);
    }
    let mut later = Vec::new();
    for file in out {
        if oci::of_the_kernel(&file.target) {
            later.push(file);
        } else {
            root.mount_file(&file.source, &file.target, file.read_only)?;
        }
    }
    Ok(later)
}

/// The container's own groups of version 1, side by side as programs look for them, to be shown at /sys/fs/cgroup. `None`
/// for version 2, whose one hierarchy the library mounts.
fn prepare_cgroups(order: &Order, cgroups: &Cgroups) -> Result<Option<PathBuf>, Error> {
    let views = cgroups.views(&order.cgroup());
    if views.is_empty() {
        return Ok(None);
    }
    let directory = order.run.join("cgroup");
    fs::create_dir(&directory).map_err(failed("make a directory"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", &directory, "tmpfs", flags, Some(c"mode=755,size=64k"))
        .map_err(failed("mount a place for cgroups"))?;
    for (name, group) in views {
        let target = directory.join(name);
        // The library makes the groups too, once it puts the container in.
        fs::create_dir_all(&group).and_then(|()| fs::create_dir(&target)).map_err(failed("make a cgroup"))?;
        mount_view(&group, &target)?;
    }
    Ok(Some(directory))
}

/// Never swapped out, where the kernel can promise that (6.4 and later).
fn mount_memory(target: &Path, bytes: usize, inodes: usize) -> Result<(), Error> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = |extra: &str| {
        std::ffi::CString::new(format!("mode=0700,size={bytes},nr_inodes={inodes}{extra}")).unwrap_or_default()
    };
    mount("tmpfs", target, "tmpfs", flags, Some(options(",noswap").as_c_str()))
        .or_else(|_| mount("tmpfs", target, "tmpfs", flags, Some(options("").as_c_str())))
        .map_err(failed("mount memory for secrets"))
}

fn write_file(directory: &Path, number: usize, bytes: &[u8], uid: u32, gid: u32, mode: u32) -> Result<PathBuf, Error> {
    let path = directory.join(number.to_string());
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(bytes)?;
        fchown(&file, Some(uid), Some(gid))?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
    };
    write().map_err(failed("write a file for the container"))?;
    Ok(path)
}

/// Whether the container's network is not this process's, which is the host's.
fn own_network(spec: &ContainerSpec) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Some(path) = &spec.netns else { return true };
    let id = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    match (id(path), id(Path::new("/proc/self/ns/net"))) {
        (Ok(theirs), Ok(ours)) => theirs != ours,
        _ => false,
    }
}

/// The directories of `cpus` in which processors count their throttling; empty where none does.
fn throttle_counters(cpus: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cpus) else { return Vec::new() };
    let numbered = |name: &str| name.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok());
    let mut out: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(numbered))
        .map(|entry| entry.path().join("thermal_throttle"))
        .filter(|path| path.exists())
        .collect();
    out.sort_unstable();
    out
}

/// What is needed no more: the spec (it has the environment) and the library's own notes. And this process becomes the
/// last that the kernel would kill for want of memory.
fn tidy_up(order: &Order, made: &Made) {
    let _ = fs::remove_dir_all(order.run.join("bundle"));
    let _ = fs::remove_file(order.run.join("console.sock"));
    if let Some(notes) = made.notify.parent().and_then(|notes| fs::read_dir(notes).ok()) {
        for entry in notes.flatten().filter(|entry| entry.path() != made.notify) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::write("/proc/self/oom_score_adj", "-999");
}

/// Binds a socket whose path may be longer than a socket address can be.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = File::from(open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
    UnixListener::bind(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
}

/// The terminal's master side, sent by the container's process 1 while it was set up.
fn receive_terminal(listener: &UnixListener) -> io::Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    listener.set_nonblocking(true)?;
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0u8; 256];
    recvmsg(&stream, &mut [io::IoSliceMut::new(&mut data)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no terminal was sent"))
}

/// An error with all its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        next = cause.source();
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn counters_of_throttling() {
        let cpus = tempfile::tempdir().unwrap();
        for path in ["cpu0/thermal_throttle", "cpu11/thermal_throttle", "cpu1/cache", "cpuidle/thermal_throttle"] {
            fs::create_dir_all(cpus.path().join(path)).unwrap();
        }
        let found = throttle_counters(cpus.path());
        assert_eq!(found, ["cpu0", "cpu11"].map(|cpu| cpus.path().join(cpu).join("thermal_throttle")));
        assert!(throttle_counters(&cpus.path().join("nowhere")).is_empty());
    }
}
