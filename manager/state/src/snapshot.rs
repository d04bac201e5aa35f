//! The state as a stream of length-delimited records: a header, then every object. Equal states give equal bytes.
//!
//! Compression, encryption and checksums belong to whoever stores the stream.

use std::io::{Read, Write};
use std::sync::Arc;

use prost::Message;
use skep_proto::v1::{Object, SharedTaskSpec, SnapshotHeader, SnapshotRecord, object, snapshot_record::Kind};

use crate::tables::{Id, State};

/// What this code writes. A newer format is refused, not guessed at.
const FORMAT: u32 = 1;
/// Largest record in bytes: a service with its previous spec, both as large as a command may be, stays far below.
const RECORD: usize = 8 << 20;

/// Why a snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The stream failed.
    #[error("the snapshot's stream failed: {0}")]
    Io(#[from] std::io::Error),
    /// A record is no message that this version knows.
    #[error("record {number} of the snapshot is damaged: {source}")]
    Damaged {
        /// Counted from 0, the header.
        number: u64,
        /// What the decoder says.
        source: prost::DecodeError,
    },
    /// A record is larger than any that this code writes.
    #[error("record {number} of the snapshot claims {bytes} bytes; {RECORD} is the most")]
    TooLarge {
        /// Counted from 0, the header.
        number: u64,
        /// What it claims.
        bytes: u64,
    },
    /// The stream does not begin with a header of a known format.
    #[error("this is no snapshot of format {FORMAT}: {0}")]
    Format(String),
}

impl State {
    /// Writes everything; `index` is the last command that was applied.
    pub fn encode_snapshot(&self, index: u64, out: &mut dyn Write) -> Result<(), SnapshotError> {
        let mut number = 0;
        let mut write = |kind: Kind| -> Result<(), SnapshotError> {
            let record = SnapshotRecord { kind: Some(kind) };
            let bytes = record.encoded_len();
            if bytes > RECORD {
                return Err(SnapshotError::TooLarge { number, bytes: bytes as u64 });
            }
            number += 1;
            Ok(out.write_all(&record.encode_length_delimited_to_vec())?)
        };
        write(Kind::Header(SnapshotHeader { format: FORMAT, index }))?;
        let object = |kind| Kind::Object(Object { kind: Some(kind) });
        if let Some(cluster) = &self.cluster {
            write(object(object::Kind::Cluster(cluster.as_ref().clone())))?;
        }
        for node in self.nodes.values() {
            write(object(object::Kind::Node(node.as_ref().clone())))?;
        }
        for network in self.networks.values() {
            write(object(object::Kind::Network(network.as_ref().clone())))?;
        }
        for secret in self.secrets.values() {
            write(object(object::Kind::Secret(secret.as_ref().clone())))?;
        }
        for config in self.configs.values() {
            write(object(object::Kind::Config(config.as_ref().clone())))?;
        }
        // Specs before the tasks that are counted as their holders.
        for ((service_id, version), shared) in &self.specs {
            let spec = Some(shared.spec.as_ref().clone());
            write(Kind::TaskSpec(SharedTaskSpec { service_id: service_id.to_string(), version: *version, spec }))?;
        }
        for service in self.services.values() {
            write(object(object::Kind::Service(service.as_ref().clone())))?;
        }
        for task in self.tasks.values() {
            write(object(object::Kind::Task(task.as_ref().clone())))?;
        }
        Ok(())
    }

    /// Reads what [`State::encode_snapshot`] wrote, to the end of the stream; returns the index too.
    pub fn decode_snapshot(input: &mut dyn Read) -> Result<(u64, Self), SnapshotError> {
        let mut records = Records { input, number: 0, buffer: Vec::new() };
        let index = match records.next()? {
            Some(Kind::Header(header)) if header.format == FORMAT => header.index,
            Some(Kind::Header(header)) => return Err(SnapshotError::Format(format!("it says {}", header.format))),
            _ => return Err(SnapshotError::Format("its first record is no header".into())),
        };
        let mut state = Self::default();
        while let Some(kind) = records.next()? {
            match kind {
                Kind::Header(_) => return Err(SnapshotError::Format("it has a second header".into())),
                Kind::TaskSpec(shared) => {
                    let spec = Arc::new(shared.spec.unwrap_or_default());
                    state.insert_spec(&Id::from(shared.service_id), shared.version, spec);
                }
                Kind::Object(object) => state.restore(object),
            }
        }
        Ok((index, state))
    }

    fn restore(&mut self, object: Object) {
        match object.kind {
            None => {}
            Some(object::Kind::Cluster(cluster)) => self.cluster = Some(Arc::new(cluster)),
            Some(object::Kind::Node(node)) => self.insert_node(Arc::new(node)),
            Some(object::Kind::Service(service)) => self.insert_service(Arc::new(service)),
            Some(object::Kind::Task(task)) => self.insert_task(Arc::new(task)),
            Some(object::Kind::Network(network)) => self.insert_network(Arc::new(network)),
            Some(object::Kind::Secret(secret)) => self.insert_secret(Arc::new(secret)),
            Some(object::Kind::Config(config)) => self.insert_config(Arc::new(config)),
        }
    }
}

struct Records<'a> {
    input: &'a mut dyn Read,
    number: u64,
    buffer: Vec<u8>,
}

impl Records<'_> {
    /// The next record; `None` where the stream ends between two.
    fn next(&mut self) -> Result<Option<Kind>, SnapshotError> {
        let Some(bytes) = self.length()? else { return Ok(None) };
        if bytes > RECORD as u64 {
            return Err(SnapshotError::TooLarge { number: self.number, bytes });
        }
        self.buffer.resize(usize::try_from(bytes).unwrap_or(RECORD), 0);
        self.input.read_exact(&mut self.buffer)?;
        let record = SnapshotRecord::decode(self.buffer.as_slice())
            .map_err(|source| SnapshotError::Damaged { number: self.number, source })?;
        self.number += 1;
        match record.kind {
            Some(kind) => Ok(Some(kind)),
            None => Err(SnapshotError::Format(format!("record {} is of an unknown kind", self.number - 1))),
        }
    }

    fn length(&mut self) -> Result<Option<u64>, SnapshotError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            match self.input.read_exact(&mut byte) {
                Ok(()) => {}
                Err(error) if shift == 0 && error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(Some(value));
            }
        }
        Err(SnapshotError::TooLarge { number: self.number, bytes: u64::MAX })
    }
}
