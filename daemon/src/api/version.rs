//! `/version`: what answers here.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Api, MAX_VERSION, MIN_VERSION};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/version", get(version))
}

async fn version(State(api): State<Api>) -> Json<Value> {
    let facts = api.backend.node.facts().await;
    let (max, min) = (MAX_VERSION.to_string(), MIN_VERSION.to_string());
    let arch = arch_word(&facts.architecture);
    // Where clients expect the compiler of the engine; they only show it.
    let compiler = "rust";
    Json(json!({
        "Platform": { "Name": "Skep" },
        "Components": [{
            "Name": "Engine", "Version": facts.version,
            "Details": {
                "ApiVersion": max, "MinAPIVersion": min, "Arch": arch, "BuildTime": "", "Experimental": "false",
                "GitCommit": facts.commit, "GoVersion": compiler, "KernelVersion": facts.kernel, "Os": "linux",
            },
        }],
        "Version": facts.version, "ApiVersion": max, "MinAPIVersion": min, "GitCommit": facts.commit,
        "GoVersion": compiler, "Os": "linux", "Arch": arch, "KernelVersion": facts.kernel, "BuildTime": "",
    }))
}

/// The word of image platforms for a machine's own.
pub(super) fn arch_word(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i686" | "i586" => "386",
        "armv7l" => "arm",
        other => other,
    }
}
