//! `/networks`: those of the swarm, and the few that every node has.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde_json::{Map, Value, json};
use skep_proto::v1;

use super::backend::{ContainerState, Control};
use super::body::JsonBody;
use super::convert::network::{LocalNetwork, network_out, request_in};
use super::filters::Filters;
use super::params::{Params, Path};
use super::{Api, ApiError, clock};

const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(fixed))
        .route("/networks/{id}/disconnect", post(fixed))
}

/// The networks that this node has of its own.
async fn local(api: &Api) -> Vec<LocalNetwork> {
    let facts = api.backend.node.facts().await;
    let plain =
        |name: &str, driver| LocalNetwork { name: name.to_owned(), driver, subnet: None, created_ns: facts.started_ns };
    let mut networks = vec![plain("host", "host"), plain("none", "null")];
    if let Some(gateway) = facts.gateway {
        networks
            .push(LocalNetwork { subnet: Some((gateway.subnet, gateway.gateway)), ..plain(&gateway.name, "bridge") });
    }
    networks
}

/// All networks that can be seen here: on a worker or outside a swarm the node's own.
async fn all(api: &Api) -> Result<Vec<Value>, ApiError> {
    let mut networks: Vec<Value> = local(api).await.iter().map(LocalNetwork::out).collect();
    if let Some(control) = api.backend.cluster.control() {
        let listed = control.list_networks(api.call(v1::ListNetworksRequest {})).await?.into_inner().networks;
        networks.extend(listed.iter().map(network_out));
    }
    Ok(networks)
}

async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = params.filters(&FILTERS)?;
    filters.known("type", &["builtin", "custom"])?;
    filters.known("scope", &["local", "swarm", "global"])?;
    let in_use = match filters.flag("dangling")? {
        Some(dangling) => Some((dangling, in_use(&api).await?)),
        None => None,
    };
    let networks = all(&api).await?.into_iter().filter(|network| {
        let wanted = in_use.as_ref().is_none_or(|(dangling, used)| {
            let swarm = text(network, "Scope") == "swarm" && network["Ingress"] != json!(true);
            (swarm && !used.contains(text(network, "Id"))) == *dangling
        });
        wanted && fits(network, &filters)
    });
    Ok(Json(networks.collect()))
}

fn fits(network: &Value, filters: &Filters) -> bool {
    let name = text(network, "Name");
    let builtin = matches!(name, "host" | "none" | "ingress") || text(network, "Driver") == "bridge";
    let labels = network["Labels"].as_object().cloned().unwrap_or_default();
    let labels = labels.into_iter().map(|(k, v)| (k, v.as_str().unwrap_or_default().to_owned())).collect();
    filters.prefix("id", text(network, "Id"))
        && filters.contains("name", name)
        && filters.exact("driver", text(network, "Driver"))
        && filters.exact("scope", text(network, "Scope"))
        && filters.exact("type", if builtin { "builtin" } else { "custom" })
        && filters.labels("label", &labels)
}

fn text<'a>(network: &'a Value, field: &str) -> &'a str {
    network[field].as_str().unwrap_or_default()
}

async fn inspect(State(api): State<Api>, Path(reference): Path, params: Params) -> Result<Json<Value>, ApiError> {
    let scope = params.text("scope");
    if matches!(scope, "" | "local") {
        for network in local(&api).await {
            if network.name == reference || network.id() == reference {
                return Ok(Json(network.out()));
            }
        }
    }
    let control = match api.backend.cluster.control() {
        Some(control) if scope != "local" => control,
        _ => return Err(ApiError::not_found(format!("network {reference} not found"))),
    };
    let network = match control.get_network(api.call(v1::GetRequest { reference: reference.clone() })).await {
        Ok(network) => network.into_inner(),
        Err(status) => return Err(status.into()),
    };
    let mut out = network_out(&network);
    if let Some(members) = out.as_object_mut() {
        members.insert("Containers".to_owned(), containers(&api, &network.id).await?);
        members.insert("Peers".to_owned(), peers(&api, control.as_ref(), &network.id).await?);
        if params.flag("verbose") {
            members.insert("Services".to_owned(), services(&api, control.as_ref(), &network.id).await?);
        }
    }
    Ok(Json(out))
}

/// This node's running containers on the network: an ended one has given its address back.
async fn containers(api: &Api, network_id: &str) -> Result<Value, ApiError> {
    let mut found = Map::new();
    let listed = api.backend.containers.list().await?;
    for container in listed.into_iter().filter(|container| container.state == ContainerState::Running) {
        for network in container.networks.iter().filter(|n| n.id == network_id) {
            let entry = json!({
                "Name": container.name, "EndpointID": container.id, "MacAddress": network.mac,
                "IPv4Address": format!("{}/{}", network.address, network.prefix_len), "IPv6Address": "",
            });
            found.insert(container.id.clone(), entry);
        }
    }
    Ok(Value::Object(found))
}

/// The nodes that take part in the network.
async fn peers(api: &Api, control: &Control, network_id: &str) -> Result<Value, ApiError> {
    let nodes = control.list_nodes(api.call(v1::ListNodesRequest {})).await?.into_inner().nodes;
    let peers = nodes.iter().filter(|node| node.attachments.iter().any(|a| a.network_id == network_id)).map(|node| {
        let description = node.description.clone().unwrap_or_default();
        let status = node.status.clone().unwrap_or_default();
        let address =
            if description.data_path_address.is_empty() { status.address } else { description.data_path_address };
        json!({ "Name": node.id, "IP": address })
    });
    Ok(peers.collect())
}

/// The services on the network with their tasks, as `network inspect --verbose` shows them.
async fn services(api: &Api, control: &Control, network_id: &str) -> Result<Value, ApiError> {
    let views = control.list_services(api.call(v1::ListServicesRequest {})).await?.into_inner().services;
    let request = v1::ListTasksRequest::default();
    let tasks = control.list_tasks(api.call(request)).await?.into_inner().tasks;
    let mut found = Map::new();
    for service in views.into_iter().filter_map(|v| v.service) {
        let endpoint = service.endpoint.clone().unwrap_or_default();
        let members: Vec<Value> = tasks
            .iter()
            .filter_map(|view| view.task.as_ref())
            .filter(|task| task.service_id == service.id && task.is_ready())
            .flat_map(|task| task.networks.iter().filter(|n| n.network_id == network_id).map(move |n| (task, n)))
            .map(|(task, network)| {
                json!({ "Name": task.name, "EndpointID": task.id, "EndpointIP": network.address, "Info": {} })
            })
            .collect();
        let address = endpoint.virtual_ips.iter().find(|v| v.network_id == network_id);
        if members.is_empty() && address.is_none() {
            continue;
        }
        let name = service.spec.and_then(|s| s.annotations).map(|a| a.name).unwrap_or_default();
        let ports: Vec<String> = endpoint
            .ports
            .iter()
            .map(|port| format!("Target: {}, Publish: {}", port.target_port, port.published_port))
            .collect();
        let vip = address.map(|v| v.address.clone()).unwrap_or_default();
        found.insert(name, json!({ "VIP": vip, "Ports": ports, "LocalLBIndex": 0, "Tasks": members }));
    }
    Ok(Value::Object(found))
}

async fn create(
    State(api): State<Api>,
    JsonBody(body): JsonBody<Value>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let spec = request_in(&body)?;
    let name = spec.annotations.as_ref().map(|a| a.name.clone()).unwrap_or_default();
    if local(&api).await.iter().any(|network| network.name == name) {
        let text = format!("network {name} is this node's own; choose another name");
        return Err(ApiError::new(StatusCode::FORBIDDEN, text));
    }
    let warning = if spec.attachable { "attachable has no effect: every container belongs to a service" } else { "" };
    let request = v1::CreateNetworkRequest { spec: Some(spec), id: skep_proto::id::new() };
    let network = api.control().await?.create_network(api.call(request)).await?.into_inner();
    Ok((StatusCode::CREATED, Json(json!({ "Id": network.id, "Warning": warning }))))
}

async fn remove(State(api): State<Api>, Path(reference): Path) -> Result<StatusCode, ApiError> {
    if local(&api).await.iter().any(|network| network.name == reference || network.id() == reference) {
        let text = format!("{reference} is a pre-defined network and cannot be removed");
        return Err(ApiError::new(StatusCode::FORBIDDEN, text));
    }
    let Some(control) = api.backend.cluster.control() else {
        return Err(ApiError::not_found(format!("network {reference} not found")));
    };
    let request = v1::GetRequest { reference };
    api.once_drained(|| control.remove_network(api.call(request.clone()))).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The ids of networks that a service or a task uses.
async fn in_use(api: &Api) -> Result<BTreeSet<String>, ApiError> {
    let Some(control) = api.backend.cluster.control() else { return Ok(BTreeSet::new()) };
    let views = control.list_services(api.call(v1::ListServicesRequest {})).await?.into_inner().services;
    let services = views.into_iter().filter_map(|v| v.service).flat_map(|service| {
        let specs = [service.spec, service.previous_spec];
        specs.into_iter().flatten().filter_map(|s| s.task).flat_map(|t| t.networks).map(|n| n.target)
    });
    let mut used: BTreeSet<String> = services.collect();
    let request = v1::ListTasksRequest::default();
    let tasks = control.list_tasks(api.call(request)).await?.into_inner().tasks;
    used.extend(tasks.into_iter().filter_map(|v| v.task).flat_map(|t| t.networks).map(|n| n.network_id));
    Ok(used)
}

async fn prune(State(api): State<Api>, params: Params) -> Result<Json<Value>, ApiError> {
    let filters = params.filters(&["until", "label", "label!"])?;
    let until = filters.get("until").first().map(|t| clock::parse("until", t)).transpose()?.unwrap_or(i64::MAX);
    let control = api.control().await?;
    let used = in_use(&api).await?;
    let networks = control.list_networks(api.call(v1::ListNetworksRequest {})).await?.into_inner().networks;
    let mut deleted = Vec::new();
    for network in networks {
        let spec = network.spec.unwrap_or_default();
        let annotations = spec.annotations.unwrap_or_default();
        let kept = filters.has("label!") && filters.labels("label!", &annotations.labels);
        let young = network.meta.is_some_and(|m| m.created_ns > until);
        if spec.ingress || kept || young || used.contains(&network.id) || !filters.labels("label", &annotations.labels)
        {
            continue;
        }
        // One that came into use meanwhile is refused by the manager, and stays.
        if control.remove_network(api.call(v1::GetRequest { reference: network.id })).await.is_ok() {
            deleted.push(annotations.name);
        }
    }
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    Ok(Json(json!({ "NetworksDeleted": deleted })))
}

async fn fixed() -> Result<(), ApiError> {
    Err(ApiError::unsupported("Skep attaches tasks to the networks of their service's spec; update the service"))
}
