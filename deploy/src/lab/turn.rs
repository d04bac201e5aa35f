//! One at a time: of two commands that make or take down the same lab, the second waits for the first.
//!
//! The lock is the kernel's and ends with its holder, however that ends. Its file goes with the turn, so that no lab
//! leaves one behind; whoever waited on a file that has gone takes the one that is there now.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::layout::Layout;

/// How long a command waits for the one before it: longer than a large lab takes to come up.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

/// The right to change a lab, until dropped.
#[derive(Debug)]
pub(super) struct Turn {
    path: PathBuf,
    _file: File,
}

impl Turn {
    /// Waits for the turn; `say` hears that another command has it.
    pub(super) fn wait(layout: &Layout, say: &mut dyn FnMut(&str)) -> Result<Self> {
        Self::within(PATIENCE, layout.lock_file(), layout.name(), say)
    }

    fn within(patience: Duration, path: PathBuf, lab: &str, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let until = Instant::now() + patience;
        let mut said = false;
        loop {
            if let Some(file) = take(&path).with_context(|| format!("{} can't be locked", path.display()))? {
                return Ok(Self { path, _file: file });
            }
            if !said {
                say(&format!("another command is at work on lab {lab}; waiting for it"));
                said = true;
            }
            if Instant::now() > until {
                bail!(
                    "another skep lab command has been at work on lab {lab} for {} s; let it come to its end or end \
                     it, then try again",
                    patience.as_secs()
                );
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// The lock, unless another one has it or has just removed its file.
fn take(path: &Path) -> io::Result<Option<File>> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // Root's alone: anybody else who could open it could hold it.
    let file = match File::options().create(true).truncate(false).write(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let of_path = fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let own = file.metadata()?;
    Ok((of_path.ok() == Some((own.dev(), own.ino()))).then_some(file))
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Before the lock is given back: afterwards the file is the next one's.
        let _ = fs::remove_file(&self.path);
        if let Some(dir) = self.path.parent() {
            // The directory that holds all labs goes with the last of them.
            let _ = fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A directory of this test's own.
    fn directory(of: &str) -> PathBuf {
        std::env::temp_dir().join(format!("skep-turn-{of}-{}", std::process::id()))
    }

    #[test]
    fn one_at_a_time_and_nothing_is_left() -> Result<()> {
        let dir = directory("many");
        let (inside, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let one = || -> Result<()> {
                for _ in 0..50 {
                    let _turn = Turn::within(Duration::from_secs(60), dir.join("lock"), "x", &mut |_| {})?;
                    anyhow::ensure!(inside.fetch_add(1, Ordering::SeqCst) == 0, "two at a time");
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    turns.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread ended")))
        })?;
        assert_eq!(turns.into_inner(), 200);
        assert!(!dir.exists());
        Ok(())
    }

    #[test]
    fn who_waits_too_long_is_told_whom_for() -> Result<()> {
        let (dir, mut said) = (directory("late"), Vec::new());
        let turn = Turn::within(Duration::ZERO, dir.join("lock"), "x", &mut |_| {})?;
        let late = Turn::within(Duration::ZERO, dir.join("lock"), "x", &mut |line| said.push(line.to_owned()));
        let why = late.map_or_else(|error| error.to_string(), |_| String::new());
        assert!(why.contains("at work on lab x"), "{why}");
        assert_eq!(said.len(), 1, "{said:?}");
        drop(turn);
        drop(Turn::within(Duration::ZERO, dir.join("lock"), "x", &mut |_| {})?);
        assert!(!dir.exists());
        Ok(())
    }
}
