//! The API on a unix socket in front of a node in memory, and a client that shows the bare answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(dead_code, reason = "each user of this module needs another part of it")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skep_daemon::api::{Api, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::api_fake;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    pub(crate) path: PathBuf,
    pub(crate) api: Api,
    pub(crate) fake: Arc<api_fake::Fake>,
    pub(crate) ending: CancellationToken,
    pub(crate) serving: tokio::task::JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn message(&self) -> String {
        self.json()["message"].as_str().expect("an error has a message").to_owned()
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (api, fake) = api_fake::api();
        let ending = CancellationToken::new();
        let api = Api::new(api.backend().clone(), ending.clone());
        let serving = tokio::spawn(serve(api.clone(), listener));
        Self { path, api, fake, ending, serving, _dir: dir }
    }

    pub(crate) async fn send(&self, raw: Vec<u8>) -> Answer {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.path).await.unwrap();
            let (mut read, mut write) = stream.split();
            let mut answer = Vec::new();
            // Both at once: an early answer must be readable while the request is still being written.
            let (_, read) = tokio::join!(write.write_all(&raw), read.read_to_end(&mut answer));
            read.unwrap();
            answer
        };
        let answer = tokio::time::timeout(DEADLINE, exchange).await.expect("no answer in time");
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("no head");
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("no status");
        Answer { status, head, body: answer[end + 4..].to_vec() }
    }

    /// HTTP/1.0, so that the answer is not in chunks and ends with the connection.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let body = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: skep\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.send([head.into_bytes(), body].concat()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None).await
    }

    pub(crate) async fn init(&self) -> String {
        let body = json!({ "ListenAddr": "0.0.0.0:2377", "Availability": "active", "Spec": {} });
        let answer = self.call("POST", "/swarm/init", Some(body)).await;
        assert_eq!(answer.status, 200);
        answer.json().as_str().unwrap().to_owned()
    }

    pub(crate) async fn service(&self, name: &str, replicas: u64) -> String {
        let answer = self.call("POST", "/v1.41/services/create", Some(service(name, replicas))).await;
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()["ID"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn service(name: &str, replicas: u64) -> Value {
    json!({
        "Name": name, "Labels": { "tier": name },
        "TaskTemplate": { "ContainerSpec": { "Image": "busybox" } },
        "Mode": { "Replicated": { "Replicas": replicas } },
        "EndpointSpec": { "Ports": [{ "TargetPort": 80, "PublishedPort": 8080 }] },
    })
}
