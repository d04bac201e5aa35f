//! The wires of a node, decided: from one versioned [`Desired`] value to everything that the kernel must show
//! ([`NodePlan`]), and from what it shows to the steps that lead there ([`Op`]).
//!
//! Pure: no socket, no clock, no file, no runtime. The driver (`skep-netdrv`) reads the kernel, calls [`plan()`] and
//! [`diff()`], and carries the steps out. It must never decide about containers, images or readiness: those arrive
//! in [`Desired`].

#![forbid(unsafe_code)]

mod build;
mod desired;
mod diff;
mod flush;
mod ledger;
mod names;
mod nft;
mod slots;
mod space;
mod subnet;

pub use build::{Config, DNS_ADDRESS, DNS_PORT, Facts, NodePlan, Planned, Planner, plan};
pub use desired::{
    Attachment, Desired, DnsConfig, Endpoint, HostPort, Network, Peer, Protocol, PublishedPort, Sandbox, Service,
    ServiceNetwork, Underlay,
};
pub use diff::{Op, Phase, Step, diff};
pub use flush::{Called, Flush, flushes};
pub use names::{Answer, NameTable};
pub use nft::{
    Base, Chain, ChainKind, Chains, Data, Elements, Family, Field, Hook, NftOp, Rule, SeenTable, Set, Table, Value,
    diff_tables, key, slots_of,
};
pub use slots::{Backend, Front, FrontKey, Slots, place};
pub use space::{
    Fdb, FdbKey, Link, LinkKind, Mac, Neighbours, PeerEnd, Place, PolicyRule, PortFlags, Route, RouteKey, Seen,
    SeenKind, SeenLink, Space,
};
pub use subnet::{ParseSubnetError, Subnet};
