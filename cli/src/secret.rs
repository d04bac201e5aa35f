//! `skep secret`.

use anyhow::Result;
use clap::Subcommand;

use crate::client::Client;
use crate::output::{ListArgs, line};
use crate::payload;
use crate::value::At;

/// Manage swarm secrets
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a secret from a file or STDIN as content
    Create {
        /// Labels, name=value
        #[arg(short, long = "label")]
        labels: Vec<String>,
        /// Name
        name: String,
        /// File with the content; - is STDIN
        file: String,
    },
    /// List secrets
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Display detailed information on one or more secrets
    Inspect {
        /// Format output: 'json' or a template
        #[arg(short, long)]
        format: Option<String>,
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove one or more secrets
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
            line(client.post("/secrets/create", &[], Some(&body)).await?.text("ID"))
        }
        Command::Ls(args) => payload::ls(client, "secrets", &args).await,
        Command::Inspect { format, names } => payload::inspect(client, "secret", &names, format.as_deref()).await,
        Command::Rm { names } => payload::rm(client, "secrets", &names).await,
    }
}
