//! Logs of services and tasks, for `skep service logs` and `skep task logs`: each line with its origin in front.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::client::{Client, escape};
use crate::container::{LogFlags, Sink, read};
use crate::human;
use crate::task::{self, Names};
use crate::value::At;

/// Flags of `logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    common: LogFlags,
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
}

/// What has logs.
pub(crate) struct Source {
    path: String,
    tty: bool,
}

impl Source {
    /// The service by id, prefix or name.
    pub(crate) async fn service(client: &Client, reference: &str) -> Result<Self> {
        Self::find(client, "/services", reference, "Spec.TaskTemplate.ContainerSpec.TTY").await
    }

    /// The task by id, prefix or name.
    pub(crate) async fn task(client: &Client, reference: &str) -> Result<Self> {
        Self::find(client, "/tasks", reference, "Spec.ContainerSpec.TTY").await
    }

    async fn find(client: &Client, kind: &str, reference: &str, tty: &str) -> Result<Self> {
        let found = client.get(&format!("{kind}/{}", escape(reference)), &[]).await?;
        let path = format!("{kind}/{}/logs", escape(found.text("ID")));
        Ok(Self { path, tty: found.at(tty).as_bool().unwrap_or(false) })
    }
}

/// Prints the logs of a service, or of one task.
pub(crate) async fn print(client: &Client, source: Source, flags: &Flags) -> Result<()> {
    let Source { path, tty } = source;
    let raw = flags.raw;
    let mut query = flags.common.query()?;
    if !raw && !tty {
        query.push(("details", "1".to_owned()));
    }
    let query: Vec<(&str, &str)> = query.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let mut origins = Origins { names: Names::new(client, !flags.no_resolve), known: BTreeMap::new(), flags };
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
    flags: &'a Flags,
}

impl Origins<'_> {
    /// `[time ]details message` becomes `web.1.<task>@<node>    | [time ]message`.
    async fn rewrite(&mut self, client: &Client, line: &str) -> String {
        let (time, rest) = match self.flags.common.timestamps {
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
        let details = if self.flags.common.details { format!("{details} ") } else { String::new() };
        format!("{time}{shown}    | {details}{message}")
    }

    async fn origin(&mut self, client: &Client, id: &str, node: &str) -> String {
        let node = self.names.node(node).await;
        let Ok(task) = client.get(&format!("/tasks/{}", escape(id)), &[]).await else {
            return format!("{}@{node}", human::short_id(id));
        };
        let service = self.names.service(task.text("ServiceID")).await;
        let mut name = task::name(&task, &service);
        if !self.flags.no_task_ids {
            name.push('.');
            name.push_str(if self.flags.no_trunc { id } else { human::short_id(id) });
        }
        format!("{name}@{node}")
    }
}
