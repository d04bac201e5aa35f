//! Three managers on loopback: replication, lost leaders, restarts, partitions, slow followers, changes of membership.

use std::time::{Duration, Instant};

use skep_manager::raft::{Config, Error, Raft};
use skep_proto::v1::raft_client::RaftClient;
use skep_proto::v1::{RaftAppendRequest, RaftLogId, RaftReadIndexRequest, RaftVote, RaftVoteRequest};
use tonic::Code;

use crate::support::{self, Cluster, SECOND, put, until};

const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_leader_accepts_every_manager_has() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut last = 0;
    for i in 0..100 {
        let done = cluster.raft(leader).propose(put(&format!("k{i}"), "v"), LONG).await.unwrap();
        assert!(done.index > last);
        assert_eq!(done.reply, format!("k{i}=v").into_bytes());
        last = done.index;
    }
    for id in cluster.ids() {
        // A linearizable read through any of them.
        assert!(cluster.raft(id).read_barrier(LONG).await.unwrap() >= last);
        assert_eq!(cluster.get(id, "k99").as_deref(), Some("v"));
    }
    let follower = cluster.follower().await;
    match cluster.raft(follower).propose(put("a", "b"), LONG).await {
        Err(Error::NotLeader { leader: Some(known) }) => assert_eq!(known.id, leader),
        other => panic!("{other:?}"),
    }
    match cluster.raft(leader).propose(vec![0; 2 << 20], LONG).await {
        Err(Error::TooLarge { .. }) => {}
        other => panic!("{other:?}"),
    }
    // The largest that is allowed, several at a time.
    let big = "x".repeat((3 << 19) - 100);
    let all = (0..8).map(|i| cluster.raft(leader).propose(put(&format!("big{i}"), &big), LONG));
    for done in futures::future::join_all(all).await {
        done.unwrap();
    }
    assert!(cluster.raft(leader).members().iter().all(|m| m.voter));
    let all = || cluster.raft(leader).members().iter().all(|m| m.reachable == Some(true));
    until("the leader reaches everybody", all).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_replaced_within_a_second() {
    let mut cluster = Cluster::start(3).await;
    let mut times = Vec::new();
    for round in 0..8 {
        let leader = cluster.leader().await;
        cluster.raft(leader).propose(put("round", &round.to_string()), LONG).await.unwrap();
        let lost = Instant::now();
        cluster.kill(leader).await;
        let key = format!("after{round}");
        cluster.propose_anywhere(put(&key, "yes"), LONG).await;
        times.push(lost.elapsed());
        cluster.restart(leader).await;
        until("the restarted manager has what it missed", || cluster.get(leader, &key).is_some()).await;
    }
    times.sort();
    eprintln!("leader killed -> next write accepted: {times:?}");
    // The budget is a second on an idle machine; other builds share this one.
    assert!(times[times.len() / 2] < Duration::from_millis(1500), "{times:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_managers_restart_with_everything_acknowledged() {
    let mut cluster = Cluster::with(3, |config| config.snapshot_every = 200).await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        for chunk in 0..10 {
            let raft = cluster.raft(leader);
            let all = (0..30).map(|i| raft.propose(put(&format!("{round}-{chunk}-{i}"), "v"), LONG));
            for done in futures::future::join_all(all).await {
                done.unwrap();
            }
        }
        for id in cluster.ids() {
            cluster.kill(id).await;
        }
        for id in cluster.ids() {
            cluster.restart(id).await;
        }
        cluster.leader().await;
        for id in cluster.ids() {
            cluster.raft(id).read_barrier(LONG).await.unwrap();
            for old in 0..=round {
                for chunk in 0..10 {
                    for i in 0..30 {
                        assert!(cluster.get(id, &format!("{old}-{chunk}-{i}")).is_some(), "{id}: {old}-{chunk}-{i}");
                    }
                }
            }
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_was_away_gets_a_snapshot() {
    let mut cluster = Cluster::with(3, |config| {
        config.snapshot_every = 50;
        config.keep_entries = 10;
    })
    .await;
    let away = cluster.follower().await;
    cluster.kill(away).await;
    let leader = cluster.leader().await;
    let value = support::noise(20_000);
    for i in 0..300 {
        cluster.raft(leader).propose(put(&format!("k{i}"), &value), LONG).await.unwrap();
    }
    until("the leader has a snapshot", || cluster.snapshots(leader) == 1).await;
    assert_eq!(cluster.restores(away), 0);
    cluster.restart(away).await;
    until("the manager caught up", || (0..300).all(|i| cluster.get(away, &format!("k{i}")).is_some())).await;
    assert_eq!(cluster.restores(away), 1, "it should have got one snapshot");
    // It goes on with the log, and comes back from its own disk.
    cluster.propose_anywhere(put("after", "1"), LONG).await;
    until("it follows", || cluster.get(away, "after").is_some()).await;
    cluster.kill(away).await;
    cluster.restart(away).await;
    until("it is back", || cluster.get(away, "after").is_some() && cluster.get(away, "k0").is_some()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_grows_by_bytes_is_compacted_too() {
    let cluster = Cluster::with(1, |config| config.snapshot_bytes = 1 << 20).await;
    let value = support::noise(100_000);
    for i in 0..20 {
        cluster.raft(1).propose(put(&format!("k{i}"), &value), LONG).await.unwrap();
    }
    until("a snapshot", || cluster.snapshots(1) == 1).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_gives_up_and_says_why() {
    let cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    cluster.raft(old).propose(put("before", "1"), LONG).await.unwrap();
    cluster.cut(old);
    let cut = Instant::now();
    until("the isolated leader steps down", || !cluster.raft(old).leadership().borrow().is_self).await;
    let stepped_down = cut.elapsed();
    until("the others have a leader", || cluster.ids().any(|id| id != old && cluster.leads(id))).await;
    eprintln!("isolated leader: gave up after {stepped_down:?}, replaced after {:?}", cut.elapsed());
    let asked = Instant::now();
    let refused = cluster.raft(old).propose(put("lost", "1"), SECOND).await.unwrap_err();
    assert!(asked.elapsed() < SECOND * 2);
    eprintln!("isolated leader: {refused}");
    assert!(matches!(refused, Error::NoQuorum { reachable: 1, needed: 2, voters: 3 }), "{refused:?}");
    assert!(cluster.raft(old).read_barrier(SECOND).await.is_err(), "a read there could be stale");

    let new = cluster.ids().find(|id| *id != old && cluster.leads(*id)).unwrap();
    cluster.raft(new).propose(put("during", "1"), LONG).await.unwrap();
    let term = cluster.raft(new).leadership().borrow().term;
    let healed = Instant::now();
    cluster.heal(old);
    until("the old leader follows", || cluster.get(old, "during").is_some()).await;
    eprintln!("isolated leader: followed {:?} after the partition healed", healed.elapsed());
    assert!(cluster.get(old, "lost").is_none());
    assert_eq!(cluster.raft(new).leadership().borrow().term, term, "its return must not cost an election");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_cut_off_disturbs_nobody_when_it_returns() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let term = cluster.raft(leader).leadership().borrow().term;
    cluster.cut(follower);
    let cut = Instant::now();
    let mut writes = 0;
    // Long enough for several election timeouts of the follower.
    while cut.elapsed() < SECOND * 2 {
        cluster.raft(leader).propose(put("n", &writes.to_string()), SECOND).await.unwrap();
        writes += 1;
    }
    let member = cluster.raft(leader).members().into_iter().find(|m| m.id == follower).unwrap();
    assert_eq!(member.reachable, Some(false), "{member:?}");
    cluster.heal(follower);
    until("the follower caught up", || cluster.get(follower, "n") == Some((writes - 1).to_string())).await;
    assert!(cluster.leads(leader));
    assert_eq!(cluster.raft(leader).leadership().borrow().term, term);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_are_added_and_removed_while_writes_go_on() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.join(4).await;
    cluster.join(5).await;
    assert_eq!(cluster.raft(leader).members().iter().filter(|m| m.voter).count(), 5);
    // Again: harmless.
    let address = cluster.address(5);
    cluster.raft(leader).add_member(5, &address).await.unwrap();
    let taken = cluster.raft(leader).add_member(6, &address).await;
    assert!(matches!(taken, Err(Error::AddressTaken { id: 5, .. })), "{taken:?}");

    cluster.raft(leader).remove_member(4).await.unwrap();
    assert!(matches!(cluster.raft(leader).remove_member(4).await, Err(Error::UnknownMember { id: 4 })));
    cluster.kill(4).await;

    // The leader removes itself: its successor does it.
    let started = Instant::now();
    cluster.raft(leader).remove_member(leader).await.unwrap();
    eprintln!("leader removed itself in {:?}", started.elapsed());
    cluster.kill(leader).await;
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    let ids: Vec<u64> = cluster.raft(next).members().into_iter().map(|m| m.id).collect();
    assert!(!ids.contains(&leader) && !ids.contains(&4) && ids.len() == 3, "{ids:?}");
    cluster.raft(next).propose(put("still", "here"), LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_in_order() {
    let cluster = Cluster::start(3).await;
    let mut times = Vec::new();
    for _ in 0..5 {
        let leader = cluster.leader().await;
        let started = Instant::now();
        let next = cluster.raft(leader).transfer_leadership().await.unwrap();
        assert_ne!(next.id, leader);
        cluster.propose_anywhere(put("x", "y"), LONG).await;
        times.push(started.elapsed());
    }
    eprintln!("leadership handed over -> next write accepted: {times:?}");
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    cluster.raft(leader).transfer_leadership_to(follower).await.unwrap();
    until("the chosen one leads", || cluster.leads(follower)).await;
    assert!(matches!(cluster.raft(follower).transfer_leadership_to(99).await, Err(Error::Transfer { .. })));
    cluster.raft(follower).step_down().await.unwrap();
    cluster.raft(follower).step_down().await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_removal_costs_the_quorum() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let gone = cluster.follower().await;
    let other = cluster.ids().find(|id| *id != leader && *id != gone).unwrap();
    cluster.kill(gone).await;
    until("the leader notices", || {
        cluster.raft(leader).members().iter().any(|m| m.id == gone && m.reachable == Some(false))
    })
    .await;
    let refused = cluster.raft(leader).remove_member(other).await.unwrap_err();
    assert!(matches!(refused, Error::WouldLoseQuorum { reachable: 1, needed: 2, .. }), "{refused:?}");
    let refused = cluster.raft(leader).remove_member(leader).await.unwrap_err();
    assert!(matches!(refused, Error::WouldLoseQuorum { .. }), "{refused:?}");
    // The one that is gone may go.
    cluster.raft(leader).remove_member(gone).await.unwrap();
    cluster.raft(leader).remove_member(other).await.unwrap();
    let last = cluster.raft(leader).remove_member(leader).await.unwrap_err();
    assert!(matches!(last, Error::LastMember { .. }), "{last:?}");
    cluster.raft(leader).propose(put("alone", "1"), LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_quorum_is_given_up_by_hand() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for i in 0..20 {
        cluster.raft(leader).propose(put(&format!("k{i}"), "v"), LONG).await.unwrap();
    }
    let survivor = cluster.follower().await;
    until("the survivor has all", || cluster.get(survivor, "k19").is_some()).await;
    for id in cluster.ids() {
        cluster.kill(id).await;
    }
    cluster.restart(survivor).await;
    let refused = cluster.raft(survivor).propose(put("no", "quorum"), SECOND).await.unwrap_err();
    eprintln!("a survivor alone: {refused}");
    assert!(matches!(refused, Error::NotLeader { leader: None }), "{refused:?}");
    cluster.kill(survivor).await;
    cluster.force(survivor).await;
    assert_eq!(cluster.raft(survivor).members().len(), 1);
    cluster.raft(survivor).propose(put("new", "start"), LONG).await.unwrap();
    assert!((0..20).all(|i| cluster.get(survivor, &format!("k{i}")).is_some()));
    // It grows again, and the new ones come with empty directories.
    cluster.join(7).await;
    until("the new one has all", || cluster.get(7, "k19").is_some() && cluster.get(7, "new").is_some()).await;
    cluster.kill(survivor).await;
    cluster.restart(survivor).await;
    cluster.propose_anywhere(put("and", "on"), LONG).await;
    cluster.stop().await;
}

/// Makes three managers, kills them, and has the third go on alone with what it has.
async fn forced() -> Cluster {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    cluster.raft(leader).propose(put("before", "v"), LONG).await.unwrap();
    until("the third has all", || cluster.get(3, "before").is_some()).await;
    for id in cluster.ids() {
        cluster.kill(id).await;
    }
    cluster.force(3).await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_of_a_group_that_was_given_up_end_their_part_when_they_come_back() {
    let mut cluster = forced().await;
    cluster.raft(3).propose(put("after", "v"), LONG).await.unwrap();
    // Two of three: a quorum of what they remember.
    cluster.restart(1).await;
    cluster.restart(2).await;
    for id in [1, 2] {
        until("the old manager has ended its part", || {
            matches!(cluster.raft(id).failure(), Some(Error::Superseded { .. }))
        })
        .await;
        let refused = cluster.raft(id).propose(put("no", "v"), SECOND).await.unwrap_err();
        assert!(matches!(refused, Error::Superseded { .. }), "{refused:?}");
        assert!(!cluster.leads(id));
    }
    cluster.raft(3).propose(put("and on", "v"), LONG).await.unwrap();
    assert!(cluster.get(3, "before").is_some() && cluster.get(3, "after").is_some());
    assert_eq!(cluster.raft(3).members().len(), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_a_cluster_is_forced_is_mended_by_doing_it_again() {
    let mut cluster = forced().await;
    for _ in 0..2 {
        cluster.kill(3).await;
        cluster.force(3).await;
        assert!(cluster.get(3, "before").is_some());
        cluster.raft(3).propose(put("again", "v"), LONG).await.unwrap();
    }
    cluster.kill(3).await;
    cluster.restart(3).await;
    cluster.propose_anywhere(put("last", "v"), LONG).await;
    assert!(cluster.get(3, "before").is_some() && cluster.get(3, "again").is_some());
    cluster.stop().await;
}

/// What a manager answers to a vote request, to a heartbeat and to a question about the log of a manager that claims to
/// be far ahead; `None`: it was listened to.
async fn claim(cluster: &Cluster, asked: u64, from: u64) -> [Option<Code>; 3] {
    let channel = cluster.dialer(from).channel(&cluster.address(asked)).unwrap();
    let mut client = RaftClient::new(channel);
    let vote = RaftVote { term: 1000, node: from, committed: false };
    let last = Some(RaftLogId { term: 1000, node: from, index: 1_000_000 });
    let request = RaftVoteRequest { to: asked, vote: Some(vote), last, ..RaftVoteRequest::default() };
    let voted = client.vote(request).await.err();
    let led = Some(RaftVote { committed: true, ..vote });
    let request = RaftAppendRequest { to: asked, vote: led, prev: last, ..RaftAppendRequest::default() };
    let appended = client.append(request).await.err();
    let told = client.read_index(RaftReadIndexRequest { to: asked, from }).await.err();
    [voted, appended, told].map(|answer| answer.map(|status| status.code()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_manager_that_comes_back_is_heard_by_nobody() {
    let mut cluster = Cluster::start(4).await;
    cluster.propose_anywhere(put("before", "v"), LONG).await;
    until("the fourth has all", || cluster.get(4, "before").is_some()).await;
    // It does not learn of its removal, and knows a quorum that it could ask.
    cluster.kill(4).await;
    let leader = cluster.leader().await;
    cluster.raft(leader).remove_member(4).await.unwrap();
    cluster.raft(leader).propose(put("after", "v"), LONG).await.unwrap();
    for id in 1..=3 {
        until("everyone knows", || cluster.get(id, "after").is_some()).await;
    }
    let term = cluster.raft(leader).leadership().borrow().term;
    // Whatever it says that it has, and whichever term it claims.
    for id in 1..=3 {
        let voted = claim(&cluster, id, 4).await;
        assert_eq!(voted, [Some(Code::PermissionDenied); 3], "manager {id} listened to a removed one");
    }
    cluster.restart(4).await;
    let refused = cluster.raft(4).propose(put("no", "v"), 4 * SECOND).await.unwrap_err();
    assert!(matches!(refused, Error::NotLeader { leader: None }), "{refused:?}");
    assert_eq!(cluster.get(4, "after"), None, "nobody sends it the log");
    let said = cluster.raft(4).removal().expect("the others said so").to_string();
    assert!(said.contains("manager 4 is no member of this group"), "{said}");
    assert!(cluster.raft(leader).removal().is_none(), "a member is refused by nobody");
    // Also without a leader, when votes are wanted: three are left, and two of them elect.
    let leader = cluster.leader().await;
    assert!(leader != 4 && cluster.raft(leader).leadership().borrow().term == term, "it disturbed the others");
    cluster.kill(leader).await;
    let next = cluster.propose_anywhere(put("next", "v"), LONG).await;
    assert_ne!(next, 4);
    // With one left, the removed one's vote is no help.
    cluster.kill(next).await;
    let last = cluster.running().find(|id| *id != 4).unwrap();
    until("the loss shows", || cluster.raft(last).leadership().borrow().leader.is_none()).await;
    let refused = cluster.raft(last).propose(put("no", "v"), 2 * SECOND).await.unwrap_err();
    assert!(matches!(refused, Error::NotLeader { leader: None }), "{refused:?}");
    assert!(!cluster.leads(4) && !cluster.leads(last));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_leader_in_vain_is_told_soon_and_then_at_once() {
    let mut cluster = Cluster::start(3).await;
    let survivor = cluster.follower().await;
    let others: Vec<u64> = cluster.ids().filter(|id| *id != survivor).collect();
    for id in others {
        cluster.kill(id).await;
    }
    until("the loss shows", || cluster.raft(survivor).leadership().borrow().leader.is_none()).await;
    let begun = Instant::now();
    let refused = cluster.raft(survivor).propose(put("no", "v"), LONG).await.unwrap_err();
    assert!(matches!(refused, Error::NotLeader { leader: None } | Error::NoQuorum { .. }), "{refused:?}");
    let first = begun.elapsed();
    assert!(first < LONG / 2, "{first:?}");
    let begun = Instant::now();
    cluster.raft(survivor).propose(put("no", "v"), LONG).await.unwrap_err();
    cluster.raft(survivor).read_barrier(LONG).await.unwrap_err();
    let then = begun.elapsed();
    assert!(then < SECOND, "{then:?}");
    eprintln!("no leader: told after {first:?}, then after {then:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_manager_that_nobody_reaches_is_not_kept() {
    let cluster = Cluster::with(1, |config| config.change_limit = SECOND).await;
    let leader = cluster.leader().await;
    let refused = cluster.raft(leader).add_member(9, "127.0.0.1:1").await.unwrap_err();
    eprintln!("{refused}");
    assert!(matches!(refused, Error::NotReached { id: 9, .. }), "{refused:?}");
    assert!(refused.to_string().contains("refused"), "{refused}");
    assert_eq!(cluster.raft(leader).members().len(), 1);
    cluster.raft(leader).propose(put("a", "b"), LONG).await.unwrap();
    let again = cluster.raft(leader).bootstrap().await.unwrap_err();
    assert!(matches!(again, Error::AlreadyBootstrapped { .. }), "{again:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_with_the_wrong_key_does_not_start() {
    let mut cluster = Cluster::start(1).await;
    cluster.raft(1).propose(put("a", "b"), LONG).await.unwrap();
    cluster.kill(1).await;
    let config = Config::new(cluster.dir(1), 1, "127.0.0.1:1", [0; 32]);
    let refused = Raft::open(config, cluster.machine(1), cluster.dialer(1)).await.unwrap_err();
    assert!(refused.to_string().contains("another data-encryption key"), "{refused}");
    cluster.restart(1).await;
    until("it is back", || cluster.get(1, "a").is_some()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_manager_alone_is_fast() {
    let cluster = Cluster::start(1).await;
    let raft = cluster.raft(1);
    for writers in [16, 256] {
        let started = Instant::now();
        let mut done = 0;
        while started.elapsed() < SECOND {
            let all = (0..writers).map(|i| raft.propose(put(&format!("k{i}"), "value"), LONG));
            done += futures::future::join_all(all).await.into_iter().map(Result::unwrap).count();
        }
        eprintln!("one manager, {writers} writers: {:.0} commits/s", done as f64 / started.elapsed().as_secs_f64());
    }
    cluster.stop().await;
}
