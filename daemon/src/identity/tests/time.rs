//! What time does: certificates end and are renewed, clocks are wrong, servers end.

use super::*;

#[tokio::test]
async fn an_expired_certificate_is_named_whoever_notices() {
    let state = State::found(DAY);
    let manager = Manager::start(Arc::clone(&state)).await;
    let past = shifted(DAY * 3, false);

    let own = manager.node(state.identity(Role::Worker, DAY, &past), Clock::default());
    let error = error_of(&own, &manager).await;
    assert!(error.contains("expired at") && error.contains("clock says"), "{error}");

    let early = manager.node(state.identity(Role::Worker, DAY, &Clock::default()), past.clone());
    let error = error_of(&early, &manager).await;
    assert!(error.contains("valid from") && error.contains("clock says"), "{error}");

    // Only the manager's clock says so.
    let theirs = manager.node(state.identity(Role::Worker, DAY * 10, &shifted(DAY * 12, false)), past);
    let stream = dial::connect(&manager.address, Arc::clone(&theirs.current().client), DEADLINE).await;
    let error = stream.unwrap_err();
    assert!(matches!(error, ConnectError::PeerClock { .. }), "the manager's certificate is too young: {error}");

    // The manager's own certificate has run out.
    let old = state.identity(Role::Manager, DAY, &shifted(DAY * 3, false));
    let expired = Manager::start_as(Arc::clone(&state), old, Clock::default(), None).await;
    let node = expired.node(state.identity(Role::Worker, DAY, &Clock::default()), Clock::default());
    let error = error_of(&node, &expired).await;
    assert!(error.contains("valid until"), "{error}");
    let error = expired.join(&state.tokens().worker, &Clock::default()).await.unwrap_err();
    assert!(matches!(error, JoinError::Clock { .. }), "{error}");
}

#[tokio::test]
async fn a_manager_whose_clock_is_ahead_says_so_to_the_client() {
    let state = State::found(DAY);
    let ahead = shifted(DAY * 3, true);
    // Valid by both clocks, so that only the client's certificate is in question.
    let made = state.identity(Role::Manager, DAY * 30, &Clock::default());
    let identity = Identity::new(&made.root_pem, &made.chain_pem, &made.key_pem, &ahead).unwrap();
    let manager = Manager::start_as(Arc::clone(&state), identity, ahead, None).await;
    let node = manager.node(state.identity(Role::Worker, DAY, &Clock::default()), Clock::default());
    let error = error_of(&node, &manager).await;
    assert!(error.contains("by the manager's clock it has expired"), "{error}");
}

#[tokio::test]
async fn a_connection_does_not_outlive_its_certificate() {
    let state = State::found(DAY);
    let manager = Manager::start(Arc::clone(&state)).await;
    let node = manager.node(state.identity(Role::Worker, Duration::from_secs(2), &Clock::default()), Clock::default());
    let mut client = manager.client(&node);
    let request = report_of(&node);
    client.report(request.clone()).await.unwrap();
    let until = node.current().not_after;
    soon("the certificate expires", || SystemTime::now() > until).await;
    let status = client.report(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("expired since it connected"), "{status:?}");
}

/// By this node's clock every certificate is due for renewal as soon as it is made.
#[tokio::test]
async fn a_clock_that_is_ahead_makes_no_storm_of_renewals() {
    let life = Duration::from_secs(600);
    let manager = Manager::start(State::found(life)).await;
    let clock = shifted(life.mul_f64(0.9), true);
    let joined = manager.join(&manager.state.tokens().worker, &clock).await.unwrap();
    let node = manager.node(joined, clock);
    let stop = CancellationToken::new();
    let address = manager.address.clone();
    let renewing = tokio::spawn(renew(node.clone(), move || vec![address.clone()], || None, stop.clone()));
    let first = node.current().chain_pem.clone();
    let mut identity = node.watch();
    soon("the first renewal", || node.current().chain_pem != first).await;
    identity.mark_unchanged();
    let again = tokio::time::timeout(Duration::from_secs(2), identity.changed()).await;
    assert!(again.is_err(), "a second renewal within 2 s");
    stop.cancel();
    renewing.await.unwrap();
}

/// Whoever is told so ends its tasks: a manager that can't ask its quorum must not be believed.
#[tokio::test]
async fn only_a_quorum_says_that_a_node_was_removed() {
    let manager = Manager::start(State::found(DAY)).await;
    let clock = Clock::default();
    let joined = manager.join(&manager.state.tokens().worker, &clock).await.unwrap();
    let node_id = joined.subject.node_id.clone();
    let node = manager.node(joined, clock);
    manager.state.nodes.lock().unwrap().clear();
    *manager.state.reads.lock().unwrap() = false;
    let (address, stop) = (manager.address.clone(), CancellationToken::new());
    let managers = move || vec![address.clone(), "127.0.0.1:1".to_owned()];
    let mut renewing = tokio::spawn(renew(node.clone(), managers, || None, stop.clone()));
    let asked = manager.state.asked.load(Ordering::SeqCst);
    node.renew_now();
    soon("it asks more than once", || manager.state.asked.load(Ordering::SeqCst) > asked + 1).await;
    assert!(tokio::time::timeout(Duration::ZERO, &mut renewing).await.is_err(), "it took that for an answer");
    *manager.state.reads.lock().unwrap() = true;
    let told = tokio::time::timeout(DEADLINE, renewing).await.unwrap().unwrap().expect("nobody told it to stop");
    assert!(told.contains(&manager.address) && told.contains(&node_id), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_serves_new_handshakes_and_leaves_connections_alone() {
    let manager = Manager::start(State::found(Duration::from_secs(4))).await;
    let clock = Clock::default();
    let joined = manager.join(&manager.state.tokens().worker, &clock).await.unwrap();
    let (first, first_key) = (joined.chain_pem.clone(), joined.key_pem.clone());
    let node = manager.node(joined, clock.clone());
    let mut stream = manager.client(&node).session(SessionRequest::default()).await.unwrap().into_inner();
    stream.next().await.unwrap().unwrap();

    let stop = CancellationToken::new();
    let address = manager.address.clone();
    let nobody = "127.0.0.1:1".to_owned();
    let managers = move || vec![nobody.clone(), address.clone()];
    let renewing = tokio::spawn(renew(node.clone(), managers, || None, stop.clone()));
    soon("the certificate is renewed twice", {
        let (mut changes, mut last, node) = (0, first.clone(), node.clone());
        move || {
            let now = node.current().chain_pem.clone();
            if now != last {
                last = now;
                changes += 1;
            }
            changes == 2
        }
    })
    .await;
    let renewed = node.current();
    assert_ne!(renewed.key_pem, first_key, "a new key each time");
    works(&node, &manager).await;
    let stored = Identity::load(&manager.dir.path().join(&renewed.subject.node_id), &clock).unwrap().unwrap();
    assert_eq!((stored.subject.clone(), stored.root_pem()), (renewed.subject.clone(), renewed.root_pem()));

    // The manager's own changes too; the stream, opened under two certificates that are gone, still carries.
    let next = Identity::found(&manager.state.root(), &manager.holder.current().subject, DAY, &clock).unwrap();
    manager.holder.replace(next).unwrap();
    let shown = dial::connect(&manager.address, Arc::clone(&node.current().client), DEADLINE).await.unwrap();
    let shown = shown.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    assert_eq!(shown, chain(manager.holder.current().chain_pem()).unwrap()[0].to_vec());
    manager.tick.send_replace(1);
    stream.next().await.unwrap().unwrap();

    // A new role comes with the next certificate, at once when asked for.
    let mut identities = node.watch();
    manager.state.nodes.lock().unwrap()[0].spec.as_mut().unwrap().role = Role::Manager.into();
    node.renew_now();
    tokio::time::timeout(Duration::from_secs(10), identities.wait_for(|i| i.is_manager())).await.unwrap().unwrap();
    stop.cancel();
    renewing.await.unwrap();
}

#[tokio::test]
async fn the_only_manager_signs_for_itself_once_its_certificate_is_of_no_use_any_more() {
    let state = State::found(DAY);
    let clock = Clock::default();
    let valid = state.identity(Role::Manager, DAY, &clock);
    // Made by a clock that was behind, or by one that was ahead.
    for ahead in [false, true] {
        let made = Identity::found(&state.root(), &valid.subject, DAY, &shifted(DAY * 30, ahead)).unwrap();
        let made = Identity::new(&made.root_pem, &made.chain_pem, &made.key_pem, &clock).unwrap();
        assert!(made.check(SystemTime::now()).is_err());
        let dir = tempfile::tempdir().unwrap();
        let holder = Holder::new(dir.path().join("identity"), made, clock.clone());
        let stop = CancellationToken::new();
        let alone = {
            let state = Arc::clone(&state);
            move || Some((state.root(), DAY))
        };
        let renewing = tokio::spawn(renew(holder.clone(), Vec::new, alone, stop.clone()));
        let mut identities = holder.watch();
        let signed = identities.wait_for(|i| i.check(SystemTime::now()).is_ok());
        let subject = tokio::time::timeout(Duration::from_secs(10), signed).await.unwrap().unwrap().subject.clone();
        assert_eq!(subject, valid.subject);
        let manager = Manager::start(Arc::clone(&state)).await;
        works(&holder, &manager).await;
        stop.cancel();
        renewing.await.unwrap();
    }
    // One that is still valid is the others' affair.
    let holder = Holder::new(tempfile::tempdir().unwrap().path().join("identity"), valid, clock);
    let (asked, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let counted = Arc::clone(&asked);
    let managers = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Vec::new()
    };
    let first = holder.current().chain_pem.clone();
    let renewing = tokio::spawn(renew(holder.clone(), managers, || unreachable!("it is valid"), stop.clone()));
    holder.renew_now();
    soon("it looks for somebody to ask", || asked.load(Ordering::Relaxed) > 0).await;
    assert_eq!(holder.current().chain_pem, first);
    stop.cancel();
    renewing.await.unwrap();
}

#[tokio::test]
async fn serving_ends_when_told_to() {
    let manager = Manager::start(State::found(DAY)).await;
    let node = manager.node(manager.state.identity(Role::Worker, DAY, &Clock::default()), Clock::default());
    works(&node, &manager).await;
    manager.stop.cancel();
    tokio::time::timeout(Duration::from_secs(4), manager.served).await.unwrap().unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(&manager.address).await.is_err());
}
