//! What a node remembers of the swarm that it is in, between two runs of the daemon.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::addresses::Addresses;

/// The swarm, as this node remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// Its own addresses.
    pub(crate) addresses: Addresses,
    /// Its number in the consensus group, whether it is in it or not.
    pub(crate) raft_id: u64,
    /// Numbers that it had before a new cluster was forced here, newest last; at most [`FORMER`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) former_raft_ids: Vec<u64>,
    /// A swarm is being founded here, and nobody was told yet that it stands.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) founding: bool,
    /// A new cluster is being forced: whatever happens, the next start goes on with that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) forcing: bool,
    /// Managers that it knew last, `host:port`.
    pub(crate) managers: Vec<String>,
}

/// Former numbers that are kept: managers of the groups that they were in may come back even years later, but nobody
/// forces clusters that often.
const FORMER: usize = 16;

/// A number for the consensus group; 0 is never one.
pub(crate) fn new_raft_id() -> u64 {
    rand::random::<u64>().max(1)
}

impl Membership {
    /// The membership of a node that is about to force a new cluster, with these addresses.
    pub(crate) fn forced(&self, addresses: Addresses, raft_id: u64) -> Self {
        let mut former = self.former_raft_ids.clone();
        former.push(self.raft_id);
        former.drain(..former.len().saturating_sub(FORMER));
        // No other manager is left to be asked.
        Self { addresses, raft_id, former_raft_ids: former, founding: false, forcing: true, managers: Vec::new() }
    }
}

/// Where it is kept.
pub(crate) fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("swarm.json")
}

/// The swarm that the node is in; `None`: in none.
pub(crate) fn load(data_dir: &Path) -> io::Result<Option<Membership>> {
    match std::fs::read(file(data_dir)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Remembers it, whole or not at all.
pub(crate) fn save(data_dir: &Path, membership: &Membership) -> io::Result<()> {
    let path = file(data_dir);
    let temporary = path.with_extension("new");
    let handle = std::fs::File::create(&temporary)?;
    serde_json::to_writer_pretty(&handle, membership).map_err(io::Error::other)?;
    handle.sync_all()?;
    std::fs::rename(&temporary, &path)?;
    std::fs::File::open(data_dir)?.sync_all()
}

/// Forgets it.
pub(crate) fn forget(data_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(file(data_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The key that encrypts this manager's log: made once, readable by root only.
pub(crate) fn data_key(data_dir: &Path) -> io::Result<[u8; 32]> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let path = data_dir.join("raft.key");
    match std::fs::read(&path) {
        Ok(bytes) => bytes.try_into().map_err(|_| io::Error::other(format!("{} is damaged", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key: [u8; 32] = rand::random();
            let temporary = path.with_extension("new");
            let mut file =
                std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
            file.write_all(&key)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            std::fs::File::open(data_dir)?.sync_all()?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_an_earlier_version_is_read() -> anyhow::Result<()> {
        let text = r#"{"addresses": {"listen": "0.0.0.0:2377", "advertise": "10.0.0.1:2377", "data_path": "10.0.0.1"},
                       "raft_id": 7, "managers": []}"#;
        let read: Membership = serde_json::from_str(text)?;
        assert_eq!((read.raft_id, read.forcing, read.former_raft_ids.len()), (7, false, 0));
        assert!(!read.founding);
        Ok(())
    }

    #[test]
    fn a_forced_cluster_remembers_what_the_node_was_and_not_for_ever() -> anyhow::Result<()> {
        let addresses = Addresses {
            listen: "0.0.0.0:2377".parse()?,
            advertise: "10.0.0.1:2377".parse()?,
            data_path: "10.0.0.1".parse()?,
        };
        let mut membership = Membership {
            addresses: addresses.clone(),
            raft_id: 100,
            former_raft_ids: Vec::new(),
            founding: false,
            forcing: false,
            managers: vec!["10.0.0.2:2377".into()],
        };
        for id in 0..100 {
            membership = membership.forced(addresses.clone(), id);
        }
        assert_eq!((membership.raft_id, membership.forcing, membership.managers.len()), (99, true, 0));
        assert_eq!((membership.former_raft_ids.len(), membership.former_raft_ids.last()), (FORMER, Some(&98)));
        Ok(())
    }

    #[test]
    fn what_is_saved_comes_back_until_it_is_forgotten() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        assert_eq!(load(dir.path())?, None);
        let membership = Membership {
            addresses: Addresses {
                listen: "0.0.0.0:2377".parse()?,
                advertise: "10.0.0.1:2377".parse()?,
                data_path: "10.0.0.1".parse()?,
            },
            raft_id: 7,
            former_raft_ids: Vec::new(),
            founding: false,
            forcing: false,
            managers: vec!["10.0.0.2:2377".into()],
        };
        save(dir.path(), &membership)?;
        assert_eq!(load(dir.path())?, Some(membership));
        forget(dir.path())?;
        forget(dir.path())?;
        assert_eq!(load(dir.path())?, None);
        assert_eq!(data_key(dir.path())?, data_key(dir.path())?, "the key stays");
        Ok(())
    }
}
