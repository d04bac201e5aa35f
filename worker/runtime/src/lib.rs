//! Containers: the supervisor that runs each of them, and the daemon's side that makes, watches and removes them.
//!
//! Decides how a container is isolated, what is left of it on disk, and what is true about it after any crash; decides
//! nothing about tasks, images or networks (layers and a network namespace come in as paths). The daemon calls
//! [`Runtime`]; the `skep` binary calls [`shim_main`] before anything else when its first argument is `shim`. The two
//! share files and a socket, nothing else.
//!
//! Unsafe code is allowed here, since namespaces, exec and signals have no other door; each block says why it is sound.

mod caps;
mod cgroup;
mod client;
mod exec;
mod log_reader;
mod oci;
mod rootfs;
mod seccomp;
mod shim;
mod spec;
mod state;
mod user;

pub use caps::Error as CapabilityError;
pub use cgroup::{Error as CgroupError, Usage as Stats};
pub use client::{Config, Error, Runtime, Started, State};
pub use exec::{Exec, ExecSpec};
pub use log_reader::{LogLine, LogReader, Stream};
pub use seccomp::Error as SeccompError;
pub use shim::shim_main;
pub use spec::{
    ContainerSpec, Error as SpecError, InjectedFile, LogOptions, MAX_FILES, MAX_FILES_BYTES, MAX_LAYERS, Mount,
    Resources, Seccomp, Ulimit, parse_signal, valid_id,
};
pub use state::{Exit, Record};
