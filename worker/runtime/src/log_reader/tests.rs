//! Tests of the log reader against the writer of the supervisor.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::shim::logs::{Lines, LogWriter};
use crate::spec::LogOptions;

struct Fixture {
    dir: tempfile::TempDir,
    writer: LogWriter,
    lines: Lines,
}

impl Fixture {
    fn new(max_size: u64, max_files: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let writer = LogWriter::new(dir.path().join("log"), LogOptions { max_size, max_files }).unwrap();
        Fixture { dir, writer, lines: Lines::new("stdout") }
    }

    fn reader(&self) -> LogReader {
        LogReader::new(Dirs { run: self.dir.path().join("run"), state: self.dir.path().to_owned() })
    }

    fn print(&mut self, text: &str) {
        self.lines.push(text.as_bytes(), Timestamp::now(), &mut self.writer);
    }

    fn end(&mut self) {
        self.lines.finish(Timestamp::now(), &mut self.writer);
        std::fs::write(self.dir.path().join("exit.json"), "{}").unwrap();
    }
}

async fn drain(mut reader: LogReader) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(line) = reader.next().await {
        out.push(String::from_utf8(line.unwrap().bytes).unwrap());
    }
    out
}

#[tokio::test]
async fn tail_over_files() {
    let mut fixture = Fixture::new(4096, 8);
    for n in 0..200 {
        fixture.print(&format!("{n}\n"));
    }
    let all: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    assert_eq!(drain(fixture.reader()).await, all);
    for tail in [0usize, 1, 2, 59, 60, 61, 120, 199, 200, 500] {
        let expected = &all[200usize.saturating_sub(tail)..];
        assert_eq!(drain(fixture.reader().tail(Some(tail))).await, expected, "tail {tail}");
    }
}

/// A container may write faster than anybody reads.
#[tokio::test]
async fn who_does_not_follow_reads_to_where_the_log_ended() {
    for max_size in [4096, 1 << 20] {
        let mut fixture = Fixture::new(max_size, 64);
        for n in 0..200 {
            fixture.print(&format!("{n}\n"));
        }
        let (all, last) = (fixture.reader().dirs, fixture.reader().tail(Some(3)).dirs);
        let cursors = [Cursor::open(&all, None, false), Cursor::open(&last, Some(3), false)];
        let following = Cursor::open(&all, Some(3), true).unwrap().unwrap();
        for n in 200..2000 {
            fixture.print(&format!("{n}\n"));
        }
        let read = |mut cursor: Cursor| {
            let mut out = Vec::new();
            while cursor.read(&mut out).unwrap() {}
            out.into_iter().map(|line| String::from_utf8(line.bytes).unwrap()).collect::<Vec<_>>()
        };
        let [whole, tail] = cursors.map(|cursor| read(cursor.unwrap().unwrap()));
        assert_eq!((whole.len(), whole.last().map(String::as_str)), (200, Some("199")), "{max_size}");
        assert_eq!(tail, ["197", "198", "199"], "{max_size}");
        assert_eq!(read(following).len(), 1803, "{max_size}");
    }
}

#[tokio::test]
async fn since_a_moment() {
    let mut fixture = Fixture::new(1 << 20, 1);
    fixture.print("old\n");
    let moment = Timestamp::now();
    fixture.print("new\n");
    assert_eq!(drain(fixture.reader().since(Some(moment))).await, ["new"]);
}

#[tokio::test]
async fn until_a_moment() {
    let mut fixture = Fixture::new(1 << 20, 1);
    fixture.print("old\n");
    let moment = Timestamp::now();
    assert_eq!(drain(fixture.reader().until(Some(moment)).follow(true)).await, ["old"], "it is over");
    fixture.print("new\n");
    let soon = Timestamp::now() + Duration::from_millis(200);
    let reading = tokio::spawn(drain(fixture.reader().until(Some(soon)).follow(true)));
    // The container lives on and says nothing more.
    let seen = tokio::time::timeout(Duration::from_secs(10), reading).await.unwrap().unwrap();
    assert_eq!(seen, ["old", "new"]);
    while Timestamp::now() <= soon {
        tokio::task::yield_now().await;
    }
    fixture.print("late\n");
    assert_eq!(drain(fixture.reader().until(Some(soon))).await, ["old", "new"]);
}

#[tokio::test]
async fn following_sees_all_and_ends() {
    let mut fixture = Fixture::new(4096, 100);
    fixture.print("0\n");
    let reader = fixture.reader().follow(true);
    let reading = tokio::spawn(drain(reader));
    for n in 1..1000 {
        fixture.print(&format!("{n}\n"));
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    fixture.print("last, without an end");
    fixture.end();
    let seen = tokio::time::timeout(Duration::from_secs(10), reading).await.unwrap().unwrap();
    assert_eq!(seen.len(), 1001);
    assert_eq!(seen.last().unwrap(), "last, without an end");
}

#[tokio::test]
async fn no_log_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = Dirs { run: dir.path().join("run"), state: dir.path().join("gone") };
    assert!(drain(LogReader::new(dirs).follow(true)).await.is_empty());
}

#[tokio::test]
async fn a_slow_reader_goes_on_with_what_is_left() {
    let mut fixture = Fixture::new(4096, 2);
    fixture.print("first\n");
    let mut reader = fixture.reader().follow(true);
    assert_eq!(reader.next().await.unwrap().unwrap().bytes, b"first");
    for n in 0..2000 {
        fixture.print(&format!("{n}\n"));
    }
    fixture.end();
    let rest = drain(reader).await;
    assert_eq!(rest.last().unwrap(), "1999");
    assert!(rest.len() < 2000);
}
