//! What the Engine API has and this node has not: each answered with words, so that nobody waits or guesses. Paths
//! that no engine has are 404.

use axum::Router;
use axum::extract::Request;
use axum::routing::any;

use super::params::Path;
use super::{Api, ApiError, body};

pub(super) fn routes() -> Router<Api> {
    let mut router = Router::new();
    for path in ["/session", "/grpc", "/build", "/build/cancel"] {
        router = router.route(
            path,
            any(|request: Request| refuse(request, "building images; build elsewhere and use \"image load\"")),
        );
    }
    router = router.route("/auth", any(|request: Request| refuse(request, "registries; use \"image load\"")));
    router = router
        .route("/commit", any(|request: Request| refuse(request, "making images of containers; use \"image import\"")));
    for path in ["/plugins", "/plugins/{*rest}"] {
        router = router.route(path, any(plugins));
    }
    router = router
        .route("/volumes/create", any(|request: Request| refuse(request, "volumes; use a bind mount or tmpfs")))
        .route("/volumes/{name}", any(no_volume));
    router = router.route("/exec/{id}/{action}", any(|request: Request| refuse(request, "exec")));
    router = router.route("/swarm/unlock", any(|request: Request| refuse(request, "locked managers")));
    router
}

async fn refuse(request: Request, what: &'static str) -> Result<(), ApiError> {
    body::discard(request.into_body()).await;
    Err(ApiError::unsupported(format!("Skep has no support for {what}")))
}

/// A look at one plugin finds none: `docker inspect` takes that for its last try and says what it could not find.
async fn plugins(request: Request) -> Result<(), ApiError> {
    let path = request.uri().path();
    if let Some((_, name)) = path.strip_suffix("/json").and_then(|path| path.split_once("/plugins/")) {
        return Err(ApiError::not_found(format!("plugin \"{name}\" not found")));
    }
    refuse(request, "plugins").await
}

async fn no_volume(Path(name): Path) -> ApiError {
    ApiError::not_found(format!("get {name}: no such volume"))
}

/// A path that no engine has, or a method that the path has not.
pub(super) async fn page_not_found(request: Request) -> ApiError {
    tracing::debug!(http.method = %request.method(), http.path = request.uri().path(), "no such path");
    body::discard(request.into_body()).await;
    ApiError::not_found("page not found")
}
