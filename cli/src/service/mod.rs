//! `skep service`.

mod change;
mod create;
mod flags;
mod pretty;
mod update;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::{Client, escape, filters, is_not_found, is_outdated};
use crate::output::{self, List, ListArgs, line, note};
use crate::progress::Asked;
use crate::value::At;
use crate::{human, logs, node, progress, task};

/// How often a change is tried whose service changes meanwhile.
const TRIES: u32 = 10;

/// Manage swarm services
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a new service
    Create(Box<create::Args>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// List the tasks of one or more services
    Ps {
        #[command(flatten)]
        args: task::PsArgs,
        /// Services
        #[arg(required = true)]
        services: Vec<String>,
    },
    /// Display detailed information on one or more services
    Inspect(Inspect),
    /// Fetch the logs of a service or task
    Logs {
        #[command(flatten)]
        flags: logs::Flags,
        /// Service or task
        target: String,
    },
    /// Scale one or multiple replicated services
    Scale(Scale),
    /// Update a service
    Update(Box<update::Args>),
    /// Revert changes to a service's configuration
    Rollback {
        #[command(flatten)]
        waiting: Waiting,
        /// Service
        service: String,
    },
    /// Remove one or more services
    #[command(visible_alias = "remove")]
    Rm {
        /// Services
        #[arg(required = true)]
        services: Vec<String>,
    },
}

/// Whether a command waits for the service.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Waiting {
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long, num_args = 0..=1, default_missing_value = "true", default_value_t = false,
          require_equals = true, action = clap::ArgAction::Set)]
    detach: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
}

/// Flags of `inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// Format output: 'json' or a template
    #[arg(short, long)]
    format: Option<String>,
    /// Print the information in a human friendly format
    #[arg(long)]
    pretty: bool,
    /// Services
    #[arg(required = true)]
    services: Vec<String>,
}

/// Flags of `scale`.
#[derive(Debug, clap::Args)]
pub(crate) struct Scale {
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long, num_args = 0..=1, default_missing_value = "true", default_value_t = false,
          require_equals = true, action = clap::ArgAction::Set)]
    detach: bool,
    /// SERVICE=REPLICAS
    #[arg(required = true, value_name = "SERVICE=REPLICAS")]
    scales: Vec<String>,
}

/// Runs one of the verbs.
pub(crate) async fn run(client: &Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Create(args) => create::run(client, *args).await?,
        Command::Ls(args) => ls(client, args).await?,
        Command::Ps { args, services } => ps(client, args, services).await?,
        Command::Inspect(args) => inspect(client, args).await?,
        Command::Logs { flags, target } => print_logs(client, &flags, &target).await?,
        Command::Scale(args) => scale(client, args).await?,
        Command::Update(args) => update::run(client, *args).await?,
        Command::Rollback { waiting, service } => rollback(client, waiting, &service).await?,
        Command::Rm { services } => {
            let mut failed = Vec::new();
            for service in services {
                match client.delete(&format!("/services/{}", escape(&service)), &[]).await {
                    Ok(_) => line(&service)?,
                    Err(error) => failed.push(format!("{error:#}")),
                }
            }
            node::all(failed)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The service by id, prefix or name.
async fn find(client: &Client, reference: &str) -> Result<Value> {
    client.get(&format!("/services/{}", escape(reference)), &[]).await
}

/// Changes a service as it is, and as it has become if the cluster wrote to it meanwhile: a new one gets its addresses
/// and ports, an old one's update makes progress. Returns its id.
async fn amend(client: &Client, reference: &str, change: impl AsyncFn(&Value) -> Result<()>) -> Result<String> {
    let mut tries = 0;
    loop {
        let service = find(client, reference).await?;
        tries += 1;
        match change(&service).await {
            Err(error) if is_outdated(&error) && tries < TRIES => {}
            done => return done.map(|()| service.text("ID").to_owned()),
        }
    }
}

/// Replaces a service's spec, saying which version it was made from, and prints what the node warns of.
async fn replace(client: &Client, service: &Value, spec: &Value) -> Result<()> {
    let version = service.number("Version.Index").to_string();
    let path = format!("/services/{}/update", escape(service.text("ID")));
    warn(&client.post(&path, &[("version", &version)], Some(spec)).await?);
    Ok(())
}

/// Prints what the node warns of in an answer.
fn warn(answer: &Value) {
    for warning in answer.list("Warnings") {
        note(format!("WARNING: {}", warning.as_str().unwrap_or_default()));
    }
}

async fn wait(client: &Client, waiting: Waiting, id: &str, asked: Asked) -> Result<()> {
    if waiting.detach { Ok(()) } else { progress::wait(client, id, waiting.quiet, asked).await }
}

async fn ls(client: &Client, args: ListArgs) -> Result<()> {
    let wanted = filters(&args.filters)?;
    let services = client.get("/services", &[("filters", &wanted), ("status", "true")]).await?;
    let mut services: Vec<Value> = services.as_array().cloned().unwrap_or_default();
    services.sort_by(|a, b| a.text("Spec.Name").cmp(b.text("Spec.Name")));
    let list = List {
        headers: &[
            ("ID", "ID"),
            ("Name", "NAME"),
            ("Mode", "MODE"),
            ("Replicas", "REPLICAS"),
            ("Image", "IMAGE"),
            ("Ports", "PORTS"),
        ],
        table: &["ID", "Name", "Mode", "Replicas", "Image", "Ports"],
        rows: services.iter().map(|service| row(service, args.no_trunc || args.quiet)).collect(),
    };
    list.print(&args, "ID")
}

fn row(service: &Value, full: bool) -> Value {
    let id = service.text("ID");
    let mode = if service.at("Spec.Mode.Global").is_object() { "global" } else { "replicated" };
    let mut replicas =
        format!("{}/{}", service.number("ServiceStatus.RunningTasks"), service.number("ServiceStatus.DesiredTasks"));
    match service.number("Spec.TaskTemplate.Placement.MaxReplicas") {
        0 => {}
        max => replicas.push_str(&format!(" (max {max} per node)")),
    }
    let image = service.text("Spec.TaskTemplate.ContainerSpec.Image");
    let ports: Vec<String> = service
        .list("Endpoint.Ports")
        .iter()
        .filter(|port| port.text("PublishMode") != "host")
        .map(|p| format!("*:{}->{}/{}", p.number("PublishedPort"), p.number("TargetPort"), p.text("Protocol")))
        .collect();
    json!({
        "ID": if full { id } else { human::short_id(id) }, "Name": service.text("Spec.Name"), "Mode": mode,
        "Replicas": replicas, "Image": image.split_once('@').map_or(image, |(name, _)| name),
        "Ports": ports.join(", "),
    })
}

async fn ps(client: &Client, args: task::PsArgs, services: Vec<String>) -> Result<()> {
    let (mut wanted, mut failed) = (args.list.filters.clone(), Vec::new());
    for service in &services {
        match find(client, service).await {
            Ok(found) => wanted.push(format!("service={}", found.text("ID"))),
            Err(error) if is_not_found(&error) => failed.push(format!("no such service: {service}")),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    if failed.len() < services.len() {
        task::print(client, &args, &wanted).await?;
    }
    node::all(failed)
}

async fn inspect(client: &Client, args: Inspect) -> Result<()> {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    // A pretty print shows what holds, also where the spec leaves it open.
    let query: &[(&str, &str)] = if args.pretty { &[("insertDefaults", "true")] } else { &[] };
    for service in &args.services {
        match client.get(&format!("/services/{}", escape(service)), query).await {
            Ok(value) => found.push(value),
            Err(error) if is_not_found(&error) => failed.push(format!("no such service: {service}")),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    if args.pretty {
        found.iter().try_for_each(pretty::print)?;
    } else {
        output::inspect(&found, args.format.as_deref())?;
    }
    node::all(failed)
}

/// Prints the logs of a service, or of one task where no service is called so.
async fn print_logs(client: &Client, flags: &logs::Flags, target: &str) -> Result<()> {
    let source = match logs::Source::service(client, target).await {
        Err(error) if is_not_found(&error) => match logs::Source::task(client, target).await {
            Err(error) if is_not_found(&error) => bail!("no such task or service: {target}"),
            found => found?,
        },
        found => found?,
    };
    logs::print(client, source, flags).await
}

async fn scale(client: &Client, args: Scale) -> Result<()> {
    let mut wanted = Vec::new();
    for scale in &args.scales {
        let (service, replicas) =
            scale.split_once('=').with_context(|| format!("invalid scale specifier {scale:?}: write it like web=3"))?;
        let Ok(replicas) = replicas.parse::<u64>() else {
            bail!("{service}: invalid replicas value {replicas:?}: give a whole number, 0 or more");
        };
        wanted.push((service, replicas));
    }
    let (mut scaled, mut failed) = (Vec::new(), Vec::new());
    for (service, replicas) in wanted {
        match scale_one(client, service, replicas).await {
            Ok(id) => {
                line(format!("{service} scaled to {replicas}"))?;
                scaled.push(id);
            }
            Err(error) => failed.push(format!("{service}: {error:#}")),
        }
    }
    for id in scaled.iter().filter(|_| !args.detach) {
        progress::wait(client, id, false, Asked::Change).await?;
    }
    node::all(failed)
}

async fn scale_one(client: &Client, reference: &str, replicas: u64) -> Result<String> {
    let scaled = async |service: &Value| {
        if !service.at("Spec.Mode.Replicated").is_object() {
            bail!("scale can only be used with replicated mode");
        }
        let mut spec = service["Spec"].clone();
        spec.set("Mode.Replicated.Replicas", json!(replicas));
        replace(client, service, &spec).await
    };
    amend(client, reference, scaled).await
}

async fn rollback(client: &Client, waiting: Waiting, reference: &str) -> Result<()> {
    let back = async |service: &Value| {
        let version = service.number("Version.Index").to_string();
        let path = format!("/services/{}/update", escape(service.text("ID")));
        warn(&client.post(&path, &[("version", &version), ("rollback", "previous")], None).await?);
        Ok(())
    };
    let id = amend(client, reference, back).await?;
    line(reference)?;
    wait(client, waiting, &id, Asked::Rollback).await
}
