//! Hard links: to a file of the same layer, or to one of a layer below, which is then copied up. The target
//! is looked up within the layer's directory like any other path.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, linkat};
use rustix::io::Errno;

use super::attributes::{attributes, set_times};
use super::path::EntryPath;
use super::{Error, Unpacker, bad_path, io_error, new_file, parents, raw_io, refused, show, tree};
use crate::tarstream::Entry;

impl Unpacker<'_> {
    pub(super) fn hardlink(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &EntryPath,
        whole: &[u8],
        entry: &Entry,
    ) -> Result<(), Error> {
        let target = EntryPath::parse(&entry.link, self.limits).map_err(|e| bad_path(&entry.link, e))?;
        if target.is_root() {
            return Err(refused(&entry.path, "a hard link to the root"));
        }
        let found = match self.tree.directory(&target.parent) {
            Ok(dir) => {
                let stat = tree::lookup(dir.as_fd(), &target.name).map_err(io_error("look up", &entry.link))?;
                stat.filter(|stat| !tree::is_whiteout(stat)).map(|stat| (dir, stat))
            }
            Err(Errno::NOENT) => None,
            Err(error) => return Err(io_error("open the directory of", &entry.link)(error)),
        };
        let Some((dir, stat)) = found else {
            return self.link_below(parent, path, whole, entry, &target);
        };
        let existing = tree::lookup(parent, &path.name).map_err(io_error("look up", whole))?;
        if existing.is_some_and(|e| (e.st_dev, e.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        self.make_way(parent, &path.name, whole, false)?;
        linkat(dir, target.name.as_slice(), parent, path.name.as_slice(), AtFlags::empty())
            .map_err(io_error("link", whole))
    }

    /// A hard link to a file of a layer below: the file is copied up, as the overlay itself would do.
    fn link_below(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &EntryPath,
        whole: &[u8],
        entry: &Entry,
        target: &EntryPath,
    ) -> Result<(), Error> {
        let Some((source, stat)) = self.parents.file(&target.joined()) else {
            return Err(refused(&entry.path, &format!("it links to {:?}, which is no file", show(&entry.link))));
        };
        self.make_way(parent, &path.name, whole, false)?;
        let mut file = new_file(parent, &path.name, whole)?;
        let mut source = File::from(source);
        loop {
            let read = source.read(&mut self.buffer).map_err(raw_io("read", whole))?;
            if read == 0 {
                break;
            }
            self.budgets.bytes.spend(read as u64)?;
            file.write_all(&self.buffer[..read]).map_err(raw_io("write", whole))?;
        }
        let like = Entry {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            xattrs: parents::capability(source.as_fd()),
            ..entry.clone()
        };
        attributes(file.as_fd(), &like)?;
        let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        set_times(file.as_fd(), (stat.st_mtime, nanos), whole)
    }
}
