//! The wire format: what nodes say to each other and what the log holds.
//!
//! The messages are generated from `proto/`; beside them stand the rules that belong to a single value: the order of
//! task states, ids, times, sizes, placeholders in texts. Nothing here knows how a message is stored or sent.
#![forbid(unsafe_code)]

pub mod id;
pub mod pace;
pub mod size;
pub mod task_state;
pub mod template;
pub mod time;

/// Metadata key of a refusal that time mends: what uses the object is being removed itself.
pub const DRAINING: &str = "skep-draining";

/// Generated messages and services of package `skep.v1`.
#[expect(missing_docs, clippy::all, reason = "generated; the .proto files carry the documentation")]
pub mod v1 {
    tonic::include_proto!("skep.v1");
}
