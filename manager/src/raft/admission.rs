//! Whom this manager listens to. Pure: the service asks at every call, after the door has checked the certificate.
//!
//! A certificate outlives a membership, so that a manager that was removed still gets through the door. It must neither
//! disturb elections nor replace the log. But a manager that is behind may not know its rightful leader: one that was
//! added in an entry that it lacks. Such a leader is told from a removed member by what it has: it is ahead, because the
//! entry that made it a member is committed, and our log ends before that entry. And it is needed only by a manager that
//! hears of no other leader.

use super::types::{LogId, Membership, Vote};

/// What a manager knows when it is called.
pub(crate) struct Own<'a> {
    /// This node.
    pub(crate) me: u64,
    /// The newest membership of its log, both halves of it while a change is under way.
    pub(crate) membership: &'a Membership,
    /// Its last entry.
    pub(crate) last: Option<LogId>,
    /// Whom it follows, or voted for.
    pub(crate) vote: Option<Vote>,
    /// It knows a leader that is alive.
    pub(crate) in_touch: bool,
}

impl Own<'_> {
    /// Whether the node is a member as far as this one knows.
    pub(crate) fn is_member(&self, id: u64) -> bool {
        self.membership.get_node(&id).is_some()
    }

    /// Whether to listen to a node that asks for a vote or leads. `last` is the newest entry that it says it has.
    pub(crate) fn listens_to(&self, id: u64, last: Option<LogId>) -> bool {
        // Waits to be taken into a group.
        let empty = self.last.is_none();
        let followed = self.vote.is_some_and(|vote| vote.leader_id.node_id == id);
        // A quorum by itself has every change of members in its log.
        let alone = self.membership.voter_ids().all(|voter| voter == self.me);
        let behind = !self.in_touch && !alone && last > self.last;
        empty || followed || behind || self.is_member(id)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::raft::types::{LeaderId, Node};

    fn id(term: u64, index: u64) -> Option<LogId> {
        Some(LogId { leader_id: LeaderId { term, node_id: 1 }, index })
    }

    fn membership(configs: &[&[u64]]) -> Membership {
        let configs: Vec<BTreeSet<u64>> = configs.iter().map(|ids| ids.iter().copied().collect()).collect();
        let nodes: BTreeMap<u64, Node> = configs.iter().flatten().map(|id| (*id, Node::new("a:1"))).collect();
        Membership::new(configs, nodes).unwrap()
    }

    #[test]
    fn members_are_heard_removed_ones_are_not_and_an_unknown_leader_only_by_who_is_behind() {
        let settled = membership(&[&[1, 2, 3]]);
        let joint = membership(&[&[1, 2, 3], &[1, 2, 4]]);
        let alone = membership(&[&[2]]);
        let voted = |node| Some(Vote::new(5, node));
        // membership, in touch, own last, vote, caller, its last, heard
        let table = [
            (&settled, true, id(5, 10), voted(1), 3, id(5, 10), true),
            (&joint, true, id(5, 10), voted(1), 3, id(5, 10), true),
            (&joint, true, id(5, 10), voted(1), 4, id(5, 10), true),
            // Removed: as far as we are, or not so far.
            (&settled, true, id(5, 10), voted(1), 9, id(5, 10), false),
            (&settled, false, id(5, 10), voted(1), 9, id(5, 10), false),
            (&settled, false, id(5, 10), voted(1), 9, id(4, 99), false),
            (&settled, false, id(5, 10), voted(1), 9, None, false),
            // Ahead: to be heard by nobody who has a leader.
            (&settled, true, id(5, 10), voted(1), 9, id(6, 12), false),
            (&settled, false, id(5, 10), voted(1), 9, id(6, 12), true),
            (&alone, false, id(5, 10), voted(2), 9, id(6, 12), false),
            // Followed already, as by one who catches up.
            (&settled, true, id(5, 10), voted(9), 9, id(5, 10), true),
            (&Membership::default(), false, None, None, 9, None, true),
        ];
        for (row, (membership, in_touch, last, vote, caller, theirs, heard)) in table.into_iter().enumerate() {
            let own = Own { me: 2, membership, last, vote, in_touch };
            assert_eq!(own.listens_to(caller, theirs), heard, "row {row}");
        }
    }
}
