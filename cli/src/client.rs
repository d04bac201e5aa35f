//! The way to a node's Engine API: one request at a time over a unix socket or TCP, JSON in, JSON or a stream out.
//!
//! It decides nothing about what is asked. Answers stay as the API wrote them, so that `inspect` shows what there is
//! and templates reach every field. Called by every command.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

/// Where a node listens unless something else is said.
pub(crate) const DEFAULT_HOST: &str = "unix:///run/skep/skep.sock";

/// How long a node may take to take a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Most that an answer that is not a stream may hold.
const MAX_ANSWER: usize = 256 << 20;

/// An answer that is an error: what the node said.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Status of the answer.
    pub(crate) status: StatusCode,
    /// The node's words.
    pub(crate) message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&in_own_words(&self.message))
    }
}

/// A node words its advice for the `docker` command, whose users look for these very words; here it is `skep`.
pub(crate) fn in_own_words(message: &str) -> String {
    message.replace("\"docker ", "\"skep ")
}

impl std::error::Error for Refused {}

/// Whether an error says that there is no such thing.
pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|r| r.status == StatusCode::NOT_FOUND)
}

/// Whether an error says that the object has changed since it was read.
pub(crate) fn is_outdated(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|r| r.message.contains("update out of sequence"))
}

enum Address {
    Unix(PathBuf),
    Tcp(String),
}

/// A node's API.
pub(crate) struct Client {
    address: Address,
    host: String,
}

type Body = BoxBody<Bytes, std::io::Error>;

/// Query parameters.
pub(crate) type Query<'a> = &'a [(&'a str, &'a str)];

impl Client {
    /// A client of the node at `unix:///path` or `tcp://host:port`. Connects at the first request.
    pub(crate) fn new(host: &str) -> Result<Self> {
        let address = if let Some(path) = host.strip_prefix("unix://") {
            Address::Unix(PathBuf::from(path))
        } else if let Some(authority) = host.strip_prefix("tcp://").or_else(|| host.strip_prefix("http://")) {
            let authority = authority.trim_end_matches('/');
            let port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            Address::Tcp(if port { authority.to_owned() } else { format!("{authority}:2375") })
        } else {
            bail!("host {host:?} is not valid: give unix:///path/to/socket or tcp://host:port");
        };
        Ok(Self { address, host: host.to_owned() })
    }

    /// Asks for JSON.
    pub(crate) async fn get(&self, path: &str, query: Query<'_>) -> Result<Value> {
        self.json(Method::GET, path, query, None).await
    }

    /// Sends JSON, or nothing.
    pub(crate) async fn post(&self, path: &str, query: Query<'_>, body: Option<&Value>) -> Result<Value> {
        self.json(Method::POST, path, query, body).await
    }

    /// Removes.
    pub(crate) async fn delete(&self, path: &str, query: Query<'_>) -> Result<Value> {
        self.json(Method::DELETE, path, query, None).await
    }

    async fn json(&self, method: Method, path: &str, query: Query<'_>, body: Option<&Value>) -> Result<Value> {
        let body = body.map(|b| Bytes::from(b.to_string()));
        let kind = body.as_ref().map(|_| "application/json");
        let body = Full::new(body.unwrap_or_default()).map_err(|never| match never {}).boxed();
        let answer = self.send(method, path, query, kind, body).await?;
        let bytes = collect(answer).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).with_context(|| format!("the answer of {} to {path} is no JSON", self.host))
    }

    /// Asks for a stream of bytes.
    pub(crate) async fn stream(
        &self,
        path: &str,
        query: Query<'_>,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Unpin> {
        let body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed();
        let answer = self.send(Method::GET, path, query, None, body).await?;
        Ok(answer.into_data_stream().map_err(|e| anyhow::Error::new(e).context("the stream broke off")))
    }

    /// Sends a stream of bytes and reads the answer's JSON values, one after the other.
    pub(crate) async fn upload<S>(&self, path: &str, query: Query<'_>, source: S) -> Result<Vec<Value>>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
    {
        let body = BodyExt::boxed(StreamBody::new(source.map_ok(Frame::data)));
        let answer = self.send(Method::POST, path, query, Some("application/x-tar"), body).await?;
        let bytes = collect(answer).await?;
        let values: Vec<Value> = serde_json::Deserializer::from_slice(&bytes).into_iter().collect::<Result<_, _>>()?;
        for value in &values {
            if let Some(error) = value["error"].as_str() {
                bail!("{error}");
            }
        }
        Ok(values)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: Query<'_>,
        kind: Option<&str>,
        body: Body,
    ) -> Result<Incoming> {
        if path.ends_with('/') || path.contains("//") {
            bail!("the name of what is meant is empty: give a name or an id");
        }
        let mut request = Request::builder().method(method).uri(uri(path, query)).header(header::HOST, "skep");
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request.body(body).with_context(|| format!("{path:?} makes no valid request"))?;
        let answer = self.exchange(request).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let bytes = collect(answer.into_body()).await?;
        let said = serde_json::from_slice::<Value>(&bytes).ok();
        let message = said.and_then(|v| v["message"].as_str().map(str::to_owned));
        let message = message.unwrap_or_else(|| format!("{status}: {}", String::from_utf8_lossy(&bytes).trim()));
        Err(Refused { status, message }.into())
    }

    async fn exchange(&self, request: Request<Body>) -> Result<http::Response<Incoming>> {
        match &self.address {
            Address::Unix(path) => {
                let stream = self.connected(UnixStream::connect(path)).await?;
                self.over(TokioIo::new(stream), request).await
            }
            Address::Tcp(authority) => {
                let stream = self.connected(TcpStream::connect(authority)).await?;
                self.over(TokioIo::new(stream), request).await
            }
        }
    }

    async fn connected<T>(&self, connect: impl Future<Output = std::io::Result<T>>) -> Result<T> {
        let hint = || format!("Cannot connect to the Skep daemon at {}. Is the skep daemon running?", self.host);
        tokio::time::timeout(CONNECT_DEADLINE, connect).await.with_context(hint)?.with_context(hint)
    }

    async fn over<T>(&self, io: TokioIo<T>, request: Request<Body>) -> Result<http::Response<Incoming>>
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        // Ends with the answer's body, or with the program.
        tokio::spawn(connection);
        sender.send_request(request).await.with_context(|| format!("no answer from {}", self.host))
    }
}

async fn collect(body: Incoming) -> Result<Bytes> {
    let mut stream = body.into_data_stream();
    let mut all = BytesMut::new();
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece.context("the answer broke off")?);
        if all.len() > MAX_ANSWER {
            bail!("the answer is larger than {} MiB", MAX_ANSWER >> 20);
        }
    }
    Ok(all.freeze())
}

fn uri(path: &str, query: Query<'_>) -> String {
    let mut uri = path.to_owned();
    for (index, (name, value)) in query.iter().enumerate() {
        uri.push(if index == 0 { '?' } else { '&' });
        uri.push_str(name);
        uri.push('=');
        uri.push_str(&escape(value));
    }
    uri
}

/// A name as part of a path or query. Slashes stay: names of images have them.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' | b':' | b'@' => {
                escaped.push(char::from(byte));
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

/// The `filters` parameter of lists from `--filter name=value` flags.
pub(crate) fn filters(flags: &[String]) -> Result<String> {
    let mut map = serde_json::Map::new();
    for flag in flags {
        let (name, value) =
            flag.split_once('=').with_context(|| format!("bad format of filter {flag:?}: expected name=value"))?;
        let values = map.entry(name.trim().to_lowercase()).or_insert_with(|| Value::Array(Vec::new()));
        if let Some(values) = values.as_array_mut() {
            values.push(Value::from(value.trim()));
        }
    }
    Ok(Value::Object(map).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hosts_are_understood_or_refused() {
        for host in ["unix:///run/x.sock", "tcp://10.0.0.1:2375", "tcp://h", "http://[::1]:1"] {
            Client::new(host).unwrap();
        }
        for host in ["", "ssh://x", "/run/x.sock", "npipe://x"] {
            assert!(Client::new(host).is_err(), "{host}");
        }
    }

    #[test]
    fn advice_of_the_node_names_this_program() {
        let message = "Use \"docker swarm init\" or \"docker swarm join\"; docker".to_owned();
        let refused = Refused { status: StatusCode::SERVICE_UNAVAILABLE, message };
        assert_eq!(refused.to_string(), "Use \"skep swarm init\" or \"skep swarm join\"; docker");
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(uri("/a", &[("x", "1 &é"), ("y", "")]), "/a?x=1%20%26%C3%A9&y=");
        assert_eq!(escape("r:5000/a/b:1"), "r:5000/a/b:1");
        assert_eq!(filters(&["name=a".to_owned(), "name=b".to_owned()]).unwrap(), r#"{"name":["a","b"]}"#);
        assert!(filters(&["name".to_owned()]).is_err());
    }
}
