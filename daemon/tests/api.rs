//! The Engine API over its unix socket, in front of a node in memory: what clients send, what they get.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api_fake;
mod server;

use serde_json::{Value, json};
use server::{DEADLINE, Server, service};
use skep_daemon::api::backend::{ContainerState, Event, LocalEvents};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

#[tokio::test]
async fn ping_says_what_answers_here() {
    let server = Server::start();
    for method in ["GET", "HEAD"] {
        let answer = server.call(method, "/_ping", None).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, if method == "GET" { &b"OK"[..] } else { b"" });
        for header in ["api-version: 1.53", "ostype: linux", "docker-experimental: false", "swarm: inactive"] {
            assert!(answer.head.contains(header), "{header}: {}", answer.head);
        }
        assert!(answer.head.contains("server: skep/"));
    }
    server.init().await;
    assert!(server.get("/_ping").await.head.contains("swarm: active/manager"));
}

#[tokio::test]
async fn versions_are_negotiated() {
    let server = Server::start();
    for path in ["/version", "/v1.24/version", "/v1.53/version"] {
        assert_eq!(server.get(path).await.json()["ApiVersion"], json!("1.53"), "{path}");
    }
    for (path, part) in [("/v1.23/version", "too old"), ("/v1.54/version", "too new"), ("/v2.0/version", "too new")] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 400);
        assert!(answer.message().contains(part), "{path}");
    }
}

#[tokio::test]
async fn outside_a_swarm_cluster_calls_say_so() {
    let server = Server::start();
    for path in ["/nodes", "/services", "/tasks", "/swarm", "/secrets", "/configs", "/services/x", "/swarm/unlockkey"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.message().starts_with("This node is not a swarm manager. Use \"docker swarm init\""), "{path}");
    }
    let answer = server.call("POST", "/swarm/leave", None).await;
    assert_eq!((answer.status, answer.message().as_str()), (503, "This node is not part of a swarm"));
    // Networks of the node itself are there all the same.
    let networks = server.get("/networks").await.json();
    let names: Vec<_> = networks.as_array().unwrap().iter().map(|n| n["Name"].as_str().unwrap()).collect();
    assert_eq!(names, ["host", "none", "skep_gwbridge"]);
    assert_eq!(server.get("/info").await.json()["Swarm"]["LocalNodeState"], json!("inactive"));
}

#[tokio::test]
async fn bad_requests_are_refused_with_words() {
    let server = Server::start();
    server.init().await;
    let raw = |head: &str, rest: &str| {
        let length = rest.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
        format!("{head} HTTP/1.0\r\nContent-Length: {length}\r\n{rest}").into_bytes()
    };
    let post = |extra: &str, body: &str| raw("POST /services/create", &format!("{extra}\r\n\r\n{body}"));
    for (name, request, status, part) in [
        ("truncated", post("Content-Type: application/json", "{\"Name\":"), 400, "invalid JSON"),
        ("empty", post("Content-Type: application/json", ""), 400, "no body"),
        ("type", post("Content-Type: text/plain", "{}"), 400, "unsupported Content-Type"),
        ("list", post("Content-Type: application/json", "[]"), 400, "a JSON object"),
        (
            "shape",
            post("Content-Type: application/json", "{\"Mode\":{\"Replicated\":{\"Replicas\":\"x\"}}}"),
            400,
            "service spec: Mode.Replicated.Replicas: invalid type",
        ),
        ("init", raw("POST /swarm/init", "Content-Type: application/json\r\n\r\n[1]"), 400, "a list was sent"),
        (
            "init field",
            raw("POST /swarm/init", "Content-Type: application/json\r\n\r\n{\"DataPathPort\":\"x\"}"),
            400,
            "DataPathPort: invalid type",
        ),
        (
            "role",
            raw("GET /nodes?filters=%7B%22role%22%3A%5B%22king%22%5D%7D", "\r\n"),
            400,
            "invalid filter 'role=king'",
        ),
        ("blank image", raw("DELETE /images/", "\r\n"), 400, "image name cannot be blank"),
        ("path", raw("GET /nowhere", "\r\n"), 404, "page not found"),
        ("path of bytes", raw("GET /services/%FF", "\r\n"), 400, "Invalid URL: Invalid UTF-8 in"),
        ("rest of a path", raw("GET /images/a/%FF/json", "\r\n"), 400, "Invalid URL: Invalid UTF-8 in"),
        ("method", raw("PUT /services/create", "\r\n"), 404, "page not found"),
        ("filter", raw("GET /services?filters=%5B", "\r\n"), 400, "invalid filter"),
        ("filter name", raw("GET /services?filters=%7B%22colour%22%3A%5B%22red%22%5D%7D", "\r\n"), 400, "'colour'"),
        ("version", raw("POST /services/x/update", "Content-Type: application/json\r\n\r\n{\"Name\":\"x\"}"), 400, ""),
        ("unknown", raw("GET /services/x", "\r\n"), 404, "service x not found"),
    ] {
        let answer = server.send(request).await;
        assert_eq!(answer.status, status, "{name}: {}", String::from_utf8_lossy(&answer.body));
        assert!(answer.message().contains(part), "{name}: {}", answer.message());
    }
}

#[tokio::test]
async fn bodies_that_are_too_large_are_refused() {
    let server = Server::start();
    server.init().await;
    let body = json!({ "Name": "x".repeat(5 << 20) });
    let answer = server.call("POST", "/services/create", Some(body)).await;
    assert_eq!(answer.status, 413);
    assert!(answer.message().contains("4 MiB"));
}

#[tokio::test]
async fn what_is_not_there_is_501_and_the_client_can_finish_writing() {
    let server = Server::start();
    for path in [
        "/containers/create",
        "/volumes/create",
        "/build",
        "/session",
        "/auth",
        "/containers/x/exec",
        "/containers/x/start",
    ] {
        let answer = server.call("POST", path, Some(json!({ "Image": "x".repeat(1 << 20) }))).await;
        assert_eq!(answer.status, 501, "{path}");
        assert!(answer.message().contains("Skep"), "{path}");
    }
    assert_eq!(server.get("/volumes").await.json()["Volumes"], json!([]));
    assert_eq!(server.get("/volumes/x").await.status, 404);
    assert_eq!(server.get("/plugins/x/json").await.status, 404);
    assert_eq!(server.call("POST", "/plugins/pull", None).await.status, 501);
    for kind in ["containers", "volumes", "build"] {
        let pruned = server.call("POST", &format!("/{kind}/prune"), None).await.json();
        assert_eq!(pruned["SpaceReclaimed"], json!(0), "{kind}");
    }
    assert_eq!(server.get("/distribution/docker.io/library/busybox:1/json").await.status, 404);
}

#[tokio::test]
async fn a_service_lives_through_the_api() {
    let server = Server::start();
    server.init().await;
    let id = server.service("web", 3).await;
    let again = server.call("POST", "/services/create", Some(service("web", 1))).await;
    assert_eq!(again.status, 409, "{}", again.message());

    let filters = "%7B%22service%22%3A%7B%22web%22%3Atrue%7D%2C%22_up-to-date%22%3A%7B%22true%22%3Atrue%7D%7D";
    let running = async {
        loop {
            let tasks = server.get(&format!("/v1.41/tasks?filters={filters}")).await.json();
            let up = |t: &&Value| t["Status"]["State"] == json!("running");
            if tasks.as_array().unwrap().iter().filter(up).count() == 3 {
                return tasks;
            }
        }
    };
    let tasks = tokio::time::timeout(DEADLINE, running).await.expect("tasks don't come up");
    assert_eq!(tasks[0]["NetworksAttachments"][0]["Network"]["Spec"]["Name"], json!("ingress"));

    let listed = server.get("/services?status=true&filters=%7B%22name%22%3A%5B%22we%22%5D%7D").await.json();
    assert_eq!(listed[0]["ServiceStatus"]["RunningTasks"], json!(3));
    assert_eq!(server.get("/services").await.json()[0].get("ServiceStatus"), None);
    assert_eq!(server.get("/services?filters=%7B%22label%22%3A%5B%22tier%3Ddb%22%5D%7D").await.json(), json!([]));

    let found = server.get(&format!("/services/{}", &id[..8])).await.json();
    let version = found["Version"]["Index"].as_u64().unwrap();
    let mut spec = found["Spec"].clone();
    spec["Mode"]["Replicated"]["Replicas"] = json!(1);
    let path = format!("/services/{id}/update?version={version}&registryAuthFrom=spec");
    assert_eq!(server.call("POST", &path, Some(spec.clone())).await.status, 200);
    let stale = server.call("POST", &path, Some(spec)).await;
    assert_eq!(stale.status, 409);
    assert!(stale.message().contains("update out of sequence"));
    assert_eq!(server.get("/services/web").await.json()["Spec"]["Mode"]["Replicated"]["Replicas"], json!(1));

    let version = server.get("/services/web").await.json()["Version"]["Index"].as_u64().unwrap();
    let path = format!("/services/web/update?version={version}&rollback=previous");
    assert_eq!(server.call("POST", &path, None).await.status, 200);
    assert_eq!(server.get("/services/web").await.json()["Spec"]["Mode"]["Replicated"]["Replicas"], json!(3));

    let logs = server.get("/v1.41/services/web/logs?stdout=1&stderr=1&details=1").await;
    assert_eq!(logs.body[0], 1, "the first frame is of stdout");
    assert!(String::from_utf8_lossy(&logs.body).contains("com.docker.swarm.task.id="));
    assert_eq!(server.get("/services/web/logs").await.status, 400);

    assert_eq!(server.call("DELETE", "/services/web", None).await.status, 200);
    assert_eq!(server.call("DELETE", "/services/web", None).await.status, 404);
}

#[tokio::test]
async fn unsupported_fields_of_a_service_are_named() {
    let server = Server::start();
    server.init().await;
    let mut spec = service("web", 1);
    spec["TaskTemplate"]["Resources"] =
        json!({ "Reservations": { "GenericResources": [{ "NamedResourceSpec": { "Kind": "GPU", "Value": "x" } }] } });
    let answer = server.call("POST", "/services/create", Some(spec)).await;
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("TaskTemplate.Resources.Reservations.GenericResources"), "{}", answer.message());
    assert_eq!(server.get("/services").await.json(), json!([]));
}

#[tokio::test]
async fn nodes_networks_secrets_and_configs() {
    let server = Server::start();
    let node = server.init().await;
    let shown = server.get("/nodes/self").await.json();
    assert_eq!(shown["ID"], json!(node));
    assert_eq!(shown["ManagerStatus"]["Leader"], json!(true));
    let mut spec = shown["Spec"].clone();
    spec["Availability"] = json!("drain");
    let path = format!("/nodes/{node}/update?version={}", shown["Version"]["Index"]);
    assert_eq!(server.call("POST", &path, Some(spec)).await.status, 200);
    assert_eq!(server.get("/nodes/fake").await.json()["Spec"]["Availability"], json!("drain"));
    assert_eq!(server.call("DELETE", "/nodes/fake", None).await.status, 400);
    assert_eq!(server.get("/nodes?filters=%7B%22role%22%3A%5B%22worker%22%5D%7D").await.json(), json!([]));

    let created = server.call("POST", "/networks/create", Some(json!({ "Name": "back", "Driver": "overlay" }))).await;
    assert_eq!(created.status, 201);
    let id = created.json()["Id"].as_str().unwrap().to_owned();
    for (name, state) in [("up", ContainerState::Running), ("over", ContainerState::Exited)] {
        server.fake.add_container_on(&id, name, state);
    }
    let on_it = server.get("/networks/back").await.json()["Containers"].clone();
    let names: Vec<_> = on_it.as_object().unwrap().values().map(|entry| entry["Name"].clone()).collect();
    assert_eq!(names, ["up"], "an ended container is on no network");
    assert_eq!(server.get("/networks/back?scope=swarm").await.json()["Scope"], json!("swarm"));
    assert_eq!(server.get("/networks/host").await.json()["Driver"], json!("host"));
    assert_eq!(server.get("/networks/host?scope=swarm").await.status, 404);
    assert_eq!(server.call("DELETE", "/networks/host", None).await.status, 403);
    assert_eq!(server.call("POST", "/networks/prune", None).await.json()["NetworksDeleted"], json!(["back"]));
    assert_eq!(server.call("DELETE", "/networks/back", None).await.status, 404);
    let body = json!({ "Name": "slow", "Driver": "overlay" });
    assert_eq!(server.call("POST", "/networks/create", Some(body)).await.status, 201);
    server.fake.drain_networks(2);
    assert_eq!(server.call("DELETE", "/networks/slow", None).await.status, 204, "it waits for tasks that are stopping");

    for kind in ["secrets", "configs"] {
        let body = json!({ "Name": "s", "Data": "aGk=" });
        let created = server.call("POST", &format!("/{kind}/create"), Some(body)).await;
        assert_eq!(created.status, 201, "{kind}");
        let shown = server.get(&format!("/{kind}/s")).await.json();
        assert_eq!(shown["Spec"].get("Data").is_some(), kind == "configs");
        assert_eq!(server.get(&format!("/{kind}")).await.json().as_array().unwrap().len(), 1);
        assert_eq!(server.call("DELETE", &format!("/{kind}/s"), None).await.status, 204);
    }
}

#[tokio::test]
async fn swarm_tokens_rotate_and_leaving_needs_force() {
    let server = Server::start();
    server.init().await;
    let before = server.get("/swarm").await.json();
    let path = format!("/swarm/update?version={}&rotateWorkerToken=true", before["Version"]["Index"]);
    assert_eq!(server.call("POST", &path, Some(before["Spec"].clone())).await.status, 200);
    let after = server.get("/swarm").await.json();
    assert_ne!(before["JoinTokens"]["Worker"], after["JoinTokens"]["Worker"]);
    assert_eq!(before["JoinTokens"]["Manager"], after["JoinTokens"]["Manager"]);
    let info = server.get("/info").await.json();
    assert!(!info.to_string().contains("SWMTKN"));
    assert_eq!(info["Warnings"], json!(["port 80/tcp is in use"]));
    assert_eq!(server.call("POST", "/swarm/init", Some(json!({}))).await.status, 503);
    assert_eq!(server.call("POST", "/swarm/leave", None).await.status, 503);
    assert_eq!(server.call("POST", "/swarm/leave?force=1", None).await.status, 200);
    let join = |body: Value| server.call("POST", "/swarm/join", Some(body));
    assert_eq!(join(json!({ "JoinToken": "x" })).await.status, 400);
    assert_eq!(join(json!({ "RemoteAddrs": ["a:1"] })).await.status, 400);
}

#[tokio::test]
async fn images_with_slashes_in_their_names() {
    let server = Server::start();
    server.fake.add_image("registry:5000/a/b:1");
    assert_eq!(server.get("/images/registry:5000/a/b:1/json").await.json()["Os"], json!("linux"));
    assert_eq!(server.get("/images/registry:5000/a/b:1/history").await.status, 200);
    assert_eq!(server.get("/images/registry:5000/a/b:1/get").await.head.matches("application/x-tar").count(), 1);
    let tag = server.call("POST", "/images/registry:5000/a/b:1/tag?repo=c/d&tag=2", None).await;
    assert_eq!(tag.status, 201);
    assert_eq!(server.get("/images/json").await.json()[0]["RepoTags"], json!(["registry:5000/a/b:1", "c/d:2"]));
    assert_eq!(
        server.get("/images/json?filters=%7B%22reference%22%3A%5B%22c%2Fd%22%5D%7D").await.json()[0]["Containers"],
        json!(0)
    );
    let removed = server.call("DELETE", "/images/c/d:2", None).await.json();
    assert!(removed.to_string().contains("Untagged"));
    assert_eq!(server.get("/images/c/d:2/json").await.status, 404);
}

#[tokio::test]
async fn images_load_from_a_stream_and_failures_are_told_while_the_client_writes() {
    let server = Server::start();
    let head = |length: usize| {
        format!("POST /images/load HTTP/1.0\r\nContent-Type: application/x-tar\r\nContent-Length: {length}\r\n\r\n")
            .into_bytes()
    };
    let answer = server.send([head(9 << 20), vec![7; 9 << 20]].concat()).await;
    assert_eq!(answer.status, 200);
    assert!(answer.json()["stream"].as_str().unwrap().starts_with("Loaded image: "));
    let answer = server.send(head(0)).await;
    assert_eq!((answer.status, answer.message().as_str()), (400, "the archive is empty"));
    let answer = server.call("POST", "/images/create?fromImage=alpine&tag=latest", None).await;
    assert_eq!(answer.status, 501);
}

#[tokio::test]
async fn containers_are_shown() {
    let server = Server::start();
    server.fake.add_container("web.1.x");
    assert_eq!(server.get("/containers/json").await.json()[0]["Names"], json!(["/web.1.x"]));
    assert_eq!(server.get("/containers/json?filters=%7B%22status%22%3A%5B%22exited%22%5D%7D").await.json(), json!([]));
    assert_eq!(server.get("/containers/web.1.x/json").await.json()["State"]["Running"], json!(true));
    assert_eq!(server.get("/containers/nope/json").await.status, 404);
    let logs = server.get("/v1.41/containers/web.1.x/logs?stdout=1&timestamps=1").await;
    assert!(logs.head.contains("application/vnd.docker.raw-stream"));
    assert!(String::from_utf8_lossy(&logs.body).contains("2023-11-14T22:13:20.000000000Z hello"));
    assert!(server.get("/containers/web.1.x/logs?stdout=1").await.head.contains("multiplexed-stream"));
    let stats = server.get("/containers/web.1.x/stats?stream=0&one-shot=1").await.json();
    assert_eq!(stats["memory_stats"]["usage"], json!(1 << 20));
}

#[tokio::test]
async fn events_are_remembered_streamed_and_end_with_the_server() {
    let server = Server::start();
    let event =
        |id: &str| Event { at_ns: 5_000_000_000, id: id.to_owned(), kind: "image".to_owned(), ..Event::default() };
    let events: &dyn LocalEvents = server.api.backend().events.as_ref();
    events.publish(event("one"));
    let past = server.get("/events?since=1&until=10").await;
    assert_eq!(past.json()["Actor"]["ID"], json!("one"));
    assert_eq!(server.get("/events?since=6&until=10").await.body, b"");
    assert_eq!(server.get("/events?since=x").await.status, 400);
    let mut open = UnixStream::connect(&server.path).await.unwrap();
    open.write_all(b"GET /events?since=1 HTTP/1.0\r\n\r\n").await.unwrap();
    let mut heard = String::new();
    let hear = async {
        while !heard.contains("\"two\"") {
            let mut piece = [0; 4096];
            let length = open.read(&mut piece).await.unwrap();
            assert_ne!(length, 0, "the stream ended: {heard}");
            if heard.is_empty() {
                events.publish(event("two"));
            }
            heard.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
    };
    tokio::time::timeout(DEADLINE, hear).await.expect("events don't come");
    assert!(heard.contains("\"one\""));
    server.ending.cancel();
    let mut rest = Vec::new();
    tokio::time::timeout(DEADLINE, open.read_to_end(&mut rest)).await.expect("the stream does not end").unwrap();
    let served = tokio::time::timeout(DEADLINE, server.serving).await.expect("the server does not end");
    served.unwrap().unwrap();
}
