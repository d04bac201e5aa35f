//! `skep swarm`: making, joining, leaving, tokens, settings.

use anyhow::{Result, bail};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::client::{Client, escape};
use crate::output::line;
use crate::parse;
use crate::value::At;

/// Manage the swarm
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Initialize a swarm
    Init(Init),
    /// Join a swarm as a node and/or manager
    Join(Join),
    /// Manage join tokens
    JoinToken(JoinToken),
    /// Leave the swarm
    Leave {
        /// Force this node to leave the swarm, ignoring warnings
        #[arg(short, long)]
        force: bool,
    },
    /// Update the swarm
    Update(Settings),
    /// Display the root CA
    Ca,
}

/// Addresses of a node, as init and join have them.
#[derive(Debug, clap::Args)]
pub(crate) struct Addresses {
    /// Advertised address (format: <ip|interface>[:port])
    #[arg(long, default_value = "")]
    advertise_addr: String,
    /// Availability of the node: active, pause, drain
    #[arg(long, default_value = "active")]
    availability: String,
    /// Address or interface to use for data path traffic
    #[arg(long, default_value = "")]
    data_path_addr: String,
    /// Listen address (format: <ip|interface>[:port])
    #[arg(long, default_value = "")]
    listen_addr: String,
}

/// Flags of `init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    #[command(flatten)]
    addresses: Addresses,
    /// Port number to use for data path traffic (1024 - 49151)
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    data_path_port: u32,
    /// Default address pool in CIDR format, repeatable
    #[arg(long, value_name = "CIDR")]
    default_addr_pool: Vec<String>,
    /// Default address pool subnet mask length
    #[arg(long, default_value_t = 24)]
    default_addr_pool_mask_length: u32,
    /// Force create a new cluster from current state
    #[arg(long)]
    force_new_cluster: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Settings of the swarm.
#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// Validity period for node certificates, e.g. 2160h
    #[arg(long, value_name = "DURATION")]
    cert_expiry: Option<String>,
    /// Dispatcher heartbeat period, e.g. 5s
    #[arg(long, value_name = "DURATION")]
    dispatcher_heartbeat: Option<String>,
    /// Number of additional Raft snapshots to retain
    #[arg(long)]
    max_snapshots: Option<u64>,
    /// Number of log entries between Raft snapshots
    #[arg(long)]
    snapshot_interval: Option<u64>,
    /// Task history retention limit
    #[arg(long)]
    task_history_limit: Option<u32>,
}

/// Flags of `join`.
#[derive(Debug, clap::Args)]
pub(crate) struct Join {
    #[command(flatten)]
    addresses: Addresses,
    /// Token for entry into the swarm
    #[arg(long)]
    token: String,
    /// A manager, host:port
    remote: String,
}

/// Flags of `join-token`.
#[derive(Debug, clap::Args)]
pub(crate) struct JoinToken {
    /// Only display token
    #[arg(short, long)]
    quiet: bool,
    /// Rotate join token
    #[arg(long)]
    rotate: bool,
    /// The role that the token gives
    role: Role,
}

/// What a node can join as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Runs tasks
    Worker,
    /// Keeps the state and decides, too
    Manager,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

/// Runs one of the verbs.
pub(crate) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Init(args) => init(client, args).await,
        Command::Join(args) => join(client, args).await,
        Command::JoinToken(args) => join_token(client, args).await,
        Command::Leave { force } => {
            client.post("/swarm/leave", if force { &[("force", "1")] } else { &[] }, None).await?;
            line("Node left the swarm.")
        }
        Command::Update(settings) => update(client, settings).await,
        Command::Ca => line(client.get("/swarm", &[]).await?.text("TLSInfo.TrustRoot").trim_end()),
    }
}

async fn init(client: &Client, args: Init) -> Result<()> {
    let mut body = addressed(&args.addresses);
    let mut spec = json!({});
    apply(&args.settings, &mut spec)?;
    body.set("Spec", spec);
    body.set("DataPathPort", json!(args.data_path_port));
    body.set("DefaultAddrPool", json!(args.default_addr_pool));
    body.set("SubnetSize", json!(args.default_addr_pool_mask_length));
    body.set("ForceNewCluster", json!(args.force_new_cluster));
    let id = client.post("/swarm/init", &[], Some(&body)).await?;
    line(format!("Swarm initialized: current node ({}) is now a manager.\n", id.as_str().unwrap_or_default()))?;
    explain(client, Role::Worker).await?;
    line("To add a manager to this swarm, run 'skep swarm join-token manager' and follow the instructions.\n")
}

fn addressed(addresses: &Addresses) -> Value {
    json!({
        "ListenAddr": addresses.listen_addr, "AdvertiseAddr": addresses.advertise_addr,
        "DataPathAddr": addresses.data_path_addr, "Availability": addresses.availability.to_lowercase(),
    })
}

fn apply(settings: &Settings, spec: &mut Value) -> Result<()> {
    if let Some(expiry) = &settings.cert_expiry {
        spec.set("CAConfig.NodeCertExpiry", json!(parse::duration(expiry)?));
    }
    if let Some(period) = &settings.dispatcher_heartbeat {
        spec.set("Dispatcher.HeartbeatPeriod", json!(parse::duration(period)?));
    }
    if let Some(count) = settings.max_snapshots {
        spec.set("Raft.KeepOldSnapshots", json!(count));
    }
    if let Some(count) = settings.snapshot_interval {
        spec.set("Raft.SnapshotInterval", json!(count));
    }
    if let Some(limit) = settings.task_history_limit {
        spec.set("Orchestration.TaskHistoryRetentionLimit", json!(limit));
    }
    Ok(())
}

/// How a node joins: the command to be run there.
async fn explain(client: &Client, role: Role) -> Result<()> {
    let token = token(&client.get("/swarm", &[]).await?, role);
    let info = client.get("/info", &[]).await?;
    let own = client.get(&format!("/nodes/{}", escape(info.text("Swarm.NodeID"))), &[]).await?;
    let address = own.text("ManagerStatus.Addr");
    let article = if role == Role::Worker { "worker" } else { "manager" };
    line(format!(
        "To add a {article} to this swarm, run the following command:\n\n    skep swarm join --token {token} {address}\n"
    ))
}

fn token(swarm: &Value, role: Role) -> String {
    let path = match role {
        Role::Worker => "JoinTokens.Worker",
        Role::Manager => "JoinTokens.Manager",
    };
    swarm.text(path).to_owned()
}

async fn join(client: &Client, args: Join) -> Result<()> {
    let mut body = addressed(&args.addresses);
    body.set("RemoteAddrs", json!([args.remote]));
    body.set("JoinToken", json!(args.token));
    client.post("/swarm/join", &[], Some(&body)).await?;
    let info = client.get("/info", &[]).await?;
    let role = if info["Swarm"]["ControlAvailable"] == json!(true) { "manager" } else { "worker" };
    line(format!("This node joined a swarm as a {role}."))
}

async fn join_token(client: &Client, args: JoinToken) -> Result<()> {
    if args.rotate {
        let swarm = client.get("/swarm", &[]).await?;
        let version = swarm.number("Version.Index").to_string();
        let rotate = match args.role {
            Role::Worker => "rotateWorkerToken",
            Role::Manager => "rotateManagerToken",
        };
        let query = [("version", version.as_str()), (rotate, "true")];
        client.post("/swarm/update", &query, Some(&swarm["Spec"])).await?;
        if !args.quiet {
            line(format!("Successfully rotated {} join token.\n", args.role.word()))?;
        }
    }
    if args.quiet {
        return line(token(&client.get("/swarm", &[]).await?, args.role));
    }
    explain(client, args.role).await
}

async fn update(client: &Client, settings: Settings) -> Result<()> {
    let swarm = client.get("/swarm", &[]).await?;
    let mut spec = swarm["Spec"].clone();
    apply(&settings, &mut spec)?;
    if spec == swarm["Spec"] {
        bail!("nothing to update: give at least one flag");
    }
    let version = swarm.number("Version.Index").to_string();
    client.post("/swarm/update", &[("version", version.as_str())], Some(&spec)).await?;
    line("Swarm updated.")
}
