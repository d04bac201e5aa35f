//! Limits and reservations: nothing, or enough to start anything at all and no more than any machine has.

use skep_proto::v1::{ResourceRequirements, Resources};

use super::{Error, invalid};

const MIB: i64 = 1 << 20;
/// The least memory that can be reserved, in bytes.
const RESERVED_MEMORY: i64 = 4 * MIB;
/// The least memory in which a container starts, in bytes.
const LEAST_MEMORY: i64 = 6 * MIB;
/// More memory than any machine has, in bytes.
const MOST_MEMORY: i64 = 1 << 50;
/// The least CPU time that can be reserved, in billionths of a core.
const RESERVED_CPU: i64 = 1_000_000;
/// The least CPU time that the kernel can give out, in billionths of a core.
const LEAST_CPU: i64 = 10_000_000;
/// More cores than any machine has, in billionths.
const MOST_CPU: i64 = 100_000 * 1_000_000_000;
/// The most processes that the kernel counts to.
const PIDS: i64 = 1 << 22;

const FIELD: &str = "TaskTemplate.Resources";

/// Checks what a task may use, what is kept free for it, and that the two fit.
pub(super) fn check(resources: &ResourceRequirements) -> Result<(), Error> {
    let (limits, reserved) = (resources.limits.unwrap_or_default(), resources.reservations.unwrap_or_default());
    check_part("Limits", limits, LEAST_CPU, LEAST_MEMORY)?;
    check_part("Reservations", reserved, RESERVED_CPU, RESERVED_MEMORY)?;
    if limits.memory_bytes != 0 && reserved.memory_bytes > limits.memory_bytes {
        let why = format!(
            "{} bytes are reserved, and the limit is {}: reserve at most what may be used",
            reserved.memory_bytes, limits.memory_bytes
        );
        return Err(invalid(format!("{FIELD}.Reservations.MemoryBytes"), why));
    }
    if limits.nano_cpus != 0 && reserved.nano_cpus > limits.nano_cpus {
        let why = format!(
            "{} are reserved, and the limit is {}: reserve at most what may be used",
            reserved.nano_cpus, limits.nano_cpus
        );
        return Err(invalid(format!("{FIELD}.Reservations.NanoCPUs"), why));
    }
    if !(0..=PIDS).contains(&resources.pids_limit) {
        let why = format!("the number of processes lies between 1 and {PIDS}; 0 means no limit");
        return Err(invalid(format!("{FIELD}.Limits.Pids"), why));
    }
    match resources.memory_swap_bytes {
        0 | -1 => Ok(()),
        swap if limits.memory_bytes == 0 || swap < limits.memory_bytes || swap > MOST_MEMORY => {
            let why =
                "it is memory and swap together, so it needs a memory limit that is not larger; -1 means no limit";
            Err(invalid(format!("{FIELD}.SwapBytes"), why))
        }
        _ => Ok(()),
    }
}

fn check_part(part: &str, resources: Resources, least_cpu: i64, least_memory: i64) -> Result<(), Error> {
    let (cpu, memory) = (resources.nano_cpus, resources.memory_bytes);
    if cpu != 0 && !(least_cpu..=MOST_CPU).contains(&cpu) {
        let least = least_cpu as f64 / 1e9;
        let why = format!("{cpu} is out of range: use {least} ({least_cpu}) to 100000 cores ({MOST_CPU})");
        return Err(invalid(format!("{FIELD}.{part}.NanoCPUs"), why));
    }
    if memory != 0 && !(least_memory..=MOST_MEMORY).contains(&memory) {
        let why = format!("{memory} bytes are out of range: use {} MiB ({least_memory}) to 1 PiB", least_memory / MIB);
        return Err(invalid(format!("{FIELD}.{part}.MemoryBytes"), why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]
    use super::*;

    fn judged(limits: (i64, i64), reserved: (i64, i64), pids: i64, swap: i64) -> Result<(), String> {
        let part = |(nano_cpus, memory_bytes)| Some(Resources { nano_cpus, memory_bytes });
        let resources = ResourceRequirements {
            limits: part(limits),
            reservations: part(reserved),
            pids_limit: pids,
            memory_swap_bytes: swap,
        };
        check(&resources).map_err(|e| e.to_string())
    }

    #[test]
    fn amounts() {
        const CORE: i64 = 1_000_000_000;
        for (limits, reserved, pids, swap) in [
            ((0, 0), (0, 0), 0, 0),
            ((LEAST_CPU, LEAST_MEMORY), (RESERVED_CPU, RESERVED_MEMORY), 1, -1),
            ((CORE, 64 * MIB), (CORE, 64 * MIB), PIDS, 64 * MIB),
            ((0, 0), (CORE, 64 * MIB), 0, 0),
        ] {
            assert_eq!(judged(limits, reserved, pids, swap), Ok(()), "{limits:?} {reserved:?} {pids} {swap}");
        }
        for (limits, reserved, pids, swap, name) in [
            ((-1, 0), (0, 0), 0, 0, "Limits.NanoCPUs"),
            ((LEAST_CPU - 1, 0), (0, 0), 0, 0, "Limits.NanoCPUs"),
            ((i64::MAX, 0), (0, 0), 0, 0, "Limits.NanoCPUs"),
            ((0, 5 * MIB), (0, 0), 0, 0, "Limits.MemoryBytes"),
            ((0, -1), (0, 0), 0, 0, "Limits.MemoryBytes"),
            ((0, i64::MAX), (0, 0), 0, 0, "Limits.MemoryBytes"),
            ((0, 0), (0, 3 * MIB), 0, 0, "Reservations.MemoryBytes"),
            ((0, 0), (999_999, 0), 0, 0, "Reservations.NanoCPUs"),
            ((CORE, 0), (2 * CORE, 0), 0, 0, "Reservations.NanoCPUs"),
            ((0, 64 * MIB), (0, 65 * MIB), 0, 0, "Reservations.MemoryBytes"),
            ((0, 0), (0, 0), -1, 0, "Limits.Pids"),
            ((0, 0), (0, 0), PIDS + 1, 0, "Limits.Pids"),
            ((0, 0), (0, 0), 0, 64 * MIB, "SwapBytes"),
            ((0, 64 * MIB), (0, 0), 0, 63 * MIB, "SwapBytes"),
            ((0, 64 * MIB), (0, 0), 0, -2, "SwapBytes"),
        ] {
            let error = judged(limits, reserved, pids, swap).expect_err(name);
            assert!(error.starts_with(&format!("{FIELD}.{name}: ")), "{error:?} does not name {name}");
        }
    }
}
