//! Namespaces: pinned, found, entered, removed.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use skep_net_kernel::ns::{self, Error, Namespace};

use crate::Pins;

#[test]
fn a_pin_is_made_found_listed_and_removed() -> Result<()> {
    let pins = Pins::new()?;
    let path = pins.path("one");
    let made = Namespace::create(&path)?;
    assert_ne!(made.id()?, Namespace::current()?.id()?);
    assert_eq!(Namespace::open(&path)?.id()?, made.id()?);
    assert_eq!(Namespace::open_or_create(&path)?.id()?, made.id()?);
    assert!(matches!(Namespace::create(&path), Err(Error::AlreadyExists { .. })));
    assert_eq!(ns::list(pins.dir())?, ["one"]);
    ns::delete(&path)?;
    ns::delete(&path)?;
    assert!(!path.exists());
    assert!(matches!(Namespace::open(&path), Err(Error::NotFound { .. })));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(path.to_str().unwrap()), "still mounted");
    Ok(())
}

#[test]
fn a_pin_that_a_reboot_left_is_used_again() -> Result<()> {
    let pins = Pins::new()?;
    let path = pins.path("stale");
    fs::write(&path, "")?;
    assert!(matches!(Namespace::open(&path), Err(Error::NotANamespace { .. })));
    Namespace::create(&path)?;
    Namespace::open(&path)?;
    Ok(())
}

#[test]
fn a_file_with_content_is_not_overmounted() -> Result<()> {
    let pins = Pins::new()?;
    let path = pins.path("precious");
    fs::write(&path, "data")?;
    assert!(matches!(Namespace::create(&path), Err(Error::NotANamespace { .. })));
    assert_eq!(fs::read_to_string(&path)?, "data");
    Ok(())
}

#[test]
fn work_runs_inside_and_the_caller_stays_outside() -> Result<()> {
    let outside = Namespace::current()?.id()?;
    let namespace = Namespace::create_unnamed()?;
    let inside = namespace.run(|| Namespace::current().and_then(|n| n.id()))??;
    assert_eq!(inside, namespace.id()?);
    assert_eq!(Namespace::current()?.id()?, outside);
    let links = namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    assert_eq!(links.lines().skip(2).filter(|l| !l.trim().starts_with("lo:")).count(), 0, "{links}");
    Ok(())
}

#[test]
fn kernel_parameters_are_the_namespaces_own() -> Result<()> {
    let (one, other) = (Namespace::create_unnamed()?, Namespace::create_unnamed()?);
    one.set_sysctl("net/ipv4/ip_forward", "1")?;
    other.set_sysctl("net/ipv4/ip_forward", "0")?;
    assert_eq!(one.sysctl("net/ipv4/ip_forward")?, "1");
    assert_eq!(other.sysctl("net/ipv4/ip_forward")?, "0");
    assert!(matches!(one.set_sysctl("net/ipv4/no_such_thing", "1"), Err(Error::Sysctl { .. })));
    assert!(matches!(one.set_sysctl("kernel/hostname", "x"), Err(Error::BadSysctl { .. })));
    Ok(())
}

#[tokio::test]
async fn sockets_belong_to_the_namespace() -> Result<()> {
    let namespace = Namespace::create_unnamed()?;
    let link = skep_net_kernel::link::Handle::open(&namespace)?;
    link.set_up(link.index("lo").await?).await?;
    let any: SocketAddr = "127.0.0.11:53".parse()?;
    let udp = namespace.udp_socket(any)?;
    let tcp = namespace.tcp_listener(any)?;
    assert_eq!(udp.local_addr()?, any);
    let client = namespace.tcp_connect(any, Duration::from_secs(1))?;
    assert_eq!(client.peer_addr()?, tcp.local_addr()?);
    assert!(namespace.udp_socket(any).is_err(), "bound twice");
    // The same port is free in another namespace.
    let other = Namespace::create_unnamed()?;
    let link = skep_net_kernel::link::Handle::open(&other)?;
    link.set_up(link.index("lo").await?).await?;
    other.udp_socket(any)?;
    Ok(())
}
