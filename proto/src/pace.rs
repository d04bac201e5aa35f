//! How often a loop turns that is woken by every change: at once after a quiet time, and under load no more often than
//! that most of the time is left for what the changes are about.
//!
//! Pure: callers bring the time and do the waiting. The loops of managers and workers between a change and its effect
//! use it, each for itself.

use std::time::{Duration, Instant};

/// Changes that come this close together are handled in one turn.
const GATHER: Duration = Duration::from_millis(2);
/// A turn is followed by a rest of this many times its length, and of these bounds.
const REST: u32 = 2;
const SHORTEST: Duration = Duration::from_millis(4);
const LONGEST: Duration = Duration::from_millis(20);

/// When a loop may turn again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    rested: Option<Instant>,
}

impl Pace {
    /// When the turn begins that a change at `now` asks for.
    pub fn next(&self, now: Instant) -> Instant {
        let gathered = now + GATHER;
        self.rested.map_or(gathered, |rested| rested.max(gathered))
    }

    /// A turn that began at `begun` has ended at `now`.
    pub fn turned(&mut self, begun: Instant, now: Instant) {
        let took = now.saturating_duration_since(begun);
        self.rested = Some(now + (took * REST).clamp(SHORTEST, LONGEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_after_a_quiet_time_and_bounded_under_load() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.next(start), start + GATHER);
        for (took, rest) in [(0, 4), (1, 4), (5, 10), (10, 20), (1000, 20)] {
            pace.turned(start, start + ms(took));
            let ended = start + ms(took);
            assert_eq!(pace.next(ended), ended + ms(rest), "after a turn of {took} ms");
            assert_eq!(pace.next(ended + ms(500)), ended + ms(500) + GATHER, "rested long since");
        }
    }
}
