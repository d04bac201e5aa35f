//! `skep service create`.

use anyhow::{Context, Result, bail};
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
    /// Give the service a config, a file in its containers: a name, or source=name,target=/etc/app.conf,uid=0,gid=0,mode=0444
    #[arg(long = "config")]
    configs: Vec<String>,
    /// Run only on nodes that fit: node.role==worker, node.hostname!=n1, node.labels.zone==a, node.platform.os==linux or engine.labels.disk==ssd
    #[arg(long = "constraint")]
    constraints: Vec<String>,
    /// Label of the containers: name=value
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
    /// Set an environment variable: NAME=value; NAME alone takes it from here
    #[arg(short, long)]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long = "env-file")]
    env_files: Vec<String>,
    /// Set one or more supplementary user groups for the container
    #[arg(long = "group")]
    groups: Vec<String>,
    /// Add a name to the containers' hosts file, host:ip: db:192.0.2.7
    #[arg(long = "host")]
    hosts: Vec<String>,
    /// Label of the service: name=value
    #[arg(short, long = "label")]
    labels: Vec<String>,
    /// Service mode: replicated, global
    #[arg(long, default_value = "replicated")]
    mode: String,
    /// Mount into the containers: type=bind,source=/srv,target=/data,readonly or type=tmpfs,target=/tmp,tmpfs-size=64m
    #[arg(long = "mount")]
    mounts: Vec<String>,
    /// Service name
    #[arg(long, default_value = "")]
    name: String,
    /// Join a network: its name, or name=net,alias=db
    #[arg(long = "network")]
    networks: Vec<String>,
    /// Spread over the values of a label: spread=node.labels.zone
    #[arg(long = "placement-pref")]
    preferences: Vec<String>,
    /// Publish a port on every node: 8080:80, 8000-8002:80-82/udp, or published=8080,target=80,protocol=tcp,mode=host
    #[arg(short, long = "publish")]
    ports: Vec<String>,
    /// Give the service a secret, a file below /run/secrets: a name, or source=name,target=file,uid=0,gid=0,mode=0400
    #[arg(long = "secret")]
    secrets: Vec<String>,
    /// Set a kernel parameter of the containers: net.core.somaxconn=1024
    #[arg(long = "sysctl")]
    sysctls: Vec<String>,
    /// Set a limit, soft:hard: nofile=1024:2048
    #[arg(long = "ulimit")]
    ulimits: Vec<String>,
    /// Image, and what its containers run instead of its own command. Options for the service come before it
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [COMMAND] [ARG]")]
    image_and_args: Vec<String>,
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
    let (image, command) = args.image_and_args.split_first().context("give an image")?;
    let mut spec = json!({ "Name": args.name, "TaskTemplate": { "ContainerSpec": { "Image": parse::image(image) } } });
    if !command.is_empty() {
        spec.set(&format!("{CONTAINER}.Args"), json!(command));
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
