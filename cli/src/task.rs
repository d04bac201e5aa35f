//! `skep task`, the list of tasks that `service ps` and `node ps` share with it, and the times that log and event flags
//! name.

use std::collections::BTreeMap;
use std::time::SystemTime;

use anyhow::{Result, bail};
use clap::Subcommand;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::client::{Client, escape, filters, is_not_found};
use crate::node::title;
use crate::output::{self, List, ListArgs};
use crate::value::At;
use crate::{human, logs, node, parse};

/// Look at the tasks of the swarm
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the tasks of all services
    #[command(visible_alias = "list")]
    Ls(PsArgs),
    /// Display detailed information on one or more tasks
    Inspect {
        /// Format output: 'json' or a template
        #[arg(short, long)]
        format: Option<String>,
        /// Tasks
        #[arg(required = true)]
        tasks: Vec<String>,
    },
    /// Fetch the logs of a task
    Logs {
        #[command(flatten)]
        flags: logs::Flags,
        /// Task
        task: String,
    },
}

/// Flags of `ps` and `task ls`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// Do not map IDs to Names
    #[arg(long)]
    pub(crate) no_resolve: bool,
}

/// Runs one of the verbs.
pub(crate) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Ls(args) => print(client, &args, &args.list.filters).await,
        Command::Inspect { format, tasks } => inspect(client, format.as_deref(), &tasks).await,
        Command::Logs { flags, task } => match logs::Source::task(client, &task).await {
            Err(error) if is_not_found(&error) => bail!("no such task: {task}"),
            found => logs::print(client, found?, &flags).await,
        },
    }
}

async fn inspect(client: &Client, format: Option<&str>, tasks: &[String]) -> Result<()> {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for task in tasks {
        match client.get(&format!("/tasks/{}", escape(task)), &[]).await {
            Ok(value) => found.push(value),
            Err(error) if is_not_found(&error) => failed.push(format!("no such task: {task}")),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    output::inspect(&found, format)?;
    node::all(failed)
}

/// Names for ids, each asked for once.
pub(crate) struct Names<'a> {
    client: &'a Client,
    known: BTreeMap<String, String>,
    resolve: bool,
}

impl<'a> Names<'a> {
    /// A resolver; with `resolve` off ids stay ids.
    pub(crate) fn new(client: &'a Client, resolve: bool) -> Self {
        Self { client, known: BTreeMap::new(), resolve }
    }

    /// The host name of a node.
    pub(crate) async fn node(&mut self, id: &str) -> String {
        self.name("/nodes", id, "Description.Hostname").await
    }

    /// The name of a service.
    pub(crate) async fn service(&mut self, id: &str) -> String {
        self.name("/services", id, "Spec.Name").await
    }

    async fn name(&mut self, kind: &str, id: &str, path: &str) -> String {
        if id.is_empty() || !self.resolve {
            return id.to_owned();
        }
        if let Some(name) = self.known.get(id) {
            return name.clone();
        }
        // What has gone is shown by its id.
        let found = self.client.get(&format!("{kind}/{}", escape(id)), &[]).await;
        let name = found.ok().map(|v| v.text(path).to_owned()).filter(|n| !n.is_empty());
        let name = name.unwrap_or_else(|| id.to_owned());
        self.known.insert(id.to_owned(), name.clone());
        name
    }
}

/// Lists the tasks that fit: by name of the service and slot, newest of each slot first.
pub(crate) async fn print(client: &Client, args: &PsArgs, wanted: &[String]) -> Result<()> {
    let wanted = filters(wanted)?;
    let tasks = client.get("/tasks", &[("filters", &wanted)]).await?;
    let mut tasks: Vec<Value> = tasks.as_array().cloned().unwrap_or_default();
    let mut names = Names::new(client, !args.no_resolve);
    let mut services = BTreeMap::new();
    for id in tasks.iter().map(|task| task.text("ServiceID")) {
        services.insert(id.to_owned(), names.service(id).await);
    }
    tasks.sort_by_key(|task| {
        let service = services.get(task.text("ServiceID")).cloned();
        (service, slot(task), std::cmp::Reverse(task.text("CreatedAt").to_owned()))
    });
    let (mut rows, mut last) = (Vec::new(), None);
    for task in &tasks {
        let again = last.as_ref() == Some(&slot(task));
        last = Some(slot(task));
        let service = names.service(task.text("ServiceID")).await;
        let node = names.node(task.text("NodeID")).await;
        rows.push(row(task, &service, &node, again, args));
    }
    let list = List {
        headers: &[
            ("ID", "ID"),
            ("Name", "NAME"),
            ("Image", "IMAGE"),
            ("Node", "NODE"),
            ("DesiredState", "DESIRED STATE"),
            ("CurrentState", "CURRENT STATE"),
            ("Error", "ERROR"),
            ("Ports", "PORTS"),
        ],
        table: &["ID", "Name", "Image", "Node", "DesiredState", "CurrentState", "Error", "Ports"],
        rows,
    };
    list.print(&args.list, "ID")
}

/// What a task is one attempt of: a slot, or for a global service its node.
fn slot(task: &Value) -> (String, i64, String) {
    let slot = task.number("Slot");
    let node = if slot == 0 { task.text("NodeID").to_owned() } else { String::new() };
    (task.text("ServiceID").to_owned(), slot, node)
}

/// `web.1`, or for a task of a global service `web.<node>`.
pub(crate) fn name(task: &Value, service: &str) -> String {
    match task.number("Slot") {
        0 => format!("{service}.{}", task.text("NodeID")),
        slot => format!("{service}.{slot}"),
    }
}

fn row(task: &Value, service: &str, node: &str, again: bool, args: &PsArgs) -> Value {
    let full = args.list.no_trunc;
    let id = task.text("ID");
    let mut name = name(task, service);
    if again && args.list.format.is_none() {
        name = format!(" \\_ {name}");
    }
    let state = task.text("Status.State");
    let error = task.text("Status.Err");
    let error = match (error.is_empty(), full) {
        (true, _) => String::new(),
        (false, true) => format!("\"{error}\""),
        (false, false) => format!("\"{}\"", human::ellipsis(error, 30)),
    };
    let ports: Vec<String> = task
        .list("Status.PortStatus.Ports")
        .iter()
        .map(|p| format!("*:{}->{}/{}", p.number("PublishedPort"), p.number("TargetPort"), p.text("Protocol")))
        .collect();
    let image = task.text("Spec.ContainerSpec.Image");
    let image = if full { image } else { image.split_once('@').map_or(image, |(name, _)| name) };
    json!({
        "ID": if full || args.list.quiet { id } else { human::short_id(id) }, "Name": name, "Image": image,
        "Node": node, "DesiredState": title(task.text("DesiredState")),
        "CurrentState": format!("{} {}", title(state), human::ago(task.at("Status.Timestamp")).to_lowercase()),
        "Error": error, "Ports": ports.join(","),
    })
}

/// A `--since` or `--until` for the API: a time as it is, an age as the moment so long ago; Unix seconds.
pub(crate) fn moment(text: &str) -> Result<String> {
    if text.is_empty() || text.parse::<f64>().is_ok() {
        return Ok(text.to_owned());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(seconds(time.as_nanosecond()));
    }
    let Ok(age) = parse::duration(text) else {
        bail!("{text:?} is neither a time (RFC 3339 or Unix seconds) nor an age (10m)");
    };
    let now = Timestamp::try_from(SystemTime::now())?;
    Ok(seconds(now.as_nanosecond() - i128::from(age)))
}

fn seconds(ns: i128) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn moments_are_times_or_ages() {
        assert_eq!(moment("").unwrap(), "");
        assert_eq!(moment("1700000000").unwrap(), "1700000000");
        assert_eq!(moment("2023-11-14T22:13:20.5Z").unwrap(), "1700000000.500000000");
        assert!(moment("10m").unwrap().parse::<f64>().unwrap() > 1.7e9);
        assert!(moment("yesterday").is_err());
    }
}
