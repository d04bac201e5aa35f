//! `/events`: what happened on this node and, on a manager, in the swarm, as lines of JSON.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::StreamExt;
use http::header;
use serde_json::{Value, json};

use super::backend::{BoxStream, Event, Scope};
use super::filters::Filters;
use super::params::Params;
use super::{Api, ApiError, clock};

/// What events can be filtered by. Those that name a kind of object match its id or name.
const FILTERS: [&str; 16] = [
    "type",
    "event",
    "label",
    "scope",
    "container",
    "image",
    "network",
    "node",
    "service",
    "secret",
    "config",
    "daemon",
    "volume",
    "plugin",
    "builder",
    "reload",
];

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/events", get(events))
}

async fn events(State(api): State<Api>, params: Params) -> Result<Response, ApiError> {
    let filters = params.filters(&FILTERS)?;
    let since = clock::parse("since", params.text("since"))?;
    let until = clock::parse("until", params.text("until"))?;
    let now = clock::now_ns();
    // Without `since` nothing is told of the past.
    let from = if params.text("since").is_empty() { now } else { since };
    let source: BoxStream<Event> = if until != 0 && until <= now {
        Box::pin(futures::stream::iter(api.backend.events.remembered()))
    } else {
        api.backend.events.subscribe()
    };
    let chosen = source.filter(move |event| {
        let in_time = event.at_ns >= from && (until == 0 || event.at_ns <= until);
        std::future::ready(in_time && fits(event, &filters))
    });
    let left = if until == 0 { None } else { Some(Duration::from_nanos(u64::try_from(until - now).unwrap_or(0))) };
    let ending = api.ending.clone();
    let end = async move {
        match left {
            // The past is read without waiting; what is still to come has until then.
            Some(left) => tokio::select! { () = tokio::time::sleep(left) => {}, () = ending.cancelled() => {} },
            None => ending.cancelled().await,
        }
    };
    let lines = chosen.map(|event| {
        let mut line = out(&event).to_string();
        line.push('\n');
        Ok::<_, std::io::Error>(Bytes::from(line))
    });
    let body = if left == Some(Duration::ZERO) {
        Body::from_stream(lines)
    } else {
        Body::from_stream(lines.take_until(Box::pin(end)))
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn fits(event: &Event, filters: &Filters) -> bool {
    let scope = scope_word(event.scope);
    // `exec_start: sh` is found as `exec_start`.
    let action = event.action.split(':').next().unwrap_or_default();
    let name = event.attributes.get("name").map(String::as_str).unwrap_or_default();
    let object = |kind: &str| {
        !filters.has(kind)
            || if event.kind == kind {
                filters.any(kind, |wanted| event.id.starts_with(wanted) || wanted == name)
            } else {
                // A container's events are also found by the image that it was made of.
                kind == "image"
                    && filters.any(kind, |wanted| event.attributes.get("image").is_some_and(|i| i == wanted))
            }
    };
    filters.exact("type", &event.kind)
        && filters.any("event", |wanted| wanted == event.action || wanted == action)
        && filters.exact("scope", scope)
        && filters.labels("label", &event.attributes)
        && ["container", "image", "network", "node", "service", "secret", "config", "daemon", "volume", "plugin"]
            .iter()
            .all(|kind| object(kind))
}

fn scope_word(scope: Scope) -> &'static str {
    match scope {
        Scope::Local => "local",
        Scope::Swarm => "swarm",
    }
}

fn out(event: &Event) -> Value {
    let mut value = json!({
        "Type": event.kind, "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "scope": scope_word(event.scope), "time": event.at_ns / 1_000_000_000, "timeNano": event.at_ns,
    });
    // Older clients look here.
    if let (Some(members), "container" | "image") = (value.as_object_mut(), event.kind.as_str()) {
        members.insert("status".to_owned(), json!(event.action));
        members.insert("id".to_owned(), json!(event.id));
        if let Some(image) = event.attributes.get("image") {
            members.insert("from".to_owned(), json!(image));
        }
    }
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn filters_choose() {
        let event = Event {
            kind: "container".to_owned(),
            action: "die".to_owned(),
            id: "abcdef".to_owned(),
            attributes: BTreeMap::from([
                ("name".to_owned(), "web.1".to_owned()),
                ("image".to_owned(), "busybox".to_owned()),
                ("tier".to_owned(), "front".to_owned()),
            ]),
            ..Event::default()
        };
        for (filters, expected) in [
            ("{}", true),
            (r#"{"type":["container"]}"#, true),
            (r#"{"type":["image"]}"#, false),
            (r#"{"event":["die","start"]}"#, true),
            (r#"{"event":["start"]}"#, false),
            (r#"{"container":["web.1"]}"#, true),
            (r#"{"container":["abc"]}"#, true),
            (r#"{"container":["other"]}"#, false),
            (r#"{"image":["busybox"]}"#, true),
            (r#"{"service":["web"]}"#, false),
            (r#"{"scope":["local"]}"#, true),
            (r#"{"scope":["swarm"]}"#, false),
            (r#"{"label":["tier=front"]}"#, true),
        ] {
            let parsed = Filters::parse(Some(filters), &FILTERS).unwrap();
            assert_eq!(fits(&event, &parsed), expected, "{filters}");
        }
    }
}
