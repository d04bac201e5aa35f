//! What each node offers and carries, kept up to date while tasks are placed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use skep_proto::v1::{Availability, Node, NodeState, PortConfig, Resources, Task, TaskSpec, TaskState};
use skep_state::State;

use super::Group;
use crate::defaults::{SECOND, TASKS_PER_NODE};
use crate::nodes::node_state;

/// Failures of one service on one node within [`FAILURE_WINDOW`] that make the node a last resort for it.
const FAILURES: usize = 5;
const FAILURE_WINDOW: i64 = 300 * SECOND;

/// Why a node can't take a task at the moment, beside its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    NotReady,
    Tasks,
    Resources,
    HostPort,
    MaxReplicas,
    Network,
}

#[derive(Debug)]
struct Row<'v> {
    node: &'v Node,
    open: bool,
    free: Resources,
    tasks: u32,
    host_ports: BTreeSet<(u32, i32)>,
    /// Tasks of the service that is being placed.
    of_service: u32,
}

/// All nodes by index, in the order of their ids.
#[derive(Debug)]
pub(super) struct Table<'v> {
    rows: Vec<Row<'v>>,
    index: BTreeMap<&'v str, usize>,
    /// Rows whose `of_service` is not zero.
    touched: Vec<usize>,
    service: String,
}

pub(super) fn reservation(spec: &TaskSpec) -> Resources {
    spec.resources.as_ref().and_then(|r| r.reservations).unwrap_or_default()
}

impl<'v> Table<'v> {
    pub(super) fn of(view: &'v State) -> Self {
        let mut rows = Vec::new();
        let mut index = BTreeMap::new();
        for node in view.nodes() {
            let active = node.spec.as_ref().is_none_or(|s| s.availability() == Availability::Active);
            index.insert(node.id.as_str(), rows.len());
            rows.push(Row {
                node,
                open: active && node_state(node) == NodeState::Ready,
                free: node.description.as_ref().and_then(|d| d.resources).unwrap_or_default(),
                tasks: 0,
                host_ports: BTreeSet::new(),
                of_service: 0,
            });
        }
        let mut reservations: HashMap<(&str, u64), Resources> = HashMap::new();
        for task in view.tasks().filter(|t| holds(t)) {
            let Some(row) = index.get(task.node_id.as_str()).and_then(|at: &usize| rows.get_mut(*at)) else { continue };
            let reserved = *reservations.entry((task.service_id.as_str(), task.spec_version)).or_insert_with(|| {
                view.task_spec(&task.service_id, task.spec_version).map(|s| reservation(&s)).unwrap_or_default()
            });
            row.take(reserved, &task.host_ports);
        }
        Self { rows, index, touched: Vec::new(), service: String::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn index_of(&self, node_id: &str) -> Option<usize> {
        self.index.get(node_id).copied()
    }

    pub(super) fn node(&self, at: usize) -> &'v Node {
        self.rows[at].node
    }

    /// Tasks on the node, of all services.
    pub(super) fn load(&self, at: usize) -> u32 {
        self.rows[at].tasks
    }

    /// Tasks on the node of the service that [`Table::count_service`] was called for.
    pub(super) fn of_service(&self, at: usize) -> u32 {
        self.rows[at].of_service
    }

    /// Counts the service's tasks per node. Returns the nodes that are special to it: those with tasks of it, and those
    /// (marked) where it keeps failing.
    pub(super) fn count_service(&mut self, view: &State, group: &Group<'_>, now_ns: i64) -> BTreeMap<usize, bool> {
        let mut special: BTreeMap<usize, bool> = BTreeMap::new();
        if self.service != group.service_id {
            for at in std::mem::take(&mut self.touched) {
                self.rows[at].of_service = 0;
            }
            group.service_id.clone_into(&mut self.service);
            for task in view.tasks_of_service(group.service_id).filter(|t| holds(t) && t.in_service()) {
                if let Some(at) = self.index_of(&task.node_id) {
                    self.touch(at);
                }
            }
        }
        special.extend(self.touched.iter().map(|at| (*at, false)));
        let mut failures: BTreeMap<usize, usize> = BTreeMap::new();
        for task in view.tasks_of_service(group.service_id).filter(|t| failed_lately(t, now_ns)) {
            if let Some(at) = self.index_of(&task.node_id) {
                *failures.entry(at).or_default() += 1;
            }
        }
        special.extend(failures.into_iter().filter(|(_, count)| *count >= FAILURES).map(|(at, _)| (at, true)));
        special
    }

    fn touch(&mut self, at: usize) {
        if self.rows[at].of_service == 0 {
            self.touched.push(at);
        }
        self.rows[at].of_service += 1;
    }

    /// Why the node can't take another task of the group now.
    pub(super) fn refusal(&self, at: usize, group: &Group<'_>, full: &[&str]) -> Option<Refusal> {
        let row = &self.rows[at];
        let attached = |network: &&str| row.node.attachments.iter().any(|a| a.network_id == **network);
        if !row.open {
            Some(Refusal::NotReady)
        } else if row.tasks >= TASKS_PER_NODE {
            Some(Refusal::Tasks)
        } else if !row.has(&group.reserved) {
            Some(Refusal::Resources)
        } else if ports(group.host_ports).any(|p| row.host_ports.contains(&p)) {
            Some(Refusal::HostPort)
        } else if group.max_replicas != 0 && u64::from(row.of_service) >= group.max_replicas {
            Some(Refusal::MaxReplicas)
        } else if !full.iter().all(attached) {
            Some(Refusal::Network)
        } else {
            None
        }
    }

    /// Notes that the node has one more task of the group.
    pub(super) fn occupy(&mut self, at: usize, group: &Group<'_>) {
        self.rows[at].take(group.reserved, group.host_ports);
        if self.service == group.service_id {
            self.touch(at);
        }
    }
}

impl Row<'_> {
    fn has(&self, wanted: &Resources) -> bool {
        (wanted.nano_cpus <= 0 || wanted.nano_cpus <= self.free.nano_cpus)
            && (wanted.memory_bytes <= 0 || wanted.memory_bytes <= self.free.memory_bytes)
    }

    fn take(&mut self, reserved: Resources, host_ports: &[PortConfig]) {
        self.free.nano_cpus = self.free.nano_cpus.saturating_sub(reserved.nano_cpus.max(0));
        self.free.memory_bytes = self.free.memory_bytes.saturating_sub(reserved.memory_bytes.max(0));
        self.tasks += 1;
        self.host_ports.extend(ports(host_ports));
    }
}

fn ports(host_ports: &[PortConfig]) -> impl Iterator<Item = (u32, i32)> {
    host_ports.iter().filter(|p| p.published_port != 0).map(|p| (p.published_port, p.protocol))
}

/// Whether the task takes room on its node.
fn holds(task: &Arc<Task>) -> bool {
    !task.node_id.is_empty() && task.observed() >= TaskState::Assigned && !task.observed().is_terminal()
}

fn failed_lately(task: &Arc<Task>, now_ns: i64) -> bool {
    let at = task.status.as_ref().map_or(0, |s| s.at_ns);
    matches!(task.observed(), TaskState::Failed | TaskState::Rejected) && at > now_ns.saturating_sub(FAILURE_WINDOW)
}
