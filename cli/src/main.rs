//! `skep`: the command line. Reads what the user wants, asks a node's Engine API, prints the answer; `skep daemon` is
//! the node itself. One file holds one group of verbs; it decides nothing that the API could decide.
#![forbid(unsafe_code)]
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags, reason = "doc comments are the help texts")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "output belongs to the command line")]

mod client;
mod container;
mod daemon;
mod human;
mod image;
mod lab;
mod logs;
mod network;
mod node;
mod output;
mod parse;
mod payload;
mod progress;
mod service;
mod swarm;
mod system;
mod task;
mod template;
mod value;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use client::{Client, DEFAULT_HOST};

/// Exit code for a command line that can't be understood, as the docker command has it.
const USAGE: u8 = 125;

/// A swarm of containers in one binary
#[derive(Parser)]
#[command(name = "skep", version, disable_help_subcommand = true, max_term_width = 120)]
struct Cli {
    /// Daemon socket to connect to: unix:///path or tcp://host:port
    #[arg(short = 'H', long, env = "SKEP_HOST", value_name = "HOST")]
    host: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Manage the swarm
    #[command(subcommand)]
    Swarm(swarm::Command),
    /// Manage swarm nodes
    #[command(subcommand)]
    Node(node::Command),
    /// Manage swarm services
    #[command(subcommand)]
    Service(Box<service::Command>),
    /// Look at the tasks of the swarm
    #[command(subcommand)]
    Task(task::Command),
    /// Manage networks
    #[command(subcommand)]
    Network(network::Command),
    /// Manage images
    #[command(subcommand)]
    Image(image::Command),
    /// Look at the containers of this node
    #[command(subcommand)]
    Container(container::Command),
    /// Manage swarm secrets
    #[command(subcommand)]
    Secret(payload::Command),
    /// Manage swarm configs
    #[command(subcommand)]
    Config(payload::Command),
    /// Display system-wide information
    Info(system::FormatArgs),
    /// Show the version of client and daemon
    Version(system::FormatArgs),
    /// Get real time events from the node and, on a manager, from the swarm
    Events(system::EventsArgs),
    /// Run a node
    Daemon(daemon::Args),
    /// Clusters of many nodes on this one machine, for trying things out
    #[command(subcommand)]
    Lab(lab::Args),
    /// Write the completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// List containers
    #[command(hide = true)]
    Ps(container::LsArgs),
    /// List images
    #[command(hide = true)]
    Images(image::LsArgs),
    /// Fetch the logs of a container
    #[command(hide = true)]
    Logs(container::LogsArgs),
    /// Load images from an archive
    #[command(hide = true)]
    Load(image::LoadArgs),
    /// Supervise one container; used by the daemon
    #[command(hide = true)]
    Shim,
}

fn main() -> ExitCode {
    // Before anything else: a supervisor must stay single-threaded and small.
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|verb| verb == "shim") {
        return exit_code(skep_runtime::shim_main(arguments));
    }
    // So must what enters namespaces.
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    if let Some(done) = lab::helper(&arguments) {
        return match done {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                output::note(format!("Error: {error:#}"));
                ExitCode::FAILURE
            }
        };
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) if broken_pipe(&error) => ExitCode::from(141),
        Err(error) => {
            output::note(format!("Error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Whether the reader of our output has gone, which is no error of ours.
fn broken_pipe(error: &anyhow::Error) -> bool {
    let io = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    };
    error.to_string() == "standard output" && error.chain().any(io)
}

fn run(cli: Cli) -> Result<ExitCode> {
    let host = cli.host.or_else(|| std::env::var("DOCKER_HOST").ok().filter(|h| !h.is_empty()));
    match cli.command {
        Command::Daemon(args) => daemon::run(args).map(|()| ExitCode::SUCCESS),
        Command::Lab(args) => lab::run(args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "skep", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Shim => Ok(ExitCode::FAILURE),
        command => {
            let client = Client::new(host.as_deref().unwrap_or(DEFAULT_HOST))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(ask(&client, command))
        }
    }
}

/// The commands that ask a node.
async fn ask(client: &Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Swarm(command) => swarm::run(client, command).await?,
        Command::Node(command) => node::run(client, command).await?,
        Command::Service(command) => return service::run(client, *command).await,
        Command::Task(command) => task::run(client, command).await?,
        Command::Network(command) => network::run(client, command).await?,
        Command::Image(command) => image::run(client, command).await?,
        Command::Container(command) => container::run(client, command).await?,
        Command::Secret(command) => payload::run(client, "secret", command).await?,
        Command::Config(command) => payload::run(client, "config", command).await?,
        Command::Info(args) => system::info(client, args).await?,
        Command::Version(args) => system::version(client, args).await?,
        Command::Events(args) => system::events(client, args).await?,
        Command::Ps(args) => container::ls(client, args).await?,
        Command::Images(args) => image::ls(client, args).await?,
        Command::Logs(args) => container::logs(client, args).await?,
        Command::Load(args) => image::load(client, args).await?,
        Command::Daemon(_) | Command::Lab(_) | Command::Completion { .. } | Command::Shim => {}
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
