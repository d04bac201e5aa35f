//! `/services`.

use axum::extract::{Extension, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde_json::{Value, json};
use skep_proto::v1;

use super::body::{JsonBody, OptionalJson};
use super::filters::Filters;
use super::params::{Params, Path};
use super::{Api, ApiError, ApiVersion, convert, logs, names};

const FILTERS: [&str; 5] = ["id", "label", "mode", "name", "runtime"];

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/services", get(list))
        .route("/services/create", post(create))
        .route("/services/{id}", get(inspect).delete(remove))
        .route("/services/{id}/update", post(update))
        .route("/services/{id}/logs", get(service_logs))
}

async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = params.filters(&FILTERS)?;
    filters.known("mode", &["replicated", "global", "replicated-job", "global-job"])?;
    let counts = params.flag("status");
    let views = api.control().await?.list_services(api.call(v1::ListServicesRequest {})).await?.into_inner().services;
    let chosen = views.iter().filter_map(|view| {
        let service = view.service.as_ref().filter(|s| fits(s, &filters))?;
        Some(convert::service::service_out(service, false, counts.then_some(view)))
    });
    Ok(Json(chosen.collect()))
}

fn fits(service: &v1::Service, filters: &Filters) -> bool {
    let spec = service.spec.as_ref();
    let annotations = spec.and_then(|s| s.annotations.clone()).unwrap_or_default();
    filters.prefix("id", &service.id)
        && filters.prefix("name", &annotations.name)
        && filters.exact("mode", convert::service::mode_word(spec))
        && filters.exact("runtime", "container")
        && filters.labels("label", &annotations.labels)
}

async fn create(
    State(api): State<Api>,
    JsonBody(body): JsonBody<Value>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let control = api.control().await?;
    let (id, mut spec) = (skep_proto::id::new(), convert::service::spec_in(&body)?);
    let annotations = spec.annotations.get_or_insert_default();
    if annotations.name.is_empty() {
        annotations.name = names::from_id(&id);
    }
    let request = v1::CreateServiceRequest { spec: Some(spec), id };
    let response = control.create_service(api.call(request)).await?.into_inner();
    Ok((StatusCode::CREATED, Json(convert::service::created_out(&response))))
}

async fn inspect(State(api): State<Api>, Path(reference): Path, params: Params) -> Result<Json<Value>, ApiError> {
    let service = api.control().await?.get_service(api.call(v1::GetRequest { reference })).await?.into_inner();
    Ok(Json(convert::service::service_out(&service, params.flag("insertDefaults"), None)))
}

async fn update(
    State(api): State<Api>,
    Path(reference): Path,
    params: Params,
    OptionalJson(body): OptionalJson<Value>,
) -> Result<Json<Value>, ApiError> {
    let control = api.control().await?;
    let rollback = match params.text("rollback") {
        "" | "none" => false,
        "previous" => true,
        other => return Err(ApiError::bad_request(format!("unrecognized rollback option {other}"))),
    };
    // registryAuthFrom chooses between stored credentials; there are none, so any choice gives the same.
    let spec = match body {
        _ if rollback => None,
        Some(body) => Some(convert::service::spec_in(&body)?),
        None => return Err(ApiError::bad_request("invalid JSON: the request has no body")),
    };
    let request = v1::UpdateServiceRequest { reference, version: params.number("version")?, spec, rollback };
    let response = control.update_service(api.call(request)).await?.into_inner();
    let warnings = if response.warnings.is_empty() { Value::Null } else { json!(response.warnings) };
    Ok(Json(json!({ "Warnings": warnings })))
}

async fn remove(State(api): State<Api>, Path(reference): Path) -> Result<StatusCode, ApiError> {
    api.control().await?.remove_service(api.call(v1::GetRequest { reference })).await?;
    Ok(StatusCode::OK)
}

async fn service_logs(
    State(api): State<Api>,
    Extension(version): Extension<ApiVersion>,
    Path(reference): Path,
    params: Params,
) -> Result<Response, ApiError> {
    let control = api.control().await?;
    let service = control.get_service(api.call(v1::GetRequest { reference })).await?.into_inner();
    let request = v1::ListTasksRequest { service_id: service.id.clone(), node_id: String::new() };
    let tasks = control.list_tasks(api.call(request)).await?.into_inner().tasks;
    let tty =
        service.spec.as_ref().and_then(|s| s.task.as_ref()).and_then(|t| t.container.as_ref()).is_some_and(|c| c.tty);
    logs::of_tasks(&api, version, tasks, Some(service.id), tty, &params).await
}
