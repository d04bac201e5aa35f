//! `skep node`.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::{Client, escape, filters, is_not_found};
use crate::output::{self, List, ListArgs, line, note};
use crate::value::At;
use crate::{human, parse, task};

/// Manage swarm nodes
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List nodes in the swarm
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Display detailed information on one or more nodes
    Inspect(Inspect),
    /// List tasks running on one or more nodes, defaults to current node
    Ps {
        #[command(flatten)]
        args: task::PsArgs,
        /// Nodes
        nodes: Vec<String>,
    },
    /// Update a node
    Update(Update),
    /// Promote one or more nodes to manager in the swarm
    Promote {
        /// Nodes
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Demote one or more nodes from manager in the swarm
    Demote {
        /// Nodes
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Remove one or more nodes from the swarm
    #[command(visible_alias = "remove")]
    Rm {
        /// Force remove a node from the swarm
        #[arg(short, long)]
        force: bool,
        /// Nodes
        #[arg(required = true)]
        nodes: Vec<String>,
    },
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
    /// Nodes; self is the one that is asked
    #[arg(required = true)]
    nodes: Vec<String>,
}

/// Flags of `update`.
#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    /// Availability of the node: active, pause, drain
    #[arg(long)]
    availability: Option<String>,
    /// Add or update a node label, key=value
    #[arg(long, value_name = "LABEL")]
    label_add: Vec<String>,
    /// Remove a node label if exists
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Role of the node: worker, manager
    #[arg(long)]
    role: Option<String>,
    /// Node
    node: String,
}

/// Runs one of the verbs.
pub(crate) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Ls(args) => ls(client, args).await,
        Command::Inspect(args) => inspect(client, args).await,
        Command::Ps { args, nodes } => ps(client, args, nodes).await,
        Command::Update(args) => {
            change(client, &args.node, |spec| apply(&args, spec)).await?;
            line(&args.node)
        }
        Command::Promote { nodes } => set_role(client, &nodes, "manager").await,
        Command::Demote { nodes } => set_role(client, &nodes, "worker").await,
        Command::Rm { force, nodes } => {
            let query: &[(&str, &str)] = if force { &[("force", "1")] } else { &[] };
            let mut failed = Vec::new();
            for node in nodes {
                match client.delete(&format!("/nodes/{}", escape(&node)), query).await {
                    Ok(_) => line(&node)?,
                    Err(error) => failed.push(format!("{error:#}")),
                }
            }
            all(failed)
        }
    }
}

/// Failures of several things, as one error.
pub(crate) fn all(failed: Vec<String>) -> Result<()> {
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
}

async fn ls(client: &Client, args: ListArgs) -> Result<()> {
    let wanted = filters(&args.filters)?;
    let mut nodes = client.get("/nodes", &[("filters", &wanted)]).await?;
    let info = client.get("/info", &[]).await?;
    let nodes = nodes.as_array_mut().map(std::mem::take).unwrap_or_default();
    let mut rows: Vec<Value> = nodes.iter().map(|node| row(node, &info, args.format.is_some() || args.quiet)).collect();
    rows.sort_by(|a, b| a.text("Hostname").cmp(b.text("Hostname")).then_with(|| a.text("ID").cmp(b.text("ID"))));
    let list = List {
        headers: &[
            ("ID", "ID"),
            ("Hostname", "HOSTNAME"),
            ("Status", "STATUS"),
            ("Availability", "AVAILABILITY"),
            ("ManagerStatus", "MANAGER STATUS"),
            ("EngineVersion", "ENGINE VERSION"),
            ("TLSStatus", "TLS STATUS"),
        ],
        table: &["ID", "Hostname", "Status", "Availability", "ManagerStatus", "EngineVersion"],
        rows,
    };
    list.print(&args, "ID")
}

fn row(node: &Value, info: &Value, bare: bool) -> Value {
    let own = node.text("ID") == info.text("Swarm.NodeID");
    let mark = match (bare, own) {
        (true, _) => "",
        (false, true) => " *",
        (false, false) => "  ",
    };
    let root = node.text("Description.TLSInfo.TrustRoot");
    let tls = match root {
        "" => "Unknown",
        root if root == info.text("Swarm.Cluster.TLSInfo.TrustRoot") => "Ready",
        _ => "Needs Rotation",
    };
    json!({
        "ID": format!("{}{mark}", node.text("ID")), "Self": own, "Hostname": node.text("Description.Hostname"),
        "Status": title(node.text("Status.State")), "Availability": title(node.text("Spec.Availability")),
        "ManagerStatus": manager_word(node), "EngineVersion": node.text("Description.Engine.EngineVersion"),
        "TLSStatus": tls,
    })
}

fn manager_word(node: &Value) -> String {
    if node.at("ManagerStatus.Leader") == &json!(true) {
        return "Leader".to_owned();
    }
    title(node.text("ManagerStatus.Reachability"))
}

/// The word with a capital.
pub(crate) fn title(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

async fn inspect(client: &Client, args: Inspect) -> Result<()> {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for node in &args.nodes {
        match client.get(&format!("/nodes/{}", escape(node)), &[]).await {
            Ok(value) => found.push(value),
            Err(error) if is_not_found(&error) => failed.push(format!("No such node: {node}")),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    if args.pretty {
        found.iter().try_for_each(pretty)?;
    } else {
        output::inspect(&found, args.format.as_deref())?;
    }
    all(failed)
}

fn pretty(node: &Value) -> Result<()> {
    line(format!("ID:\t\t\t{}", node.text("ID")))?;
    let labels = node.at("Spec.Labels").as_object().filter(|l| !l.is_empty());
    if let Some(labels) = labels {
        line("Labels:")?;
        for (name, value) in labels {
            line(format!(" - {name}={}", value.as_str().unwrap_or_default()))?;
        }
    }
    line(format!("Hostname:              \t{}", node.text("Description.Hostname")))?;
    line(format!("Joined at:             \t{}", node.text("CreatedAt")))?;
    line("Status:")?;
    line(format!(" State:\t\t\t{}", title(node.text("Status.State"))))?;
    if !node.text("Status.Message").is_empty() {
        line(format!(" Message:              \t{}", node.text("Status.Message")))?;
    }
    line(format!(" Availability:         \t{}", title(node.text("Spec.Availability"))))?;
    line(format!(" Address:\t\t{}", node.text("Status.Addr")))?;
    if node["ManagerStatus"].is_object() {
        let leader = if node.at("ManagerStatus.Leader") == &json!(true) { "Yes" } else { "No" };
        line("Manager Status:")?;
        line(format!(" Address:\t\t{}", node.text("ManagerStatus.Addr")))?;
        line(format!(" Raft Status:\t\t{}", title(node.text("ManagerStatus.Reachability"))))?;
        line(format!(" Leader:\t\t{leader}"))?;
    }
    line("Platform:")?;
    line(format!(" Operating System:\t{}", node.text("Description.Platform.OS")))?;
    line(format!(" Architecture:\t\t{}", node.text("Description.Platform.Architecture")))?;
    line("Resources:")?;
    line(format!(" CPUs:\t\t\t{}", node.number("Description.Resources.NanoCPUs") / 1_000_000_000))?;
    let memory = node.number("Description.Resources.MemoryBytes") as f64;
    line(format!(" Memory:\t\t{}", human::binary_size(memory)))?;
    plugins(node.list("Description.Engine.Plugins"))?;
    line(format!("Engine Version:\t\t{}", node.text("Description.Engine.EngineVersion")))?;
    let tls = node.at("Description.TLSInfo");
    if tls.text("TrustRoot").is_empty() {
        return Ok(());
    }
    line(format!("TLS Info:\n TrustRoot:\n{}\n", tls.text("TrustRoot").trim_end()))?;
    line(format!(" Issuer Subject:\t{}", tls.text("CertIssuerSubject")))?;
    line(format!(" Issuer Public Key:\t{}", tls.text("CertIssuerPublicKey")))
}

/// The names of plugins by their kind, one line a kind.
fn plugins(plugins: &[Value]) -> Result<()> {
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for plugin in plugins {
        kinds.entry(plugin.text("Type")).or_default().push(plugin.text("Name"));
    }
    if !kinds.is_empty() {
        line("Plugins:")?;
    }
    kinds.iter().try_for_each(|(kind, names)| line(format!(" {kind}:\t\t{}", names.join(", "))))
}

async fn ps(client: &Client, args: task::PsArgs, mut nodes: Vec<String>) -> Result<()> {
    if nodes.is_empty() {
        nodes.push("self".to_owned());
    }
    let (mut wanted, mut failed) = (args.list.filters.clone(), Vec::new());
    for node in &nodes {
        match client.get(&format!("/nodes/{}", escape(node)), &[]).await {
            Ok(value) => wanted.push(format!("node={}", value.text("ID"))),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    if failed.len() < nodes.len() {
        task::print(client, &args, &wanted).await?;
    }
    all(failed)
}

fn apply(args: &Update, spec: &mut Value) -> Result<()> {
    if let Some(availability) = &args.availability {
        spec.set("Availability", json!(availability.to_lowercase()));
    }
    if let Some(role) = &args.role {
        spec.set("Role", json!(role.to_lowercase()));
    }
    let unknown = args.label_rm.iter().find(|name| spec["Labels"].get(name.as_str()).is_none());
    if let Some(name) = unknown {
        bail!("key {name} doesn't exist in node's labels");
    }
    spec.with_map("Labels", |labels| {
        labels.retain(|name, _| !args.label_rm.contains(name));
        labels.extend(parse::pairs(&args.label_add));
    });
    Ok(())
}

async fn set_role(client: &Client, nodes: &[String], role: &str) -> Result<()> {
    for node in nodes {
        let changed = change(client, node, |spec| {
            spec.set("Role", json!(role));
            Ok(())
        })
        .await?;
        match (changed, role) {
            (false, "manager") => note(format!("Node {node} is already a manager.")),
            (false, _) => note(format!("Node {node} is already a worker.")),
            (true, "manager") => line(format!("Node {node} promoted to a manager in the swarm."))?,
            (true, _) => line(format!("Manager {node} demoted in the swarm."))?,
        }
    }
    Ok(())
}

/// Changes a node's spec; says whether anything was to be changed.
async fn change(client: &Client, node: &str, change: impl FnOnce(&mut Value) -> Result<()>) -> Result<bool> {
    let found = client.get(&format!("/nodes/{}", escape(node)), &[]).await?;
    let mut spec = found["Spec"].clone();
    change(&mut spec)?;
    if spec == found["Spec"] {
        return Ok(false);
    }
    let version = found.number("Version.Index").to_string();
    let path = format!("/nodes/{}/update", escape(found.text("ID")));
    client.post(&path, &[("version", &version)], Some(&spec)).await?;
    Ok(true)
}
