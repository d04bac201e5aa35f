//! Placement preferences: spreads a service evenly over the values of node labels, the outermost label first.

use std::collections::BTreeMap;

use skep_state::State;

use super::Group;
use super::table::Table;
use crate::constraint::spread_value;

/// A label value with what lies below it.
struct Branch {
    /// Tasks of the service below.
    tasks: u32,
    /// Nothing below has room.
    full: bool,
    below: Below,
}

enum Below {
    Branches(BTreeMap<String, Branch>),
    Nodes(Vec<usize>),
}

/// Chooses nodes for the group's free tasks, as many as find room, and occupies them.
pub(super) fn place(
    table: &mut Table<'_>,
    members: &[usize],
    view: &State,
    group: &Group<'_>,
    full: &[&str],
    now_ns: i64,
) -> Vec<usize> {
    let bad: BTreeMap<usize, bool> = table.count_service(view, group, now_ns);
    let mut root = grow(table, members.to_vec(), &group.spread);
    let mut chosen = Vec::with_capacity(group.free.len());
    while chosen.len() < group.free.len() {
        match root.take(table, group, full, &bad) {
            Some(at) => chosen.push(at),
            None => break,
        }
    }
    chosen
}

fn grow(table: &Table<'_>, nodes: Vec<usize>, spread: &[String]) -> Branch {
    let tasks = nodes.iter().map(|at| table.of_service(*at)).sum();
    let below = match spread.split_first() {
        None => Below::Nodes(nodes),
        Some((label, rest)) => {
            let mut values: BTreeMap<String, Vec<usize>> = BTreeMap::new();
            for at in nodes {
                values.entry(spread_value(table.node(at), label).to_owned()).or_default().push(at);
            }
            Below::Branches(values.into_iter().map(|(value, nodes)| (value, grow(table, nodes, rest))).collect())
        }
    };
    Branch { tasks, full: false, below }
}

impl Branch {
    /// Takes a node below the branch that has fewest tasks of the service and room.
    fn take(
        &mut self,
        table: &mut Table<'_>,
        group: &Group<'_>,
        full: &[&str],
        bad: &BTreeMap<usize, bool>,
    ) -> Option<usize> {
        let taken = match &mut self.below {
            Below::Nodes(nodes) => {
                let rank =
                    |at: usize| (bad.get(&at).copied().unwrap_or(false), table.of_service(at), table.load(at), at);
                let best = nodes
                    .iter()
                    .copied()
                    .filter(|at| table.refusal(*at, group, full).is_none())
                    .min_by_key(|at| rank(*at));
                if let Some(at) = best {
                    table.occupy(at, group);
                }
                best
            }
            Below::Branches(branches) => loop {
                let emptiest =
                    branches.iter_mut().filter(|(_, b)| !b.full).min_by_key(|(value, b)| (b.tasks, (*value).clone()));
                let Some((_, branch)) = emptiest else { break None };
                if let Some(at) = branch.take(table, group, full, bad) {
                    break Some(at);
                }
            },
        };
        match taken {
            Some(_) => self.tasks += 1,
            None => self.full = true,
        }
        taken
    }
}
