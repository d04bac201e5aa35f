//! `/containers`: those of this node's tasks, to be looked at. Containers are made by services alone.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use bytes::Bytes;
use futures::StreamExt;
use http::header;
use serde_json::{Map, Value, json};
use skep_proto::v1;

use super::backend::{Container, ContainerNetwork, ContainerState, Stats};
use super::filters::Filters;
use super::params::{Params, Path};
use super::{Api, ApiError, ApiVersion, body, clock, logs};

const FILTERS: [&str; 15] = [
    "ancestor",
    "before",
    "expose",
    "exited",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

/// Time between two readings of a container's use.
const STATS_PERIOD: Duration = Duration::from_secs(1);

pub(super) fn routes() -> Router<Api> {
    let mut router = Router::new()
        .route("/containers/json", get(list))
        .route("/containers/create", any(refuse))
        .route("/containers/{id}", any(refuse))
        .route("/containers/{id}/json", get(inspect))
        .route("/containers/{id}/logs", get(container_logs))
        .route("/containers/{id}/stats", get(stats))
        .route("/containers/{id}/top", get(top));
    for action in [
        "start", "stop", "restart", "kill", "pause", "unpause", "wait", "attach", "exec", "rename", "update", "resize",
        "archive", "export", "changes",
    ] {
        router = router.route(&format!("/containers/{{id}}/{action}"), any(refuse));
    }
    router
}

async fn refuse(request: Request) -> Result<(), ApiError> {
    let exec = request.uri().path().ends_with("/exec");
    body::discard(request.into_body()).await;
    if exec {
        return Err(ApiError::unsupported("Skep has no support for exec"));
    }
    Err(ApiError::unsupported(
        "Skep runs the containers of services and has no support for handling a single one; use \"service create\", \
         \"service update\" and \"service rm\"",
    ))
}

async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = params.filters(&FILTERS)?;
    for filter in ["before", "since", "expose", "publish", "volume", "health", "isolation"] {
        if filters.has(filter) {
            return Err(ApiError::unsupported(format!("Skep has no support for the filter '{filter}' on containers")));
        }
    }
    let limit: usize = params.text("limit").parse().unwrap_or(0);
    let all = params.flag("all") || limit > 0 || filters.has("status") || filters.has("exited");
    let mut containers = api.backend.containers.list().await?;
    containers.retain(|c| (all || c.state == ContainerState::Running) && fits(c, &filters));
    containers.sort_by_key(|c| std::cmp::Reverse(c.created_ns));
    if limit > 0 {
        containers.truncate(limit);
    }
    Ok(Json(containers.iter().map(summary).collect()))
}

fn fits(container: &Container, filters: &Filters) -> bool {
    let image = |wanted: &str| {
        container.image == wanted
            || container.image_id == wanted
            || container.image.split(':').next() == Some(wanted)
            || container.image_id.trim_start_matches("sha256:").starts_with(wanted)
    };
    filters.prefix("id", &container.id)
        && filters.contains("name", &container.name)
        && filters.exact("status", state_word(container.state))
        && filters.exact("is-task", "true")
        && filters.any("exited", |code| code == container.exit_code.to_string())
        && filters.any("ancestor", image)
        && filters.any("network", |wanted| container.networks.iter().any(|n| n.id == wanted || n.name == wanted))
        && filters.labels("label", &container.labels)
}

fn state_word(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
    }
}

/// `Up 5 minutes`, `Exited (1) 3 seconds ago`.
fn status_words(container: &Container, now_ns: i64) -> String {
    let since = |ns: i64| clock::words((now_ns - ns) / 1_000_000_000);
    match container.state {
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running => format!("Up {}", since(container.started_ns)),
        ContainerState::Exited => format!("Exited ({}) {} ago", container.exit_code, since(container.finished_ns)),
    }
}

/// A container as lists show it.
pub(super) fn summary(container: &Container) -> Value {
    json!({
        "Id": container.id, "Names": [format!("/{}", container.name)], "Image": container.image,
        "ImageID": container.image_id, "Command": container.command.join(" "),
        "Created": container.created_ns / 1_000_000_000, "Ports": port_list(&container.ports),
        "Labels": container.labels, "State": state_word(container.state),
        "Status": status_words(container, clock::now_ns()), "HostConfig": { "NetworkMode": "default" },
        "NetworkSettings": { "Networks": networks(&container.networks) }, "Mounts": mounts(container),
    })
}

fn protocol(port: &v1::PortConfig) -> &'static str {
    match port.protocol() {
        v1::Protocol::Tcp => "tcp",
        v1::Protocol::Udp => "udp",
        v1::Protocol::Sctp => "sctp",
    }
}

fn port_list(ports: &[v1::PortConfig]) -> Vec<Value> {
    ports
        .iter()
        .map(|port| match port.published_port {
            0 => json!({ "PrivatePort": port.target_port, "Type": protocol(port) }),
            published => json!({
                "IP": "0.0.0.0", "PrivatePort": port.target_port, "PublicPort": published, "Type": protocol(port),
            }),
        })
        .collect()
}

fn networks(networks: &[ContainerNetwork]) -> Value {
    let entry = |network: &ContainerNetwork| {
        json!({
            "IPAMConfig": { "IPv4Address": network.address }, "Links": null, "Aliases": network.aliases,
            "NetworkID": network.id, "EndpointID": "", "Gateway": network.gateway, "IPAddress": network.address,
            "IPPrefixLen": network.prefix_len, "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
            "MacAddress": network.mac, "DriverOpts": null, "DNSNames": network.aliases,
        })
    };
    Value::Object(networks.iter().map(|network| (network.name.clone(), entry(network))).collect())
}

fn mounts(container: &Container) -> Vec<Value> {
    let word = |mount: &v1::Mount| match mount.r#type() {
        v1::MountType::Bind => "bind",
        v1::MountType::Volume => "volume",
        v1::MountType::Tmpfs => "tmpfs",
    };
    let entry = |mount: &v1::Mount| {
        json!({
            "Type": word(mount), "Source": mount.source, "Destination": mount.target, "Mode": "",
            "RW": !mount.read_only, "Propagation": mount.propagation,
        })
    };
    container.mounts.iter().map(entry).collect()
}

async fn inspect(State(api): State<Api>, Path(name): Path) -> Result<Json<Value>, ApiError> {
    Ok(Json(full(&api.backend.containers.inspect(&name).await?)))
}

fn full(container: &Container) -> Value {
    let running = container.state == ContainerState::Running;
    let (path, args) = container.command.split_first().map_or((String::new(), &[][..]), |(p, a)| (p.clone(), a));
    let first = container.networks.first().cloned().unwrap_or_default();
    json!({
        "Id": container.id, "Created": clock::rfc3339(container.created_ns), "Path": path, "Args": args,
        "State": {
            "Status": state_word(container.state), "Running": running, "Paused": false, "Restarting": false,
            "OOMKilled": container.oom_killed, "Dead": false, "Pid": container.pid,
            "ExitCode": container.exit_code, "Error": container.error,
            "StartedAt": clock::rfc3339(container.started_ns), "FinishedAt": clock::rfc3339(container.finished_ns),
        },
        "Image": container.image_id, "ResolvConfPath": "", "HostnamePath": "", "HostsPath": "", "LogPath": "",
        "Name": format!("/{}", container.name), "RestartCount": container.restarts, "Driver": "overlay2", "Platform": "linux",
        "MountLabel": "", "ProcessLabel": "", "AppArmorProfile": "", "ExecIDs": null,
        "HostConfig": {
            "Binds": null, "ContainerIDFile": "", "LogConfig": { "Type": "json-file", "Config": {} },
            "NetworkMode": "default", "PortBindings": {}, "RestartPolicy": { "Name": "", "MaximumRetryCount": 0 },
            "AutoRemove": false, "Privileged": false, "Memory": container.memory_bytes,
            "NanoCpus": container.nano_cpus,
        },
        "GraphDriver": { "Name": "overlay2", "Data": null }, "Mounts": mounts(container),
        "Config": {
            "Hostname": container.hostname, "Domainname": "", "User": container.user, "AttachStdin": false,
            "AttachStdout": false, "AttachStderr": false, "Tty": container.tty, "OpenStdin": false,
            "StdinOnce": false, "Env": container.env, "Cmd": container.command, "Image": container.image,
            "Volumes": null, "WorkingDir": container.working_dir, "Entrypoint": null, "OnBuild": null,
            "Labels": container.labels,
        },
        "NetworkSettings": {
            "Bridge": "", "SandboxID": "", "HairpinMode": false, "SandboxKey": "",
            "Ports": bindings(&container.ports), "EndpointID": "", "Gateway": first.gateway,
            "IPAddress": first.address, "IPPrefixLen": first.prefix_len, "MacAddress": first.mac,
            "Networks": networks(&container.networks),
        },
    })
}

fn bindings(ports: &[v1::PortConfig]) -> Value {
    let mut bindings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for port in ports {
        let list = bindings.entry(format!("{}/{}", port.target_port, protocol(port))).or_default();
        if port.published_port != 0 {
            list.push(json!({ "HostIp": "0.0.0.0", "HostPort": port.published_port.to_string() }));
        }
    }
    let filled = |list: Vec<Value>| if list.is_empty() { Value::Null } else { Value::Array(list) };
    Value::Object(bindings.into_iter().map(|(port, list)| (port, filled(list))).collect::<Map<_, _>>())
}

async fn container_logs(
    State(api): State<Api>,
    Extension(version): Extension<ApiVersion>,
    Path(name): Path,
    params: Params,
) -> Result<Response, ApiError> {
    let container = api.backend.containers.inspect(&name).await?;
    logs::of_container(&api, version, &container.id, container.tty, &params).await
}

/// The processes of a container would have to be read from inside its namespaces; what is known is its first one.
async fn top(State(api): State<Api>, Path(name): Path) -> Result<Json<Value>, ApiError> {
    let container = api.backend.containers.inspect(&name).await?;
    if container.state != ContainerState::Running {
        let text = format!("container {} is not running", container.id);
        return Err(ApiError::new(http::StatusCode::CONFLICT, text));
    }
    let user = if container.user.is_empty() { "root" } else { container.user.as_str() };
    let process = [user.to_owned(), container.pid.to_string(), container.command.join(" ")];
    Ok(Json(json!({ "Titles": ["UID", "PID", "CMD"], "Processes": [process] })))
}

async fn stats(State(api): State<Api>, Path(name): Path, params: Params) -> Result<Response, ApiError> {
    let container = api.backend.containers.inspect(&name).await?;
    // Streaming is what clients get who don't say.
    let stream = params.get("stream").is_none() || params.flag("stream");
    let first = reading(&api, &container, None).await?;
    if !stream {
        let line = if params.flag("one-shot") {
            first.1
        } else {
            tokio::time::sleep(STATS_PERIOD).await;
            reading(&api, &container, Some(first.0)).await?.1
        };
        return Ok(Json(line).into_response());
    }
    let ending = api.ending.clone();
    let lines = futures::stream::unfold(Some((api, container, first)), |state| async move {
        let (api, container, (before, line)) = state?;
        let text = Bytes::from(format!("{line}\n"));
        tokio::time::sleep(STATS_PERIOD).await;
        let next = reading(&api, &container, Some(before)).await.ok().map(|next| (api, container, next));
        Some((Ok::<_, std::io::Error>(text), next))
    });
    let body = Body::from_stream(lines.take_until(ending.cancelled_owned()));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// One reading, with the one before it, from which clients compute percentages.
async fn reading(api: &Api, container: &Container, before: Option<Stats>) -> Result<(Stats, Value), ApiError> {
    let now = api.backend.containers.stats(&container.id).await?.unwrap_or_default();
    let cpu = |stats: &Stats| {
        json!({
            "cpu_usage": { "total_usage": stats.cpu_ns, "usage_in_kernelmode": 0, "usage_in_usermode": 0 },
            "system_cpu_usage": stats.system_cpu_ns, "online_cpus": stats.cpus,
            "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 },
        })
    };
    let line = json!({
        "id": container.id, "name": format!("/{}", container.name), "read": clock::rfc3339(clock::now_ns()),
        "preread": clock::rfc3339(0), "pids_stats": { "current": now.pids }, "num_procs": 0,
        "cpu_stats": cpu(&now), "precpu_stats": cpu(&before.unwrap_or_default()),
        "memory_stats": { "usage": now.memory_bytes, "limit": now.memory_limit_bytes, "stats": {} },
        "blkio_stats": {}, "networks": {}, "storage_stats": {},
    });
    Ok((now, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_told_in_words() {
        let at = |seconds: i64| seconds * 1_000_000_000;
        let mut container = Container { started_ns: at(10), ..Container::default() };
        assert_eq!(status_words(&container, at(100)), "Created");
        container.state = ContainerState::Running;
        assert_eq!(status_words(&container, at(100)), "Up About a minute");
        container.state = ContainerState::Exited;
        container.exit_code = 137;
        container.finished_ns = at(97);
        assert_eq!(status_words(&container, at(100)), "Exited (137) 3 seconds ago");
    }

    #[test]
    fn ports_are_shown_with_their_bindings() {
        let ports = [v1::PortConfig { target_port: 80, published_port: 8080, ..Default::default() }];
        assert_eq!(bindings(&ports), json!({ "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8080" }] }));
    }
}
