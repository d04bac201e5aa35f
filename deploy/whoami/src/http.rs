//! HTTP/1.1 of a server, as far as this program needs it (RFC 9112): requests with persistent connections,
//! bounded heads and bodies, responses with a length or in chunks. Pure but for the streams given to it.

use std::io::{self, BufRead, Read, Write};

/// Bytes of a request's line and headers.
const HEAD_MAX: u64 = 16 << 10;
const HEADERS_MAX: usize = 100;
/// Bytes of a request's body, which is read and forgotten.
const BODY_MAX: u64 = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query as sent.
    pub(crate) target: String,
    pub(crate) version: String,
    pub(crate) headers: Vec<(String, String)>,
}

/// A request that can't be served; the connection ends with this status.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) u16);

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name)).map(|(_, value)| value)
    }

    /// Whether the peer wants to send more requests on the same connection.
    pub(crate) fn keep_alive(&self) -> bool {
        let options = self.header("connection").unwrap_or_default().to_ascii_lowercase();
        let has = |option: &str| options.split(',').any(|part| part.trim() == option);
        if self.version == "HTTP/1.0" { has("keep-alive") } else { !has("close") }
    }
}

/// Reads one request and its body. `Ok(None)`: the peer closed the connection before a new one.
pub(crate) fn read_request(stream: &mut impl BufRead) -> io::Result<Result<Option<Request>, Refusal>> {
    let mut head = stream.by_ref().take(HEAD_MAX);
    let mut line = match read_line(&mut head)? {
        Line::End => return Ok(Ok(None)),
        Line::TooLong => return Ok(Err(Refusal(431))),
        Line::Text(line) => line,
    };
    // An empty line before a request is tolerated (RFC 9112, 2.2).
    if line.is_empty() {
        match read_line(&mut head)? {
            Line::Text(next) => line = next,
            Line::End => return Ok(Ok(None)),
            Line::TooLong => return Ok(Err(Refusal(431))),
        }
    }
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Ok(Err(Refusal(400)));
    };
    if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase()) || !target.starts_with('/') {
        return Ok(Err(Refusal(400)));
    }
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Ok(Err(Refusal(505)));
    }
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        version: version.to_owned(),
        headers: Vec::new(),
    };
    loop {
        let line = match read_line(&mut head)? {
            Line::Text(line) if line.is_empty() => break,
            Line::Text(line) => line,
            Line::End => return Ok(Ok(None)),
            Line::TooLong => return Ok(Err(Refusal(431))),
        };
        let Some((name, value)) = line.split_once(':') else {
            return Ok(Err(Refusal(400)));
        };
        // Also refuses folded lines and blanks before the colon.
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(Err(Refusal(400)));
        }
        if request.headers.len() == HEADERS_MAX {
            return Ok(Err(Refusal(431)));
        }
        request.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    if request.version == "HTTP/1.1" && request.header("host").is_none() {
        return Ok(Err(Refusal(400)));
    }
    Ok(match skip_body(&request, stream)? {
        None => Ok(Some(request)),
        Some(refusal) => Err(refusal),
    })
}

/// The body is taken from the connection, or the next request would be read out of it.
fn skip_body(request: &Request, stream: &mut impl Read) -> io::Result<Option<Refusal>> {
    if request.header("transfer-encoding").is_some() {
        return Ok(Some(Refusal(501)));
    }
    let mut lengths = request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = match (lengths.next(), lengths.next()) {
        (None, _) => return Ok(None),
        (Some((_, text)), None) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => text.parse::<u64>(),
        _ => return Ok(Some(Refusal(400))),
    };
    match length {
        Ok(length) if length <= BODY_MAX => {
            let read = io::copy(&mut stream.take(length), &mut io::sink())?;
            if read < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) }
        }
        _ => Ok(Some(Refusal(413))),
    }
}

enum Line {
    Text(String),
    End,
    TooLong,
}

fn read_line(head: &mut io::Take<&mut impl BufRead>) -> io::Result<Line> {
    let mut line = Vec::new();
    head.read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Ok(if head.limit() == 0 { Line::TooLong } else { Line::End });
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    // What isn't text is shown as well as it can be; nothing here depends on it.
    Ok(Line::Text(String::from_utf8_lossy(&line).into_owned()))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

/// A whole response. `body` is left out for HEAD, its length is not.
pub(crate) fn write_response(
    stream: &mut impl Write,
    status: u16,
    body: &str,
    head_only: bool,
    keep_alive: bool,
) -> io::Result<()> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut response = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
        reason(status),
        body.len(),
    );
    if !head_only {
        response.push_str(body);
    }
    // One write, one packet: a header alone would wait for the peer's delayed acknowledgement.
    stream.write_all(response.as_bytes())?;
    stream.flush()
}

/// The head of a response whose length nobody knows; the connection ends with it.
pub(crate) fn start_stream(stream: &mut impl Write) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
}

/// A piece of such a response; an empty one ends it.
pub(crate) fn write_chunk(stream: &mut impl Write, data: &str) -> io::Result<()> {
    stream.write_all(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes())?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<Option<Request>, Refusal> {
        read_request(&mut text.as_bytes()).unwrap()
    }

    #[test]
    fn requests_follow_each_other() {
        let text = "POST /a?x=1&ms=20 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.0\r\n\r\n";
        let mut stream = text.as_bytes();
        let first = read_request(&mut stream).unwrap().unwrap().unwrap();
        assert_eq!((first.method.as_str(), first.path(), first.query("ms")), ("POST", "/a", Some("20")));
        assert!(first.keep_alive());
        let second = read_request(&mut stream).unwrap().unwrap().unwrap();
        assert_eq!((second.path(), second.query("ms"), second.keep_alive()), ("/b", None, false));
        assert_eq!(read_request(&mut stream).unwrap(), Ok(None));
    }

    #[test]
    fn persistence_follows_version_and_header() {
        let keep = |version: &str, header: &str| {
            read(&format!("GET / {version}\r\nHost: h\r\n{header}\r\n\r\n")).unwrap().unwrap().keep_alive()
        };
        assert!(keep("HTTP/1.1", "X: y"));
        assert!(!keep("HTTP/1.1", "Connection: Close"));
        assert!(!keep("HTTP/1.1", "connection: upgrade, close"));
        assert!(keep("HTTP/1.0", "Connection: keep-alive"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let long = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "h".repeat(20_000));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(101));
        for (text, status) in [
            ("GET /\r\n\r\n", 400),
            ("get / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("GET x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n", 413),
            ("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
            ("GET / HTTP/2\r\nHost: h\r\n\r\n", 505),
            (&long, 431),
            (&many, 431),
        ] {
            assert_eq!(read(text), Err(Refusal(status)), "{}", &text[..text.len().min(60)]);
        }
        assert_eq!(read(""), Ok(None));
        assert_eq!(read("GET / HTTP/1.1\r\nHo"), Ok(None));
    }
}
