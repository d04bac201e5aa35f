//! Containers end to end: real namespaces, cgroups and overlays, with a busybox image made on the spot.
//!
//! Needs root. Everything has names of its own and is removed even when a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod crash;
mod exec;
mod fixture;
mod hostile;
mod hostile_exec;
mod isolation;
mod kernel_paths;
mod lifecycle;
mod limits;
mod races;
mod vm;
