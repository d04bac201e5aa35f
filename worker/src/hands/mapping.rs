//! From a task's spec to the container that the runtime makes, field by field. Pure; what has to be looked up first is
//! [`Given`].

use std::path::PathBuf;

use skep_proto::size;
use skep_proto::template::{self, Field};
use skep_proto::v1::{self, MountType, NodeDescription, Task, TaskAssignment};
use skep_runtime::{ContainerSpec, InjectedFile, LogOptions, Mount, Resources, Seccomp, Ulimit};
use skep_task::Failure;

use crate::container::{self, rejected};

/// What a container is made of besides its spec.
pub(super) struct Given<'a> {
    /// The spec's words over the image's.
    pub(super) process: container::Process,
    /// Directories of the image's layers, the base first.
    pub(super) layers: Vec<PathBuf>,
    pub(super) image_id: String,
    /// Of secrets and configs.
    pub(super) files: Vec<container::File>,
    /// Where the namespace of its network is pinned.
    pub(super) netns: PathBuf,
    /// Search domains of the node.
    pub(super) search: &'a [String],
}

/// The container of a task. `wanted` is its spec with all placeholders replaced.
pub(super) fn container(
    task: &TaskAssignment,
    own: &Task,
    wanted: &v1::ContainerSpec,
    given: Given<'_>,
) -> Result<ContainerSpec, Failure> {
    Ok(ContainerSpec {
        id: container::id(&own.id),
        layers: given.layers,
        args: given.process.args,
        env: given.process.env,
        cwd: given.process.dir,
        user: given.process.user,
        groups: wanted.groups.clone(),
        hostname: container::hostname(own, wanted),
        hosts: container::hosts(own, wanted),
        resolv_conf: container::resolv_conf(wanted, given.search),
        netns: Some(given.netns),
        mounts: mounts(wanted)?,
        files: given.files.into_iter().map(injected).collect(),
        read_only: wanted.read_only,
        tty: wanted.tty,
        init: wanted.init.unwrap_or(false),
        stop_signal: given.process.stop_signal,
        resources: resources(task),
        cap_add: wanted.capability_add.clone(),
        cap_drop: wanted.capability_drop.clone(),
        sysctls: wanted.sysctls.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        ulimits: wanted.ulimits.iter().map(ulimit).collect(),
        oom_score_adj: i32::try_from(wanted.oom_score_adj).unwrap_or(0),
        labels: container::labels(own, task, wanted)
            .into_iter()
            .chain([(container::IMAGE_LABEL.to_owned(), given.image_id)])
            .collect(),
        log: log_options(task),
        seccomp: if wanted.privileges.as_ref().is_some_and(|p| p.seccomp_unconfined) {
            Seccomp::Unconfined
        } else {
            Seccomp::Default
        },
    })
}

/// The container's spec with the placeholders of its environment and host name replaced; nothing else may have any.
pub(super) fn template(
    spec: &v1::ContainerSpec,
    task: &Task,
    assignment: &TaskAssignment,
    node: &NodeDescription,
) -> Result<v1::ContainerSpec, Failure> {
    let platform = node.platform.clone().unwrap_or_default();
    let value = |field: &Field| match field {
        Field::ServiceId => task.service_id.clone(),
        Field::ServiceName => assignment.service_name.clone(),
        Field::ServiceLabel(name) => assignment.service_labels.get(name).cloned().unwrap_or_default(),
        Field::NodeId => task.node_id.clone(),
        Field::NodeHostname => node.hostname.clone(),
        Field::NodeOs => platform.os.clone(),
        Field::NodeArchitecture => platform.architecture.clone(),
        Field::TaskId => task.id.clone(),
        Field::TaskName => task.name.clone(),
        // Tasks of a global service have no slot; their node tells them apart.
        Field::TaskSlot if task.slot == 0 => task.node_id.clone(),
        Field::TaskSlot => task.slot.to_string(),
    };
    let expand = |what: &str, text: &str| match template::expand(text, value) {
        Ok(expanded) => Ok(expanded.into_owned()),
        Err(error) => Err(rejected(format!("{what} {text:?}: {error}"))),
    };
    Ok(v1::ContainerSpec {
        env: spec.env.iter().map(|entry| expand("variable", entry)).collect::<Result<_, _>>()?,
        hostname: expand("host name", &spec.hostname)?,
        ..spec.clone()
    })
}

fn mounts(spec: &v1::ContainerSpec) -> Result<Vec<Mount>, Failure> {
    let mount = |m: &v1::Mount| match m.r#type() {
        MountType::Bind => {
            Ok(Mount::Bind { source: (&m.source).into(), target: (&m.target).into(), read_only: m.read_only })
        }
        MountType::Tmpfs => Ok(Mount::Tmpfs {
            target: (&m.target).into(),
            size: u64::try_from(m.tmpfs_size_bytes).ok().filter(|s| *s > 0),
            mode: (m.tmpfs_mode != 0).then_some(m.tmpfs_mode),
            read_only: m.read_only,
        }),
        MountType::Volume => Err(rejected(format!("mount {}: volumes are not available on this node", m.target))),
    };
    spec.mounts.iter().map(mount).collect()
}

fn injected(file: container::File) -> InjectedFile {
    InjectedFile { path: file.path.into(), bytes: file.data, uid: file.uid, gid: file.gid, mode: file.mode }
}

fn resources(task: &TaskAssignment) -> Resources {
    let wanted = task.spec.as_ref().and_then(|s| s.resources).unwrap_or_default();
    let limits = wanted.limits.unwrap_or_default();
    Resources {
        memory_bytes: u64::try_from(limits.memory_bytes).ok().filter(|b| *b > 0),
        memory_swap: Some(wanted.memory_swap_bytes).filter(|b| *b != 0),
        nano_cpus: u64::try_from(limits.nano_cpus).ok().filter(|n| *n > 0),
        pids: Some(wanted.pids_limit).filter(|p| *p > 0),
    }
}

fn ulimit(limit: &v1::Ulimit) -> Ulimit {
    let bound = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    Ulimit { name: limit.name.clone(), soft: bound(limit.soft), hard: bound(limit.hard) }
}

/// `max-size` and `max-file` of the log driver, as users write them.
fn log_options(task: &TaskAssignment) -> LogOptions {
    let mut options = LogOptions::default();
    let Some(driver) = task.spec.as_ref().and_then(|s| s.log_driver.as_ref()) else { return options };
    if let Some(size) = driver.options.get("max-size").and_then(|t| size::parse(t)) {
        options.max_size = size.max(4096);
    }
    if let Some(files) = driver.options.get("max-file").and_then(|t| t.parse().ok()) {
        options.max_files = files;
    }
    options
}

#[cfg(test)]
mod tests;
