//! What a container is asked to be.

use std::collections::BTreeSet;

use skep_proto::v1::{ContainerSpec, MountType, ObjectKind, Resources};
use skep_state::State;

use super::{Error, described, invalid};

/// The least memory that a container can be given, in bytes.
const MEMORY: i64 = 4 << 20;
/// The least CPU time: a thousandth of a core.
const NANO_CPUS: i64 = 1_000_000;

/// Checks the container and turns names of secrets and configs into ids.
pub(super) fn check(state: &State, container: &mut ContainerSpec) -> Result<(), Error> {
    let image = container.image.trim();
    if image.is_empty() || image.contains(char::is_whitespace) {
        return Err(invalid("TaskTemplate.ContainerSpec.Image", "an image reference is needed, without spaces in it"));
    }
    for env in &container.env {
        if env.starts_with('=') || env.is_empty() || env.contains('\0') {
            return Err(invalid("TaskTemplate.ContainerSpec.Env", format!("`{env}` has no name: write NAME=VALUE")));
        }
    }
    if container.stop_grace_period_ns.is_some_and(|g| g < 0) {
        return Err(invalid("TaskTemplate.ContainerSpec.StopGracePeriod", "it can't be negative"));
    }
    if !container.dir.is_empty() && !container.dir.starts_with('/') {
        return Err(invalid("TaskTemplate.ContainerSpec.Dir", format!("`{}` is no absolute path", container.dir)));
    }
    check_health(container)?;
    check_mounts(container)?;
    resolve_files(state, container)
}

fn check_health(container: &ContainerSpec) -> Result<(), Error> {
    let Some(health) = &container.healthcheck else { return Ok(()) };
    let durations = [health.interval_ns, health.timeout_ns, health.start_period_ns, health.start_interval_ns];
    if durations.iter().any(|d| *d < 0) || health.retries < 0 {
        return Err(invalid("TaskTemplate.ContainerSpec.Healthcheck", "durations and retries can't be negative"));
    }
    Ok(())
}

fn check_mounts(container: &ContainerSpec) -> Result<(), Error> {
    const FIELD: &str = "TaskTemplate.ContainerSpec.Mounts";
    let mut targets = BTreeSet::new();
    for mount in &container.mounts {
        let (source, target) = (mount.source.as_str(), mount.target.as_str());
        if !target.starts_with('/') || target.trim_end_matches('/').is_empty() {
            return Err(invalid(FIELD, format!("target `{target}` has to be an absolute path, and not / itself")));
        }
        if !targets.insert(target.trim_end_matches('/')) {
            return Err(invalid(FIELD, format!("two mounts have the target {target}")));
        }
        let right = match mount.r#type() {
            MountType::Bind => source.starts_with('/'),
            MountType::Volume => !source.starts_with('/'),
            MountType::Tmpfs => source.is_empty(),
        };
        if !right {
            let why = "a bind mount's source is an absolute path, a volume's is its name, a tmpfs has none";
            return Err(invalid(FIELD, format!("source `{source}` does not fit its type: {why}")));
        }
        if mount.tmpfs_size_bytes < 0 {
            return Err(invalid(FIELD, format!("the size of the tmpfs at {target} can't be negative")));
        }
    }
    Ok(())
}

/// Secrets and configs have to exist; no two may have the same target.
fn resolve_files(state: &State, container: &mut ContainerSpec) -> Result<(), Error> {
    let mut targets = BTreeSet::new();
    for reference in &mut container.secrets {
        const FIELD: &str = "TaskTemplate.ContainerSpec.Secrets";
        let wanted = if reference.secret_id.is_empty() { &reference.secret_name } else { &reference.secret_id };
        let missing = || Error::NotFound { field: FIELD.into(), what: described(ObjectKind::Secret, wanted) };
        let secret = state.find_secret(wanted).map_err(|_| missing())?;
        let name =
            secret.spec.as_ref().and_then(|s| s.annotations.as_ref()).map(|a| a.name.clone()).unwrap_or_default();
        let file = reference.file.get_or_insert_default();
        if file.name.is_empty() {
            file.name.clone_from(&name);
        }
        if !targets.insert(("secret", file.name.clone())) {
            return Err(invalid(FIELD, format!("two secrets have the target {}", file.name)));
        }
        reference.secret_id.clone_from(&secret.id);
        reference.secret_name = name;
    }
    for reference in &mut container.configs {
        const FIELD: &str = "TaskTemplate.ContainerSpec.Configs";
        let wanted = if reference.config_id.is_empty() { &reference.config_name } else { &reference.config_id };
        let missing = || Error::NotFound { field: FIELD.into(), what: described(ObjectKind::Config, wanted) };
        let config = state.find_config(wanted).map_err(|_| missing())?;
        let name =
            config.spec.as_ref().and_then(|s| s.annotations.as_ref()).map(|a| a.name.clone()).unwrap_or_default();
        let file = reference.file.get_or_insert_default();
        if file.name.is_empty() {
            file.name.clone_from(&name);
        }
        if !targets.insert(("config", file.name.clone())) {
            return Err(invalid(FIELD, format!("two configs have the target {}", file.name)));
        }
        reference.config_id.clone_from(&config.id);
        reference.config_name = name;
    }
    Ok(())
}

/// Limits and reservations: nothing, or enough to start anything at all.
pub(super) fn check_resources(field: &str, resources: Resources) -> Result<(), Error> {
    if resources.nano_cpus < 0 || (1..NANO_CPUS).contains(&resources.nano_cpus) {
        return Err(invalid(format!("{field}.NanoCPUs"), "the smallest share is a thousandth of a core (1000000)"));
    }
    if resources.memory_bytes < 0 || (1..MEMORY).contains(&resources.memory_bytes) {
        return Err(invalid(format!("{field}.MemoryBytes"), "the smallest amount is 4 MiB"));
    }
    Ok(())
}
