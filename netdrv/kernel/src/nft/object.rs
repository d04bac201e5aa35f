//! Chains, sets and maps as they are described to be made.

use super::value::Type;

/// Type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// Decides about packets.
    Filter,
    /// Sees the first packet of each connection and may rewrite it.
    Nat,
    /// On output: the packet is routed again if its mark changed.
    Route,
}

impl ChainType {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// Where a base chain sees packets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this machine.
    Input,
    /// Through this machine.
    Forward,
    /// From this machine.
    Output,
    /// After routing.
    Postrouting,
    /// Netdev family: coming in by the link of that name.
    Ingress(String),
    /// Netdev family: leaving by the link of that name.
    Egress(String),
}

impl Hook {
    pub(super) fn number(&self) -> u32 {
        match self {
            Self::Prerouting | Self::Ingress(_) => 0,
            Self::Input | Self::Egress(_) => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// What becomes of packets that no rule of a base chain decided about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Pass.
    Accept,
    /// Drop.
    Drop,
}

/// A chain to be made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Its name, unique in its table.
    pub name: String,
    /// For a base chain: type, hook, priority (lower is earlier; -300 raw, -150 mangle, -100 dnat, 0 filter, 100 snat)
    /// and policy. `None`: a chain that other chains jump to.
    pub base: Option<(ChainType, Hook, i32, Policy)>,
}

impl Chain {
    /// A base chain that lets pass what its rules don't decide about.
    pub fn base(name: impl Into<String>, kind: ChainType, hook: Hook, priority: i32) -> Self {
        Self { name: name.into(), base: Some((kind, hook, priority, Policy::Accept)) }
    }

    /// A chain to jump to.
    pub fn regular(name: impl Into<String>) -> Self {
        Self { name: name.into(), base: None }
    }
}

/// What the elements of a map yield.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Data {
    /// Values of these types, one after the other.
    Values(Vec<Type>),
    /// Verdicts.
    Verdict,
}

/// A set or a map to be made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Set {
    /// Its name, unique in its table.
    pub name: String,
    /// Types of the key's fields.
    pub key: Vec<Type>,
    /// What a map yields; `None` is a set.
    pub data: Option<Data>,
    /// Most elements that it may hold; `None` is no bound but memory.
    pub size: Option<u32>,
}

impl Set {
    /// A set of keys.
    pub fn keys(name: impl Into<String>, key: &[Type]) -> Self {
        Self { name: name.into(), key: key.to_vec(), data: None, size: None }
    }

    /// A map to values.
    pub fn map(name: impl Into<String>, key: &[Type], data: &[Type]) -> Self {
        Self { name: name.into(), key: key.to_vec(), data: Some(Data::Values(data.to_vec())), size: None }
    }

    /// A map to verdicts.
    pub fn verdicts(name: impl Into<String>, key: &[Type]) -> Self {
        Self { name: name.into(), key: key.to_vec(), data: Some(Data::Verdict), size: None }
    }
}
