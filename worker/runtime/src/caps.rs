//! Capabilities: the known names, the known default set, and what a wish of more or fewer makes of it.
//!
//! Decides the set of a container; pure. Called by the check of a wish and by the OCI spec.

/// All names, in the kernel's order (capabilities(7)).
pub(crate) const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container has when nothing is said.
pub(crate) const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Why there is no such set.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No capability of this name.
    #[error("capability {0:?} is unknown; see capabilities(7) for the names")]
    Unknown(String),
}

/// The set that results, in the kernel's order. `ALL` as a word stands for every one; a name in `add` wins over
/// `drop`, and one in `drop` over `add`'s `ALL`.
pub(crate) fn resolve(add: &[String], drop: &[String]) -> Result<Vec<&'static str>, Error> {
    let (add_all, add) = names(add)?;
    let (drop_all, drop) = names(drop)?;
    let has = |cap: &&'static str| {
        let otherwise = if drop_all { add_all } else { add_all || DEFAULT.contains(cap) };
        add.contains(cap) || (otherwise && !drop.contains(cap))
    };
    Ok(ALL.into_iter().filter(has).collect())
}

/// The set that a container really gets: of what is wished, what is within `bounding` (a bit mask of what this machine
/// has to give; asking for more fails), and without the making of device nodes where nothing filters their use.
pub(crate) fn effective(wished: Vec<&'static str>, bounding: u64, devices_filtered: bool) -> Vec<&'static str> {
    let given = |cap: &&'static str| {
        let number = ALL.iter().position(|known| known == cap);
        number.is_some_and(|number| bounding >> number & 1 == 1) && (devices_filtered || *cap != "CAP_MKNOD")
    };
    wished.into_iter().filter(given).collect()
}

fn names(list: &[String]) -> Result<(bool, Vec<&'static str>), Error> {
    let mut all = false;
    let mut out = Vec::new();
    for name in list {
        let upper = name.trim().to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if short == "ALL" {
            all = true;
            continue;
        }
        let known = ALL.into_iter().find(|known| known.strip_prefix("CAP_") == Some(short));
        out.push(known.ok_or_else(|| Error::Unknown(name.clone()))?);
    }
    Ok((all, out))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        resolve(&own(add), &own(drop)).unwrap()
    }

    #[test]
    fn sets() {
        assert_eq!(set(&[], &[]).len(), 14);
        assert_eq!(set(&["ALL"], &[]).len(), 41);
        assert!(set(&[], &["all"]).is_empty());
        assert_eq!(set(&["net_admin", "CAP_kill"], &["ALL"]), ["CAP_KILL", "CAP_NET_ADMIN"]);
        assert_eq!(set(&["ALL"], &["CAP_SYS_ADMIN"]).len(), 40);
        assert!(!set(&[], &["MKNOD"]).contains(&"CAP_MKNOD"));
        assert_eq!(effective(ALL.to_vec(), 0b11, true), ["CAP_CHOWN", "CAP_DAC_OVERRIDE"]);
        assert_eq!(effective(DEFAULT.to_vec(), u64::MAX, true).len(), 14);
        assert!(!effective(DEFAULT.to_vec(), u64::MAX, false).contains(&"CAP_MKNOD"));
        assert!(resolve(&["CAP_CAP_KILL".into()], &[]).is_err());
        assert!(resolve(&[String::new()], &[]).is_err());
    }
}
