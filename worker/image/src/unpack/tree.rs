//! One directory tree as a cage: every path is resolved by the kernel inside of it (`openat2` with
//! RESOLVE_IN_ROOT), so a link in the tree can lead anywhere in the tree and nowhere else. No function
//! here takes a path from the file system's root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags, fsetxattr, makedev, mknodat, openat2, statat,
    unlinkat,
};
use rustix::io::Errno;

/// The mark of overlayfs on a directory that hides all that lies below.
pub(super) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// `openat2` gives up with EAGAIN when it races with a rename elsewhere.
const RETRIES: usize = 64;

pub(super) struct Tree {
    root: OwnedFd,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a directory of the tree; links on the way are followed within the tree.
    pub(super) fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::empty())
    }

    /// Opens a directory of the tree if no component of its path is a link.
    pub(super) fn real_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS)
    }

    /// Opens whatever is at a path without following the last component and without touching it.
    pub(super) fn node(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::empty())
    }

    /// Opens a file of the tree for reading; not the last component may be a link.
    pub(super) fn file(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK, ResolveFlags::empty())
    }

    fn open(&self, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        for _ in 0..RETRIES {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }
}

/// What is at a name, links not followed; none if nothing is.
pub(super) fn lookup(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Overlayfs marks an absent file by a character device with the number 0/0.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(super) fn make_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
}

pub(super) fn make_opaque(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    fsetxattr(dir, OPAQUE_XATTR, b"y", XattrFlags::empty())
}

/// Removes a name and all below it. The depth of the tree is bounded by the limits on paths.
pub(super) fn remove(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<(), Errno> {
    if file_type(stat) != FileType::Directory {
        return unlinkat(dir, name, AtFlags::empty());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    for name in names(inner.as_fd())? {
        if let Some(stat) = lookup(inner.as_fd(), &name)? {
            remove(inner.as_fd(), &name, &stat)?;
        }
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// The names in a directory, `.` and `..` aside.
pub(super) fn names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}
