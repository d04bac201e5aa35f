//! `skep container`: looking at the containers of a node, and reading logs as the API frames them.

use std::io::Write;

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use clap::Subcommand;
use futures::{Stream, StreamExt};
use serde_json::{Value, json};

use crate::client::{Client, escape, filters, is_not_found};
use crate::output::{self, List, ListArgs};
use crate::value::At;
use crate::{human, node, task};

/// Look at the containers of this node
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List containers
    #[command(visible_aliases = ["list", "ps"])]
    Ls(LsArgs),
    /// Display detailed information on one or more containers
    Inspect {
        /// Format output: 'json' or a template
        #[arg(short, long)]
        format: Option<String>,
        /// Containers
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Fetch the logs of a container
    Logs(LogsArgs),
}

/// Flags of `ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    list: ListArgs,
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Show n last created containers (includes all states)
    #[arg(short = 'n', long)]
    last: Option<u64>,
}

/// Flags of `logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    flags: LogFlags,
    /// Container
    container: String,
}

/// Flags that all logs have.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LogFlags {
    /// Show extra details provided to logs
    #[arg(long)]
    pub(crate) details: bool,
    /// Follow log output
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Show logs since a time or an age (e.g. 42m)
    #[arg(long, default_value = "")]
    pub(crate) since: String,
    /// Show logs before a time or an age
    #[arg(long, default_value = "")]
    pub(crate) until: String,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, default_value = "all")]
    pub(crate) tail: String,
    /// Show timestamps
    #[arg(short, long)]
    pub(crate) timestamps: bool,
}

impl LogFlags {
    /// The flags as the API's parameters.
    pub(crate) fn query(&self) -> Result<Vec<(&'static str, String)>> {
        let mut query = vec![("stdout", "1".to_owned()), ("stderr", "1".to_owned()), ("tail", self.tail.clone())];
        for (name, on) in [("follow", self.follow), ("timestamps", self.timestamps)] {
            if on {
                query.push((name, "1".to_owned()));
            }
        }
        for (name, text) in [("since", &self.since), ("until", &self.until)] {
            if !text.is_empty() {
                query.push((name, task::moment(text)?));
            }
        }
        Ok(query)
    }
}

/// Runs one of the verbs.
pub(crate) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Ls(args) => ls(client, args).await,
        Command::Inspect { format, containers } => {
            let (mut found, mut failed) = (Vec::new(), Vec::new());
            for container in containers {
                match client.get(&format!("/containers/{}/json", escape(&container)), &[]).await {
                    Ok(value) => found.push(value),
                    Err(error) if is_not_found(&error) => failed.push(format!("No such container: {container}")),
                    Err(error) => failed.push(format!("{error:#}")),
                }
            }
            output::inspect(&found, format.as_deref())?;
            node::all(failed)
        }
        Command::Logs(args) => logs(client, args).await,
    }
}

/// Lists containers.
pub(crate) async fn ls(client: &Client, args: LsArgs) -> Result<()> {
    let wanted = filters(&args.list.filters)?;
    let limit = args.last.map(|n| n.to_string()).unwrap_or_default();
    let all = if args.all { "1" } else { "" };
    let containers = client.get("/containers/json", &[("filters", &wanted), ("all", all), ("limit", &limit)]).await?;
    let full = args.list.no_trunc;
    let list = List {
        headers: &[
            ("ID", "CONTAINER ID"),
            ("Image", "IMAGE"),
            ("Command", "COMMAND"),
            ("CreatedAt", "CREATED AT"),
            ("RunningFor", "CREATED"),
            ("Status", "STATUS"),
            ("State", "STATE"),
            ("Ports", "PORTS"),
            ("Names", "NAMES"),
            ("Labels", "LABELS"),
            ("Networks", "NETWORKS"),
        ],
        table: &["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"],
        rows: containers.as_array().into_iter().flatten().map(|c| row(c, full)).collect(),
    };
    list.print(&args.list, "ID")
}

fn row(container: &Value, full: bool) -> Value {
    let (id, command) = (container.text("Id"), container.text("Command"));
    let names: Vec<&str> =
        container.list("Names").iter().filter_map(Value::as_str).map(|n| n.trim_start_matches('/')).collect();
    let keys = |path: &str| {
        container.at(path).as_object().map(|m| m.keys().cloned().collect::<Vec<_>>().join(",")).unwrap_or_default()
    };
    let labels: Vec<String> = container
        .at("Labels")
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
        .collect();
    let ports: Vec<String> = container.list("Ports").iter().map(port).collect();
    json!({
        "ID": if full { id } else { human::short_id(id) }, "Image": container.text("Image"),
        "Command": format!("\"{}\"", if full { command.to_owned() } else { human::ellipsis(command, 20) }),
        "CreatedAt": container.number("Created").to_string(), "RunningFor": human::ago(container.at("Created")),
        "Status": container.text("Status"), "State": container.text("State"), "Ports": ports.join(", "),
        "Names": names.join(","), "Labels": labels.join(","), "Networks": keys("NetworkSettings.Networks"),
    })
}

fn port(port: &Value) -> String {
    let inner = format!("{}/{}", port.number("PrivatePort"), port.text("Type"));
    match port.number("PublicPort") {
        0 => inner,
        public => format!("{}:{public}->{inner}", port.text("IP")),
    }
}

/// Prints the logs of one container.
pub(crate) async fn logs(client: &Client, args: LogsArgs) -> Result<()> {
    let container = client.get(&format!("/containers/{}/json", escape(&args.container)), &[]).await?;
    let tty = container.at("Config.Tty").as_bool().unwrap_or(false);
    let query = args.flags.query()?;
    let query: Vec<(&str, &str)> = query.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let path = format!("/containers/{}/logs", escape(container.text("Id")));
    let stream = client.stream(&path, &query).await?;
    read(stream, tty, async |sink: Sink, line: &[u8]| sink.write(line)).await
}

/// Where a piece of a log belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sink {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Sink {
    /// Writes there.
    pub(crate) fn write(self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Out => output::raw(bytes),
            Self::Err => std::io::stderr().lock().write_all(bytes).context("standard error"),
        }
    }
}

/// Reads a log and hands out its pieces: frames, or with `tty` whatever comes.
pub(crate) async fn read<S, F>(mut stream: S, tty: bool, mut piece: F) -> Result<()>
where
    S: Stream<Item = Result<Bytes>> + Unpin,
    F: AsyncFnMut(Sink, &[u8]) -> Result<()>,
{
    let mut buffer = BytesMut::new();
    while let Some(bytes) = stream.next().await {
        buffer.extend_from_slice(&bytes?);
        if tty {
            let all = buffer.split();
            piece(Sink::Out, &all).await?;
            continue;
        }
        while let Some((kind, frame)) = take_frame(&mut buffer) {
            match kind {
                0 | 1 => piece(Sink::Out, &frame).await?,
                2 => piece(Sink::Err, &frame).await?,
                _ => bail!("{}", String::from_utf8_lossy(&frame).trim_end()),
            }
        }
    }
    Ok(())
}

/// Takes a whole frame off the front: eight bytes of header (stream, three zeros, length), then so many bytes.
fn take_frame(buffer: &mut BytesMut) -> Option<(u8, Bytes)> {
    let mut header = buffer.get(..8)?;
    let kind = header.get_u8();
    header.advance(3);
    let length = usize::try_from(header.get_u32()).ok()?;
    if buffer.len() < 8 + length {
        return None;
    }
    buffer.advance(8);
    Some((kind, buffer.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_when_they_are_whole() {
        let mut buffer = BytesMut::from(&b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x03on"[..]);
        assert_eq!(take_frame(&mut buffer), Some((1, Bytes::from_static(b"hi"))));
        assert_eq!(take_frame(&mut buffer), None);
        buffer.extend_from_slice(b"e");
        assert_eq!(take_frame(&mut buffer), Some((2, Bytes::from_static(b"one"))));
        assert_eq!(take_frame(&mut buffer), None);
    }
}
