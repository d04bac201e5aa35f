//! The replicated state: tables, their indexes, and the one deterministic function that changes them.
//!
//! Decides whether a command fits the state and what it changes; decides nothing about what *should* change (that is
//! `skep-plan`). Every member of the consensus group applies the same commands and has to arrive at the same bytes, so
//! nothing here asks a clock, draws a random number or iterates over anything unordered. Called by the state machine
//! of `skep-manager`, read by everybody who holds a clone.
#![forbid(unsafe_code)]

mod apply;
mod change;
mod find;
mod index;
mod since;
mod snapshot;
pub mod subnet;
mod tables;

pub use change::{Change, Value};
pub use find::FindError;
pub use since::{Difference, Pair};
pub use snapshot::SnapshotError;
pub use tables::{Id, Owner, State};

#[cfg(test)]
mod tests;
