//! `/tasks`.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Extension, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::Value;
use skep_plan::update;
use skep_proto::v1;
use tonic::Code;

use super::backend::Control;
use super::filters::Filters;
use super::params::{Params, Path};
use super::{Api, ApiError, ApiVersion, convert, logs, nodes};

const FILTERS: [&str; 8] = ["id", "name", "service", "node", "desired-state", "label", "runtime", "_up-to-date"];

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/tasks", get(list))
        .route("/tasks/{id}", get(inspect))
        .route("/tasks/{id}/logs", get(task_logs))
}

async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = params.filters(&FILTERS)?;
    filters.known("desired-state", &["running", "shutdown", "accepted", "ready", "remove"])?;
    let control = api.control().await?;
    let services = services(&api, control.as_ref(), &filters).await?;
    let nodes = chosen_nodes(&api, control.as_ref(), &filters).await?;
    let watched = watched(&api, control.as_ref(), &filters).await?;
    // One service or one node is asked for most often; then the rest need not travel.
    let single = |chosen: &Option<BTreeSet<String>>| {
        chosen.as_ref().filter(|c| c.len() == 1).and_then(|c| c.first().cloned()).unwrap_or_default()
    };
    let request = v1::ListTasksRequest { service_id: single(&services), node_id: single(&nodes) };
    let views = control.list_tasks(api.call(request)).await?.into_inner().tasks;
    let networks = networks(&api, control.as_ref()).await?;
    let ingress = networks.values().find(|n| n.spec.as_ref().is_some_and(|s| s.ingress)).map(|n| n.id.as_str());
    let current = |services: &BTreeMap<String, v1::Service>, task: &v1::Task, spec: Option<&v1::TaskSpec>| {
        services.get(&task.service_id).is_some_and(|service| update::is_current(service, task, spec, ingress))
    };
    let chosen = views.iter().filter(|view| {
        let Some(task) = &view.task else { return false };
        services.as_ref().is_none_or(|s| s.contains(&task.service_id))
            && nodes.as_ref().is_none_or(|n| n.contains(&task.node_id))
            && watched.as_ref().is_none_or(|w| current(w, task, view.spec.as_ref()))
            && fits(task, view, &filters)
    });
    Ok(Json(chosen.map(|view| convert::task::task_out(view, &networks)).collect()))
}

fn fits(task: &v1::Task, view: &v1::TaskView, filters: &Filters) -> bool {
    filters.prefix("id", &task.id)
        && filters.prefix("name", &task.name)
        && filters.exact("desired-state", task.desired_state().word())
        && filters.exact("runtime", "container")
        && filters.labels("label", &view.service_labels)
}

/// The ids of the services that a filter names; one that names none is an error, as clients expect.
async fn services(api: &Api, control: &Control, filters: &Filters) -> Result<Option<BTreeSet<String>>, ApiError> {
    if !filters.has("service") {
        return Ok(None);
    }
    let mut ids = BTreeSet::new();
    for reference in filters.get("service") {
        let found = control.get_service(api.call(v1::GetRequest { reference: reference.clone() })).await;
        match found {
            Ok(service) => ids.insert(service.into_inner().id),
            // Tasks of a service that is being removed are still found under its id.
            Err(status) if status.code() == Code::NotFound && skep_proto::id::is_id(reference) => {
                ids.insert(reference.clone())
            }
            Err(status) => return Err(status.into()),
        };
    }
    Ok(Some(ids))
}

async fn chosen_nodes(api: &Api, control: &Control, filters: &Filters) -> Result<Option<BTreeSet<String>>, ApiError> {
    if !filters.has("node") {
        return Ok(None);
    }
    let mut ids = BTreeSet::new();
    for reference in filters.get("node") {
        let reference = nodes::own(api, reference.clone()).await;
        ids.insert(control.get_node(api.call(v1::GetRequest { reference })).await?.into_inner().id);
    }
    Ok(Some(ids))
}

/// For clients that watch an update: the services, so that only tasks are shown that the update leaves.
async fn watched(
    api: &Api,
    control: &Control,
    filters: &Filters,
) -> Result<Option<BTreeMap<String, v1::Service>>, ApiError> {
    if filters.flag("_up-to-date")? != Some(true) {
        return Ok(None);
    }
    let views = control.list_services(api.call(v1::ListServicesRequest {})).await?.into_inner().services;
    Ok(Some(views.into_iter().filter_map(|v| v.service).map(|s| (s.id.clone(), s)).collect()))
}

async fn networks(api: &Api, control: &Control) -> Result<BTreeMap<String, v1::Network>, ApiError> {
    let networks = control.list_networks(api.call(v1::ListNetworksRequest {})).await?.into_inner().networks;
    Ok(networks.into_iter().map(|n| (n.id.clone(), n)).collect())
}

async fn inspect(State(api): State<Api>, Path(reference): Path) -> Result<Json<Value>, ApiError> {
    let control = api.control().await?;
    let view = control.get_task(api.call(v1::GetRequest { reference })).await?.into_inner();
    Ok(Json(convert::task::task_out(&view, &networks(&api, control.as_ref()).await?)))
}

async fn task_logs(
    State(api): State<Api>,
    Extension(version): Extension<ApiVersion>,
    Path(reference): Path,
    params: Params,
) -> Result<Response, ApiError> {
    let control = api.control().await?;
    let view = control.get_task(api.call(v1::GetRequest { reference })).await?.into_inner();
    let tty = view.spec.as_ref().and_then(|t| t.container.as_ref()).is_some_and(|c| c.tty);
    logs::of_tasks(&api, version, vec![view], None, tty, &params).await
}
