//! `whoami`: the small program that demos and tests run in containers. It tells which container answered
//! and which peer it saw, over HTTP and UDP, and can be the client too.
//!
//! It is one static binary without any file beside it, and ends well: SIGTERM stops the listener, lets
//! running requests finish for at most five seconds, and exits with 0. As process 1 of a container it gets
//! no default action for a signal, so the client handles signals as well.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

mod client;
mod duration;
mod host;
mod http;
mod server;
mod udp;

const USAGE: &str = "\
usage: whoami [--port N] [--address IP]           serve HTTP and UDP (port 80, all addresses)
       whoami client URL [--interval 1s] [--timeout 5s]  request URL for ever, a line for each
       whoami get URL [--timeout 5s]              request URL once; exit code 0 for a 2xx answer";

enum Command {
    Serve { address: Option<IpAddr>, port: u16 },
    Client { url: String, interval: Duration, timeout: Duration },
    Get { url: String, timeout: Duration },
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = parse(&args).map_err(io::Error::other).and_then(run);
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to tell if standard error is closed.
            let _ = writeln!(io::stderr(), "whoami: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> io::Result<ExitCode> {
    match command {
        Command::Serve { address, port } => {
            let signals = signals()?;
            server::serve(server::Config { address, port, identity: host::Identity::new() }, signals)
        }
        Command::Client { url, interval, timeout } => {
            exit_on(signals()?)?;
            client::repeat(&url, interval, timeout)
        }
        Command::Get { url, timeout } => {
            exit_on(signals()?)?;
            Ok(client::once(&url, timeout))
        }
    }
}

fn parse(args: &[String]) -> Result<Command, String> {
    let mut words = Vec::new();
    let (mut address, mut port) = (None, 80);
    let (mut interval, mut timeout) = (Duration::from_secs(1), Duration::from_secs(5));
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (arg.as_str(), None),
        };
        if !name.starts_with('-') {
            words.push(arg.as_str());
            continue;
        }
        let value = inline.or_else(|| rest.next().cloned()).ok_or(USAGE)?;
        let bad = || format!("{value:?} is no value for {name}\n{USAGE}");
        match name {
            "--port" => port = value.parse().map_err(|_| bad())?,
            "--address" => address = Some(value.parse().map_err(|_| bad())?),
            "--interval" => interval = duration::parse(&value).ok_or_else(bad)?,
            "--timeout" => timeout = duration::parse(&value).filter(|t| !t.is_zero()).ok_or_else(bad)?,
            _ => return Err(format!("unknown option {name}\n{USAGE}")),
        }
    }
    match words.as_slice() {
        [] => Ok(Command::Serve { address, port }),
        ["client", url] => Ok(Command::Client { url: (*url).to_owned(), interval, timeout }),
        ["get", url] => Ok(Command::Get { url: (*url).to_owned(), timeout }),
        _ => Err(USAGE.to_owned()),
    }
}

/// A stream that a byte arrives on for each SIGTERM and SIGINT.
fn signals() -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, theirs.try_clone()?)?;
    }
    Ok(ours)
}

fn exit_on(mut signals: UnixStream) -> io::Result<()> {
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        // An error means that no signal can be heard any more: better gone than deaf.
        let _ = signals.read(&mut [0]);
        std::process::exit(0);
    })?;
    Ok(())
}

/// Loopback in the family of an address that means "all".
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(any) if any.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(any) if any.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    }
}
