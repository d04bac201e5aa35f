//! `/configs`.

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde_json::{Value, json};
use skep_proto::v1;

use super::body::JsonBody;
use super::params::Params;
use super::{Api, ApiError, convert};

const FILTERS: [&str; 4] = ["id", "label", "name", "names"];

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/configs", get(list))
        .route("/configs/create", post(create))
        .route("/configs/{id}", get(inspect).delete(remove))
        .route("/configs/{id}/update", post(update))
}

async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = params.filters(&FILTERS)?;
    let configs = api.control().await?.list_configs(api.call(v1::ListConfigsRequest {})).await?.into_inner().configs;
    let chosen = configs.iter().filter(|config| {
        let annotations = config.spec.as_ref().and_then(|s| s.annotations.clone()).unwrap_or_default();
        filters.prefix("id", &config.id)
            && filters.prefix("name", &annotations.name)
            && filters.exact("names", &annotations.name)
            && filters.labels("label", &annotations.labels)
    });
    Ok(Json(chosen.map(convert::secret::config_out).collect()))
}

async fn create(
    State(api): State<Api>,
    JsonBody(body): JsonBody<Value>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let control = api.control().await?;
    let spec = convert::secret::config_in(&body)?;
    let request = v1::CreateConfigRequest { spec: Some(spec), id: skep_proto::id::new() };
    let config = control.create_config(api.call(request)).await?.into_inner();
    Ok((StatusCode::CREATED, Json(json!({ "ID": config.id }))))
}

async fn inspect(State(api): State<Api>, Path(reference): Path<String>) -> Result<Json<Value>, ApiError> {
    let config = api.control().await?.get_config(api.call(v1::GetRequest { reference })).await?.into_inner();
    Ok(Json(convert::secret::config_out(&config)))
}

async fn update(
    State(api): State<Api>,
    Path(reference): Path<String>,
    params: Params,
    JsonBody(body): JsonBody<Value>,
) -> Result<StatusCode, ApiError> {
    let control = api.control().await?;
    let spec = convert::secret::config_in(&body)?;
    let request = v1::UpdateConfigRequest { reference, version: params.number("version")?, spec: Some(spec) };
    control.update_config(api.call(request)).await?;
    Ok(StatusCode::OK)
}

async fn remove(State(api): State<Api>, Path(reference): Path<String>) -> Result<StatusCode, ApiError> {
    api.control().await?.remove_config(api.call(v1::GetRequest { reference })).await?;
    Ok(StatusCode::NO_CONTENT)
}
