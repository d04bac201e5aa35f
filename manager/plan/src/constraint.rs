//! Placement constraints and platforms: which nodes a spec allows at all.

use skep_proto::v1::{Node, Placement, Platform, Role};
use skep_state::subnet::{Subnet, parse_address};

/// What a constraint looks at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Id,
    Hostname,
    Ip,
    Role,
    Os,
    Arch,
    NodeLabel(String),
    EngineLabel(String),
}

/// One parsed constraint, `node.labels.zone == a`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Constraint {
    key: Key,
    equal: bool,
    value: String,
}

/// A constraint that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("constraint `{text}` {why}")]
pub(crate) struct ParseError {
    text: String,
    why: &'static str,
}

impl Constraint {
    pub(crate) fn parse(text: &str) -> Result<Self, ParseError> {
        let wrong = |why| ParseError { text: text.to_owned(), why };
        // Whichever operator comes first; a value may hold the other one.
        let bytes = text.as_bytes();
        let operator = (0..bytes.len().saturating_sub(1)).find_map(|at| match &bytes[at..at + 2] {
            b"==" => Some((at, true)),
            b"!=" => Some((at, false)),
            _ => None,
        });
        let (at, equal) = operator.ok_or_else(|| wrong("has neither == nor !=: write it as node.labels.zone==a"))?;
        let (key, value) = (text[..at].trim(), text[at + 2..].trim());
        if value.is_empty() {
            return Err(wrong("compares with nothing: write a value behind the operator"));
        }
        let key = Key::parse(key).ok_or_else(|| {
            wrong(
                "has an unknown key: known are node.id, node.hostname, node.ip, node.role, node.platform.os, \
                 node.platform.arch, node.labels.NAME and engine.labels.NAME",
            )
        })?;
        Ok(Self { key, equal, value: value.to_owned() })
    }

    /// Whether it can mean something: a key and a value that nodes can have. `text` is how it was written.
    pub(crate) fn check(&self, text: &str) -> Result<(), ParseError> {
        let wrong = |why| Err(ParseError { text: text.to_owned(), why });
        let plain = |name: &str| name.chars().all(|c| c.is_alphanumeric() || "-_./".contains(c));
        match &self.key {
            _ if self.value.starts_with('=') => wrong("has an unknown operator: there are == and !="),
            Key::Role if !["manager", "worker"].iter().any(|r| self.value.eq_ignore_ascii_case(r)) => {
                wrong("compares with a role that no node has: there are manager and worker")
            }
            Key::Ip if self.value.parse::<Subnet>().is_err() && parse_address(&self.value).is_none() => {
                wrong("compares with what is neither an IPv4 address nor a subnet")
            }
            Key::NodeLabel(name) | Key::EngineLabel(name) if !plain(name) => {
                wrong("has a label with other letters than A-Z, a-z, 0-9 and - _ . / in it, or an unknown operator")
            }
            _ => Ok(()),
        }
    }

    fn allows(&self, node: &Node) -> bool {
        self.matches(node) == self.equal
    }

    /// Comparison ignores case, as it always did in Swarm.
    fn matches(&self, node: &Node) -> bool {
        let same = |text: &str| text.eq_ignore_ascii_case(&self.value);
        let description = node.description.as_ref();
        let platform = description.and_then(|d| d.platform.as_ref());
        match &self.key {
            Key::Id => same(&node.id),
            Key::Hostname => description.is_some_and(|d| same(&d.hostname)),
            Key::Ip => node.status.as_ref().is_some_and(|s| self.matches_address(&s.address)),
            Key::Role => same(match node.spec.as_ref().map_or(Role::Worker, skep_proto::v1::NodeSpec::role) {
                Role::Worker => "worker",
                Role::Manager => "manager",
            }),
            Key::Os => platform.is_some_and(|p| same(&p.os)),
            Key::Arch => platform.is_some_and(|p| architecture(&p.architecture) == architecture(&self.value)),
            Key::NodeLabel(name) => {
                let annotations = node.spec.as_ref().and_then(|s| s.annotations.as_ref());
                annotations.and_then(|a| a.labels.get(name)).is_some_and(|v| same(v))
            }
            Key::EngineLabel(name) => description.and_then(|d| d.engine_labels.get(name)).is_some_and(|v| same(v)),
        }
    }

    fn matches_address(&self, address: &str) -> bool {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        match self.value.parse::<Subnet>() {
            Ok(subnet) => parse_address(host).is_some_and(|a| subnet.contains(a)),
            Err(_) => host == self.value,
        }
    }
}

impl Key {
    fn parse(text: &str) -> Option<Self> {
        let label = |prefix: &str| {
            let name = text.get(prefix.len()..)?;
            (text[..prefix.len()].eq_ignore_ascii_case(prefix) && !name.is_empty()).then(|| name.to_owned())
        };
        match text.to_ascii_lowercase().as_str() {
            "node.id" => Some(Self::Id),
            "node.hostname" => Some(Self::Hostname),
            "node.ip" => Some(Self::Ip),
            "node.role" => Some(Self::Role),
            "node.platform.os" => Some(Self::Os),
            "node.platform.arch" => Some(Self::Arch),
            lower if lower.starts_with("node.labels.") => label("node.labels.").map(Self::NodeLabel),
            lower if lower.starts_with("engine.labels.") => label("engine.labels.").map(Self::EngineLabel),
            _ => None,
        }
    }
}

/// The constraints and platforms of a placement. Equal ones share what is found out about nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class {
    /// `None`: a constraint can't be read, so no node fits. Validation keeps this from happening.
    constraints: Option<Vec<Constraint>>,
    /// (architecture, os), lower case, empty for any
    platforms: Vec<(String, String)>,
}

/// Why a node does not belong to a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mismatch {
    Constraint,
    Platform,
}

impl Class {
    pub(crate) fn of(placement: Option<&Placement>) -> Self {
        let Some(placement) = placement else { return Self { constraints: Some(Vec::new()), platforms: Vec::new() } };
        let constraints: Result<Vec<_>, _> = placement.constraints.iter().map(|c| Constraint::parse(c)).collect();
        let mut constraints = constraints.ok();
        if let Some(list) = &mut constraints {
            list.sort();
            list.dedup();
        }
        let mut platforms: Vec<_> = placement.platforms.iter().map(normalised).collect();
        platforms.sort();
        platforms.dedup();
        Self { constraints, platforms }
    }

    /// Whether the node may run tasks of this class.
    pub(crate) fn check(&self, node: &Node) -> Result<(), Mismatch> {
        let allowed = self.constraints.as_ref().is_some_and(|list| list.iter().all(|c| c.allows(node)));
        if !allowed {
            return Err(Mismatch::Constraint);
        }
        let own = node.description.as_ref().and_then(|d| d.platform.as_ref()).map(normalised).unwrap_or_default();
        let fits = |wanted: &(String, String)| {
            (wanted.0.is_empty() || wanted.0 == own.0) && (wanted.1.is_empty() || wanted.1 == own.1)
        };
        if self.platforms.is_empty() || self.platforms.iter().any(fits) { Ok(()) } else { Err(Mismatch::Platform) }
    }
}

fn normalised(platform: &Platform) -> (String, String) {
    (architecture(&platform.architecture), platform.os.to_ascii_lowercase())
}

/// One name for each architecture: images and kernels spell the same one differently.
fn architecture(name: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "x86_64" | "x86-64" | "amd64" => "amd64".to_owned(),
        "aarch64" | "arm64" | "armv8" => "arm64".to_owned(),
        "i386" | "i686" | "386" => "386".to_owned(),
        other => other.to_owned(),
    }
}

/// The value of a spread preference's label (`node.labels.zone`) on a node; empty when it has none.
pub(crate) fn spread_value<'a>(node: &'a Node, descriptor: &str) -> &'a str {
    let value = match Key::parse(descriptor) {
        Some(Key::NodeLabel(name)) => {
            node.spec.as_ref().and_then(|s| s.annotations.as_ref()).and_then(|a| a.labels.get(&name))
        }
        Some(Key::EngineLabel(name)) => node.description.as_ref().and_then(|d| d.engine_labels.get(&name)),
        Some(Key::Hostname) => node.description.as_ref().map(|d| &d.hostname),
        Some(Key::Id) => Some(&node.id),
        _ => None,
    };
    value.map_or("", String::as_str)
}

/// Whether a spread preference names something that nodes have.
pub(crate) fn is_spread(descriptor: &str) -> bool {
    matches!(Key::parse(descriptor), Some(Key::NodeLabel(_) | Key::EngineLabel(_) | Key::Hostname | Key::Id))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use skep_proto::v1::{Annotations, NodeDescription, NodeSpec, NodeStatus};

    fn node() -> Node {
        Node {
            id: "n1".into(),
            spec: Some(NodeSpec {
                annotations: Some(Annotations {
                    labels: [("zone".into(), "A".into())].into(),
                    ..Annotations::default()
                }),
                role: Role::Manager.into(),
                ..NodeSpec::default()
            }),
            description: Some(NodeDescription {
                hostname: "host-1".into(),
                platform: Some(Platform { architecture: "x86_64".into(), os: "linux".into() }),
                engine_labels: [("disk".into(), "ssd".into())].into(),
                ..NodeDescription::default()
            }),
            status: Some(NodeStatus { address: "10.1.2.3".into(), ..NodeStatus::default() }),
            ..Node::default()
        }
    }

    #[test]
    fn constraints() {
        for (text, expected) in [
            ("node.id==n1", true),
            ("node.id != n1", false),
            ("node.hostname == HOST-1", true),
            ("node.role==manager", true),
            ("node.role!=worker", true),
            ("node.role == worker", false),
            ("node.labels.zone==a", true),
            ("node.labels.zone!=a", false),
            ("node.labels.Zone==a", false),
            ("node.labels.missing==a", false),
            ("node.labels.missing!=a", true),
            ("engine.labels.disk==ssd", true),
            ("node.platform.os==Linux", true),
            ("node.platform.arch==amd64", true),
            ("node.platform.arch==aarch64", false),
            ("node.ip==10.1.0.0/16", true),
            ("node.ip!=10.1.2.3", false),
        ] {
            assert_eq!(Constraint::parse(text).unwrap().allows(&node()), expected, "{text}");
        }
        for text in
            ["", "node.role", "node.role=manager", "role==x", "node.labels.==x", "node.id==", "node.labelsx==1", "é==1"]
        {
            assert!(Constraint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn constraints_that_no_node_could_fit() {
        for (text, fine) in [
            ("node.role==manager", true),
            ("node.role!=WORKER", true),
            ("node.role==x", false),
            ("node.ip==10.0.0.0/8", true),
            ("node.ip!=10.0.0.1", true),
            ("node.ip==here", false),
            ("node.labels.zone===a", false),
            ("node.labels.zone>==a", false),
            ("node.labels.a.b/c-d_e==x y", true),
            ("engine.labels.a b==x", false),
        ] {
            assert_eq!(Constraint::parse(text).unwrap().check(text).is_ok(), fine, "{text}");
        }
    }

    #[test]
    fn platforms() {
        let class = |list: &[(&str, &str)]| {
            let platforms = list.iter().map(|(a, o)| Platform { architecture: (*a).into(), os: (*o).into() }).collect();
            Class::of(Some(&Placement { platforms, ..Placement::default() }))
        };
        assert_eq!(class(&[]).check(&node()), Ok(()));
        assert_eq!(class(&[("amd64", "linux")]).check(&node()), Ok(()));
        assert_eq!(class(&[("", "linux")]).check(&node()), Ok(()));
        assert_eq!(class(&[("arm64", "linux"), ("amd64", "linux")]).check(&node()), Ok(()));
        assert_eq!(class(&[("arm64", "linux")]).check(&node()), Err(Mismatch::Platform));
        assert_eq!(class(&[("amd64", "windows")]).check(&node()), Err(Mismatch::Platform));
    }
}
