//! The identity on disk: `ca.crt`, `node.crt` and `node.key` in a directory that holds nothing else. The three change
//! together or not at all: a new directory is filled beside the old one and the two are exchanged in one step.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Clock, Error, Identity};

const ROOT: &str = "ca.crt";
const CHAIN: &str = "node.crt";
const KEY: &str = "node.key";

/// No part of an identity is anywhere near this size.
const MAX_FILE: u64 = 1024 * 1024;

impl Identity {
    /// Reads the identity in `dir`; `None` when there is none.
    ///
    /// # Errors
    /// Files that are missing, can't be read or don't fit together.
    pub fn load(dir: &Path, clock: &Clock) -> Result<Option<Self>, Error> {
        match fs::symlink_metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::File { path: dir.to_owned(), doing: "read", source }),
            Ok(_) => {}
        }
        let (root, chain, key) = (read(&dir.join(ROOT))?, read(&dir.join(CHAIN))?, read(&dir.join(KEY))?);
        Self::new(&root, &chain, &key, clock).map(Some)
    }

    /// Writes the identity to `dir`, in place of the one that may be there.
    ///
    /// # Errors
    /// A directory that can't be written; what was there before stays whole.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let failed = |source| Error::File { path: dir.to_owned(), doing: "written", source };
        let fresh = beside(dir);
        remove(&fresh).map_err(failed)?;
        let parts = [(ROOT, &self.root_pem), (CHAIN, &self.chain_pem), (KEY, &self.key_pem)];
        fill(&fresh, &parts).and_then(|()| put(&fresh, dir)).map_err(failed)
    }

    /// Removes the identity from the disk; nothing there is fine.
    ///
    /// # Errors
    /// A directory that can't be removed.
    pub fn remove(dir: &Path) -> Result<(), Error> {
        // The key first: without it the rest is worth nothing.
        for path in [dir.join(KEY), beside(dir), dir.to_owned()] {
            remove(&path).map_err(|source| Error::File { path, doing: "removed", source })?;
        }
        Ok(())
    }
}

fn beside(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn read(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)).map_err(|source| Error::File {
        path: path.to_owned(),
        doing: "read",
        source,
    })?;
    Ok(text)
}

fn fill(dir: &Path, parts: &[(&str, &String)]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    for (name, text) in parts {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(name))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
    }
    File::open(dir)?.sync_all()
}

/// Makes `fresh` be `dir`.
fn put(fresh: &Path, dir: &Path) -> io::Result<()> {
    match renameat_with(CWD, fresh, CWD, dir, RenameFlags::EXCHANGE) {
        Ok(()) => remove(fresh)?,
        Err(rustix::io::Errno::NOENT) => fs::rename(fresh, dir)?,
        Err(errno) => return Err(errno.into()),
    }
    match dir.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}
