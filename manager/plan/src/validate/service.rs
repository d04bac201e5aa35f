//! A service's spec: new, or replacing an older one.

use prost::Message;
use skep_proto::size;
use skep_proto::v1::{
    Driver, FailureAction, ObjectKind, Placement, Replicated, Service, ServiceSpec, TaskSpec, UpdateConfig,
    service_spec::Mode,
};
use skep_state::State;

use super::{
    DURATION, Error, SERVICE_NAME, annotations, check_name, container, described, invalid, limits, network, ports,
};
use crate::constraint::{Constraint, is_spread};
use crate::defaults::TASKS_PER_NODE;

/// Replicas of one service at most.
const REPLICAS: u64 = 1_000_000;
/// Bytes of one log file at least, as the runtime has it.
const LOG_FILE_BYTES: u64 = 4096;
/// Largest encoded spec: the log stores it together with the previous one.
const SPEC_BYTES: usize = 300 * 1024;

/// Checks a spec and completes it. `old` is the service that it changes.
pub fn service(state: &State, mut spec: ServiceSpec, old: Option<&Service>) -> Result<ServiceSpec, Error> {
    let name = annotations(spec.annotations.as_ref())?.name.clone();
    check_name("Name", &name, SERVICE_NAME, "-_")?;
    if spec.encoded_len() > SPEC_BYTES {
        let why = format!(
            "the spec has {} bytes; {SPEC_BYTES} are allowed: move large values to configs",
            spec.encoded_len()
        );
        return Err(invalid("TaskTemplate", why));
    }
    let own_id = old.map_or("", |s| s.id.as_str());
    let taken = |s: &Service| {
        s.id != own_id
            && !s.removing
            && s.spec.as_ref().and_then(|s| s.annotations.as_ref()).is_some_and(|a| a.name == name)
    };
    if state.find_service(&name).is_ok_and(|s| taken(&s)) {
        return Err(Error::NameInUse { kind: "service", name });
    }
    let mode = *spec.mode.get_or_insert(Mode::Replicated(Replicated { replicas: 1 }));
    if let Mode::Replicated(replicated) = mode {
        check_replicas(state, replicated.replicas, old)?;
    }
    if let Some(old) = old.and_then(|s| s.spec.as_ref()) {
        check_change(&spec, old)?;
    }
    let task = spec.task.as_mut().ok_or_else(|| invalid("TaskTemplate", "a service needs a task template"))?;
    let container =
        task.container.as_mut().ok_or_else(|| invalid("TaskTemplate.ContainerSpec", "a container is needed"))?;
    container::check(state, container)?;
    resolve_networks(state, task)?;
    check_task(task, matches!(mode, Mode::Global(_)))?;
    if spec.rollback.is_some_and(|r| r.failure_action() == FailureAction::Rollback) {
        return Err(invalid("RollbackConfig.FailureAction", "a rollback can't be rolled back: use pause or continue"));
    }
    for (field, config) in [("UpdateConfig", &spec.update), ("RollbackConfig", &spec.rollback)] {
        if let Some(config) = config {
            check_update(field, config)?;
        }
    }
    if let Some(endpoint) = &spec.endpoint {
        ports::check(state, endpoint, own_id)?;
    }
    Ok(spec)
}

/// More replicas than all nodes together could run are a slip of the hand, and would keep the managers busy with tasks that
/// wait for ever. A service that has that many already, because nodes went, may keep them, have fewer, or go back to what
/// it had.
fn check_replicas(state: &State, replicas: u64, old: Option<&Service>) -> Result<(), Error> {
    let field = "Mode.Replicated.Replicas";
    if replicas > REPLICAS {
        return Err(invalid(field, format!("{REPLICAS} replicas are the most")));
    }
    let count = |spec: &ServiceSpec| match spec.mode {
        Some(Mode::Replicated(replicated)) => replicated.replicas,
        _ => 0,
    };
    let specs = old.iter().flat_map(|old| old.spec.iter().chain(&old.previous_spec));
    let had = specs.map(count).max().unwrap_or(0);
    let nodes = (state.nodes().count() as u64).max(1);
    let room = nodes.saturating_mul(u64::from(TASKS_PER_NODE));
    if replicas > room.max(had) {
        let why = format!(
            "{replicas} replicas are more than the nodes of this cluster can run: a node takes {TASKS_PER_NODE} tasks, and \
             there {}; add nodes first",
            if nodes == 1 { "is 1 node".to_owned() } else { format!("are {nodes} nodes") }
        );
        return Err(invalid(field, why));
    }
    Ok(())
}

/// What stays as it is for the life of a service.
fn check_change(spec: &ServiceSpec, old: &ServiceSpec) -> Result<(), Error> {
    let name = |s: &ServiceSpec| s.annotations.as_ref().map(|a| a.name.clone());
    if name(spec) != name(old) {
        return Err(invalid("Name", "renaming services is not supported: create another one"));
    }
    let global = |s: &ServiceSpec| matches!(s.mode, Some(Mode::Global(_)));
    if global(spec) != global(old) {
        return Err(invalid("Mode", "a service's mode can't be changed: create another one"));
    }
    Ok(())
}

/// Turns the names of networks into ids.
fn resolve_networks(state: &State, task: &mut TaskSpec) -> Result<(), Error> {
    const FIELD: &str = "TaskTemplate.Networks";
    let mut ids = Vec::new();
    for attachment in &mut task.networks {
        let network = state.find_network(&attachment.target).map_err(|e| match e {
            skep_state::FindError::NotFound => match network::only_overlay(&attachment.target) {
                Some(why) => invalid(FIELD, format!("network {} can't be used: {why}", attachment.target)),
                None => Error::NotFound {
                    field: FIELD.to_owned(),
                    what: described(ObjectKind::Network, &attachment.target),
                },
            },
            ambiguous @ skep_state::FindError::Ambiguous { .. } => {
                invalid(FIELD, format!("network {} is {ambiguous}", attachment.target))
            }
        })?;
        if network.spec.as_ref().is_some_and(|s| s.ingress) {
            return Err(invalid(FIELD, "a service can't be attached to the ingress network: publish a port instead"));
        }
        if ids.contains(&network.id) {
            return Err(invalid(FIELD, format!("network {} is named twice", attachment.target)));
        }
        for alias in &attachment.aliases {
            check_name("TaskTemplate.Networks.Aliases", alias, SERVICE_NAME, "-_.")?;
        }
        attachment.target.clone_from(&network.id);
        ids.push(network.id.clone());
    }
    Ok(())
}

fn check_task(task: &TaskSpec, global: bool) -> Result<(), Error> {
    if let Some(placement) = &task.placement {
        check_placement(placement, global)?;
    }
    if let Some(restart) = &task.restart {
        let span = 0..=DURATION;
        if restart.delay_ns.is_some_and(|d| !span.contains(&d)) || !span.contains(&restart.window_ns) {
            return Err(invalid("TaskTemplate.RestartPolicy", "delay and window lie between 0 and a year"));
        }
    }
    if let Some(driver) = &task.log_driver {
        check_log_driver(driver)?;
    }
    limits::check(&task.resources.unwrap_or_default())
}

fn check_placement(placement: &Placement, global: bool) -> Result<(), Error> {
    for constraint in &placement.constraints {
        let checked = Constraint::parse(constraint).and_then(|parsed| parsed.check(constraint));
        checked.map_err(|e| invalid("TaskTemplate.Placement.Constraints", e.to_string()))?;
    }
    if let Some(spread) = placement.spread.iter().find(|s| !is_spread(s)) {
        let why = format!("`{spread}` can't be spread over: use node.labels.NAME or engine.labels.NAME");
        return Err(invalid("TaskTemplate.Placement.Preferences", why));
    }
    if global && placement.max_replicas != 0 {
        return Err(invalid(
            "TaskTemplate.Placement.MaxReplicas",
            "a global service has one task per node anyway: leave it out",
        ));
    }
    Ok(())
}

/// Output always goes into files on the node; their number and size is the driver's to say.
fn check_log_driver(driver: &Driver) -> Result<(), Error> {
    const FIELD: &str = "TaskTemplate.LogDriver";
    if !matches!(driver.name.as_str(), "" | "json-file" | "local") {
        let why = format!("`{}` is not supported: use json-file, or leave it out", driver.name);
        return Err(invalid(format!("{FIELD}.Name"), why));
    }
    if let Some(size) =
        driver.options.get("max-size").filter(|size| size::parse(size).is_none_or(|bytes| bytes < LOG_FILE_BYTES))
    {
        let why = format!("max-size `{size}` is no size: write it like 10m, 4k at least");
        return Err(invalid(format!("{FIELD}.Options"), why));
    }
    match driver.options.get("max-file").filter(|n| !n.parse::<u32>().is_ok_and(|n| (1..=10_000).contains(&n))) {
        Some(number) => {
            let why = format!("max-file `{number}` is no number of files: it lies between 1 and 10000");
            Err(invalid(format!("{FIELD}.Options"), why))
        }
        None => Ok(()),
    }
}

fn check_update(field: &str, config: &UpdateConfig) -> Result<(), Error> {
    for (name, span) in [("Delay", config.delay_ns), ("Monitor", config.monitor_ns)] {
        if !(0..=DURATION).contains(&span) {
            return Err(invalid(format!("{field}.{name}"), "it lies between 0 and a year"));
        }
    }
    if config.parallelism > REPLICAS {
        let why = format!("{REPLICAS} tasks at once are the most; 0 means all");
        return Err(invalid(format!("{field}.Parallelism"), why));
    }
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(invalid(format!("{field}.MaxFailureRatio"), "the ratio lies between 0 and 1"));
    }
    Ok(())
}
