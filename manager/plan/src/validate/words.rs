//! Words that mean something to the kernel or to the C library: signals, capabilities, limits per process, kernel
//! parameters. Facts in tables; the worker's runtime has the same ones, and a test of the daemon compares the two.

/// Signals by the name that they have without `SIG` (signal(7), and what Linux adds on x86 and ARM).
const SIGNALS: [&str; 32] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
    "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH",
    "IO", "PWR", "SYS",
];
/// The real-time signals that programs can use, and so the largest number of a signal: the C library keeps 32 and 33.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// capabilities(7), without `CAP_`.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// getrlimit(2), without `RLIMIT_`.
const LIMITS: [&str; 16] = [
    "AS",
    "CORE",
    "CPU",
    "DATA",
    "FSIZE",
    "LOCKS",
    "MEMLOCK",
    "MSGQUEUE",
    "NICE",
    "NOFILE",
    "NPROC",
    "RSS",
    "RTPRIO",
    "RTTIME",
    "SIGPENDING",
    "STACK",
];

/// Kernel parameters that each IPC namespace has of its own.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Whether it names a signal: `SIGTERM`, `term`, `15`, `SIGRTMIN+3`.
pub(super) fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=*REAL_TIME.end()).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let (base, offset) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(offset), _) => (*REAL_TIME.start(), offset),
        (None, Some(offset)) => (*REAL_TIME.end(), offset),
        (None, None) => return SIGNALS.contains(&name),
    };
    let offset = if offset.is_empty() { Ok(0) } else { offset.parse::<i32>() };
    offset.ok().and_then(|offset| base.checked_add(offset)).is_some_and(|number| REAL_TIME.contains(&number))
}

/// Whether it names a capability, or all: `NET_ADMIN`, `CAP_NET_ADMIN`, `ALL`.
pub(super) fn is_capability(text: &str) -> bool {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    name == "ALL" || CAPABILITIES.contains(&name)
}

/// Whether it names a limit: `nofile`, `RLIMIT_NOFILE`.
pub(super) fn is_limit(text: &str) -> bool {
    let upper = text.to_ascii_uppercase();
    LIMITS.contains(&upper.strip_prefix("RLIMIT_").unwrap_or(&upper))
}

/// Whether a container has that kernel parameter for itself.
pub(super) fn is_own_sysctl(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) && !name.contains("..");
    plain && (IPC.contains(&name) || name.starts_with("fs.mqueue.") || name.starts_with("net."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, known) in [
            ("SIGTERM", true),
            ("TERM", true),
            ("sigterm", true),
            ("15", true),
            ("64", true),
            ("SIGRTMIN", true),
            ("SIGRTMIN+3", true),
            ("RTMAX-14", true),
            ("SIGNOPE", false),
            ("SIG", false),
            ("", false),
            ("0", false),
            ("65", false),
            ("-9", false),
            ("RTMIN-1", false),
            ("RTMAX+1", false),
            ("RTMIN+99999999999", false),
            ("SIGSIGTERM", false),
            ("SIGTERM ", false),
        ] {
            assert_eq!(is_signal(text), known, "{text:?}");
        }
    }

    #[test]
    fn capabilities_limits_and_parameters() {
        for (text, known) in
            [("NET_ADMIN", true), ("cap_net_admin", true), ("all", true), ("CAP_CAP_KILL", false), ("FLY", false)]
        {
            assert_eq!(is_capability(text), known, "{text}");
        }
        for (text, known) in [("nofile", true), ("RLIMIT_CORE", true), ("speed", false), ("", false)] {
            assert_eq!(is_limit(text), known, "{text}");
        }
        for (text, known) in [
            ("net.ipv4.tcp_keepalive_time", true),
            ("fs.mqueue.msg_max", true),
            ("kernel.shmmax", true),
            ("kernel.core_pattern", false),
            ("vm.swappiness", false),
            ("net./../kernel/x", false),
            ("net..x", false),
        ] {
            assert_eq!(is_own_sysctl(text), known, "{text}");
        }
    }
}
