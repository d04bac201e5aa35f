//! What a service wants of each of its tasks.

use bollard_stubs::models;
use skep_proto::v1;

use super::{Error, container_spec, map_in, signed, some_list, some_map, some_number, some_text, unsigned};

/// The only kind of task there is.
const RUNTIME: &str = "container";

/// Log drivers whose meaning is ours: lines kept in bounded files on the node.
const LOG_DRIVERS: [&str; 2] = ["json-file", "local"];

pub(super) fn from_model(model: models::TaskSpec) -> Result<v1::TaskSpec, Error> {
    if let Some(runtime) = model.runtime.filter(|r| r != RUNTIME) {
        return Err(Error::Unsupported { field: "TaskTemplate.Runtime".to_owned(), value: runtime });
    }
    let Some(container) = model.container_spec else {
        return Err(Error::value("TaskTemplate.ContainerSpec", "a service needs a container"));
    };
    Ok(v1::TaskSpec {
        container: Some(container_spec::from_model(container)?),
        resources: model.resources.map(resources_in).transpose()?,
        restart: model.restart_policy.map(restart_in).transpose()?,
        placement: model.placement.map(placement_in).transpose()?,
        networks: model.networks.unwrap_or_default().into_iter().map(attachment_in).collect::<Result<_, _>>()?,
        log_driver: model.log_driver.map(log_driver_in).transpose()?,
        force_update: model.force_update.unwrap_or(0),
    })
}

pub(super) fn to_model(spec: &v1::TaskSpec) -> models::TaskSpec {
    models::TaskSpec {
        plugin_spec: None,
        container_spec: Some(spec.container.as_ref().map(container_spec::to_model).unwrap_or_default()),
        network_attachment_spec: None,
        resources: spec.resources.as_ref().map(resources_out),
        restart_policy: spec.restart.as_ref().map(restart_out),
        placement: spec.placement.as_ref().map(placement_out),
        force_update: Some(spec.force_update),
        runtime: Some(RUNTIME.to_owned()),
        networks: (!spec.networks.is_empty()).then(|| spec.networks.iter().map(attachment_out).collect()),
        log_driver: spec.log_driver.as_ref().map(|driver| models::TaskSpecLogDriver {
            name: Some(driver.name.clone()),
            options: some_map(&driver.options),
        }),
    }
}

fn log_driver_in(model: models::TaskSpecLogDriver) -> Result<v1::Driver, Error> {
    let name = model.name.unwrap_or_default();
    if !name.is_empty() && !LOG_DRIVERS.contains(&name.as_str()) {
        return Err(Error::Unsupported { field: "TaskTemplate.LogDriver.Name".to_owned(), value: name });
    }
    Ok(v1::Driver { name, options: map_in(model.options) })
}

fn resources_in(model: models::TaskSpecResources) -> Result<v1::ResourceRequirements, Error> {
    let limits = model.limits.unwrap_or_default();
    let reservations = model.reservations.unwrap_or_default();
    let amount = |field: &str, nano_cpus: Option<i64>, memory_bytes: Option<i64>| {
        let (nano_cpus, memory_bytes) = (nano_cpus.unwrap_or(0), memory_bytes.unwrap_or(0));
        if nano_cpus < 0 || memory_bytes < 0 {
            return Err(Error::value(&format!("TaskTemplate.Resources.{field}"), "it can't be negative"));
        }
        let given = nano_cpus != 0 || memory_bytes != 0;
        Ok(given.then_some(v1::Resources { nano_cpus, memory_bytes }))
    };
    Ok(v1::ResourceRequirements {
        limits: amount("Limits", limits.nano_cpus, limits.memory_bytes)?,
        reservations: amount("Reservations", reservations.nano_cpus, reservations.memory_bytes)?,
        pids_limit: limits.pids.unwrap_or(0),
        memory_swap_bytes: model.swap_bytes.unwrap_or(0),
    })
}

fn resources_out(resources: &v1::ResourceRequirements) -> models::TaskSpecResources {
    let limits = resources.limits.unwrap_or_default();
    let reservations = resources.reservations.unwrap_or_default();
    models::TaskSpecResources {
        limits: Some(models::Limit {
            nano_cpus: some_number(limits.nano_cpus),
            memory_bytes: some_number(limits.memory_bytes),
            pids: some_number(resources.pids_limit),
        }),
        reservations: Some(models::ResourceObject {
            nano_cpus: some_number(reservations.nano_cpus),
            memory_bytes: some_number(reservations.memory_bytes),
            generic_resources: None,
        }),
        swap_bytes: some_number(resources.memory_swap_bytes),
        memory_swappiness: None,
    }
}

fn restart_in(model: models::TaskSpecRestartPolicy) -> Result<v1::RestartPolicy, Error> {
    use models::TaskSpecRestartPolicyConditionEnum as Condition;
    let condition = match model.condition {
        Some(Condition::NONE) => v1::RestartCondition::None,
        Some(Condition::ON_FAILURE) => v1::RestartCondition::OnFailure,
        Some(Condition::ANY | Condition::EMPTY) | None => v1::RestartCondition::Any,
    };
    Ok(v1::RestartPolicy {
        condition: condition.into(),
        delay_ns: model.delay,
        max_attempts: unsigned("TaskTemplate.RestartPolicy.MaxAttempts", model.max_attempts)?,
        window_ns: model.window.unwrap_or(0),
    })
}

fn restart_out(policy: &v1::RestartPolicy) -> models::TaskSpecRestartPolicy {
    use models::TaskSpecRestartPolicyConditionEnum as Condition;
    models::TaskSpecRestartPolicy {
        condition: Some(match policy.condition() {
            v1::RestartCondition::Any => Condition::ANY,
            v1::RestartCondition::OnFailure => Condition::ON_FAILURE,
            v1::RestartCondition::None => Condition::NONE,
        }),
        delay: policy.delay_ns,
        max_attempts: Some(signed(policy.max_attempts)),
        window: some_number(policy.window_ns),
    }
}

fn placement_in(model: models::TaskSpecPlacement) -> Result<v1::Placement, Error> {
    let spread = model.preferences.unwrap_or_default().into_iter().map(|preference| {
        let descriptor = preference.spread.and_then(|s| s.spread_descriptor).unwrap_or_default();
        let hint = "the only preference is Spread, with a descriptor such as node.labels.zone";
        if descriptor.is_empty() {
            Err(Error::value("TaskTemplate.Placement.Preferences", hint))
        } else {
            Ok(descriptor)
        }
    });
    Ok(v1::Placement {
        constraints: model.constraints.unwrap_or_default(),
        spread: spread.collect::<Result<_, _>>()?,
        platforms: model
            .platforms
            .unwrap_or_default()
            .into_iter()
            .map(|p| v1::Platform { architecture: p.architecture.unwrap_or_default(), os: p.os.unwrap_or_default() })
            .collect(),
        max_replicas: unsigned("TaskTemplate.Placement.MaxReplicas", model.max_replicas)?,
    })
}

fn placement_out(placement: &v1::Placement) -> models::TaskSpecPlacement {
    let spread = |descriptor: &String| models::TaskSpecPlacementPreferences {
        spread: Some(models::TaskSpecPlacementSpread { spread_descriptor: Some(descriptor.clone()) }),
    };
    let platform =
        |p: &v1::Platform| models::Platform { architecture: some_text(&p.architecture), os: some_text(&p.os) };
    models::TaskSpecPlacement {
        constraints: some_list(&placement.constraints),
        preferences: (!placement.spread.is_empty()).then(|| placement.spread.iter().map(spread).collect()),
        max_replicas: some_number(signed(placement.max_replicas)),
        platforms: (!placement.platforms.is_empty()).then(|| placement.platforms.iter().map(platform).collect()),
    }
}

fn attachment_in(model: models::NetworkAttachmentConfig) -> Result<v1::NetworkAttachmentConfig, Error> {
    let target = model.target.filter(|target| !target.is_empty());
    Ok(v1::NetworkAttachmentConfig {
        target: target.ok_or_else(|| Error::value("TaskTemplate.Networks.Target", "give a network's name or id"))?,
        aliases: model.aliases.unwrap_or_default(),
        driver_options: map_in(model.driver_opts),
    })
}

fn attachment_out(attachment: &v1::NetworkAttachmentConfig) -> models::NetworkAttachmentConfig {
    models::NetworkAttachmentConfig {
        target: Some(attachment.target.clone()),
        aliases: some_list(&attachment.aliases),
        driver_opts: some_map(&attachment.driver_options),
    }
}

/// Fills in what holds where a spec says nothing.
pub(super) fn fill_defaults(spec: &mut v1::TaskSpec) {
    let container = spec.container.get_or_insert_default();
    container.stop_grace_period_ns.get_or_insert(10_000_000_000);
    container.dns.get_or_insert_default();
    spec.resources.get_or_insert_default();
    spec.restart.get_or_insert_default().delay_ns.get_or_insert(5_000_000_000);
    spec.placement.get_or_insert_default();
}
