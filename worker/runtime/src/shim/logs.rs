//! A container's output, as files: JSON lines, cut into files of bounded size of which a bounded number is kept.
//!
//! Decides where lines and files end. Never blocks on a reader and never lets the container wait for a full disk: what
//! can't be written is dropped, counted, and said in the log as soon as that is possible. Called by the supervisor.
//!
//! Files are numbered (`0000000001.log`), not renamed, so that a reader always knows which one comes next.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use crate::spec::LogOptions;

/// A line that is longer is written in parts of this size.
pub(crate) const MAX_LINE: usize = 16 << 10;

/// Name of a log file.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number:010}.log")
}

/// The numbers of the log files in a directory, ascending.
pub(crate) fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if let Some(number) =
            name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|digits| digits.parse().ok())
        {
            out.push(number);
        }
    }
    out.sort_unstable();
    Ok(out)
}

/// One record, as it is written.
#[derive(Serialize)]
struct RecordRef<'a> {
    log: &'a str,
    stream: &'a str,
    time: &'a str,
}

/// Writes the log of one container.
pub(crate) struct LogWriter {
    directory: PathBuf,
    options: LogOptions,
    file: Option<File>,
    number: u64,
    size: u64,
    /// Bytes of output that could not be written since the last success.
    dropped: u64,
}

impl LogWriter {
    /// Opens the first file, or goes on where an earlier run of the container stopped.
    pub(crate) fn new(directory: PathBuf, options: LogOptions) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let number = numbers(&directory)?.last().copied().unwrap_or(0);
        let mut writer = LogWriter { directory, options, file: None, number, size: 0, dropped: 0 };
        if number == 0 || !writer.go_on()? {
            writer.rotate()?;
        }
        Ok(writer)
    }

    /// Opens the newest file again, unless its last record is torn: the next one would stick to it.
    fn go_on(&mut self) -> io::Result<bool> {
        let path = self.directory.join(file_name(self.number));
        let file = OpenOptions::new().read(true).append(true).open(path)?;
        self.size = file.metadata()?.len();
        let mut last = [b'\n'];
        if let Some(at) = self.size.checked_sub(1) {
            file.read_exact_at(&mut last, at)?;
        }
        self.file = Some(file);
        Ok(last == [b'\n'])
    }

    /// Writes the lines of `records` (text, and whether the line ends here), all of one stream and time.
    fn write(&mut self, stream: &str, time: &str, records: &[(&[u8], bool)]) {
        if self.dropped > 0 {
            let note = format!("[skep: {} bytes of output lost, the log could not be written]", self.dropped);
            if self.record("stderr", time, note.as_bytes(), true).is_err() {
                self.dropped += records.iter().map(|(text, _)| text.len() as u64).sum::<u64>();
                return;
            }
            self.dropped = 0;
        }
        for (text, complete) in records {
            if self.record(stream, time, text, *complete).is_err() {
                self.dropped += text.len() as u64;
            }
        }
    }

    fn record(&mut self, stream: &str, time: &str, text: &[u8], complete: bool) -> io::Result<()> {
        let mut log = String::from_utf8_lossy(text).into_owned();
        if complete {
            log.push('\n');
        }
        let mut out = serde_json::to_vec(&RecordRef { log: &log, stream, time })?;
        out.push(b'\n');
        if self.file.is_none() || (self.size > 0 && self.size + out.len() as u64 > self.options.max_size) {
            self.rotate()?;
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        match file.write_all(&out) {
            Ok(()) => {
                self.size += out.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Whatever part arrived must not stick to the next record.
                let _ = file.set_len(self.size);
                Err(error)
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let next = self.number + 1;
        // The oldest goes first: on a full disk its room is what the new file needs.
        if let Some(oldest) = next.checked_sub(u64::from(self.options.max_files)).filter(|number| *number > 0) {
            let _ = fs::remove_file(self.directory.join(file_name(oldest)));
        }
        let path = self.directory.join(file_name(next));
        self.file = Some(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?);
        self.number = next;
        self.size = 0;
        Ok(())
    }
}

/// Cuts the bytes of one stream into lines.
pub(crate) struct Lines {
    stream: &'static str,
    partial: Vec<u8>,
}

impl Lines {
    /// For `stdout` or `stderr`.
    pub(crate) fn new(stream: &'static str) -> Self {
        Lines { stream, partial: Vec::new() }
    }

    /// Takes what was read and writes every line that is complete, or too long to wait for.
    pub(crate) fn push(&mut self, bytes: &[u8], now: Timestamp, log: &mut LogWriter) {
        let time = now.to_string();
        let held = std::mem::take(&mut self.partial);
        let joined;
        let mut rest = if held.is_empty() {
            bytes
        } else {
            joined = [held.as_slice(), bytes].concat();
            joined.as_slice()
        };
        let mut records: Vec<(&[u8], bool)> = Vec::new();
        loop {
            let window = &rest[..rest.len().min(MAX_LINE + 1)];
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                records.push((&rest[..end], true));
                rest = &rest[end + 1..];
            } else if rest.len() > MAX_LINE {
                let end = character_boundary(rest, MAX_LINE);
                records.push((&rest[..end], false));
                rest = &rest[end..];
            } else {
                break;
            }
        }
        log.write(self.stream, &time, &records);
        self.partial = rest.to_vec();
    }

    /// Writes what is left without an end of line.
    pub(crate) fn finish(&mut self, now: Timestamp, log: &mut LogWriter) {
        let rest = std::mem::take(&mut self.partial);
        if !rest.is_empty() {
            log.write(self.stream, &now.to_string(), &[(&rest, false)]);
        }
    }
}

/// The last place at or before `at` that doesn't tear a UTF-8 character.
fn character_boundary(bytes: &[u8], at: usize) -> usize {
    let continues = |index: usize| bytes.get(index).is_some_and(|byte| byte & 0xc0 == 0x80);
    (at.saturating_sub(3)..=at).rev().find(|index| !continues(*index)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn all(directory: &Path) -> Vec<serde_json::Value> {
        let mut out = Vec::new();
        for number in numbers(directory).unwrap() {
            let text = fs::read_to_string(directory.join(file_name(number))).unwrap();
            out.extend(text.lines().map(|line| serde_json::from_str(line).unwrap()));
        }
        out
    }

    #[test]
    fn lines_and_parts() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::new(dir.path().join("log"), LogOptions::default()).unwrap();
        let mut lines = Lines::new("stdout");
        let now = Timestamp::now();
        lines.push(b"one\ntw", now, &mut log);
        lines.push(b"o\n\n\xff\"\n", now, &mut log);
        let mut long = vec![b'a'; MAX_LINE - 1];
        long.extend("é".as_bytes());
        long.extend(b"rest");
        lines.push(&long, now, &mut log);
        lines.finish(now, &mut log);
        let texts: Vec<String> =
            all(&dir.path().join("log")).iter().map(|record| record["log"].as_str().unwrap().to_owned()).collect();
        assert_eq!(texts[..4], ["one\n", "two\n", "\n", "\u{fffd}\"\n"]);
        assert_eq!(texts[4].len(), MAX_LINE - 1, "the character is not torn");
        assert_eq!(texts[5], "érest");
    }

    #[test]
    fn the_next_run_goes_on_behind_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join("log");
        let options = LogOptions { max_size: 4096, max_files: 2 };
        let run = |text: &str| {
            let mut log = LogWriter::new(log_dir.clone(), options.clone()).unwrap();
            Lines::new("stdout").push(text.as_bytes(), Timestamp::now(), &mut log);
        };
        run("first\n");
        run("second\n");
        assert_eq!(numbers(&log_dir).unwrap(), [1], "short runs share a file");
        // As a crash leaves it.
        let mut file = OpenOptions::new().append(true).open(log_dir.join(file_name(1))).unwrap();
        file.write_all(b"{\"log\":\"tor").unwrap();
        run("third\n");
        let read = |number| fs::read_to_string(log_dir.join(file_name(number))).unwrap();
        assert!(read(1).contains("first") && read(1).contains("second") && read(2).contains("third"));
        for n in 0..200 {
            run(&format!("run {n}\n"));
        }
        let files = numbers(&log_dir).unwrap();
        assert_eq!(files.len(), 2, "as bounded as one run");
        for number in files {
            assert!(fs::metadata(log_dir.join(file_name(number))).unwrap().len() <= 4096);
        }
        assert_eq!(all(&log_dir).last().unwrap()["log"], "run 199\n");
    }

    #[test]
    fn a_flood_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join("log");
        let mut log = LogWriter::new(log_dir.clone(), LogOptions { max_size: 4096, max_files: 2 }).unwrap();
        let mut lines = Lines::new("stderr");
        for n in 0..2000 {
            lines.push(format!("line {n}\n").as_bytes(), Timestamp::now(), &mut log);
        }
        let files = numbers(&log_dir).unwrap();
        assert_eq!(files.len(), 2);
        for number in files {
            assert!(fs::metadata(log_dir.join(file_name(number))).unwrap().len() <= 4096);
        }
        assert_eq!(all(&log_dir).last().unwrap()["log"], "line 1999\n");
    }
}
