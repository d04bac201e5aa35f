//! Which namespaces the kernel's notifications are listened to in: the node's own and the balancers. A container's is
//! left to the timer: only an admin of the node can change it from outside, and a link of it that goes is told in the
//! namespace of the other end.
//!
//! Where listening fails, the timer finds all by itself. The reconcile loop is the only caller.

use std::collections::{BTreeMap, BTreeSet};

use skep_net_kernel::watch::{Token, Watcher};
use skep_net_plan::Place;

use crate::apply::Wires;

#[derive(Debug)]
pub(crate) struct Watches {
    watcher: Option<Watcher>,
    /// `None` = it can't be watched, and was said so.
    tokens: BTreeMap<Place, Option<Token>>,
}

impl Watches {
    pub(crate) fn new() -> Self {
        let watcher = Watcher::new();
        let watcher = watcher.inspect_err(|error| tracing::warn!(%error, "no notifications of the kernel")).ok();
        Self { watcher, tokens: BTreeMap::new() }
    }

    /// Listens in all these namespaces that are to be listened to.
    pub(crate) fn follow(&mut self, wires: &Wires) {
        let Some(watcher) = &mut self.watcher else { return };
        for (place, wire) in wires {
            if matches!(place, Place::Sandbox(_)) || self.tokens.contains_key(place) {
                continue;
            }
            // The node's own neighbours are none of ours.
            let added = watcher.add(&wire.namespace, *place != Place::Host);
            let added = added.inspect_err(|error| tracing::warn!(place = %place, %error, "left to the timer"));
            self.tokens.insert(place.clone(), added.ok());
        }
    }

    /// The namespace is gone, or is opened anew.
    pub(crate) fn forget(&mut self, place: &Place) {
        if let (Some(Some(token)), Some(watcher)) = (self.tokens.remove(place), &mut self.watcher) {
            watcher.remove(token);
        }
    }

    /// Returns when [`Watches::collect`] may have something to say.
    pub(crate) async fn told(&self) {
        let failed = match &self.watcher {
            Some(watcher) => watcher.changed().await.is_err(),
            None => true,
        };
        if failed {
            std::future::pending::<()>().await;
        }
    }

    /// Where something may have been taken away or changed since the last call.
    pub(crate) fn collect(&mut self) -> BTreeSet<Place> {
        let told = self.watcher.as_mut().map(Watcher::collect).unwrap_or_default();
        let of = |token: &Token| self.tokens.iter().find(|(_, t)| t.as_ref() == Some(token)).map(|(p, _)| p.clone());
        told.iter().filter_map(of).collect()
    }
}
