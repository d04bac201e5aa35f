//! The program as containers run it: real processes, real sockets, loopback only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const WAIT: Duration = Duration::from_secs(20);

struct Server {
    child: Child,
    address: SocketAddr,
    _out: BufReader<ChildStdout>,
}

impl Server {
    fn start(address: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_whoami"))
            .args(["--port", "0", "--address", address])
            .env("WHOAMI_NAME", "bee")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let address = line.split_whitespace().nth(2).unwrap().parse().unwrap();
        Self { child, address, _out: out }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream
    }

    fn get(&self, path: &str) -> String {
        let mut stream = self.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nX-Test: yes\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + WAIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One response of a connection that stays open.
fn read_one(stream: &mut BufReader<TcpStream>) -> (String, String) {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "closed after {head:?}");
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn it_says_who_it_is_and_whom_it_sees_in_both_families() {
    for address in ["127.0.0.1", "::1"] {
        let server = Server::start(address);
        let mut stream = BufReader::new(server.connect());
        let local = stream.get_ref().local_addr().unwrap();
        write!(stream.get_mut(), "GET /?a=b HTTP/1.1\r\nHost: hive\r\nX-Test: yes\r\n\r\n").unwrap();
        let (head, body) = read_one(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        for line in [
            "Name: bee",
            &format!("Hostname: {}", hostname.trim()),
            &format!("RemoteAddr: {local}"),
            "GET /?a=b HTTP/1.1",
            "Host: hive",
            "X-Test: yes",
        ] {
            assert!(body.lines().any(|l| l == line), "{line:?} in {body:?}");
        }
    }
}

#[test]
fn connections_persist_and_requests_may_be_sent_ahead() {
    let server = Server::start("127.0.0.1");
    let mut stream = BufReader::new(server.connect());
    let requests = "GET /health HTTP/1.1\r\nHost: x\r\n\r\nHEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.get_mut().write_all(requests.as_bytes()).unwrap();
    let (head, body) = read_one(&mut stream);
    assert!(head.contains("Connection: keep-alive"), "{head}");
    assert_eq!(body, "ok\n");
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        stream.read_line(&mut head).unwrap();
    }
    write!(
        stream.get_mut(),
        "POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbodyGET /nowhere HTTP/1.0\r\n\r\n"
    )
    .unwrap();
    assert_eq!(read_one(&mut stream).1, "ok\n");
    let (head, _) = read_one(&mut stream);
    assert!(head.starts_with("HTTP/1.1 404") && head.contains("Connection: close"), "{head}");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed after HTTP/1.0");
    assert!(server.get("/slow?ms=x").starts_with("HTTP/1.1 400"));
    let mut garbage = server.connect();
    garbage.write_all(b"\x16\x03\x01 hello\r\n\r\n").unwrap();
    let mut answer = String::new();
    garbage.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[test]
fn datagrams_are_answered_with_their_sender() {
    for address in ["127.0.0.1", "::1"] {
        let server = Server::start(address);
        let socket = UdpSocket::bind((address, 0)).unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket.send_to(b"hello hive", server.address).unwrap();
        let mut buffer = [0; 1024];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, server.address);
        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(answer.ends_with(&format!(" {} hello hive", socket.local_addr().unwrap())), "{answer}");
    }
}

#[test]
fn a_terminated_server_finishes_what_runs_and_takes_nothing_new() {
    let mut server = Server::start("127.0.0.1");
    let mut idle = server.connect();
    write!(idle, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut idle = BufReader::new(idle);
    read_one(&mut idle);
    let mut slow = BufReader::new(server.connect());
    write!(slow.get_mut(), "GET /slow?ms=1500 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut stream = BufReader::new(server.connect());
    write!(stream.get_mut(), "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut line = String::new();
    while !line.starts_with("2 ") {
        line.clear();
        stream.read_line(&mut line).unwrap();
    }
    server.terminate();
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "idle connections are closed at once");
    let deadline = Instant::now() + WAIT;
    while TcpStream::connect(server.address).is_ok() {
        assert!(Instant::now() < deadline, "it still accepts");
    }
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "the stream ends well: {rest:?}");
    let (head, body) = read_one(&mut slow);
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("Connection: close"), "{head}");
    assert!(body.contains("Hostname: "));
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn what_takes_too_long_is_cut_off() {
    let mut server = Server::start("127.0.0.1");
    let mut slow = server.connect();
    write!(slow, "GET /slow?ms=600000 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    // The answer to a later connection shows that the earlier request was accepted.
    server.get("/health");
    let started = Instant::now();
    server.terminate();
    assert_eq!(server.wait().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

#[test]
fn the_client_asks_once_or_for_ever() {
    let mut server = Server::start("127.0.0.1");
    let url = |path: &str| format!("http://{}{path}", server.address);
    let get = |url: &str| Command::new(env!("CARGO_BIN_EXE_whoami")).args(["get", url]).output().unwrap();
    let good = get(&url("/"));
    assert_eq!(good.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&good.stdout).contains("Name: bee"));
    for bad in [url("/nowhere"), "http://127.0.0.1:1/".to_owned(), "ftp://x".to_owned()] {
        let output = get(&bad);
        assert_eq!(output.status.code(), Some(1), "{bad}");
        assert!(!output.stderr.is_empty());
    }
    let mut client = Command::new(env!("CARGO_BIN_EXE_whoami"))
        .args(["client", &url("/"), "--interval=10ms"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut last = String::new();
    for _ in 0..3 {
        last = lines.next().unwrap().unwrap();
        let words: Vec<&str> = last.split(' ').collect();
        assert_eq!((words.len(), words[1], words[4]), (6, "200", &*server.address.to_string()), "{last}");
        assert!(words[0].ends_with('Z') && words[3].starts_with("127.0.0.1:") && words[5].ends_with("ms"), "{last}");
    }
    server.terminate();
    server.wait();
    let failed = lines.map_while(Result::ok).find(|line| line.contains(" ERR ")).unwrap();
    assert!(
        failed.contains("cannot connect") || failed.contains("no whole answer") || failed.contains("not HTTP"),
        "{failed} after {last}"
    );
    kill_process(Pid::from_child(&client), Signal::TERM).unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(0));
}

#[test]
fn wrong_arguments_are_explained() {
    for args in [&["--port", "x"][..], &["--nope", "1"], &["client"], &["get"], &["x"], &["--port"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_whoami")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage:"), "{args:?}");
    }
}
