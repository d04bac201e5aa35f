//! Places the tasks of a group on the least loaded nodes of its class.
//!
//! Most nodes have no task of the service in question; they stand in the class's heap by load alone, shared by all
//! groups. The few others are *special* to the group and stand in a small heap of its own. An entry of the class's heap
//! whose load is out of date is put back with the right one when it comes up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use skep_state::State;

use super::Group;
use super::table::Table;
use crate::constraint::Class;

/// The nodes of one class.
#[derive(Debug)]
pub(super) struct ClassHeap {
    members: Vec<usize>,
    /// (load, node), the least first
    heap: BinaryHeap<Reverse<(u32, usize)>>,
}

impl ClassHeap {
    pub(super) fn of(table: &Table<'_>, class: &Class) -> Self {
        let members: Vec<usize> = (0..table.len()).filter(|at| class.check(table.node(*at)).is_ok()).collect();
        let heap = members.iter().map(|at| Reverse((table.load(*at), *at))).collect();
        Self { members, heap }
    }

    /// Nodes that the class allows, ascending.
    pub(super) fn members(&self) -> &[usize] {
        &self.members
    }

    /// Chooses nodes for the group's free tasks, as many as find room, and occupies them.
    pub(super) fn place(
        &mut self,
        table: &mut Table<'_>,
        view: &State,
        group: &Group<'_>,
        full: &[&str],
        now_ns: i64,
    ) -> Vec<usize> {
        let mut special = table.count_service(view, group, now_ns);
        special.retain(|at, _| self.members.binary_search(at).is_ok());
        // (keeps failing, tasks of the service, load, node)
        let mut known: BinaryHeap<Reverse<(bool, u32, u32, usize)>> =
            special.iter().map(|(at, bad)| Reverse((*bad, table.of_service(*at), table.load(*at), *at))).collect();
        let mut aside = Vec::new();
        let mut chosen = Vec::with_capacity(group.free.len());
        while chosen.len() < group.free.len() {
            let at = match self.next_unknown(table, group, full, &special, &mut aside) {
                Some(at) => {
                    special.insert(at, false);
                    at
                }
                None => match next_known(&mut known, table, group, full) {
                    Some(at) => at,
                    None => break,
                },
            };
            table.occupy(at, group);
            let bad = special.get(&at).copied().unwrap_or(false);
            known.push(Reverse((bad, table.of_service(at), table.load(at), at)));
            chosen.push(at);
        }
        self.heap.extend(aside.into_iter().map(|at| Reverse((table.load(at), at))));
        chosen
    }

    /// The least loaded node without a task of the service. Nodes that were looked at are set aside for the next group.
    fn next_unknown(
        &mut self,
        table: &Table<'_>,
        group: &Group<'_>,
        full: &[&str],
        special: &BTreeMap<usize, bool>,
        aside: &mut Vec<usize>,
    ) -> Option<usize> {
        while let Some(Reverse((load, at))) = self.heap.pop() {
            if load != table.load(at) {
                self.heap.push(Reverse((table.load(at), at)));
                continue;
            }
            aside.push(at);
            if !special.contains_key(&at) && table.refusal(at, group, full).is_none() {
                return Some(at);
            }
        }
        None
    }
}

/// The best node among those that have tasks of the service. Its entry is out of date only if another group of the same
/// service was placed in between, which happens before the heap is built.
fn next_known(
    known: &mut BinaryHeap<Reverse<(bool, u32, u32, usize)>>,
    table: &Table<'_>,
    group: &Group<'_>,
    full: &[&str],
) -> Option<usize> {
    while let Some(Reverse((_, _, _, at))) = known.pop() {
        if table.refusal(at, group, full).is_none() {
            return Some(at);
        }
    }
    None
}
