//! A last look around, from inside of the container, before anything of the image runs.
//!
//! Decides whether the kernel's file systems are what they should be, and whether what must be masked or read-only is,
//! however the mounts came about: links in images and volumes, races and the container library are all behind us here.
//! Changes nothing. Called in the container's process 1, when everything is mounted.

use std::io;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use rustix::fs::{FileType, Mode, OFlags, StatVfsMountFlags, fstat, fstatfs, fstatvfs, major, minor, open};
use rustix::io::Errno;

/// What should be mounted where: the magic numbers of statfs(2).
const KINDS: &[(&str, i64)] = &[
    ("/", libc::OVERLAYFS_SUPER_MAGIC),
    ("/proc", libc::PROC_SUPER_MAGIC),
    ("/sys", SYSFS_MAGIC),
    ("/dev", libc::TMPFS_MAGIC),
];
const SYSFS_MAGIC: i64 = 0x6265_6572;
/// The number of the root directory of /proc: a directory further inside would pass for it else.
const PROC_ROOT: u64 = 1;

/// What is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A call that failed.
    #[error("look at {path} in the container: {source}")]
    Io {
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something else lies there.
    #[error("{path} in the container is not the kernel's own; a mount or a link covers it, choose other mount targets")]
    Covered {
        /// Where.
        path: PathBuf,
    },
    /// It can be seen.
    #[error("{path} in the container is not masked; choose other mount targets")]
    Bare {
        /// Where.
        path: PathBuf,
    },
    /// It can be changed.
    #[error("{path} in the container is not read-only; choose other mount targets")]
    Writable {
        /// Where.
        path: PathBuf,
    },
}

/// Looks at the kernel's file systems and at every path that the spec wants masked or read-only.
pub(super) fn file_systems(spec: &Spec) -> Result<(), Error> {
    for (path, kind) in KINDS {
        let place = look(Path::new(path))?;
        let proper = place
            .as_ref()
            .is_some_and(|place| place.kind == *kind && (*kind != libc::PROC_SUPER_MAGIC || place.inode == PROC_ROOT));
        if !proper {
            return Err(Error::Covered { path: path.into() });
        }
    }
    let linux = spec.linux().as_ref();
    for path in linux.and_then(|linux| linux.readonly_paths().as_ref()).into_iter().flatten().map(PathBuf::from) {
        let Some(place) = look(&path)? else { continue };
        if path.starts_with("/proc") && place.kind != libc::PROC_SUPER_MAGIC {
            return Err(Error::Covered { path });
        }
        if !place.read_only {
            return Err(Error::Writable { path });
        }
    }
    for path in linux.and_then(|linux| linux.masked_paths().as_ref()).into_iter().flatten().map(PathBuf::from) {
        if look(&path)?.is_some_and(|place| !place.is_mask()) {
            return Err(Error::Bare { path });
        }
    }
    Ok(())
}

/// What is seen at a path.
struct Place {
    kind: i64,
    inode: u64,
    file: FileType,
    device: (u32, u32),
    read_only: bool,
}

impl Place {
    /// /dev/null over a file, or a read-only file system in memory over a directory.
    fn is_mask(&self) -> bool {
        match self.file {
            FileType::CharacterDevice => self.device == (1, 3),
            FileType::Directory => self.kind == libc::TMPFS_MAGIC && self.read_only,
            _ => false,
        }
    }
}

/// `None` when there is nothing.
fn look(path: &Path) -> Result<Option<Place>, Error> {
    let failed = |errno: Errno| Error::Io { path: path.to_owned(), source: errno.into() };
    let fd = match open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    let stat = fstat(&fd).map_err(failed)?;
    Ok(Some(Place {
        kind: fstatfs(&fd).map_err(failed)?.f_type,
        inode: stat.st_ino,
        file: FileType::from_raw_mode(stat.st_mode),
        device: (major(stat.st_rdev), minor(stat.st_rdev)),
        read_only: fstatvfs(&fd).map_err(failed)?.f_flag.contains(StatVfsMountFlags::RDONLY),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_masked() {
        let place = |kind, file, device, read_only| Place { kind, inode: 7, file, device, read_only };
        let (tmpfs, sysfs) = (libc::TMPFS_MAGIC, SYSFS_MAGIC);
        for (what, place, masked) in [
            ("null", place(tmpfs, FileType::CharacterDevice, (1, 3), false), true),
            ("another device", place(tmpfs, FileType::CharacterDevice, (1, 5), true), false),
            ("an empty directory", place(tmpfs, FileType::Directory, (0, 0), true), true),
            ("one that can be written", place(tmpfs, FileType::Directory, (0, 0), false), false),
            ("the kernel's own directory", place(sysfs, FileType::Directory, (0, 0), true), false),
            ("the kernel's own file", place(libc::PROC_SUPER_MAGIC, FileType::RegularFile, (0, 0), true), false),
            ("a link", place(tmpfs, FileType::Symlink, (0, 0), true), false),
        ] {
            assert_eq!(place.is_mask(), masked, "{what}");
        }
    }
}
