//! `/secrets`.

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
        .route("/secrets", get(list))
        .route("/secrets/create", post(create))
        .route("/secrets/{id}", get(inspect).delete(remove))
        .route("/secrets/{id}/update", post(update))
}

async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = params.filters(&FILTERS)?;
    let secrets = api.control().await?.list_secrets(api.call(v1::ListSecretsRequest {})).await?.into_inner().secrets;
    let chosen = secrets.iter().filter(|secret| {
        let annotations = secret.spec.as_ref().and_then(|s| s.annotations.clone()).unwrap_or_default();
        filters.prefix("id", &secret.id)
            && filters.prefix("name", &annotations.name)
            && filters.exact("names", &annotations.name)
            && filters.labels("label", &annotations.labels)
    });
    Ok(Json(chosen.map(convert::secret::secret_out).collect()))
}

async fn create(
    State(api): State<Api>,
    JsonBody(body): JsonBody<Value>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let control = api.control().await?;
    let spec = convert::secret::secret_in(&body)?;
    let request = v1::CreateSecretRequest { spec: Some(spec), id: skep_proto::id::new() };
    let secret = control.create_secret(api.call(request)).await?.into_inner();
    Ok((StatusCode::CREATED, Json(json!({ "ID": secret.id }))))
}

async fn inspect(State(api): State<Api>, Path(reference): Path<String>) -> Result<Json<Value>, ApiError> {
    let secret = api.control().await?.get_secret(api.call(v1::GetRequest { reference })).await?.into_inner();
    Ok(Json(convert::secret::secret_out(&secret)))
}

async fn update(
    State(api): State<Api>,
    Path(reference): Path<String>,
    params: Params,
    JsonBody(body): JsonBody<Value>,
) -> Result<StatusCode, ApiError> {
    let control = api.control().await?;
    let spec = convert::secret::secret_in(&body)?;
    let request = v1::UpdateSecretRequest { reference, version: params.number("version")?, spec: Some(spec) };
    control.update_secret(api.call(request)).await?;
    Ok(StatusCode::OK)
}

async fn remove(State(api): State<Api>, Path(reference): Path<String>) -> Result<StatusCode, ApiError> {
    api.control().await?.remove_secret(api.call(v1::GetRequest { reference })).await?;
    Ok(StatusCode::NO_CONTENT)
}
