//! What appears in a container's file system besides its image: mounts, secrets, configs. Each needs a place of its
//! own, outside of what the runtime keeps for itself.

use std::collections::BTreeMap;

use skep_proto::v1::{ConfigReference, ContainerSpec, FileTarget, Mount, MountType, ObjectKind, SecretReference};
use skep_state::State;

use super::{Error, described, invalid};

/// Said of every volume.
pub const NO_VOLUMES: &str = "volumes are not supported yet; use a bind mount (type=bind) or type=tmpfs";

const MOUNTS: &str = "TaskTemplate.ContainerSpec.Mounts";
/// Where secrets and configs are, unless their target says another place.
const SECRETS: &str = "/run/secrets";
const CONFIGS: &str = "/";
/// Files of one container at most; the worker's runtime takes no more.
const FILES: usize = 512;
/// Bytes of all files of one container: each of its nodes holds them in memory, and is sent them with every new session.
const FILES_BYTES: usize = 16 << 20;
/// Longest path that the kernel takes.
const PATH: usize = 4095;
/// Permission bits of a file.
const MODE: u32 = 0o777;

/// Checks mounts, secrets and configs; turns names of secrets and configs into ids.
pub(super) fn check(state: &State, container: &mut ContainerSpec) -> Result<(), Error> {
    let mut taken = Taken::default();
    for mount in &container.mounts {
        taken.take(MOUNTS, &mount.target, "/")?;
        check_mount(mount)?;
    }
    if container.secrets.len() + container.configs.len() > FILES {
        let why = format!("{FILES} secrets and configs are the most that a container can have");
        return Err(invalid("TaskTemplate.ContainerSpec.Secrets", why));
    }
    for secret in &mut container.secrets {
        resolve(state, secret, &mut taken)?;
    }
    for config in &mut container.configs {
        resolve(state, config, &mut taken)?;
    }
    check_bytes(state, container)
}

fn check_bytes(state: &State, container: &ContainerSpec) -> Result<(), Error> {
    let secrets =
        container.secrets.iter().filter_map(|s| state.secret(&s.secret_id)?.spec.as_ref().map(|s| s.data.len()));
    let configs =
        container.configs.iter().filter_map(|c| state.config(&c.config_id)?.spec.as_ref().map(|s| s.data.len()));
    let bytes: usize = secrets.chain(configs).sum();
    if bytes > FILES_BYTES {
        let why = format!(
            "its secrets and configs have {bytes} bytes together, {FILES_BYTES} are the most: put large files into the \
             image or a bind mount"
        );
        return Err(invalid("TaskTemplate.ContainerSpec.Configs", why));
    }
    Ok(())
}

fn check_mount(mount: &Mount) -> Result<(), Error> {
    let (source, target) = (mount.source.as_str(), mount.target.as_str());
    if mount.r#type() == MountType::Volume {
        return Err(invalid(format!("{MOUNTS}.Type"), format!("{target}: {NO_VOLUMES}")));
    }
    if source.contains("{{") || target.contains("{{") {
        let why = format!("{target}: placeholders have no meaning in mounts; write the path itself");
        return Err(invalid(MOUNTS, why));
    }
    let right = match mount.r#type() {
        MountType::Bind => source.starts_with('/') && !source.contains('\0') && source.len() <= PATH,
        MountType::Tmpfs => source.is_empty(),
        MountType::Volume => false,
    };
    if !right {
        let why = "a bind mount's source is an absolute path, a tmpfs has none";
        return Err(invalid(format!("{MOUNTS}.Source"), format!("`{source}` does not fit its type: {why}")));
    }
    if mount.tmpfs_size_bytes < 0 {
        let why = format!("the size of the tmpfs at {target} can't be negative");
        return Err(invalid(format!("{MOUNTS}.TmpfsOptions.SizeBytes"), why));
    }
    if mount.tmpfs_mode > 0o7777 {
        let why = format!("{:o} are no permission bits: use 0 to 7777", mount.tmpfs_mode);
        return Err(invalid(format!("{MOUNTS}.TmpfsOptions.Mode"), why));
    }
    if mount.r#type() != MountType::Tmpfs && (mount.tmpfs_size_bytes != 0 || mount.tmpfs_mode != 0) {
        let why = format!("{target} is no tmpfs: leave size and mode out, or use type=tmpfs");
        return Err(invalid(format!("{MOUNTS}.TmpfsOptions"), why));
    }
    match mount.propagation.as_str() {
        "shared" | "rshared" => {
            let why = format!(
                "{target}: mounts that are made in a container are not seen outside of it; `{}` is not supported, \
                 leave it out",
                mount.propagation
            );
            Err(invalid(format!("{MOUNTS}.BindOptions.Propagation"), why))
        }
        propagation if !propagation.is_empty() && mount.r#type() != MountType::Bind => {
            let why = format!("{target} is no bind mount: leave the propagation out");
            Err(invalid(format!("{MOUNTS}.BindOptions.Propagation"), why))
        }
        _ => Ok(()),
    }
}

/// Places that are in use, each with what is there.
#[derive(Default)]
struct Taken(BTreeMap<String, &'static str>);

impl Taken {
    /// Takes a place, if it can be one and is free. What is relative lies below `base`.
    fn take(&mut self, field: &'static str, target: &str, base: &str) -> Result<(), Error> {
        let absolute = if target.starts_with('/') {
            target.to_owned()
        } else {
            format!("{}/{target}", base.trim_end_matches('/'))
        };
        if field == MOUNTS && !target.starts_with('/') {
            return Err(invalid(field, format!("target `{target}` has to be an absolute path")));
        }
        if absolute.len() > PATH || absolute.contains('\0') {
            return Err(invalid(field, format!("target `{target}` is no path")));
        }
        let path = normalise(&absolute);
        let own = ["/", "/dev", "/sys", "/proc"].contains(&path.as_str()) || path.starts_with("/proc/");
        if own {
            let why = format!("target `{target}` is /, /dev, /sys or in /proc, which every container has of its own");
            return Err(invalid(field, format!("{why}: choose another place")));
        }
        if field != MOUNTS && path.starts_with("/sys/") {
            let why = format!("target `{target}` is in /sys, where no files can be made: choose another place");
            return Err(invalid(field, why));
        }
        match self.0.insert(path, field) {
            None => Ok(()),
            Some(other) if other == field => Err(invalid(field, format!("two have the target {target}"))),
            Some(other) => Err(invalid(field, format!("the target {target} is used by one of {other} already"))),
        }
    }
}

/// An absolute path without `.`, `..` and double slashes, decided from its text alone.
pub(super) fn normalise(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Secrets and configs are referred to in the same way.
trait Reference {
    const KIND: ObjectKind;
    const FIELD: &'static str;
    const BASE: &'static str;

    /// Id, name and target, to be completed.
    fn parts(&mut self) -> (&mut String, &mut String, &mut Option<FileTarget>);

    /// Id and name of what is referred to.
    fn find(state: &State, reference: &str) -> Option<(String, String)>;
}

impl Reference for SecretReference {
    const KIND: ObjectKind = ObjectKind::Secret;
    const FIELD: &'static str = "TaskTemplate.ContainerSpec.Secrets";
    const BASE: &'static str = SECRETS;

    fn parts(&mut self) -> (&mut String, &mut String, &mut Option<FileTarget>) {
        (&mut self.secret_id, &mut self.secret_name, &mut self.file)
    }

    fn find(state: &State, reference: &str) -> Option<(String, String)> {
        let secret = state.find_secret(reference).ok()?;
        let annotations = secret.spec.as_ref().and_then(|s| s.annotations.as_ref());
        Some((secret.id.clone(), annotations.map(|a| a.name.clone()).unwrap_or_default()))
    }
}

impl Reference for ConfigReference {
    const KIND: ObjectKind = ObjectKind::Config;
    const FIELD: &'static str = "TaskTemplate.ContainerSpec.Configs";
    const BASE: &'static str = CONFIGS;

    fn parts(&mut self) -> (&mut String, &mut String, &mut Option<FileTarget>) {
        (&mut self.config_id, &mut self.config_name, &mut self.file)
    }

    fn find(state: &State, reference: &str) -> Option<(String, String)> {
        let config = state.find_config(reference).ok()?;
        let annotations = config.spec.as_ref().and_then(|s| s.annotations.as_ref());
        Some((config.id.clone(), annotations.map(|a| a.name.clone()).unwrap_or_default()))
    }
}

/// What is referred to has to exist, and to have a place.
fn resolve<R: Reference>(state: &State, reference: &mut R, taken: &mut Taken) -> Result<(), Error> {
    let (id, name, file) = reference.parts();
    let wanted = if id.is_empty() { &*name } else { &*id };
    let missing = || Error::NotFound { field: R::FIELD.into(), what: described(R::KIND, wanted) };
    let (found_id, found_name) = R::find(state, wanted).ok_or_else(missing)?;
    let file = file.get_or_insert_default();
    if file.name.is_empty() {
        file.name.clone_from(&found_name);
    }
    check_target(R::FIELD, file)?;
    taken.take(R::FIELD, &file.name, R::BASE)?;
    (*id, *name) = (found_id, found_name);
    Ok(())
}

fn check_target(field: &'static str, file: &FileTarget) -> Result<(), Error> {
    if file.name.split('/').any(|part| part == "..") {
        return Err(invalid(format!("{field}.File.Name"), format!("target `{}` may not contain `..`", file.name)));
    }
    if file.name.trim_matches('/').is_empty() || file.name.ends_with('/') {
        return Err(invalid(format!("{field}.File.Name"), format!("target `{}` names no file", file.name)));
    }
    for (part, id) in [("UID", &file.uid), ("GID", &file.gid)] {
        if !id.is_empty() && id.parse::<i32>().map_or(true, |number| number < 0) {
            let why = format!("`{id}` is no numeric id: use 0 to {}", i32::MAX);
            return Err(invalid(format!("{field}.File.{part}"), why));
        }
    }
    if file.mode > MODE {
        let why = format!("{:o} (octal) are no permission bits of a file: use 0 to 777", file.mode);
        return Err(invalid(format!("{field}.File.Mode"), why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, expected) in
            [("/", "/"), ("/a//b/", "/a/b"), ("/a/./b/../c", "/a/c"), ("/../../x", "/x"), ("/a/..", "/")]
        {
            assert_eq!(normalise(path), expected);
        }
    }

    #[test]
    fn places() {
        let mut taken = Taken::default();
        assert_eq!(taken.take(MOUNTS, "/a/b", "/"), Ok(()));
        assert_eq!(taken.take("s", "x", SECRETS), Ok(()));
        assert_eq!(taken.take("c", "x", CONFIGS), Ok(()));
        for (field, target, base) in [
            (MOUNTS, "/a/./b", "/"),
            (MOUNTS, "relative", "/"),
            (MOUNTS, "/run/secrets/x", "/"),
            ("c", "/run/secrets/x", CONFIGS),
            ("c", "x", "/"),
            (MOUNTS, "/", "/"),
            (MOUNTS, "/proc/1", "/"),
            (MOUNTS, "/x/../dev", "/"),
            ("c", "sys", CONFIGS),
            (MOUNTS, "/a\0", "/"),
        ] {
            assert!(taken.take(field, target, base).is_err(), "{target:?}");
        }
        assert_eq!(taken.take(MOUNTS, "/dev/shm/x", "/"), Ok(()));
    }

    #[test]
    fn targets() {
        let target = |name: &str, uid: &str, mode| {
            let file = FileTarget { name: name.into(), uid: uid.into(), gid: String::new(), mode };
            check_target("x", &file)
        };
        for (name, uid, mode) in [("a", "", 0), ("a..b", "0", 0o444), ("/etc/x", "1000", 0o777)] {
            assert_eq!(target(name, uid, mode), Ok(()), "{name}");
        }
        for (name, uid, mode) in [
            ("../a", "", 0),
            ("a/../b", "", 0),
            ("/", "", 0),
            ("a/", "", 0),
            ("a", "root", 0),
            ("a", "-1", 0),
            ("a", "", 0o1000),
        ] {
            assert!(target(name, uid, mode).is_err(), "{name} {uid} {mode:o}");
        }
    }
}
