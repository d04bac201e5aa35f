//! Notifications: what is taken away wakes, in the namespace where it was; what is added doesn't; too many are one.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use skep_net_kernel::link::{Fdb, FdbPlace, Handle, IpNet, Mac, Neighbour, Route};
use skep_net_kernel::nft::{self, Batch, Family, Table};
use skep_net_kernel::watch::{Token, Watcher};

/// Waits for a notification, and gives where they were.
async fn told(watcher: &mut Watcher) -> Result<Vec<Token>> {
    let wait = tokio::time::timeout(Duration::from_secs(5), watcher.changed());
    wait.await.context("nothing was told within 5 s")??;
    Ok(watcher.collect())
}

#[tokio::test]
async fn what_is_taken_away_is_told_and_what_is_added_is_not() -> Result<()> {
    let (left, right) = crate::pair().await?;
    let mut watcher = Watcher::new()?;
    let (a, b) = (watcher.add(&left, true)?, watcher.add(&right, false)?);
    let handle = Handle::open(&left)?;
    let device = handle.index("a").await?;
    let address = IpNet::new(Ipv4Addr::new(10, 6, 0, 1), 16);
    let neighbour = Neighbour { device, address: Ipv4Addr::new(10, 6, 0, 9).into(), mac: Mac([2, 0, 0, 0, 0, 9]) };
    let route = Route { device: Some(device), ..Route::to("10.7.0.0/16".parse()?) };
    handle.add_address(device, address).await?;
    handle.replace_neighbour(&neighbour).await?;
    handle.replace_route(&route).await?;
    assert_eq!(watcher.collect(), []);

    handle.delete_route(&route).await?;
    assert_eq!(told(&mut watcher).await?, [a]);
    handle.delete_neighbour(device, neighbour.address).await?;
    assert_eq!(told(&mut watcher).await?, [a]);
    handle.delete_address(device, address).await?;
    assert_eq!(told(&mut watcher).await?, [a]);
    assert_eq!(watcher.collect(), [], "each is told once");

    // Neighbours are not asked for on the right.
    let other = Handle::open(&right)?;
    let entry = Fdb { device: other.index("b").await?, mac: neighbour.mac, place: FdbPlace::Bridge };
    let there = Neighbour { device: entry.device, ..neighbour };
    other.replace_neighbour(&there).await?;
    other.delete_neighbour(there.device, there.address).await?;
    assert_eq!(watcher.collect(), []);
    other.set_down(entry.device).await?;
    assert_eq!(told(&mut watcher).await?, [b]);
    handle.delete_link(device).await?;
    assert_eq!(told(&mut watcher).await?, [a, b], "a link goes with its other end");
    watcher.remove(b);
    Batch::new().add_table(&Table::new(Family::Ip, "x")).commit(&mut nft::Socket::open(&right)?)?;
    assert_eq!(watcher.collect(), [], "nobody listens there any more");
    Ok(())
}

#[tokio::test]
async fn a_ruleset_wakes_and_an_overrun_is_a_change() -> Result<()> {
    let (left, right) = crate::pair().await?;
    let mut watcher = Watcher::new()?;
    let (a, b) = (watcher.add(&left, true)?, watcher.add(&right, true)?);
    let (mut here, mut there) = (nft::Socket::open(&left)?, nft::Socket::open(&right)?);
    let table = Table::new(Family::Ip, "x");
    Batch::new().add_table(&table).commit(&mut there)?;
    assert_eq!(told(&mut watcher).await?, [b]);
    // More than any queue holds.
    for _ in 0..2000 {
        Batch::new().remove_table(&table).commit(&mut here)?;
    }
    assert_eq!(told(&mut watcher).await?, [a]);
    assert_eq!(watcher.collect(), []);
    Batch::new().add_table(&table).commit(&mut here)?;
    assert_eq!(told(&mut watcher).await?, [a], "and it goes on after that");
    Ok(())
}
