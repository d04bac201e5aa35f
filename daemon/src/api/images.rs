//! `/images`: what the node's store holds. Names contain slashes, so everything about one image shares a wildcard
//! route and is told apart by how the path ends.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures::TryStreamExt;
use http::{StatusCode, header};
use http_body_util::BodyDataStream;
use serde_json::{Value, json};

use super::backend::{Container, Failure, Image, Import, Removed, Upload};
use super::filters::Filters;
use super::params::{Params, Path};
use super::{Api, ApiError, body, clock};

const FILTERS: [&str; 6] = ["before", "dangling", "label", "reference", "since", "until"];

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/load", post(load))
        .route("/images/create", post(create))
        .route("/images/get", get(save))
        .route("/images/search", get(|| refuse("searching a registry")))
        .route("/images/prune", post(prune))
        .route("/images/", get(nameless).post(nameless).delete(nameless))
        .route("/images/{*name}", get(about).post(change).delete(remove))
}

async fn refuse(what: &str) -> Result<(), ApiError> {
    Err(ApiError::unsupported(format!("Skep has no support for {what}; use \"image load\"")))
}

async fn nameless() -> ApiError {
    ApiError::bad_request("image name cannot be blank")
}

async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = params.filters(&FILTERS)?;
    let dangling = filters.flag("dangling")?;
    let images = api.backend.images.list().await?;
    let moment = |name: &str| -> Result<Option<i64>, ApiError> {
        let Some(wanted) = filters.get(name).first() else { return Ok(None) };
        let found = images.iter().find(|image| image.id == *wanted || image.references.contains(wanted));
        found.map(|image| Some(image.created_ns)).ok_or_else(|| ApiError::not_found(format!("No such image: {wanted}")))
    };
    let (before, since) = (moment("before")?, moment("since")?);
    let containers = api.backend.containers.list().await?;
    let mut chosen: Vec<&Image> = images
        .iter()
        .filter(|image| {
            before.is_none_or(|at| image.created_ns < at)
                && since.is_none_or(|at| image.created_ns > at)
                && dangling.is_none_or(|d| image.references.is_empty() == d)
                && fits(image, &filters)
        })
        .collect();
    chosen.sort_by_key(|image| std::cmp::Reverse(image.created_ns));
    Ok(Json(chosen.into_iter().map(|image| summary(image, &containers)).collect()))
}

fn fits(image: &Image, filters: &Filters) -> bool {
    let reference = |wanted: &str| image.references.iter().any(|reference| matches(wanted, reference));
    filters.any("reference", reference) && filters.labels("label", &image.config.labels)
}

/// Whether a reference fits a pattern: `*` for what has no slash; without a tag every tag fits.
fn matches(pattern: &str, reference: &str) -> bool {
    let name = reference.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(reference, |(name, _)| name);
    glob(pattern.as_bytes(), reference.as_bytes()) || glob(pattern.as_bytes(), name.as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), None) => glob(rest, text),
        (Some((b'*', rest)), Some((c, tail))) => glob(rest, text) || (*c != b'/' && glob(pattern, tail)),
        (Some((b'?', rest)), Some((c, tail))) => *c != b'/' && glob(rest, tail),
        (Some((p, rest)), Some((c, tail))) => p == c && glob(rest, tail),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

/// An image as lists show it.
pub(super) fn summary(image: &Image, containers: &[Container]) -> Value {
    json!({
        "Id": image.id, "ParentId": "", "RepoTags": image.references, "RepoDigests": image.digests,
        "Created": image.created_ns / 1_000_000_000, "Size": image.size, "VirtualSize": image.size, "SharedSize": -1,
        "Labels": image.config.labels, "Containers": containers.iter().filter(|c| c.image_id == image.id).count(),
    })
}

// ---- what comes in and goes out as a stream -----------------------------------------------------------------

/// A request's body that two can read: the store what it wants, and we the rest, so that a client that still writes
/// when the store has given up sees why, and no broken pipe.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<Body>>);

impl hyper::body::Body for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(cx)
    }
}

impl SharedBody {
    fn new(request: Request) -> Self {
        Self(Arc::new(Mutex::new(request.into_body())))
    }

    fn upload(&self) -> Upload {
        Box::pin(BodyDataStream::new(self.clone()).map_err(std::io::Error::other))
    }

    /// The result of a store that had this body; after a failure the rest of the body is read.
    async fn settle<T>(self, result: Result<T, Failure>) -> Result<T, ApiError> {
        if result.is_err() {
            body::discard(self).await;
        }
        Ok(result?)
    }
}

async fn load(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let body = SharedBody::new(request);
    let result = api.backend.images.load(body.upload()).await;
    let loaded = body.settle(result).await?;
    let lines = loaded.iter().map(|name| {
        let word = if name.starts_with("sha256:") { "Loaded image ID" } else { "Loaded image" };
        json!({ "stream": format!("{word}: {name}\n") })
    });
    Ok(json_lines(lines))
}

/// `docker import`; with `fromImage` instead it would be a pull.
async fn create(State(api): State<Api>, params: Params, request: Request) -> Result<Response, ApiError> {
    if let Some(name) = params.get("fromImage") {
        let text =
            format!("Skep pulls no images yet, so it can't get {name}; load it on each node with \"image load\"");
        return Err(ApiError::unsupported(text));
    }
    match params.text("fromSrc") {
        "-" => {}
        "" => return Err(ApiError::bad_request("fromSrc or fromImage has to be given")),
        other => {
            let text = format!("Skep fetches nothing from {other}; give \"-\" and send the archive in the body");
            return Err(ApiError::unsupported(text));
        }
    }
    let (repository, tag) = (params.text("repo"), params.text("tag"));
    let reference = if tag.is_empty() { repository.to_owned() } else { format!("{repository}:{tag}") };
    let import = Import {
        reference,
        message: params.text("message").to_owned(),
        changes: params.all("changes").map(str::to_owned).collect(),
    };
    let body = SharedBody::new(request);
    let result = api.backend.images.import(body.upload(), import).await;
    let id = body.settle(result).await?;
    Ok(json_lines([json!({ "status": id })]))
}

async fn save(State(api): State<Api>, params: Params) -> Result<Response, ApiError> {
    let names: Vec<String> = params.all("names").flat_map(|n| n.split(',')).map(str::to_owned).collect();
    if names.is_empty() {
        return Err(ApiError::bad_request("no image is named; give names"));
    }
    archive(&api, names).await
}

async fn archive(api: &Api, names: Vec<String>) -> Result<Response, ApiError> {
    let archive = api.backend.images.save(names).await?;
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(archive)).into_response())
}

fn json_lines(lines: impl IntoIterator<Item = Value>) -> Response {
    let text: String = lines.into_iter().map(|line| format!("{line}\r\n")).collect();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

// ---- one image ----------------------------------------------------------------------------------------------

async fn about(State(api): State<Api>, Path(path): Path) -> Result<Response, ApiError> {
    let (name, action) = path.rsplit_once('/').unwrap_or((&path, ""));
    match action {
        "json" => Ok(Json(inspect(&api.backend.images.inspect(name).await?)).into_response()),
        "history" => Ok(Json(history(&api.backend.images.inspect(name).await?)).into_response()),
        "get" => archive(&api, vec![name.to_owned()]).await,
        _ => Err(ApiError::not_found("page not found")),
    }
}

async fn change(State(api): State<Api>, Path(path): Path, params: Params) -> Result<StatusCode, ApiError> {
    let (name, action) = path.rsplit_once('/').unwrap_or((&path, ""));
    match action {
        "tag" => {
            let (repository, tag) = (params.text("repo"), params.text("tag"));
            if repository.is_empty() {
                return Err(ApiError::bad_request("repo has to be given"));
            }
            let tag = if tag.is_empty() { "latest" } else { tag };
            api.backend.images.tag(name, &format!("{repository}:{tag}")).await?;
            Ok(StatusCode::CREATED)
        }
        "push" => Err(ApiError::unsupported("Skep pushes no images yet; use \"image save\"")),
        _ => Err(ApiError::not_found("page not found")),
    }
}

async fn remove(State(api): State<Api>, Path(name): Path, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let removed = api.backend.images.remove(&name, params.flag("force")).await?;
    Ok(Json(removed.iter().map(removed_out).collect()))
}

fn removed_out(removed: &Removed) -> Value {
    match removed {
        Removed::Untagged(reference) => json!({ "Untagged": reference }),
        Removed::Deleted(id) => json!({ "Deleted": id }),
    }
}

/// Removes images without a name, or with `dangling=false` all that no container uses.
async fn prune(State(api): State<Api>, params: Params) -> Result<Json<Value>, ApiError> {
    let filters = params.filters(&["dangling", "label", "label!", "until"])?;
    let all = filters.flag("dangling")? == Some(false);
    let until = filters.get("until").first().map(|t| clock::parse("until", t)).transpose()?.unwrap_or(i64::MAX);
    let containers = api.backend.containers.list().await?;
    let (mut deleted, mut reclaimed) = (Vec::new(), 0);
    for image in api.backend.images.list().await? {
        let used = containers.iter().any(|c| c.image_id == image.id);
        let kept = filters.has("label!") && filters.labels("label!", &image.config.labels);
        let wanted = (all || image.references.is_empty()) && filters.labels("label", &image.config.labels);
        if used || kept || !wanted || image.created_ns > until {
            continue;
        }
        // One that came into use meanwhile is refused by the store, and stays.
        if let Ok(removed) = api.backend.images.remove(&image.id, true).await {
            reclaimed += image.size;
            deleted.extend(removed.iter().map(removed_out));
        }
    }
    let deleted = if deleted.is_empty() { Value::Null } else { Value::Array(deleted) };
    Ok(Json(json!({ "ImagesDeleted": deleted, "SpaceReclaimed": reclaimed })))
}

fn inspect(image: &Image) -> Value {
    let config = &image.config;
    let set = |items: &[String]| -> Value {
        if items.is_empty() {
            return Value::Null;
        }
        Value::Object(items.iter().map(|item| (item.clone(), json!({}))).collect())
    };
    let list = |items: &[String]| if items.is_empty() { Value::Null } else { json!(items) };
    json!({
        "Id": image.id, "RepoTags": image.references, "RepoDigests": image.digests, "Parent": "",
        "Comment": image.history.last().map(|h| h.comment.clone()).unwrap_or_default(),
        "Created": clock::rfc3339(image.created_ns), "Author": image.author, "DockerVersion": "",
        "Architecture": image.architecture, "Os": image.os, "Size": image.size, "VirtualSize": image.size,
        "Config": {
            "Hostname": "", "Domainname": "", "User": config.user, "AttachStdin": false, "AttachStdout": false,
            "AttachStderr": false, "ExposedPorts": set(&config.exposed_ports), "Tty": false, "OpenStdin": false,
            "StdinOnce": false, "Env": config.env, "Cmd": list(&config.cmd), "Image": "",
            "Volumes": set(&config.volumes), "WorkingDir": config.working_dir,
            "Entrypoint": list(&config.entrypoint), "OnBuild": null, "Labels": config.labels,
            "StopSignal": config.stop_signal,
        },
        "GraphDriver": { "Name": "overlay2", "Data": null },
        "RootFS": { "Type": "layers", "Layers": image.layers },
        "Metadata": { "LastTagTime": clock::rfc3339(0) },
    })
}

/// Newest first, as clients show it.
fn history(image: &Image) -> Vec<Value> {
    let newest = image.history.len().saturating_sub(1);
    let steps = image.history.iter().enumerate().rev();
    steps
        .map(|(index, step)| {
            let top = index == newest;
            json!({
                "Id": if top { image.id.as_str() } else { "<missing>" }, "Created": step.created_ns / 1_000_000_000,
                "CreatedBy": step.created_by, "Tags": if top { json!(image.references) } else { Value::Null },
                "Size": step.size, "Comment": step.comment,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_references() {
        for (pattern, reference, expected) in [
            ("busybox", "busybox:latest", true),
            ("busybox:latest", "busybox:latest", true),
            ("busybox:1*", "busybox:1.36", true),
            ("busybox:1*", "busybox:latest", false),
            ("busy*", "busybox:latest", true),
            ("*", "registry:5000/a/b:1", false),
            ("*/*/*", "registry:5000/a/b:1", true),
            ("registry:5000/a/b", "registry:5000/a/b:1", true),
            ("b", "busybox:latest", false),
        ] {
            assert_eq!(matches(pattern, reference), expected, "{pattern} {reference}");
        }
    }
}
