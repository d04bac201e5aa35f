//! What the API asks of the node that it fronts: small facility traits, declared here because here they are used.
//!
//! The node implements them over its rooms; tests over a few maps. Nothing here decides anything. The cluster's
//! objects travel as the messages of `skep.v1`, so that a manager's own service is a [`Control`] as it stands.
//!
//! The futures are boxed by hand. The bounds that `async_trait` puts on every method keep the compiler from remembering
//! that a node, with a whole manager in it, may be sent between threads: it found that out anew for every method, which
//! was half of this crate's compile time.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use skep_proto::v1::{Availability, ClusterEvent, ClusterSpec, LogBatch, LogOptions, Resources, control_server};
use tonic::Status;

/// A stream that owns what it reads from.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

/// The cluster's API: a manager's own service, which forwards to the leader and has its own deadlines.
pub type Control = dyn control_server::Control<WatchEventsStream = BoxStream<Result<ClusterEvent, Status>>>;

/// What a facility answers when it can't do what it was asked: which status the client sees, and why in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The input is wrong (400).
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing (404).
    #[error("{0}")]
    NotFound(String),
    /// It exists already or is in use (409).
    #[error("{0}")]
    Conflict(String),
    /// The node is not in the state for that, e.g. already in a swarm (503, as clients of the swarm calls expect).
    #[error("{0}")]
    Unavailable(String),
    /// This build or node can't do that (501).
    #[error("{0}")]
    Unsupported(String),
    /// Something broke (500).
    #[error("{0}")]
    Internal(String),
}

/// All facilities of one node.
#[derive(Clone)]
pub struct Backend {
    /// The node itself.
    pub node: Arc<dyn NodeInfo>,
    /// Membership, and the way to the cluster's objects.
    pub cluster: Arc<dyn Cluster>,
    /// The node's image store.
    pub images: Arc<dyn Images>,
    /// The node's containers.
    pub containers: Arc<dyn Containers>,
    /// Logs of tasks anywhere in the cluster.
    pub logs: Arc<dyn TaskLogs>,
    /// The node's memory of what happened.
    pub events: Arc<dyn LocalEvents>,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").finish_non_exhaustive()
    }
}

// ---- node ---------------------------------------------------------------------------------------------------

/// What the node knows about itself.
pub trait NodeInfo: Send + Sync + 'static {
    /// A snapshot; cheap enough for every `docker info`.
    fn facts(&self) -> BoxFuture<'_, NodeFacts>;

    /// What whoever asks for `info` should know; looks around for it, so nobody else asks.
    fn warnings(&self) -> BoxFuture<'_, Vec<String>>;
}

/// Facts about the node at one moment.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// Stable id of this installation, also outside a swarm.
    pub engine_id: String,
    /// Host name.
    pub hostname: String,
    /// Version of this program.
    pub version: String,
    /// Commit that it was built from; empty when unknown.
    pub commit: String,
    /// `uname -r`.
    pub kernel: String,
    /// As os-release says it, e.g. `Debian GNU/Linux 12 (bookworm)`.
    pub operating_system: String,
    /// As `uname -m` says it.
    pub architecture: String,
    /// CPUs and memory of the machine.
    pub resources: Resources,
    /// Labels of the engine, `name=value`.
    pub labels: Vec<String>,
    /// Data directory.
    pub data_dir: String,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// When the daemon started, Unix nanoseconds.
    pub started_ns: i64,
    /// The gateway bridge of this node, once it exists.
    pub gateway: Option<GatewayFacts>,
    /// Membership.
    pub swarm: SwarmFacts,
}

/// The node's own bridge through which containers reach the world.
#[derive(Clone, Debug, Default)]
pub struct GatewayFacts {
    /// Name of the link.
    pub name: String,
    /// CIDR.
    pub subnet: String,
    /// The bridge's address.
    pub gateway: String,
}

/// Whether and how the node takes part in a swarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SwarmState {
    /// In none.
    #[default]
    Inactive,
    /// Joining, or starting again and not yet in touch.
    Pending,
    /// A member.
    Active,
    /// Was a member and can't be one any more; [`SwarmFacts::error`] says why.
    Error,
}

/// Membership of the node.
#[derive(Clone, Debug, Default)]
pub struct SwarmFacts {
    /// State.
    pub state: SwarmState,
    /// This node's id; empty outside a swarm.
    pub node_id: String,
    /// Advertised address without port.
    pub node_address: String,
    /// Whether it is a manager.
    pub manager: bool,
    /// Why it is in [`SwarmState::Error`].
    pub error: String,
    /// Managers that it knows: node id and `host:port`.
    pub managers: Vec<(String, String)>,
}

// ---- cluster ------------------------------------------------------------------------------------------------

/// Membership and the cluster's objects.
pub trait Cluster: Send + Sync + 'static {
    /// The cluster's API. `None` when this node is no manager (or not yet, or not any more).
    fn control(&self) -> Option<Arc<Control>>;

    /// Marks a call of [`Cluster::control`] as coming from this very node, where the service asks for such a mark.
    fn mark(&self, _extensions: &mut tonic::Extensions) {}

    /// Makes a new swarm with this node as its only manager; answers with the node's id.
    fn init(&self, request: Init) -> BoxFuture<'_, Result<String, Failure>>;

    /// Joins a swarm; returns when the node is a member or can't be.
    fn join(&self, request: Join) -> BoxFuture<'_, Result<(), Failure>>;

    /// Leaves; a manager only when `force` is given.
    fn leave(&self, force: bool) -> BoxFuture<'_, Result<(), Failure>>;
}

/// Addresses of a node that takes part in a swarm. Empty: the daemon's settings, or found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Where it listens, `host[:port]` or `interface[:port]`.
    pub listen: String,
    /// What others are told.
    pub advertise: String,
    /// Where VXLAN packets go.
    pub data_path: String,
}

/// A swarm to be made.
#[derive(Clone, Debug, Default)]
pub struct Init {
    /// Addresses of the first manager.
    pub addresses: Addresses,
    /// VXLAN port; 0: the default.
    pub data_path_port: u32,
    /// Pools for networks, CIDR; empty: the default.
    pub default_address_pools: Vec<String>,
    /// Prefix length of a network from a pool; 0: the default.
    pub subnet_size: u32,
    /// Start anew from this node's state after the quorum is lost.
    pub force_new_cluster: bool,
    /// Availability of this node.
    pub availability: Availability,
    /// Settings; fields that are zero take their defaults.
    pub spec: ClusterSpec,
}

/// A swarm to be joined.
#[derive(Clone, Debug, Default)]
pub struct Join {
    /// Addresses of the new member.
    pub addresses: Addresses,
    /// Managers to try, `host[:port]`.
    pub remotes: Vec<String>,
    /// `SWMTKN-1-…`; decides the role.
    pub token: String,
    /// Availability of the new member.
    pub availability: Availability,
}

// ---- images -------------------------------------------------------------------------------------------------

/// The bytes of a request's body as they arrive. The reader decides how fast.
pub type Upload = BoxStream<Result<Bytes, std::io::Error>>;

/// The node's image store. Names are references, ids or prefixes of ids; the store resolves them.
pub trait Images: Send + Sync + 'static {
    /// Every image.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Image>, Failure>>;
    /// One image.
    fn inspect<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Image, Failure>>;
    /// Reads an archive of images; answers with what it held, each a reference or, without one, an id.
    fn load(&self, archive: Upload) -> BoxFuture<'_, Result<Vec<String>, Failure>>;
    /// Makes an image of a root file system; answers with its id.
    fn import(&self, root: Upload, request: Import) -> BoxFuture<'_, Result<String, Failure>>;
    /// Writes images as an archive that `load` reads.
    fn save(&self, names: Vec<String>) -> BoxFuture<'_, Result<Upload, Failure>>;
    /// Gives an image one more name.
    fn tag<'a>(&'a self, name: &'a str, reference: &'a str) -> BoxFuture<'a, Result<(), Failure>>;
    /// Removes a name and, with the last one, the image.
    fn remove<'a>(&'a self, name: &'a str, force: bool) -> BoxFuture<'a, Result<Vec<Removed>, Failure>>;
}

/// How an imported root file system becomes an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// Name of the image; empty: none.
    pub reference: String,
    /// Comment in its history.
    pub message: String,
    /// Changes of its configuration in Dockerfile syntax, e.g. `CMD ["/bin/sh"]`.
    pub changes: Vec<String>,
}

/// What removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A reference is gone.
    Untagged(String),
    /// An image or layer is gone.
    Deleted(String),
}

/// An image of the store.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// Familiar references with a tag, e.g. `busybox:latest`.
    pub references: Vec<String>,
    /// Familiar references with a digest.
    pub digests: Vec<String>,
    /// Unix nanoseconds; 0 when unknown.
    pub created_ns: i64,
    /// Bytes of its layers unpacked.
    pub size: u64,
    /// As OCI says it, e.g. `amd64`.
    pub architecture: String,
    /// As OCI says it.
    pub os: String,
    /// Author, if it names one.
    pub author: String,
    /// What containers of it start with.
    pub config: ImageConfig,
    /// Diff ids of its layers, base first.
    pub layers: Vec<String>,
    /// Oldest first.
    pub history: Vec<ImageHistory>,
}

/// What containers of an image start with.
#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Command.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// User.
    pub user: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths that ask for a volume.
    pub volumes: Vec<String>,
    /// Stop signal.
    pub stop_signal: String,
}

/// One step of an image's history.
#[derive(Clone, Debug, Default)]
pub struct ImageHistory {
    /// Unix nanoseconds; 0 when unknown.
    pub created_ns: i64,
    /// Command that made it.
    pub created_by: String,
    /// Comment.
    pub comment: String,
    /// Bytes of its layer.
    pub size: u64,
}

// ---- containers ---------------------------------------------------------------------------------------------

/// The node's containers. `name` is an id, an unambiguous prefix of one, or a name.
pub trait Containers: Send + Sync + 'static {
    /// All of them, also those that ended and are still kept.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, Failure>>;
    /// One of them.
    fn inspect<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Container, Failure>>;
    /// Its output. The batches' `task_id` and `node_id` don't matter here.
    fn logs<'a>(
        &'a self,
        name: &'a str,
        options: LogOptions,
    ) -> BoxFuture<'a, Result<BoxStream<Result<LogBatch, Failure>>, Failure>>;
    /// What it uses at this moment; `None` when it does not run.
    fn stats<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Stats>, Failure>>;
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    #[default]
    Created,
    /// Runs.
    Running,
    /// Ended.
    Exited,
}

/// A container of this node.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Full id, 64 hexadecimal digits.
    pub id: String,
    /// Name without a slash.
    pub name: String,
    /// Reference as the spec gave it.
    pub image: String,
    /// `sha256:…`.
    pub image_id: String,
    /// The whole command line.
    pub command: Vec<String>,
    /// Unix nanoseconds; 0: not yet, for all three.
    pub created_ns: i64,
    /// When it started.
    pub started_ns: i64,
    /// When it ended.
    pub finished_ns: i64,
    /// How often it was started again on its node, while no manager was there.
    pub restarts: u64,
    /// State.
    pub state: ContainerState,
    /// Exit code, when it ended.
    pub exit_code: i32,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
    /// Process id on the host, while it runs.
    pub pid: i32,
    /// Why it could not start, or ended badly.
    pub error: String,
    /// Labels, those of its task included (`com.docker.swarm.task.id` …).
    pub labels: BTreeMap<String, String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// User.
    pub user: String,
    /// Working directory.
    pub working_dir: String,
    /// Host name.
    pub hostname: String,
    /// Has a terminal: its output is one raw stream.
    pub tty: bool,
    /// Networks that it is attached to.
    pub networks: Vec<ContainerNetwork>,
    /// Ports published by this container on this host.
    pub ports: Vec<skep_proto::v1::PortConfig>,
    /// What is mounted.
    pub mounts: Vec<skep_proto::v1::Mount>,
    /// Bound of memory in bytes, 0: none.
    pub memory_bytes: i64,
    /// Bound of CPU in billionths, 0: none.
    pub nano_cpus: i64,
}

/// A container's place in a network.
#[derive(Clone, Debug, Default)]
pub struct ContainerNetwork {
    /// Name of the network.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Address without prefix length.
    pub address: String,
    /// Prefix length.
    pub prefix_len: u8,
    /// Gateway.
    pub gateway: String,
    /// MAC.
    pub mac: String,
    /// Names that resolve to it.
    pub aliases: Vec<String>,
}

/// Use of resources by one container.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// CPU time used so far, nanoseconds.
    pub cpu_ns: u64,
    /// CPU time of the whole machine so far, nanoseconds over all CPUs.
    pub system_cpu_ns: u64,
    /// CPUs that are online.
    pub cpus: u32,
    /// Bytes in use, page cache that can be dropped left out.
    pub memory_bytes: u64,
    /// Bound in bytes; what the machine has, where there is none.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

// ---- logs and events ----------------------------------------------------------------------------------------

/// Logs of tasks anywhere in the cluster.
pub trait TaskLogs: Send + Sync + 'static {
    /// Output of the given tasks, and with `follow` of those that the service gets later. The stream ends when all of
    /// them have nothing more to say (with `follow`: when they, and the service, are gone). A task whose log can't be
    /// had shows up in [`LogBatch::failures`].
    fn task_logs(
        &self,
        task_ids: Vec<String>,
        service_id: Option<String>,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<Result<LogBatch, Failure>>, Failure>>;
}

/// The node's memory of what happened; [`super::EventHub`] is one.
pub trait LocalEvents: Send + Sync + 'static {
    /// What is remembered, oldest first, and then everything new. A reader that falls behind is cut off.
    fn subscribe(&self) -> BoxStream<Event>;
    /// What is remembered, oldest first.
    fn remembered(&self) -> Vec<Event>;
    /// Remembers and tells everybody.
    fn publish(&self, event: Event);
}

/// Whom an event concerns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// This node.
    #[default]
    Local,
    /// The swarm.
    Swarm,
}

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Unix nanoseconds.
    pub at_ns: i64,
    /// `container`, `image`, `network`, `node`, `service`, `secret`, `config`, `daemon`.
    pub kind: String,
    /// `create`, `start`, `die`, `load`, …
    pub action: String,
    /// Id of the thing.
    pub id: String,
    /// More about it; `name` nearly always.
    pub attributes: BTreeMap<String, String>,
    /// Whom it concerns.
    pub scope: Scope,
}
