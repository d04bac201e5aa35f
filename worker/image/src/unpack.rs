//! Turns the tar of one layer into an overlayfs lower directory.
//!
//! Decides what may appear on this machine's disk: files, directories, links, pipes, and the handful of
//! harmless devices that images carry; owners, modes with setuid, times and attributes are kept;
//! whiteouts become those of overlayfs. Must never create, change or link anything outside of the
//! directory it was given, whatever the archive holds, nor let an archive forge overlayfs' own marks.
//!
//! Called by `load` and `import` with an empty staging directory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fchmod, makedev, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;

use crate::codec::limit_of;
use crate::limits::{Budget, LimitExceeded, Limits};
use crate::tarstream::{self, Entry, Kind, TarReader};

mod attributes;
mod link;
mod parents;
mod path;
mod tree;

use attributes::{attributes, node_attributes, set_owner, set_times};
use parents::Parents;
use path::{EntryPath, Meaning, PathError};
use tree::Tree;

/// Devices without power over the machine, by (major, minor): null, zero, full, random, urandom, tty,
/// console, ptmx. Some images put them into a chroot of their own.
const HARMLESS_DEVICES: [(u32, u32); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// Bytes of paths of directories that are remembered until their times can be set.
const DIRECTORY_BYTES: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("refusing entry {path:?}: {why}")]
    Refused { path: String, why: String },
    #[error("cannot {action} {path:?}")]
    Io {
        action: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("a layer's content")]
    Limit(#[from] LimitExceeded),
    #[error(transparent)]
    Tar(tarstream::Error),
}

/// Shared by all layers of one archive.
#[derive(Debug)]
pub(crate) struct Budgets {
    pub(crate) bytes: Budget,
    pub(crate) entries: Budget,
}

impl Budgets {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            bytes: Budget::new("unpacked bytes", limits.unpacked_bytes),
            entries: Budget::new("files of all layers", limits.entries),
        }
    }
}

/// Unpacks the layer `tar` into the empty directory `target`. `parents` are the directories of the layers
/// below, topmost first; links to their files and the modes of their directories are taken from there. `require_end`: a missing end mark of the
/// tar is an error.
pub(crate) fn unpack(
    tar: impl Read,
    require_end: bool,
    target: OwnedFd,
    parents: Vec<OwnedFd>,
    limits: &Limits,
    budgets: &mut Budgets,
) -> Result<(), Error> {
    let options = tarstream::Options { header_bytes: limits.header_bytes, require_end };
    let mut reader = TarReader::new(tar, options);
    let mut unpacker = Unpacker {
        tree: Tree::new(target),
        parents: Parents::new(parents),
        limits,
        budgets,
        cached: None,
        directories: Vec::new(),
        directory_bytes: 0,
        opaque_root: false,
        removed: false,
        buffer: vec![0; 128 << 10],
    };
    while let Some(entry) = reader.next_entry().map_err(tar_error)? {
        unpacker.budgets.entries.spend(1)?;
        unpacker.place(&entry, &mut reader)?;
    }
    reader.drain().map_err(tar_error)?;
    unpacker.finish()
}

fn tar_error(error: tarstream::Error) -> Error {
    if let tarstream::Error::Read(io) = &error
        && let Some(limit) = limit_of(io)
    {
        return Error::Limit(limit);
    }
    Error::Tar(error)
}

struct Unpacker<'a> {
    tree: Tree,
    parents: Parents,
    limits: &'a Limits,
    budgets: &'a mut Budgets,
    /// The directory of the last entry: archives list files by directory.
    cached: Option<(Vec<u8>, OwnedFd)>,
    /// Times of directories, set last because what is created in them changes them.
    directories: Vec<(Vec<u8>, (i64, u32))>,
    /// Bytes of their paths.
    directory_bytes: usize,
    opaque_root: bool,
    /// Whether placing the current entry removed another.
    removed: bool,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn place(&mut self, entry: &Entry, payload: &mut impl Read) -> Result<(), Error> {
        let path = EntryPath::parse(&entry.path, self.limits).map_err(|e| bad_path(&entry.path, e))?;
        let meaning = path.meaning().map_err(|e| bad_path(&entry.path, e))?;
        if meaning == Meaning::Ignored {
            return Ok(());
        }
        if path.is_root() {
            return self.root(entry);
        }
        let (parent_path, parent) = self.parent(&path.parent)?;
        let placed = match meaning {
            Meaning::Entry => self.entry(&path, entry, parent.as_fd(), payload),
            Meaning::Whiteout(hidden) => whiteout(parent.as_fd(), &hidden, &path),
            Meaning::Opaque if path.parent.is_empty() => {
                self.opaque_root = true;
                Ok(())
            }
            Meaning::Opaque => tree::make_opaque(parent.as_fd()).map_err(io_error("mark as opaque", &path.parent)),
            Meaning::Ignored => Ok(()),
        };
        placed?;
        // What was removed may have been on the way to this directory: resolve it anew next time.
        if !std::mem::take(&mut self.removed) {
            self.cached = Some((parent_path, parent));
        }
        Ok(())
    }

    fn root(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(refused(&entry.path, "only a directory can be the root of a layer"));
        }
        attributes(self.tree.root(), entry)?;
        self.directories.push((Vec::new(), entry.mtime));
        Ok(())
    }

    /// The directory that an entry goes into, made if the archive doesn't list it.
    fn parent(&mut self, path: &[u8]) -> Result<(Vec<u8>, OwnedFd), Error> {
        match self.cached.take() {
            Some((cached, fd)) if cached == path => return Ok((cached, fd)),
            _ => {}
        }
        match self.tree.directory(path) {
            Ok(fd) => return Ok((path.to_vec(), fd)),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(io_error("open the directory", path)(error)),
        }
        let mut current = self.tree.directory(b"").map_err(io_error("open the directory", b""))?;
        let mut end = 0;
        for part in path.split(|b| *b == b'/') {
            end += part.len() + usize::from(end > 0);
            let prefix = &path[..end];
            current = match self.tree.directory(prefix) {
                Ok(fd) => fd,
                Err(Errno::NOENT) if tree::lookup(current.as_fd(), part).is_ok_and(|there| there.is_some()) => {
                    let why = format!("{:?} on the way to it is a link to no directory of this layer", show(prefix));
                    return Err(refused(path, &why));
                }
                Err(Errno::NOENT) => self.implied_directory(current.as_fd(), prefix, part)?,
                Err(error) => return Err(io_error("open the directory", prefix)(error)),
            };
        }
        Ok((path.to_vec(), current))
    }

    /// A directory that the layer needs but doesn't list looks as it does in the layers below.
    fn implied_directory(&mut self, parent: BorrowedFd<'_>, path: &[u8], name: &[u8]) -> Result<OwnedFd, Error> {
        self.budgets.entries.spend(1)?;
        let fd = new_directory(parent, name, path)?;
        let like = self.parents.directory(path);
        let (mode, uid, gid) = like.map_or((0o755, 0, 0), |s| (s.st_mode & 0o7777, s.st_uid, s.st_gid));
        set_owner(fd.as_fd(), uid, gid, path)?;
        fchmod(&fd, Mode::from_raw_mode(mode)).map_err(io_error("set the mode of", path))?;
        Ok(fd)
    }

    fn entry(
        &mut self,
        path: &EntryPath,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        payload: &mut impl Read,
    ) -> Result<(), Error> {
        let whole = path.joined();
        match entry.kind {
            Kind::Directory => {
                let fd = match self.make_way(parent, &path.name, &whole, true)? {
                    Way::Keep => open_directory(parent, &path.name, &whole)?,
                    Way::Free { hidden } => {
                        let fd = new_directory(parent, &path.name, &whole)?;
                        if hidden {
                            tree::make_opaque(fd.as_fd()).map_err(io_error("mark as opaque", &whole))?;
                        }
                        fd
                    }
                };
                attributes(fd.as_fd(), entry)?;
                self.directory_bytes += whole.len();
                if self.directory_bytes > DIRECTORY_BYTES {
                    // Its time will be that of the last file put into it: better than memory without end.
                    return set_times(fd.as_fd(), entry.mtime, &whole);
                }
                self.directories.push((whole, entry.mtime));
                Ok(())
            }
            Kind::File => {
                self.budgets.bytes.could_spend(entry.size)?;
                self.make_way(parent, &path.name, &whole, false)?;
                self.file(parent, &path.name, &whole, entry, payload)
            }
            Kind::Symlink => {
                LimitExceeded::check("bytes of a link", entry.link.len() as u64, 4095)?;
                self.make_way(parent, &path.name, &whole, false)?;
                symlinkat(entry.link.as_slice(), parent, path.name.as_slice())
                    .map_err(io_error("create the link", &whole))?;
                node_attributes(parent, &path.name, entry, false)
            }
            Kind::Hardlink => self.hardlink(parent, path, &whole, entry),
            Kind::CharDevice | Kind::BlockDevice => self.device(parent, path, &whole, entry),
            Kind::Fifo => self.special(parent, path, &whole, entry, FileType::Fifo),
        }
    }

    fn device(&mut self, parent: BorrowedFd<'_>, path: &EntryPath, whole: &[u8], entry: &Entry) -> Result<(), Error> {
        if entry.kind == Kind::CharDevice && HARMLESS_DEVICES.contains(&entry.device) {
            return self.special(parent, path, whole, entry, FileType::CharacterDevice);
        }
        // Every container gets a /dev of its own over this one: dropping it changes nothing that anyone sees.
        if whole.starts_with(b"dev/") {
            tracing::debug!(path = %show(whole), device = ?entry.device, "device node of an image dropped");
            return Ok(());
        }
        let (major, minor) = entry.device;
        Err(refused(&entry.path, &format!("device {major}:{minor} would give access to this machine")))
    }

    fn special(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &EntryPath,
        whole: &[u8],
        entry: &Entry,
        kind: FileType,
    ) -> Result<(), Error> {
        self.make_way(parent, &path.name, whole, false)?;
        let device = makedev(entry.device.0, entry.device.1);
        mknodat(parent, path.name.as_slice(), kind, Mode::empty(), device).map_err(io_error("create", whole))?;
        node_attributes(parent, &path.name, entry, true)
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        whole: &[u8],
        entry: &Entry,
        payload: &mut impl Read,
    ) -> Result<(), Error> {
        let mut file = new_file(parent, name, whole)?;
        let mut left = entry.size;
        while left > 0 {
            let read = payload.read(&mut self.buffer).map_err(|e| tar_error(tarstream::Error::Read(e)))?;
            // The reader gives an error at an early end, so 0 can't come first.
            if read == 0 {
                break;
            }
            self.budgets.bytes.spend(read as u64)?;
            file.write_all(&self.buffer[..read]).map_err(raw_io("write", whole))?;
            left = left.saturating_sub(read as u64);
        }
        attributes(file.as_fd(), entry)?;
        set_times(file.as_fd(), entry.mtime, whole)
    }

    /// Removes what is in the way of a new entry; a directory stays for another directory.
    fn make_way(&mut self, dir: BorrowedFd<'_>, name: &[u8], whole: &[u8], directory: bool) -> Result<Way, Error> {
        let Some(stat) = tree::lookup(dir, name).map_err(io_error("look up", whole))? else {
            return Ok(Way::Free { hidden: false });
        };
        if directory && tree::file_type(&stat) == FileType::Directory {
            return Ok(Way::Keep);
        }
        tree::remove(dir, name, &stat).map_err(io_error("replace", whole))?;
        self.removed = true;
        Ok(Way::Free { hidden: tree::is_whiteout(&stat) })
    }

    fn finish(self) -> Result<(), Error> {
        if self.opaque_root {
            self.hide_all_below()?;
        }
        for (path, mtime) in &self.directories {
            // Replaced by something else later on, or reached through a link: then it isn't this entry's any more.
            if let Ok(dir) = self.tree.real_directory(path) {
                set_times(dir.as_fd(), *mtime, path)?;
            }
        }
        Ok(())
    }

    /// Overlayfs heeds no opaque mark on a layer's root, so each name below is hidden by itself.
    fn hide_all_below(&self) -> Result<(), Error> {
        for name in self.parents.root_names() {
            let root = self.tree.root();
            match tree::lookup(root, &name).map_err(io_error("look up", &name))? {
                None => tree::make_whiteout(root, &name).map_err(io_error("hide", &name))?,
                Some(stat) if tree::file_type(&stat) == FileType::Directory => {
                    let dir = open_directory(root, &name, &name)?;
                    tree::make_opaque(dir.as_fd()).map_err(io_error("mark as opaque", &name))?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

enum Way {
    /// A directory is there already.
    Keep,
    /// Nothing is there (any more); `hidden`: a whiteout was, so the layers below must stay hidden.
    Free { hidden: bool },
}

fn whiteout(dir: BorrowedFd<'_>, hidden: &[u8], path: &EntryPath) -> Result<(), Error> {
    match tree::lookup(dir, hidden).map_err(io_error("look up", hidden))? {
        None => tree::make_whiteout(dir, hidden).map_err(io_error("create the whiteout", &path.joined())),
        // A whiteout speaks of the layers below only: this layer's own directory stays, and hides theirs.
        Some(stat) if tree::file_type(&stat) == FileType::Directory => {
            let inner = open_directory(dir, hidden, hidden)?;
            tree::make_opaque(inner.as_fd()).map_err(io_error("mark as opaque", hidden))
        }
        Some(_) => Ok(()),
    }
}

fn new_directory(parent: BorrowedFd<'_>, name: &[u8], whole: &[u8]) -> Result<OwnedFd, Error> {
    mkdirat(parent, name, Mode::RWXU).map_err(io_error("create the directory", whole))?;
    open_directory(parent, name, whole)
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8], whole: &[u8]) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty()).map_err(io_error("open the directory", whole))
}

fn new_file(parent: BorrowedFd<'_>, name: &[u8], whole: &[u8]) -> Result<File, Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(io_error("create", whole))?;
    Ok(File::from(fd))
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(256)]).into_owned()
}

fn refused(path: &[u8], why: &str) -> Error {
    Error::Refused { path: show(path), why: why.to_owned() }
}

fn bad_path(path: &[u8], error: PathError) -> Error {
    match error {
        PathError::Limit(limit) => Error::Limit(limit),
        other => refused(path, &other.to_string()),
    }
}

fn io_error(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    let path = show(path);
    move |errno| Error::Io { action, path, source: errno.into() }
}

fn raw_io(action: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> Error {
    let path = show(path);
    move |source| Error::Io { action, path, source }
}
