//! Owner, mode, times and extended attributes of what was unpacked, set through open descriptors. Decides
//! which attributes an image may set: never those that overlayfs takes its orders from.

use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, Gid, Mode, RawMode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr,
    futimens, utimensat,
};
use rustix::io::Errno;

use super::{Error, io_error, refused};
use crate::tarstream::Entry;

/// Owner first, since a change of owner takes setuid and capabilities away.
pub(super) fn attributes(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), Error> {
    set_owner(fd, entry.uid, entry.gid, &entry.path)?;
    for (name, value) in &entry.xattrs {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            return Err(refused(&entry.path, "an image may not set the attributes of overlayfs"));
        }
        let kept =
            name == b"security.capability" || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        if !kept {
            continue;
        }
        match fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            // A program whose capability is lost would fail later and in the dark.
            Err(Errno::NOTSUP) if name != b"security.capability" => {}
            Err(error) => return Err(io_error("set an attribute of", &entry.path)(error)),
        }
    }
    fchmod(fd, Mode::from_raw_mode(entry.mode as RawMode)).map_err(io_error("set the mode of", &entry.path))
}

/// The same for what can't be opened. The staging directory is private, so the name is still the node made.
pub(super) fn node_attributes(dir: BorrowedFd<'_>, name: &[u8], entry: &Entry, mode: bool) -> Result<(), Error> {
    let (uid, gid) = owner(entry.uid, entry.gid, &entry.path)?;
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(io_error("set the owner of", &entry.path))?;
    if mode {
        chmodat(dir, name, Mode::from_raw_mode(entry.mode as RawMode), AtFlags::empty())
            .map_err(io_error("set the mode of", &entry.path))?;
    }
    utimensat(dir, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(io_error("set the time of", &entry.path))
}

pub(super) fn set_owner(fd: BorrowedFd<'_>, uid: u32, gid: u32, path: &[u8]) -> Result<(), Error> {
    let (uid, gid) = owner(uid, gid, path)?;
    fchown(fd, Some(uid), Some(gid)).map_err(io_error("set the owner of", path))
}

/// The id of all ones means "leave it as it is" to the kernel.
fn owner(uid: u32, gid: u32, path: &[u8]) -> Result<(Uid, Gid), Error> {
    if uid == u32::MAX || gid == u32::MAX {
        return Err(refused(path, "its owner is out of range"));
    }
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

pub(super) fn set_times(fd: BorrowedFd<'_>, mtime: (i64, u32), path: &[u8]) -> Result<(), Error> {
    futimens(fd, &timestamps(mtime)).map_err(io_error("set the time of", path))
}

fn timestamps((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
