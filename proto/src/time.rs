//! Unix times in nanoseconds, as the messages carry them. Only callers at the edge ask the clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The given moment as Unix nanoseconds; moments before 1970 or after 2262 are clamped.
pub fn unix_ns(at: SystemTime) -> i64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(_) => 0,
    }
}

/// The duration in nanoseconds, clamped to what the messages can carry.
pub fn duration_ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// The duration that a message carries; a negative one counts as zero.
pub fn duration(ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}
