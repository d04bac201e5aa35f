//! Network namespaces: making, pinning, finding and entering them.
//!
//! Decides nothing. Must never enter a namespace on a thread that it did not start itself: [`Namespace::run`] starts a
//! short-lived thread, enters there, and the thread ends. Called by the driver and, for sockets, by the name server.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::fs::fstat;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Magic number of the kernel's namespace file system (`NSFS_MAGIC`).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Why a call on a namespace failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace is already pinned at this path.
    #[error("{path}: a network namespace is pinned here already; delete it first or open it")]
    AlreadyExists {
        /// The path asked for.
        path: PathBuf,
    },
    /// Nothing is at this path.
    #[error("{path}: no network namespace is pinned here")]
    NotFound {
        /// The path asked for.
        path: PathBuf,
    },
    /// Something is at this path, and it is not a network namespace (a pin that a reboot left behind, for example).
    #[error("{path}: not a network namespace; remove the file if it is a stale pin")]
    NotANamespace {
        /// The path asked for.
        path: PathBuf,
    },
    /// A kernel parameter's name is not one of this network namespace.
    #[error("kernel parameter {key:?}: expected a path below net/, such as net/ipv4/ip_forward")]
    BadSysctl {
        /// The name asked for.
        key: String,
    },
    /// A kernel parameter could not be read or written.
    #[error("kernel parameter {key}: {source}")]
    Sysctl {
        /// The name asked for.
        key: String,
        /// What the kernel said; `NotFound` where this kernel lacks the parameter.
        source: io::Error,
    },
    /// Any other refusal of the operating system.
    #[error("{what}: {source}")]
    Os {
        /// The step that failed, with its object.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

fn os(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Os { what, source }
}

fn os_errno(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Error {
    let what = what.into();
    move |errno| Error::Os { what, source: errno.into() }
}

/// Identity of a namespace: the same pair means the same namespace, whatever path it was opened by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// Device number of the namespace file system.
    pub device: u64,
    /// Inode number of the namespace.
    pub inode: u64,
}

/// An open network namespace. Clones share the descriptor; the namespace lives at least as long as any of them.
#[derive(Debug, Clone)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Namespace {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").map_err(os("open the current network namespace"))?;
        Ok(Self { fd: Arc::new(file.into()) })
    }

    /// Makes a namespace without a name; it ends with its last process, link owner or descriptor.
    pub fn create_unnamed() -> Result<Self> {
        on_thread(|| {
            unshare_network()?;
            Self::current()
        })?
    }

    /// Makes a namespace and pins it at `path` (a bind mount over an empty file, in the caller's mount namespace). The
    /// directory must exist. Takes some milliseconds, so call it off the runtime's workers.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self::create_with(path, || ())?.0)
    }

    /// The same, and runs `work` inside of it, as [`Namespace::run`] does, on the thread that made it.
    pub fn create_with<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<(Self, T)> {
        let made = OpenOptions::new().write(true).create_new(true).open(path);
        match made {
            Ok(_) => {}
            // A file without a namespace on it is a pin that a reboot left: its mount is gone, so it can be used again.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match Self::open(path) {
                Ok(_) => {
                    return Err(Error::AlreadyExists { path: path.to_owned() });
                }
                Err(Error::NotANamespace { .. }) if is_empty_file(path) => {}
                Err(e) => return Err(e),
            },
            Err(e) => return Err(os(format!("create {}", path.display()))(e)),
        }
        let pinned = on_thread(|| {
            unshare_network()?;
            mount_bind("/proc/thread-self/ns/net", path)
                .map_err(os_errno(format!("pin a network namespace at {}", path.display())))?;
            Ok((Self::current()?, work()))
        });
        let made = pinned.and_then(|inner| inner);
        if made.is_err() {
            // Best effort: the error that matters is the first one.
            let _ = delete(path);
        }
        made
    }

    /// Opens the namespace that is pinned at `path` (or any `/proc/<pid>/ns/net`).
    pub fn open(path: &Path) -> Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound { path: path.to_owned() });
            }
            Err(e) => return Err(os(format!("open {}", path.display()))(e)),
        };
        let info = rustix::fs::fstatfs(&file).map_err(os_errno(format!("inspect {}", path.display())))?;
        if u64::try_from(info.f_type).ok() != Some(NSFS_MAGIC) {
            return Err(Error::NotANamespace { path: path.to_owned() });
        }
        Ok(Self { fd: Arc::new(file.into()) })
    }

    /// Opens the namespace at `path`, or makes it.
    pub fn open_or_create(path: &Path) -> Result<Self> {
        match Self::open(path) {
            Err(Error::NotFound { .. } | Error::NotANamespace { .. }) => Self::create(path),
            other => other,
        }
    }

    /// Identity of this namespace.
    pub fn id(&self) -> Result<Id> {
        let stat = fstat(&*self.fd).map_err(os_errno("inspect a network namespace"))?;
        Ok(Id { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Runs `work` on a short-lived thread inside this namespace and waits for it (about 50 µs beyond the work itself).
    /// Processes that the closure starts, and sockets that it opens, belong to this namespace. A panic of `work` is passed
    /// on to the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread(|| {
            self.enter()?;
            Ok(work())
        })?
    }

    /// Sets a kernel parameter of this namespace. `key` is a path below `/proc/sys`, such as
    /// `net/ipv4/conf/eth0/rp_filter` (slashes, as an interface name may hold dots).
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.set_sysctls(&[(key, value)])
    }

    /// Sets several kernel parameters with one thread; stops at the first that fails.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                let path = sysctl_path(key)?;
                let written = OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(value.as_bytes()));
                written.map_err(|source| Error::Sysctl { key: (*key).to_owned(), source })?;
            }
            Ok(())
        })?
    }

    /// Reads a kernel parameter of this namespace, without the final newline.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = sysctl_path(key)?;
        self.run(|| {
            let mut text = String::new();
            let read = File::open(path).and_then(|f| f.take(4096).read_to_string(&mut text));
            read.map_err(|source| Error::Sysctl { key: key.to_owned(), source })?;
            Ok(text.trim_end().to_owned())
        })?
    }

    /// A non-blocking UDP socket bound to `address` inside this namespace.
    pub fn udp_socket(&self, address: SocketAddr) -> Result<UdpSocket> {
        let made = self.run(|| {
            let socket = UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        made.map_err(os(format!("bind UDP {address}")))
    }

    /// A non-blocking UDP socket and a non-blocking TCP listener, both on `address` inside this namespace.
    pub fn listeners(&self, address: SocketAddr) -> Result<(UdpSocket, TcpListener)> {
        let made = self.run(|| {
            let (udp, tcp) = (UdpSocket::bind(address)?, TcpListener::bind(address)?);
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok((udp, tcp))
        })?;
        made.map_err(os(format!("bind {address}")))
    }

    /// A non-blocking TCP listener on `address` inside this namespace.
    pub fn tcp_listener(&self, address: SocketAddr) -> Result<TcpListener> {
        let made = self.run(|| {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        made.map_err(os(format!("listen on TCP {address}")))
    }

    /// A non-blocking TCP socket of this namespace that is connected to nothing yet.
    pub fn tcp_socket(&self, v6: bool) -> Result<TcpStream> {
        let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let made =
            self.run(|| socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None));
        Ok(made?.map_err(os_errno("open a TCP socket"))?.into())
    }

    /// A blocking TCP connection to `address`, made inside this namespace within `timeout`.
    pub fn tcp_connect(&self, address: SocketAddr, timeout: Duration) -> Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&address, timeout))?.map_err(os(format!("connect to TCP {address}")))
    }

    fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(os_errno("enter a network namespace"))
    }
}

/// Removes the pin at `path`: unmounts and unlinks it. The namespace itself ends when nothing else holds it. Nothing at
/// `path` is a success.
pub fn delete(path: &Path) -> Result<()> {
    // Lazy, so that a mount namespace that still sees the pin can't keep it here.
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(e) => return Err(os_errno(format!("unmount {}", path.display()))(e)),
        }
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(os(format!("remove {}", path.display()))(e)),
    }
}

/// Names of the files in `dir`, sorted; no directory is no namespace. Stale pins are listed too, so that the caller can
/// delete them.
pub fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(os(format!("list {}", dir.display()))(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(os(format!("list {}", dir.display())))?;
        let is_file = entry.file_type().is_ok_and(|t| t.is_file());
        if let (true, Ok(name)) = (is_file, entry.file_name().into_string()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn is_empty_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() == 0)
}

/// Where a kernel parameter lives, if it is one that belongs to the network namespace.
fn sysctl_path(key: &str) -> Result<PathBuf> {
    let relative = Path::new(key);
    let plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
    if !plain || !relative.starts_with("net") {
        return Err(Error::BadSysctl { key: key.to_owned() });
    }
    Ok(Path::new("/proc/sys").join(relative))
}

fn unshare_network() -> Result<()> {
    // SAFETY: only a new network namespace is asked for; the file descriptor table stays shared, which is the one thing that
    // the function's contract is about. The thread is our own and ends with the caller's closure.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(os_errno("make a network namespace"))
}

/// Runs `work` on a thread of its own, so that a change of namespace dies with it.
fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let started = thread::Builder::new().name("netns".into()).stack_size(256 * 1024).spawn_scoped(scope, work);
        let handle = started.map_err(os("start a thread"))?;
        match handle.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn only_parameters_of_the_network_namespace_are_reached() {
        for good in ["net/ipv4/ip_forward", "net/ipv4/conf/eth0.7/rp_filter"] {
            assert!(sysctl_path(good).is_ok(), "{good}");
        }
        for bad in
            ["kernel/core_pattern", "/net/ipv4/ip_forward", "net/../kernel/core_pattern", "../net", "", "network/x"]
        {
            assert!(matches!(sysctl_path(bad), Err(Error::BadSysctl { .. })), "{bad}");
        }
    }
}
