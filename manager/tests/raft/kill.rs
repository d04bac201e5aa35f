//! A manager that is killed with SIGKILL while it writes: whatever it acknowledged is there afterwards.
//!
//! The test starts itself again as the manager (an environment variable names the directory); the child prints each
//! number once its write is acknowledged, and is killed at a random moment.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_manager::raft::{Config, Dialer, Raft};
use tonic::transport::Channel;

use crate::support::{KEY, Map, SECOND, put};

const DIR: &str = "SKEP_RAFT_KILL_DIR";
const ROUNDS: u64 = 12;

struct Nobody;

impl Dialer for Nobody {
    fn channel(&self, _address: &str) -> std::io::Result<Channel> {
        Err(std::io::ErrorKind::NotConnected.into())
    }
}

async fn open(dir: &Path) -> (Raft, Arc<Map>) {
    let mut config = Config::new(dir, 1, "127.0.0.1:1", KEY);
    // Often, so that some kills hit a snapshot or a purge.
    config.snapshot_every = 300;
    config.keep_entries = 50;
    let map = Arc::new(Map::default());
    let raft = Raft::open(config, Arc::clone(&map) as _, Arc::new(Nobody)).await.unwrap();
    (raft, map)
}

/// The manager that gets killed; does nothing when the suite runs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let (raft, map) = open(Path::new(&dir)).await;
    // The first life founds the cluster; later ones find it.
    raft.bootstrap().await.ok();
    raft.read_barrier(10 * SECOND).await.unwrap();
    let first = map.entries.lock().unwrap().len() as u64;
    let raft = Arc::new(raft);
    let mut writers = Vec::new();
    for writer in 0..8 {
        let raft = Arc::clone(&raft);
        writers.push(tokio::spawn(async move {
            for n in (first + writer..).step_by(8) {
                raft.propose(put(&format!("n{n}"), &"v".repeat((n % 700) as usize)), 10 * SECOND).await.unwrap();
                println!("acknowledged {n}");
            }
        }));
    }
    futures::future::join_all(writers).await;
}

/// Kills the process when the test fails half-way.
struct Victim(std::process::Child);

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_manager_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = std::collections::BTreeSet::new();
    for round in 0..ROUNDS {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::child", "--nocapture", "--test-threads", "1"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut victim = Victim(child);
        let output = BufReader::new(victim.0.stdout.take().unwrap());
        let lines = std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut begun = None;
            let moment = Duration::from_millis(30 + (u64::from(std::process::id()) * 7919 + round * 104_729) % 400);
            let mut victim = Some(victim);
            for line in output.lines() {
                let Ok(line) = line else { break };
                // The harness may print on the same line first.
                let number = line.split("acknowledged ").nth(1).and_then(|n| n.parse::<u64>().ok());
                seen.extend(number);
                let since: &mut Instant = begun.get_or_insert_with(Instant::now);
                if number.is_some() && since.elapsed() > moment {
                    // SIGKILL; what is still in the pipe was acknowledged all the same.
                    drop(victim.take());
                }
            }
            seen
        });
        let seen = tokio::task::spawn_blocking(move || lines.join().unwrap()).await.unwrap();
        assert!(!seen.is_empty(), "the child acknowledged nothing in round {round}");
        acknowledged.extend(seen);

        let (raft, map) = open(dir.path()).await;
        raft.read_barrier(10 * SECOND).await.unwrap();
        {
            let entries = map.entries.lock().unwrap();
            let lost: Vec<_> = acknowledged.iter().filter(|n| !entries.contains_key(&format!("n{n}"))).collect();
            assert!(lost.is_empty(), "round {round}: {} acknowledged writes are gone, from {:?}", lost.len(), lost[0]);
        }
        raft.shutdown().await;
    }
    eprintln!("{ROUNDS} kills, {} acknowledged writes, none lost", acknowledged.len());
}
