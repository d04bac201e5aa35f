//! The test kit itself: its proofs of absence can fail, its waits end, its servers tell the truth.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use skep_net_kernel::ns::{self, Namespace};
use skep_net_testkit::{
    Answer, Canary, Node, Server, Topology, eventually, http_get, leftovers, nothing_left, udp_ask, unique_prefix,
};

#[tokio::test]
async fn a_pinned_namespace_is_a_leftover_until_it_is_deleted() -> Result<()> {
    let prefix = unique_prefix();
    nothing_left(&prefix).await?;
    let path = std::env::temp_dir().join(format!("{prefix}-pin"));
    Namespace::create(&path)?;
    let found = leftovers(&prefix).await;
    ns::delete(&path)?;
    ensure!(found?.len() == 1, "the pin was not noticed");
    nothing_left(&prefix).await
}

#[tokio::test]
async fn a_canary_lives_as_long_as_what_it_watches() -> Result<()> {
    let mut canary = Canary::new().await?;
    assert!(canary.all_gone().await.is_err(), "nothing is watched");
    let node = Node::alone("watched").await?;
    canary.watch(&node).await?;
    let waiting = tokio::time::timeout(Duration::from_millis(100), canary.all_gone()).await;
    assert!(waiting.is_err(), "it is alive");
    drop(node);
    canary.all_gone().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_name_themselves_and_their_client() -> Result<()> {
    let topology = Topology::new(2).await?;
    let host = &topology.hosts[1];
    let _http = Server::http(&host.namespace, 80, "web")?;
    let _udp = Server::udp(&host.namespace, 53, "dns")?;
    let limit = Duration::from_secs(2);
    let client = &topology.client;
    let seen = http_get(&client.namespace, SocketAddr::from((host.address, 80)), limit).await?;
    assert_eq!(seen, Answer::new("web", client.address));
    let seen = udp_ask(&topology.hosts[0].namespace, SocketAddr::from((host.address, 53)), limit).await?;
    assert_eq!(seen, Answer::new("dns", topology.hosts[0].address));
    assert!(host.command("ip", &["-br", "link"])?.contains("eth0"));
    let error = host.command("ip", &["link", "show", "nonsense"]).unwrap_err().to_string();
    assert!(error.contains("h2: ip link show nonsense"), "{error}");
    topology.plugged(2, false).await?;
    assert!(
        http_get(&client.namespace, SocketAddr::from((host.address, 80)), Duration::from_millis(200)).await.is_err()
    );
    topology.plugged(2, true).await?;
    eventually("the host is back", || http_get(&client.namespace, SocketAddr::from((host.address, 80)), limit)).await?;
    Ok(())
}
