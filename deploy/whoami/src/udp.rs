//! UDP echo: each datagram is answered with who got it, from whom, and what it said.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use crate::host::Identity;

/// Larger than any datagram that arrives whole.
const DATAGRAM_MAX: usize = 65_535;

/// Answers until the process ends. An error of one datagram (such as a peer that is gone) concerns no other.
pub(crate) fn echo(socket: &UdpSocket, identity: &Arc<Identity>) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, peer)) => {
                let mut answer = format!("{} {} ", identity.hostname, canonical(peer)).into_bytes();
                answer.extend_from_slice(&buffer[..length]);
                let _ = socket.send_to(&answer, peer);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// IPv4 peers of a socket for both families look like themselves.
pub(crate) fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}
