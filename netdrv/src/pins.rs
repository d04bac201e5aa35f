//! Where namespaces are pinned: `netns/<sandbox>` and `balancers/<network>` below the run directory. The directories are
//! the record of what is open; nothing else has to survive a restart.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_net_kernel::ns::{self, Namespace};

use crate::error::{Error, Result};
use crate::wire::{Wire, blocking};

/// The directories of one driver.
#[derive(Debug, Clone)]
pub(crate) struct Pins {
    sandboxes: PathBuf,
    balancers: PathBuf,
}

impl Pins {
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self { sandboxes: run_dir.join("netns"), balancers: run_dir.join("balancers") }
    }

    /// Makes the directories.
    pub(crate) fn prepare(&self) -> Result<()> {
        for path in [&self.sandboxes, &self.balancers] {
            std::fs::create_dir_all(path).map_err(|source| Error::Directory { path: path.clone(), source })?;
        }
        Ok(())
    }

    /// Removes the directories, as far as they are empty.
    pub(crate) fn discard(&self) {
        for path in [&self.sandboxes, &self.balancers] {
            // What isn't empty holds something that isn't ours.
            let _ = std::fs::remove_dir(path);
        }
    }

    pub(crate) fn sandbox(&self, id: &str) -> Result<PathBuf> {
        Ok(self.sandboxes.join(checked(id)?))
    }

    pub(crate) fn balancer(&self, id: &str) -> Result<PathBuf> {
        Ok(self.balancers.join(checked(id)?))
    }

    pub(crate) fn open_sandboxes(&self) -> Result<Vec<String>> {
        Ok(ns::list(&self.sandboxes)?)
    }

    pub(crate) fn open_balancers(&self) -> Result<Vec<String>> {
        Ok(ns::list(&self.balancers)?)
    }
}

/// Sandboxes that are being opened at this moment: whoever opens one hands it to the loop, which leaves it alone until
/// then.
#[derive(Debug, Clone, Default)]
pub(crate) struct Opening(Arc<Mutex<BTreeSet<String>>>);

impl Opening {
    /// From now until the guard is dropped.
    pub(crate) fn begin(&self, id: &str) -> OpeningGuard {
        self.ids().insert(id.to_owned());
        OpeningGuard { opening: self.clone(), id: id.to_owned() }
    }

    pub(crate) fn contains(&self, id: &str) -> bool {
        self.ids().contains(id)
    }

    /// A set is whole between any two statements under its lock.
    fn ids(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, its sandbox is being opened.
#[derive(Debug)]
pub(crate) struct OpeningGuard {
    opening: Opening,
    id: String,
}

impl Drop for OpeningGuard {
    fn drop(&mut self) {
        self.opening.ids().remove(&self.id);
    }
}

/// Ids become file names, so they must not be able to leave the directory.
fn checked(id: &str) -> Result<&str> {
    let plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if plain && !id.starts_with('.') && (1..=128).contains(&id.len()) {
        Ok(id)
    } else {
        Err(Error::BadId { id: id.to_owned() })
    }
}

/// An open namespace, with its loopback up.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The way into it.
    pub(crate) wire: Wire,
    /// It was just made: there is nothing in it that would have to be read.
    pub(crate) made: bool,
}

/// Opens or makes the namespace at `path`.
pub(crate) async fn open_or_create(path: PathBuf) -> Result<Opened> {
    let (namespace, made) = blocking(move || match Namespace::open(&path) {
        Ok(found) => Ok((found, false)),
        Err(ns::Error::NotFound { .. } | ns::Error::NotANamespace { .. }) => Ok((Namespace::create(&path)?, true)),
        Err(error) => Err(Error::from(error)),
    })
    .await??;
    let wire = Wire::open(namespace)?;
    wire.loopback_up().await?;
    Ok(Opened { wire, made })
}

/// Removes the namespace at `path`: its links first, so that they are gone when this returns, then its name. Processes
/// that still live in it keep an empty shell.
pub(crate) async fn remove(path: PathBuf) -> Result<()> {
    let opened = {
        let path = path.clone();
        blocking(move || Namespace::open(&path)).await?
    };
    if let Ok(namespace) = opened {
        let mut wire = Wire::open(namespace)?;
        for link in wire.links().await?.iter().filter(|l| l.name != "lo") {
            skep_net_kernel::link::absent_is_fine(wire.link.delete_link(link.index).await)?;
        }
    }
    Ok(blocking(move || ns::delete(&path)).await??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_in_their_directory() {
        for bad in ["", ".", "..", "../x", "a/b", "a b", "\u{e4}", &"x".repeat(129)] {
            assert!(checked(bad).is_err(), "{bad}");
        }
        for good in ["x", "web.1.abc", "A-b_c.9"] {
            assert!(checked(good).is_ok(), "{good}");
        }
    }
}
