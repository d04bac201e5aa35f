//! `skep network`.

use std::io::IsTerminal;

use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::{Client, escape, filters, is_not_found};
use crate::output::{self, List, ListArgs, line};
use crate::value::At;
use crate::{human, node, parse};

/// Manage networks
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a network
    Create(Box<Create>),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Display detailed information on one or more networks
    Inspect {
        /// Format output: 'json' or a template
        #[arg(short, long)]
        format: Option<String>,
        /// Verbose output for diagnostics
        #[arg(short, long)]
        verbose: bool,
        /// Networks
        #[arg(required = true)]
        networks: Vec<String>,
    },
    /// Remove one or more networks
    #[command(visible_alias = "remove")]
    Rm {
        /// Do not error if the network does not exist, and do not ask before an ingress network is removed
        #[arg(short, long)]
        force: bool,
        /// Networks
        #[arg(required = true)]
        networks: Vec<String>,
    },
    /// Remove all unused networks
    Prune {
        /// Provide filter values, e.g. until=<timestamp>
        #[arg(long = "filter")]
        filters: Vec<String>,
        /// Do not prompt for confirmation
        #[arg(short, long)]
        force: bool,
    },
}

/// Flags of `create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Enable manual container attachment
    #[arg(long)]
    attachable: bool,
    /// An address that must not be given out, name=address: router=10.1.0.254
    #[arg(long = "aux-address")]
    aux_addresses: Vec<String>,
    /// Driver to manage the network
    #[arg(short, long, default_value = "overlay")]
    driver: String,
    /// Gateway of the subnet: 10.1.0.1
    #[arg(long = "gateway")]
    gateways: Vec<String>,
    /// Create swarm routing-mesh network
    #[arg(long)]
    ingress: bool,
    /// Restrict external access to the network
    #[arg(long)]
    internal: bool,
    /// Part of the subnet that addresses are given out from: 10.1.0.128/25
    #[arg(long = "ip-range")]
    ranges: Vec<String>,
    /// Enable IPv6 address assignment
    #[arg(long)]
    ipv6: bool,
    /// Label of the network: name=value
    #[arg(long = "label")]
    labels: Vec<String>,
    /// Option of the driver: name=value
    #[arg(short, long = "opt")]
    options: Vec<String>,
    /// Control the network's scope
    #[arg(long, default_value = "")]
    scope: String,
    /// Subnet of the network, in which no node's own address may lie: 10.1.0.0/24
    #[arg(long = "subnet")]
    subnets: Vec<String>,
    /// Name
    name: String,
}

/// Runs one of the verbs.
pub(crate) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Create(args) => create(client, &args).await,
        Command::Ls(args) => ls(client, args).await,
        Command::Inspect { format, verbose, networks } => {
            let query: &[(&str, &str)] = if verbose { &[("verbose", "true")] } else { &[] };
            let (mut found, mut failed) = (Vec::new(), Vec::new());
            for network in networks {
                match client.get(&format!("/networks/{}", escape(&network)), query).await {
                    Ok(value) => found.push(value),
                    Err(error) => failed.push(format!("{error:#}")),
                }
            }
            output::inspect(&found, format.as_deref())?;
            node::all(failed)
        }
        Command::Rm { force, networks } => remove(client, force, networks).await,
        Command::Prune { filters: wanted, force } => {
            if !force && !confirmed("WARNING! This will remove all networks not used by at least one service.")? {
                return Ok(());
            }
            let wanted = filters(&wanted)?;
            let answer = client.post("/networks/prune", &[("filters", &wanted)], None).await?;
            let deleted = answer.list("NetworksDeleted");
            if deleted.is_empty() {
                return Ok(());
            }
            line("Deleted Networks:")?;
            deleted.iter().try_for_each(|name| line(name.as_str().unwrap_or_default()))
        }
    }
}

async fn remove(client: &Client, force: bool, networks: Vec<String>) -> Result<()> {
    let mut failed = Vec::new();
    for network in networks {
        match remove_one(client, force, &network).await {
            Ok(true) => line(&network)?,
            Ok(false) => {}
            Err(error) if force && is_not_found(&error) => {}
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    node::all(failed)
}

/// Removes a network; `false`: the user thought better of it.
async fn remove_one(client: &Client, force: bool, network: &str) -> Result<bool> {
    let path = format!("/networks/{}", escape(network));
    if !force && client.get(&path, &[]).await?["Ingress"] == true {
        if !std::io::stdin().is_terminal() {
            bail!(
                "network {network} is the routing mesh of the swarm: without it no service can publish a port on every \
                 node. It is removed only when somebody says so: use --force"
            );
        }
        let warning = "WARNING! Without this network, the routing mesh, no service can publish a port on every node.";
        if !confirmed(warning)? {
            return Ok(false);
        }
    }
    client.delete(&path, &[]).await?;
    Ok(true)
}

/// Asks on the terminal; anything but yes is no.
pub(crate) fn confirmed(warning: &str) -> Result<bool> {
    output::raw(format!("{warning}\nAre you sure you want to continue? [y/N] ").as_bytes())?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

async fn create(client: &Client, args: &Create) -> Result<()> {
    let mut body = json!({
        "Name": args.name, "Driver": args.driver, "Attachable": args.attachable, "Internal": args.internal,
        "Ingress": args.ingress, "EnableIPv6": args.ipv6, "Options": parse::pairs(&args.options),
        "Labels": parse::pairs(&args.labels), "Scope": args.scope,
    });
    let configs = ipam(args)?;
    if !configs.is_empty() {
        body.set("IPAM.Config", json!(configs));
    }
    let answer = client.post("/networks/create", &[], Some(&body)).await?;
    if !answer.text("Warning").is_empty() {
        output::note(format!("WARNING: {}", answer.text("Warning")));
    }
    line(answer.text("Id"))
}

/// One entry a subnet; the others belong to the subnet at the same place.
fn ipam(args: &Create) -> Result<Vec<Value>> {
    if args.ranges.len() > args.subnets.len() || args.gateways.len() > args.subnets.len() {
        bail!("each --ip-range and --gateway needs a --subnet that it lies in");
    }
    if args.subnets.is_empty() && !args.aux_addresses.is_empty() {
        bail!("--aux-address needs a --subnet that it lies in");
    }
    let mut configs: Vec<Value> = args.subnets.iter().map(|subnet| json!({ "Subnet": subnet })).collect();
    for (config, range) in configs.iter_mut().zip(&args.ranges) {
        config["IPRange"] = json!(range);
    }
    for (config, gateway) in configs.iter_mut().zip(&args.gateways) {
        config["Gateway"] = json!(gateway);
    }
    if let Some(first) = configs.first_mut().filter(|_| !args.aux_addresses.is_empty()) {
        first["AuxiliaryAddresses"] = json!(parse::pairs(&args.aux_addresses));
    }
    Ok(configs)
}

async fn ls(client: &Client, args: ListArgs) -> Result<()> {
    let wanted = filters(&args.filters)?;
    let networks = client.get("/networks", &[("filters", &wanted)]).await?;
    let mut networks: Vec<Value> = networks.as_array().cloned().unwrap_or_default();
    networks.sort_by(|a, b| a.text("Name").cmp(b.text("Name")));
    let row = |network: &Value| {
        let id = network.text("Id");
        json!({
            "ID": if args.no_trunc { id } else { human::short_id(id) }, "Name": network.text("Name"),
            "Driver": network.text("Driver"), "Scope": network.text("Scope"),
            "Internal": network["Internal"].as_bool().unwrap_or(false).to_string(),
            "IPv6": network["EnableIPv6"].as_bool().unwrap_or(false).to_string(),
            "CreatedAt": network.text("Created"),
        })
    };
    let list = List {
        headers: &[
            ("ID", "NETWORK ID"),
            ("Name", "NAME"),
            ("Driver", "DRIVER"),
            ("Scope", "SCOPE"),
            ("Internal", "INTERNAL"),
            ("IPv6", "IPV6"),
            ("CreatedAt", "CREATED AT"),
        ],
        table: &["ID", "Name", "Driver", "Scope"],
        rows: networks.iter().map(row).collect(),
    };
    list.print(&args, "ID")
}
