//! Who is at the other end of a connection, as its certificate says, and what that opens.
//!
//! The daemon terminates TLS and puts a [`Peer`] into the extensions of every request whose caller showed a valid
//! certificate of this cluster. Services ask here; none looks at certificates itself.

use skep_proto::v1::Role;
use tonic::{Extensions, Request, Status};

/// The holder of a verified node certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node's id (common name).
    pub node_id: String,
    /// The role the certificate grants (organisational unit).
    pub role: Role,
    /// The cluster's id (organisation).
    pub cluster_id: String,
}

/// The caller, if it showed a certificate of either role.
pub fn require_node<T>(request: &Request<T>) -> Result<Peer, Status> {
    node_of(request.extensions()).cloned()
}

/// The caller, if its certificate is a manager's.
pub fn require_manager<T>(request: &Request<T>) -> Result<Peer, Status> {
    manager_of(request.extensions()).cloned()
}

fn node_of(caller: &Extensions) -> Result<&Peer, Status> {
    caller
        .get::<Peer>()
        .ok_or_else(|| Status::unauthenticated("this call needs a node's certificate: join the cluster first"))
}

/// The caller beside whose request these extensions lie, if its certificate is a manager's.
pub(crate) fn manager_of(caller: &Extensions) -> Result<&Peer, Status> {
    let peer = node_of(caller)?;
    if peer.role == Role::Manager {
        Ok(peer)
    } else {
        Err(Status::permission_denied(format!(
            "node {} holds a worker's certificate; this call is for managers",
            peer.node_id
        )))
    }
}

/// The caller's socket address, put beside [`Peer`] by the daemon.
#[derive(Debug, Clone, Copy)]
pub struct Address(pub std::net::SocketAddr);
