//! What the daemon runs with: flags, the TOML file, defaults, in this order of precedence. Pure but for [`load`].
//!
//! Unknown keys are errors: a setting that is silently ignored is worse than none.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::addresses;

/// Where the settings file is looked for when no flag names one; there it may be absent.
pub const DEFAULT_FILE: &str = "/etc/skep/skep.toml";

/// What is logged unless told otherwise. The consensus library repeats a dead peer at the rate of heartbeats, and our own
/// monitor says it once.
const DEFAULT_LOG: &str = "info,openraft=error";

/// Flags as given on the command line; `None` or empty: not given.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--run-dir`
    pub run_dir: Option<PathBuf>,
    /// `--host`, repeatable: `unix:///path`
    pub hosts: Vec<String>,
    /// `--listen-addr`
    pub listen_addr: Option<String>,
    /// `--advertise-addr`
    pub advertise_addr: Option<String>,
    /// `--data-path-addr`
    pub data_path_addr: Option<String>,
    /// `--data-path-port`
    pub data_path_port: Option<u16>,
    /// `--cgroup-parent`
    pub cgroup_parent: Option<String>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
    /// `--log-level`
    pub log_level: Option<String>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The settings file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    data_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    hosts: Option<Vec<String>>,
    listen_addr: Option<String>,
    advertise_addr: Option<String>,
    data_path_addr: Option<String>,
    data_path_port: Option<u16>,
    cgroup_parent: Option<String>,
    gateway_subnet: Option<String>,
    log_format: Option<LogFormat>,
    log_level: Option<String>,
    #[serde(default, deserialize_with = "labels")]
    labels: Option<Vec<String>>,
}

/// How labels are written.
const LABELS: &str = "write labels as a list of name=value: labels = [\"zone=a\", \"disk=ssd\"]";

/// A list of texts; for everything else, the error shows one.
fn labels<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let value = toml::Value::deserialize(deserializer)?;
    value.try_into().map(Some).map_err(|_| serde::de::Error::custom(LABELS))
}

/// What the daemon runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// State that outlives a reboot: identity, log, images, containers.
    pub data_dir: PathBuf,
    /// State that does not: sockets, process ids, namespaces.
    pub run_dir: PathBuf,
    /// Paths of the unix sockets of the Engine API.
    pub sockets: Vec<PathBuf>,
    /// Default address that managers listen on, `host:port`.
    pub listen_addr: String,
    /// Default address that others are told; empty: found out.
    pub advertise_addr: String,
    /// Default address for VXLAN; empty: the advertised one.
    pub data_path_addr: String,
    /// VXLAN port of a swarm that this node founds; 0: 4789.
    pub data_path_port: u16,
    /// Cgroup under which containers get theirs.
    pub cgroup_parent: String,
    /// Subnet of the gateway bridge.
    pub gateway_subnet: String,
    /// Log format.
    pub log_format: LogFormat,
    /// Log filter: a level, or `crate=level` pairs.
    pub log_level: String,
    /// Labels of the engine, `name=value`.
    pub labels: Vec<String>,
}

impl Config {
    /// The settings that differ and that a running daemon can't change, by the names they have in the file.
    pub(crate) fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let differs = [
            ("data-dir", self.data_dir != other.data_dir),
            ("run-dir", self.run_dir != other.run_dir),
            ("hosts", self.sockets != other.sockets),
            ("listen-addr", self.listen_addr != other.listen_addr),
            ("advertise-addr", self.advertise_addr != other.advertise_addr),
            ("data-path-addr", self.data_path_addr != other.data_path_addr),
            ("data-path-port", self.data_path_port != other.data_path_port),
            ("cgroup-parent", self.cgroup_parent != other.cgroup_parent),
            ("gateway-subnet", self.gateway_subnet != other.gateway_subnet),
            ("log-format", self.log_format != other.log_format),
            ("labels", self.labels != other.labels),
        ];
        differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("settings file {path} can't be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("settings file {path} is not valid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is out of range.
    #[error("{name} {value:?}: {why}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is wrong, and what would be right.
        why: &'static str,
    },
}

/// Reads the file, if there is one, and puts the flags over it.
pub fn load(options: &Options) -> Result<Config, Error> {
    let path = options.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    let file = match std::fs::read_to_string(path) {
        Ok(text) => {
            toml::from_str(&text).map_err(|source| Error::Parse { path: path.to_owned(), source: Box::new(source) })?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && options.config.is_none() => File::default(),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    merge(options, file)
}

fn merge(options: &Options, file: File) -> Result<Config, Error> {
    let run_dir = options.run_dir.clone().or(file.run_dir).unwrap_or_else(|| "/run/skep".into());
    let hosts = if options.hosts.is_empty() { file.hosts.unwrap_or_default() } else { options.hosts.clone() };
    let sockets = if hosts.is_empty() {
        vec![run_dir.join("skep.sock")]
    } else {
        hosts.iter().map(|h| socket(h)).collect::<Result<_, _>>()?
    };
    let config = Config {
        data_dir: options.data_dir.clone().or(file.data_dir).unwrap_or_else(|| "/var/lib/skep".into()),
        run_dir,
        sockets,
        listen_addr: options.listen_addr.clone().or(file.listen_addr).unwrap_or_else(|| "0.0.0.0:2377".into()),
        advertise_addr: options.advertise_addr.clone().or(file.advertise_addr).unwrap_or_default(),
        data_path_addr: options.data_path_addr.clone().or(file.data_path_addr).unwrap_or_default(),
        data_path_port: options.data_path_port.or(file.data_path_port).unwrap_or_default(),
        cgroup_parent: options.cgroup_parent.clone().or(file.cgroup_parent).unwrap_or_else(|| "skep".into()),
        gateway_subnet: file.gateway_subnet.unwrap_or_else(|| "172.19.0.0/16".into()),
        log_format: options.log_format.or(file.log_format).unwrap_or_default(),
        log_level: options.log_level.clone().or(file.log_level).unwrap_or_else(|| DEFAULT_LOG.into()),
        labels: file.labels.unwrap_or_default(),
    };
    check(config)
}

fn check(config: Config) -> Result<Config, Error> {
    let bad = |name, value: &str, why| Err(Error::Value { name, value: value.to_owned(), why });
    for (name, dir) in [("data-dir", &config.data_dir), ("run-dir", &config.run_dir)] {
        if !dir.is_absolute() {
            return bad(name, &dir.to_string_lossy(), "give an absolute path");
        }
    }
    if config.data_dir == config.run_dir {
        return bad("run-dir", &config.run_dir.to_string_lossy(), "data and run directory have to differ");
    }
    for (name, address) in [
        ("listen-addr", &config.listen_addr),
        ("advertise-addr", &config.advertise_addr),
        ("data-path-addr", &config.data_path_addr),
    ] {
        if !address.is_empty() && !addresses::is_readable(address) {
            return bad(name, address, "give an address or an interface, with or without a port");
        }
    }
    if config.data_path_port != 0 && !(1024..=49151).contains(&config.data_path_port) {
        return bad("data-path-port", &config.data_path_port.to_string(), "give a port from 1024 to 49151");
    }
    if config.cgroup_parent.is_empty() || config.cgroup_parent.split('/').any(|part| part == "..") {
        return bad("cgroup-parent", &config.cgroup_parent, "give a path below the cgroup root, such as skep");
    }
    if config.gateway_subnet.parse::<skep_net_plan::Subnet>().is_err() {
        return bad("gateway-subnet", &config.gateway_subnet, "give an IPv4 subnet, such as 172.19.0.0/16");
    }
    if let Some(label) = config.labels.iter().find(|l| l.split_once('=').is_none_or(|(name, _)| name.is_empty())) {
        return bad("labels", label, LABELS);
    }
    Ok(config)
}

fn socket(host: &str) -> Result<PathBuf, Error> {
    match host.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => Err(Error::Value {
            name: "host",
            value: host.to_owned(),
            why: "give a unix socket with an absolute path, such as unix:///run/skep/skep.sock",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_defaults() -> Result<(), Box<dyn std::error::Error>> {
        let file: File = toml::from_str("data-dir = '/a'\nlog-level = 'debug'\nlog-format = 'json'")?;
        let options = Options { log_level: Some("warn".into()), ..Options::default() };
        let config = merge(&options, file)?;
        assert_eq!(config.data_dir, Path::new("/a"));
        assert_eq!(config.log_level, "warn");
        assert_eq!(config.log_format, LogFormat::Json);
        assert_eq!(config.sockets, [PathBuf::from("/run/skep/skep.sock")]);
        Ok(())
    }

    #[test]
    fn the_example_names_every_setting_and_shows_the_defaults() -> Result<(), Box<dyn std::error::Error>> {
        let text = include_str!("../../docs/skep.toml");
        assert_eq!(toml::from_str::<File>(text)?, File::default(), "as it is, it sets nothing");
        // A setting is a line whose mark is followed by no blank.
        let is_setting = |line: &&str| line.starts_with(|c: char| c.is_ascii_lowercase());
        let set: String = text
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(is_setting))
            .map(|line| format!("{line}\n"))
            .collect();
        let shown: File = toml::from_str(&set)?;
        // The error for an unknown key names all that there are.
        let error = toml::from_str::<File>("no-such-key = 1").map(|_| ()).map_err(|e| e.message().to_owned());
        let Err(error) = error else { return Err("an unknown key is accepted".into()) };
        let known: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        assert!(known.len() > 10, "{error}");
        for key in known {
            assert!(set.contains(&format!("\n{key} = ")) || set.starts_with(&format!("{key} = ")), "{key} is missing");
        }
        let (mut config, default) = (merge(&Options::default(), shown)?, merge(&Options::default(), File::default())?);
        assert!(!config.advertise_addr.is_empty() && !config.data_path_addr.is_empty() && !config.labels.is_empty());
        // What has no fixed default is an example there, and 0 stands for the usual port.
        config.advertise_addr.clone_from(&default.advertise_addr);
        config.data_path_addr.clone_from(&default.data_path_addr);
        config.labels.clone_from(&default.labels);
        assert_eq!(std::mem::take(&mut config.data_path_port), 4789);
        assert_eq!(config, default);
        Ok(())
    }

    #[test]
    fn what_a_running_daemon_can_not_change_is_named() -> Result<(), Box<dyn std::error::Error>> {
        let now = merge(&Options::default(), File::default())?;
        let set = include_str!("../../docs/skep.toml")
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase())))
            .filter_map(|line| line.split_once(" = ").map(|(key, _)| key));
        for key in set {
            let value = match key {
                "data-path-port" => "5000",
                "log-format" => "'json'",
                "hosts" => "['unix:///x']",
                "labels" => "['a=b']",
                "gateway-subnet" => "'10.9.0.0/16'",
                "listen-addr" | "advertise-addr" | "data-path-addr" => "'10.9.9.9'",
                _ => "'/other'",
            };
            let other = merge(&Options::default(), toml::from_str(&format!("{key} = {value}"))?)?;
            let expected: &[&str] = match key {
                "log-level" => &[],
                // The socket is there unless it is set.
                "run-dir" => &["run-dir", "hosts"],
                key => &[key],
            };
            assert_eq!(now.fixed_differences(&other), expected, "{key}");
        }
        Ok(())
    }

    #[test]
    fn wrong_settings_are_named() {
        assert!(toml::from_str::<File>("data-dri = '/a'").is_err(), "unknown keys are errors");
        for text in ["labels = { zone = 'a' }", "labels = 'zone=a'", "[labels]\nzone = 'a'", "labels = [1]"] {
            let error = toml::from_str::<File>(text).map(|_| ()).map_err(|e| e.to_string());
            assert!(error.as_ref().is_err_and(|e| e.contains("labels = [\"zone=a\"")), "{text}: {error:?}");
        }
        let file = File { labels: Some(vec!["zone".into()]), ..File::default() };
        let error = merge(&Options::default(), file).map(|_| ()).map_err(|e| e.to_string());
        assert!(error.as_ref().is_err_and(|e| e.contains("labels = [\"zone=a\"")), "{error:?}");
        for subnet in ["hello", "172.99.0.0/99", ""] {
            let file = File { gateway_subnet: Some(subnet.into()), ..File::default() };
            let error = merge(&Options::default(), file).map(|_| ()).map_err(|e| e.to_string());
            assert!(error.as_ref().is_err_and(|e| e.contains("gateway-subnet")), "{subnet}: {error:?}");
        }
        let table = [
            (Options { data_dir: Some("relative".into()), ..Options::default() }, "data-dir"),
            (Options { hosts: vec!["tcp://0.0.0.0:2375".into()], ..Options::default() }, "host"),
            (Options { data_path_port: Some(80), ..Options::default() }, "data-path-port"),
            (Options { listen_addr: Some("10.1.1.1:99999".into()), ..Options::default() }, "listen-addr"),
            (Options { advertise_addr: Some("10.1.1".into()), ..Options::default() }, "advertise-addr"),
            (Options { data_path_addr: Some("eth 0".into()), ..Options::default() }, "data-path-addr"),
            (Options { cgroup_parent: Some("../x".into()), ..Options::default() }, "cgroup-parent"),
            (Options { run_dir: Some("/var/lib/skep".into()), ..Options::default() }, "run-dir"),
        ];
        for (options, name) in table {
            let error = merge(&options, File::default()).map(|_| ());
            assert!(matches!(&error, Err(Error::Value { name: n, .. }) if *n == name), "{options:?}: {error:?}");
        }
    }
}
