//! `/swarm`: making, joining and leaving a swarm, its settings and its tokens.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use skep_proto::v1;

use super::backend::{Addresses, Init, Join, SwarmState};
use super::body::JsonBody;
use super::params::Params;
use super::{Api, ApiError, convert};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/swarm", get(inspect))
        .route("/swarm/init", post(init))
        .route("/swarm/join", post(join))
        .route("/swarm/leave", post(leave))
        .route("/swarm/update", post(update))
        .route("/swarm/unlockkey", get(unlock_key))
}

/// The body of an init. The published model lacks `Availability`, so it stands here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InitBody {
    listen_addr: Option<String>,
    advertise_addr: Option<String>,
    data_path_addr: Option<String>,
    data_path_port: Option<u32>,
    default_addr_pool: Option<Vec<String>>,
    subnet_size: Option<u32>,
    force_new_cluster: Option<bool>,
    auto_lock_managers: Option<bool>,
    availability: Option<String>,
    spec: Option<Value>,
}

/// The body of a join; likewise.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct JoinBody {
    listen_addr: Option<String>,
    advertise_addr: Option<String>,
    data_path_addr: Option<String>,
    remote_addrs: Option<Vec<String>>,
    join_token: Option<String>,
    availability: Option<String>,
}

async fn inspect(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let cluster = api.control().await?.get_cluster(api.call(v1::GetClusterRequest {})).await?.into_inner();
    Ok(Json(convert::cluster::cluster_out(&cluster, true)))
}

async fn init(State(api): State<Api>, JsonBody(body): JsonBody<InitBody>) -> Result<Json<String>, ApiError> {
    let force_new_cluster = body.force_new_cluster.unwrap_or(false);
    if !force_new_cluster {
        refuse_member(&api).await?;
    }
    if body.auto_lock_managers == Some(true) {
        return Err(ApiError::unsupported("AutoLockManagers is not supported by this version of Skep; leave it out"));
    }
    let request = Init {
        addresses: addresses(body.listen_addr, body.advertise_addr, body.data_path_addr),
        data_path_port: body.data_path_port.unwrap_or(0),
        default_address_pools: body.default_addr_pool.unwrap_or_default(),
        subnet_size: body.subnet_size.unwrap_or(0),
        force_new_cluster,
        availability: convert::cluster::availability_in(&body.availability.unwrap_or_default())?,
        spec: body.spec.map(|s| convert::cluster::spec_in(&s)).transpose()?.unwrap_or_default(),
    };
    if request.data_path_port != 0 && !(1024..=49151).contains(&request.data_path_port) {
        let text = format!("invalid DataPathPort {}: it lies between 1024 and 49151", request.data_path_port);
        return Err(ApiError::bad_request(text));
    }
    Ok(Json(api.backend.cluster.init(request).await?))
}

async fn join(State(api): State<Api>, JsonBody(body): JsonBody<JoinBody>) -> Result<StatusCode, ApiError> {
    refuse_member(&api).await?;
    let request = Join {
        addresses: addresses(body.listen_addr, body.advertise_addr, body.data_path_addr),
        remotes: body.remote_addrs.unwrap_or_default().into_iter().filter(|r| !r.is_empty()).collect(),
        token: body.join_token.unwrap_or_default(),
        availability: convert::cluster::availability_in(&body.availability.unwrap_or_default())?,
    };
    if request.remotes.is_empty() {
        return Err(ApiError::bad_request("at least 1 remote address of a manager is required to join"));
    }
    if request.token.is_empty() {
        return Err(ApiError::bad_request("a join token is required; \"swarm join-token\" on a manager shows it"));
    }
    api.backend.cluster.join(request).await?;
    Ok(StatusCode::OK)
}

async fn leave(State(api): State<Api>, params: Params) -> Result<StatusCode, ApiError> {
    if api.backend.node.facts().await.swarm.state == SwarmState::Inactive {
        return Err(ApiError::unavailable("This node is not part of a swarm"));
    }
    api.backend.cluster.leave(params.flag("force")).await?;
    Ok(StatusCode::OK)
}

async fn update(
    State(api): State<Api>,
    params: Params,
    JsonBody(body): JsonBody<Value>,
) -> Result<StatusCode, ApiError> {
    let control = api.control().await?;
    let request = v1::UpdateClusterRequest {
        version: params.number("version")?,
        spec: Some(convert::cluster::spec_in(&body)?),
        rotate_worker_token: params.flag("rotateWorkerToken"),
        rotate_manager_token: params.flag("rotateManagerToken"),
    };
    if params.flag("rotateManagerUnlockKey") {
        return Err(ApiError::unsupported("managers are never locked, so there is no unlock key to rotate"));
    }
    control.update_cluster(api.call(request)).await?;
    Ok(StatusCode::OK)
}

async fn unlock_key(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    api.control().await?;
    Ok(Json(convert::cluster::unlock_key_out()))
}

async fn refuse_member(api: &Api) -> Result<(), ApiError> {
    if api.backend.node.facts().await.swarm.state == SwarmState::Inactive {
        return Ok(());
    }
    Err(ApiError::unavailable(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.",
    ))
}

fn addresses(listen: Option<String>, advertise: Option<String>, data_path: Option<String>) -> Addresses {
    Addresses {
        listen: listen.unwrap_or_default(),
        advertise: advertise.unwrap_or_default(),
        data_path: data_path.unwrap_or_default(),
    }
}
