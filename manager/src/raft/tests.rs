//! The library's own storage suite against our log and snapshots, and what the suite does not ask: damage, wrong keys,
//! secrecy, sizes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use openraft::StorageError;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt as _;
use openraft::{RaftLogReader, SnapshotMeta, StoredMembership};
use tempfile::TempDir;

use super::crypt::Cipher;
use super::disk::Disk;
use super::log_store::{Closer, LogStore};
use super::snapshot::{CHUNK, SnapshotStore};
use super::state_machine::Machine;
use super::types::{Blob, Entry, LeaderId, LogId, Payload, TypeConfig, Vote};
use super::{SnapshotFn, StateMachine};

#[derive(Default)]
struct Recorder(Mutex<Vec<u8>>);

impl StateMachine for Recorder {
    fn apply(&self, _index: u64, command: &[u8]) -> Vec<u8> {
        self.0.lock().unwrap().extend_from_slice(command);
        Vec::new()
    }
    fn snapshot(&self) -> SnapshotFn {
        let state = self.0.lock().unwrap().clone();
        Box::new(move |out| out.write_all(&state))
    }
    fn restore(&self, snapshot: &mut dyn Read) -> std::io::Result<()> {
        let mut state = Vec::new();
        snapshot.read_to_end(&mut state)?;
        *self.0.lock().unwrap() = state;
        Ok(())
    }
}

const KEY: [u8; 32] = [42; 32];

fn cipher(key: [u8; 32]) -> Arc<Cipher> {
    Arc::new(Cipher::new(key).unwrap())
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, (TempDir, Closer)> for Builder {
    async fn build(&self) -> Result<((TempDir, Closer), LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, closer) = LogStore::open(dir.path(), cipher(KEY)).unwrap();
        let snapshots = SnapshotStore::open(dir.path().join("snapshots"), cipher(KEY)).unwrap();
        let machine = Machine::new(Arc::new(Recorder::default()), Arc::new(snapshots));
        Ok(((dir, closer), log, machine))
    }
}

#[tokio::test]
async fn storage_suite() {
    Suite::test_all(Builder).await.unwrap();
}

fn entry(term: u64, index: u64, command: &[u8]) -> Entry {
    Entry { log_id: id(term, index), payload: Payload::Normal(Blob(command.to_vec().into())) }
}

fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) {
    let (done, wait) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    wait.await.unwrap().unwrap();
}

async fn close(closer: Closer) {
    tokio::task::spawn_blocking(move || closer.close()).await.unwrap().unwrap();
}

async fn open(dir: &Path) -> (LogStore, Closer) {
    LogStore::open(dir, cipher(KEY)).unwrap()
}

fn refusal(dir: &Path, key: [u8; 32]) -> String {
    match LogStore::open(dir, cipher(key)) {
        Ok(_) => panic!("the log opened"),
        Err(e) => e.to_string(),
    }
}

#[tokio::test]
async fn the_log_survives_a_restart_a_rewritten_tail_and_a_purge() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = open(dir.path()).await;
    log.save_vote(&Vote::new_committed(3, 1)).await.unwrap();
    append(&mut log, (0..500).map(|i| entry(1, i, format!("old {i}").as_bytes())).collect()).await;
    log.truncate_after(Some(id(1, 399))).await.unwrap();
    append(&mut log, (400..600).map(|i| entry(3, i, format!("new {i}").as_bytes())).collect()).await;
    log.save_committed(Some(id(3, 590))).await.unwrap();
    log.purge(id(1, 99)).await.unwrap();
    drop(log);
    close(closer).await;

    let (mut log, closer) = open(dir.path()).await;
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(3, 1)));
    assert_eq!(log.read_committed().await.unwrap(), Some(id(3, 590)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(1, 99)), Some(id(3, 599))));
    let all = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(all.len(), 500);
    assert_eq!(all[0], entry(1, 100, b"old 100"));
    assert_eq!(all[299], entry(1, 399, b"old 399"));
    assert_eq!(all[300], entry(3, 400, b"new 400"));
    drop(log);
    close(closer).await;
}

#[tokio::test]
async fn a_log_whose_making_was_cut_short_is_made_anew_and_one_that_was_made_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = open(dir.path()).await;
    append(&mut log, vec![entry(1, 0, b"kept")]).await;
    drop(log);
    close(closer).await;
    assert!(!dir.path().join("log.making").exists());
    let (mut log, closer) = open(dir.path()).await;
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), [entry(1, 0, b"kept")]);
    drop(log);
    close(closer).await;

    // Every file that a crash may have left alone, and all of them.
    let made = tempfile::tempdir().unwrap();
    drop(open(made.path()).await);
    let mut names: Vec<_> = std::fs::read_dir(made.path().join("log")).unwrap().flatten().collect();
    names.sort_by_key(std::fs::DirEntry::file_name);
    assert!(names.len() > 1, "{names:?}");
    for name in names {
        let half = tempfile::tempdir().unwrap();
        std::fs::create_dir(half.path().join("log")).unwrap();
        if name.file_type().unwrap().is_dir() {
            std::fs::create_dir(half.path().join("log").join(name.file_name())).unwrap();
        } else {
            std::fs::write(half.path().join("log").join(name.file_name()), b"").unwrap();
        }
        std::fs::write(half.path().join("log.making"), b"").unwrap();
        let (mut log, closer) = open(half.path()).await;
        append(&mut log, vec![entry(1, 0, b"new")]).await;
        assert!(!half.path().join("log.making").exists());
        drop(log);
        close(closer).await;
        let (mut log, closer) = open(half.path()).await;
        assert_eq!(log.try_get_log_entries(..).await.unwrap(), [entry(1, 0, b"new")], "{name:?}");
        drop(log);
        close(closer).await;
    }
}

#[tokio::test]
async fn a_purge_is_not_waited_for_and_lies_between_its_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = open(dir.path()).await;
    append(&mut log, (0..100).map(|i| entry(1, i, b"old")).collect()).await;
    let hung = log.hang().await.unwrap();
    assert!(log.purge(id(1, 99)).now_or_never().is_some(), "it waits for the disk");
    let (done, mut durable) = TypeConfig::oneshot();
    log.append(vec![entry(1, 100, b"new")], IOFlushed::signal(done)).await.unwrap();
    assert!((&mut durable).now_or_never().is_none());
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), [entry(1, 100, b"new")]);
    drop(hung);
    durable.await.unwrap().unwrap();
    drop(log);
    close(closer).await;
    let (mut log, closer) = open(dir.path()).await;
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(1, 99)), Some(id(1, 100))));
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), [entry(1, 100, b"new")]);
    drop(log);
    close(closer).await;
}

#[tokio::test]
async fn reads_join_memory_and_disk_and_keep_to_their_budget() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = open(dir.path()).await;
    // More than the memory keeps, in entries of 100 kB.
    for i in 0..150 {
        append(&mut log, vec![entry(1, i, &vec![i as u8; 100_000])]).await;
    }
    let all = log.try_get_log_entries(0..150).await.unwrap();
    assert!(all.iter().enumerate().all(|(i, e)| *e == entry(1, i as u64, &vec![i as u8; 100_000])));
    assert_eq!(all.len(), 150);
    let mut next = 0;
    while next < 150 {
        let some = log.limited_get_log_entries(next, 150).await.unwrap();
        assert!(!some.is_empty() && some.len() <= 10, "{}", some.len());
        assert_eq!(some[0].log_id.index, next);
        next += some.len() as u64;
    }
    let stream = log.entries_stream(0..150).await;
    let indexes: Vec<u64> =
        futures::StreamExt::collect::<Vec<_>>(stream).await.into_iter().map(|e| e.unwrap().log_id.index).collect();
    assert_eq!(indexes, (0..150).collect::<Vec<_>>());
    drop(log);
    close(closer).await;
}

#[tokio::test]
async fn a_hole_is_neither_read_in_silence_nor_written() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = open(dir.path()).await;
    append(&mut log, (0..100).map(|i| entry(1, i, b"x")).collect()).await;
    log.purge(id(1, 49)).await.unwrap();
    for (start, end, first) in [(10, 60, Some(50)), (10, 20, Some(50)), (50, 60, Some(50)), (100, 110, None)] {
        let some = log.limited_get_log_entries(start, end).await.unwrap();
        assert_eq!(some.first().map(|e| e.log_id.index), first, "{start}..{end}");
    }
    assert!(log.try_get_log_entries(10..20).await.unwrap().is_empty());
    for (what, entries) in [
        ("after the last", vec![entry(1, 101, b"y")]),
        ("within", vec![entry(1, 100, b"y"), entry(1, 102, b"y")]),
        ("again", vec![entry(1, 99, b"y")]),
    ] {
        let (done, _wait) = TypeConfig::oneshot();
        let refused = log.append(entries, IOFlushed::signal(done)).await.unwrap_err();
        assert!(refused.to_string().contains("hole"), "{what}: {refused}");
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(1, 99)), "{what}");
    }
    append(&mut log, vec![entry(1, 100, b"y")]).await;
    drop(log);
    close(closer).await;
}

#[tokio::test]
async fn another_key_is_refused_and_a_second_process_too() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = open(dir.path()).await;
    append(&mut log, vec![entry(1, 0, b"x")]).await;
    assert!(refusal(dir.path(), KEY).contains("in use by another process"), "{}", refusal(dir.path(), KEY));
    drop(log);
    close(closer).await;
    let message = refusal(dir.path(), [1; 32]);
    assert!(message.contains("another data-encryption key"), "{message}");
    // The refusal changed nothing.
    let (log, closer) = open(dir.path()).await;
    assert_eq!(log.mark().last, Some(id(1, 0)));
    drop(log);
    close(closer).await;
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn journal(dir: &Path) -> std::path::PathBuf {
    files(dir).into_iter().filter(|f| f.extension().is_some_and(|e| e == "jnl")).max().expect("a journal file")
}

/// Writes a log of 50 entries, lets `damage` change the journal's bytes, and opens it again.
async fn damaged(damage: impl Fn(&mut Vec<u8>)) -> Result<Option<LogId>, String> {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = open(dir.path()).await;
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    for i in 0..50 {
        append(&mut log, vec![entry(1, i, &[i as u8; 300])]).await;
    }
    drop(log);
    close(closer).await;
    let path = journal(dir.path());
    // The journal is made in its full size; what was not written yet is zeros, before the damage and after it.
    let size = std::fs::metadata(&path).unwrap().len();
    let mut bytes = Vec::new();
    std::fs::File::open(&path).unwrap().take(1 << 20).read_to_end(&mut bytes).unwrap();
    assert!(used(&bytes) < bytes.len(), "the journal is larger than the test expects");
    bytes.truncate(used(&bytes));
    damage(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(size).unwrap();
    match LogStore::open(dir.path(), cipher(KEY)) {
        Ok((log, closer)) => {
            let last = log.mark().last;
            drop(log);
            close(closer).await;
            Ok(last)
        }
        Err(e) => Err(e.to_string()),
    }
}

fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1)
}

#[tokio::test]
async fn a_log_that_lost_acknowledged_entries_does_not_open() {
    assert_eq!(damaged(|_| {}).await, Ok(Some(id(1, 49))));
    // Cut anywhere: the engine underneath would start happily with what is left.
    for part in [10, 30, 50, 70, 95] {
        let message = damaged(|bytes| bytes.truncate(bytes.len() * part / 100)).await.unwrap_err();
        assert!(message.contains("join again"), "{part} %: {message}");
    }
    let message = damaged(|bytes| bytes.truncate(bytes.len() - 1)).await.unwrap_err();
    assert!(message.contains("acknowledged"), "{message}");
    // One bit anywhere. Some bits hold nothing that matters (a batch's number): then all must be there, and readable.
    let mut refused = 0;
    for part in 0..25 {
        let flipped = damaged(|bytes| {
            let at = bytes.len() * part / 25 + part;
            bytes[at] ^= 1;
        });
        match flipped.await {
            Ok(last) => assert_eq!(last, Some(id(1, 49)), "part {part}"),
            Err(message) => {
                refused += 1;
                assert!(message.contains("join again"), "part {part}: {message}");
            }
        }
    }
    assert!(refused > 18, "only {refused} of 25 were refused");
}

#[tokio::test]
async fn a_hole_in_the_log_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = open(dir.path()).await;
    append(&mut log, (0..10).map(|i| entry(1, i, b"x")).collect()).await;
    drop(log);
    close(closer).await;
    let (disk, anchor, _) = Disk::open(dir.path(), cipher(KEY)).unwrap();
    disk.truncate(5, 5).unwrap();
    drop((disk, anchor));
    let message = refusal(dir.path(), KEY);
    assert!(message.contains("entry 5 is missing"), "{message}");
}

#[tokio::test]
async fn a_torn_write_that_nobody_was_told_of_is_dropped() {
    let last = damaged(|bytes| {
        let end = bytes.len();
        // The beginning of a batch, as a crash in the middle of a write leaves it.
        let start = bytes[end - 400..end - 100].to_vec();
        bytes.extend_from_slice(&start);
    })
    .await;
    match last {
        Ok(last) => assert_eq!(last, Some(id(1, 49))),
        Err(message) => assert!(message.contains("join again"), "{message}"),
    }
}

#[tokio::test]
async fn nothing_readable_rests_on_disk() {
    const SECRET: &[u8] = b"correct horse battery staple";
    let dir = tempfile::tempdir().unwrap();
    let (mut log, closer) = open(dir.path()).await;
    let command = [SECRET, b" ", SECRET].concat();
    append(&mut log, (0..200).map(|i| entry(1, i, &command)).collect()).await;
    let snapshots = SnapshotStore::open(dir.path().join("snapshots"), cipher(KEY)).unwrap();
    let file = snapshots.write(&SnapshotMeta::default(), |out| out.write_all(SECRET)).unwrap();
    snapshots.keep(file, false).unwrap();
    drop(log);
    close(closer).await;
    let all = files(dir.path());
    assert!(all.len() >= 4, "{all:?}");
    for path in all {
        let bytes = std::fs::read(&path).unwrap();
        for word in [SECRET, b"battery", b"correct horse"] {
            assert!(!bytes.windows(word.len()).any(|w| w == word), "{} is readable", path.display());
        }
    }
}

fn meta(index: u64) -> super::types::SnapshotMeta {
    SnapshotMeta { last_log_id: Some(id(1, index)), last_membership: StoredMembership::default() }
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}

#[test]
fn a_snapshot_reads_back_replaces_its_predecessor_and_refuses_damage() {
    let dir = tempfile::tempdir().unwrap();
    let image = noise(3 * CHUNK + 17);
    let store = SnapshotStore::open(dir.path().into(), cipher(KEY)).unwrap();
    for index in [5, 9] {
        let file = store.write(&meta(index), |out| out.write_all(&image)).unwrap();
        store.keep(file, true).unwrap();
    }
    // An older one that was slower to encode does not come back.
    let late = store.write(&meta(7), |out| out.write_all(b"late")).unwrap();
    assert_eq!(store.keep(late, true).unwrap().meta, meta(9));
    assert_eq!(files(dir.path()).len(), 1);
    // Left over from a crash while writing.
    std::fs::write(dir.path().join("ab.tmp"), b"half").unwrap();

    let reopened = SnapshotStore::open(dir.path().into(), cipher(KEY)).unwrap();
    assert_eq!(files(dir.path()).len(), 1);
    let current = reopened.current().unwrap();
    assert_eq!(current.meta, meta(9));
    let mut read = Vec::new();
    current.read(|image| image.read_to_end(&mut read)).unwrap();
    assert!(read == image);
    drop((current, reopened, store));

    assert!(SnapshotStore::open(dir.path().into(), cipher([0; 32])).is_err());
    let path = files(dir.path()).remove(0);
    let good = std::fs::read(&path).unwrap();
    let read_all = || -> std::io::Result<()> {
        let store = SnapshotStore::open(dir.path().into(), cipher(KEY))?;
        store.current().unwrap().read(|image| std::io::copy(image, &mut std::io::sink()))?;
        Ok(())
    };
    read_all().unwrap();
    for at in [3, 12, 26, 40, 300, CHUNK, 2 * CHUNK, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&path, &bad).unwrap();
        assert!(read_all().is_err(), "byte {at}");
    }
    for len in [0, 20, 100, CHUNK, good.len() - 1] {
        std::fs::write(&path, &good[..len]).unwrap();
        let message = read_all().unwrap_err().to_string();
        assert!(message.contains("damaged"), "{len}: {message}");
    }
}
