//! Drivers of several nodes in namespaces, with real packets between real servers.
//!
//! Needs root, and says UNTESTED without.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;
mod drift;
mod mesh;
mod names;
mod restart;
