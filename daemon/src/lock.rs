//! One daemon per data directory: two would write the same log and supervise the same containers.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// The lock; the kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Why the lock was not had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Another daemon has it.
    #[error("another skep daemon uses {0}; stop it first, or give this one a --data-dir of its own")]
    Taken(PathBuf),
    /// The directory can't be used.
    #[error("{path} can't be used")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Takes the lock of a data directory, which is made if need be.
pub(crate) fn take(data_dir: &Path) -> Result<Lock, Error> {
    let path = data_dir.join("daemon.lock");
    let io = |source| Error::Io { path: path.clone(), source };
    std::fs::create_dir_all(data_dir).map_err(io)?;
    let file = File::options().create(true).write(true).truncate(false).open(&path).map_err(io)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Taken(data_dir.to_owned())),
        Err(errno) => Err(io(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_daemon_is_refused_until_the_first_ends() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let first = take(dir.path())?;
        assert!(matches!(take(dir.path()), Err(Error::Taken(_))));
        drop(first);
        take(dir.path())?;
        Ok(())
    }
}
