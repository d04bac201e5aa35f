//! Reading a container's output, from its files, while or after it runs.
//!
//! Decides which lines (since, tail) and when there are no more (follow). Reads the supervisor's files and never talks
//! to it, so a slow reader costs the container nothing; one that is slower than the files are given up misses lines, and
//! goes on with the oldest that are left. Called by the daemon for `logs`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::inotify;
use serde::Deserialize;
use tokio::io::unix::AsyncFd;

use crate::shim::logs::{file_name, numbers};
use crate::state::{Dirs, EXIT};

/// Read at once.
const CHUNK: usize = 64 << 10;
/// The longest record that is believed: a line of the longest kind, every byte escaped.
const MAX_RECORD: usize = 256 << 10;
/// How often to look without being told, in case a notice was missed.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same where the kernel has no notices left to give.
const POLL: Duration = Duration::from_millis(100);

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Where it came from.
    pub stream: Stream,
    /// When it was read from the container.
    pub time: Timestamp,
    /// Its text, without the end of line. UTF-8; other bytes were replaced when it was written.
    pub bytes: Vec<u8>,
    /// The line goes on in the stream's next record.
    pub partial: bool,
}

/// A record, as it is in the files.
#[derive(Deserialize)]
struct Record {
    log: String,
    stream: Stream,
    #[serde(with = "crate::state::time")]
    time: Timestamp,
}

/// Reads the lines of one container. Made by [`crate::Runtime::logs`]; set the choices, then call [`LogReader::next`].
pub struct LogReader {
    dirs: Dirs,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tail: Option<usize>,
    follow: bool,
    cursor: Option<Cursor>,
    queue: VecDeque<LogLine>,
    watch: Option<AsyncFd<OwnedFd>>,
    done: bool,
}

impl LogReader {
    pub(crate) fn new(dirs: Dirs) -> Self {
        LogReader {
            dirs,
            since: None,
            until: None,
            tail: None,
            follow: false,
            cursor: None,
            queue: VecDeque::new(),
            watch: None,
            done: false,
        }
    }

    /// Only lines at or after this time.
    pub fn since(mut self, since: Option<Timestamp>) -> Self {
        self.since = since;
        self
    }

    /// Only lines at or before this time; following ends then.
    pub fn until(mut self, until: Option<Timestamp>) -> Self {
        self.until = until;
        self
    }

    /// Begin with the last `lines` records.
    pub fn tail(mut self, lines: Option<usize>) -> Self {
        self.tail = lines;
        self
    }

    /// At the end of the log, wait for more, until the container has ended.
    pub fn follow(mut self, follow: bool) -> Self {
        self.follow = follow;
        self
    }

    /// The next line; `None` at the end. Can be dropped and called again without losing a line.
    ///
    /// Files are read in small pieces on the calling thread, once their beginning is found: they are nearly always in memory.
    pub async fn next(&mut self) -> Option<io::Result<LogLine>> {
        loop {
            if let Some(line) = self.queue.pop_front() {
                return Some(Ok(line));
            }
            if self.done {
                return None;
            }
            // In this order: lines that were written before the end are found after it was seen.
            let ended = self.ended() || self.until.is_some_and(|until| Timestamp::now() > until);
            match self.refill().await {
                Ok(true) => continue,
                Ok(false) if !self.follow || ended => self.done = true,
                Ok(false) => self.pause().await,
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// The container has ended, or is gone.
    fn ended(&self) -> bool {
        self.dirs.exit().exists() || self.dirs.run.join(EXIT).exists() || !self.dirs.state.exists()
    }

    /// Reads a piece; whether there was any.
    async fn refill(&mut self) -> io::Result<bool> {
        if self.cursor.is_none() {
            if self.follow && self.watch.is_none() {
                self.watch = watch(&self.dirs).ok();
            }
            // Whoever wants the last lines has all of them counted: megabytes are too much for a thread that serves others.
            let (dirs, tail, follow) = (self.dirs.clone(), self.tail, self.follow);
            let opened = tokio::task::spawn_blocking(move || Cursor::open(&dirs, tail, follow));
            self.cursor = opened.await.map_err(io::Error::other)??;
        }
        let Some(cursor) = &mut self.cursor else { return Ok(false) };
        let mut records = Vec::new();
        let any = cursor.read(&mut records)?;
        let (since, until) = (self.since, self.until);
        let before = records.len();
        records.retain(|line| until.is_none_or(|until| line.time <= until));
        self.done = records.len() < before;
        self.queue.extend(records.into_iter().filter(|line| since.is_none_or(|since| line.time >= since)));
        Ok(any)
    }

    /// Until something changes, or a while has passed.
    async fn pause(&mut self) {
        let Some(watch) = &self.watch else { return tokio::time::sleep(POLL).await };
        let left = self.until.and_then(|until| Duration::try_from(until.duration_since(Timestamp::now())).ok());
        let patience = left.map_or(PATIENCE, |left| left.min(PATIENCE));
        if let Ok(Ok(mut guard)) = tokio::time::timeout(patience, watch.readable()).await {
            let mut space = [MaybeUninit::uninit(); 4096];
            let _ = rustix::io::read(watch.get_ref(), &mut space);
            guard.clear_ready();
        }
    }
}

/// Notices of new output, new files, and the exit note.
fn watch(dirs: &Dirs) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    let output = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
    inotify::add_watch(&fd, dirs.logs(), output)?;
    inotify::add_watch(&fd, &dirs.state, inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::MOVE_SELF)?;
    // SAFETY: an owned descriptor stays the same and open for as long as its owner, which moves in here.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// A place in the files.
struct Cursor {
    dirs: Dirs,
    number: u64,
    file: File,
    /// The beginning of a record whose end is not there yet.
    rest: Vec<u8>,
    /// Where reading ends, as file and bytes in it: a container may write faster than anybody reads.
    end: Option<(u64, u64)>,
    /// Bytes of this file that were read or passed over.
    at: u64,
}

impl Cursor {
    /// At the oldest line, or so that `tail` records are left; `None` while there is no log. Unless more is waited for,
    /// it ends where the log ends now.
    fn open(dirs: &Dirs, tail: Option<usize>, follow: bool) -> io::Result<Option<Self>> {
        let found = match numbers(&dirs.logs()) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((mut number, mut skip)) = found.first().map(|first| (*first, 0)) else { return Ok(None) };
        let end = match found.last() {
            Some(last) if !follow => {
                let size = existing(fs::metadata(dirs.logs().join(file_name(*last))))?.map_or(0, |file| file.len());
                Some((*last, size))
            }
            _ => None,
        };
        if let Some(tail) = tail {
            let mut left = tail;
            for candidate in found.iter().rev() {
                let size = end.filter(|(last, _)| last == candidate).map_or(u64::MAX, |(_, size)| size);
                let Some(lines) = count_lines(dirs, *candidate, size)? else { break };
                (number, skip) = (*candidate, lines.saturating_sub(left));
                left = left.saturating_sub(lines);
                if left == 0 {
                    break;
                }
            }
        }
        let path = dirs.logs().join(file_name(number));
        let Some(mut file) = existing(File::open(path))? else { return Ok(None) };
        skip_lines(&mut file, skip)?;
        let at = file.stream_position()?;
        Ok(Some(Cursor { dirs: dirs.clone(), number, file, rest: Vec::new(), end, at }))
    }

    /// Reads a piece; false at the end of everything.
    fn read(&mut self, out: &mut Vec<LogLine>) -> io::Result<bool> {
        if self.read_piece(out)? {
            return Ok(true);
        }
        if self.end.is_some_and(|(last, _)| self.number >= last) {
            return Ok(false);
        }
        let next = match numbers(&self.dirs.logs()) {
            Ok(found) => found.into_iter().find(|number| *number > self.number),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let Some(next) = next else { return Ok(false) };
        // Once there is a next file, this one is complete: read what came since.
        if self.read_piece(out)? {
            return Ok(true);
        }
        // Given up in between: the next look finds the one after it.
        if let Some(file) = existing(File::open(self.dirs.logs().join(file_name(next))))? {
            self.file = file;
            self.rest.clear();
            self.at = 0;
        }
        self.number = next;
        Ok(true)
    }

    fn read_piece(&mut self, out: &mut Vec<LogLine>) -> io::Result<bool> {
        let start = self.rest.len();
        let left = match self.end {
            Some((last, size)) if self.number == last => size.saturating_sub(self.at),
            Some((last, _)) if self.number > last => 0,
            _ => u64::MAX,
        };
        self.rest.resize(start + usize::try_from(left).unwrap_or(CHUNK).min(CHUNK), 0);
        let count = self.file.read(&mut self.rest[start..]);
        self.rest.truncate(start + *count.as_ref().unwrap_or(&0));
        let count = count?;
        self.at += u64::try_from(count).unwrap_or(0);
        if count == 0 {
            return Ok(false);
        }
        if let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') {
            out.extend(self.rest[..end].split(|byte| *byte == b'\n').filter_map(parse));
            self.rest.drain(..=end);
        } else if self.rest.len() > MAX_RECORD {
            self.rest.clear();
        }
        Ok(true)
    }
}

/// What is gone is nothing, not an error.
fn existing<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Lines in the first `size` bytes of a file.
fn count_lines(dirs: &Dirs, number: u64, size: u64) -> io::Result<Option<usize>> {
    let Some(file) = existing(File::open(dirs.logs().join(file_name(number))))? else { return Ok(None) };
    let mut file = file.take(size);
    let mut buffer = vec![0; CHUNK];
    let mut lines = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Some(lines)),
            count => lines += buffer[..count].iter().filter(|byte| **byte == b'\n').count(),
        }
    }
}

fn skip_lines(file: &mut File, mut lines: usize) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while lines > 0 {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let Some((at, _)) = buffer[..count].iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(lines - 1)
        else {
            lines -= buffer[..count].iter().filter(|byte| **byte == b'\n').count();
            continue;
        };
        let back = i64::try_from(count - at - 1).unwrap_or(0);
        file.seek(SeekFrom::Current(-back))?;
        break;
    }
    Ok(())
}

/// A record that can't be read (a torn one, after a crash) is passed over.
fn parse(line: &[u8]) -> Option<LogLine> {
    let record: Record = serde_json::from_slice(line).ok()?;
    let mut bytes = record.log.into_bytes();
    let partial = bytes.pop_if(|byte| *byte == b'\n').is_none();
    Some(LogLine { stream: record.stream, time: record.time, bytes, partial })
}

#[cfg(test)]
mod tests;
