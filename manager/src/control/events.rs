//! Cluster-scope events, as this manager applies the changes. A watcher that falls behind is cut off, so that a slow
//! reader costs a bounded amount of memory and knows that it missed something.

use std::pin::Pin;

use skep_proto::v1::ClusterEvent;
use skep_state::Change;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::store::{Applied, Store};

/// The stream that [`watch`] gives.
pub(super) type Stream = Pin<Box<dyn futures::Stream<Item = Result<ClusterEvent, Status>> + Send>>;

/// Every event from now on, until the manager stops: a node that is demoted and promoted has another one then.
pub(super) fn watch(store: &Store, stop: CancellationToken) -> Stream {
    let batches = BroadcastStream::new(store.events()).map(|batch| match batch {
        Ok(applied) => events(&applied).into_iter().map(Ok).collect(),
        Err(_) => vec![Err(Status::resource_exhausted("events came faster than they were read; some are lost"))],
    });
    let events = futures::StreamExt::flat_map(batches, futures::stream::iter);
    Box::pin(futures::StreamExt::take_until(events, stop.cancelled_owned()))
}

/// The events of one command. Tasks have none of their own at cluster scope.
fn events(applied: &Applied) -> Vec<ClusterEvent> {
    applied
        .changes
        .iter()
        .filter_map(Change::event)
        .map(|event| ClusterEvent { at_ns: applied.at_ns, ..event })
        .collect()
}
