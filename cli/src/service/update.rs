//! `skep service update`.

use anyhow::Result;
use serde_json::{Value, json};

use super::change::{Lists, network_id, remove_env, take};
use super::flags::{CONTAINER, Shared};
use super::{Waiting, amend, replace, rollback, wait};
use crate::client::Client;
use crate::output::line;
use crate::parse;
use crate::progress::Asked;
use crate::value::At;

/// Flags of `service update`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    shared: Shared,
    /// Service command args
    #[arg(long)]
    args: Option<String>,
    /// Service image tag
    #[arg(long)]
    image: Option<String>,
    /// Force update even if no changes require it
    #[arg(long)]
    force: bool,
    /// Rollback to previous specification
    #[arg(long)]
    rollback: bool,
    #[command(flatten)]
    add: Add,
    #[command(flatten)]
    remove: Remove,
    /// Service
    service: String,
}

/// What is added.
#[derive(Debug, clap::Args)]
struct Add {
    /// Add Linux capabilities
    #[arg(long)]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long)]
    cap_drop: Vec<String>,
    /// Add or replace a config: a name, or source=name,target=/etc/app.conf,uid=0,gid=0,mode=0444
    #[arg(long)]
    config_add: Vec<String>,
    /// Add a placement constraint: node.role==worker, node.hostname!=n1, node.labels.zone==a, node.platform.os==linux or engine.labels.disk==ssd
    #[arg(long)]
    constraint_add: Vec<String>,
    /// Add or replace a label of the containers: name=value
    #[arg(long)]
    container_label_add: Vec<String>,
    /// Add or update a custom DNS server
    #[arg(long)]
    dns_add: Vec<String>,
    /// Add or update a DNS option
    #[arg(long)]
    dns_option_add: Vec<String>,
    /// Add or update a custom DNS search domain
    #[arg(long)]
    dns_search_add: Vec<String>,
    /// Add or replace an environment variable: NAME=value
    #[arg(long)]
    env_add: Vec<String>,
    /// Add an additional supplementary user group to the container
    #[arg(long)]
    group_add: Vec<String>,
    /// Add a name to the containers' hosts file, host:ip: db:192.0.2.7
    #[arg(long)]
    host_add: Vec<String>,
    /// Add or replace a label of the service: name=value
    #[arg(long)]
    label_add: Vec<String>,
    /// Add or replace a mount: type=bind,source=/srv,target=/data,readonly or type=tmpfs,target=/tmp,tmpfs-size=64m
    #[arg(long)]
    mount_add: Vec<String>,
    /// Join a network: its name, or name=net,alias=db
    #[arg(long)]
    network_add: Vec<String>,
    /// Add a placement preference: spread=node.labels.zone
    #[arg(long)]
    placement_pref_add: Vec<String>,
    /// Publish a port on every node: 8080:80, 8000-8002:80-82/udp, or published=8080,target=80,protocol=tcp,mode=host
    #[arg(long)]
    publish_add: Vec<String>,
    /// Add or replace a secret: a name, or source=name,target=file,uid=0,gid=0,mode=0400
    #[arg(long)]
    secret_add: Vec<String>,
    /// Add or replace a kernel parameter of the containers: net.core.somaxconn=1024
    #[arg(long)]
    sysctl_add: Vec<String>,
    /// Add or replace a limit, soft:hard: nofile=1024:2048
    #[arg(long)]
    ulimit_add: Vec<String>,
}

/// What is taken away.
#[derive(Debug, clap::Args)]
struct Remove {
    /// Remove a configuration file
    #[arg(long)]
    config_rm: Vec<String>,
    /// Remove a constraint
    #[arg(long)]
    constraint_rm: Vec<String>,
    /// Remove a container label by its key
    #[arg(long)]
    container_label_rm: Vec<String>,
    /// Remove a custom DNS server
    #[arg(long)]
    dns_rm: Vec<String>,
    /// Remove a DNS option
    #[arg(long)]
    dns_option_rm: Vec<String>,
    /// Remove a DNS search domain
    #[arg(long)]
    dns_search_rm: Vec<String>,
    /// Remove an environment variable
    #[arg(long)]
    env_rm: Vec<String>,
    /// Remove a previously added supplementary user group from the container
    #[arg(long)]
    group_rm: Vec<String>,
    /// Remove a custom host-to-IP mapping (host:ip)
    #[arg(long)]
    host_rm: Vec<String>,
    /// Remove a label by its key
    #[arg(long)]
    label_rm: Vec<String>,
    /// Remove a mount by its target path
    #[arg(long)]
    mount_rm: Vec<String>,
    /// Remove a network
    #[arg(long)]
    network_rm: Vec<String>,
    /// Remove a placement preference
    #[arg(long)]
    placement_pref_rm: Vec<String>,
    /// Remove a published port by its target port
    #[arg(long)]
    publish_rm: Vec<String>,
    /// Remove a secret
    #[arg(long)]
    secret_rm: Vec<String>,
    /// Remove a sysctl option
    #[arg(long)]
    sysctl_rm: Vec<String>,
    /// Remove a ulimit option
    #[arg(long)]
    ulimit_rm: Vec<String>,
}

/// Updates a service and waits for it.
pub(super) async fn run(client: &Client, args: Args) -> Result<()> {
    if args.rollback {
        return rollback(client, args.waiting, &args.service).await;
    }
    let id = amend(client, &args.service, async |service| {
        let spec = changed(client, &args, &service["Spec"]).await?;
        replace(client, service, &spec).await
    });
    let id = id.await?;
    line(&args.service)?;
    wait(client, args.waiting, &id, Asked::Change).await
}

/// The spec with what the flags say.
async fn changed(client: &Client, args: &Args, spec: &Value) -> Result<Value> {
    let mut spec = spec.clone();
    if let Some(image) = &args.image {
        spec.set(&format!("{CONTAINER}.Image"), json!(parse::image(image)));
    }
    if let Some(arguments) = &args.args {
        spec.set(&format!("{CONTAINER}.Args"), json!(arguments.split_whitespace().collect::<Vec<_>>()));
    }
    if args.force {
        let count = spec.number("TaskTemplate.ForceUpdate");
        spec.set("TaskTemplate.ForceUpdate", json!(count + 1));
    }
    args.shared.apply(&mut spec)?;
    remove(client, &args.remove, &mut spec).await?;
    lists(&args.add).add(client, &mut spec).await?;
    Ok(spec)
}

async fn remove(client: &Client, gone: &Remove, spec: &mut Value) -> Result<()> {
    let container = |name: &str| format!("{CONTAINER}.{name}");
    for (path, keys) in [
        ("Labels".to_owned(), &gone.label_rm),
        (container("Labels"), &gone.container_label_rm),
        (container("Sysctls"), &gone.sysctl_rm),
    ] {
        if spec.at(&path).is_object() {
            spec.with_map(&path, |map| map.retain(|key, _| !keys.contains(key)));
        }
    }
    let named = |keys: &[String], value: &Value| value.as_str().is_some_and(|v| keys.iter().any(|k| k == v));
    for (path, keys) in [
        ("TaskTemplate.Placement.Constraints".to_owned(), &gone.constraint_rm),
        (container("Groups"), &gone.group_rm),
        (container("DNSConfig.Nameservers"), &gone.dns_rm),
        (container("DNSConfig.Options"), &gone.dns_option_rm),
        (container("DNSConfig.Search"), &gone.dns_search_rm),
    ] {
        take(spec, &path, |item| named(keys, item));
    }
    gone.env_rm.iter().for_each(|name| remove_env(spec, name));
    take(spec, &container("Mounts"), |mount| named(&gone.mount_rm, &mount["Target"]));
    take(spec, &container("Ulimits"), |ulimit| named(&gone.ulimit_rm, &ulimit["Name"]));
    take(spec, &container("Secrets"), |secret| named(&gone.secret_rm, &secret["SecretName"]));
    take(spec, &container("Configs"), |config| named(&gone.config_rm, &config["ConfigName"]));
    take(spec, &container("Hosts"), |host| {
        let (address, name) = host.as_str().and_then(|h| h.split_once(' ')).unwrap_or_default();
        gone.host_rm.iter().any(|gone| gone == name || *gone == format!("{name}:{address}"))
    });
    take(spec, "EndpointSpec.Ports", |port| {
        let target = port["TargetPort"].to_string();
        let full = format!("{target}/{}", port.text("Protocol"));
        gone.publish_rm.iter().any(|gone| *gone == target || *gone == full)
    });
    take(spec, "TaskTemplate.Placement.Preferences", |preference| {
        let spread = format!("spread={}", preference.text("Spread.SpreadDescriptor"));
        gone.placement_pref_rm.contains(&spread)
    });
    for network in &gone.network_rm {
        let id = network_id(client, network).await?;
        take(spec, "TaskTemplate.Networks", |attachment| attachment.text("Target") == id);
    }
    Ok(())
}

fn lists(add: &Add) -> Lists {
    Lists {
        env: add.env_add.clone(),
        env_files: Vec::new(),
        labels: add.label_add.clone(),
        container_labels: add.container_label_add.clone(),
        constraints: add.constraint_add.clone(),
        preferences: add.placement_pref_add.clone(),
        ports: add.publish_add.clone(),
        mounts: add.mount_add.clone(),
        networks: add.network_add.clone(),
        secrets: add.secret_add.clone(),
        configs: add.config_add.clone(),
        hosts: add.host_add.clone(),
        dns: add.dns_add.clone(),
        dns_options: add.dns_option_add.clone(),
        dns_search: add.dns_search_add.clone(),
        groups: add.group_add.clone(),
        cap_add: add.cap_add.clone(),
        cap_drop: add.cap_drop.clone(),
        sysctls: add.sysctl_add.clone(),
        ulimits: add.ulimit_add.clone(),
    }
}
