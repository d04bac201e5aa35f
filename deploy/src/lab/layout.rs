//! Names, addresses and paths of a lab, and how a partition is written. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Nodes that one lab may have: their addresses share one /24 with the outside client.
pub const MAX_NODES: usize = 100;

/// The machine on the lab's switch that is no node.
pub const OUTSIDE: &str = "outside";

/// The machine that holds the switch.
pub const SWITCH: &str = "switch";

/// Prefix length of the lab's network.
pub const PREFIX: u8 = 24;

/// Where a lab keeps what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    name: String,
    state: PathBuf,
    run: PathBuf,
}

/// Why a lab can't be described like that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name can't be part of a path and of a cgroup.
    #[error("lab name {0:?}: use 1 to 20 lower-case letters, digits and dashes")]
    Name(String),
    /// Too few or too many machines.
    #[error("{nodes} nodes with {managers} managers: a lab has 1 to 100 nodes, and at least one of them is a manager")]
    Size {
        /// Nodes asked for.
        nodes: usize,
        /// Managers asked for.
        managers: usize,
    },
    /// No such machine.
    #[error("there is no machine {0:?} in this lab; it has n1 to n{1}, and outside")]
    Machine(String, usize),
    /// A machine on two sides at once.
    #[error("machine {0} stands on two sides of the partition")]
    Twice(String),
    /// Nothing to part from.
    #[error("a partition needs at least one group of machines, such as: partition n1,n2 n3")]
    NoGroups,
}

impl Layout {
    /// The layout of the lab with this name.
    pub fn new(name: &str) -> Result<Self, Error> {
        let fits = (1..=20).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-');
        if !fits {
            return Err(Error::Name(name.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            state: Path::new("/var/lib/skep-lab").join(name),
            run: Path::new("/run/skep-lab").join(name),
        })
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything on disk.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Sockets, process ids, logs.
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// What the lab knows of itself.
    pub fn file(&self) -> PathBuf {
        self.run.join("lab.json")
    }

    /// What is locked while the lab is made or taken down; beside its directories, which go meanwhile.
    pub fn lock_file(&self) -> PathBuf {
        self.run.with_file_name(format!(".{}.lock", self.name))
    }

    /// The Engine API of a node.
    pub fn socket(&self, node: &str) -> PathBuf {
        self.run.join(node).join("skep.sock")
    }

    /// The run directory of a node's daemon: short, because socket paths have 108 bytes at most.
    pub fn node_run_dir(&self, node: &str) -> PathBuf {
        self.run.join(node).join("r")
    }

    /// The data directory of a node's daemon.
    pub fn node_data_dir(&self, node: &str) -> PathBuf {
        self.state.join(node)
    }

    /// What a node's daemon logs.
    pub fn log(&self, node: &str) -> PathBuf {
        self.run.join(node).join("daemon.log")
    }

    /// The first process of a machine: its id and start time.
    pub fn init_file(&self, machine: &str) -> PathBuf {
        self.run.join(machine).join("init")
    }

    /// Between which machines the cable of a machine runs.
    pub fn cable_file(&self, machine: &str) -> PathBuf {
        self.run.join(machine).join("cable")
    }

    /// A node's daemon: its process id and start time.
    pub fn daemon_file(&self, node: &str) -> PathBuf {
        self.run.join(node).join("daemon")
    }

    /// The cgroup above the containers of all nodes, relative to each controller's root.
    pub fn cgroup(&self) -> String {
        format!("skep-lab-{}", self.name)
    }

    /// The cgroup above a node's containers.
    pub fn node_cgroup(&self, node: &str) -> String {
        format!("{}/{node}", self.cgroup())
    }
}

/// Names of the nodes.
pub fn nodes(count: usize) -> impl Iterator<Item = String> {
    (1..=count).map(|i| format!("n{i}"))
}

/// Checks the size of a lab.
pub fn check_size(nodes: usize, managers: usize) -> Result<(), Error> {
    if (1..=MAX_NODES).contains(&nodes) && (1..=nodes).contains(&managers) {
        Ok(())
    } else {
        Err(Error::Size { nodes, managers })
    }
}

/// A machine's address on the lab's network.
pub fn address(machine: &str, count: usize) -> Result<Ipv4Addr, Error> {
    let unknown = || Error::Machine(machine.to_owned(), count);
    if machine == OUTSIDE {
        return Ok(Ipv4Addr::new(192, 168, 77, 200));
    }
    let number: u8 = machine.strip_prefix('n').and_then(|n| n.parse().ok()).ok_or_else(unknown)?;
    if number == 0 || usize::from(number) > count || format!("n{number}") != machine {
        return Err(unknown());
    }
    Ok(Ipv4Addr::new(192, 168, 77, number))
}

/// Reads the groups of a partition (`n1,n2` `n3`). Machines that are named nowhere stay with the first group; of one
/// group alone, they are the other side.
pub fn partition(groups: &[String], count: usize) -> Result<Vec<BTreeSet<String>>, Error> {
    if groups.is_empty() {
        return Err(Error::NoGroups);
    }
    let mut seen = BTreeSet::new();
    let mut sides = Vec::new();
    for group in groups {
        let mut side = BTreeSet::new();
        for machine in group.split(',').filter(|m| !m.is_empty()) {
            address(machine, count)?;
            if !seen.insert(machine.to_owned()) {
                return Err(Error::Twice(machine.to_owned()));
            }
            side.insert(machine.to_owned());
        }
        sides.push(side);
    }
    let rest = nodes(count).chain([OUTSIDE.to_owned()]).filter(|m| !seen.contains(m)).collect::<Vec<_>>();
    // One group alone is parted from everybody else.
    if sides.len() == 1 {
        sides.push(rest.into_iter().collect());
    } else if let Some(first) = sides.first_mut() {
        first.extend(rest);
    }
    Ok(sides)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sides(groups: &[&str]) -> Result<Vec<String>, Error> {
        let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        let sides = partition(&groups, 3)?;
        Ok(sides.into_iter().map(|s| s.into_iter().collect::<Vec<_>>().join(",")).collect())
    }

    #[test]
    fn partitions_cover_every_machine_once() {
        assert_eq!(sides(&["n1,n2", "n3"]), Ok(vec!["n1,n2,outside".to_owned(), "n3".to_owned()]));
        assert_eq!(sides(&["n3"]), Ok(vec!["n3".to_owned(), "n1,n2,outside".to_owned()]));
        assert_eq!(sides(&["n1", "n1"]), Err(Error::Twice("n1".into())));
        assert_eq!(sides(&["n4"]), Err(Error::Machine("n4".into(), 3)));
        assert_eq!(sides(&[]), Err(Error::NoGroups));
    }

    #[test]
    fn names_sizes_and_addresses_are_checked() {
        assert!(Layout::new("demo-1").is_ok());
        for bad in ["", "../x", "UPPER", "-x", "a-name-that-is-much-too-long"] {
            assert!(Layout::new(bad).is_err(), "{bad}");
        }
        assert!(check_size(3, 3).is_ok());
        assert!(check_size(3, 4).is_err());
        assert!(check_size(0, 0).is_err());
        assert_eq!(address("n2", 3), Ok(Ipv4Addr::new(192, 168, 77, 2)));
        for bad in ["n0", "n4", "n01", "x", "switch"] {
            assert!(address(bad, 3).is_err(), "{bad}");
        }
    }
}
