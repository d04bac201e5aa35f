//! Private directories in which images are put together, and the store's locks.
//!
//! A staging directory is locked by its owner as long as it lives; what nobody locks was left by a crash
//! and is swept when a store is opened.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result, io_at};

const LOCK_WAIT: Duration = Duration::from_secs(60);
const LOCK_POLL: Duration = Duration::from_millis(2);
const OWNER: &str = "owner";

/// An exclusive lock, given back on drop.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Takes the lock at `path`, waiting for others at most a minute: they hold it for renames only.
pub(crate) fn lock(path: &Path) -> Result<Lock> {
    let file = open_lock(path)?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_WAIT => thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Busy { path: path.display().to_string(), seconds: LOCK_WAIT.as_secs() });
            }
            Err(TryLockError::Error(source)) => return Err(io_at("lock", path)(source)),
        }
    }
}

fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io_at("open", path))
}

/// A directory that disappears with its owner.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    next: u64,
    _owner: Lock,
}

impl Staging {
    /// Makes one below `tmp`. The caller holds the store's lock, so that no sweep sees it half made.
    pub(crate) fn new(tmp: &Path) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = tmp.join(format!("{}-{number}", std::process::id()));
            match private_dir(&path) {
                Ok(()) => {
                    let owner = open_lock(&path.join(OWNER))?;
                    owner.lock().map_err(io_at("lock", &path))?;
                    return Ok(Self { path, next: 0, _owner: Lock { _file: owner } });
                }
                // Left by a process that had this one's number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_at("create", &path)(error)),
            }
        }
    }

    /// A path in it that was not given before.
    pub(crate) fn fresh(&mut self) -> PathBuf {
        self.next += 1;
        self.path.join(self.next.to_string())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "staging directory left behind");
        }
    }
}

/// Removes what crashed processes left below `tmp`. The caller holds the store's lock.
pub(crate) fn sweep(tmp: &Path) -> Result<()> {
    for entry in fs::read_dir(tmp).map_err(io_at("read", tmp))? {
        let path = entry.map_err(io_at("read", tmp))?.path();
        let owned = match File::open(path.join(OWNER)) {
            Ok(file) => matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
            Err(_) => false,
        };
        if !owned {
            tracing::info!(path = %path.display(), "removing what an interrupted call left");
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(io_at("remove", &path))?;
        }
    }
    Ok(())
}

/// A directory that only its owner can look into: layers hold setuid programs.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Replaces a file so that a crash leaves the old content or the new one. The caller holds the lock.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary).map_err(io_at("create", &temporary))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io_at("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io_at("replace", path))?;
    sync_parent(path)
}

/// Makes the names in the directory of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(io_at("sync", parent))
}
