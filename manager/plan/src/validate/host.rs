//! Names and addresses in a container: its host name, its resolver, the lines of its hosts file.

use std::net::IpAddr;

use skep_proto::template::{self, Part};
use skep_proto::v1::{ContainerSpec, DnsConfig};

use super::{Error, invalid};

/// Longest host name that the kernel takes.
const HOSTNAME: usize = 64;
/// Longest label of a name, and longest name.
const LABEL: usize = 63;
const DOMAIN: usize = 253;
/// Resolvers, search domains or options in one spec: more is a mistake.
const LIST: usize = 64;

/// Checks everything about names.
pub(super) fn check(container: &ContainerSpec) -> Result<(), Error> {
    check_hostname(&container.hostname)?;
    for line in &container.hosts {
        check_line(line)?;
    }
    container.dns.as_ref().map_or(Ok(()), check_dns)
}

/// The host name as it stands in the spec. Where placeholders are, only what stands around them can be judged.
fn check_hostname(name: &str) -> Result<(), Error> {
    const FIELD: &str = "TaskTemplate.ContainerSpec.Hostname";
    if name.is_empty() {
        return Ok(());
    }
    let parts = template::parse(name).map_err(|e| invalid(FIELD, e.to_string()))?;
    // A placeholder stands for at least one letter.
    let sample: String = parts.iter().map(|part| if let Part::Text(text) = part { text } else { "x" }).collect();
    if sample.len() > HOSTNAME {
        let why = format!("`{name}` has {} characters; {HOSTNAME} are the most", sample.len());
        return Err(invalid(FIELD, why));
    }
    if is_domain(&sample) {
        return Ok(());
    }
    let why = "is no host name: use letters, digits and `-`, in parts of at most 63 that are separated by single dots";
    Err(invalid(FIELD, format!("`{name}` {why}")))
}

/// Letters, digits, `-` and (as many do in fact) `_`, in parts that neither begin nor end with `-`.
fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        (1..=LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= DOMAIN && name.split('.').all(label)
}

/// `address name [name...]`.
fn check_line(line: &str) -> Result<(), Error> {
    const FIELD: &str = "TaskTemplate.ContainerSpec.Hosts";
    let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
    let address = words.next().unwrap_or_default();
    if address == "host-gateway" {
        return Err(invalid(FIELD, format!("`{line}`: host-gateway is not supported, write the address itself")));
    }
    if address.parse::<IpAddr>().is_err() {
        return Err(invalid(FIELD, format!("`{line}` does not begin with an IP address: write ADDRESS NAME")));
    }
    let names: Vec<&str> = words.collect();
    match names.iter().find(|name| !is_domain(name.trim_end_matches('.'))) {
        Some(name) => Err(invalid(FIELD, format!("`{name}` in `{line}` is no host name"))),
        None if names.is_empty() => Err(invalid(FIELD, format!("`{line}` names no host: write ADDRESS NAME"))),
        None => Ok(()),
    }
}

fn check_dns(dns: &DnsConfig) -> Result<(), Error> {
    const FIELD: &str = "TaskTemplate.ContainerSpec.DNSConfig";
    for (name, list) in [("Nameservers", &dns.nameservers), ("Search", &dns.search), ("Options", &dns.options)] {
        if list.len() > LIST {
            return Err(invalid(
                format!("{FIELD}.{name}"),
                format!("{} are too many: {LIST} are the most", list.len()),
            ));
        }
    }
    if let Some(server) = dns.nameservers.iter().find(|server| server.parse::<IpAddr>().is_err()) {
        let why = format!("`{server}` is no IP address: give the address of a DNS server");
        return Err(invalid(format!("{FIELD}.Nameservers"), why));
    }
    // A single dot means: no search.
    if let Some(domain) = dns.search.iter().find(|d| *d != "." && !is_domain(d.strip_suffix('.').unwrap_or(d))) {
        return Err(invalid(format!("{FIELD}.Search"), format!("`{domain}` is no domain name")));
    }
    let option = |option: &str| {
        let (name, value) = option.split_once(':').unwrap_or((option, "0"));
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        !name.is_empty() && name.bytes().all(plain) && value.parse::<u32>().is_ok()
    };
    match dns.options.iter().find(|o| !option(o)) {
        Some(option) => {
            let why = format!("`{option}` is no option of a resolver: write it like ndots:1 or rotate");
            Err(invalid(format!("{FIELD}.Options"), why))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names() {
        let long = "a".repeat(63);
        let longer = "a".repeat(64);
        for name in ["", "a", "web-1", "a_b", "A.example.org", &long, "{{.Node.Hostname}}", "w-{{.Task.Slot}}.x"] {
            assert_eq!(check_hostname(name), Ok(()), "{name}");
        }
        for name in [
            " ",
            "a b",
            "a..b",
            ".a",
            "a.",
            "-a",
            "a-",
            "a/b",
            "ü",
            "a\0",
            &longer,
            "{{.Nope}}",
            "{{.Task.Slot",
            "{{.Task.Slot}}.",
            "-{{.Task.Slot}}",
            "{{\"a b\"}}",
        ] {
            assert!(check_hostname(name).is_err(), "{name:?}");
        }
        assert!(check_hostname(&[long.as_str(), "b"].join(".")).is_err(), "65 characters");
    }

    #[test]
    fn lines_of_a_hosts_file() {
        for line in ["1.2.3.4 a", "::1 a b.c", "1.2.3.4\ta"] {
            assert_eq!(check_line(line), Ok(()), "{line}");
        }
        for line in ["", "1.2.3.4", "a 1.2.3.4", "1.2.3 a", "1.2.3.4 a\n6.6.6.6 b", "host-gateway a", "1.2.3.4 -a"] {
            assert!(check_line(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn resolvers() {
        let dns = |servers: &[&str], search: &[&str], options: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
            check_dns(&DnsConfig { nameservers: own(servers), search: own(search), options: own(options) })
        };
        assert_eq!(dns(&["1.1.1.1", "::1"], &["example.org", "a.", "."], &["ndots:2", "rotate", "use-vc"]), Ok(()));
        assert!(dns(&["dns.example"], &[], &[]).is_err());
        assert!(dns(&["1.1.1.1:53"], &[], &[]).is_err());
        assert!(dns(&[], &["a b"], &[]).is_err());
        assert!(dns(&[], &["a\nnameserver 6.6.6.6"], &[]).is_err());
        assert!(dns(&[], &[], &["ndots:x"]).is_err());
        assert!(dns(&[], &[], &["a b"]).is_err());
        assert!(dns(&[""; 65], &[], &[]).is_err());
    }
}
