//! Which addresses a node listens on and tells others. Pure but for [`interfaces`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Port of everything that managers serve.
pub(crate) const PORT: u16 = 2377;

/// Interfaces that an error lists at most.
const SHOWN: usize = 10;

/// One address of one interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Name of the link.
    pub name: String,
    /// One of its addresses.
    pub address: IpAddr,
}

/// The addresses of a node that takes part in a swarm.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Addresses {
    /// Where a manager listens.
    pub listen: SocketAddr,
    /// What others are told, as `address:port`.
    pub advertise: SocketAddr,
    /// Where VXLAN is sent from and to.
    pub data_path: Ipv4Addr,
}

/// Why no address could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Neither an address nor an interface.
    #[error("{flag} {text:?}: give an address or an interface, with or without a port")]
    Unreadable {
        /// The setting.
        flag: &'static str,
        /// What was given.
        text: String,
    },
    /// There is no such interface, or it has no address.
    #[error("{flag} {text:?}: this machine has no interface of that name with an IPv4 address; it has {interfaces}")]
    NoInterface {
        /// The setting.
        flag: &'static str,
        /// What was given.
        text: String,
        /// Those that it has.
        interfaces: String,
    },
    /// The interface has several addresses.
    #[error("{flag} {text:?}: that interface has several addresses ({addresses}); give one of them")]
    SeveralOn {
        /// The setting.
        flag: &'static str,
        /// What was given.
        text: String,
        /// Its addresses.
        addresses: String,
    },
    /// The machine has none.
    #[error("this machine has no address that others can reach; give one with --advertise-addr")]
    None,
    /// The machine has several.
    #[error(
        "could not choose an IP address to advertise since this system has multiple addresses on different interfaces \
         ({0}) - specify one with --advertise-addr"
    )]
    Several(String),
    /// Not an address that can be told to others.
    #[error("{flag} {text:?}: others can't reach that address; give one that they can")]
    Unreachable {
        /// The setting.
        flag: &'static str,
        /// What was given.
        text: String,
    },
    /// VXLAN runs over IPv4 only, today.
    #[error("data path address {0}: only IPv4 is possible")]
    DataPath(IpAddr),
}

/// Chooses the addresses: what was given wins, else what the machine has, if that is one thing only.
pub(crate) fn choose(
    listen: &str,
    advertise: &str,
    data_path: &str,
    machine: &[Interface],
) -> Result<Addresses, Error> {
    let listen = resolve("--listen-addr", listen, PORT, machine)?;
    let advertise = if !advertise.is_empty() {
        resolve("--advertise-addr", advertise, listen.port(), machine)?
    } else if !listen.ip().is_unspecified() {
        listen
    } else {
        SocketAddr::new(only_address(machine)?, listen.port())
    };
    if advertise.ip().is_unspecified() {
        return Err(Error::Unreachable { flag: "--advertise-addr", text: advertise.ip().to_string() });
    }
    let data_path =
        if data_path.is_empty() { advertise.ip() } else { resolve("--data-path-addr", data_path, 0, machine)?.ip() };
    match data_path {
        IpAddr::V4(data_path) => Ok(Addresses { listen, advertise, data_path }),
        IpAddr::V6(_) => Err(Error::DataPath(data_path)),
    }
}

/// The addresses of a member for which new ones may be given: what is not given stays as it is.
pub(crate) fn change(
    old: &Addresses,
    listen: &str,
    advertise: &str,
    data_path: &str,
    machine: &[Interface],
) -> Result<Addresses, Error> {
    let or = |given: &str, old: String| if given.is_empty() { old } else { given.to_owned() };
    let listen = resolve("--listen-addr", &or(listen, old.listen.to_string()), PORT, machine)?;
    // The address stays, and is told with the port that is listened on; another port was chosen on purpose.
    let port = if old.advertise.port() == old.listen.port() { listen.port() } else { old.advertise.port() };
    let told = or(advertise, SocketAddr::new(old.advertise.ip(), port).to_string());
    let sent = if advertise.is_empty() { or(data_path, old.data_path.to_string()) } else { data_path.to_owned() };
    choose(&listen.to_string(), &told, &sent, machine)
}

/// Whether a text may name an address: for settings that are read before the machine is looked at, where an interface may
/// be missing that comes later.
pub(crate) fn is_readable(text: &str) -> bool {
    let name = match text.rsplit_once(':') {
        Some((name, port)) => port.parse::<u16>().is_ok().then_some(name),
        None => Some(text),
    };
    // The kernel's rule for names of links; one like an address is a mistyped address.
    let is_link = |name: &str| {
        (1..16).contains(&name.len())
            && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
            && name.contains(|c: char| c != '.' && !c.is_ascii_digit())
    };
    text.parse::<SocketAddr>().is_ok()
        || text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        || name.is_some_and(is_link)
}

/// `address`, `address:port`, `interface` or `interface:port`.
fn resolve(flag: &'static str, text: &str, port: u16, machine: &[Interface]) -> Result<SocketAddr, Error> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let unreadable = || Error::Unreadable { flag, text: text.to_owned() };
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().map_err(|_| unreadable())?),
        None => (text, port),
    };
    let on: Vec<IpAddr> = machine.iter().filter(|i| i.name == name && i.address.is_ipv4()).map(|i| i.address).collect();
    match on.as_slice() {
        [] if is_readable(text) => {
            let named = machine.iter().filter(|i| i.address.is_ipv4()).map(|i| format!("{} ({})", i.name, i.address));
            let interfaces = named.take(SHOWN).collect::<Vec<_>>().join(", ");
            Err(Error::NoInterface { flag, text: text.to_owned(), interfaces })
        }
        [] => Err(unreadable()),
        [one] => Ok(SocketAddr::new(*one, port)),
        several => Err(Error::SeveralOn { flag, text: text.to_owned(), addresses: join(several) }),
    }
}

/// The machine's address, if it has one only.
fn only_address(machine: &[Interface]) -> Result<IpAddr, Error> {
    let ours = |name: &str| name.starts_with("skep") || name.starts_with("docker");
    let usable: Vec<&Interface> = machine
        .iter()
        .filter(|i| !ours(&i.name))
        .filter(|i| matches!(i.address, IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_link_local()))
        .collect();
    match usable.as_slice() {
        [] => Err(Error::None),
        [one] => Ok(one.address),
        several => Err(Error::Several(join(&several.iter().map(|i| i.address).collect::<Vec<_>>()))),
    }
}

fn join(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// `host[:port]` of a manager to join, with the usual port.
pub(crate) fn with_port(remote: &str) -> String {
    let has_port = remote.parse::<SocketAddr>().is_ok()
        || (remote.parse::<IpAddr>().is_err()
            && remote.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok()));
    match remote.parse::<std::net::Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{PORT}"),
        Err(_) if has_port => remote.to_owned(),
        Err(_) => format!("{remote}:{PORT}"),
    }
}

/// All addresses of this machine.
pub(crate) fn interfaces() -> std::io::Result<Vec<Interface>> {
    Ok(if_addrs::get_if_addrs()?.into_iter().map(|i| Interface { address: i.ip(), name: i.name }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(list: &[(&str, &str)]) -> Vec<Interface> {
        list.iter()
            .filter_map(|(name, ip)| Some(Interface { name: (*name).to_owned(), address: ip.parse().ok()? }))
            .collect()
    }

    #[test]
    fn what_is_given_wins_and_one_address_needs_no_words() -> Result<(), Error> {
        let one = machine(&[("lo", "127.0.0.1"), ("eth0", "192.168.77.1"), ("skep-gw", "172.19.0.1")]);
        let chosen = choose("0.0.0.0:2377", "", "", &one)?;
        assert_eq!(chosen.advertise.to_string(), "192.168.77.1:2377");
        assert_eq!(chosen.data_path.to_string(), "192.168.77.1");
        let chosen = choose("0.0.0.0:2400", "eth0", "", &one)?;
        assert_eq!(chosen.advertise.to_string(), "192.168.77.1:2400");
        let chosen = choose("0.0.0.0:2377", "1.2.3.4:99", "5.6.7.8", &one)?;
        assert_eq!(
            (chosen.advertise.to_string().as_str(), chosen.data_path.to_string().as_str()),
            ("1.2.3.4:99", "5.6.7.8")
        );
        Ok(())
    }

    #[test]
    fn a_member_keeps_the_addresses_that_are_not_given_anew() -> anyhow::Result<()> {
        let machine = machine(&[("eth0", "10.1.1.1"), ("eth1", "10.2.2.2")]);
        let old = |listen: &str, advertise: &str, data_path: &str| -> anyhow::Result<Addresses> {
            Ok(Addresses { listen: listen.parse()?, advertise: advertise.parse()?, data_path: data_path.parse()? })
        };
        // listen, advertise, data path before; given; after
        let table = [
            (
                ("0.0.0.0:2377", "10.9.9.9:2377", "10.9.9.8"),
                ("", "", ""),
                ("0.0.0.0:2377", "10.9.9.9:2377", "10.9.9.8"),
            ),
            (
                ("0.0.0.0:2377", "10.9.9.9:2377", "10.9.9.8"),
                ("0.0.0.0:2377", "10.1.1.1", ""),
                ("0.0.0.0:2377", "10.1.1.1:2377", "10.1.1.1"),
            ),
            (
                ("0.0.0.0:2377", "10.9.9.9:2377", "10.9.9.9"),
                ("", "eth1", "eth0"),
                ("0.0.0.0:2377", "10.2.2.2:2377", "10.1.1.1"),
            ),
            (
                ("0.0.0.0:2377", "10.9.9.9:2377", "10.9.9.9"),
                ("0.0.0.0:99", "", ""),
                ("0.0.0.0:99", "10.9.9.9:99", "10.9.9.9"),
            ),
            (
                ("0.0.0.0:2377", "10.9.9.9:5000", "10.9.9.9"),
                ("0.0.0.0:99", "", ""),
                ("0.0.0.0:99", "10.9.9.9:5000", "10.9.9.9"),
            ),
        ];
        for (before, given, after) in table {
            let changed = change(&old(before.0, before.1, before.2)?, given.0, given.1, given.2, &machine)?;
            assert_eq!(changed, old(after.0, after.1, after.2)?, "{before:?} {given:?}");
        }
        Ok(())
    }

    #[test]
    fn what_can_not_be_chosen_says_why() {
        let two = machine(&[("eth0", "10.1.1.1"), ("eth1", "10.2.2.2"), ("eth1", "10.2.2.3")]);
        let error = |advertise: &str, machine: &[Interface]| choose("0.0.0.0:2377", advertise, "", machine).err();
        assert!(matches!(error("", &two), Some(Error::Several(_))));
        assert!(matches!(error("eth1", &two), Some(Error::SeveralOn { .. })));
        let none = error("eth9", &two).map(|e| e.to_string()).unwrap_or_default();
        assert!(none.contains("no interface") && none.contains("eth0 (10.1.1.1), eth1 (10.2.2.2)"), "{none}");
        assert!(matches!(error("10.1.1", &two), Some(Error::Unreadable { .. })));
        assert!(matches!(error("0.0.0.0", &two), Some(Error::Unreachable { .. })));
        assert!(matches!(error("", &[]), Some(Error::None)));
    }

    #[test]
    fn a_text_that_can_name_no_address_is_told_from_one_that_may() {
        for text in
            ["10.1.1.1", "10.1.1.1:99", "[fe80::1]:99", "fe80::1", "0.0.0.0", "eth0", "eth0:99", "wg-a", "br0.7"]
        {
            assert!(is_readable(text), "{text}");
        }
        for text in
            ["", " ", "10.1.1", "300.1.1.1", "10.1.1.1:99999", "eth0:port", "eth 0", "a/b", ":99", "sixteen-letters-a"]
        {
            assert!(!is_readable(text), "{text}");
        }
    }

    #[test]
    fn remotes_get_the_usual_port() {
        for (given, full) in [
            ("10.0.0.1", "10.0.0.1:2377"),
            ("10.0.0.1:99", "10.0.0.1:99"),
            ("manager", "manager:2377"),
            ("manager:5", "manager:5"),
            ("fe80::1", "[fe80::1]:2377"),
        ] {
            assert_eq!(with_port(given), full);
        }
    }
}
