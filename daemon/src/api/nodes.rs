//! `/nodes`.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde_json::Value;
use skep_proto::v1;

use super::body::JsonBody;
use super::filters::Filters;
use super::params::{Params, Path};
use super::{Api, ApiError, convert};

const FILTERS: [&str; 6] = ["id", "label", "node.label", "membership", "name", "role"];

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/nodes", get(list))
        .route("/nodes/{id}", get(inspect).delete(remove))
        .route("/nodes/{id}/update", post(update))
}

async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = params.filters(&FILTERS)?;
    filters.known("role", &["manager", "worker"])?;
    filters.known("membership", &["accepted", "pending"])?;
    let nodes = api.control().await?.list_nodes(api.call(v1::ListNodesRequest {})).await?.into_inner().nodes;
    Ok(Json(nodes.iter().filter(|node| fits(node, &filters)).map(convert::node::node_out).collect()))
}

fn fits(node: &v1::Node, filters: &Filters) -> bool {
    let description = node.description.clone().unwrap_or_default();
    let spec = node.spec.clone().unwrap_or_default();
    let role = convert::node::role_word(spec.role());
    filters.prefix("id", &node.id)
        && filters.prefix("name", &description.hostname)
        && filters.exact("role", role)
        // Whoever is listed has been accepted.
        && filters.exact("membership", "accepted")
        && filters.labels("label", &description.engine_labels)
        && filters.labels("node.label", &spec.annotations.unwrap_or_default().labels)
}

async fn inspect(State(api): State<Api>, Path(reference): Path) -> Result<Json<Value>, ApiError> {
    let control = api.control().await?;
    let reference = own(&api, reference).await;
    let node = control.get_node(api.call(v1::GetRequest { reference })).await?.into_inner();
    Ok(Json(convert::node::node_out(&node)))
}

async fn update(
    State(api): State<Api>,
    Path(reference): Path,
    params: Params,
    JsonBody(body): JsonBody<Value>,
) -> Result<StatusCode, ApiError> {
    let control = api.control().await?;
    let request = v1::UpdateNodeRequest {
        reference: own(&api, reference).await,
        version: params.number("version")?,
        spec: Some(convert::node::spec_in(&body)?),
    };
    control.update_node(api.call(request)).await?;
    Ok(StatusCode::OK)
}

async fn remove(State(api): State<Api>, Path(reference): Path, params: Params) -> Result<StatusCode, ApiError> {
    let request = v1::RemoveNodeRequest { reference, force: params.flag("force") };
    api.control().await?.remove_node(api.call(request)).await?;
    Ok(StatusCode::OK)
}

/// `self` is this node.
pub(super) async fn own(api: &Api, reference: String) -> String {
    if reference == "self" { api.backend.node.facts().await.swarm.node_id } else { reference }
}
