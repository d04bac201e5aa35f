//! One daemon per data directory: two would write the same log and supervise the same containers.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

/// How often a lock that is taken is looked at.
const LOOK: Duration = Duration::from_millis(20);

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

/// Takes the lock of a data directory, which is made if need be. A daemon that was killed may hold it for a moment
/// after its process is said to be gone: so long it is waited for.
pub(crate) fn take(data_dir: &Path, patience: Duration) -> Result<Lock, Error> {
    let until = Instant::now() + patience;
    loop {
        match try_take(data_dir) {
            Err(Error::Taken(_)) if Instant::now() < until => std::thread::sleep(LOOK),
            done => return done,
        }
    }
}

fn try_take(data_dir: &Path) -> Result<Lock, Error> {
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
        let first = take(dir.path(), Duration::ZERO)?;
        assert!(matches!(take(dir.path(), Duration::ZERO), Err(Error::Taken(_))));
        let path = dir.path().to_owned();
        // One that is about to end is waited for.
        let second = std::thread::spawn(move || take(&path, Duration::from_secs(60)).map(drop));
        drop(first);
        second.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        Ok(())
    }
}
