//! `skep config`.

use anyhow::Result;
use clap::Subcommand;

use crate::client::Client;
use crate::output::{ListArgs, line};
use crate::payload;
use crate::value::At;

/// Manage swarm configs
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a config from a file or STDIN as content
    Create {
        /// Labels, name=value
        #[arg(short, long = "label")]
        labels: Vec<String>,
        /// Name
        name: String,
        /// File with the content; - is STDIN
        file: String,
    },
    /// List configs
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Display detailed information on one or more configs
    Inspect {
        /// Format output: 'json' or a template
        #[arg(short, long)]
        format: Option<String>,
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove one or more configs
    #[command(visible_alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Runs one of the verbs.
pub(crate) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Create { labels, name, file } => {
            let body = payload::body(&labels, &name, &file)?;
            line(client.post("/configs/create", &[], Some(&body)).await?.text("ID"))
        }
        Command::Ls(args) => payload::ls(client, "configs", &args).await,
        Command::Inspect { format, names } => payload::inspect(client, "config", &names, format.as_deref()).await,
        Command::Rm { names } => payload::rm(client, "configs", &names).await,
    }
}
