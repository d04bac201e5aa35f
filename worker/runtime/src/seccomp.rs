//! The default seccomp profile: which system calls a container may make.
//!
//! A table of facts: the default that container users know from elsewhere (an allow list; what isn't on it fails with
//! EPERM), written as data. Decides the filter from the capabilities and compiles it; loads nothing. Called by the
//! client, once per set of capabilities: adding the rules takes the library some ten milliseconds of processor time, far
//! too much for every container, and a container and what is exec'd in it get the very same program.

use std::io::{Read, Seek, SeekFrom};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::fs::{MemfdFlags, memfd_create};

/// Allowed whatever the capabilities.
#[rustfmt::skip]
const ALWAYS: &[&str] = &[
    "accept", "accept4", "access", "adjtimex", "alarm", "bind", "brk", "cachestat", "capget", "capset", "chdir",
    "chmod", "chown", "chown32", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64",
    "clock_gettime", "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "close", "close_range",
    "connect", "copy_file_range", "creat", "dup", "dup2", "dup3", "epoll_create", "epoll_create1", "epoll_ctl",
    "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "execve",
    "execveat", "exit", "exit_group", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate",
    "fanotify_mark", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl",
    "fcntl64", "fdatasync", "fgetxattr", "flistxattr", "flock", "fork", "fremovexattr", "fsetxattr", "fstat",
    "fstat64", "fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futex", "futex_requeue",
    "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "futimesat", "getcpu", "getcwd", "getdents",
    "getdents64", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32",
    "getitimer", "getpeername", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getrandom", "getresgid",
    "getresgid32", "getresuid", "getresuid32", "getrlimit", "get_robust_list", "getrusage", "getsid", "getsockname",
    "getsockopt", "get_thread_area", "gettid", "gettimeofday", "getuid", "getuid32", "getxattr", "getxattrat",
    "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "ioctl", "io_destroy",
    "io_getevents", "io_pgetevents", "io_pgetevents_time64", "ioprio_get", "ioprio_set", "io_setup", "io_submit",
    "ipc", "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lchown", "lchown32",
    "lgetxattr", "link", "linkat", "listen", "listmount", "listxattr", "listxattrat", "llistxattr", "_llseek",
    "lremovexattr", "lseek", "lsetxattr", "lstat", "lstat64", "madvise", "map_shadow_stack", "membarrier",
    "memfd_create", "memfd_secret", "mincore", "mkdir", "mkdirat", "mknod", "mknodat", "mlock", "mlock2",
    "mlockall", "mmap", "mmap2", "mprotect", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive",
    "mq_timedreceive_time64", "mq_timedsend", "mq_timedsend_time64", "mq_unlink", "mremap", "mseal", "msgctl",
    "msgget", "msgrcv", "msgsnd", "msync", "munlock", "munlockall", "munmap", "name_to_handle_at", "nanosleep",
    "newfstatat", "_newselect", "open", "openat", "openat2", "pause", "pidfd_open", "pidfd_send_signal", "pipe",
    "pipe2", "pkey_alloc", "pkey_free", "pkey_mprotect", "poll", "ppoll", "ppoll_time64", "prctl", "pread64",
    "preadv", "preadv2", "prlimit64", "process_mrelease", "pselect6", "pselect6_time64", "ptrace", "pwrite64",
    "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "recv", "recvfrom", "recvmmsg",
    "recvmmsg_time64", "recvmsg", "remap_file_pages", "removexattr", "removexattrat", "rename", "renameat",
    "renameat2", "restart_syscall", "rmdir", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
    "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64",
    "rt_tgsigqueueinfo", "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_get_priority_max",
    "sched_get_priority_min", "sched_getscheduler", "sched_rr_get_interval", "sched_rr_get_interval_time64",
    "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp",
    "select", "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "send", "sendfile", "sendfile64",
    "sendmmsg", "sendmsg", "sendto", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32",
    "setgroups", "setgroups32", "setitimer", "setpgid", "setpriority", "setregid", "setregid32", "setresgid",
    "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32", "setrlimit", "set_robust_list", "setsid",
    "setsockopt", "set_thread_area", "set_tid_address", "setuid", "setuid32", "setxattr", "setxattrat", "shmat",
    "shmctl", "shmdt", "shmget", "shutdown", "sigaltstack", "signalfd", "signalfd4", "sigprocmask", "sigreturn",
    "socketcall", "socketpair", "splice", "stat", "stat64", "statfs", "statfs64", "statmount", "statx", "symlink",
    "symlinkat", "sync", "sync_file_range", "syncfs", "sysinfo", "tee", "tgkill", "time", "timer_create",
    "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime", "timer_settime64",
    "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64", "times",
    "tkill", "truncate", "truncate64", "ugetrlimit", "umask", "uname", "unlink", "unlinkat", "uretprobe", "utime",
    "utimensat", "utimensat_time64", "utimes", "vfork", "vmsplice", "wait4", "waitid", "waitpid", "write", "writev",
];

/// Allowed on one architecture only.
#[cfg(target_arch = "x86_64")]
const ARCH: &[&str] = &["arch_prctl", "modify_ldt"];
#[cfg(target_arch = "aarch64")]
const ARCH: &[&str] =
    &["arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "breakpoint", "cacheflush", "set_tls"];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCH: &[&str] = &["sync_file_range2"];

/// The names of the machine's own instruction sets: the 32-bit ones of the same processor too, since old programs use
/// them and they are filtered alike.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[ScmpArch] = &[ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: &[ScmpArch] = &[ScmpArch::Aarch64, ScmpArch::Arm];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURES: &[ScmpArch] = &[ScmpArch::Native];

/// Allowed with a capability.
const WITH: &[(&str, &[&str])] = &[
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
    (
        "CAP_SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("CAP_SYS_BOOT", &["reboot"]),
    ("CAP_SYS_CHROOT", &["chroot"]),
    ("CAP_SYS_MODULE", &["delete_module", "init_module", "finit_module"]),
    ("CAP_SYS_PACCT", &["acct"]),
    ("CAP_SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev"]),
    ("CAP_SYS_RAWIO", &["iopl", "ioperm"]),
    ("CAP_SYS_TIME", &["settimeofday", "stime", "clock_settime", "clock_settime64"]),
    ("CAP_SYS_TTY_CONFIG", &["vhangup"]),
    ("CAP_SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("CAP_SYSLOG", &["syslog"]),
    ("CAP_BPF", &["bpf"]),
    ("CAP_PERFMON", &["perf_event_open"]),
];

/// Values of personality(2) that don't weaken the process: none, and the two that only change what uname says.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Flags of clone(2) that make a namespace: user, mount, pid, network, IPC, UTS and cgroup.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// Sockets to the hypervisor reach outside of every namespace.
const AF_VSOCK: u64 = 40;

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The library.
    #[error("seccomp filter: {0}")]
    Library(#[from] libseccomp::error::SeccompError),
    /// The memory file that the program is exported to.
    #[error("seccomp filter: {0}")]
    Io(#[from] std::io::Error),
}

/// A system call and when it is not simply refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    name: &'static str,
    action: ScmpAction,
    /// On its first argument.
    condition: Option<(ScmpCompareOp, u64)>,
}

/// The rules for a container with these capabilities; what they don't name fails with EPERM.
fn rules(caps: &[&str]) -> Vec<Rule> {
    let allow = |name: &&'static str| Rule { name, action: ScmpAction::Allow, condition: None };
    let allow_if = |name, op, value| Rule { name, action: ScmpAction::Allow, condition: Some((op, value)) };
    let mut rules: Vec<Rule> = ALWAYS.iter().chain(ARCH).map(allow).collect();
    for (cap, names) in WITH {
        if caps.contains(cap) {
            rules.extend(names.iter().map(allow));
        }
    }
    rules.extend(PERSONALITIES.map(|value| allow_if("personality", ScmpCompareOp::Equal, value)));
    rules.push(allow_if("socket", ScmpCompareOp::NotEqual, AF_VSOCK));
    if !caps.contains(&"CAP_SYS_ADMIN") {
        rules.push(allow_if("clone", ScmpCompareOp::MaskedEqual(CLONE_NAMESPACES), 0));
        // Its flags are behind a pointer, where no filter sees them: libraries fall back to clone(2) on ENOSYS only.
        rules.push(Rule { name: "clone3", action: ScmpAction::Errno(libc::ENOSYS), condition: None });
    }
    rules
}

/// The filter as a program for the kernel, one instruction (`sock_filter`) a number.
pub(crate) fn compile(caps: &[&str]) -> Result<Vec<u64>, Error> {
    let mut context = ScmpFilterContext::new(ScmpAction::Errno(libc::EPERM))?;
    for arch in ARCHITECTURES {
        context.add_arch(*arch)?;
    }
    // A binary tree: every system call of the container goes through it.
    context.set_ctl_optimize(2)?;
    for rule in rules(caps) {
        // The library knows fewer calls than the newest kernel; what it can't name stays refused.
        let Ok(call) = ScmpSyscall::from_name(rule.name) else { continue };
        match rule.condition {
            None => context.add_rule(rule.action, call)?,
            Some((op, value)) => {
                context.add_rule_conditional(rule.action, call, &[ScmpArgCompare::new(0, op, value)])?
            }
        };
    }
    let mut file =
        std::fs::File::from(memfd_create("skep-seccomp", MemfdFlags::CLOEXEC).map_err(std::io::Error::from)?);
    context.export_bpf(&file)?;
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let (instructions, _) = bytes.as_chunks::<8>();
    Ok(instructions.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::caps;

    fn allows(rules: &[Rule], name: &str) -> bool {
        rules.iter().any(|rule| rule.name == name && rule.action == ScmpAction::Allow && rule.condition.is_none())
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let default = rules(&caps::DEFAULT);
        for name in [
            "unshare",
            "mount",
            "setns",
            "keyctl",
            "add_key",
            "request_key",
            "bpf",
            "kexec_load",
            "init_module",
            "reboot",
            "swapon",
            "userfaultfd",
            "io_uring_setup",
            "open_by_handle_at",
            "clone",
            "clone3",
            "socket",
            "perf_event_open",
        ] {
            assert!(!allows(&default, name), "{name} is allowed");
        }
        for name in ["read", "fork", "execve", "chroot", "mknod", "ptrace"] {
            assert!(allows(&default, name), "{name} is not allowed");
        }
        let admin = rules(&caps::ALL);
        for name in ["unshare", "mount", "clone3", "bpf", "reboot"] {
            assert!(allows(&admin, name), "{name} is not allowed with every capability");
        }
        for name in ["keyctl", "kexec_load", "swapon", "userfaultfd"] {
            assert!(!allows(&admin, name), "{name} is allowed");
        }
    }

    #[test]
    fn it_compiles_for_every_set() {
        for caps in [&caps::DEFAULT[..], &caps::ALL[..], &[]] {
            let program = compile(caps).unwrap();
            assert!((300..=4096).contains(&program.len()), "{} instructions", program.len());
        }
    }
}
