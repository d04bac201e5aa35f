//! What a container is asked to be: its program, whom it runs as, what it may do.

use std::collections::BTreeSet;

use skep_proto::template;
use skep_proto::v1::{ContainerSpec, HealthConfig};
use skep_state::State;

use super::{DURATION, Error, check_label_names, files, host, invalid, words};

/// Longest argument or variable that the kernel hands to a program, its end included.
const ARGUMENT: usize = 128 << 10;
/// Longest name of a user or group, number or not.
const ACCOUNT: usize = 256;

const FIELD: &str = "TaskTemplate.ContainerSpec";

fn field(name: &str) -> String {
    format!("{FIELD}.{name}")
}

/// Checks the container and turns names of secrets and configs into ids.
pub(super) fn check(state: &State, container: &mut ContainerSpec) -> Result<(), Error> {
    let image = container.image.trim();
    if image.is_empty() || image.contains(char::is_whitespace) {
        return Err(invalid(field("Image"), "an image reference is needed, without spaces in it"));
    }
    check_label_names(&field("Labels"), &container.labels)?;
    check_program(container)?;
    check_env(&container.env)?;
    check_accounts(container)?;
    check_stop(container)?;
    check_rights(container)?;
    check_kernel(container)?;
    if let Some(health) = &container.healthcheck {
        check_health(health)?;
    }
    host::check(container)?;
    files::check(state, container)
}

fn check_program(container: &ContainerSpec) -> Result<(), Error> {
    for (name, list) in [("Command", &container.command), ("Args", &container.args)] {
        if let Some(text) = list.iter().find(|text| text.contains('\0') || text.len() >= ARGUMENT) {
            let shown: String = text.chars().take(40).collect();
            let why = format!("`{shown}` can't be an argument: it has a NUL in it or more than {ARGUMENT} bytes");
            return Err(invalid(field(name), why));
        }
    }
    // Only the spec's own first word: without one the image has it.
    if container.command.first().is_some_and(String::is_empty) {
        return Err(invalid(field("Command"), "the program to be run has an empty name"));
    }
    let dir = container.dir.as_str();
    if dir.is_empty() {
        return Ok(());
    }
    if !dir.starts_with('/') || dir.contains('\0') {
        return Err(invalid(field("Dir"), format!("`{dir}` is no absolute path")));
    }
    let place = files::normalise(dir);
    if ["/proc", "/sys"].iter().any(|own| place == *own || place.starts_with(&format!("{own}/"))) {
        return Err(invalid(field("Dir"), format!("`{dir}` lies in /proc or /sys, where no program can start")));
    }
    Ok(())
}

fn check_env(env: &[String]) -> Result<(), Error> {
    for entry in env {
        let shown: String = entry.chars().take(80).collect();
        if entry.starts_with('=') || entry.is_empty() {
            return Err(invalid(field("Env"), format!("`{shown}` has no name: write NAME=VALUE")));
        }
        if entry.contains('\0') || entry.len() >= ARGUMENT {
            let why = format!("`{}` can't be a variable: it has a NUL in it or more than {ARGUMENT} bytes", shown);
            return Err(invalid(field("Env"), why.replace('\0', "\\0")));
        }
        template::parse(entry).map_err(|e| invalid(field("Env"), format!("`{shown}`: {e}")))?;
    }
    Ok(())
}

/// `name|uid[:group|gid]`; who that is, the image says.
fn check_accounts(container: &ContainerSpec) -> Result<(), Error> {
    let account = |text: &str| {
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, ':' | '/');
        let number = text.bytes().all(|b| b.is_ascii_digit());
        text.len() <= ACCOUNT && text.chars().all(plain) && (text.is_empty() || !number || text.parse::<i32>().is_ok())
    };
    let user = container.user.as_str();
    let right = match user.split_once(':') {
        Some((user, group)) => account(user) && account(group) && !group.is_empty(),
        None => account(user),
    };
    if !right {
        return Err(invalid(
            field("User"),
            format!("`{user}` is no user: write NAME or UID, and :GROUP or :GID behind"),
        ));
    }
    match container.groups.iter().find(|group| group.is_empty() || !account(group)) {
        Some(group) => Err(invalid(field("Groups"), format!("`{group}` is no group: write its name or number"))),
        None => Ok(()),
    }
}

fn check_stop(container: &ContainerSpec) -> Result<(), Error> {
    if !container.stop_signal.is_empty() && !words::is_signal(&container.stop_signal) {
        let why = format!(
            "`{}` is no signal: use a name such as SIGTERM or SIGRTMIN+3, or a number from 1 to 64",
            container.stop_signal
        );
        return Err(invalid(field("StopSignal"), why));
    }
    match container.stop_grace_period_ns {
        Some(grace) if !(0..=DURATION).contains(&grace) => {
            Err(invalid(field("StopGracePeriod"), "it lies between 0 and a year"))
        }
        _ => Ok(()),
    }
}

fn check_rights(container: &ContainerSpec) -> Result<(), Error> {
    for (name, list) in [("CapabilityAdd", &container.capability_add), ("CapabilityDrop", &container.capability_drop)] {
        if let Some(unknown) = list.iter().find(|c| !words::is_capability(c)) {
            let why = format!("`{unknown}` is no capability: use a name such as CAP_NET_ADMIN, or ALL");
            return Err(invalid(field(name), why));
        }
    }
    if container.privileges.as_ref().is_some_and(|p| p.no_new_privileges) {
        let why = "it is not supported yet, and a service that relies on it must not run without: leave it out";
        return Err(invalid(field("Privileges.NoNewPrivileges"), why));
    }
    Ok(())
}

fn check_kernel(container: &ContainerSpec) -> Result<(), Error> {
    for (name, value) in &container.sysctls {
        if !words::is_own_sysctl(name) {
            let why = "a container has net.*, fs.mqueue.* and kernel.msg*, sem and shm* for itself, and nothing else";
            return Err(invalid(field("Sysctls"), format!("`{name}` can't be set: {why}")));
        }
        if value.is_empty() || value.contains(['\0', '\n']) {
            return Err(invalid(field("Sysctls"), format!("`{name}` needs a value of one line")));
        }
    }
    let mut seen = BTreeSet::new();
    for limit in &container.ulimits {
        let name = limit.name.to_ascii_lowercase();
        if !words::is_limit(&name) {
            let why = format!("`{}` is no limit: use a name such as nofile or nproc", limit.name);
            return Err(invalid(field("Ulimits"), why));
        }
        if limit.soft < -1 || limit.hard < -1 {
            return Err(invalid(field("Ulimits"), format!("{name}: the smallest is -1, which means no limit")));
        }
        // Without limit is more than any number.
        let order = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        if order(limit.soft) > order(limit.hard) {
            let why = format!("{name}: the soft limit ({}) is above the hard one ({})", limit.soft, limit.hard);
            return Err(invalid(field("Ulimits"), why));
        }
        if !seen.insert(name.strip_prefix("rlimit_").unwrap_or(&name).to_owned()) {
            return Err(invalid(field("Ulimits"), format!("{name} is given twice")));
        }
    }
    if !(-1000..=1000).contains(&container.oom_score_adj) {
        return Err(invalid(field("OomScoreAdj"), "it lies between -1000 and 1000"));
    }
    Ok(())
}

fn check_health(health: &HealthConfig) -> Result<(), Error> {
    let durations = [health.interval_ns, health.timeout_ns, health.start_period_ns, health.start_interval_ns];
    if durations.iter().any(|d| !(0..=DURATION).contains(d)) || health.retries < 0 {
        let why = "durations lie between 0 and a year, and retries can't be negative";
        return Err(invalid(field("Healthcheck"), why));
    }
    match health.test.first().map(String::as_str) {
        None | Some("") => Ok(()),
        Some("NONE") if health.test.len() == 1 => Ok(()),
        Some("CMD" | "CMD-SHELL") if health.test.len() > 1 => Ok(()),
        Some(_) => {
            let why = "begin with CMD or CMD-SHELL and name a command behind it, or give NONE alone";
            Err(invalid(field("Healthcheck.Test"), why))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]
    use super::*;
    use skep_proto::v1::{Privileges, Ulimit};

    fn judged(change: impl FnOnce(&mut ContainerSpec)) -> Result<(), String> {
        let mut container = ContainerSpec { image: "image".into(), ..ContainerSpec::default() };
        change(&mut container);
        check(&State::default(), &mut container).map_err(|e| e.to_string())
    }

    fn own(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn what_every_node_can_run() {
        type Change = fn(&mut ContainerSpec);
        let fine: &[Change] = &[
            |_| {},
            |c| c.env = own(&["A", "A=", "A=b=c", "H={{.Node.Hostname}}", "B={{\"{{\"}}"]),
            |c| c.args = own(&["", "-c"]),
            |c| c.dir = "/proc-like".into(),
            |c| c.user = "www-data:1000".into(),
            |c| c.groups = own(&["audio", "5"]),
            |c| c.stop_signal = "SIGRTMIN+3".into(),
            |c| c.stop_grace_period_ns = Some(0),
            |c| c.capability_add = own(&["ALL"]),
            |c| c.sysctls = [("net.core.somaxconn".to_owned(), "1024".to_owned())].into(),
            |c| c.ulimits = vec![Ulimit { name: "nofile".into(), soft: 1024, hard: -1 }],
            |c| c.healthcheck = Some(HealthConfig { test: own(&["NONE"]), ..HealthConfig::default() }),
            |c| c.healthcheck = Some(HealthConfig { test: own(&["CMD", "true"]), ..HealthConfig::default() }),
            |c| c.privileges = Some(Privileges { seccomp_unconfined: true, ..Privileges::default() }),
        ];
        for (number, change) in fine.iter().enumerate() {
            assert_eq!(judged(change), Ok(()), "number {number}");
        }
    }

    #[test]
    fn what_no_node_can_run_is_named() {
        type Change = fn(&mut ContainerSpec);
        let table: &[(&str, Change)] = &[
            ("Image: ", |c| c.image = "a b".into()),
            ("Labels: ", |c| c.labels = [(String::new(), "x".to_owned())].into()),
            ("Args: ", |c| c.args = own(&["a\0b"])),
            ("Args: ", |c| c.args = vec!["x".repeat(ARGUMENT)]),
            ("Command: ", |c| c.command = own(&["", "x"])),
            ("Dir: ", |c| c.dir = "work".into()),
            ("Dir: ", |c| c.dir = "/a/../proc/self/fd/7".into()),
            ("Dir: ", |c| c.dir = "/sys".into()),
            ("Env: ", |c| c.env = own(&["=x"])),
            ("Env: ", |c| c.env = own(&[""])),
            ("Env: ", |c| c.env = own(&["A=\0"])),
            ("Env: ", |c| c.env = own(&["A={{.Nope}}"])),
            ("Env: ", |c| c.env = own(&["A={{"])),
            ("User: ", |c| c.user = "a b".into()),
            ("User: ", |c| c.user = "a:".into()),
            ("User: ", |c| c.user = "a:b:c".into()),
            ("User: ", |c| c.user = "4294967295".into()),
            ("Groups: ", |c| c.groups = own(&[""])),
            ("Groups: ", |c| c.groups = own(&["a:b"])),
            ("StopSignal: ", |c| c.stop_signal = "SIGNOPE".into()),
            ("StopGracePeriod: ", |c| c.stop_grace_period_ns = Some(-1)),
            ("StopGracePeriod: ", |c| c.stop_grace_period_ns = Some(i64::MAX)),
            ("CapabilityAdd: ", |c| c.capability_add = own(&["FLY"])),
            ("CapabilityDrop: ", |c| c.capability_drop = own(&[""])),
            ("NoNewPrivileges: ", |c| {
                c.privileges = Some(Privileges { no_new_privileges: true, ..Privileges::default() });
            }),
            ("Sysctls: ", |c| c.sysctls = [("kernel.core_pattern".to_owned(), "|x".to_owned())].into()),
            ("Sysctls: ", |c| c.sysctls = [("net.x".to_owned(), String::new())].into()),
            ("Ulimits: ", |c| c.ulimits = vec![Ulimit { name: "speed".into(), soft: 1, hard: 1 }]),
            ("Ulimits: ", |c| c.ulimits = vec![Ulimit { name: "nofile".into(), soft: -1, hard: 1 }]),
            ("Ulimits: ", |c| c.ulimits = vec![Ulimit { name: "nofile".into(), soft: -2, hard: 1 }]),
            ("Ulimits: ", |c| {
                let limit = |name: &str| Ulimit { name: name.into(), soft: 1, hard: 1 };
                c.ulimits = vec![limit("nofile"), limit("RLIMIT_NOFILE")];
            }),
            ("OomScoreAdj: ", |c| c.oom_score_adj = 1001),
            ("Healthcheck: ", |c| c.healthcheck = Some(HealthConfig { interval_ns: -1, ..HealthConfig::default() })),
            ("Healthcheck.Test: ", |c| {
                c.healthcheck = Some(HealthConfig { test: own(&["curl"]), ..HealthConfig::default() });
            }),
            ("Healthcheck.Test: ", |c| {
                c.healthcheck = Some(HealthConfig { test: own(&["CMD"]), ..HealthConfig::default() });
            }),
            ("Hostname: ", |c| c.hostname = "a b".into()),
        ];
        for (number, (name, change)) in table.iter().enumerate() {
            let expected = format!("{FIELD}.{}", name.trim_start_matches("NoNewPrivileges"));
            let expected = if name.starts_with("NoNew") { format!("{FIELD}.Privileges.{name}") } else { expected };
            let error = judged(change).expect_err(&format!("number {number} ({name}) was accepted"));
            assert!(error.starts_with(&expected), "number {number}: {error:?} does not name {expected:?}");
        }
    }
}
