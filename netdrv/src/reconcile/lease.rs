//! Which sandboxes a round plans for, and with which gateway address.
//!
//! What an earlier daemon gave is known only from the sandboxes themselves. Until all that it left have been read, nobody
//! gets a new address, and the node's namespace stays as it is: it could cut off one that is merely not read yet. One that
//! can't be read for long loses its link to the gateway, and with that its address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use skep_net_plan::{Place, Seen};
use tokio::time::Instant;

use super::Reconciler;
use crate::apply::Failure;
use crate::error::{Error, Result};

/// How long sandboxes that can't be read hold up the others.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sandboxes that an earlier daemon left and that have not been read yet.
#[derive(Debug)]
pub(super) struct Unread {
    ids: BTreeSet<String>,
    /// When the others wait no longer; `None` = nobody has waited yet.
    until: Option<Instant>,
}

impl Unread {
    pub(super) fn new(found: Vec<String>) -> Self {
        Self { ids: found.into_iter().collect(), until: None }
    }

    /// It was read, was only just made, or is none.
    pub(super) fn forget(&mut self, id: &str) {
        self.ids.remove(id);
    }

    /// The others are gone.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.ids.retain(|id| keep(id));
    }

    /// Those of them that are to be waited for.
    fn waited_for(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let found: Vec<_> = self.ids.iter().filter(|id| wanted(id)).cloned().collect();
        let late = !found.is_empty() && {
            let now = Instant::now();
            *self.until.get_or_insert(now + PATIENCE) <= now
        };
        if late { Vec::new() } else { found }
    }
}

impl Reconciler {
    /// Open sandboxes with their gateway addresses; also whether the node's namespace may be worked on.
    pub(super) fn lease(
        &mut self,
        seen: &BTreeMap<Place, Arc<Seen>>,
        failures: &mut Vec<Failure>,
    ) -> (BTreeMap<String, Option<Ipv4Addr>>, bool) {
        let desired = self.desired.clone();
        let wants = |id: &str| desired.attachments.get(id).is_some_and(|s| s.gateway);
        let waited_for = self.unread.waited_for(wants);
        if !waited_for.is_empty() {
            let error = Error::Unread { sandboxes: waited_for.join(", ") };
            failures.push(Failure { place: Place::Host, culprit: Place::Host, error });
        }
        let open = self.wires.keys().filter_map(|place| match place {
            Place::Sandbox(id) => Some(id.clone()),
            _ => None,
        });
        let mut given = BTreeMap::new();
        // One that can't even be opened is there nevertheless.
        for id in open.chain(self.unread.ids.iter().cloned()).collect::<BTreeSet<_>>() {
            let place = Place::Sandbox(id.clone());
            let held = self.leases.held(&id);
            let new = wants(&id) && held.is_none() && seen.contains_key(&place);
            let lease: Result<_> = match new {
                true if waited_for.is_empty() => self.leases.lease(&id).map(Some),
                true => Err(Error::Unread { sandboxes: waited_for.join(", ") }),
                false => Ok(held.filter(|_| wants(&id))),
            };
            let lease = lease.unwrap_or_else(|error| {
                failures.push(Failure { culprit: place.clone(), place, error });
                None
            });
            given.insert(id, lease);
        }
        (given, waited_for.is_empty())
    }
}
