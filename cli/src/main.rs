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

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::ValueRange;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

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

#[derive(Debug, Subcommand)]
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
    let cli = match command_line(std::env::args_os()) {
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
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "skep", &mut script);
            output::raw(&script)?;
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

/// The command line as a whole.
fn command_line<T: Into<OsString> + Clone>(args: impl IntoIterator<Item = T>) -> Result<Cli, clap::Error> {
    let mut command = hyphens_in_values(Cli::command());
    let matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Has what follows an option be its value, even if it begins with a hyphen: a number below zero is then refused as what
/// it is.
fn hyphens_in_values(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let one = arg.get_num_args().is_none_or(|values| values == ValueRange::SINGLE);
        let is_option = arg.get_action().takes_values() && !arg.is_positional();
        if one && is_option { arg.allow_hyphen_values(true) } else { arg }
    });
    let names: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, hyphens_in_values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_begin_with_a_hyphen_and_is_judged_as_a_value() {
        for (line, said) in [
            ("skep service create --replicas -1 whoami", "invalid value '-1' for '--replicas"),
            ("skep service create --nothing -1 whoami", "unexpected argument '--nothing'"),
            ("skep service create -1 whoami", "unexpected argument '-1'"),
        ] {
            let error = command_line(line.split(' ')).map(|_| ()).map_err(|error| error.to_string());
            assert!(error.as_ref().is_err_and(|error| error.contains(said)), "{line}: {error:?}");
        }
        for line in ["skep service create --env -a=-b --publish -1:80 whoami -c x", "skep service logs --tail -1 web"] {
            assert!(command_line(line.split(' ')).is_ok(), "{line}");
        }
    }

    #[test]
    fn what_follows_the_image_belongs_to_the_container() {
        for line in
            ["whoami --name x --replicas 3", "whoami --host 0.0.0.0", "whoami -d", "whoami -- sh", "whoami sh -c --env"]
        {
            let words = format!("skep service create --name own {line}");
            let parsed = command_line(words.split(' ')).map(|cli| format!("{:?}", cli.command)).unwrap_or_default();
            let args: Vec<&str> = line.split(' ').collect();
            assert!(parsed.contains(&format!("image_and_args: {args:?}")), "{line}: {parsed}");
            assert!(parsed.contains("name: \"own\""), "{line}: {parsed}");
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
