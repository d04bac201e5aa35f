//! `/distribution/{name}/json`: clients ask through the node what a registry says of an image before they create a
//! service. There is no registry; with this answer they go on with the name as it stands.

use axum::Router;
use axum::routing::get;

use super::params::Path;
use super::{Api, ApiError};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/distribution/{*name}", get(inspect))
}

async fn inspect(Path(name): Path) -> ApiError {
    let name = name.strip_suffix("/json").unwrap_or(&name);
    ApiError::not_found(format!("no registry is asked for {name}: each node uses the image that was loaded there"))
}
