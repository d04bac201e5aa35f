//! Joining: which token makes what of a node, and who is told why not.

use super::*;
use tokio::io::AsyncReadExt as _;

#[tokio::test]
async fn a_node_joins_with_the_role_of_its_token() {
    let manager = Manager::start(State::found(DAY)).await;
    let tokens = manager.state.tokens();
    for (token, role) in [(&tokens.worker, Role::Worker), (&tokens.manager, Role::Manager)] {
        let identity = manager.join(token, &Clock::default()).await.unwrap();
        assert_eq!(identity.subject.role, role);
        assert_eq!(identity.is_manager(), role == Role::Manager);
        assert_eq!(identity.root_pem(), manager.state.root().certificate_pem());
        works(&manager.node(identity, Clock::default()), &manager).await;
    }
    assert_eq!(manager.state.nodes.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_refused_join_says_why_and_registers_nothing() {
    let manager = Manager::start(State::found(DAY)).await;
    let (clock, tokens) = (Clock::default(), manager.state.tokens());

    let error = manager.join("SWMTKN-1-nonsense", &clock).await.unwrap_err();
    assert!(matches!(error, JoinError::Token(_)), "{error}");

    let mut wrong = tokens.worker.clone();
    wrong.replace_range(wrong.len() - 4.., "0000");
    let error = manager.join(&wrong, &clock).await.unwrap_err();
    assert!(matches!(error, JoinError::TokenWrong { .. }), "{error}");
    assert!(error.to_string().contains("join-token"), "{error}");

    let root = manager.state.root().to_stored();
    manager.state.cluster.lock().unwrap().join_tokens.as_mut().unwrap().worker =
        ca::new_token(&root, Role::Worker).unwrap();
    let error = manager.join(&tokens.worker, &clock).await.unwrap_err();
    assert!(matches!(error, JoinError::TokenRotated { .. }), "{error}");
    assert!(error.to_string().contains("join-token worker"), "{error}");

    let current = manager.state.tokens().worker;
    for (by, ahead) in [(HOUR * 2, false), (DAY * 2, true), (DAY * 365 * 40, false)] {
        let error = manager.join(&current, &shifted(by, ahead)).await.unwrap_err();
        assert!(matches!(error, JoinError::Clock { .. }), "{by:?}, {ahead}: {error}");
        assert!(error.to_string().contains(&clock::text(SystemTime::now())[..10]), "both clocks: {error}");
    }
    // What certificates bear is no error.
    assert!(manager.state.nodes.lock().unwrap().is_empty());
    manager.join(&current, &shifted(HOUR / 2, false)).await.unwrap();
    manager.join(&current, &shifted(HOUR / 2, true)).await.unwrap();

    for lost in [&manager.state.quorum, &manager.state.reads] {
        *lost.lock().unwrap() = false;
        let error = manager.join(&current, &clock).await.unwrap_err();
        assert!(matches!(error, JoinError::Unavailable { .. }), "{error}");
    }
    assert_eq!(manager.state.nodes.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_token_is_not_sent_to_another_cluster() {
    let manager = Manager::start(State::found(DAY)).await;
    let token = State::found(DAY).tokens().worker;
    let error = manager.join(&token, &Clock::default()).await.unwrap_err();
    assert!(matches!(error, JoinError::OtherCluster { .. }), "{error}");
    assert!(error.to_string().contains("was not sent"), "{error}");
    assert_eq!(manager.state.asked.load(Ordering::SeqCst), 1, "only the root certificate was asked for");
}

#[tokio::test]
async fn an_impostor_who_repeats_the_root_certificate_gets_no_token() {
    let real = State::found(DAY);
    let impostor = State::found(DAY);
    // It can show the real root, but has no certificate from it.
    let identity = impostor.identity(Role::Manager, DAY, &Clock::default());
    impostor.cluster.lock().unwrap().root_ca.as_mut().unwrap().certificate_pem =
        real.root().certificate_pem().to_owned();
    let manager = Manager::start_as(Arc::clone(&impostor), identity, Clock::default(), None).await;
    let error = manager.join(&real.tokens().manager, &Clock::default()).await.unwrap_err();
    assert!(matches!(error, JoinError::NotAManager { .. }), "{error}");
    assert_eq!(impostor.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn joining_nobody_fails_at_once() {
    let token = State::found(DAY).tokens().worker;
    let attempt = async |address: SocketAddr| {
        let begun = std::time::Instant::now();
        let error = join(&address.to_string(), &token, Availability::Active, &Clock::default()).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(3), "{error} after {:?}", begun.elapsed());
        error
    };
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let error = attempt(address).await;
    assert!(matches!(error, JoinError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");

    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap();
    let _served = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut tcp, _)) = other.accept().await {
            let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    }));
    let error = attempt(address).await;
    assert!(matches!(error, JoinError::NotAManager { .. }), "{error}");
}

/// A client that knows TLS 1.2 only is sent away with the alert that says so.
#[tokio::test]
async fn an_older_tls_is_refused() {
    const VERSION_1_2: [u8; 2] = [3, 3];
    let manager = Manager::start(State::found(DAY)).await;
    let hello = [
        &VERSION_1_2[..],
        &[7; 32],                        // random
        &[0],                            // no session
        &[0, 4, 0xc0, 0x2b, 0xc0, 0x2f], // ECDHE with AES-128-GCM, for ECDSA and RSA
        &[1, 0],                         // no compression
        &[0, 16],
        &[0, 13, 0, 4, 0, 2, 4, 3],  // signatures: ECDSA with SHA-256
        &[0, 10, 0, 4, 0, 2, 0, 23], // groups: P-256
    ]
    .concat();
    let length = u8::try_from(hello.len()).unwrap();
    let record = [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &hello].concat();
    let mut tcp = tokio::net::TcpStream::connect(&manager.address).await.unwrap();
    tcp.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut answer)).await.unwrap().unwrap();
    // A fatal alert, and nothing else: protocol version.
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
}

#[tokio::test]
async fn a_silent_listener_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let config = tls::stranger(&Clock::default()).unwrap();
    let error = dial::connect(&address, config, Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotAManager { .. }), "{error}");
}
