//! The same containers on kernels that divide their control groups in other ways than this one does.
//!
//! A virtual machine, emulated in software, boots Debian's kernel with nothing but this test binary and its libraries in
//! memory, mounts version 2 alone or both versions side by side, and runs the tests of this binary: every assertion
//! about limits holds there too, or this test fails. `make setup-test` fetches what is needed; without it the tests say
//! UNTESTED.

mod initramfs;
mod machine;

use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

use crate::fixture::BINARY;
use initramfs::Tree;
use machine::{Kernel, Machine};

/// One machine at a time: each takes a processor and a gigabyte.
static TURN: Mutex<()> = Mutex::new(());

/// Version 2 alone, as on every current distribution.
const UNIFIED: &str = "mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup";

/// Version 1 with all its controllers, some of them joint, and an empty version 2 beside them, as systemd mounted it for
/// years.
const HYBRID: &str = "
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    for set in cpu,cpuacct cpuset memory pids devices freezer blkio net_cls,net_prio perf_event; do
        mkdir /sys/fs/cgroup/$set
        mount -t cgroup -o $set cgroup /sys/fs/cgroup/$set || lacks=\"$lacks $set\"
    done
    ln -s cpu,cpuacct /sys/fs/cgroup/cpu
    ln -s cpu,cpuacct /sys/fs/cgroup/cpuacct
    mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup/unified";

/// Shortly before the tests' time is over: who waits for what, the memory, the groups, the processors. A machine that is
/// too far gone to tell this is asked from outside.
const WATCH: &str = "
(
    sleep 185
    echo 'machine: the time is nearly over'
    cat /proc/loadavg /proc/meminfo
    ps -o pid,ppid,stat,time,args
    for task in /proc/[0-9]*; do echo $task $(cat $task/comm); cat $task/stack; done
    find /sys/fs/cgroup -path '*skep-rt-*' -type f | grep -E '(procs|events|state|stat)$' | while read file; do
        echo $file: $(cat $file)
    done
    dmesg -n 8
    for key in l m w q; do echo $key > /proc/sysrq-trigger; done
) &
";

/// What must have been run, and passed, for the machine to have proven anything.
const PROOF: &[&str] = &[
    "limits::out_of_memory_is_flagged_apart_from_the_code",
    "limits::processes_are_counted",
    "limits::processor_time_is_limited_and_measured",
    "limits::what_is_written_is_what_was_wished",
    "exec::it_is_inside_with_the_same_restrictions",
    "exec::a_paused_container_hangs_nobody",
    "isolation::kernel_file_systems",
    "lifecycle::a_whole_life",
    "lifecycle::removing_a_running_one",
    "crash::a_killed_supervisor_takes_its_container_along",
];

/// What control groups and the kernel's file systems have a part in, and an emulated processor can do in time.
const SOME: &str = "limits:: exec:: isolation:: crash:: lifecycle::a_ lifecycle::removing lifecycle::signals \
    kernel_paths::links_of_a_volume kernel_paths::links_of_the_image_below kernel_paths::side --skip vm::";

#[test]
fn version_2_alone() -> Result<()> {
    run("cgroup v2", UNIFIED, "cgroup_no_v1=all", SOME)
}

#[test]
fn both_versions() -> Result<()> {
    // What doesn't depend on control groups has been tried in the other machine.
    let proof = format!("--exact {}", PROOF.join(" "));
    run("cgroup v1 with joint controllers beside v2", HYBRID, "", &proof)
}

/// Boots, runs the tests that the filter names, and judges.
fn run(what: &str, layout: &str, kernel_words: &str, filter: &str) -> Result<()> {
    let Some(kernel) = Kernel::find(what)? else { return Ok(()) };
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut tree = Tree::with_busybox()?;
    let this = std::env::current_exe()?;
    tree.program(&this)?;
    tree.program(BINARY.as_ref())?;
    tree.modules(&kernel)?;
    tree.inside(&format!(
        "mkdir -p /sys/fs/cgroup\n{layout}\n{WATCH}\
         if [ \"$lacks\" ]; then echo \"machine: lacks$lacks\"; else\n\
         timeout 200 {} --test-threads 4 --show-output {filter}\n\
         echo \"machine: tests ended with $?\"\n\
         echo \"machine: $(find /sys/fs/cgroup -type d -name 'skep-rt-*' | wc -l) groups left\"\n\
         fi\n",
        this.display()
    ))?;
    let transcript = Machine::boot(&kernel, &tree.pack(), kernel_words)?.transcript()?;
    // As Debian 13's, whose memory and cpuset controllers know version 2 only.
    if let Some(lacks) = transcript.lines().find_map(|line| line.strip_prefix("machine: lacks ")) {
        println!("UNTESTED: {what}, the fetched kernel has no version 1 of {lacks}");
        return Ok(());
    }
    let judged = judge(&transcript);
    if judged.is_err() {
        println!("{transcript}");
    }
    if !transcript.contains("machine: has swap") {
        println!("UNTESTED: limits of swap on {what}, the machine has none");
    }
    judged.context("in the virtual machine, whose words are above")
}

/// Whether the machine proved what it was booted for.
fn judge(transcript: &str) -> Result<()> {
    ensure!(transcript.contains("machine: tests ended with 0"), "the tests failed, or the machine died under them");
    ensure!(transcript.contains("machine: 0 groups left"), "control groups were left behind");
    for name in PROOF {
        let passed = format!("test {name} ... ok");
        ensure!(transcript.lines().any(|line| line == passed), "{name} was not run");
    }
    // Whatever else a kernel may lack, control groups it has.
    let lacks = |line: &&str| line.starts_with("UNTESTED") && (line.contains("limits") || line.contains("freezer"));
    if let Some(line) = transcript.lines().find(lacks) {
        anyhow::bail!("a test found less than it needs: {line}");
    }
    Ok(())
}

#[test]
fn a_machine_that_proves_nothing_does_not_pass() {
    let passed: String = PROOF.iter().map(|name| format!("test {name} ... ok\n")).collect();
    let end = "machine: tests ended with 0\nmachine: 0 groups left\n";
    judge(&format!("{passed}{end}")).unwrap();
    for (what, transcript) in [
        ("nothing", String::new()),
        ("a dead machine", passed.clone()),
        ("failed", format!("{passed}machine: tests ended with 101\nmachine: 0 groups left\n")),
        ("left", format!("{passed}machine: tests ended with 0\nmachine: 2 groups left\n")),
        ("not run", end.to_owned()),
        ("one failed", format!("{passed}{end}").replace("counted ... ok", "counted ... FAILED")),
        ("skipped", format!("{passed}UNTESTED: limits, no pids controller here\n{end}")),
        ("no freezer", format!("{passed}UNTESTED: exec into a frozen container, no freezer here\n{end}")),
    ] {
        assert!(judge(&transcript).is_err(), "{what} passed");
    }
}
