//! Random kills and partitions under load: no acknowledged write is lost, and all managers end up with the same state.

use std::time::{Duration, Instant};

use crate::support::{Cluster, SECOND, put, until};

/// A repeatable choice.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Writes from several clients until the time is over; returns what was acknowledged.
async fn load(cluster: &Cluster, round: u64, time: Duration) -> Vec<String> {
    let end = Instant::now() + time;
    let clients = (0..6).map(|client| async move {
        let mut acknowledged = Vec::new();
        for n in 0.. {
            if Instant::now() >= end {
                break;
            }
            let key = format!("{round}/{client}/{n}");
            for id in cluster.running() {
                // A refusal or an unknown outcome promises nothing.
                if cluster.raft(id).propose(put(&key, &key), Duration::from_millis(100)).await.is_ok() {
                    acknowledged.push(key.clone());
                    break;
                }
            }
        }
        acknowledged
    });
    futures::future::join_all(clients).await.concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_in_a_storm() {
    let seed = std::env::var("SKEP_CHAOS_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) * 2_654_435_761 + 1);
    eprintln!("SKEP_CHAOS_SEED={seed}");
    let mut dice = Dice(seed);
    let mut cluster = Cluster::with(3, |config| {
        config.snapshot_every = 150;
        config.keep_entries = 20;
    })
    .await;
    let mut acknowledged = Vec::new();
    for round in 0..12 {
        acknowledged.extend(load(&cluster, round, Duration::from_millis(300)).await);
        let victim = 1 + dice.roll(3);
        match dice.roll(4) {
            // A crash in the middle of the load.
            0 => {
                cluster.kill(victim).await;
                acknowledged.extend(load(&cluster, 100 + round, SECOND).await);
                cluster.restart(victim).await;
            }
            1 => {
                cluster.cut(victim);
                acknowledged.extend(load(&cluster, 100 + round, SECOND).await);
                cluster.heal(victim);
            }
            // All at once: what is on disk is what there is.
            2 => {
                for id in cluster.ids() {
                    cluster.kill(id).await;
                }
                for id in cluster.ids() {
                    cluster.restart(id).await;
                }
            }
            _ => {
                let leader = cluster.leader().await;
                // May fail while the cluster is still settling.
                cluster.raft(leader).transfer_leadership().await.ok();
            }
        }
    }
    assert!(acknowledged.len() > 200, "only {} writes got through", acknowledged.len());
    cluster.propose_anywhere(put("end", "end"), 20 * SECOND).await;
    until("all have the last write", || cluster.ids().all(|id| cluster.get(id, "end").is_some())).await;
    let states: Vec<_> = cluster.ids().map(|id| cluster.machine(id).entries.lock().unwrap().clone()).collect();
    for (state, id) in states.iter().zip(cluster.ids()) {
        let lost: Vec<_> = acknowledged.iter().filter(|key| !state.contains_key(*key)).collect();
        assert!(lost.is_empty(), "manager {id} lost {} of {} acknowledged writes", lost.len(), acknowledged.len());
        assert!(*state == states[0], "manager {id} differs");
    }
    eprintln!("{} acknowledged writes, none lost", acknowledged.len());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_managers_share_a_load() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for writers in [16, 256] {
        let started = Instant::now();
        let mut done = 0;
        while started.elapsed() < SECOND {
            let raft = cluster.raft(leader);
            let all = (0..writers).map(|i| raft.propose(put(&format!("k{i}"), "value"), 10 * SECOND));
            done += futures::future::join_all(all).await.into_iter().map(Result::unwrap).count();
        }
        eprintln!(
            "three managers, {writers} writers: {:.0} commits/s",
            f64::from(done as u32) / started.elapsed().as_secs_f64()
        );
    }
    // Followers lag by moments only.
    let last = cluster.raft(leader).propose(put("last", "1"), 10 * SECOND).await.unwrap();
    for id in cluster.ids() {
        assert!(cluster.raft(id).read_barrier(10 * SECOND).await.unwrap() >= last.index);
    }
    cluster.stop().await;
}
