//! `skep info`, `skep version`, `skep events`.

use anyhow::Result;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::client::{Client, filters, in_own_words};
use crate::output::{self, line};
use crate::template::Template;
use crate::value::At;
use crate::{human, task};

/// The one flag that they share.
#[derive(Debug, clap::Args)]
pub(crate) struct FormatArgs {
    /// Format output: 'json' or a template
    #[arg(short, long)]
    format: Option<String>,
}

/// Flags of `skep events`.
#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Show only what fits, name=value, repeatable: type=service, event=create or service=web
    #[arg(short, long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Show all events created since a time or an age, e.g. 10m
    #[arg(long, default_value = "")]
    since: String,
    /// Stream events until a time or an age
    #[arg(long, default_value = "")]
    until: String,
    /// Format output: 'json' or a template
    #[arg(long)]
    format: Option<String>,
}

/// Shows the node and its swarm.
pub(crate) async fn info(client: &Client, args: FormatArgs) -> Result<()> {
    let info = client.get("/info", &[]).await?;
    if args.format.is_some() {
        return output::inspect(&[info], args.format.as_deref());
    }
    let swarm = &info["Swarm"];
    line("Client:")?;
    line(format!(" Version:    {}", env!("CARGO_PKG_VERSION")))?;
    line("\nServer:")?;
    line(format!(" Containers: {}", info.number("Containers")))?;
    line(format!("  Running: {}", info.number("ContainersRunning")))?;
    line(format!("  Stopped: {}", info.number("ContainersStopped")))?;
    line(format!(" Images: {}", info.number("Images")))?;
    line(format!(" Server Version: {}", info.text("ServerVersion")))?;
    line(format!(" Cgroup Version: {}", info.text("CgroupVersion")))?;
    line(format!(" Swarm: {}", swarm.text("LocalNodeState")))?;
    show_swarm(swarm)?;
    line(format!(" Kernel Version: {}", info.text("KernelVersion")))?;
    line(format!(" Operating System: {}", info.text("OperatingSystem")))?;
    line(format!(" OSType: {}", info.text("OSType")))?;
    line(format!(" Architecture: {}", info.text("Architecture")))?;
    line(format!(" CPUs: {}", info.number("NCPU")))?;
    line(format!(" Total Memory: {}", human::binary_size(info.number("MemTotal") as f64)))?;
    line(format!(" Name: {}", info.text("Name")))?;
    line(format!(" ID: {}", info.text("ID")))?;
    line(format!(" Skep Root Dir: {}", info.text("DockerRootDir")))?;
    for warning in info.list("Warnings") {
        output::note(warning.as_str().unwrap_or_default());
    }
    Ok(())
}

fn show_swarm(swarm: &Value) -> Result<()> {
    if !swarm.text("Error").is_empty() {
        line(format!("  Error: {}", in_own_words(swarm.text("Error"))))?;
    }
    if swarm.text("LocalNodeState") != "active" {
        return Ok(());
    }
    line(format!("  NodeID: {}", swarm.text("NodeID")))?;
    line(format!("  Is Manager: {}", swarm["ControlAvailable"]))?;
    if swarm["Cluster"].is_object() {
        let cluster = &swarm["Cluster"];
        line(format!("  ClusterID: {}", cluster.text("ID")))?;
        line(format!("  Managers: {}", swarm.number("Managers")))?;
        line(format!("  Nodes: {}", swarm.number("Nodes")))?;
        line(format!("  Data Path Port: {}", cluster.number("DataPathPort")))?;
        let limit = cluster.number("Spec.Orchestration.TaskHistoryRetentionLimit");
        line(format!("  Orchestration:\n   Task History Retention Limit: {limit}"))?;
        let heartbeat = human::duration(cluster.number("Spec.Dispatcher.HeartbeatPeriod"));
        line(format!("  Dispatcher:\n   Heartbeat Period: {heartbeat}"))?;
        let expiry = human::duration(cluster.number("Spec.CAConfig.NodeCertExpiry"));
        line(format!("  CA Configuration:\n   Expiry Duration: {expiry}"))?;
    }
    line(format!("  Node Address: {}", swarm.text("NodeAddr")))?;
    let mut managers: Vec<&str> = swarm.list("RemoteManagers").iter().map(|m| m.text("Addr")).collect();
    managers.sort_unstable();
    line("  Manager Addresses:")?;
    managers.iter().try_for_each(|address| line(format!("   {address}")))
}

/// Shows the versions of both sides; the client's own even when no daemon answers.
pub(crate) async fn version(client: &Client, args: FormatArgs) -> Result<()> {
    let own = json!({ "Version": env!("CARGO_PKG_VERSION"), "Os": "linux", "Arch": architecture() });
    let server = client.get("/version", &[]).await;
    if args.format.is_some() {
        let both = json!({ "Client": own, "Server": server.as_ref().ok() });
        output::inspect(&[both], args.format.as_deref())?;
        return server.map(drop);
    }
    line(format!("Client:\n Version:           {}", own.text("Version")))?;
    line(format!(" OS/Arch:           linux/{}", own.text("Arch")))?;
    let server = server?;
    line(format!("\nServer: {}", server.text("Platform.Name")))?;
    line(format!(" Version:           {}", server.text("Version")))?;
    line(format!(
        " API version:       {} (minimum version {})",
        server.text("ApiVersion"),
        server.text("MinAPIVersion")
    ))?;
    if !server.text("GitCommit").is_empty() {
        line(format!(" Git commit:        {}", server.text("GitCommit")))?;
    }
    line(format!(" OS/Arch:           {}/{}", server.text("Os"), server.text("Arch")))
}

/// This program's architecture in the words of the API.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Prints events as they come.
pub(crate) async fn events(client: &Client, args: EventsArgs) -> Result<()> {
    let wanted = filters(&args.filters)?;
    let (since, until) = (task::moment(&args.since)?, task::moment(&args.until)?);
    let query = [("filters", wanted.as_str()), ("since", since.as_str()), ("until", until.as_str())];
    let template = match args.format.as_deref() {
        None | Some("" | "json") => None,
        Some(format) => Some(Template::parse(format)?),
    };
    let mut stream = client.stream("/events", &query).await?;
    let mut buffer = Vec::new();
    while let Some(piece) = stream.next().await {
        buffer.extend_from_slice(&piece?);
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let event: Value = serde_json::from_slice(&buffer[..end])?;
            buffer.drain(..=end);
            match &template {
                Some(template) => {
                    output::known(template, &event)?;
                    line(template.render(&event)?)?;
                }
                None if args.format.as_deref() == Some("json") => line(event.to_string())?,
                None => line(event_line(&event))?,
            }
        }
    }
    Ok(())
}

fn event_line(event: &Value) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(event.number("timeNano"))).unwrap_or_default();
    let time = jiff::fmt::temporal::DateTimePrinter::new().precision(Some(9)).timestamp_to_string(&time);
    let attributes = event.at("Actor.Attributes").as_object().cloned().unwrap_or_default();
    let attributes: Vec<String> =
        attributes.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    let mut text = format!("{time} {} {} {}", event.text("Type"), event.text("Action"), event.text("Actor.ID"));
    if !attributes.is_empty() {
        text.push_str(&format!(" ({})", attributes.join(", ")));
    }
    text
}
