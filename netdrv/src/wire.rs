//! One open namespace: its descriptor, its rtnetlink connection, its nft socket, and the indexes of its links.
//!
//! Calls that may wait for long run on helper threads. Those about links the kernel answers at once, inside the call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use skep_net_kernel::link::{self, Handle, Link};
use skep_net_kernel::nft::{self, Batch};
use skep_net_kernel::ns::{self, Namespace};

use crate::error::{Error, Result};

/// Index of the loopback: the first link of every namespace.
const LOOPBACK: u32 = 1;
/// Links that are asked for one by one; for more, all are listed.
const ASKED_FOR: usize = 8;

#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) namespace: Namespace,
    pub(crate) link: Handle,
    nft: Arc<Mutex<nft::Socket>>,
    /// Indexes by name, as far as they are known.
    indexes: BTreeMap<String, u32>,
    /// Generation of the ruleset for which our belief about it holds.
    pub(crate) generation: Option<u32>,
}

/// Runs blocking work on a helper thread.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Lost)
}

impl Wire {
    pub(crate) fn open(namespace: Namespace) -> Result<Self> {
        let sockets = namespace.run(Self::sockets)??;
        Ok(Self::new(namespace, sockets))
    }

    /// Opens the sockets in the namespace of the calling thread.
    pub(crate) fn sockets() -> Result<(Handle, nft::Socket)> {
        Ok((Handle::here()?, nft::Socket::here()?))
    }

    /// A namespace with its sockets.
    pub(crate) fn new(namespace: Namespace, (link, nft): (Handle, nft::Socket)) -> Self {
        Self { namespace, link, nft: Arc::new(Mutex::new(nft)), indexes: BTreeMap::new(), generation: None }
    }

    /// Sets the loopback up.
    pub(crate) async fn loopback_up(&self) -> Result<()> {
        Ok(self.link.set_up(LOOPBACK).await?)
    }

    /// All links; remembers their indexes.
    pub(crate) async fn links(&mut self) -> Result<Vec<Link>> {
        let links = self.link.links().await?;
        self.indexes = links.iter().map(|l| (l.name.clone(), l.index)).collect();
        Ok(links)
    }

    /// Finds the indexes of those of `names` that are unknown; whoever needs one that isn't there is told by [`Wire::index`].
    pub(crate) async fn learn(&mut self, names: &[&str]) -> Result<()> {
        let unknown: BTreeSet<&str> = names.iter().filter(|n| !self.indexes.contains_key(**n)).copied().collect();
        if unknown.len() > ASKED_FOR {
            self.links().await?;
            return Ok(());
        }
        for name in unknown {
            match self.link.index(name).await {
                Ok(index) => drop(self.indexes.insert(name.to_owned(), index)),
                Err(link::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Links were made or removed, nobody knows which: their indexes have to be read again.
    pub(crate) fn forget(&mut self) {
        self.indexes.clear();
    }

    /// This link was made or removed.
    pub(crate) fn forget_link(&mut self, name: &str) {
        self.indexes.remove(name);
    }

    pub(crate) fn index(&self, name: &str) -> Result<u32> {
        self.indexes.get(name).copied().ok_or_else(|| Error::NoLink { name: name.to_owned() })
    }

    /// Uses the nft socket on a helper thread.
    pub(crate) async fn with_nft<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut nft::Socket) -> nft::Result<T> + Send + 'static,
    ) -> Result<T> {
        let nft = self.nft.clone();
        // A panic of another call leaves the socket as usable as any error does.
        let result = blocking(move || work(&mut nft.lock().unwrap_or_else(PoisonError::into_inner))).await?;
        Ok(result?)
    }

    /// Commits a batch. Afterwards the generation is known if nobody else changed the ruleset meanwhile.
    pub(crate) async fn commit(&mut self, batch: Batch) -> Result<()> {
        let before = self.generation.take();
        let after = self
            .with_nft(move |socket| {
                batch.commit(socket)?;
                Ok(socket.generation()?.id)
            })
            .await?;
        self.generation = Some(after).filter(|after| before.is_some_and(|b| b.wrapping_add(1) == *after));
        Ok(())
    }

    /// Writes sysctls. Those of parts that this kernel hasn't got are left out.
    pub(crate) async fn set_sysctls(&self, settings: Vec<(String, String)>) -> Result<()> {
        let namespace = self.namespace.clone();
        let optional = |key: &str| key.starts_with("net/bridge/") || key.starts_with("net/ipv6/");
        let write = move || {
            let mut rest: Vec<_> = settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            loop {
                match namespace.set_sysctls(&rest) {
                    Err(ns::Error::Sysctl { key, source })
                        if source.kind() == std::io::ErrorKind::NotFound && optional(&key) =>
                    {
                        rest.retain(|(k, _)| *k != key);
                    }
                    other => return other,
                }
            }
        };
        Ok(blocking(write).await??)
    }
}
