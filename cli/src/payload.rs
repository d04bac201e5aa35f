//! What secrets and configs have in common on the command line: a name, labels, bytes from a file.

use std::io::Read;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::client::{Client, escape, filters, is_not_found};
use crate::output::{self, List, ListArgs, line};
use crate::value::At;
use crate::{human, node, parse};

/// Most that is read: more than any of them may hold, so that the node says what is too much.
const MAX_BYTES: u64 = 2 << 20;

/// The body of a creation.
pub(crate) fn body(labels: &[String], name: &str, file: &str) -> Result<Value> {
    let mut data = Vec::new();
    if file == "-" {
        std::io::stdin().lock().take(MAX_BYTES).read_to_end(&mut data).context("standard input can't be read")?;
    } else {
        let file_in = std::fs::File::open(file).with_context(|| format!("{file} can't be read"))?;
        file_in.take(MAX_BYTES).read_to_end(&mut data).with_context(|| format!("{file} can't be read"))?;
    }
    Ok(json!({ "Name": name, "Labels": parse::pairs(labels), "Data": STANDARD.encode(data) }))
}

/// Lists them.
pub(crate) async fn ls(client: &Client, kinds: &str, args: &ListArgs) -> Result<()> {
    let wanted = filters(&args.filters)?;
    let things = client.get(&format!("/{kinds}"), &[("filters", &wanted)]).await?;
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
        table: if kinds == "secrets" {
            &["ID", "Name", "Driver", "CreatedAt", "UpdatedAt"]
        } else {
            &["ID", "Name", "CreatedAt", "UpdatedAt"]
        },
        rows: things.iter().map(row).collect(),
    };
    list.print(args, "ID")
}

/// Shows them.
pub(crate) async fn inspect(client: &Client, kind: &str, names: &[String], format: Option<&str>) -> Result<()> {
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

/// Removes them.
pub(crate) async fn rm(client: &Client, kinds: &str, names: &[String]) -> Result<()> {
    let mut failed = Vec::new();
    for name in names {
        match client.delete(&format!("/{kinds}/{}", escape(name)), &[]).await {
            Ok(_) => line(name)?,
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    node::all(failed)
}
