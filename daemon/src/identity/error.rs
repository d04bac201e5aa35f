//! What can be wrong with a node's identity.

use std::path::PathBuf;

use skep_manager::ca::{certificate, root};

/// Why an identity can't be made, read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the identity can't be read or written.
    #[error("{path} can't be {doing}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// `read` or `written`.
        doing: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A part is no PEM.
    #[error("the {what} can't be read: {why}")]
    Pem {
        /// Which part.
        what: &'static str,
        /// What the reader says.
        why: String,
    },
    /// The certificate or key is not what it should be.
    #[error(transparent)]
    Certificate(#[from] certificate::Error),
    /// The root could not sign.
    #[error(transparent)]
    Root(#[from] root::Error),
    /// The parts don't belong together.
    #[error("this identity can't be used: {why}")]
    Unfit {
        /// What doesn't fit.
        why: &'static str,
    },
    /// TLS won't have it.
    #[error("this identity can't be used for TLS: {0}")]
    Tls(String),
    /// The certificate has run out.
    #[error(
        "the certificate of node {node_id} expired at {until} and this machine's clock says {now}: set the clock if it is \
         wrong; else take the node out with `skep swarm leave` and join it again"
    )]
    Expired {
        /// Whose.
        node_id: String,
        /// Last moment of its validity.
        until: String,
        /// This machine's clock.
        now: String,
    },
    /// The certificate is not valid yet: the clock went back.
    #[error(
        "the certificate of node {node_id} is valid from {from} and this machine's clock says {now}: set the clock"
    )]
    NotYetValid {
        /// Whose.
        node_id: String,
        /// First moment of its validity.
        from: String,
        /// This machine's clock.
        now: String,
    },
    /// A replacement is for someone else.
    #[error("a certificate for node {found} of cluster {found_cluster} can't replace that of node {held}")]
    OtherNode {
        /// Whose it is.
        found: String,
        /// Whose cluster's.
        found_cluster: String,
        /// Who this node is.
        held: String,
    },
}
