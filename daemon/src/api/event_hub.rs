//! The node's memory of events: a bounded history, and everybody who listens. The node publishes what happens on it;
//! [`follow_cluster`] adds what happens in the swarm while the node is a manager.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use skep_proto::v1::{ClusterEvent, EventAction, ObjectKind, WatchEventsRequest};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use super::Api;
use super::backend::{BoxStream, Event, LocalEvents, Scope};

/// Events that are remembered; as many as the Docker engine remembers.
const REMEMBERED: usize = 256;

/// How many events a listener may fall behind before it is cut off.
const BEHIND: usize = 1024;

/// How long to wait before looking for a manager's stream again.
const RETRY: Duration = Duration::from_millis(250);

/// A bounded history with listeners.
#[derive(Debug)]
pub struct EventHub {
    history: Mutex<VecDeque<Event>>,
    sender: broadcast::Sender<Event>,
}

impl Default for EventHub {
    fn default() -> Self {
        Self { history: Mutex::new(VecDeque::with_capacity(REMEMBERED)), sender: broadcast::channel(BEHIND).0 }
    }
}

impl EventHub {
    /// A hub that remembers nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The history is whole between any two statements under its lock, so a panic elsewhere can't have broken it.
    fn history(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalEvents for EventHub {
    fn subscribe(&self) -> BoxStream<Event> {
        let history = self.history();
        // Under the lock, so that nothing is lost or doubled between memory and stream.
        let news = BroadcastStream::new(self.sender.subscribe());
        let past: Vec<Event> = history.iter().cloned().collect();
        drop(history);
        let news =
            news.take_while(|event| std::future::ready(event.is_ok())).filter_map(|e| std::future::ready(e.ok()));
        Box::pin(futures::stream::iter(past).chain(news))
    }

    fn remembered(&self) -> Vec<Event> {
        self.history().iter().cloned().collect()
    }

    fn publish(&self, event: Event) {
        let mut history = self.history();
        if history.len() == REMEMBERED {
            history.pop_front();
        }
        history.push_back(event.clone());
        // Nobody listening is no failure.
        let _ = self.sender.send(event);
    }
}

/// Feeds the swarm's events into the node's memory for as long as the node lives: run it once a node, as a task of
/// its own. Without a manager's stream it looks for one again and again.
pub async fn follow_cluster(api: Api) {
    let ending = api.ending.clone();
    let follow = async {
        loop {
            if let Some(control) = api.backend.cluster.control()
                && let Ok(events) = control.watch_events(api.call(WatchEventsRequest {})).await
            {
                let mut events = events.into_inner();
                while let Some(Ok(event)) = events.next().await {
                    api.backend.events.publish(from_cluster(event));
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = follow => {}
        () = ending.cancelled() => {}
    }
}

/// An event of the swarm in the API's words.
fn from_cluster(event: ClusterEvent) -> Event {
    let kind = match event.kind() {
        ObjectKind::Cluster => "swarm",
        ObjectKind::Node => "node",
        ObjectKind::Service => "service",
        ObjectKind::Task => "task",
        ObjectKind::Network => "network",
        ObjectKind::Secret => "secret",
        ObjectKind::Config => "config",
    };
    let action = match event.action() {
        EventAction::Create => "create",
        EventAction::Update => "update",
        EventAction::Remove => "remove",
    };
    let mut attributes: BTreeMap<String, String> = event.attributes;
    if !event.name.is_empty() {
        attributes.insert("name".to_owned(), event.name);
    }
    Event {
        at_ns: event.at_ns,
        kind: kind.to_owned(),
        action: action.to_owned(),
        id: event.id,
        attributes,
        scope: Scope::Swarm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: usize) -> Event {
        Event { id: id.to_string(), ..Event::default() }
    }

    #[tokio::test]
    async fn memory_is_bounded_and_listeners_get_it_first() {
        let hub = EventHub::new();
        for id in 0..REMEMBERED + 10 {
            hub.publish(event(id));
        }
        let listener = hub.subscribe();
        hub.publish(event(9999));
        let got: Vec<_> = listener.take(REMEMBERED + 1).collect().await;
        assert_eq!(got.first(), Some(&event(10)));
        assert_eq!(got.last(), Some(&event(9999)));
        assert_eq!(hub.remembered().len(), REMEMBERED);
    }

    #[tokio::test]
    async fn a_listener_that_falls_behind_is_cut_off() {
        let hub = EventHub::new();
        let listener = hub.subscribe();
        for id in 0..BEHIND * 3 {
            hub.publish(event(id));
        }
        drop(hub);
        assert!(listener.count().await < BEHIND * 3);
    }

    #[test]
    fn events_of_the_swarm_have_the_api_s_words() {
        let event = from_cluster(ClusterEvent {
            at_ns: 5,
            kind: ObjectKind::Node.into(),
            action: EventAction::Update.into(),
            id: "n1".to_owned(),
            name: "host".to_owned(),
            attributes: BTreeMap::from([("state.new".to_owned(), "ready".to_owned())]),
        });
        assert_eq!((event.kind.as_str(), event.action.as_str(), event.scope), ("node", "update", Scope::Swarm));
        assert_eq!(event.attributes["name"], "host");
        assert_eq!(event.attributes["state.new"], "ready");
    }
}
