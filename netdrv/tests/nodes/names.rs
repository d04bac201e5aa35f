//! The resolver inside a container: names of the cluster, names of the world, over UDP and TCP.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use skep_net_kernel::ns::Namespace;

use crate::common::*;

const RESOLVER: &str = "127.0.0.11:53";

async fn lookup(from: &Namespace, name: &str, kind: RecordType, tcp: bool) -> Result<(ResponseCode, Vec<String>)> {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name)?, kind));
    let id = question.metadata.id;
    let (from, bytes) = (from.clone(), question.to_vec()?);
    let to: SocketAddr = RESOLVER.parse()?;
    let answer = tokio::task::spawn_blocking(move || -> Result<Vec<u8>> {
        let patience = Some(Duration::from_secs(5));
        if tcp {
            let mut stream = from.tcp_connect(to, Duration::from_secs(2))?;
            stream.set_read_timeout(patience)?;
            stream.write_all(&[&u16::try_from(bytes.len())?.to_be_bytes()[..], &bytes].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer)?;
            return Ok(answer);
        }
        let socket = from.udp_socket("0.0.0.0:0".parse()?)?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(patience)?;
        socket.connect(to)?;
        socket.send(&bytes)?;
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    })
    .await??;
    let answer = Message::from_vec(&answer)?;
    ensure!(answer.metadata.id == id, "answer to another question");
    let mut found: Vec<_> = answer.answers.iter().map(|r| r.data.to_string()).collect();
    found.sort();
    Ok((answer.metadata.response_code, found))
}

/// An upstream server that knows `example.org` and nothing else, on both transports.
async fn upstream(at: &Namespace) -> Result<tokio::task::JoinHandle<()>> {
    let udp = tokio::net::UdpSocket::from_std(at.udp_socket("0.0.0.0:53".parse()?)?)?;
    Ok(tokio::spawn(async move {
        let mut buffer = [0; 1024];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
            let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
            let known = question.queries[0].name().to_ascii() == "example.org.";
            let code = if known { ResponseCode::NoError } else { ResponseCode::NXDomain };
            let mut answer = Message::error_msg(question.metadata.id, question.metadata.op_code, code);
            answer.add_queries(question.queries.clone());
            if known {
                let data = RData::A(A([192, 0, 2, 7].into()));
                answer.add_answer(Record::from_rdata(question.queries[0].name().clone(), 60, data));
            }
            let _ = udp.send_to(&answer.to_vec().unwrap_or_default(), peer).await;
        }
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_resolve_names() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(2, &[("t1", 0), ("t2", 1)]).await?;
    let server = upstream(&c.topology.client.namespace).await?;
    c.upstream = vec![(c.topology.client.address, 53).into()];
    c.apply().await?;
    let t1 = c.inside("t1")?;
    let addresses = |a: &[u8]| a.iter().map(|n| app(*n).to_string()).collect::<Vec<_>>();
    for tcp in [false, true] {
        for (name, kind, code, found) in [
            ("web.", RecordType::A, ResponseCode::NoError, addresses(&[250])),
            ("www.app.", RecordType::A, ResponseCode::NoError, addresses(&[250])),
            ("web.", RecordType::AAAA, ResponseCode::NoError, vec![]),
            ("tasks.web.", RecordType::A, ResponseCode::NoError, addresses(&[11, 12])),
            ("web.t2.", RecordType::A, ResponseCode::NoError, addresses(&[12])),
            ("12.1.0.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NoError, vec!["web.t2.app.".into()]),
        ] {
            let answer = lookup(&t1, name, kind, tcp).await?;
            ensure!(answer == (code, found.clone()), "{name} {kind} tcp={tcp}: {answer:?}, wanted {code} {found:?}");
        }
    }
    let world = lookup(&t1, "example.org.", RecordType::A, false).await?;
    ensure!(world == (ResponseCode::NoError, vec!["192.0.2.7".to_owned()]), "{world:?}");
    let unknown = lookup(&t1, "nowhere.example.", RecordType::A, false).await?;
    ensure!(unknown == (ResponseCode::NXDomain, vec![]), "{unknown:?}");

    // Readiness is seen at once.
    c.tasks[1].ready = false;
    c.apply().await?;
    let answer = lookup(&t1, "tasks.web.", RecordType::A, false).await?;
    ensure!(answer == (ResponseCode::NoError, addresses(&[11])), "{answer:?}");

    // A server that is gone is a failure, not a name that doesn't exist.
    server.abort();
    let _ = server.await;
    let failed = lookup(&t1, "example.org.", RecordType::A, false).await?;
    ensure!(failed.0 == ResponseCode::ServFail, "{failed:?}");

    // A container may serve DNS itself, on all its addresses.
    drop(t1.udp_socket("0.0.0.0:53".parse()?)?);
    drop(t1.tcp_listener("0.0.0.0:53".parse()?)?);

    // After a restart the resolver is back.
    c.machines[0].driver.take().unwrap().stop().await;
    let driver = skep_netdrv::Driver::start(c.machines[0].config.clone(), c.machines[0].desired.subscribe())?;
    c.machines[0].driver = Some(driver);
    c.settled().await?;
    let answer = lookup(&t1, "web.", RecordType::A, false).await?;
    ensure!(answer == (ResponseCode::NoError, addresses(&[250])), "{answer:?}");
    Ok(())
}

/// A name, an alias, a container and an address of a network that the container isn't on are unknown to it, whatever way
/// it asks; and what it calls its own is not heard elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_other_networks_stay_there() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let c = Cluster::new(1, &[("t1", 0), ("t2", 0)]).await?;
    let mut desired = c.desired(0);
    desired.generation += 1;
    let mut network = skep_netdrv::Network::clone(&desired.networks["id-app"]);
    (network.id, network.name, network.vni) = ("id-other".into(), "other".into(), 5000);
    network.subnet = "10.7.0.0/24".parse()?;
    network.balancer = "10.7.0.2".parse()?;
    network.peers.clear();
    desired.networks.insert("id-other".into(), network.into());
    let mut secret = skep_netdrv::Service::clone(&desired.services["s"]);
    (secret.id, secret.name, secret.ports) = ("s2".into(), "secret".into(), Vec::new());
    let on = skep_netdrv::ServiceNetwork { vip: Some("10.7.0.250".parse()?), aliases: vec!["hidden".into()] };
    secret.networks = [("id-other".to_owned(), on)].into();
    secret.endpoints.truncate(1);
    secret.endpoints[0].task_id = "t3".into();
    secret.endpoints[0].name = "secret.1".into();
    secret.endpoints[0].addresses = [("id-other".to_owned(), "10.7.0.9".parse()?)].into();
    desired.services.insert("s2".into(), secret.into());
    // t2 moves to the other network, with an alias of its own.
    let mut moved = skep_netdrv::Sandbox::clone(&desired.attachments["t2"]);
    let at = skep_netdrv::Attachment { address: "10.7.0.8".parse()?, aliases: vec!["mine".into()] };
    moved.networks = [("id-other".to_owned(), at)].into();
    desired.attachments.insert("t2".into(), moved.into());
    let mut status = c.driver(0).status();
    c.machines[0].desired.send_replace(std::sync::Arc::new(desired.clone()));
    let applied = status.wait_for(|s| s.applied == desired.generation);
    tokio::time::timeout(Duration::from_secs(10), applied).await??;

    let (t1, t2) = (c.inside("t1")?, c.inside("t2")?);
    let names =
        ["secret.", "hidden.", "tasks.secret.", "secret.1.", "mine.", "secret.other.", "SECRET.OTHER.", "mine.other."];
    for tcp in [false, true] {
        for name in names {
            let (kept, shown) =
                (lookup(&t1, name, RecordType::A, tcp).await?, lookup(&t2, name, RecordType::A, tcp).await?);
            ensure!(kept == (ResponseCode::NXDomain, vec![]), "{name} leaks: {kept:?}");
            ensure!(shown.0 == ResponseCode::NoError && shown.1.len() == 1, "{name} is unknown at home: {shown:?}");
        }
        for address in ["250.0.7.10.in-addr.arpa.", "9.0.7.10.in-addr.arpa."] {
            let (kept, shown) =
                (lookup(&t1, address, RecordType::PTR, tcp).await?, lookup(&t2, address, RecordType::PTR, tcp).await?);
            ensure!(kept == (ResponseCode::NXDomain, vec![]) && !shown.1.is_empty(), "{address}: {kept:?}, {shown:?}");
        }
        let other = lookup(&t2, "web.", RecordType::A, tcp).await?;
        ensure!(other == (ResponseCode::NXDomain, vec![]), "web leaks: {other:?}");
    }
    Ok(())
}

/// Far more questions than may wait, for a server that says nothing: the rest is refused at once, names of the cluster
/// are answered meanwhile, and afterwards all is as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_questions_is_bounded_and_hurts_no_other_names() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(1, &[("t1", 0), ("t2", 0)]).await?;
    c.upstream = vec![(c.topology.client.address, 53).into()];
    let deaf = c.topology.client.namespace.udp_socket("0.0.0.0:53".parse()?)?;
    c.apply().await?;
    let (t1, t2) = (c.inside("t1")?, c.inside("t2")?);
    let socket = tokio::net::UdpSocket::from_std(t1.udp_socket("0.0.0.0:0".parse()?)?)?;
    socket.connect(RESOLVER).await?;
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii("example.org.")?, RecordType::A));
    let (bytes, start) = (question.to_vec()?, std::time::Instant::now());
    let (mut asked, mut refused, mut buffer) = (0, 0, [0; 512]);
    // Who waits is answered after 4 s; who is refused, before.
    while refused < 200 && start.elapsed() < Duration::from_secs(3) {
        for _ in 0..10 {
            socket.send(&bytes).await?;
            asked += 1;
        }
        while let Ok(Ok(length)) = tokio::time::timeout(Duration::from_millis(5), socket.recv(&mut buffer)).await {
            let answer = Message::from_vec(&buffer[..length])?;
            refused += u32::from(answer.metadata.response_code == ResponseCode::ServFail);
        }
    }
    ensure!(refused >= 200, "{refused} of {asked} refused within {:?}", start.elapsed());
    let own = lookup(&t1, "web.", RecordType::A, false).await?;
    ensure!(own.0 == ResponseCode::NoError, "{own:?}");
    let neighbour = lookup(&t2, "web.", RecordType::A, true).await?;
    ensure!(neighbour.0 == ResponseCode::NoError, "{neighbour:?}");
    drop(deaf);
    let server = upstream(&c.topology.client.namespace).await?;
    skep_net_testkit::eventually("answers again", || async {
        let answer = lookup(&t1, "example.org.", RecordType::A, false).await?;
        ensure!(answer.0 == ResponseCode::NoError, "{answer:?}");
        Ok(())
    })
    .await?;
    server.abort();
    Ok(())
}
