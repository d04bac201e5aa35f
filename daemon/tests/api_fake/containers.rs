//! The node itself, its containers and what they print.

use futures::future::BoxFuture;
use skep_daemon::api::backend::*;
use skep_proto::v1;

use super::{Fake, SECOND, now_ns};

impl Fake {
    /// Adds a container on a network.
    pub(crate) fn add_container_on(&self, network_id: &str, name: &str, state: ContainerState) {
        let id = format!("{name:x>64}");
        let network = ContainerNetwork { id: network_id.to_owned(), ..ContainerNetwork::default() };
        let networks = vec![network];
        self.state().containers.push(Container { id, name: name.to_owned(), state, networks, ..Container::default() });
    }

    /// Adds a running container.
    pub(crate) fn add_container(&self, name: &str) {
        self.state().containers.push(Container {
            id: format!("{:0>64x}", 0xc0ff_ee00_u64 << 32),
            name: name.to_owned(),
            image: "busybox:latest".to_owned(),
            image_id: format!("sha256:{:0>64x}", 10),
            command: vec!["sleep".to_owned(), "1000".to_owned()],
            created_ns: now_ns() - 65 * SECOND,
            started_ns: now_ns() - 64 * SECOND,
            state: ContainerState::Running,
            pid: 4711,
            ..Container::default()
        });
    }
}

impl NodeInfo for Fake {
    fn facts(&self) -> BoxFuture<'_, NodeFacts> {
        Box::pin(async move {
            NodeFacts {
                engine_id: "fake-engine".to_owned(),
                hostname: "fake".to_owned(),
                version: "0.1.0".to_owned(),
                kernel: "6.18.0".to_owned(),
                operating_system: "Debian GNU/Linux 12 (bookworm)".to_owned(),
                architecture: "x86_64".to_owned(),
                resources: v1::Resources { nano_cpus: 2 * SECOND, memory_bytes: 1 << 30 },
                data_dir: "/var/lib/skep".to_owned(),
                cgroup_version: 2,
                started_ns: now_ns(),
                gateway: Some(GatewayFacts {
                    name: "skep_gwbridge".to_owned(),
                    subnet: "172.18.0.0/16".to_owned(),
                    gateway: "172.18.0.1".to_owned(),
                }),
                swarm: self.state().swarm.clone(),
                ..NodeFacts::default()
            }
        })
    }

    fn warnings(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async move { vec!["port 80/tcp is in use".to_owned()] })
    }
}

fn two_lines(task_id: &str, node_id: &str) -> v1::LogBatch {
    let line = |stderr: bool, data: &'static str| v1::LogLine {
        task_id: task_id.to_owned(),
        node_id: node_id.to_owned(),
        at_ns: 1_700_000_000 * SECOND,
        stderr,
        data: bytes::Bytes::from_static(data.as_bytes()),
    };
    v1::LogBatch { lines: vec![line(false, "hello\n"), line(true, "trouble\n")], ..Default::default() }
}

impl Containers for Fake {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, Failure>> {
        Box::pin(async move { Ok(self.state().containers.clone()) })
    }

    fn inspect<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Container, Failure>> {
        Box::pin(async move {
            let found = self.state().containers.iter().find(|c| c.id.starts_with(name) || c.name == name).cloned();
            found.ok_or_else(|| Failure::NotFound(format!("No such container: {name}")))
        })
    }

    fn logs<'a>(
        &'a self,
        _: &'a str,
        _: v1::LogOptions,
    ) -> BoxFuture<'a, Result<BoxStream<Result<v1::LogBatch, Failure>>, Failure>> {
        Box::pin(async move { Ok(Box::pin(futures::stream::iter([Ok(two_lines("", ""))])) as _) })
    }

    fn stats<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Stats>, Failure>> {
        Box::pin(async move {
            Ok(Some(Stats { cpu_ns: 5, system_cpu_ns: 100, cpus: 2, memory_bytes: 1 << 20, ..Stats::default() }))
        })
    }
}

impl TaskLogs for Fake {
    fn task_logs(
        &self,
        task_ids: Vec<String>,
        _: Option<String>,
        _: v1::LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<Result<v1::LogBatch, Failure>>, Failure>> {
        Box::pin(async move {
            let node = self.state().swarm.node_id.clone();
            let batches: Vec<_> = task_ids.iter().map(|id| Ok(two_lines(id, &node))).collect();
            Ok(Box::pin(futures::stream::iter(batches)) as _)
        })
    }
}
