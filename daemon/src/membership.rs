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
    /// Managers that it knew last, `host:port`.
    pub(crate) managers: Vec<String>,
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
