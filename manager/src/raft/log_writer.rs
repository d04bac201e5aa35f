//! The one thread that writes the log: takes jobs in order, makes everything that waits durable with one sync, and only
//! then reports.
//!
//! Group commit is what makes the log fast: while one sync runs, the next batch gathers. Jobs that would clash inside a
//! batch (truncate and purge remove keys that an append may rewrite) are carried out alone. After a failed write or
//! sync nothing more is written: what the disk holds is unknown, and retrying a sync can claim what was lost.

use std::io;
use std::sync::Arc;

use openraft::storage::IOFlushed;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::anchor::{Anchor, Mark};
use super::disk::{Batch, Disk};
use super::log_store::Shared;
use super::types::{Entry, LogId, TypeConfig, Vote};

/// Bytes of entries that go into one batch.
const BATCH_BYTES: usize = 8 << 20;
const BATCH_JOBS: usize = 4096;

pub(crate) type Done = oneshot::Sender<io::Result<()>>;

/// A change of the log, in the order in which it has to reach the disk.
pub(crate) enum Job {
    /// Entries that readers see already; `permit` gives their bytes back once they are durable.
    Append {
        entries: Vec<Entry>,
        bytes: usize,
        done: IOFlushed<TypeConfig>,
        permit: Option<OwnedSemaphorePermit>,
    },
    Vote {
        vote: Vote,
        done: Done,
    },
    /// Not synced: only speeds up a restart.
    Committed {
        committed: LogId,
    },
    /// Removes `first..=last`; `end` is the last entry that stays.
    Truncate {
        first: u64,
        last: u64,
        end: Option<LogId>,
        done: Done,
    },
    /// Removes everything up to `upto`; `end` is the last entry afterwards.
    /// Nobody waits for it: until it is done there is only more on the disk than is needed. If it fails, so does
    /// everything after it.
    Purge {
        upto: LogId,
        end: Option<LogId>,
    },
    /// The disk hangs until the other end is gone.
    #[cfg(test)]
    Hang(std::sync::mpsc::Receiver<()>),
    /// Ends the thread.
    Close,
}

pub(crate) struct Writer {
    pub(crate) disk: Arc<Disk>,
    /// No entry is stored below this index.
    pub(crate) first: u64,
    pub(crate) anchor: Anchor,
    pub(crate) mark: Mark,
    pub(crate) shared: Arc<Shared>,
    pub(crate) jobs: mpsc::Receiver<Job>,
}

/// What waits for the sync of a batch.
#[derive(Default)]
struct Waiting {
    appends: Vec<(IOFlushed<TypeConfig>, Option<OwnedSemaphorePermit>)>,
    votes: Vec<Done>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    last: Option<LogId>,
    entries: Vec<Vec<Entry>>,
}

impl Writer {
    /// Runs until [`Job::Close`] or until every sender is gone.
    pub(crate) fn run(mut self) {
        let mut held: Option<Job> = None;
        loop {
            let Some(first) = held.take().or_else(|| self.jobs.blocking_recv()) else { return };
            let mut waiting = Waiting::default();
            let mut bytes = 0;
            let mut count = 0;
            let mut next = Some(first);
            // Gathers until a job has to run alone, nothing waits, or the batch is large enough.
            while let Some(job) = next {
                match waiting.take(job, &mut bytes) {
                    Ok(()) => count += 1,
                    Err(alone) => {
                        held = Some(alone);
                        break;
                    }
                }
                next = if bytes < BATCH_BYTES && count < BATCH_JOBS { self.jobs.try_recv().ok() } else { None };
            }
            self.flush(waiting);
            match held.take() {
                Some(Job::Close) => return,
                Some(job) => self.alone(job),
                None => {}
            }
        }
    }

    fn flush(&mut self, waiting: Waiting) {
        let sync = !waiting.appends.is_empty() || !waiting.votes.is_empty();
        if !sync && waiting.committed.is_none() {
            return;
        }
        let result = self.shared.healthy().and_then(|()| self.write(&waiting, sync));
        if let Err(e) = &result {
            tracing::error!(error = %e, "raft log write failed");
            self.shared.fail(e);
        }
        if result.is_ok()
            && let Some(last) = waiting.last
        {
            self.shared.flushed(last.index);
        }
        let again = || match &result {
            Ok(()) => Ok(()),
            Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
        };
        for done in waiting.votes {
            done.send(again()).ok();
        }
        for (done, permit) in waiting.appends {
            drop(permit);
            done.io_completed(again());
        }
    }

    fn write(&mut self, waiting: &Waiting, sync: bool) -> io::Result<()> {
        let mut batch: Batch = self.disk.batch();
        for entry in waiting.entries.iter().flatten() {
            self.disk.put_entry(&mut batch, entry)?;
        }
        if let Some(vote) = &waiting.vote {
            self.disk.put_vote(&mut batch, vote)?;
        }
        if let Some(committed) = &waiting.committed {
            self.disk.put_committed(&mut batch, committed)?;
        }
        self.disk.commit(batch, sync)?;
        if sync {
            self.mark.last = waiting.last.or(self.mark.last);
            self.mark.vote = waiting.vote.or(self.mark.vote);
            self.anchor.write(&self.mark, false)?;
        }
        Ok(())
    }

    fn alone(&mut self, job: Job) {
        let (result, done) = match job {
            Job::Truncate { first, last, end, done } => (self.truncate(first, last, end), Some(done)),
            Job::Purge { upto, end } => (self.purge(&upto, end), None),
            #[cfg(test)]
            Job::Hang(released) => {
                let _ = released.recv();
                return;
            }
            // `Waiting::take` keeps every other job.
            Job::Append { .. } | Job::Vote { .. } | Job::Committed { .. } | Job::Close => return,
        };
        if let Err(e) = &result {
            tracing::error!(error = %e, "raft log write failed");
            self.shared.fail(e);
        }
        if let Some(done) = done {
            done.send(result).ok();
        }
    }

    fn truncate(&mut self, first: u64, last: u64, end: Option<LogId>) -> io::Result<()> {
        self.shared.healthy()?;
        self.mark.last = end;
        self.anchor.write(&self.mark, true)?;
        self.disk.truncate(first, last)
    }

    fn purge(&mut self, upto: &LogId, end: Option<LogId>) -> io::Result<()> {
        self.shared.healthy()?;
        self.disk.purge(self.first, upto)?;
        self.first = upto.index + 1;
        // Only raises the mark where a snapshot replaced the log; the purge is durable by now.
        self.mark.last = self.mark.last.max(end.filter(|end| end.index <= upto.index));
        self.anchor.write(&self.mark, false)
    }
}

impl Waiting {
    /// Adds a job to the batch, or gives it back because it has to run alone.
    fn take(&mut self, job: Job, bytes: &mut usize) -> Result<(), Job> {
        match job {
            Job::Append { entries, bytes: size, done, permit } => {
                *bytes += size;
                self.last = entries.last().map(|entry| entry.log_id).or(self.last);
                self.entries.push(entries);
                self.appends.push((done, permit));
            }
            Job::Vote { vote, done } => {
                self.vote = Some(vote);
                self.votes.push(done);
            }
            Job::Committed { committed } => self.committed = Some(committed),
            alone => return Err(alone),
        }
        Ok(())
    }
}
