//! Asking the test servers from inside a namespace.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_net_kernel::ns::Namespace;

use crate::{Answer, Node};

/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// One HTTP request on a connection of its own; connecting, writing and each read have to end within `timeout`.
pub async fn http_get(from: &Namespace, to: SocketAddr, timeout: Duration) -> Result<Answer> {
    let from = from.clone();
    let ask = move || -> Result<Answer> {
        let mut stream = from.tcp_connect(to, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no end of the head in the answer")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "answered {:?}", head.lines().next());
        body.parse()
    };
    tokio::task::spawn_blocking(ask).await?.with_context(|| format!("HTTP request to {to}"))
}

/// One datagram from a port of its own, and its answer within `timeout`. Only an answer from the address that was asked
/// counts.
pub async fn udp_ask(from: &Namespace, to: SocketAddr, timeout: Duration) -> Result<Answer> {
    let from = from.clone();
    let ask = move || -> Result<Answer> {
        let socket = from.udp_socket(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.connect(to)?;
        socket.send(b"who")?;
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer)?;
        std::str::from_utf8(buffer.get(..length).unwrap_or_default())?.parse()
    };
    tokio::task::spawn_blocking(ask).await?.with_context(|| format!("datagram to {to}"))
}

/// Who answers `count` HTTP requests in a row; one that fails fails the whole.
pub async fn answers(from: &Node, to: SocketAddr, count: usize) -> Result<BTreeSet<Answer>> {
    let mut seen = BTreeSet::new();
    for number in 1..=count {
        let answer = http_get(&from.namespace, to, Duration::from_secs(2)).await;
        seen.insert(answer.with_context(|| format!("request {number} from {}", from.name))?);
    }
    Ok(seen)
}
