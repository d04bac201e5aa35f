//! Where namespaces are pinned: `netns/<sandbox>` and `balancers/<network>` below the run directory. The directories are
//! the record of what is open; nothing else has to survive a restart.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::join_all;
use skep_net_kernel::link::{Handle, absent_is_fine};
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
    let (wire, made) = blocking(move || match Namespace::open(&path) {
        Ok(found) => Ok((Wire::open(found)?, false)),
        Err(ns::Error::NotFound { .. } | ns::Error::NotANamespace { .. }) => {
            let (namespace, sockets) = Namespace::create_with(&path, Wire::sockets)?;
            Ok((Wire::new(namespace, sockets?), true))
        }
        Err(error) => Err(Error::from(error)),
    })
    .await??;
    wire.loopback_up().await?;
    Ok(Opened { wire, made })
}

/// Removes the namespace at `path`: its links first, so that they are gone when this returns, then its name. Processes
/// that still live in it keep an empty shell. `wire`: the way into it, if there is one open.
pub(crate) async fn remove(path: PathBuf, wire: Option<Wire>) -> Result<()> {
    let wire = match wire {
        Some(wire) => Some(wire),
        None => {
            let path = path.clone();
            blocking(move || Namespace::open(&path)).await?.ok().map(Wire::open).transpose()?
        }
    };
    let runtime = tokio::runtime::Handle::current();
    let remove = move || {
        if let Some(wire) = wire {
            // For every link the kernel waits until nobody looks at it any more, some ten milliseconds.
            runtime.block_on(remove_links(&wire.link))?;
        }
        Ok(ns::delete(&path)?)
    };
    blocking(remove).await?
}

async fn remove_links(handle: &Handle) -> Result<()> {
    let links = handle.links().await?;
    let own = links.iter().filter(|l| l.name != "lo").map(|link| handle.delete_link(link.index));
    for removed in join_all(own).await {
        absent_is_fine(removed)?;
    }
    Ok(())
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
