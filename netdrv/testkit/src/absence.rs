//! Proof that a test left nothing: no link, no pinned namespace, no table, no namespace that something still holds.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use skep_net_kernel::link::{Change, Handle, Kind, VethEnd};
use skep_net_kernel::nft;
use skep_net_kernel::ns::{self, Namespace};

use crate::{Node, eventually};

/// A prefix for names that no other test or run uses, at most 9 bytes, so that a link's name has room for 6 more.
pub fn unique_prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("t{:x}{:x}", std::process::id() & 0xf_ffff, number & 0xfff)
}

/// Everything in the test's own namespace, and among the mounts, whose name starts with `prefix`: links, nftables tables,
/// pinned namespaces.
pub async fn leftovers(prefix: &str) -> Result<Vec<String>> {
    let here = Namespace::current()?;
    let mut found = Vec::new();
    let links = Handle::open(&here)?.links().await?;
    found.extend(links.iter().filter(|l| l.name.starts_with(prefix)).map(|l| format!("link {}", l.name)));
    let tables = nft::Socket::open(&here)?.tables()?;
    found.extend(tables.iter().filter(|t| t.table.name.starts_with(prefix)).map(|t| format!("table {}", t.table)));
    let pins = ns::list(Path::new("/run/netns"))?;
    found.extend(pins.iter().filter(|p| p.starts_with(prefix)).map(|p| format!("namespace /run/netns/{p}")));
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        // Fields: id, parent, device, root, mount point, ...
        let point = line.split(' ').nth(4).unwrap_or_default();
        if point.split('/').any(|part| part.starts_with(prefix)) {
            found.push(format!("mount {point}"));
        }
    }
    Ok(found)
}

/// Asserts that nothing with that prefix is left; the kernel may take a moment to remove what was deleted.
pub async fn nothing_left(prefix: &str) -> Result<()> {
    eventually("nothing is left", || async {
        let found = leftovers(prefix).await?;
        ensure!(found.is_empty(), "left behind: {}", found.join(", "));
        Ok(())
    })
    .await
}

/// Knows when namespaces end: each watched one holds the far end of a link of the canary's, and takes it along.
#[derive(Debug)]
pub struct Canary {
    home: Node,
    watched: usize,
}

impl Canary {
    /// A canary that watches nothing yet.
    pub async fn new() -> Result<Self> {
        Ok(Self { home: Node::alone("canary").await?, watched: 0 })
    }

    /// Watches a namespace: it gets a link named `canary`, which is down.
    pub async fn watch(&mut self, node: &Node) -> Result<()> {
        let name = format!("c{}", self.watched);
        let end = VethEnd { name: &name, ..VethEnd::default() };
        let far = VethEnd { name: "canary", namespace: Some(&node.namespace), ..VethEnd::default() };
        self.home.link.add_veth(&end, &far).await?;
        self.home
            .link
            .change(self.home.link.index(&name).await?, &Change { alias: Some(&node.name), ..Change::default() })
            .await?;
        self.watched += 1;
        Ok(())
    }

    /// Asserts that the kernel has ended every watched namespace, and that there were some.
    pub async fn all_gone(&self) -> Result<()> {
        ensure!(self.watched > 0, "nothing was watched");
        eventually("the namespaces end", || async {
            let links = self.home.link.links().await.context("list the canary's links")?;
            let alive: Vec<_> = links.into_iter().filter(|l| l.kind == Kind::Veth).filter_map(|l| l.alias).collect();
            ensure!(alive.is_empty(), "still alive: {}", alive.join(", "));
            Ok(())
        })
        .await
    }
}
