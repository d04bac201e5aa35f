//! For the tests of this room: a manager by itself, in this process.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use skep_proto::v1::Action;
use tempfile::TempDir;

use crate::Manager;

struct NoPeers;

impl crate::raft::Dialer for NoPeers {
    fn channel(&self, address: &str) -> std::io::Result<tonic::transport::Channel> {
        Err(std::io::Error::other(format!("nobody is at {address}")))
    }
}

/// The only manager of a cluster with these first objects, and the directory that it lives in.
pub(crate) async fn alone(first: Vec<Action>) -> (TempDir, Manager) {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::Config {
        dir: dir.path().join("raft"),
        node_id: "m".into(),
        raft_id: 1,
        address: "127.0.0.1:1".into(),
        former_raft_ids: Vec::new(),
        key: [7; 32],
    };
    let manager = Manager::start(config, Arc::new(NoPeers)).await.unwrap();
    manager.bootstrap(first).await.unwrap();
    (dir, manager)
}
