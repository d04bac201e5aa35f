//! When each node was last heard of, and which generation its wires show. Kept by the leader, in memory only: a new
//! leader starts every node's clock anew, which errs on the side of patience.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use skep_proto::v1::NodeBeat;
use tokio::sync::watch;

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    acknowledged: u64,
    /// It said goodbye.
    left: bool,
}

/// The leader's memory of heartbeats.
#[derive(Debug)]
pub struct Liveness {
    seen: Mutex<BTreeMap<String, Seen>>,
    since: Mutex<Instant>,
    changed: watch::Sender<u64>,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { seen: Mutex::default(), since: Mutex::new(Instant::now()), changed: watch::Sender::new(0) }
    }
}

impl Liveness {
    /// Forgets everything: called when leadership begins.
    pub fn reset(&self, now: Instant) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Starts every node's clock anew: this manager itself was stopped, and could have heard of nobody.
    pub fn pardon(&self, now: Instant) {
        for seen in self.seen.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            seen.at = now;
        }
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Forgets the nodes that there are no more.
    pub fn retain(&self, known: impl Fn(&str) -> bool) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| known(id));
    }

    /// Notes heartbeats. Wakes the leader's loop when an acknowledgement moved or a node came back.
    pub fn note(&self, now: Instant, beats: &[NodeBeat]) {
        let mut news = false;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for beat in beats {
            let before = seen.get(&beat.node_id).copied();
            let acknowledged = beat.applied_generation.max(before.map_or(0, |b| b.acknowledged));
            let at = match before {
                // Words may overtake each other on their way.
                Some(before) if beat.heard => before.at.max(now),
                Some(before) => before.at,
                None if beat.heard || beat.left => now,
                // Nobody has heard of it yet: its manager's book is no sign of life.
                None => continue,
            };
            // Signs of life travel apart from goodbyes, and may come after them.
            let left = beat.left || before.is_some_and(|b| b.left);
            news |= before.is_none_or(|b| b.acknowledged != acknowledged || b.left != left);
            seen.insert(beat.node_id.clone(), Seen { at, acknowledged, left });
        }
        drop(seen);
        if news {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Wakes when something worth planning for was noted.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The generation that each node has acknowledged.
    pub fn acknowledged(&self) -> BTreeMap<String, u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().map(|(id, s)| (id.clone(), s.acknowledged)).collect()
    }

    /// These nodes have opened a session: whoever said goodbye before is back.
    pub fn registered<'a>(&self, nodes: impl Iterator<Item = &'a str>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for id in nodes {
            if let Some(seen) = seen.get_mut(id) {
                seen.left = false;
            }
        }
    }

    /// The nodes that said goodbye.
    pub fn left(&self) -> BTreeSet<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|(_, s)| s.left).map(|(id, _)| id.clone()).collect()
    }

    /// How long each of the given nodes has been silent; one never heard of counts from the start of leadership.
    pub fn silence<'a>(&self, now: Instant, nodes: impl Iterator<Item = &'a str>) -> BTreeMap<String, Duration> {
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        nodes
            .map(|id| {
                let silence = match seen.get(id) {
                    Some(s) => now.saturating_duration_since(s.at),
                    None => now.saturating_duration_since(since),
                };
                (id.to_owned(), silence)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(node: &str, generation: u64) -> NodeBeat {
        NodeBeat { node_id: node.into(), applied_generation: generation, heard: true, left: false }
    }

    #[test]
    fn an_acknowledgement_never_goes_back_and_silence_counts_from_the_last_beat() {
        let liveness = Liveness::default();
        let start = Instant::now();
        liveness.reset(start);
        liveness.note(start + Duration::from_secs(1), &[beat("a", 7)]);
        liveness.note(start + Duration::from_secs(2), &[beat("a", 5)]);
        assert_eq!(liveness.acknowledged().get("a"), Some(&7));
        // A book that moves is no sign of life.
        let unheard = |node: &str| NodeBeat { heard: false, ..beat(node, 9) };
        liveness.note(start + Duration::from_secs(4), &[unheard("a"), unheard("b")]);
        assert_eq!(liveness.acknowledged().get("a"), Some(&9));
        let silence = liveness.silence(start + Duration::from_secs(5), ["a", "b"].into_iter());
        assert_eq!(silence["a"], Duration::from_secs(3));
        assert_eq!(silence["b"], Duration::from_secs(5));
    }

    #[test]
    fn who_says_goodbye_has_left_until_it_opens_a_session_again() {
        let liveness = Liveness::default();
        let start = Instant::now();
        liveness.reset(start);
        let goodbye = NodeBeat { heard: false, left: true, ..beat("a", 7) };
        let left = || liveness.left().contains("a");
        liveness.note(start, &[beat("a", 7)]);
        assert!(!left());
        liveness.note(start, std::slice::from_ref(&goodbye));
        assert!(left());
        // A sign of life from before that was slower, its manager's book, a leader that stood still.
        liveness.note(start, &[beat("a", 7)]);
        liveness.note(start, &[NodeBeat { heard: false, ..beat("a", 8) }]);
        liveness.pardon(start);
        assert!(left());
        liveness.registered(["a", "b"].into_iter());
        assert!(!left());
    }

    #[test]
    fn nobody_is_silent_while_this_manager_stood_still_and_who_is_gone_is_forgotten() {
        let liveness = Liveness::default();
        let start = Instant::now();
        liveness.reset(start);
        liveness.note(start, &[beat("a", 7), beat("gone", 7)]);
        liveness.retain(|id| id != "gone");
        assert_eq!(liveness.acknowledged().into_iter().collect::<Vec<_>>(), [("a".to_owned(), 7)]);
        let woke = start + Duration::from_secs(60);
        liveness.pardon(woke);
        let silence = liveness.silence(woke + Duration::from_secs(2), ["a", "never"].into_iter());
        assert_eq!([silence["a"], silence["never"]], [Duration::from_secs(2); 2]);
        assert_eq!(liveness.acknowledged()["a"], 7);
    }
}
