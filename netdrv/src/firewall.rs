//! From rules named by intention to the kernel's expressions, and from the plan's messages to one batch.
//!
//! Registers: a concatenated key is loaded into consecutive ones from 0 on, and what a map yields takes their place.

use std::net::Ipv4Addr;

use skep_net_kernel::nft::{
    self, Base, Batch, CmpOp, CtDirection, CtKey, Element, ElementData, Expr, Meta, NatKind, Numgen, Reg, Type,
    Verdict, ct_state, ct_status,
};
use skep_net_plan::{ChainKind, Data, Family, Field, Hook, NftOp, Rule, Subnet, Value};

const LOOPBACK: Subnet = Subnet::new(Ipv4Addr::new(127, 0, 0, 0), 8);
const DNS: u16 = 53;
/// EtherType of ARP.
const ARP: [u8; 2] = [0x08, 0x06];
/// First half of every endpoint's MAC.
const OUI: [u8; 2] = [0x02, 0x42];

/// The messages as one batch.
pub(crate) fn batch(ops: &[NftOp]) -> Batch {
    let mut batch = Batch::new();
    for op in ops {
        add(&mut batch, op);
    }
    batch
}

/// A transaction that changes nothing and succeeds only where frames on bridges can be filtered.
pub(crate) fn probe_bridge_filter() -> Batch {
    let table = nft::Table::new(nft::Family::Bridge, format!("skep-probe-{}", std::process::id()));
    let mut batch = Batch::new();
    batch.create_table(&table);
    batch.add_chain(&table, &nft::Chain::base("probe", nft::ChainType::Filter, nft::Hook::Prerouting, 0));
    batch.delete_table(&table);
    batch
}

/// The table of that family and name.
pub(crate) fn table(id: &(Family, String)) -> nft::Table {
    let family = match id.0 {
        Family::Ip => nft::Family::Ip,
        Family::Inet => nft::Family::Inet,
        Family::Netdev => nft::Family::Netdev,
        Family::Bridge => nft::Family::Bridge,
    };
    nft::Table::new(family, id.1.clone())
}

/// The plan's value of a found element; `None` for a verdict that we never use.
pub(crate) fn value(data: Option<ElementData>) -> Option<Value> {
    match data {
        None => Some(Value::None),
        Some(ElementData::Value(v)) => Some(Value::Bytes(v.bytes().to_vec())),
        Some(ElementData::Verdict(Verdict::Goto(chain))) => Some(Value::Goto(chain)),
        Some(ElementData::Verdict(_)) => None,
    }
}

fn add(batch: &mut Batch, op: &NftOp) {
    match op {
        NftOp::AddTable { table: t } => batch.add_table(&table(t)),
        NftOp::DelTable { table: t } => batch.delete_table(&table(t)),
        NftOp::AddChain { table: t, chain, base } => batch.add_chain(&table(t), &chain_of(chain, base.as_ref())),
        NftOp::FlushChain { table: t, chain } => batch.flush_chain(&table(t), chain),
        NftOp::DelChain { table: t, chain } => batch.delete_chain(&table(t), chain),
        NftOp::AddRule { table: t, chain, rule } => {
            batch.add_rule(&table(t), chain, &expressions(rule).comment(rule.tag()))
        }
        NftOp::AddSet { table: t, set, key, data } => {
            let data = match data {
                Data::None => None,
                Data::Value(fields) => Some(nft::Data::Values(types(fields))),
                Data::Verdict => Some(nft::Data::Verdict),
            };
            batch.add_set(&table(t), &nft::Set { name: set.clone(), key: types(key), data, size: None })
        }
        NftOp::DelSet { table: t, set } => batch.delete_set(&table(t), set),
        NftOp::AddElements { table: t, set, elements } => {
            let elements: Vec<_> = elements.iter().map(|(key, value)| element(key, value)).collect();
            batch.add_elements(&table(t), set, &elements)
        }
        NftOp::DelElements { table: t, set, elements } => {
            let elements: Vec<_> = elements.iter().map(|(key, _)| element(key, &Value::None)).collect();
            batch.delete_elements(&table(t), set, &elements)
        }
    };
}

fn types(fields: &[Field]) -> Vec<Type> {
    let one = |field: &Field| match field {
        Field::Proto => Type::Proto,
        Field::Port => Type::Port,
        Field::Ipv4 => Type::Ipv4,
        Field::Slot => Type::Mark,
    };
    fields.iter().map(one).collect()
}

fn element(key: &[u8], value: &Value) -> Element {
    let data = match value {
        Value::None => None,
        Value::Bytes(bytes) => Some(ElementData::Value(nft::Value::raw(bytes.as_slice()))),
        Value::Goto(chain) => Some(ElementData::Verdict(Verdict::Goto(chain.clone()))),
    };
    Element { key: nft::Value::raw(key), data }
}

fn chain_of(name: &str, base: Option<&skep_net_plan::Base>) -> nft::Chain {
    let Some(base) = base else { return nft::Chain::regular(name) };
    let kind = match base.kind {
        ChainKind::Nat => nft::ChainType::Nat,
        ChainKind::Filter => nft::ChainType::Filter,
        ChainKind::Route => nft::ChainType::Route,
    };
    let hook = match base.hook {
        Hook::Prerouting => nft::Hook::Prerouting,
        Hook::Input => nft::Hook::Input,
        Hook::Forward => nft::Hook::Forward,
        Hook::Output => nft::Hook::Output,
        Hook::Postrouting => nft::Hook::Postrouting,
        Hook::Egress => nft::Hook::Egress(base.device.clone().unwrap_or_default()),
    };
    nft::Chain::base(name, kind, hook, base.priority)
}

fn expressions(rule: &Rule) -> nft::Rule {
    let new = nft::Rule::new;
    match rule {
        Rule::HostMesh => proto_port(new().to_local_address()).map("mesh", Reg(0), Reg(0)).dnat(Reg(0), None),
        Rule::HostPorts => {
            proto_port(new().to_local_address()).map("hostports", Reg(0), Reg(0)).dnat(Reg(0), Some(Reg(1)))
        }
        Rule::LoopbackSource { out, to } => snat(new().oif_name(out).ip_source(LOOPBACK.addr, LOOPBACK.prefix), *to),
        Rule::GatewaySource { out, from, to } => snat(new().oif_name(out).ip_source(from.addr, from.prefix), *to),
        Rule::BridgeHairpin { bridge, from } => new()
            .oif_name(bridge)
            .ip_source(from.addr, from.prefix)
            .ct_bits(CtKey::Status, ct_status::DST_NAT)
            .masquerade(),
        Rule::Egress { bridge, from } => {
            new().ip_source(from.addr, from.prefix).meta(Meta::OifName, CmpOp::Ne, name(bridge)).masquerade()
        }
        Rule::GatewayOnly { ports, gateway } => {
            let link = |offset, len| Expr::Payload { base: Base::Link, offset, len, to: Reg(0) };
            let differs = |value: &[u8]| Expr::Cmp { reg: Reg(0), op: CmpOp::Ne, value: value.to_vec() };
            // A comparison that is shorter than a name compares the name's first letters.
            let ours = new().meta(Meta::IifName, CmpOp::Eq, ports.as_bytes().to_vec());
            let others = ours.expr(link(12, 2)).expr(differs(&ARP)).expr(link(0, 6)).expr(differs(&gateway.0));
            others.verdict(Verdict::Drop)
        }
        Rule::DropLoopback { link } => {
            new().iif_name(link).ip_destination(LOOPBACK.addr, LOOPBACK.prefix).verdict(Verdict::Drop)
        }
        Rule::Resolver { to, port } => new()
            .ip_destination(*to, 32)
            .destination_port(DNS)
            .load(Reg(0), to.octets())
            .load(Reg(1), port.to_be_bytes())
            .dnat(Reg(0), Some(Reg(1))),
        Rule::AcceptAnswers { out } => new().oif_name(out).ct_direction(true).verdict(Verdict::Accept),
        Rule::AcceptTranslated { out } => {
            new().oif_name(out).ct_bits(CtKey::Status, ct_status::DST_NAT).verdict(Verdict::Accept)
        }
        Rule::DropOut { out } => new().oif_name(out).verdict(Verdict::Drop),
        Rule::SourceOf { link, keep } => new()
            .oif_name(link)
            .load_ip_source(Reg(0))
            .expr(Expr::Cmp { reg: Reg(0), op: CmpOp::Ne, value: keep.octets().to_vec() })
            .masquerade(),
        _ => mesh(rule),
    }
}

/// The rules of balancers, and those by which containers answer them.
fn mesh(rule: &Rule) -> nft::Rule {
    let new = nft::Rule::new;
    let next = |to, n: u32| Expr::Numgen { to, kind: Numgen::Incremental, modulus: n.max(1), offset: 0 };
    match rule {
        Rule::PortFront { link } => proto_port(new().iif_name(link)).verdict_map("ports", Reg(0)),
        Rule::VipFront { link } => new().iif_name(link).load_ip_destination(Reg(0)).verdict_map("vips", Reg(0)),
        Rule::PickPort { n } => {
            proto_port(new()).expr(next(Reg(2), *n)).map("port-slots", Reg(0), Reg(0)).dnat(Reg(0), Some(Reg(1)))
        }
        Rule::PickVip { n } => {
            new().load_ip_destination(Reg(0)).expr(next(Reg(1), *n)).map("vip-slots", Reg(0), Reg(0)).dnat(Reg(0), None)
        }
        Rule::Hairpin { link } => new()
            .oif_name(link)
            .load_ip_source(Reg(0))
            .load_ip_destination(Reg(1))
            .in_set("hairpin", Reg(0))
            .masquerade(),
        Rule::AcceptReplies { from, to } => {
            new().iif_name(from).oif_name(to).ct_direction(true).verdict(Verdict::Accept)
        }
        Rule::DropForward { from, to } => new().iif_name(from).oif_name(to).verdict(Verdict::Drop),
        Rule::ZoneFromMac { link } => from_endpoint(new().iif_name(link))
            .expr(Expr::Payload { base: Base::Link, offset: 10, len: 2, to: Reg(0) })
            .expr(Expr::CtZone { from: Reg(0), direction: CtDirection::Original }),
        Rule::MarkFromMac { link } => {
            from_endpoint(new().iif_name(link).ct_direction(false).ct_bits(CtKey::State, ct_state::NEW))
                .expr(Expr::Payload { base: Base::Link, offset: 8, len: 4, to: Reg(0) })
                .expr(Expr::CtSet { key: CtKey::Mark, from: Reg(0) })
        }
        Rule::MarkReply => new()
            .ct_direction(true)
            .expr(Expr::Ct { key: CtKey::Mark, direction: None, to: Reg(0) })
            .expr(Expr::Cmp { reg: Reg(0), op: CmpOp::Ne, value: vec![0; 4] })
            .expr(Expr::MetaSet { key: Meta::Mark, from: Reg(0) }),
        Rule::MacFromMark => new().meta(Meta::Mark, CmpOp::Ne, [0; 4]).expr(Expr::PayloadSet {
            base: Base::Link,
            offset: 2,
            len: 4,
            from: Reg(0),
            checksum: None,
        }),
        // All others are in `expressions`.
        _ => new(),
    }
}

/// Loads protocol and destination port: the first fields of every port's key.
fn proto_port(rule: nft::Rule) -> nft::Rule {
    rule.load_l4proto(Reg(0)).load_destination_port(Reg(1))
}

/// Matches a source MAC in 02:42.
fn from_endpoint(rule: nft::Rule) -> nft::Rule {
    rule.expr(Expr::Payload { base: Base::Link, offset: 6, len: 2, to: Reg(0) }).expr(Expr::Cmp {
        reg: Reg(0),
        op: CmpOp::Eq,
        value: OUI.to_vec(),
    })
}

fn snat(rule: nft::Rule, to: Ipv4Addr) -> nft::Rule {
    rule.load(Reg(0), to.octets()).expr(Expr::Nat { kind: NatKind::Snat, v6: false, address: Some(Reg(0)), port: None })
}

/// A link's name as the kernel compares it.
fn name(link: &str) -> Vec<u8> {
    let mut bytes = link.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}
