//! `skep service create`.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::change::Lists;
use super::flags::{CONTAINER, Shared};
use super::{Waiting, wait, warn};
use crate::client::Client;
use crate::output::line;
use crate::parse;
use crate::progress::Asked;
use crate::value::At;

/// Flags of `service create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    shared: Shared,
    /// Add Linux capabilities
    #[arg(long)]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long)]
    cap_drop: Vec<String>,
    /// Specify configurations to expose to the service
    #[arg(long = "config")]
    configs: Vec<String>,
    /// Placement constraints
    #[arg(long = "constraint")]
    constraints: Vec<String>,
    /// Container labels
    #[arg(long = "container-label")]
    container_labels: Vec<String>,
    /// Set custom DNS servers
    #[arg(long)]
    dns: Vec<String>,
    /// Set DNS options
    #[arg(long = "dns-option")]
    dns_options: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long)]
    dns_search: Vec<String>,
    /// Set environment variables
    #[arg(short, long)]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long = "env-file")]
    env_files: Vec<String>,
    /// Set one or more supplementary user groups for the container
    #[arg(long = "group")]
    groups: Vec<String>,
    /// Set one or more custom host-to-IP mappings (host:ip)
    #[arg(long = "host")]
    hosts: Vec<String>,
    /// Service labels
    #[arg(short, long = "label")]
    labels: Vec<String>,
    /// Service mode: replicated, global
    #[arg(long, default_value = "replicated")]
    mode: String,
    /// Attach a filesystem mount to the service
    #[arg(long = "mount")]
    mounts: Vec<String>,
    /// Service name
    #[arg(long, default_value = "")]
    name: String,
    /// Network attachments
    #[arg(long = "network")]
    networks: Vec<String>,
    /// Add a placement preference
    #[arg(long = "placement-pref")]
    preferences: Vec<String>,
    /// Publish a port as a node port
    #[arg(short, long = "publish")]
    ports: Vec<String>,
    /// Specify secrets to expose to the service
    #[arg(long = "secret")]
    secrets: Vec<String>,
    /// Sysctl options
    #[arg(long = "sysctl")]
    sysctls: Vec<String>,
    /// Ulimit options
    #[arg(long = "ulimit")]
    ulimits: Vec<String>,
    /// Image
    image: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Creates a service and waits for it.
pub(super) async fn run(client: &Client, mut args: Args) -> Result<()> {
    let mut spec = base(&args)?;
    args.shared.apply(&mut spec)?;
    lists(&mut args).add(client, &mut spec).await?;
    let answer = client.post("/services/create", &[], Some(&spec)).await?;
    warn(&answer);
    line(answer.text("ID"))?;
    wait(client, args.waiting, answer.text("ID"), Asked::Change).await
}

/// The spec before the other flags.
fn base(args: &Args) -> Result<Value> {
    let mut spec =
        json!({ "Name": args.name, "TaskTemplate": { "ContainerSpec": { "Image": parse::image(&args.image) } } });
    if !args.args.is_empty() {
        spec.set(&format!("{CONTAINER}.Args"), json!(args.args));
    }
    match args.mode.as_str() {
        "replicated" => spec.set("Mode.Replicated.Replicas", json!(1)),
        "global" => spec.set("Mode.Global", json!({})),
        other => bail!("unknown mode {other:?}: there are replicated and global"),
    }
    Ok(spec)
}

fn lists(args: &mut Args) -> Lists {
    use std::mem::take;
    Lists {
        env: take(&mut args.env),
        env_files: take(&mut args.env_files),
        labels: take(&mut args.labels),
        container_labels: take(&mut args.container_labels),
        constraints: take(&mut args.constraints),
        preferences: take(&mut args.preferences),
        ports: take(&mut args.ports),
        mounts: take(&mut args.mounts),
        networks: take(&mut args.networks),
        secrets: take(&mut args.secrets),
        configs: take(&mut args.configs),
        hosts: take(&mut args.hosts),
        dns: take(&mut args.dns),
        dns_options: take(&mut args.dns_options),
        dns_search: take(&mut args.dns_search),
        groups: take(&mut args.groups),
        cap_add: take(&mut args.cap_add),
        cap_drop: take(&mut args.cap_drop),
        sysctls: take(&mut args.sysctls),
        ulimits: take(&mut args.ulimits),
    }
}
