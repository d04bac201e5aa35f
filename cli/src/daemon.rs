//! `skep daemon`: its flags. What they mean is the daemon's.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use skep_daemon::{LogFormat, Options};

/// How log lines look.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Flags of the daemon; each wins over the settings file.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Settings file [default: /etc/skep/skep.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State that outlives a reboot [default: /var/lib/skep]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// State that does not [default: /run/skep]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Socket to serve the Engine API on, repeatable [default: unix:///run/skep/skep.sock]
    #[arg(short = 'H', long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// Where a manager listens [default: 0.0.0.0:2377]
    #[arg(long, value_name = "ADDRESS")]
    listen_addr: Option<String>,
    /// What other nodes are told: an address or an interface
    #[arg(long, value_name = "ADDRESS")]
    advertise_addr: Option<String>,
    /// Where other nodes send VXLAN packets: an address or an interface
    #[arg(long, value_name = "ADDRESS")]
    data_path_addr: Option<String>,
    /// VXLAN port of a swarm that this node founds [default: 4789]
    #[arg(long, value_name = "PORT")]
    data_path_port: Option<u16>,
    /// Cgroup under which containers get theirs [default: skep]
    #[arg(long, value_name = "CGROUP")]
    cgroup_parent: Option<String>,
    /// How log lines look
    #[arg(long, value_enum)]
    log_format: Option<Format>,
    /// error, warn, info, debug, trace, or crate=level pairs
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// Runs the node until a signal ends it.
pub(crate) fn run(args: Args) -> Result<()> {
    skep_daemon::run(Options {
        config: args.config,
        data_dir: args.data_dir,
        run_dir: args.run_dir,
        hosts: args.hosts,
        listen_addr: args.listen_addr,
        advertise_addr: args.advertise_addr,
        data_path_addr: args.data_path_addr,
        data_path_port: args.data_path_port,
        cgroup_parent: args.cgroup_parent,
        log_format: args.log_format.map(|format| match format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        }),
        log_level: args.log_level,
    })
}
