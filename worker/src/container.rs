//! From a task and its image to the container that runs it. Pure.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use skep_image::ImageConfig;
use skep_proto::v1::assignment::Kind;
use skep_proto::v1::{AssignmentKind, ContainerSpec, FileTarget, Task, TaskAssignment};
use skep_task::Failure;

use crate::assignments::Assignments;

/// Label under which a container's record keeps the id of its image: a tag may name another image tomorrow.
pub const IMAGE_LABEL: &str = "io.skep.image.id";

/// Grace period between the stop signal and the kill, unless the spec says otherwise.
const DEFAULT_GRACE_NS: i64 = 10_000_000_000;

/// Id of the task's container: 64 hexadecimal digits, as clients of the Engine API expect, the same on every try.
pub fn id(task_id: &str) -> String {
    hex::encode(Sha256::digest(format!("skep container {task_id}")))
}

/// The container of a task; what is a container's id already stays as it is.
pub(crate) fn id_of(task_id: &str) -> String {
    if task_id.len() == 64 { task_id.to_owned() } else { id(task_id) }
}

/// What the process is: the spec's words over the image's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    /// Entry point and command.
    pub args: Vec<String>,
    /// `NAME=value`, the image's first, each name once.
    pub env: Vec<String>,
    /// Working directory; empty: the root.
    pub dir: String,
    /// User; empty: root.
    pub user: String,
    /// Signal that asks it to stop.
    pub stop_signal: String,
}

/// The process of a task's container.
pub fn process(spec: &ContainerSpec, image: &ImageConfig) -> Result<Process, Failure> {
    // A command in the spec replaces the image's entry point, and with it the image's own arguments.
    let mut args =
        if spec.command.is_empty() { image.entrypoint.clone().unwrap_or_default() } else { spec.command.clone() };
    if !spec.args.is_empty() {
        args.extend(spec.args.iter().cloned());
    } else if spec.command.is_empty() {
        args.extend(image.cmd.iter().flatten().cloned());
    }
    if args.is_empty() {
        return Err(rejected(format!("image {} has no command; give the service one", spec.image)));
    }
    let or = |ours: &str, images: &str| if ours.is_empty() { images.to_owned() } else { ours.to_owned() };
    let stop_signal = or(&spec.stop_signal, image.stop_signal.as_deref().unwrap_or_default());
    Ok(Process {
        args,
        env: environment(&image.env, &spec.env),
        dir: or(&spec.dir, &image.working_dir),
        user: or(&spec.user, &image.user),
        stop_signal: if stop_signal.is_empty() { "SIGTERM".to_owned() } else { stop_signal },
    })
}

/// The image's variables with the spec's over them; a spec's `NAME` without a value removes it.
fn environment(image: &[String], spec: &[String]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, Option<String>> = BTreeMap::new();
    let defaults = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    for entry in defaults.iter().chain(image).chain(spec) {
        let (name, value) = match entry.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (entry.as_str(), None),
        };
        if !values.contains_key(name) {
            names.push(name.to_owned());
        }
        values.insert(name.to_owned(), value);
    }
    names.into_iter().filter_map(|n| values.get(&n).cloned().flatten().map(|v| format!("{n}={v}"))).collect()
}

/// How long the process may take to end after the stop signal, in nanoseconds.
pub fn grace_ns(task: &TaskAssignment) -> i64 {
    spec(task).and_then(|s| s.stop_grace_period_ns).unwrap_or(DEFAULT_GRACE_NS)
}

/// The container's host name: the spec's, or the first twelve digits of its id.
pub fn hostname(task: &Task, spec: &ContainerSpec) -> String {
    if spec.hostname.is_empty() { id(&task.id).chars().take(12).collect() } else { spec.hostname.clone() }
}

/// Lines of `/etc/hosts` beyond the usual ones: the spec's own (`address name…`), and the container's name.
pub fn hosts(task: &Task, spec: &ContainerSpec) -> Vec<(String, Vec<String>)> {
    let given = spec.hosts.iter().filter_map(|line| {
        let mut words = line.split_whitespace().map(str::to_owned);
        let address = words.next()?;
        let names: Vec<String> = words.collect();
        (!names.is_empty()).then_some((address, names))
    });
    let own = task.networks.first().map(|n| (n.address.clone(), vec![hostname(task, spec)]));
    given.chain(own).collect()
}

/// `/etc/resolv.conf`: always the node's resolver inside the namespace, which knows the cluster and asks on.
pub fn resolv_conf(spec: &ContainerSpec, node_search: &[String]) -> String {
    let dns = spec.dns.clone().unwrap_or_default();
    let search = if dns.search.is_empty() { node_search.to_vec() } else { dns.search };
    let mut text = "nameserver 127.0.0.11\n".to_owned();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    let mut options = dns.options;
    if !options.iter().any(|o| o.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    text.push_str(&format!("options {}\n", options.join(" ")));
    text
}

/// A file that a secret or config becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Absolute path in the container.
    pub path: String,
    /// Content.
    pub data: Vec<u8>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// The files of the task's secrets and configs. One that was not assigned is a failure: the task must not start
/// without it.
pub fn files(assignments: &Assignments, spec: &ContainerSpec) -> Result<Vec<File>, Failure> {
    let mut files = Vec::new();
    for reference in &spec.secrets {
        let Some(Kind::Secret(secret)) = assignments.get(AssignmentKind::Secret, &reference.secret_id) else {
            return Err(rejected(format!("secret {} was not delivered to this node", reference.secret_name)));
        };
        let data = secret.spec.as_ref().map(|s| s.data.to_vec()).unwrap_or_default();
        files.push(file(reference.file.as_ref(), &reference.secret_name, "/run/secrets/", 0o444, data)?);
    }
    for reference in &spec.configs {
        let Some(Kind::Config(config)) = assignments.get(AssignmentKind::Config, &reference.config_id) else {
            return Err(rejected(format!("config {} was not delivered to this node", reference.config_name)));
        };
        let data = config.spec.as_ref().map(|s| s.data.to_vec()).unwrap_or_default();
        files.push(file(reference.file.as_ref(), &reference.config_name, "/", 0o444, data)?);
    }
    Ok(files)
}

fn file(target: Option<&FileTarget>, name: &str, base: &str, mode: u32, data: Vec<u8>) -> Result<File, Failure> {
    let target = target.cloned().unwrap_or_default();
    let named = if target.name.is_empty() { name } else { &target.name };
    let number = |text: &str, what: &str| match text {
        "" => Ok(0),
        text => text.parse::<u32>().map_err(|_| rejected(format!("{what} {text:?} of file {named} is no number"))),
    };
    Ok(File {
        path: if named.starts_with('/') { named.to_owned() } else { format!("{base}{named}") },
        data,
        uid: number(&target.uid, "uid")?,
        gid: number(&target.gid, "gid")?,
        mode: if target.mode == 0 { mode } else { target.mode & 0o7777 },
    })
}

/// Labels that tools read from a task's container, with the spec's own.
pub fn labels(task: &Task, assignment: &TaskAssignment, spec: &ContainerSpec) -> BTreeMap<String, String> {
    let mut labels = spec.labels.clone();
    let own = [
        ("com.docker.swarm.node.id", task.node_id.as_str()),
        ("com.docker.swarm.service.id", task.service_id.as_str()),
        ("com.docker.swarm.service.name", assignment.service_name.as_str()),
        ("com.docker.swarm.task", ""),
        ("com.docker.swarm.task.id", task.id.as_str()),
        ("com.docker.swarm.task.name", task.name.as_str()),
    ];
    labels.extend(own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    labels
}

/// The container part of a task's spec.
pub fn spec(task: &TaskAssignment) -> Option<&ContainerSpec> {
    task.spec.as_ref().and_then(|s| s.container.as_ref())
}

/// A failure that no second try on this node would mend.
pub fn rejected(message: String) -> Failure {
    Failure { message, rejected: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: Some(vec!["/whoami".into()]),
            cmd: Some(vec!["--port".into(), "80".into()]),
            env: vec!["A=1".into(), "B=2".into()],
            working_dir: "/srv".into(),
            ..ImageConfig::default()
        }
    }

    fn args(command: &[&str], args: &[&str]) -> Vec<String> {
        let own = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
        let spec = ContainerSpec { command: own(command), args: own(args), ..ContainerSpec::default() };
        process(&spec, &image()).map(|p| p.args).unwrap_or_default()
    }

    #[test]
    fn command_and_args_replace_what_the_image_says() {
        assert_eq!(args(&[], &[]), ["/whoami", "--port", "80"]);
        assert_eq!(args(&[], &["client"]), ["/whoami", "client"]);
        assert_eq!(args(&["/bin/sh"], &[]), ["/bin/sh"]);
        assert_eq!(args(&["/bin/sh"], &["-c", "x"]), ["/bin/sh", "-c", "x"]);
        let none = process(&ContainerSpec::default(), &ImageConfig::default());
        assert!(none.is_err_and(|f| f.rejected));
    }

    #[test]
    fn variables_of_the_spec_win_and_can_remove() {
        let env = environment(&["A=1".into(), "B=2".into()], &["B=3".into(), "A".into(), "C=x=y".into()]);
        assert_eq!(env[1..], ["B=3", "C=x=y"]);
        assert!(env[0].starts_with("PATH="));
    }

    #[test]
    fn a_secret_that_is_missing_stops_the_task() {
        let spec = ContainerSpec {
            secrets: vec![skep_proto::v1::SecretReference {
                secret_id: "s".into(),
                secret_name: "key".into(),
                file: None,
            }],
            ..ContainerSpec::default()
        };
        assert!(files(&Assignments::default(), &spec).is_err());
    }

    #[test]
    fn the_resolver_is_the_nodes_own() {
        let text = resolv_conf(&ContainerSpec::default(), &["example.org".into()]);
        assert_eq!(text, "nameserver 127.0.0.11\nsearch example.org\noptions ndots:0\n");
    }

    #[test]
    fn ids_are_stable_and_hexadecimal() {
        assert_eq!(id("a"), id("a"));
        assert_ne!(id("a"), id("b"));
        assert_eq!(id("a").len(), 64);
    }
}
