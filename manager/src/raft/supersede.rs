//! Whether a manager ends its part because another one has gone on without it (a new cluster was forced there).
//!
//! Pure. The one that forced may have been cut off from a group that was well: then it is the one that is wrong, and the
//! group must not end for it. A group that was given up, in turn, may come back with a quorum of what it remembers, and
//! has to end. What tells them apart is whether the group had been led for a while when it heard. Its leader decides for
//! the others; without one, each for itself. Called by the monitor.

use std::time::{Duration, Instant};

use super::Leadership;

/// A group that is led for so long is well.
const SETTLED: Duration = Duration::from_secs(3);
/// It still counts as well for so long after it lost its leader: an election takes less.
const LATELY: Duration = Duration::from_secs(30);
/// How long a manager without a leader looks for one before it ends.
const GRACE: Duration = Duration::from_secs(1);

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Look again.
    Wait,
    /// This group was given up.
    End,
    /// This group is well: let it be.
    GoOn,
}

/// How the group was led while this manager ran.
#[derive(Debug, Default)]
pub(crate) struct Led {
    since: Option<Instant>,
    last: Option<Instant>,
    /// When it was last led and had been for [`SETTLED`].
    settled: Option<Instant>,
    heard: Option<Instant>,
}

impl Led {
    /// Notes who leads now.
    pub(crate) fn note(&mut self, now: Instant, leadership: &Leadership) {
        if leadership.leader.is_none() {
            self.since = None;
            return;
        }
        self.last = Some(now);
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= SETTLED {
            self.settled = Some(now);
        }
    }

    /// What to do at `now`, another manager having said that it has gone on alone.
    pub(crate) fn verdict(&mut self, now: Instant, leadership: &Leadership) -> Verdict {
        let heard = *self.heard.get_or_insert(now);
        if self.settled.is_some_and(|at| now.saturating_duration_since(at) <= LATELY) {
            return Verdict::GoOn;
        }
        let searching = now.saturating_duration_since(self.last.map_or(heard, |last| last.max(heard)));
        match leadership.leader {
            Some(_) if !leadership.is_self => Verdict::Wait,
            None if searching < GRACE => Verdict::Wait,
            _ => Verdict::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Leader;
    use super::*;

    #[test]
    fn a_group_that_is_well_goes_on_and_one_that_was_given_up_ends() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let leadership = |leader: Option<u64>, is_self| Leadership {
            term: 7,
            leader: leader.map(|id| Leader { id, address: "192.0.2.2:2377".into() }),
            is_self,
        };
        let (none, other, own) = (leadership(None, false), leadership(Some(2), false), leadership(Some(1), true));
        // What is seen at which millisecond, heard from the first on, and what is said to it at the end.
        type Row<'a> = (&'a str, &'a [(u64, &'a Leadership)], Verdict);
        let table: [Row<'_>; 9] = [
            ("nobody leads: a look around", &[(0, &none), (900, &none)], Verdict::Wait),
            ("nobody leads for long", &[(0, &none), (1000, &none)], Verdict::End),
            ("back from the dead, and elected", &[(0, &none), (400, &own)], Verdict::End),
            ("back from the dead, and led: the leader decides", &[(0, &none), (400, &other)], Verdict::Wait),
            ("its leader has ended", &[(0, &none), (900, &other), (1500, &none)], Verdict::Wait),
            ("its leader has ended long since", &[(0, &none), (900, &other), (1900, &none)], Verdict::End),
            ("led for long", &[(0, &other), (3000, &other)], Verdict::GoOn),
            ("led for long, and elected", &[(0, &other), (3000, &other), (3500, &none), (4000, &own)], Verdict::GoOn),
            ("led long ago", &[(0, &other), (3000, &other), (33_001, &none)], Verdict::End),
        ];
        for (name, seen, verdict) in table {
            let mut group = Led::default();
            let mut said = Verdict::Wait;
            for (ms, leadership) in seen {
                group.note(at(*ms), leadership);
                said = group.verdict(at(*ms), leadership);
            }
            assert_eq!(said, verdict, "{name}");
        }
    }
}
