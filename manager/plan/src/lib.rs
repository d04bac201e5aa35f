//! What should change next, decided from the state alone: which tasks there should be, where they run, which addresses
//! they have, in which order they are replaced.
//!
//! Pure: no clock, no socket, no randomness of its own. The leader calls [`plan`] again and again; it reads everything
//! anew each time, so whatever an earlier round (or another leader) left half done is simply found in the state. It
//! never talks to a node and never writes: it returns actions, and the log decides. [`assignment`] shows each node its
//! part, [`validate`] checks what clients ask for.
#![forbid(unsafe_code)]

mod allocate;
pub mod assignment;
mod constraint;
mod defaults;
mod draft;
mod drain;
mod nodes;
mod orchestrate;
mod reap;
mod reserved;
mod schedule;
pub mod update;
pub mod validate;

use std::collections::{BTreeMap, BTreeSet};

use skep_proto::v1::Action;
use skep_state::State;

/// What the leader knows beside the state. Kept in its memory only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Node id -> newest generation (log index) that the node's balancers are known to show. A node that was not heard
    /// of since leadership began is absent.
    pub acknowledged: BTreeMap<String, u64>,
    /// Node id -> nanoseconds since it was last heard of; for one never heard of, since leadership began.
    pub silence_ns: BTreeMap<String, i64>,
    /// Ids of nodes that have said that they leave, after the end of their tasks: nobody waits for their heartbeats.
    pub left: BTreeSet<String>,
}

/// What to do now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// To be proposed in this order, best effort: what no longer fits is planned anew.
    pub actions: Vec<Action>,
    /// When to plan again even if nothing changes until then, Unix nanoseconds.
    pub next_wake_ns: Option<i64>,
}

/// Plans one round. `ids` makes a new unique id at every call.
///
/// Rounds reach a fixpoint: once the actions are applied and no input changes, the next round has nothing to do.
pub fn plan(state: &State, now_ns: i64, inputs: &Inputs, ids: &mut dyn FnMut() -> String) -> Plan {
    let mut draft = draft::Draft::new(state, now_ns);
    let mut pools = allocate::Pools::default();
    nodes::judge(&mut draft, inputs);
    allocate::services(&mut draft, &mut pools);
    orchestrate::run(&mut draft, ids);
    drain::advance(&mut draft, inputs);
    allocate::tasks(&mut draft, &mut pools);
    schedule::run(&mut draft, &mut pools);
    allocate::nodes(&mut draft, &mut pools);
    pools.save(&mut draft);
    reap::run(&mut draft);
    draft.finish()
}
