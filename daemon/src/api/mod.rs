//! The Engine HTTP API: what the `docker` command, its SDKs and `skep` speak to a node.
//!
//! It decides how requests and answers look, never what happens: everything that is done is done by the facilities
//! of [`backend`]. One file holds one resource; [`convert`] turns the API's objects into the cluster's messages and
//! back, purely. Called by the node, which binds the listeners and hands them to [`serve`].

pub mod backend;
mod body;
mod clock;
mod containers;
pub mod convert;
mod distribution;
mod errors;
mod event_hub;
mod events;
mod filters;
mod images;
mod info;
mod kept;
mod logs;
mod names;
mod negotiate;
mod networks;
mod nodes;
mod params;
mod ping;
mod serve;
mod services;
mod stdcopy;
mod swarm;
mod system;
mod tasks;
mod unsupported;
mod version;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures::future::BoxFuture;
use skep_proto::DRAINING;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

pub use backend::Backend;
pub use clock::words;
pub use errors::ApiError;
pub use event_hub::{EventHub, follow_cluster};
pub use negotiate::{ApiVersion, MAX_VERSION, MIN_VERSION};
pub use serve::serve;

use backend::{Control, SwarmFacts, SwarmState};

/// How long a removal waits for tasks that are stopping: longer than most are given, shorter than a person's patience.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);
const DRAINED_PAUSE: Duration = Duration::from_millis(100);

/// The API of one node. Cheap to clone; all clones share the node's facilities and end together.
#[derive(Clone, Debug)]
pub struct Api {
    backend: Backend,
    /// Ends the streams that would otherwise stay open for ever.
    ending: CancellationToken,
}

impl Api {
    /// An API over these facilities. Cancelling `ending` closes follow-streams (events, logs).
    pub fn new(backend: Backend, ending: CancellationToken) -> Self {
        Self { backend, ending }
    }

    /// The facilities.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Everything that is served, without the version prefix that [`serve`] takes off.
    fn routes(&self) -> Router {
        Router::new()
            .merge(ping::routes())
            .merge(version::routes())
            .merge(info::routes())
            .merge(system::routes())
            .merge(events::routes())
            .merge(swarm::routes())
            .merge(nodes::routes())
            .merge(services::routes())
            .merge(tasks::routes())
            .merge(networks::routes())
            .merge(kept::secrets::routes())
            .merge(kept::configs::routes())
            .merge(images::routes())
            .merge(distribution::routes())
            .merge(containers::routes())
            .merge(unsupported::routes())
            .method_not_allowed_fallback(unsupported::page_not_found)
            .fallback(unsupported::page_not_found)
            .with_state(self.clone())
    }

    /// The cluster's API, or the error that says why this node has none.
    async fn control(&self) -> Result<Arc<Control>, ApiError> {
        match self.backend.cluster.control() {
            Some(control) => Ok(control),
            None => Err(no_manager(&self.backend.node.facts().await.swarm)),
        }
    }

    /// A call of the cluster's API, from this node.
    fn call<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        self.backend.cluster.mark(request.extensions_mut());
        request
    }

    /// Removes something, once the last tasks of services that were removed before have ended: clients remove a service
    /// and what it used in one breath.
    async fn once_drained<'a, T>(&self, remove: impl Fn() -> BoxFuture<'a, Result<T, Status>>) -> Result<T, Status> {
        let until = Instant::now() + DRAINED_WITHIN;
        loop {
            match remove().await {
                Err(status) if status.metadata().contains_key(DRAINING) && Instant::now() < until => {
                    tokio::select! {
                        () = self.ending.cancelled() => return Err(status),
                        () = tokio::time::sleep(DRAINED_PAUSE) => {}
                    }
                }
                done => return done,
            }
        }
    }
}

/// Why a node can't answer for the cluster, in the words that clients know.
fn no_manager(swarm: &SwarmFacts) -> ApiError {
    let text = match swarm.state {
        SwarmState::Active if !swarm.manager => {
            "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run \
             this command on a manager node or promote the current node to a manager."
        }
        SwarmState::Active | SwarmState::Pending => {
            "This node is a member of a swarm and not yet in touch with it. Wait a moment and try again."
        }
        SwarmState::Error => {
            return ApiError::unavailable(format!("This node can't take part in its swarm any more: {}", swarm.error));
        }
        SwarmState::Inactive => {
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node \
             to swarm and try again."
        }
    };
    ApiError::unavailable(text)
}
