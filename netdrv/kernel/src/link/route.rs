//! Routes and the rules that choose a routing table.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::address::family;
use super::{Handle, IpNet, Result};

/// The routing table that is used unless a rule says otherwise.
pub const TABLE_MAIN: u32 = 254;
/// The routing table of the kernel's own addresses.
pub const TABLE_LOCAL: u32 = 255;

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Where to; [`IpNet::ALL_V4`] for a default route.
    pub destination: IpNet,
    /// The next hop; `None` for what is on the link itself.
    pub via: Option<IpAddr>,
    /// Index of the link to leave by.
    pub device: Option<u32>,
    /// Routing table.
    pub table: u32,
    /// The next hop is on the link although no address of the link says so.
    pub onlink: bool,
    /// How far the destination is.
    pub scope: Scope,
    /// Source address of packets whose sender did not choose one.
    pub source: Option<IpAddr>,
    /// Kind of route.
    pub kind: RouteKind,
    /// Preference among routes to the same destination; lower wins, `None` is the kernel's default.
    pub metric: Option<u32>,
}

impl Route {
    /// A unicast route to `destination` in the main table, to be refined by the caller.
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination,
            via: None,
            device: None,
            table: TABLE_MAIN,
            onlink: false,
            scope: Scope::Universe,
            source: None,
            kind: RouteKind::Unicast,
            metric: None,
        }
    }
}

/// How far a destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Behind a next hop.
    Universe,
    /// On the link.
    Link,
    /// On this machine.
    Host,
    /// Another number.
    Other(u8),
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// Sends to one destination.
    Unicast,
    /// Delivers on this machine.
    Local,
    /// Drops silently.
    Blackhole,
    /// Refuses with "unreachable".
    Unreachable,
    /// Another kernel number.
    Other(u8),
}

/// A rule that sends packets to a routing table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// For IPv6 instead of IPv4.
    pub v6: bool,
    /// The rule holds for packets that do *not* match.
    pub invert: bool,
    /// Mark and mask that a packet has to match; a mark of 0 with a full mask is "no mark".
    pub mark: Option<(u32, u32)>,
    /// Name of the link that the packet came in by.
    pub input: Option<String>,
    /// Source of the packet.
    pub source: Option<IpNet>,
    /// Destination of the packet.
    pub destination: Option<IpNet>,
    /// The table to look into.
    pub table: u32,
    /// Order among the rules; lower comes first. `None` on adding puts it before all but the local table's.
    pub priority: Option<u32>,
}

impl Rule {
    /// A rule for every IPv4 packet, to be refined by the caller.
    pub fn to(table: u32) -> Self {
        Self {
            v6: false,
            invert: false,
            mark: None,
            input: None,
            source: None,
            destination: None,
            table,
            priority: None,
        }
    }
}

impl Handle {
    /// Adds a route; one of the same destination, table and metric is an error.
    pub async fn add_route(&self, route: &Route) -> Result<()> {
        let what = || format!("add route to {} in table {}", route.destination, route.table);
        self.act(RouteNetlinkMessage::NewRoute(route_message(route)), NLM_F_CREATE | NLM_F_EXCL, what).await
    }

    /// Adds a route in place of one of the same destination, table and metric.
    pub async fn replace_route(&self, route: &Route) -> Result<()> {
        let what = || format!("replace route to {} in table {}", route.destination, route.table);
        self.act(RouteNetlinkMessage::NewRoute(route_message(route)), NLM_F_CREATE | NLM_F_REPLACE, what).await
    }

    /// Deletes a route.
    pub async fn delete_route(&self, route: &Route) -> Result<()> {
        let what = || format!("delete route to {} in table {}", route.destination, route.table);
        self.act(RouteNetlinkMessage::DelRoute(route_message(route)), 0, what).await
    }

    /// All routes of one table; `None` is all tables. Multipath routes appear without next hop and link.
    pub async fn routes(&self, table: Option<u32>) -> Result<Vec<Route>> {
        let get = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let keep = |message| pick_route(message).filter(|route| table.is_none_or(|t| t == route.table));
        self.query(get, true, || "list routes".to_owned(), keep).await
    }

    /// Adds a rule; the same rule twice is an error.
    pub async fn add_rule(&self, rule: &Rule) -> Result<()> {
        let what = || format!("add rule for table {}", rule.table);
        self.act(RouteNetlinkMessage::NewRule(rule_message(rule)), NLM_F_CREATE | NLM_F_EXCL, what).await
    }

    /// Deletes a rule.
    pub async fn delete_rule(&self, rule: &Rule) -> Result<()> {
        let what = || format!("delete rule for table {}", rule.table);
        self.act(RouteNetlinkMessage::DelRule(rule_message(rule)), 0, what).await
    }

    /// All IPv4 and IPv6 rules that lead to a table.
    pub async fn rules(&self) -> Result<Vec<Rule>> {
        let get = RouteNetlinkMessage::GetRule(RuleMessage::default());
        self.query(get, true, || "list rules".to_owned(), pick_rule).await
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.destination.address);
    header.destination_prefix_length = route.destination.prefix;
    header.protocol = RouteProtocol::Static;
    header.scope = match route.scope {
        Scope::Universe => RouteScope::Universe,
        Scope::Link => RouteScope::Link,
        Scope::Host => RouteScope::Host,
        Scope::Other(n) => RouteScope::Other(n),
    };
    header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Other(n) => RouteType::Other(n),
    };
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    if route.destination.prefix > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.address.into()));
    }
    let attributes = [
        Some(RouteAttribute::Table(route.table)),
        route.via.map(|a| RouteAttribute::Gateway(a.into())),
        route.device.map(RouteAttribute::Oif),
        route.source.map(|a| RouteAttribute::PrefSource(a.into())),
        route.metric.map(RouteAttribute::Priority),
    ];
    message.attributes.extend(attributes.into_iter().flatten());
    message
}

fn pick_route(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    let header = &message.header;
    let all = match header.address_family {
        AddressFamily::Inet => IpNet::ALL_V4,
        AddressFamily::Inet6 => IpNet::ALL_V6,
        _ => return None,
    };
    let mut route = Route::to(IpNet { prefix: header.destination_prefix_length, ..all });
    route.table = header.table.into();
    route.onlink = header.flags.contains(RouteFlags::Onlink);
    route.scope = match header.scope {
        RouteScope::Universe => Scope::Universe,
        RouteScope::Link => Scope::Link,
        RouteScope::Host => Scope::Host,
        other => Scope::Other(other.into()),
    };
    route.kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        other => RouteKind::Other(other.into()),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination.address = ip(address)?,
            RouteAttribute::Gateway(address) => route.via = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(index) => route.device = Some(*index),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            _ => {}
        }
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.action = RuleAction::ToTable;
    if rule.invert {
        message.header.flags |= RuleFlags::Invert;
    }
    message.attributes.push(RuleAttribute::Table(rule.table));
    if let Some((mark, mask)) = rule.mark {
        message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
    }
    if let Some(net) = rule.source {
        message.header.src_len = net.prefix;
        message.attributes.push(RuleAttribute::Source(net.address));
    }
    if let Some(net) = rule.destination {
        message.header.dst_len = net.prefix;
        message.attributes.push(RuleAttribute::Destination(net.address));
    }
    message.attributes.extend(rule.input.clone().map(RuleAttribute::Iifname));
    message.attributes.extend(rule.priority.map(RuleAttribute::Priority));
    message
}

fn pick_rule(message: RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = message else {
        return None;
    };
    let header = &message.header;
    if header.action != RuleAction::ToTable {
        return None;
    }
    let mut rule = Rule::to(header.table.into());
    rule.v6 = match header.family {
        AddressFamily::Inet => false,
        AddressFamily::Inet6 => true,
        _ => return None,
    };
    rule.invert = header.flags.contains(RuleFlags::Invert);
    // The kernel leaves the priority out when it is 0, and a mark of 0 when only the mask says that it matters.
    rule.priority = Some(0);
    let (mut mark, mut mask) = (None, None);
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Table(table) => rule.table = table,
            RuleAttribute::FwMark(v) => mark = Some(v),
            RuleAttribute::FwMask(v) => mask = Some(v),
            RuleAttribute::Iifname(name) => rule.input = Some(name),
            RuleAttribute::Priority(v) => rule.priority = Some(v),
            RuleAttribute::Source(address) => rule.source = Some(IpNet::new(address, header.src_len)),
            RuleAttribute::Destination(address) => rule.destination = Some(IpNet::new(address, header.dst_len)),
            _ => {}
        }
    }
    if mark.is_some() || mask.is_some() {
        rule.mark = Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX)));
    }
    Some(rule)
}
