//! The kernel room against the real kernel, in namespaces that each test makes for itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod conntrack;
mod links;
mod namespaces;
mod nftables;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use skep_net_kernel::ns::{self, Namespace};

/// A directory of its own for pins, removed with everything in it.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("skep-pins-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir)?;
        Ok(Self(dir))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for name in ns::list(&self.0).unwrap_or_default() {
            let _ = ns::delete(&self.0.join(name));
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Two namespaces with a veth pair `a` and `b`, both ends up.
async fn pair() -> Result<(Namespace, Namespace)> {
    use skep_net_kernel::link::{Handle, VethEnd};
    let (left, right) = (Namespace::create_unnamed()?, Namespace::create_unnamed()?);
    let handle = Handle::open(&left)?;
    let a = VethEnd { name: "a", up: true, ..VethEnd::default() };
    let b = VethEnd { name: "b", up: true, namespace: Some(&right), ..VethEnd::default() };
    handle.add_veth(&a, &b).await?;
    Ok((left, right))
}
