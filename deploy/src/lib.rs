//! How Skep gets onto machines. Today: the lab, a cluster of many nodes on one machine.
//!
//! The lab knows no manager, worker or API: it makes machines out of namespaces and runs the `skep` program in them,
//! the way a person would. The command line and the tests call it.
#![forbid(unsafe_code)]

pub mod lab;
