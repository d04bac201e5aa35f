//! The library's view of the log: what is appended is readable at once and acknowledged when it is durable.
//!
//! New entries live in memory until the writer thread ([`super::log_writer`]) has synced them, and a few megabytes
//! longer, so that replication and apply seldom read the disk. Called by the consensus core only; every state change
//! happens in the order of its calls.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::Stream;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::anchor::Mark;
use super::crypt::Cipher;
use super::disk::{Disk, DiskError, Loaded};
use super::log_writer::{Job, Writer};
use super::types::{Entry, LogId, TypeConfig, Vote, entry_bytes};
use super::wire;

/// Entries kept in memory once they are durable, in bytes.
const TAIL_BYTES: usize = 8 << 20;
/// Entries that may wait for the disk, in bytes; a slower disk slows the proposers down.
const UNSYNCED_BYTES: u32 = 64 << 20;
/// Jobs that may wait for the disk: more than proposals may be in flight, so that it is bytes that slow the core down.
const JOBS: usize = 16_384;
/// Entries sent in one append request or read at a time to be applied, in bytes.
pub(crate) const READ_BYTES: usize = 1 << 20;

/// What readers and the writer thread share.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Bytes appended since the last call of [`LogStore::take_appended`].
    appended: AtomicU64,
}

#[derive(Default)]
struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// The first entry that is there. Above zero without a purge only in a log that was started so.
    first: u64,
    last: Option<LogId>,
    /// The newest entries, without a gap up to `last`.
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    /// First index that is not durable yet.
    unsynced: u64,
    failed: Option<String>,
    disk: Option<Arc<Disk>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves plain values that are each valid by themselves.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error once a write has failed.
    pub(crate) fn healthy(&self) -> io::Result<()> {
        match &self.state().failed {
            None => Ok(()),
            Some(reason) => Err(io::Error::other(format!("the raft log stopped after a failed write: {reason}"))),
        }
    }

    pub(crate) fn fail(&self, error: &io::Error) {
        self.state().failed.get_or_insert_with(|| error.to_string());
    }

    /// Everything up to `index` is durable: memory beyond the cap is given back.
    pub(crate) fn flushed(&self, index: u64) {
        let mut state = self.state();
        // A truncation may have overtaken this append.
        let end = state.last.map_or(0, |id| id.index + 1);
        state.unsynced = state.unsynced.max((index + 1).min(end));
        while state.tail_bytes > TAIL_BYTES
            && let Some(front) = state.tail.front()
            && front.log_id.index < state.unsynced
        {
            state.tail_bytes -= entry_bytes(front);
            state.tail.pop_front();
        }
    }
}

/// The log of one node. Clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
}

/// Ends the writer thread and closes the tables.
pub(crate) struct Closer {
    store: LogStore,
    thread: std::thread::JoinHandle<()>,
}

impl LogStore {
    /// Opens the log in `dir`, checks it, and starts its writer.
    pub(crate) fn open(dir: &Path, cipher: Arc<Cipher>) -> Result<(Self, Closer), DiskError> {
        let (disk, anchor, loaded) = Disk::open(dir, cipher)?;
        let disk = Arc::new(disk);
        let Loaded { vote, committed, purged, first, last } = loaded;
        let state = State {
            vote,
            committed,
            purged,
            first,
            last,
            unsynced: last.map_or(0, |id| id.index + 1),
            disk: Some(Arc::clone(&disk)),
            ..State::default()
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), appended: AtomicU64::new(0) });
        let (jobs, receiver) = mpsc::channel(JOBS);
        let lowest = disk.first_index().unwrap_or(0);
        let writer = Writer {
            disk,
            first: lowest,
            anchor,
            mark: Mark { last, vote },
            shared: Arc::clone(&shared),
            jobs: receiver,
        };
        let thread = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || writer.run())
            .map_err(|source| DiskError::Io { dir: dir.into(), source })?;
        let store = Self { shared, jobs, room: Arc::new(Semaphore::new(UNSYNCED_BYTES as usize)) };
        Ok((store.clone(), Closer { store, thread }))
    }

    /// Bytes appended since the last call.
    pub(crate) fn take_appended(&self) -> u64 {
        self.shared.appended.swap(0, Ordering::Relaxed)
    }

    /// The vote, which is durable, and the last entry, which may not be.
    pub(crate) fn mark(&self) -> Mark {
        let state = self.shared.state();
        Mark { last: state.last, vote: state.vote }
    }

    /// Has the disk hang until what is returned is dropped.
    #[cfg(test)]
    pub(crate) async fn hang(&self) -> io::Result<std::sync::mpsc::Sender<()>> {
        let (hold, released) = std::sync::mpsc::channel();
        self.send(Job::Hang(released)).await.map(|()| hold)
    }

    async fn send(&self, job: Job) -> io::Result<()> {
        self.shared.healthy()?;
        self.jobs.send(job).await.map_err(|_| io::Error::other("the raft log is closed"))
    }

    async fn durable(&self, job: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Job) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.send(job(done)).await?;
        wait.await.unwrap_or_else(|_| Err(io::Error::other("the raft log closed before the write was done")))
    }

    /// Refuses entries that would leave a hole in the log: what is in one is never applied.
    fn fits(&self, entries: &[Entry]) -> io::Result<()> {
        let Some(first) = entries.first() else { return Ok(()) };
        // An empty log begins wherever its first entry says.
        let before = self.shared.state().last.map(|id| id.index).or(first.log_id.index.checked_sub(1));
        wire::gapless(before, entries).map_err(io::Error::other)
    }

    /// Entries of `first..end` that the log holds, at least one if it holds any, at most about `budget` bytes.
    async fn read(&self, first: u64, end: u64, budget: usize) -> io::Result<Vec<Entry>> {
        let mut entries;
        let cold;
        {
            let state = self.shared.state();
            let first = first.max(state.first);
            let end = end.min(state.last.map_or(0, |id| id.index + 1));
            if first >= end {
                return Ok(Vec::new());
            }
            let tail_first = state.tail.front().map_or(u64::MAX, |entry| entry.log_id.index);
            let cold_end = end.min(tail_first);
            cold = (first < cold_end).then(|| (first, cold_end - 1, state.disk.clone()));
            let skip = first.saturating_sub(tail_first);
            let take = end.saturating_sub(first.max(tail_first));
            let range = usize::try_from(skip).unwrap_or(usize::MAX)..;
            entries = if take == 0 || range.start >= state.tail.len() {
                Vec::new()
            } else {
                state.tail.range(range).take(usize::try_from(take).unwrap_or(usize::MAX)).cloned().collect()
            };
        }
        let Some((first, last, disk)) = cold else {
            cap(&mut entries, budget);
            return Ok(entries);
        };
        let disk = disk.ok_or_else(|| io::Error::other("the raft log is closed"))?;
        let read = tokio::task::spawn_blocking(move || disk.read(first, last, budget));
        let mut found = read.await.map_err(io::Error::other)??;
        if found.last().is_some_and(|entry| entry.log_id.index == last) {
            found.append(&mut entries);
        } else if found.is_empty() {
            found = entries;
        }
        cap(&mut found, budget);
        Ok(found)
    }
}

impl Closer {
    /// Writes what waits, ends the thread and closes the files. Clones of the store fail from here on.
    ///
    /// Blocks for as long as the disk needs, and up to five seconds more for a read that is under way.
    pub(crate) fn close(self) -> io::Result<()> {
        // Fails when the thread has ended already, which is what is wanted.
        self.store.jobs.blocking_send(Job::Close).ok();
        self.thread.join().map_err(|_| io::Error::other("the raft log's writer panicked"))?;
        let disk = self.store.shared.state().disk.take();
        if let Some(disk) = disk {
            let weak = Arc::downgrade(&disk);
            drop(disk);
            for _ in 0..500 {
                if weak.strong_count() == 0 {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a reader kept the raft log open"));
        }
        Ok(())
    }
}

fn cap(entries: &mut Vec<Entry>, budget: usize) {
    let mut bytes = 0;
    let within = entries
        .iter()
        .take_while(|entry| {
            bytes += entry_bytes(entry);
            bytes <= budget
        })
        .count();
    entries.truncate(within.max(1));
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let first = match range.start_bound() {
        Bound::Included(first) => *first,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (first, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (first, end) = bounds(&range);
        self.read(first, end, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.state().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        // What was purged is answered with what comes after it, out of the range if need be: nothing at all would be taken
        // for a log that has no more yet, and the hole is noticed by whoever sends the entries.
        let left = self.shared.state().first;
        let end = if start < left { end.max(left + 1) } else { end };
        self.read(start, end, READ_BYTES).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        use futures::StreamExt as _;
        let (first, end) = bounds(&range);
        let store = self.clone();
        // Reads on only when what was read is used up: a long replay needs little memory.
        futures::stream::unfold(Some(first), move |next| {
            let store = store.clone();
            async move {
                let first = next?;
                let read = store.read(first, end, READ_BYTES).await;
                let (items, next) = match read {
                    Ok(entries) => {
                        let next = entries.last().map(|entry| entry.log_id.index + 1).filter(|next| *next < end);
                        (entries.into_iter().map(Ok).collect(), next)
                    }
                    Err(e) => (vec![Err(e)], None),
                };
                Some((futures::stream::iter(items), next))
            }
        })
        .flatten()
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.shared.state();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        self.durable(|done| Job::Vote { vote, done }).await?;
        self.shared.state().vote = Some(vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        self.shared.state().committed = Some(committed);
        self.send(Job::Committed { committed }).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.state().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.fits(&entries)?;
        let bytes: usize = entries.iter().map(entry_bytes).sum();
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX).min(UNSYNCED_BYTES);
        let room = Arc::clone(&self.room).acquire_many_owned(wanted).await;
        let permit = Some(room.map_err(io::Error::other)?);
        self.shared.healthy()?;
        {
            let mut state = self.shared.state();
            if state.last.is_none()
                && let Some(entry) = entries.first()
            {
                state.first = entry.log_id.index;
            }
            for entry in &entries {
                state.tail_bytes += entry_bytes(entry);
                state.tail.push_back(entry.clone());
            }
            state.last = entries.last().map(|entry| entry.log_id).or(state.last);
        }
        self.shared.appended.fetch_add(bytes as u64, Ordering::Relaxed);
        self.send(Job::Append { entries, bytes, done: callback, permit }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let keep = last_log_id.map_or(0, |id| id.index + 1);
        let last;
        {
            let mut state = self.shared.state();
            let Some(old) = state.last.filter(|old| old.index >= keep) else { return Ok(()) };
            last = old.index;
            while let Some(back) = state.tail.back().filter(|back| back.log_id.index >= keep) {
                state.tail_bytes -= entry_bytes(back);
                state.tail.pop_back();
            }
            state.unsynced = state.unsynced.min(keep);
            state.last = last_log_id;
        }
        self.durable(|done| Job::Truncate { first: keep, last, end: last_log_id, done }).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let end;
        {
            let mut state = self.shared.state();
            if state.purged.is_some_and(|purged| purged.index >= log_id.index) {
                return Ok(());
            }
            state.purged = Some(log_id);
            state.first = log_id.index + 1;
            while let Some(front) = state.tail.front().filter(|front| front.log_id.index <= log_id.index) {
                state.tail_bytes -= entry_bytes(front);
                state.tail.pop_front();
            }
            if state.last.is_none_or(|last| last.index <= log_id.index) {
                state.last = Some(log_id);
                state.unsynced = log_id.index + 1;
            }
            end = state.last;
        }
        self.send(Job::Purge { upto: log_id, end }).await
    }
}
