//! `skep secret` and `skep config`: the same verbs over a name, labels and bytes from a file.

use std::io::Read;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::{Client, escape, filters, is_not_found};
use crate::output::{self, List, ListArgs, line};
use crate::value::At;
use crate::{human, node, parse};

/// Most that is read: more than any of them may hold, so that the node says what is too much.
const MAX_BYTES: u64 = 2 << 20;

/// Verbs of both kinds. What a kind is, stands with the command itself.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create one from a file or STDIN as content
    Create {
        /// Labels, name=value
        #[arg(short, long = "label")]
        labels: Vec<String>,
        /// Name
        name: String,
        /// File with the content; - is STDIN
        file: String,
    },
    /// List them
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Display detailed information on one or more
    Inspect {
        /// Format output: 'json' or a template
        #[arg(short, long)]
        format: Option<String>,
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove one or more
    #[command(visible_alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Runs one of the verbs; `kind` is `secret` or `config`.
pub(crate) async fn run(client: &Client, kind: &str, command: Command) -> Result<()> {
    match command {
        Command::Create { labels, name, file } => {
            let body = body(&labels, &name, &file)?;
            line(client.post(&format!("/{kind}s/create"), &[], Some(&body)).await?.text("ID"))
        }
        Command::Ls(args) => ls(client, kind, &args).await,
        Command::Inspect { format, names } => inspect(client, kind, &names, format.as_deref()).await,
        Command::Rm { names } => rm(client, kind, &names).await,
    }
}

/// The body of a creation.
fn body(labels: &[String], name: &str, file: &str) -> Result<Value> {
    let mut data = Vec::new();
    if file == "-" {
        std::io::stdin().lock().take(MAX_BYTES).read_to_end(&mut data).context("standard input can't be read")?;
    } else {
        let file_in = std::fs::File::open(file).with_context(|| format!("{file} can't be read"))?;
        file_in.take(MAX_BYTES).read_to_end(&mut data).with_context(|| format!("{file} can't be read"))?;
    }
    Ok(json!({ "Name": name, "Labels": parse::pairs(labels), "Data": STANDARD.encode(data) }))
}

async fn ls(client: &Client, kind: &str, args: &ListArgs) -> Result<()> {
    let wanted = filters(&args.filters)?;
    let things = client.get(&format!("/{kind}s"), &[("filters", &wanted)]).await?;
    let mut things: Vec<Value> = things.as_array().cloned().unwrap_or_default();
    things.sort_by(|a, b| a.text("Spec.Name").cmp(b.text("Spec.Name")));
    let labels = |thing: &Value| {
        let labels = thing.at("Spec.Labels").as_object().cloned().unwrap_or_default();
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
        labels.join(",")
    };
    let row = |thing: &Value| {
        json!({
            "ID": thing.text("ID"), "Name": thing.text("Spec.Name"), "Driver": "",
            "CreatedAt": human::ago(thing.at("CreatedAt")), "UpdatedAt": human::ago(thing.at("UpdatedAt")),
            "Labels": labels(thing),
        })
    };
    let list = List {
        headers: &[
            ("ID", "ID"),
            ("Name", "NAME"),
            ("Driver", "DRIVER"),
            ("CreatedAt", "CREATED"),
            ("UpdatedAt", "UPDATED"),
            ("Labels", "LABELS"),
        ],
        table: if kind == "secret" {
            &["ID", "Name", "Driver", "CreatedAt", "UpdatedAt"]
        } else {
            &["ID", "Name", "CreatedAt", "UpdatedAt"]
        },
        rows: things.iter().map(row).collect(),
    };
    list.print(args, "ID")
}

async fn inspect(client: &Client, kind: &str, names: &[String], format: Option<&str>) -> Result<()> {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for name in names {
        match client.get(&format!("/{kind}s/{}", escape(name)), &[]).await {
            Ok(value) => found.push(value),
            Err(error) if is_not_found(&error) => failed.push(format!("no such {kind}: {name}")),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    output::inspect(&found, format)?;
    node::all(failed)
}

async fn rm(client: &Client, kind: &str, names: &[String]) -> Result<()> {
    let mut failed = Vec::new();
    for name in names {
        match client.delete(&format!("/{kind}s/{}", escape(name)), &[]).await {
            Ok(_) => line(name)?,
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    node::all(failed)
}
