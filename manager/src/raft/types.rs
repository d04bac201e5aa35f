//! What the consensus library is told about our types: node ids, addresses, and commands and replies as opaque bytes.
//!
//! Nothing outside `raft/` sees these names, so that the library can be replaced. A command may carry a secret: its
//! `Debug` and `Display` print its length only.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_adv;
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

openraft::declare_raft_types!(
    pub(crate) TypeConfig:
        D = Blob,
        R = Blob,
);

pub(crate) type LeaderId = leader_id_adv::LeaderId<u64, u64>;
pub(crate) type LogId = openraft::LogId<LeaderId>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type Node = openraft::BasicNode;
pub(crate) type Payload = openraft::EntryPayload<Blob, u64, Node>;
pub(crate) type Entry = openraft::Entry<LeaderId, Payload>;
pub(crate) type Membership = openraft::Membership<u64, Node>;
pub(crate) type StoredMembership = openraft::StoredMembership<LeaderId, u64, Node>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, Node>;
pub(crate) type Snapshot = openraft::Snapshot<LeaderId, u64, Node, super::snapshot::SnapshotData>;
pub(crate) type Core = openraft::Raft<TypeConfig, super::state_machine::Machine>;
pub(crate) type Metrics = openraft::RaftMetrics<TypeConfig>;

/// A command or a reply: bytes that only the state machine understands.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Blob(pub(crate) Bytes);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

// The library's `serde` feature asks for these; disk and wire use `wire.rs` instead.
impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| Self(bytes.into()))
    }
}

/// Bytes that an entry costs in memory and, nearly, on the wire.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    const OVERHEAD: usize = 96;
    match &entry.payload {
        Payload::Blank => OVERHEAD,
        Payload::Normal(command) => OVERHEAD + command.0.len(),
        Payload::Membership(membership) => OVERHEAD + 96 * membership.nodes().count(),
    }
}
