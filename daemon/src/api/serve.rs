//! Serves the API on a listener until told to stop, then lets requests in flight finish for a bounded time.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use tower::ServiceExt;

use super::{Api, negotiate};

/// How long requests in flight may take after the end was announced.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves the API on a bound listener (unix socket, or TCP behind whatever secures it) until `api`'s token is
/// cancelled and the requests in flight are answered, or ten seconds later.
///
/// # Errors
/// None at present but for listeners that end by themselves; failures to accept are tried again.
pub async fn serve<L>(api: Api, listener: L) -> std::io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let ending = api.ending.clone();
    let served = axum::serve(listener, app(&api)).with_graceful_shutdown(ending.clone().cancelled_owned());
    let overdue = async {
        ending.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        result = served => result,
        () = overdue => {
            tracing::warn!(seconds = DRAIN.as_secs(), "api requests did not finish in time, connections are dropped");
            Ok(())
        }
    }
}

/// The whole service. Negotiation comes before routing, because it changes the path.
pub(super) fn app(api: &Api) -> Router {
    Router::new().fallback(negotiated).with_state(api.routes())
}

async fn negotiated(State(routes): State<Router>, mut request: Request) -> Response {
    let started = std::time::Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let mut response = match negotiate::split(&uri) {
        Ok((version, stripped)) => {
            *request.uri_mut() = stripped;
            request.extensions_mut().insert(version);
            routes.oneshot(request).await.into_response()
        }
        Err(error) => error.into_response(),
    };
    negotiate::announce(response.headers_mut());
    tracing::debug!(
        http.method = %method,
        http.uri = %uri,
        http.status = response.status().as_u16(),
        elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        "api request"
    );
    response
}
