//! Talking to a supervisor over its socket.
//!
//! Decides nothing; every answer has a bound. Called by the client, which sets the deadlines.

use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{Mode, OFlags, open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::shim::protocol::{Answer, MAX_LINE, Request, line};
use crate::state::Dirs;

/// Connects to a socket whose path may be longer than a socket address can be.
pub(super) async fn connect(dirs: &Dirs) -> io::Result<UnixStream> {
    let directory = open(&dirs.run, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), crate::state::SOCKET)).await
}

/// One request, one answer.
pub(super) async fn ask(dirs: &Dirs, request: Request) -> io::Result<Answer> {
    let mut stream = connect(dirs).await?;
    stream.write_all(&line(&request)).await?;
    let mut out = Vec::new();
    loop {
        let mut buffer = [0u8; 1024];
        let count = stream.read(&mut buffer).await?;
        out.extend_from_slice(&buffer[..count]);
        if let Some(end) = out.iter().position(|byte| *byte == b'\n') {
            return Ok(serde_json::from_slice(&out[..end])?);
        }
        if count == 0 || out.len() > 4 * MAX_LINE {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
