//! Remembers outside the log how far the log was durable, so that a log that comes back shorter is noticed.
//!
//! The storage engine drops everything behind the first unreadable record of its journal, which is right after a crash
//! in the middle of a write and wrong when a disk lost what was already acknowledged: such a node would vote and
//! acknowledge as if it had never promised anything. The anchor is a small file with two slots, written in turn after
//! each sync of the log (without a sync of its own: it may lag after a power cut, never lead) and synced before the log
//! is shortened on purpose. Opening refuses a log or a vote older than the anchor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use prost::Message as _;
use skep_proto::v1;

use super::crypt::Cipher;
use super::types::{LogId, Vote};
use super::wire;

const SLOT: u64 = 256;
const PLACE: &[u8] = b"anchor";

/// What was durable for certain.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(crate) struct Mark {
    pub(crate) last: Option<LogId>,
    pub(crate) vote: Option<Vote>,
}

/// The open anchor file.
pub(crate) struct Anchor {
    file: File,
    cipher: Arc<Cipher>,
    sequence: u64,
}

impl Anchor {
    /// Opens or creates the file and returns the newest readable mark; an unreadable slot (torn write) is skipped.
    pub(crate) fn open(path: &Path, cipher: Arc<Cipher>) -> io::Result<(Self, Option<Mark>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut best: Option<(u64, Mark)> = None;
        for slot in 0..2 {
            if let Some((sequence, mark)) = read_slot(&file, slot, &cipher)
                && best.as_ref().is_none_or(|(newest, _)| sequence > *newest)
            {
                best = Some((sequence, mark));
            }
        }
        let sequence = best.as_ref().map_or(0, |(sequence, _)| *sequence);
        Ok((Self { file, cipher, sequence }, best.map(|(_, mark)| mark)))
    }

    /// Writes a mark; `sync` waits for the disk.
    pub(crate) fn write(&mut self, mark: &Mark, sync: bool) -> io::Result<()> {
        self.sequence += 1;
        let mut plain = self.sequence.to_be_bytes().to_vec();
        let vote = mark.vote.as_ref().map(wire::vote_to);
        let last = mark.last.as_ref().map(wire::log_id_to);
        // Reuses the vote request's shape: it is exactly "a vote and a last log id".
        plain.extend(v1::RaftVoteRequest { vote, last, ..Default::default() }.encode_to_vec());
        let sealed = self.cipher.seal(PLACE, &plain).map_err(io::Error::other)?;
        let mut slot = Vec::with_capacity(sealed.len() + 2);
        slot.extend_from_slice(&u16::try_from(sealed.len()).map_err(io::Error::other)?.to_be_bytes());
        slot.extend_from_slice(&sealed);
        self.file.write_all_at(&slot, (self.sequence % 2) * SLOT)?;
        if sync {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

fn read_slot(file: &File, slot: u64, cipher: &Cipher) -> Option<(u64, Mark)> {
    let mut len = [0; 2];
    file.read_exact_at(&mut len, slot * SLOT).ok()?;
    let len = u16::from_be_bytes(len);
    if len == 0 || u64::from(len) + 2 > SLOT {
        return None;
    }
    let mut sealed = vec![0; usize::from(len)];
    file.read_exact_at(&mut sealed, slot * SLOT + 2).ok()?;
    let plain = cipher.open(PLACE, &sealed, || "the log's anchor".into()).ok()?;
    let (sequence, rest) = plain.split_first_chunk::<8>()?;
    let request = v1::RaftVoteRequest::decode(rest).ok()?;
    let mark = Mark { last: request.last.map(wire::log_id_of), vote: request.vote.map(wire::vote_of) };
    Some((u64::from_be_bytes(*sequence), mark))
}
