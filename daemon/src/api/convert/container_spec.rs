//! What a task's container is made of.

use bollard_stubs::models;
use skep_proto::v1;

use super::{Error, map_in, some_list, some_map, some_number, some_text};

pub(super) fn from_model(model: models::TaskSpecContainerSpec) -> Result<v1::ContainerSpec, Error> {
    let image = model.image.unwrap_or_default();
    check_image(&image)?;
    Ok(v1::ContainerSpec {
        image,
        labels: map_in(model.labels),
        command: model.command.unwrap_or_default(),
        args: model.args.unwrap_or_default(),
        hostname: model.hostname.unwrap_or_default(),
        env: model.env.unwrap_or_default(),
        dir: model.dir.unwrap_or_default(),
        user: model.user.unwrap_or_default(),
        groups: model.groups.unwrap_or_default(),
        tty: model.tty.unwrap_or(false),
        open_stdin: model.open_stdin.unwrap_or(false),
        read_only: model.read_only.unwrap_or(false),
        mounts: model.mounts.unwrap_or_default().into_iter().map(mount_in).collect::<Result<_, _>>()?,
        stop_signal: model.stop_signal.unwrap_or_default(),
        stop_grace_period_ns: model.stop_grace_period,
        hosts: model.hosts.unwrap_or_default(),
        dns: model.dns_config.map(dns_in),
        secrets: model.secrets.unwrap_or_default().into_iter().map(secret_in).collect(),
        configs: model.configs.unwrap_or_default().into_iter().map(config_in).collect(),
        init: model.init,
        capability_add: model.capability_add.unwrap_or_default(),
        capability_drop: model.capability_drop.unwrap_or_default(),
        sysctls: map_in(model.sysctls),
        ulimits: model.ulimits.unwrap_or_default().into_iter().map(ulimit_in).collect(),
        oom_score_adj: model.oom_score_adj.unwrap_or(0),
        healthcheck: model.health_check.map(health_in),
        isolation: isolation_in(model.isolation)?,
        privileges: model.privileges.map(privileges_in).transpose()?,
    })
}

/// A name as registries have it, or the whole id of an image.
fn check_image(image: &str) -> Result<(), Error> {
    const FIELD: &str = "TaskTemplate.ContainerSpec.Image";
    if image.is_empty() {
        return Err(Error::value(FIELD, "an image reference has to be given"));
    }
    let digits = image.strip_prefix("sha256:").unwrap_or(image);
    let id = digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match skep_image::Reference::parse(image) {
        Err(error) if !id => Err(Error::value(FIELD, error.to_string())),
        _ => Ok(()),
    }
}

pub(super) fn to_model(spec: &v1::ContainerSpec) -> models::TaskSpecContainerSpec {
    models::TaskSpecContainerSpec {
        image: Some(spec.image.clone()),
        labels: some_map(&spec.labels),
        command: some_list(&spec.command),
        args: some_list(&spec.args),
        hostname: some_text(&spec.hostname),
        env: some_list(&spec.env),
        dir: some_text(&spec.dir),
        user: some_text(&spec.user),
        groups: some_list(&spec.groups),
        privileges: spec.privileges.as_ref().map(privileges_out),
        tty: spec.tty.then_some(true),
        open_stdin: spec.open_stdin.then_some(true),
        read_only: spec.read_only.then_some(true),
        mounts: (!spec.mounts.is_empty()).then(|| spec.mounts.iter().map(mount_out).collect()),
        stop_signal: some_text(&spec.stop_signal),
        stop_grace_period: spec.stop_grace_period_ns,
        health_check: spec.healthcheck.as_ref().map(health_out),
        hosts: some_list(&spec.hosts),
        dns_config: spec.dns.as_ref().map(dns_out),
        secrets: (!spec.secrets.is_empty()).then(|| spec.secrets.iter().map(secret_out).collect()),
        oom_score_adj: some_number(spec.oom_score_adj),
        configs: (!spec.configs.is_empty()).then(|| spec.configs.iter().map(config_out).collect()),
        isolation: (!spec.isolation.is_empty()).then_some(models::TaskSpecContainerSpecIsolationEnum::DEFAULT),
        init: spec.init,
        sysctls: some_map(&spec.sysctls),
        capability_add: some_list(&spec.capability_add),
        capability_drop: some_list(&spec.capability_drop),
        ulimits: (!spec.ulimits.is_empty()).then(|| spec.ulimits.iter().map(ulimit_out).collect()),
    }
}

fn isolation_in(isolation: Option<models::TaskSpecContainerSpecIsolationEnum>) -> Result<String, Error> {
    use models::TaskSpecContainerSpecIsolationEnum as Isolation;
    match isolation {
        None | Some(Isolation::EMPTY) => Ok(String::new()),
        Some(Isolation::DEFAULT) => Ok("default".to_owned()),
        Some(other) => Err(Error::Unsupported {
            field: "TaskTemplate.ContainerSpec.Isolation".to_owned(),
            value: other.to_string(),
        }),
    }
}

// ---- mounts -------------------------------------------------------------------------------------------------

fn mount_in(model: models::Mount) -> Result<v1::Mount, Error> {
    const FIELD: &str = "TaskTemplate.ContainerSpec.Mounts.Type";
    let r#type = match model.typ {
        Some(models::MountType::BIND) => v1::MountType::Bind,
        Some(models::MountType::VOLUME) => v1::MountType::Volume,
        Some(models::MountType::TMPFS) => v1::MountType::Tmpfs,
        Some(other) => return Err(Error::Unsupported { field: FIELD.to_owned(), value: other.to_string() }),
        None => return Err(Error::value(FIELD, "give bind, volume or tmpfs")),
    };
    let target = model.target.unwrap_or_default();
    if !target.starts_with('/') {
        let message = format!("{target:?} is no absolute path");
        return Err(Error::value("TaskTemplate.ContainerSpec.Mounts.Target", message));
    }
    if r#type == v1::MountType::Volume && model.volume_options.is_some() {
        // The manager refuses it anyway; else one would be told of an option first, which in a stack is not even the
        // user's own.
        return Err(Error::value(FIELD, format!("{target}: {}", skep_plan::validate::NO_VOLUMES)));
    }
    let tmpfs = model.tmpfs_options.unwrap_or_default();
    let mode = u32::try_from(tmpfs.mode.unwrap_or(0)).map_err(|_| {
        Error::value("TaskTemplate.ContainerSpec.Mounts.TmpfsOptions.Mode", "give permission bits, e.g. 1777 octal")
    })?;
    Ok(v1::Mount {
        r#type: r#type.into(),
        source: model.source.unwrap_or_default(),
        target,
        read_only: model.read_only.unwrap_or(false),
        propagation: model.bind_options.and_then(|o| o.propagation).map(|p| p.to_string()).unwrap_or_default(),
        tmpfs_size_bytes: tmpfs.size_bytes.unwrap_or(0),
        tmpfs_mode: mode,
    })
}

fn mount_out(mount: &v1::Mount) -> models::Mount {
    let tmpfs = models::MountTmpfsOptions {
        size_bytes: some_number(mount.tmpfs_size_bytes),
        mode: some_number(i64::from(mount.tmpfs_mode)),
        options: None,
    };
    models::Mount {
        target: Some(mount.target.clone()),
        source: some_text(&mount.source),
        typ: Some(match mount.r#type() {
            v1::MountType::Bind => models::MountType::BIND,
            v1::MountType::Volume => models::MountType::VOLUME,
            v1::MountType::Tmpfs => models::MountType::TMPFS,
        }),
        read_only: mount.read_only.then_some(true),
        bind_options: some_text(&mount.propagation)
            .map(|text| models::MountBindOptions { propagation: text.parse().ok(), ..Default::default() }),
        tmpfs_options: (tmpfs != models::MountTmpfsOptions::default()).then_some(tmpfs),
        ..Default::default()
    }
}

// ---- the rest -----------------------------------------------------------------------------------------------

fn dns_in(model: models::TaskSpecContainerSpecDnsConfig) -> v1::DnsConfig {
    v1::DnsConfig {
        nameservers: model.nameservers.unwrap_or_default(),
        search: model.search.unwrap_or_default(),
        options: model.options.unwrap_or_default(),
    }
}

fn dns_out(dns: &v1::DnsConfig) -> models::TaskSpecContainerSpecDnsConfig {
    models::TaskSpecContainerSpecDnsConfig {
        nameservers: some_list(&dns.nameservers),
        search: some_list(&dns.search),
        options: some_list(&dns.options),
    }
}

fn secret_in(model: models::TaskSpecContainerSpecSecrets) -> v1::SecretReference {
    v1::SecretReference {
        secret_id: model.secret_id.unwrap_or_default(),
        secret_name: model.secret_name.unwrap_or_default(),
        file: model.file.map(|f| v1::FileTarget {
            name: f.name.unwrap_or_default(),
            uid: f.uid.unwrap_or_default(),
            gid: f.gid.unwrap_or_default(),
            mode: f.mode.unwrap_or(0),
        }),
    }
}

fn secret_out(secret: &v1::SecretReference) -> models::TaskSpecContainerSpecSecrets {
    models::TaskSpecContainerSpecSecrets {
        file: secret.file.as_ref().map(|f| models::TaskSpecContainerSpecFile {
            name: Some(f.name.clone()),
            uid: Some(f.uid.clone()),
            gid: Some(f.gid.clone()),
            mode: Some(f.mode),
        }),
        secret_id: Some(secret.secret_id.clone()),
        secret_name: Some(secret.secret_name.clone()),
    }
}

fn config_in(model: models::TaskSpecContainerSpecConfigs) -> v1::ConfigReference {
    v1::ConfigReference {
        config_id: model.config_id.unwrap_or_default(),
        config_name: model.config_name.unwrap_or_default(),
        file: model.file.map(|f| v1::FileTarget {
            name: f.name.unwrap_or_default(),
            uid: f.uid.unwrap_or_default(),
            gid: f.gid.unwrap_or_default(),
            mode: f.mode.unwrap_or(0),
        }),
    }
}

fn config_out(config: &v1::ConfigReference) -> models::TaskSpecContainerSpecConfigs {
    models::TaskSpecContainerSpecConfigs {
        file: config.file.as_ref().map(|f| models::TaskSpecContainerSpecFile1 {
            name: Some(f.name.clone()),
            uid: Some(f.uid.clone()),
            gid: Some(f.gid.clone()),
            mode: Some(f.mode),
        }),
        runtime: None,
        config_id: Some(config.config_id.clone()),
        config_name: Some(config.config_name.clone()),
    }
}

fn ulimit_in(model: models::ResourcesUlimits) -> v1::Ulimit {
    v1::Ulimit { name: model.name.unwrap_or_default(), soft: model.soft.unwrap_or(0), hard: model.hard.unwrap_or(0) }
}

fn ulimit_out(ulimit: &v1::Ulimit) -> models::ResourcesUlimits {
    models::ResourcesUlimits { name: Some(ulimit.name.clone()), soft: Some(ulimit.soft), hard: Some(ulimit.hard) }
}

fn health_in(model: models::HealthConfig) -> v1::HealthConfig {
    v1::HealthConfig {
        test: model.test.unwrap_or_default(),
        interval_ns: model.interval.unwrap_or(0),
        timeout_ns: model.timeout.unwrap_or(0),
        retries: model.retries.unwrap_or(0),
        start_period_ns: model.start_period.unwrap_or(0),
        start_interval_ns: model.start_interval.unwrap_or(0),
    }
}

fn health_out(health: &v1::HealthConfig) -> models::HealthConfig {
    models::HealthConfig {
        test: some_list(&health.test),
        interval: some_number(health.interval_ns),
        timeout: some_number(health.timeout_ns),
        retries: some_number(health.retries),
        start_period: some_number(health.start_period_ns),
        start_interval: some_number(health.start_interval_ns),
    }
}

fn privileges_in(model: models::TaskSpecContainerSpecPrivileges) -> Result<v1::Privileges, Error> {
    use models::TaskSpecContainerSpecPrivilegesSeccompModeEnum as Mode;
    let seccomp_unconfined = match model.seccomp.and_then(|s| s.mode) {
        None | Some(Mode::EMPTY | Mode::DEFAULT) => false,
        Some(Mode::UNCONFINED) => true,
        Some(Mode::CUSTOM) => {
            return Err(Error::Unsupported {
                field: "TaskTemplate.ContainerSpec.Privileges.Seccomp.Mode".to_owned(),
                value: "custom".to_owned(),
            });
        }
    };
    Ok(v1::Privileges { no_new_privileges: model.no_new_privileges.unwrap_or(false), seccomp_unconfined })
}

fn privileges_out(privileges: &v1::Privileges) -> models::TaskSpecContainerSpecPrivileges {
    use models::TaskSpecContainerSpecPrivilegesSeccompModeEnum as Mode;
    let mode = if privileges.seccomp_unconfined { Mode::UNCONFINED } else { Mode::DEFAULT };
    models::TaskSpecContainerSpecPrivileges {
        seccomp: Some(models::TaskSpecContainerSpecPrivilegesSeccomp { mode: Some(mode), profile: None }),
        no_new_privileges: Some(privileges.no_new_privileges),
        ..Default::default()
    }
}
