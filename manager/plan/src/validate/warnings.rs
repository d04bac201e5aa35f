//! What is accepted and has no effect: people's stack files have it, so it is no error, but nobody shall rely on it.
//! Clients print these lines after creating or changing a service.

use std::collections::BTreeMap;

use skep_proto::v1::{ServiceSpec, TaskSpec};

/// What of a driver's options is honoured.
const LOG_OPTIONS: [&str; 2] = ["max-size", "max-file"];

/// One line for each thing in a spec that has no effect. The spec is one that validation has let pass.
pub fn warnings(spec: &ServiceSpec) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(task) = &spec.task else { return lines };
    container(task, &mut lines);
    if let Some(driver) = &task.log_driver {
        let ignored = names(&driver.options, |name| !LOG_OPTIONS.contains(&name));
        if !ignored.is_empty() {
            lines.push(format!(
                "TaskTemplate.LogDriver.Options: {ignored} without effect: logs are kept in files on the node, bounded by \
                 max-size and max-file"
            ));
        }
    }
    for network in task.networks.iter().filter(|n| !n.driver_options.is_empty()) {
        let ignored = names(&network.driver_options, |_| true);
        lines.push(format!("TaskTemplate.Networks.DriverOpts: {ignored} without effect on network {}", network.target));
    }
    lines
}

fn container(task: &TaskSpec, lines: &mut Vec<String>) {
    let Some(container) = &task.container else { return };
    let health = container.healthcheck.as_ref().and_then(|h| h.test.first());
    if health.is_some_and(|word| !matches!(word.as_str(), "" | "NONE")) {
        lines.push(
            "TaskTemplate.ContainerSpec.Healthcheck: health checks are not run yet: a task counts as healthy as soon as \
             it runs"
                .to_owned(),
        );
    }
    if container.open_stdin {
        lines.push(
            "TaskTemplate.ContainerSpec.OpenStdin: without effect: nothing can be sent to a task's standard input"
                .to_owned(),
        );
    }
    for mount in container.mounts.iter().filter(|m| !matches!(m.propagation.as_str(), "" | "rprivate")) {
        lines.push(format!(
            "TaskTemplate.ContainerSpec.Mounts.BindOptions.Propagation: {} of {} without effect",
            mount.propagation, mount.target
        ));
    }
}

fn names(options: &BTreeMap<String, String>, ignored: impl Fn(&str) -> bool) -> String {
    options.keys().map(String::as_str).filter(|name| ignored(name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::v1::{ContainerSpec, Driver, HealthConfig, Mount, NetworkAttachmentConfig};

    fn lines(change: impl FnOnce(&mut TaskSpec, &mut ContainerSpec)) -> Vec<String> {
        let (mut task, mut container) = (TaskSpec::default(), ContainerSpec::default());
        change(&mut task, &mut container);
        task.container = Some(container);
        warnings(&ServiceSpec { task: Some(task), ..ServiceSpec::default() })
    }

    #[test]
    fn what_has_no_effect_is_told() {
        type Change = fn(&mut TaskSpec, &mut ContainerSpec);
        let health = |word: &str| Some(HealthConfig { test: vec![word.into(), "x".into()], ..HealthConfig::default() });
        assert_eq!(lines(|_, c| c.healthcheck = health("NONE")), Vec::<String>::new());
        assert_eq!(lines(|_, c| c.healthcheck = health("CMD")).len(), 1);
        let table: &[(&str, Change)] = &[
            ("", |_, _| {}),
            ("OpenStdin", |_, c| c.open_stdin = true),
            ("rslave of /x", |_, c| {
                c.mounts.push(Mount { target: "/x".into(), propagation: "rslave".into(), ..Mount::default() });
            }),
            ("", |_, c| c.mounts.push(Mount { propagation: "rprivate".into(), ..Mount::default() })),
            ("Options: labels, tag without", |t, _| {
                let options = ["tag", "labels", "max-size"].map(|n| (n.to_owned(), "1".to_owned())).into();
                t.log_driver = Some(Driver { name: "json-file".into(), options });
            }),
            ("", |t, _| {
                let options = [("max-file".to_owned(), "1".to_owned())].into();
                t.log_driver = Some(Driver { name: "json-file".into(), options });
            }),
            ("DriverOpts: a without effect on network n", |t, _| {
                let driver_options = [("a".to_owned(), "b".to_owned())].into();
                let network = NetworkAttachmentConfig { target: "n".into(), driver_options, ..Default::default() };
                t.networks.push(network);
            }),
        ];
        for (part, change) in table {
            let lines = lines(change);
            assert_eq!(lines.len(), usize::from(!part.is_empty()), "{part}: {lines:?}");
            assert!(lines.iter().all(|line| line.contains(part)), "{part}: {lines:?}");
        }
    }
}
