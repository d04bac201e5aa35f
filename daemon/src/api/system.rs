//! `/system/df`, and the lists of things that this node has none of. These can be cleaned up all the same: commands that
//! clean up everything (`docker system prune`) and desktops do it unasked.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Api, ApiError, containers, images};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/system/df", get(disk_usage))
        .route("/volumes", get(|| async { Json(json!({ "Volumes": [], "Warnings": null })) }))
        .route("/volumes/prune", post(|| async { pruned("VolumesDeleted") }))
        .route("/containers/prune", post(|| async { pruned("ContainersDeleted") }))
        .route("/build/prune", post(|| async { pruned("CachesDeleted") }))
        .route("/plugins", get(|| async { Json(json!([])) }))
}

fn pruned(what: &str) -> Json<Value> {
    Json(json!({ what: [], "SpaceReclaimed": 0 }))
}

async fn disk_usage(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let images = api.backend.images.list().await?;
    let containers = api.backend.containers.list().await?;
    let layers: u64 = images.iter().map(|i| i.size).sum();
    Ok(Json(json!({
        "LayersSize": layers,
        "Images": images.iter().map(|image| images::summary(image, &containers)).collect::<Vec<_>>(),
        "Containers": containers.iter().map(containers::summary).collect::<Vec<_>>(),
        "Volumes": [], "BuildCache": [], "BuilderSize": 0,
    })))
}
