//! Says in words why no node takes a task. The words are those that Swarm's users know.

use std::collections::BTreeMap;

use super::Group;
use super::table::{Refusal, Table};
use crate::constraint::Mismatch;
use crate::defaults::TASKS_PER_NODE;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    NotReady,
    Tasks,
    Resources,
    Constraint,
    Platform,
    HostPort,
    MaxReplicas,
    Network,
}

/// Why a task that is bound to one node waits.
pub(super) fn one(table: &Table<'_>, node: Option<usize>, group: &Group<'_>, full: &[&str]) -> String {
    match node {
        Some(at) => text(&[(reason(table, at, group, full), 1)].into()),
        None => "its node is not part of the cluster any more".to_owned(),
    }
}

/// Why a task waits that might run anywhere.
pub(super) fn all(table: &Table<'_>, group: &Group<'_>, full: &[&str]) -> String {
    let mut counts: BTreeMap<Reason, usize> = BTreeMap::new();
    for at in 0..table.len() {
        *counts.entry(reason(table, at, group, full)).or_default() += 1;
    }
    if counts.is_empty() { "the cluster has no node".to_owned() } else { text(&counts) }
}

/// The first filter that the node does not pass. One that passes all was filled by this very group.
fn reason(table: &Table<'_>, at: usize, group: &Group<'_>, full: &[&str]) -> Reason {
    let refusal = table.refusal(at, group, full);
    if refusal == Some(Refusal::NotReady) {
        return Reason::NotReady;
    }
    match group.class.check(table.node(at)) {
        Err(Mismatch::Constraint) => return Reason::Constraint,
        Err(Mismatch::Platform) => return Reason::Platform,
        Ok(()) => {}
    }
    match refusal {
        Some(Refusal::Tasks) => Reason::Tasks,
        Some(Refusal::HostPort) => Reason::HostPort,
        Some(Refusal::MaxReplicas) => Reason::MaxReplicas,
        Some(Refusal::Network) => Reason::Network,
        _ => Reason::Resources,
    }
}

fn text(counts: &BTreeMap<Reason, usize>) -> String {
    let nodes = |count: usize| if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    let words = |(reason, count): (&Reason, &usize)| {
        let nodes = nodes(*count);
        match reason {
            Reason::NotReady => format!("{nodes} not available for new tasks"),
            Reason::Tasks => format!("no room for more than {TASKS_PER_NODE} tasks on {nodes}"),
            Reason::Resources => format!("insufficient resources on {nodes}"),
            Reason::Constraint => format!("scheduling constraints not satisfied on {nodes}"),
            Reason::Platform => format!("unsupported platform on {nodes}"),
            Reason::HostPort => format!("host-mode port already in use on {nodes}"),
            Reason::MaxReplicas => format!("max replicas per node limit exceeded on {nodes}"),
            Reason::Network => format!("no free network address for {nodes}"),
        }
    };
    counts.iter().map(words).collect::<Vec<_>>().join("; ")
}
