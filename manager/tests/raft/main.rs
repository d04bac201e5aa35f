//! The consensus as its callers see it: real managers on loopback, with what goes wrong with them.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod chaos;
mod cluster;
mod kill;
mod support;
