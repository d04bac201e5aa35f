//! What the machine is: read once at start.

use skep_proto::v1::{NodeDescription, Platform, Resources};

use crate::config::Config;

/// The machine, as other nodes and users are told.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Machine {
    pub(crate) hostname: String,
    pub(crate) kernel: String,
    pub(crate) operating_system: String,
    pub(crate) architecture: String,
    pub(crate) resources: Resources,
    /// 1 or 2.
    pub(crate) cgroup_version: u8,
    pub(crate) resolvers: Vec<std::net::SocketAddr>,
    pub(crate) search: Vec<String>,
}

/// Reads it.
pub(crate) fn read() -> Machine {
    let uname = rustix::system::uname();
    let text = |c: &std::ffi::CStr| c.to_string_lossy().into_owned();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let (resolvers, search) = resolv_conf(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    Machine {
        hostname: text(uname.nodename()),
        kernel: text(uname.release()),
        operating_system: pretty_name(&std::fs::read_to_string("/etc/os-release").unwrap_or_default()),
        architecture: text(uname.machine()),
        resources: Resources {
            nano_cpus: i64::try_from(cpus).unwrap_or(1) * 1_000_000_000,
            memory_bytes: total_memory(&meminfo),
        },
        cgroup_version: if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 },
        resolvers,
        search,
    }
}

impl Machine {
    /// What managers are told.
    pub(crate) fn description(&self, config: &Config, data_path: std::net::Ipv4Addr) -> NodeDescription {
        let label = |l: &String| l.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        NodeDescription {
            hostname: self.hostname.clone(),
            platform: Some(Platform { architecture: self.architecture.clone(), os: "linux".to_owned() }),
            resources: Some(self.resources),
            engine_version: crate::VERSION.to_owned(),
            engine_labels: config.labels.iter().filter_map(label).collect(),
            data_path_address: data_path.to_string(),
            gateway_subnet: base_form(&config.gateway_subnet),
            ..NodeDescription::default()
        }
    }
}

/// A subnet with its first address, however it was written.
fn base_form(subnet: &str) -> String {
    subnet.parse::<skep_net_plan::Subnet>().map(|subnet| subnet.network().to_string()).unwrap_or_default()
}

fn total_memory(meminfo: &str) -> i64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<i64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

fn pretty_name(os_release: &str) -> String {
    let name = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |n| n.trim_matches('"').to_owned())
}

/// Name servers and search domains, of a bounded number; a resolver of our own kind is no upstream.
fn resolv_conf(text: &str) -> (Vec<std::net::SocketAddr>, Vec<String>) {
    let mut servers = Vec::new();
    let mut search = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let ip = words.next().and_then(|w| w.parse::<std::net::IpAddr>().ok());
                servers.extend(ip.map(|ip| std::net::SocketAddr::new(ip, 53)));
            }
            Some("search" | "domain") => search = words.take(6).map(str::to_owned).collect(),
            _ => {}
        }
    }
    servers.truncate(3);
    (servers, search)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_told_by_their_first_address() {
        for (written, told) in [("172.19.0.0/16", "172.19.0.0/16"), ("10.9.7.1/20", "10.9.0.0/20"), ("x", "")] {
            assert_eq!(base_form(written), told);
        }
    }

    #[test]
    fn files_of_the_machine_are_read() {
        assert_eq!(total_memory("MemTotal:       24576 kB\nMemFree: 1 kB"), 24576 * 1024);
        assert_eq!(pretty_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\""), "Debian GNU/Linux 12");
        let (servers, search) = resolv_conf("nameserver 1.1.1.1\nsearch a.example b.example\nnameserver fe80::1%x\n");
        assert_eq!(servers, [std::net::SocketAddr::from(([1, 1, 1, 1], 53))]);
        assert_eq!(search, ["a.example", "b.example"]);
    }
}
