//! The client: one request on one new connection, as most clients behind a balancer make them, and what
//! came of it in one line.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const BODY_MAX: u64 = 1 << 20;
const HEAD_MAX: u64 = 64 << 10;

/// `http://host[:port][/path]`.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    host: String,
    port: u16,
    path: String,
}

struct Answer {
    status: u16,
    body: String,
}

#[derive(Debug)]
enum Failure {
    Url(String),
    Resolve(String, io::Error),
    Connect(io::Error),
    Talk(io::Error),
    NotHttp,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => write!(f, "{url:?} is no URL of the form http://host[:port][/path]"),
            Self::Resolve(host, error) => write!(f, "cannot resolve {host}: {error}"),
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Talk(error) => write!(f, "no whole answer: {error}"),
            Self::NotHttp => f.write_str("the answer is not HTTP"),
        }
    }
}

/// Requests `url` for ever; ends only when nobody reads its lines any more, or the URL is none.
pub(crate) fn repeat(url: &str, interval: Duration, timeout: Duration) -> io::Result<ExitCode> {
    let url = Url::parse(url).ok_or_else(|| io::Error::other(Failure::Url(url.to_owned()).to_string()))?;
    loop {
        let started = Instant::now();
        let answer = request(&url, timeout);
        let line = summary(&answer, started.elapsed());
        writeln!(io::stdout(), "{} {line}", timestamp(SystemTime::now()))?;
        thread::sleep(interval.saturating_sub(started.elapsed()));
    }
}

/// Requests `url` once and prints the body.
pub(crate) fn once(url: &str, timeout: Duration) -> ExitCode {
    let answer = Url::parse(url).ok_or_else(|| Failure::Url(url.to_owned())).and_then(|url| request(&url, timeout));
    match answer {
        Ok((_, answer)) => {
            let printed = io::stdout().write_all(answer.body.as_bytes());
            if (200..300).contains(&answer.status) && printed.is_ok() {
                return ExitCode::SUCCESS;
            }
            let _ = writeln!(io::stderr(), "whoami: status {}", answer.status);
        }
        Err(failure) => drop(writeln!(io::stderr(), "whoami: {failure}")),
    }
    ExitCode::FAILURE
}

/// Status, who answered, which client it saw, what was called, how long it took.
fn summary(answer: &Result<(SocketAddr, Answer), Failure>, took: Duration) -> String {
    let millis = took.as_secs_f64() * 1000.0;
    match answer {
        Ok((called, answer)) => {
            let field = |name: &str| {
                let value = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                value.unwrap_or("-").to_owned()
            };
            format!("{} {} {} {called} {millis:.1}ms", answer.status, field("Hostname"), field("RemoteAddr"))
        }
        Err(failure) => format!("ERR - - - {millis:.1}ms {failure}"),
    }
}

impl Url {
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://")?;
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']')?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = port.map_or(Some(80), |port| port.parse().ok())?;
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        if host.is_empty() || !plain(host) || !plain(path) {
            return None;
        }
        let path = if path.is_empty() { "/" } else { path };
        Some(Self { host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// The answer, and the address that gave it.
fn request(url: &Url, timeout: Duration) -> Result<(SocketAddr, Answer), Failure> {
    let deadline = Instant::now() + timeout;
    let (called, mut stream) = connect(url, deadline)?;
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let head = format!(
        "GET {} HTTP/1.1\r\nHost: {host}:{}\r\nUser-Agent: whoami\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        url.path, url.port
    );
    stream.write_all(head.as_bytes()).map_err(Failure::Talk)?;
    Ok((called, read_answer(BufReader::new(Deadline { stream, deadline }))?))
}

/// The first of the host's addresses that accepts.
fn connect(url: &Url, deadline: Instant) -> Result<(SocketAddr, TcpStream), Failure> {
    let resolve = |error| Failure::Resolve(url.host.clone(), error);
    let addresses = (url.host.as_str(), url.port).to_socket_addrs().map_err(resolve)?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Connect(io::ErrorKind::TimedOut.into()));
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_write_timeout(Some(left)).map_err(Failure::Connect)?;
                return Ok((address, stream));
            }
            Err(error) => last = error,
        }
    }
    Err(Failure::Connect(last))
}

/// A stream whose reads end at one point in time, however the bytes trickle.
struct Deadline {
    stream: TcpStream,
    deadline: Instant,
}

impl Read for Deadline {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        match self.stream.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            other => other,
        }
    }
}

fn read_answer(mut stream: impl BufRead) -> Result<Answer, Failure> {
    let mut head = stream.by_ref().take(HEAD_MAX);
    let mut line = String::new();
    head.read_line(&mut line).map_err(Failure::Talk)?;
    let mut words = line.split_whitespace();
    let version = words.next().unwrap_or_default();
    let status: u16 = words.next().and_then(|code| code.parse().ok()).ok_or(Failure::NotHttp)?;
    if !version.starts_with("HTTP/1.") {
        return Err(Failure::NotHttp);
    }
    let (mut length, mut chunked) = (None, false);
    loop {
        line.clear();
        head.read_line(&mut line).map_err(Failure::Talk)?;
        if line.trim_end().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or(Failure::NotHttp)?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.trim().parse::<u64>().map_err(|_| Failure::NotHttp)?),
            "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
            _ => {}
        }
    }
    if !line.ends_with('\n') {
        return Err(Failure::Talk(io::ErrorKind::UnexpectedEof.into()));
    }
    let body = if chunked { read_chunks(&mut stream) } else { read_body(&mut stream, length) };
    let body = body.map_err(Failure::Talk)?;
    Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
}

fn read_body(stream: &mut impl Read, length: Option<u64>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    stream.take(length.unwrap_or(BODY_MAX).min(BODY_MAX)).read_to_end(&mut body)?;
    match length {
        Some(length) if (body.len() as u64) < length.min(BODY_MAX) => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(body),
    }
}

fn read_chunks(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.take(100).read_line(&mut line)?;
        let size = line.trim_end().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        if size == 0 || body.len() as u64 + size > BODY_MAX {
            return Ok(body);
        }
        let before = body.len() as u64;
        stream.take(size).read_to_end(&mut body)?;
        if body.len() as u64 - before < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.take(2).read_to_end(&mut Vec::new())?;
    }
}

/// UTC in RFC 3339 with milliseconds.
fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days since 0000-03-01 make leap days the last of their years.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls() {
        let url = |host: &str, port, path: &str| Some(Url { host: host.into(), port, path: path.into() });
        assert_eq!(Url::parse("http://web"), url("web", 80, "/"));
        assert_eq!(Url::parse("http://web:8080/a?b=c"), url("web", 8080, "/a?b=c"));
        assert_eq!(Url::parse("http://[::1]:81/x"), url("::1", 81, "/x"));
        for bad in ["", "web", "https://web", "http://", "http://web:x", "http://a b", "http://web/\r\n", "http://[::1"]
        {
            assert_eq!(Url::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn answers_are_read_whole_or_refused() {
        let read = |text: &str| read_answer(text.as_bytes()).map(|answer| (answer.status, answer.body));
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi!").unwrap(), (200, "hi".to_owned()));
        assert_eq!(read("HTTP/1.0 404 No\r\n\r\nall of it").unwrap(), (404, "all of it".to_owned()));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(read(chunked).unwrap(), (200, "abc".to_owned()));
        for bad in ["", "nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", "HTTP/1.1 200 OK\r\nA: b"]
        {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn timestamps() {
        let at = |seconds: u64| timestamp(UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7));
        assert_eq!(at(0), "1970-01-01T00:00:00.007Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59.007Z");
        assert_eq!(at(1_735_689_600), "2025-01-01T00:00:00.007Z");
    }
}
