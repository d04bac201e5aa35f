//! Servers that answer with their own name and the address of who asks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use skep_net_kernel::ns::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};

/// Longest request that a server reads, in bytes.
const MAX_REQUEST: usize = 4096;
/// Longest time that one request may take.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// Requests that a server handles at once.
const MAX_REQUESTS: usize = 256;

/// What a server says: who it is, and who it thinks asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Answer {
    /// Name of the server.
    pub server: String,
    /// Address that the request came from.
    pub client: IpAddr,
}

impl Answer {
    /// That server having seen that client.
    pub fn new(server: impl Into<String>, client: impl Into<IpAddr>) -> Self {
        Self { server: server.into(), client: client.into() }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.server, self.client)
    }
}

impl FromStr for Answer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (server, client) =
            text.trim().split_once(' ').ok_or_else(|| anyhow!("not an answer of a test server: {text:?}"))?;
        Ok(Self::new(server, client.parse::<IpAddr>().with_context(|| format!("not an address: {client:?}"))?))
    }
}

/// A running server; it ends with the value.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves HTTP on all addresses of `namespace`.
    pub fn http(namespace: &Namespace, port: u16, name: &str) -> Result<Self> {
        let listener = namespace.tcp_listener(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
        let listener = TcpListener::from_std(listener)?;
        let name = name.to_owned();
        Ok(Self { task: tokio::spawn(async move { serve_http(listener, &name).await }) })
    }

    /// Serves UDP on all addresses of `namespace`. The socket is bound to no address, as most programs' are, so the kernel
    /// chooses the answer's source.
    pub fn udp(namespace: &Namespace, port: u16, name: &str) -> Result<Self> {
        let socket = namespace.udp_socket(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
        let socket = UdpSocket::from_std(socket)?;
        let name = name.to_owned();
        Ok(Self { task: tokio::spawn(async move { serve_udp(&socket, &name).await }) })
    }
}

async fn serve_http(listener: TcpListener, name: &str) {
    // Dropping the set with the server ends its requests too.
    let mut requests = JoinSet::new();
    loop {
        while requests.len() >= MAX_REQUESTS {
            requests.join_next().await;
        }
        let Ok((stream, peer)) = listener.accept().await else {
            return;
        };
        let answer = Answer::new(name, peer.ip());
        requests.spawn(tokio::time::timeout(REQUEST_TIME, answer_http(stream, answer)));
        while requests.try_join_next().is_some() {}
    }
}

async fn answer_http(mut stream: TcpStream, answer: Answer) -> Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 512];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        match stream.read(&mut chunk).await? {
            0 => break,
            n => request.extend_from_slice(chunk.get(..n).unwrap_or_default()),
        }
    }
    let body = answer.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

async fn serve_udp(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; MAX_REQUEST];
    loop {
        // An error here is an ICMP answer to an earlier datagram, of which the server need not know.
        if let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(Answer::new(name, peer.ip()).to_string().as_bytes(), peer).await;
        }
    }
}
