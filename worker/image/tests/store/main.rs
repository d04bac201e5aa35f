//! The image store as its callers see it: archives in, layers and archives out, and nothing where nothing
//! should be. Runs as root, in temporary directories only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod archives;
mod damage;
mod hostile;
mod kit;
mod names;
mod overlay;
