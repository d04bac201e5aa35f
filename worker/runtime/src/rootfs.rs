//! The root file system: the overlay mount, and looking into an image without being led out of it.
//!
//! Decides which images are refused (kernel directories that are links) and what is put right (a link in the place of
//! /etc/hosts). Every path below the root goes through openat2 with RESOLVE_IN_ROOT. Called by the supervisor, in a
//! mount namespace of its own, before anything of the image runs.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, open, openat, openat2, statat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A call that failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The image tries to lead the runtime somewhere.
    #[error("the image's {path} {problem}; it is refused, use another image")]
    Hostile {
        /// Where in the image.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// A file that nobody needs so large.
    #[error("the image's {path} is larger than {limit} bytes")]
    TooLarge {
        /// Where in the image.
        path: PathBuf,
        /// What is allowed.
        limit: usize,
    },
}

fn io_error(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Error {
    let path = path.into();
    move |errno| Error::Io { what, path, source: errno.into() }
}

/// What every container needs a place for, whatever its image brings.
const SKELETON: (&[&str], &[&str]) =
    (&["dev", "etc", "proc", "sys"], &["etc/hosts", "etc/hostname", "etc/resolv.conf"]);

/// Makes the layer below every image: places to mount on, so that they need not be made in each container's writable
/// layer, where they cost most of what a start costs the disk. Whatever an image has there instead covers it.
pub(crate) fn make_skeleton(at: &Path) -> io::Result<()> {
    for name in [""].iter().chain(SKELETON.0) {
        let path = at.join(name);
        fs::DirBuilder::new().recursive(true).create(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    for name in SKELETON.1 {
        let file = fs::OpenOptions::new().append(true).create(true).open(at.join(name))?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// Mounts layers (base first) and a writable one at `target`.
///
/// The directories are named by descriptor: their paths may hold any character, many fit into the one page of options,
/// and the container can't read the host's paths in its mount table. Devices are dead on it: nodes come with images,
/// and only version 1 cgroups have a filter for them.
pub(crate) fn mount_overlay(layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<(), Error> {
    let directory = |path: &Path| -> Result<OwnedFd, Error> {
        open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(io_error("open layer", path))
    };
    let lower = layers.iter().rev().map(|path| directory(path)).collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (directory(upper)?, directory(work)?);
    let named = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower: Vec<String> = lower.iter().map(named).collect();
    let options = format!("lowerdir={},upperdir={},workdir={}\0", lower.join(":"), named(&upper), named(&work));
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).ok();
    mount("overlay", target, "overlay", MountFlags::NODEV, options).map_err(io_error("mount overlay at", target))
}

/// An opened root, for lookups that stay below it.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens a mounted root file system.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let fd = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(io_error("open root file system", path))?;
        Ok(Root { fd, path: path.to_owned() })
    }

    /// Refuses an image whose kernel directories are not directories: what is mounted there would land elsewhere.
    pub(crate) fn check_kernel_directories(&self) -> Result<(), Error> {
        for name in ["proc", "sys", "dev"] {
            match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
                Ok(_) => {
                    return Err(Error::Hostile { path: Path::new("/").join(name), problem: "is not a directory" });
                }
                Err(errno) => return Err(io_error("look at", Path::new("/").join(name))(errno)),
            }
        }
        Ok(())
    }

    /// Content of a regular file, at most `limit` bytes; `None` when there is none.
    pub(crate) fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        // A pipe or a terminal in its place must not be waited for.
        let file = match self.resolve(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(fd) => fs::File::from(fd),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(io_error("open in the image", path)(errno)),
        };
        let stat = rustix::fs::fstat(&file).map_err(io_error("look at", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Hostile { path: path.into(), problem: "is not a regular file" });
        }
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|source| Error::Io {
            what: "read in the image",
            path: path.into(),
            source,
        })?;
        if bytes.len() > limit {
            return Err(Error::TooLarge { path: path.into(), limit });
        }
        Ok(Some(bytes))
    }

    /// Makes a directory and its parents as far as they are missing.
    ///
    /// Refused when a link leads it to where a kernel file system will be: `/app -> /proc/self/fd/7`.
    pub(crate) fn make_directory(&self, path: &Path) -> Result<(), Error> {
        let mut done = PathBuf::from("/");
        let mut parent =
            self.resolve(&done, OFlags::PATH | OFlags::DIRECTORY).map_err(io_error("open in the image", &done))?;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            done.push(name);
            parent = match self.resolve(&done, OFlags::PATH | OFlags::DIRECTORY) {
                Err(Errno::NOENT) => {
                    mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map_err(io_error("make directory", &done))?;
                    self.resolve(&done, OFlags::PATH | OFlags::DIRECTORY)
                        .map_err(io_error("open in the image", &done))?
                }
                other => other.map_err(io_error("open in the image", &done))?,
            };
            self.check_inside(&parent, &done)?;
        }
        Ok(())
    }

    /// Replaces anything that isn't a regular file at `path` by an empty one, so that a file can be mounted on it.
    /// A mount on a link would land on its target, wherever the image chose.
    pub(crate) fn make_plain_file(&self, path: &Path) -> Result<(), Error> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        self.make_directory(directory)?;
        let parent = self
            .resolve(directory, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(io_error("open in the image", directory))?;
        match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => return Ok(()),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(Error::Hostile { path: path.to_owned(), problem: "is a directory" });
            }
            Ok(_) => unlinkat(&parent, name, AtFlags::empty()).map_err(io_error("remove in the image", path))?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(io_error("look at", path)(errno)),
        }
        create_file(parent.as_fd(), name, path)
    }

    /// Mounts a file on a plain one of the container. A link in its place is refused, as is anything but a file.
    pub(crate) fn mount_file(&self, source: &Path, target: &Path, read_only: bool) -> Result<(), Error> {
        let place =
            self.resolve(target, OFlags::PATH | OFlags::NOFOLLOW).map_err(io_error("open in the image", target))?;
        let stat = rustix::fs::fstat(&place).map_err(io_error("look at", target))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Hostile { path: target.to_owned(), problem: "is not a regular file" });
        }
        bind(source, read_only)
            .and_then(|tree| {
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
                move_mount(&tree, "", &place, "", flags)
            })
            .map_err(io_error("mount a file on", target))
    }

    /// Refuses a mount that a link of the image would lead to a kernel file system, or over the whole root.
    ///
    /// What isn't there yet is made by whoever mounts, below what is. What other mounts bring along is not seen here:
    /// those can't cover the kernel's file systems either (see `oci`).
    pub(crate) fn check_mount_target(&self, path: &Path) -> Result<(), Error> {
        let path = crate::spec::normalize(path).unwrap_or_else(|| path.to_owned());
        if crate::oci::of_the_kernel(&path) {
            return Ok(());
        }
        let mut done = PathBuf::from("/");
        for component in path.components().skip(1) {
            done.push(component);
            let place = match self.resolve(&done, OFlags::PATH) {
                Ok(place) => place,
                Err(Errno::NOENT) if self.points_to_the_kernel(&done) => {
                    return Err(Error::Hostile { path: done, problem: "is a link into a kernel file system" });
                }
                // Nothing, or a link to nothing, which another mount may bring.
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(io_error("open in the image", done)(errno)),
            };
            self.check_inside(&place, &done)?;
            if done == path && self.is_root(&place) {
                return Err(Error::Hostile { path: done, problem: "is a link to the root" });
            }
        }
        Ok(())
    }

    /// Whether a link's text names what is not there yet, as /proc/sys.
    fn points_to_the_kernel(&self, link: &Path) -> bool {
        let Ok(fd) = self.resolve(link, OFlags::PATH | OFlags::NOFOLLOW) else { return false };
        let Ok(text) = rustix::fs::readlinkat(&fd, "", Vec::new()) else { return false };
        let target = Path::new(OsStr::from_bytes(text.as_bytes()));
        let target = link.parent().unwrap_or(link).join(target);
        crate::spec::normalize(&target).is_some_and(|target| crate::oci::of_the_kernel(&target))
    }

    fn is_root(&self, place: &OwnedFd) -> bool {
        let id = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        matches!((id(place), id(&self.fd)), (Ok(place), Ok(root)) if place == root)
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.fd, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The directory's real place must not be below what will be /proc, /sys or /dev.
    fn check_inside(&self, directory: &OwnedFd, shown: &Path) -> Result<(), Error> {
        let real = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).map_err(|source| Error::Io {
            what: "look at",
            path: shown.to_owned(),
            source,
        })?;
        let inner = real.strip_prefix(&self.path).unwrap_or(Path::new(""));
        let direct = shown.strip_prefix("/").unwrap_or(shown);
        // Said openly (a secret in /dev/shm, say) it is a matter of the wish; a link that leads there is a trick.
        if ["proc", "sys", "dev"].iter().any(|kernel| inner.starts_with(kernel) && !direct.starts_with(kernel)) {
            return Err(Error::Hostile { path: shown.to_owned(), problem: "is a link into a kernel file system" });
        }
        Ok(())
    }
}

/// A view of a file or directory that is mounted nowhere yet: no devices, no programs, no set-user-id.
fn bind(source: &Path, read_only: bool) -> Result<OwnedFd, Errno> {
    let flags = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    detached(source, if read_only { flags | libc::MOUNT_ATTR_RDONLY } else { flags })
}

/// A view of a file or directory that is mounted nowhere yet, with these `MOUNT_ATTR_` flags.
pub(crate) fn detached(source: &Path, flags: u64) -> Result<OwnedFd, Errno> {
    let tree = open_tree(rustix::fs::CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let attributes = libc::mount_attr { attr_set: flags, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is empty and ends with a zero; the kernel reads the structure, whose size it is told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if done == 0 { Ok(tree) } else { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)) }
}

/// Mounts a read-only view of a directory of the host at a path that no container can have touched.
pub(crate) fn mount_view(source: &Path, target: &Path) -> Result<(), Error> {
    bind(source, true)
        .and_then(|tree| move_mount(&tree, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
        .map_err(io_error("show in the container", source))
}

fn create_file(parent: rustix::fd::BorrowedFd<'_>, name: &OsStr, shown: &Path) -> Result<(), Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop).map_err(io_error("make file", shown))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::os::unix::fs::symlink;

    use super::*;

    fn image() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        (dir, root)
    }

    #[test]
    fn the_skeleton_has_places_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("skeleton");
        for _ in 0..2 {
            make_skeleton(&at).unwrap();
        }
        let root = Root::open(&at).unwrap();
        root.check_kernel_directories().unwrap();
        for name in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
            assert_eq!(root.read(name, 10).unwrap().unwrap(), b"", "{name}");
            assert_eq!(fs::metadata(at.join(name)).unwrap().permissions().mode() & 0o777, 0o644, "{name}");
        }
        assert_eq!(fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn links_stay_inside() {
        let (dir, root) = image();
        let inside = dir.path().join("root");
        symlink("../../../../outside", inside.join("up")).unwrap();
        symlink(dir.path().join("outside"), inside.join("absolute")).unwrap();
        assert_eq!(root.read("up", 100).unwrap(), None);
        assert_eq!(root.read("absolute", 100).unwrap(), None);
        symlink("/", inside.join("self")).unwrap();
        root.make_directory(Path::new("/self/a/b")).unwrap();
        assert!(inside.join("a/b").is_dir());
    }

    #[test]
    fn reading_is_bounded_and_picky() {
        let (dir, root) = image();
        let inside = dir.path().join("root");
        fs::write(inside.join("big"), vec![b'x'; 101]).unwrap();
        assert!(matches!(root.read("big", 100), Err(Error::TooLarge { .. })));
        assert_eq!(root.read("big", 101).unwrap().unwrap().len(), 101);
        rustix::fs::mknodat(rustix::fs::CWD, inside.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        assert!(matches!(root.read("pipe", 100), Err(Error::Hostile { .. })), "a pipe would block for ever");
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_replaced() {
        let (dir, root) = image();
        let inside = dir.path().join("root");
        fs::create_dir(inside.join("etc")).unwrap();
        symlink(dir.path().join("outside"), inside.join("etc/hosts")).unwrap();
        root.make_plain_file(Path::new("/etc/hosts")).unwrap();
        assert!(inside.join("etc/hosts").symlink_metadata().unwrap().is_file());
        root.make_plain_file(Path::new("/run/secrets/one")).unwrap();
        assert!(inside.join("run/secrets/one").is_file());
        assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "untouched");
    }

    #[test]
    fn kernel_directories_are_directories() {
        let (dir, root) = image();
        let inside = dir.path().join("root");
        root.check_kernel_directories().unwrap();
        for name in ["proc", "sys", "dev"] {
            symlink("/tmp", inside.join(name)).unwrap();
            assert!(root.check_kernel_directories().is_err(), "{name} as a link");
            fs::remove_file(inside.join(name)).unwrap();
            fs::create_dir(inside.join(name)).unwrap();
        }
        root.check_kernel_directories().unwrap();
        for (name, fine) in [
            ("proc", false),
            ("sys", false),
            ("dev", false),
            ("proc/sys", false),
            ("tmp", true),
            ("new", true),
            ("", false),
        ] {
            fs::create_dir_all(inside.join("tmp")).unwrap();
            symlink(Path::new("/").join(name), inside.join("app")).unwrap();
            assert_eq!(root.check_mount_target(Path::new("/app")).is_ok(), fine, "a mount led to /{name}");
            let below = root.check_mount_target(Path::new("/app/x"));
            assert_eq!(below.is_ok(), fine || name.is_empty(), "a mount led below /{name}");
            assert_eq!(root.check_mount_target(Path::new("/tmp/../app")).is_ok(), fine);
            fs::remove_file(inside.join("app")).unwrap();
        }
        root.check_mount_target(Path::new("/dev/shm/said/openly")).unwrap();
        symlink("/proc/self/fd/7", inside.join("work")).unwrap();
        fs::create_dir_all(inside.join("proc/self/fd/7")).unwrap();
        assert!(root.make_directory(Path::new("/work")).is_err(), "a working directory by descriptor");
    }
}
