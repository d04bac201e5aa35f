//! Connection tracking: entries are found by every condition, and deleted within the limit.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::Result;
use skep_net_kernel::conntrack::{Deleted, Error, Filter, Socket, Tuple};
use skep_net_kernel::link::{Handle, IpNet};
use skep_net_kernel::nft::{self, Batch, Chain, ChainType, Family, Hook, Rule, Table};
use skep_net_kernel::ns::Namespace;

const LEFT: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 1);
const RIGHT: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 2);
const PORT: u16 = 7000;

/// A namespace that has tracked `flows` UDP flows from `LEFT` to a virtual address, rewritten to `RIGHT`.
async fn tracked(flows: usize) -> Result<(Namespace, Namespace, Vec<UdpSocket>)> {
    let (left, right) = crate::pair().await?;
    for (namespace, name, address) in [(&left, "a", LEFT), (&right, "b", RIGHT)] {
        let handle = Handle::open(namespace)?;
        handle.add_address(handle.index(name).await?, IpNet::new(address, 16)).await?;
    }
    let table = Table::new(Family::Ip, "skep");
    let mut batch = Batch::new();
    batch.add_table(&table).add_chain(&table, &Chain::base("out", ChainType::Nat, Hook::Output, -100));
    let dnat = Rule::new()
        .ip_destination(Ipv4Addr::new(10, 5, 0, 50), 32)
        .load(nft::Reg(0), RIGHT.octets())
        .dnat(nft::Reg(0), None);
    batch.add_rule(&table, "out", &dnat).commit(&mut nft::Socket::open(&left)?)?;
    let mut sockets = Vec::new();
    for _ in 0..flows {
        let socket = left.udp_socket(SocketAddr::from((LEFT, 0)))?;
        socket.send_to(b"x", SocketAddr::from(([10, 5, 0, 50], PORT)))?;
        sockets.push(socket);
    }
    Ok((left, right, sockets))
}

#[tokio::test]
async fn entries_are_found_by_every_condition() -> Result<()> {
    let (left, _right, sockets) = tracked(3).await?;
    let mut socket = Socket::open(&left)?;
    assert_eq!((socket.count()?, Socket::open(&Namespace::create_unnamed()?)?.count()?), (3, 0));
    let port = sockets[0].local_addr()?.port();
    let (left, right, none) = (IpAddr::from(LEFT), IpAddr::from(RIGHT), Tuple::default());
    let virtual_address = IpAddr::from([10, 5, 0, 50]);
    let table = [
        (Filter { protocol: Some(17), ..Filter::default() }, 3),
        (Filter { protocol: Some(6), ..Filter::default() }, 0),
        (Filter { original: Tuple { destination: Some(virtual_address), ..none }, ..Filter::default() }, 3),
        (Filter { original: Tuple { destination: Some(right), ..none }, ..Filter::default() }, 0),
        (Filter { original: Tuple { source: Some(left), ..none }, ..Filter::default() }, 3),
        (Filter { reply: Tuple { source: Some(right), ..none }, ..Filter::default() }, 3),
        (
            Filter {
                protocol: Some(17),
                reply: Tuple { source: Some(right), source_port: Some(PORT), ..none },
                ..Filter::default()
            },
            3,
        ),
        (Filter { protocol: Some(17), original: Tuple { source_port: Some(port), ..none }, ..Filter::default() }, 1),
        (
            Filter {
                protocol: Some(17),
                original: Tuple { destination_port: Some(PORT), ..none },
                ..Filter::default()
            },
            3,
        ),
        (Filter { protocol: Some(17), reply: Tuple { destination_port: Some(port), ..none }, ..Filter::default() }, 1),
        (
            Filter { protocol: Some(6), original: Tuple { destination_port: Some(PORT), ..none }, ..Filter::default() },
            0,
        ),
    ];
    for (filter, expected) in table {
        assert_eq!(socket.list(&filter, 100)?.len(), expected, "{filter:?}");
    }
    let entry = socket.list(&table[7].0, 100)?[0];
    assert_eq!(entry.original.destination, SocketAddr::new(virtual_address, PORT));
    assert_eq!(entry.reply.source, SocketAddr::new(right, PORT));
    assert_ne!(entry.status & nft::ct_status::DST_NAT, 0);
    Ok(())
}

#[tokio::test]
async fn deletion_keeps_to_its_filter_and_its_limit() -> Result<()> {
    let (left, _right, sockets) = tracked(150).await?;
    let mut socket = Socket::open(&left)?;
    let all = Filter {
        protocol: Some(17),
        reply: Tuple { source: Some(RIGHT.into()), ..Tuple::default() },
        ..Filter::default()
    };
    assert!(matches!(socket.delete(&Filter::default(), 10), Err(Error::EmptyFilter)));
    let port = Some(sockets[0].local_addr()?.port());
    let one = Filter { original: Tuple { source_port: port, ..Tuple::default() }, ..all };
    assert_eq!(socket.delete(&one, 10)?, Deleted { count: 1, more: false });
    assert_eq!(socket.list(&all, 1000)?.len(), 149);
    assert_eq!(socket.delete(&all, 100)?, Deleted { count: 100, more: true });
    assert_eq!(socket.delete(&all, 100)?, Deleted { count: 49, more: false });
    assert_eq!(socket.delete(&all, 100)?, Deleted { count: 0, more: false });
    Ok(())
}
