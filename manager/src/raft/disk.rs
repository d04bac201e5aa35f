//! The log's tables on disk: entries by index, and the vote, commit and purge marks. Every value is sealed
//! ([`super::crypt`]); keys are bare indexes.
//!
//! Knows nothing of threads or callbacks: [`super::log_writer`] decides when to write, [`super::log_store`] when to read.
//! Opening checks the whole log (continuous, readable, not shorter than its [`super::anchor`]) and refuses with a reason
//! rather than start from less than was promised.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use prost::Message as _;
use skep_proto::v1;

use super::anchor::{Anchor, Mark};
use super::crypt::Cipher;
use super::types::{Entry, LogId, Vote, entry_bytes};
use super::wire;

const CACHE: u64 = 8 << 20;
const MEMTABLE: u64 = 8 << 20;
const JOURNALS: u64 = 64 << 20;
/// Removals per batch of a purge.
const PURGE_BATCH: u64 = 4096;
const CHECK: &[u8] = b"skep raft log";

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("the raft log in {dir} does not open: {reason}; {REJOIN}")]
    Damaged { dir: PathBuf, reason: String },
    #[error("the raft log in {dir} was written with another data-encryption key; give the key of this manager")]
    WrongKey { dir: PathBuf },
    #[error("the raft log in {dir} is in use by another process; stop that process first")]
    Locked { dir: PathBuf },
    #[error("the raft log in {dir} is not usable: {source}")]
    Io { dir: PathBuf, source: io::Error },
}

/// What to do about a manager whose own copy is lost.
pub(crate) const REJOIN: &str = "remove this manager from the cluster, empty its raft directory and let it join again \
     (with no other manager left: restore a backup)";

/// What the disk holds when it is opened.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// The first entry that is there, or the place of the next one.
    pub(crate) first: u64,
    pub(crate) last: Option<LogId>,
}

/// The open tables.
pub(crate) struct Disk {
    db: Database,
    log: Keyspace,
    meta: Keyspace,
    cipher: Arc<Cipher>,
}

/// Changes that become durable together.
pub(crate) struct Batch(fjall::OwnedWriteBatch);

/// Makes the entries of a directory durable.
fn sync(dir: &Path) -> io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}

impl Disk {
    /// Opens or creates the tables in `dir` and checks all that they hold.
    pub(crate) fn open(dir: &Path, cipher: Arc<Cipher>) -> Result<(Self, Anchor, Loaded), DiskError> {
        let io = |source| DiskError::Io { dir: dir.into(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        // A crash while the tables are made leaves some that can't be opened and hold nothing: they are made anew.
        let (log_dir, making) = (dir.join("log"), dir.join("log.making"));
        if making.exists() && log_dir.exists() {
            std::fs::remove_dir_all(&log_dir).map_err(io)?;
        }
        let new = !log_dir.exists();
        if new {
            std::fs::File::create(&making).and_then(|file| file.sync_all()).map_err(io)?;
            sync(dir).map_err(io)?;
        }
        let tables = AssertUnwindSafe(|| -> fjall::Result<(Database, Keyspace, Keyspace)> {
            let db =
                Database::builder(&log_dir).cache_size(CACHE).worker_threads(1).max_journaling_size(JOURNALS).open()?;
            let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE);
            let log = db.keyspace("log", options)?;
            let meta = db.keyspace("meta", options)?;
            Ok((db, log, meta))
        });
        // On some damage the engine's reader fails an assertion; nothing of it survives the unwinding.
        let opened = catch_unwind(tables)
            .map_err(|_| DiskError::Damaged { dir: dir.into(), reason: "its journal is unreadable".into() })?;
        let (db, log, meta) = opened.map_err(|e| match e {
            fjall::Error::Locked => DiskError::Locked { dir: dir.into() },
            other => DiskError::Damaged { dir: dir.into(), reason: other.to_string() },
        })?;
        let disk = Self { db, log, meta, cipher };
        disk.check_key(dir)?;
        if new {
            std::fs::remove_file(&making).and_then(|()| sync(dir)).map_err(io)?;
        }
        let loaded = disk.load().map_err(|e| DiskError::Damaged { dir: dir.into(), reason: e.to_string() })?;
        let (mut anchor, mark) = Anchor::open(&dir.join("anchor"), Arc::clone(&disk.cipher)).map_err(io)?;
        let here = Mark { last: loaded.last, vote: loaded.vote };
        if let Some(mark) = mark {
            not_behind(&mark, &here).map_err(|reason| DiskError::Damaged { dir: dir.into(), reason })?;
        }
        anchor.write(&here, true).map_err(io)?;
        Ok((disk, anchor, loaded))
    }

    fn check_key(&self, dir: &Path) -> Result<(), DiskError> {
        let damaged = |reason: String| DiskError::Damaged { dir: dir.into(), reason };
        match self.meta.get("check").map_err(|e| damaged(e.to_string()))? {
            Some(sealed) => match self.cipher.open(b"meta/check", &sealed, || "the key check".into()) {
                Ok(plain) if plain == CHECK => Ok(()),
                _ => Err(DiskError::WrongKey { dir: dir.into() }),
            },
            None => {
                if !self.log.is_empty().map_err(|e| damaged(e.to_string()))? {
                    return Err(damaged("it has entries but no key check".into()));
                }
                let sealed = self.cipher.seal(b"meta/check", CHECK).map_err(|e| damaged(e.to_string()))?;
                let mut batch = self.batch();
                batch.0.insert(&self.meta, "check", sealed);
                self.commit(batch, true).map_err(|e| damaged(e.to_string()))
            }
        }
    }

    fn load(&self) -> io::Result<Loaded> {
        let decode = |e: prost::DecodeError| io::Error::new(io::ErrorKind::InvalidData, e);
        let log_id = |name: &'static str| -> io::Result<Option<LogId>> {
            let Some(plain) = self.meta(name)? else { return Ok(None) };
            Ok(Some(wire::log_id_of(v1::RaftLogId::decode(&plain[..]).map_err(decode)?)))
        };
        let vote = match self.meta("vote")? {
            Some(plain) => Some(wire::vote_of(v1::RaftVote::decode(&plain[..]).map_err(decode)?)),
            None => None,
        };
        let committed = log_id("committed")?;
        let purged = log_id("purged")?;
        let mut last = purged;
        let mut first = None;
        let mut expected = purged.map(|id| id.index + 1);
        for guard in self.log.range(expected.unwrap_or(0).to_be_bytes()..) {
            let (key, value) = guard.into_inner().map_err(io::Error::other)?;
            let entry = self.decode(&key, &value)?;
            let index = entry.log_id.index;
            if let Some(expected) = expected.filter(|expected| *expected != index) {
                return Err(invalid(format!("entry {expected} is missing before entry {index}")));
            }
            expected = Some(index + 1);
            first.get_or_insert(index);
            last = Some(entry.log_id);
        }
        let first = first.or(purged.map(|id| id.index + 1)).unwrap_or(0);
        Ok(Loaded { vote, committed, purged, first, last })
    }

    fn meta(&self, name: &'static str) -> io::Result<Option<Vec<u8>>> {
        let Some(sealed) = self.meta.get(name).map_err(io::Error::other)? else { return Ok(None) };
        let plain = self.cipher.open(&place(name), &sealed, || format!("the {name} mark of the log"));
        plain.map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Entries of `first..=last`, stopping early once `budget` bytes are reached (never before the first entry).
    ///
    /// # Errors
    /// A hole or an unreadable entry is `InvalidData`.
    pub(crate) fn read(&self, first: u64, last: u64, budget: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut expected = first;
        for guard in self.log.range(first.to_be_bytes()..=last.to_be_bytes()) {
            let (key, value) = guard.into_inner().map_err(io::Error::other)?;
            let entry = self.decode(&key, &value)?;
            if entry.log_id.index != expected {
                break;
            }
            bytes += entry_bytes(&entry);
            if bytes > budget && !entries.is_empty() {
                return Ok(entries);
            }
            expected += 1;
            entries.push(entry);
        }
        if expected != last + 1 {
            return Err(invalid(format!("log entry {expected} is missing on this manager; {REJOIN}")));
        }
        Ok(entries)
    }

    fn decode(&self, key: &[u8], sealed: &[u8]) -> io::Result<Entry> {
        let index =
            <[u8; 8]>::try_from(key).map(u64::from_be_bytes).map_err(|_| invalid("a log key is not an index"))?;
        let plain = self
            .cipher
            .open(&entry_place(index), sealed, || format!("log entry {index}"))
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        let entry = wire::decode_entry(plain).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if entry.log_id.index != index {
            return Err(invalid(format!("log entry {index} says it is entry {}", entry.log_id.index)));
        }
        Ok(entry)
    }

    pub(crate) fn batch(&self) -> Batch {
        Batch(self.db.batch())
    }

    pub(crate) fn put_entry(&self, batch: &mut Batch, entry: &Entry) -> io::Result<()> {
        let index = entry.log_id.index;
        let sealed = self.cipher.seal(&entry_place(index), &wire::encode_entry(entry)).map_err(io::Error::other)?;
        batch.0.insert(&self.log, index.to_be_bytes(), sealed);
        Ok(())
    }

    pub(crate) fn put_vote(&self, batch: &mut Batch, vote: &Vote) -> io::Result<()> {
        self.put_meta(batch, "vote", &wire::vote_to(vote).encode_to_vec())
    }

    pub(crate) fn put_committed(&self, batch: &mut Batch, committed: &LogId) -> io::Result<()> {
        self.put_meta(batch, "committed", &wire::log_id_to(committed).encode_to_vec())
    }

    fn put_meta(&self, batch: &mut Batch, name: &'static str, plain: &[u8]) -> io::Result<()> {
        let sealed = self.cipher.seal(&place(name), plain).map_err(io::Error::other)?;
        batch.0.insert(&self.meta, name, sealed);
        Ok(())
    }

    /// Makes a batch visible, and durable if `sync`.
    pub(crate) fn commit(&self, batch: Batch, sync: bool) -> io::Result<()> {
        let mode = if sync { Some(PersistMode::SyncData) } else { None };
        batch.0.durability(mode).commit().map_err(io::Error::other)
    }

    /// Removes `first..=last` from the end of the log, durably.
    pub(crate) fn truncate(&self, first: u64, last: u64) -> io::Result<()> {
        let mut batch = self.batch();
        for index in first..=last {
            batch.0.remove(&self.log, index.to_be_bytes());
        }
        self.commit(batch, true)
    }

    /// Removes `first..=upto` from the start of the log. The mark is written first, so that a half-done purge leaves
    /// entries that nobody looks at, never a hole; it is synced because the anchor counts on it.
    pub(crate) fn purge(&self, first: u64, upto: &LogId) -> io::Result<()> {
        let mut batch = self.batch();
        self.put_meta(&mut batch, "purged", &wire::log_id_to(upto).encode_to_vec())?;
        self.commit(batch, true)?;
        let mut from = first;
        while from <= upto.index {
            let to = upto.index.min(from.saturating_add(PURGE_BATCH - 1));
            let mut batch = self.batch();
            for index in from..=to {
                batch.0.remove(&self.log, index.to_be_bytes());
            }
            self.commit(batch, false)?;
            from = to + 1;
        }
        Ok(())
    }

    /// The lowest index that is stored, purged or not.
    pub(crate) fn first_index(&self) -> Option<u64> {
        let key = self.log.first_key_value()?.key().ok()?;
        <[u8; 8]>::try_from(&key[..]).ok().map(u64::from_be_bytes)
    }
}

/// Whether the disk still has what the anchor saw.
fn not_behind(mark: &Mark, here: &Mark) -> Result<(), String> {
    if here.last < mark.last {
        let show = |id: Option<LogId>| {
            id.map_or("nothing".into(), |id| format!("entry {} of term {}", id.index, id.leader_id.term))
        };
        return Err(format!(
            "it ends with {} but {} was acknowledged: the disk lost data",
            show(here.last),
            show(mark.last)
        ));
    }
    if let Some(seen) = mark.vote
        && here.vote.is_none_or(|vote| vote < seen)
    {
        return Err(format!("the vote of term {} that was given is gone: the disk lost data", seen.leader_id.term));
    }
    Ok(())
}

fn entry_place(index: u64) -> [u8; 12] {
    let mut place = *b"log/\0\0\0\0\0\0\0\0";
    place[4..].copy_from_slice(&index.to_be_bytes());
    place
}

fn place(name: &str) -> Vec<u8> {
    [b"meta/", name.as_bytes()].concat()
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}
