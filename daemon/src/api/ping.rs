//! `/_ping`: whether the node answers, and what clients need to know before they say more.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header;

use super::Api;
use super::backend::{SwarmFacts, SwarmState};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/_ping", get(ping))
}

async fn ping(State(api): State<Api>) -> Response {
    let facts = api.backend.node.facts().await;
    let headers = [
        (header::CACHE_CONTROL, "no-cache, no-store, must-revalidate"),
        (header::PRAGMA, "no-cache"),
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
    ];
    // Builder 1: clients don't try to open a build session, which this node has not.
    (headers, [("swarm", word(&facts.swarm)), ("builder-version", "1")], "OK").into_response()
}

/// Membership as the header says it.
fn word(swarm: &SwarmFacts) -> &'static str {
    match swarm.state {
        SwarmState::Inactive => "inactive",
        SwarmState::Pending => "pending",
        SwarmState::Error => "error",
        SwarmState::Active if swarm.manager => "active/manager",
        SwarmState::Active => "active/worker",
    }
}
