//! The containers of this node: those of its tasks.

use std::sync::Arc;

use futures::future::BoxFuture;
use skep_proto::v1::{LogBatch, LogOptions, PublishMode, TaskAssignment, TaskState, TaskStatus};
use skep_runtime::{Runtime, State};
use skep_worker::container::IMAGE_LABEL;
use tokio_stream::StreamExt;

use crate::api::backend::{BoxStream, Container, ContainerNetwork, ContainerState, Containers, Failure, Stats};
use crate::node::Node;

/// Containers as the API wants them.
pub(crate) struct ContainersFacility {
    pub(crate) node: Arc<Node>,
    pub(crate) runtime: Arc<Runtime>,
}

impl Containers for ContainersFacility {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, Failure>> {
        Box::pin(async move {
            let mut all = Vec::new();
            for (task, status) in self.node.local_tasks() {
                if let Some(container) = self.describe(&task, status.as_ref()).await {
                    all.push(container);
                }
            }
            Ok(all)
        })
    }

    fn inspect<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Container, Failure>> {
        Box::pin(async move { self.find(name).await.map(|(_, container)| container) })
    }

    fn logs<'a>(
        &'a self,
        name: &'a str,
        options: LogOptions,
    ) -> BoxFuture<'a, Result<BoxStream<Result<LogBatch, Failure>>, Failure>> {
        Box::pin(async move {
            let (task_id, _) = self.find(name).await?;
            let lines = self.node.local_log(&task_id, &options).map_err(Failure::Internal)?;
            Ok(Box::pin(lines.map(|line| match line {
                Ok(line) => Ok(LogBatch { lines: vec![line], ..LogBatch::default() }),
                Err(message) => Err(Failure::Internal(message)),
            })) as _)
        })
    }

    fn stats<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Stats>, Failure>> {
        Box::pin(async move {
            let (_, container) = self.find(name).await?;
            if container.state != ContainerState::Running {
                return Ok(None);
            }
            let used = self.runtime.stats(&container.id).await.map_err(|e| Failure::Internal(e.to_string()))?;
            let of_machine = u64::try_from(self.node.machine().resources.memory_bytes).unwrap_or_default();
            Ok(Some(Stats {
                cpu_ns: used.cpu_ns,
                system_cpu_ns: system_cpu_ns(),
                cpus: u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1),
                memory_bytes: used.memory_bytes,
                memory_limit_bytes: used.memory_limit.unwrap_or(of_machine),
                pids: used.pids,
            }))
        })
    }
}

impl ContainersFacility {
    async fn find(&self, name: &str) -> Result<(String, Container), Failure> {
        let name = name.trim_start_matches('/');
        let mut found: Vec<(TaskAssignment, Option<TaskStatus>)> = Vec::new();
        for (task, status) in self.node.local_tasks() {
            let Some(own) = &task.task else { continue };
            let id = skep_worker::container::id(&own.id);
            if id == name || own.name == name {
                found = vec![(task, status)];
                break;
            }
            if !name.is_empty() && id.starts_with(name) {
                found.push((task, status));
            }
        }
        if found.len() > 1 {
            return Err(Failure::Invalid(format!("container {name} is ambiguous; give more characters of the id")));
        }
        let missing = || Failure::NotFound(format!("No such container: {name}"));
        let (task, status) = found.pop().ok_or_else(missing)?;
        let container = self.describe(&task, status.as_ref()).await.ok_or_else(missing)?;
        Ok((task.task.map(|t| t.id).unwrap_or_default(), container))
    }

    /// The container of a task; `None` before it exists.
    async fn describe(&self, task: &TaskAssignment, status: Option<&TaskStatus>) -> Option<Container> {
        let own = task.task.as_ref()?;
        let spec = skep_worker::container::spec(task)?;
        let id = skep_worker::container::id(&own.id);
        let record = self.runtime.inspect(&id).await.ok()?;
        let made = record.spec;
        // What it was made from: its name may mean another image by now.
        let image = record.labels.iter().find(|(name, _)| name == IMAGE_LABEL).map(|(_, id)| id.clone());
        let limits = task.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.limits).unwrap_or_default();
        let mut container = Container {
            name: own.name.clone(),
            image: spec.image.clone(),
            image_id: match image {
                Some(id) => id,
                None => self.node.image_id(&spec.image).await,
            },
            command: made.args,
            created_ns: nanoseconds(record.created_at),
            restarts: record.restarts,
            labels: record.labels.into_iter().filter(|(name, _)| name != IMAGE_LABEL).collect(),
            env: made.env,
            user: made.user,
            working_dir: made.cwd,
            hostname: made.hostname,
            tty: made.tty,
            networks: own.networks.iter().map(|n| self.network(n)).collect(),
            ports: own.host_ports.iter().filter(|p| p.mode() == PublishMode::Host).cloned().collect(),
            mounts: spec.mounts.clone(),
            memory_bytes: limits.memory_bytes,
            nano_cpus: limits.nano_cpus,
            error: status.map(|s| s.error.clone()).unwrap_or_default(),
            ..Container::default()
        };
        match self.runtime.state(&id).await.ok()? {
            State::Created => container.state = ContainerState::Created,
            State::Running { pid, started_at } => {
                container.state = ContainerState::Running;
                container.pid = pid;
                let told = status.filter(|s| s.state() == TaskState::Running).map_or(0, |s| s.at_ns);
                container.started_ns = started_at.map_or(told, nanoseconds);
            }
            State::Exited(exit) => {
                container.state = ContainerState::Exited;
                container.exit_code = exit.code;
                container.oom_killed = exit.oom_killed;
                container.started_ns = exit.started_at.map_or(0, nanoseconds);
                container.finished_ns = nanoseconds(exit.finished_at);
            }
            State::Missing => return None,
        }
        container.id = id;
        Some(container)
    }

    fn network(&self, attached: &skep_proto::v1::TaskNetwork) -> ContainerNetwork {
        let (name, prefix_len) = self.node.network_name(&attached.network_id);
        let mac = attached.address.parse::<std::net::Ipv4Addr>().map(|ip| {
            let [a, b, c, d] = ip.octets();
            format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
        });
        ContainerNetwork {
            name,
            id: attached.network_id.clone(),
            address: attached.address.clone(),
            prefix_len,
            gateway: String::new(),
            mac: mac.unwrap_or_default(),
            aliases: attached.aliases.clone(),
        }
    }
}

fn nanoseconds(at: jiff::Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(0)
}

/// CPU time of the whole machine so far: what `docker stats` divides by.
fn system_cpu_ns() -> u64 {
    // USER_HZ is 100 on every architecture that Linux runs containers on.
    const NS_PER_TICK: u64 = 10_000_000;
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    fields.filter_map(|f| f.parse::<u64>().ok()).sum::<u64>().saturating_mul(NS_PER_TICK)
}
