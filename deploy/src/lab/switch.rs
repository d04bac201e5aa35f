//! The lab's network: one machine holds a bridge that all others plug into. A partition is more bridges.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use skep_net_kernel::link::{Bridge, Handle, IpNet, Mac, VethEnd, absent_is_fine, present_is_fine};
use skep_net_kernel::ns::Namespace;

use super::layout::PREFIX;
use super::machine::Init;

/// The bridge that joins everybody while nothing is parted.
const WHOLE: &str = "sw0";

/// The end of a machine's cable, on the machine.
const INTERFACE: &str = "eth0";

/// Makes the switch.
pub(super) fn make(switch: &Init) -> Result<()> {
    on(switch, async |handle: Handle| add_bridge(&handle, WHOLE).await.map(|_| ()))
}

/// Runs a cable from a machine to the switch and gives the machine its address.
pub(super) fn plug_in(switch: &Init, machine: &Init, name: &str, address: Ipv4Addr) -> Result<()> {
    let far = network(machine)?;
    let inside = far.clone();
    // A machine that is turned on again has the card that it had: the others remember its address for seconds.
    let [a, b, c, d] = address.octets();
    let mac = Some(Mac([0x02, 0x53, a, b, c, d]));
    on(switch, async move |handle: Handle| {
        let port = port(name);
        // A machine that lost its power leaves its end of the cable behind for a moment.
        absent_is_fine(handle.delete_link_named(&port).await)?;
        let end = VethEnd { name: &port, master: Some(handle.index(WHOLE).await?), up: true, ..VethEnd::default() };
        let other = VethEnd { name: INTERFACE, mac, up: true, namespace: Some(&far), ..VethEnd::default() };
        Ok(handle.add_veth(&end, &other).await?)
    })?;
    run(async move {
        let handle = Handle::open(&inside)?;
        for device in ["lo", INTERFACE] {
            handle.set_up(handle.index(device).await?).await?;
        }
        let device = handle.index(INTERFACE).await?;
        Ok(handle.add_address(device, IpNet::new(address, PREFIX)).await?)
    })
}

/// Gives every side a bridge of its own; the first side keeps the old one.
pub(super) fn partition(switch: &Init, sides: &[BTreeSet<String>]) -> Result<()> {
    let sides = sides.to_vec();
    on(switch, async move |handle: Handle| {
        for (i, side) in sides.iter().enumerate() {
            let bridge = add_bridge(&handle, &format!("sw{i}")).await?;
            for machine in side {
                // A machine without power has no cable now; it plugs into the whole again.
                let Ok(port) = handle.index(&port(machine)).await else { continue };
                handle.set_master(port, Some(bridge)).await?;
            }
        }
        Ok(())
    })
}

fn port(machine: &str) -> String {
    format!("p-{machine}")
}

async fn add_bridge(handle: &Handle, name: &str) -> Result<u32> {
    present_is_fine(handle.add_bridge(&Bridge { name, up: true, ..Bridge::default() }).await)?;
    Ok(handle.index(name).await?)
}

fn network(machine: &Init) -> Result<Namespace> {
    let path = PathBuf::from(format!("/proc/{}/ns/net", machine.pid));
    Namespace::open(&path).context("the machine's network can't be entered; did it end?")
}

/// Talks to the kernel about the links of one machine.
fn on<F>(machine: &Init, work: F) -> Result<()>
where
    F: AsyncFnOnce(Handle) -> Result<()>,
{
    let namespace = network(machine)?;
    run(async move { work(Handle::open(&namespace)?).await })
}

/// The lab's commands are synchronous; netlink is not.
fn run(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
