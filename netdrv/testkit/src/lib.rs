//! Networks for tests: hosts and a client on one switch, all in namespaces of their own, servers that tell who asked, and the
//! proof that nothing is left.
//!
//! Decides nothing about the product, and is never part of it. Must never touch the namespace of the test itself: everything
//! happens in namespaces without names, which the kernel removes when their last descriptor closes, even after a crash.
//! Called by the tests of the network rooms and by those across crates.
#![forbid(unsafe_code)]

mod absence;
mod client;
mod server;
mod topology;
mod wait;

pub use absence::{Canary, leftovers, nothing_left, unique_prefix};
pub use client::{answers, http_get, udp_ask};
pub use server::{Answer, Server};
pub use topology::{Node, Topology, UNDERLAY_PREFIX};
pub use wait::{DEADLINE, eventually};
