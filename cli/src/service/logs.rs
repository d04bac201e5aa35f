//! `skep service logs`: lines of all tasks of a service, each with its origin in front.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::client::{Client, escape, is_not_found};
use crate::container::{LogFlags, Sink, read};
use crate::human;
use crate::task::{self, Names};
use crate::value::At;

/// Flags of `service logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    flags: LogFlags,
    /// Do not map IDs to Names in output
    #[arg(long)]
    no_resolve: bool,
    /// Do not include task IDs in output
    #[arg(long)]
    no_task_ids: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Do not neatly format logs
    #[arg(long)]
    raw: bool,
    /// Service or task
    target: String,
}

/// Prints the logs of a service, or of one task.
pub(super) async fn run(client: &Client, args: Args) -> Result<()> {
    let reference = escape(&args.target);
    let (path, tty) = match client.get(&format!("/services/{reference}"), &[]).await {
        Ok(service) => {
            let tty = service.at("Spec.TaskTemplate.ContainerSpec.TTY").as_bool();
            (format!("/services/{}/logs", escape(service.text("ID"))), tty)
        }
        Err(error) if is_not_found(&error) => match client.get(&format!("/tasks/{reference}"), &[]).await {
            Ok(task) => {
                let tty = task.at("Spec.ContainerSpec.TTY").as_bool();
                (format!("/tasks/{}/logs", escape(task.text("ID"))), tty)
            }
            Err(error) if is_not_found(&error) => anyhow::bail!("no such task or service: {}", args.target),
            Err(error) => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let (raw, tty) = (args.raw, tty.unwrap_or(false));
    let mut query = args.flags.query()?;
    if !raw && !tty {
        query.push(("details", "1".to_owned()));
    }
    let query: Vec<(&str, &str)> = query.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let mut origins = Origins { names: Names::new(client, !args.no_resolve), known: BTreeMap::new(), args: &args };
    let stream = client.stream(&path, &query).await?;
    read(stream, tty, async |sink: Sink, line: &[u8]| {
        if raw || tty {
            return sink.write(line);
        }
        let text = String::from_utf8_lossy(line);
        sink.write(origins.rewrite(client, &text).await.as_bytes())
    })
    .await
}

/// Where lines come from, as text; each task is asked for once.
struct Origins<'a> {
    names: Names<'a>,
    known: BTreeMap<String, String>,
    args: &'a Args,
}

impl Origins<'_> {
    /// `[time ]details message` becomes `web.1.<task>@<node>    | [time ]message`.
    async fn rewrite(&mut self, client: &Client, line: &str) -> String {
        let (time, rest) = match self.args.flags.timestamps {
            true => line.split_once(' ').map_or((String::new(), line), |(time, rest)| (format!("{time} "), rest)),
            false => (String::new(), line),
        };
        let (details, message) = rest.split_once(' ').unwrap_or(("", rest));
        let detail = |name: &str| {
            details
                .split(',')
                .find_map(|d| d.split_once('=').filter(|(n, _)| *n == name))
                .map_or("", |(_, value)| value)
        };
        let (task, node) = (detail("com.docker.swarm.task.id"), detail("com.docker.swarm.node.id"));
        let shown = match self.known.get(task) {
            Some(shown) => shown.clone(),
            None => {
                let shown = self.origin(client, task, node).await;
                self.known.insert(task.to_owned(), shown.clone());
                shown
            }
        };
        // The API's own details are consumed; what a user asked for stays in front of the message.
        let details = if self.args.flags.details { format!("{details} ") } else { String::new() };
        format!("{time}{shown}    | {details}{message}")
    }

    async fn origin(&mut self, client: &Client, id: &str, node: &str) -> String {
        let node = self.names.node(node).await;
        let Ok(task) = client.get(&format!("/tasks/{}", escape(id)), &[]).await else {
            return format!("{}@{node}", human::short_id(id));
        };
        let service = self.names.service(task.text("ServiceID")).await;
        let mut name = task::name(&task, &service);
        if !self.args.no_task_ids {
            name.push('.');
            name.push_str(if self.args.no_trunc { id } else { human::short_id(id) });
        }
        format!("{name}@{node}")
    }
}
