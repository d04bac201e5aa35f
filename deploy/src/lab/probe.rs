//! A look from one machine of the lab at another: one small HTTP request, made inside that machine's network.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use skep_net_kernel::ns::Namespace;

use super::Lab;

/// Largest answer that is read.
const MAX_ANSWER: u64 = 64 * 1024;

/// What a `whoami` task says of itself and of its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Host name of the task's container.
    pub hostname: String,
    /// The client's address, as the task saw it.
    pub client: String,
}

impl Lab {
    /// Asks `http://address/` from a machine.
    pub fn ask(&self, machine: &str, address: SocketAddr, within: Duration) -> Result<Answer> {
        parse(&self.get(machine, address, within)?)
    }

    /// The body of `GET /` at an address, asked from a machine.
    pub fn get(&self, machine: &str, address: SocketAddr, within: Duration) -> Result<String> {
        let path = PathBuf::from(format!("/proc/{}/ns/net", self.init(machine)?.pid));
        let mut stream = Namespace::open(&path)?.tcp_connect(address, within)?;
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split_whitespace().nth(1).unwrap_or_default();
        if status != "200" {
            bail!("{address} answered with status {status}");
        }
        Ok(body.to_owned())
    }
}

fn parse(body: &str) -> Result<Answer> {
    let field = |name: &str| {
        let found = body.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        found.map(str::trim).with_context(|| format!("no {name} in the answer {body:?}"))
    };
    let client = field("RemoteAddr")?;
    let client = client.rsplit_once(':').map_or(client, |(ip, _)| ip).trim_matches(['[', ']']);
    Ok(Answer {
        hostname: field("Hostname")?.to_owned(),
        client: client.strip_prefix("::ffff:").unwrap_or(client).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() -> Result<()> {
        let body = "Hostname: abc\nIP: 10.0.0.3\nRemoteAddr: 192.168.77.200:4711\n";
        assert_eq!(parse(body)?, Answer { hostname: "abc".into(), client: "192.168.77.200".into() });
        assert_eq!(parse("Hostname: a\nRemoteAddr: [::ffff:1.2.3.4]:5\n")?.client, "1.2.3.4");
        assert!(parse("nonsense").is_err());
        Ok(())
    }
}
