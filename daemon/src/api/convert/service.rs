//! Services.

use bollard_stubs::models;
use serde_json::{Map, Value, json};
use skep_proto::v1;

use super::{
    Error, annotations, created, endpoint, labels_of, lossless, name_of, read, signed, task_spec, unsigned, updated,
    version, write,
};
use crate::api::clock::rfc3339;

/// The spec that a client sent.
///
/// # Errors
/// Wrong shape, senseless values, fields that we don't honour.
pub fn spec_in(given: &Value) -> Result<v1::ServiceSpec, Error> {
    let given = normalised(given);
    let model: models::ServiceSpec = read("service spec", &given)?;
    let spec = from_model(model)?;
    lossless::check(&given, &write(&to_model(&spec)))?;
    Ok(spec)
}

/// The spec as clients read it.
pub fn spec_out(spec: &v1::ServiceSpec) -> Value {
    let mut value = write(&to_model(spec));
    if let Some(task) = value.get_mut("TaskTemplate") {
        as_engines_write_it(task);
    }
    value
}

/// The published models and the engines disagree on the case of one name; clients in Go don't care, others do.
pub(super) fn as_engines_write_it(task: &mut Value) {
    if let Some(container) = task.get_mut("ContainerSpec").and_then(Value::as_object_mut) {
        rename(container, "HealthCheck", "Healthcheck");
    }
}

fn rename(members: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = members.remove(from) {
        members.insert(to.to_owned(), value);
    }
}

/// Older clients name the networks beside the task, not in it; and what has one meaning only may be left out.
fn normalised(given: &Value) -> Value {
    let mut given = given.clone();
    let Some(members) = given.as_object_mut() else { return given };
    let beside = members.remove("Networks").filter(|n| n.as_array().is_some_and(|list| !list.is_empty()));
    let Some(task) = members.get_mut("TaskTemplate").and_then(Value::as_object_mut) else {
        if let Some(beside) = beside {
            members.insert("Networks".to_owned(), beside);
        }
        return given;
    };
    if let Some(beside) = beside
        && task.get("Networks").and_then(Value::as_array).is_none_or(Vec::is_empty)
    {
        task.insert("Networks".to_owned(), beside);
    }
    let Some(container) = task.get_mut("ContainerSpec").and_then(Value::as_object_mut) else { return given };
    rename(container, "Healthcheck", "HealthCheck");
    let mounts = container.get_mut("Mounts").and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten().filter_map(Value::as_object_mut) {
        // A hint for other systems' file sharing, without meaning here.
        mount.remove("Consistency");
    }
    given
}

fn from_model(model: models::ServiceSpec) -> Result<v1::ServiceSpec, Error> {
    Ok(v1::ServiceSpec {
        annotations: annotations(model.name, model.labels),
        task: Some(task_spec::from_model(model.task_template.unwrap_or_default())?),
        mode: Some(mode_in(model.mode.unwrap_or_default())?),
        update: model.update_config.map(update_in).transpose()?,
        rollback: model.rollback_config.map(|r| update_in(as_update(r))).transpose()?,
        endpoint: model.endpoint_spec.map(endpoint::spec_in).transpose()?,
    })
}

fn to_model(spec: &v1::ServiceSpec) -> models::ServiceSpec {
    models::ServiceSpec {
        name: name_of(spec.annotations.as_ref()),
        labels: labels_of(spec.annotations.as_ref()),
        task_template: Some(spec.task.as_ref().map(task_spec::to_model).unwrap_or_default()),
        mode: Some(mode_out(spec.mode.as_ref())),
        update_config: spec.update.as_ref().map(update_out),
        rollback_config: spec.rollback.as_ref().map(|r| as_rollback(update_out(r))),
        networks: None,
        endpoint_spec: spec.endpoint.as_ref().map(endpoint::spec_out),
    }
}

fn mode_in(mode: models::ServiceSpecMode) -> Result<v1::service_spec::Mode, Error> {
    if mode.replicated_job.is_some() || mode.global_job.is_some() {
        let field = if mode.global_job.is_some() { "Mode.GlobalJob" } else { "Mode.ReplicatedJob" };
        return Err(Error::Unsupported { field: field.to_owned(), value: "a job".to_owned() });
    }
    match (mode.replicated, mode.global) {
        (Some(_), Some(_)) => Err(Error::value("Mode", "give Replicated or Global, not both")),
        (None, Some(_)) => Ok(v1::service_spec::Mode::Global(v1::Global {})),
        (replicated, None) => {
            let replicas = replicated.and_then(|r| r.replicas).unwrap_or(1);
            let replicas = unsigned("Mode.Replicated.Replicas", Some(replicas))?;
            Ok(v1::service_spec::Mode::Replicated(v1::Replicated { replicas }))
        }
    }
}

fn mode_out(mode: Option<&v1::service_spec::Mode>) -> models::ServiceSpecMode {
    match mode {
        Some(v1::service_spec::Mode::Global(_)) => {
            models::ServiceSpecMode { global: Some(Default::default()), ..Default::default() }
        }
        other => {
            let replicas = match other {
                Some(v1::service_spec::Mode::Replicated(r)) => signed(r.replicas),
                _ => 1,
            };
            let replicated = models::ServiceSpecModeReplicated { replicas: Some(replicas) };
            models::ServiceSpecMode { replicated: Some(replicated), ..Default::default() }
        }
    }
}

fn update_in(config: models::ServiceSpecUpdateConfig) -> Result<v1::UpdateConfig, Error> {
    use models::{ServiceSpecUpdateConfigFailureActionEnum as Action, ServiceSpecUpdateConfigOrderEnum as Order};
    let action = match config.failure_action {
        Some(Action::CONTINUE) => v1::FailureAction::Continue,
        Some(Action::ROLLBACK) => v1::FailureAction::Rollback,
        Some(Action::PAUSE | Action::EMPTY) | None => v1::FailureAction::Pause,
    };
    let order = match config.order {
        Some(Order::START_FIRST) => v1::UpdateOrder::StartFirst,
        Some(Order::STOP_FIRST | Order::EMPTY) | None => v1::UpdateOrder::StopFirst,
    };
    let ratio = config.max_failure_ratio.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&ratio) {
        return Err(Error::value("UpdateConfig.MaxFailureRatio", "it lies between 0 and 1"));
    }
    Ok(v1::UpdateConfig {
        parallelism: unsigned("UpdateConfig.Parallelism", config.parallelism)?,
        delay_ns: config.delay.unwrap_or(0),
        failure_action: action.into(),
        monitor_ns: config.monitor.unwrap_or(0),
        max_failure_ratio: ratio,
        order: order.into(),
    })
}

fn update_out(config: &v1::UpdateConfig) -> models::ServiceSpecUpdateConfig {
    use models::{ServiceSpecUpdateConfigFailureActionEnum as Action, ServiceSpecUpdateConfigOrderEnum as Order};
    models::ServiceSpecUpdateConfig {
        parallelism: Some(signed(config.parallelism)),
        delay: super::some_number(config.delay_ns),
        failure_action: Some(match config.failure_action() {
            v1::FailureAction::Pause => Action::PAUSE,
            v1::FailureAction::Continue => Action::CONTINUE,
            v1::FailureAction::Rollback => Action::ROLLBACK,
        }),
        monitor: super::some_number(config.monitor_ns),
        max_failure_ratio: Some(config.max_failure_ratio),
        order: Some(match config.order() {
            v1::UpdateOrder::StopFirst => Order::STOP_FIRST,
            v1::UpdateOrder::StartFirst => Order::START_FIRST,
        }),
    }
}

/// The models have one type for each of the two, with the same content.
fn as_update(config: models::ServiceSpecRollbackConfig) -> models::ServiceSpecUpdateConfig {
    use models::{
        ServiceSpecRollbackConfigFailureActionEnum as From, ServiceSpecRollbackConfigOrderEnum as FromOrder,
        ServiceSpecUpdateConfigFailureActionEnum as To, ServiceSpecUpdateConfigOrderEnum as ToOrder,
    };
    models::ServiceSpecUpdateConfig {
        parallelism: config.parallelism,
        delay: config.delay,
        failure_action: config.failure_action.map(|action| match action {
            From::CONTINUE => To::CONTINUE,
            From::PAUSE => To::PAUSE,
            From::EMPTY => To::EMPTY,
        }),
        monitor: config.monitor,
        max_failure_ratio: config.max_failure_ratio,
        order: config.order.map(|order| match order {
            FromOrder::STOP_FIRST => ToOrder::STOP_FIRST,
            FromOrder::START_FIRST => ToOrder::START_FIRST,
            FromOrder::EMPTY => ToOrder::EMPTY,
        }),
    }
}

fn as_rollback(config: models::ServiceSpecUpdateConfig) -> models::ServiceSpecRollbackConfig {
    use models::{
        ServiceSpecRollbackConfigFailureActionEnum as To, ServiceSpecRollbackConfigOrderEnum as ToOrder,
        ServiceSpecUpdateConfigFailureActionEnum as From, ServiceSpecUpdateConfigOrderEnum as FromOrder,
    };
    models::ServiceSpecRollbackConfig {
        parallelism: config.parallelism,
        delay: config.delay,
        failure_action: config.failure_action.map(|action| match action {
            From::CONTINUE => To::CONTINUE,
            // A rollback can't roll back; it never came in like that.
            From::PAUSE | From::ROLLBACK | From::EMPTY => To::PAUSE,
        }),
        monitor: config.monitor,
        max_failure_ratio: config.max_failure_ratio,
        order: config.order.map(|order| match order {
            FromOrder::START_FIRST => ToOrder::START_FIRST,
            FromOrder::STOP_FIRST | FromOrder::EMPTY => ToOrder::STOP_FIRST,
        }),
    }
}

/// A service as clients read it. `defaults` fills in what the spec leaves open; `counts` adds the status of a list.
pub fn service_out(service: &v1::Service, defaults: bool, counts: Option<&v1::ServiceView>) -> Value {
    let meta = service.meta.as_ref();
    let shown = |spec: &v1::ServiceSpec| if defaults { with_defaults(spec) } else { spec.clone() };
    let model = models::Service {
        id: Some(service.id.clone()),
        version: version(meta),
        created_at: created(meta),
        updated_at: updated(meta),
        spec: None,
        endpoint: Some(endpoint::out(service.endpoint.as_ref(), service.spec.as_ref())),
        update_status: service.update_status.as_ref().and_then(status_out),
        service_status: counts.map(|view| models::ServiceServiceStatus {
            running_tasks: Some(view.running),
            desired_tasks: Some(view.desired),
            completed_tasks: Some(view.completed),
        }),
        job_status: None,
    };
    let mut value = write(&model);
    if let Some(members) = value.as_object_mut() {
        for (name, spec) in [("Spec", &service.spec), ("PreviousSpec", &service.previous_spec)] {
            if let Some(spec) = spec {
                members.insert(name.to_owned(), spec_out(&shown(spec)));
            }
        }
    }
    value
}

fn status_out(status: &v1::UpdateStatus) -> Option<models::ServiceUpdateStatus> {
    use models::ServiceUpdateStatusStateEnum as State;
    let state = match status.state() {
        v1::UpdateState::Unknown => return None,
        v1::UpdateState::Updating => State::UPDATING,
        v1::UpdateState::Paused => State::PAUSED,
        v1::UpdateState::Completed => State::COMPLETED,
        v1::UpdateState::RollbackStarted => State::ROLLBACK_STARTED,
        v1::UpdateState::RollbackPaused => State::ROLLBACK_PAUSED,
        v1::UpdateState::RollbackCompleted => State::ROLLBACK_COMPLETED,
    };
    Some(models::ServiceUpdateStatus {
        state: Some(state),
        started_at: (status.started_ns != 0).then(|| rfc3339(status.started_ns)),
        completed_at: (status.completed_ns != 0).then(|| rfc3339(status.completed_ns)),
        message: Some(status.message.clone()),
    })
}

/// The spec with what holds where it says nothing.
fn with_defaults(spec: &v1::ServiceSpec) -> v1::ServiceSpec {
    let mut spec = spec.clone();
    let update = v1::UpdateConfig { parallelism: 1, monitor_ns: 5_000_000_000, ..v1::UpdateConfig::default() };
    spec.update.get_or_insert(update);
    spec.rollback.get_or_insert(update);
    spec.endpoint.get_or_insert_default();
    task_spec::fill_defaults(spec.task.get_or_insert_default());
    spec
}

/// The word for a service's mode, as filters and columns have it.
pub fn mode_word(spec: Option<&v1::ServiceSpec>) -> &'static str {
    match spec.and_then(|s| s.mode.as_ref()) {
        Some(v1::service_spec::Mode::Global(_)) => "global",
        _ => "replicated",
    }
}

/// The answer to a creation.
pub fn created_out(response: &v1::CreateServiceResponse) -> Value {
    json!({ "ID": response.id, "Warnings": super::some_list(&response.warnings) })
}
