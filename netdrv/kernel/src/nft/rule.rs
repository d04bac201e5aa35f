//! Building rules: the matches and actions that the driver's rules are made of, each a short run of expressions.

use std::net::Ipv4Addr;

use super::expr::{ADDRESS_LOCAL, Base, CmpOp, CtKey, Expr, FibAddress, Meta, NatKind, Reg, Verdict};
use super::value::if_name;

/// A rule: its expressions in order, and a comment by which the owner knows it again.
///
/// The methods that add a match use register 0 and those that follow as scratch; expressions of the caller's own that have to
/// survive them belong into higher registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    pub(super) expressions: Vec<Expr>,
    pub(super) comment: Option<String>,
}

const SCRATCH: Reg = Reg(0);

impl Rule {
    /// A rule without expressions: it matches everything and does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its expressions.
    pub fn expressions(&self) -> &[Expr] {
        &self.expressions
    }

    /// Sets the comment, at most 127 bytes.
    #[must_use]
    pub fn comment(mut self, text: impl Into<String>) -> Self {
        self.comment = Some(text.into());
        self
    }

    /// Adds an expression.
    #[must_use]
    pub fn expr(mut self, expr: Expr) -> Self {
        self.expressions.push(expr);
        self
    }

    /// Adds a comparison of a packet's property with `value`.
    #[must_use]
    pub fn meta(self, key: Meta, op: CmpOp, value: impl Into<Vec<u8>>) -> Self {
        self.expr(Expr::Meta { key, to: SCRATCH }).expr(Expr::Cmp { reg: SCRATCH, op, value: value.into() })
    }

    /// Matches packets that came in by the link of that name.
    #[must_use]
    pub fn iif_name(self, name: &str) -> Self {
        self.meta(Meta::IifName, CmpOp::Eq, if_name(name))
    }

    /// Matches packets that leave by the link of that name.
    #[must_use]
    pub fn oif_name(self, name: &str) -> Self {
        self.meta(Meta::OifName, CmpOp::Eq, if_name(name))
    }

    /// Matches a transport protocol: 6 is TCP, 17 UDP, 132 SCTP.
    #[must_use]
    pub fn l4proto(self, protocol: u8) -> Self {
        self.meta(Meta::L4Proto, CmpOp::Eq, [protocol])
    }

    /// Matches an IPv4 source inside `address/prefix`; in tables of the ip family.
    #[must_use]
    pub fn ip_source(self, address: Ipv4Addr, prefix: u8) -> Self {
        self.ip_address(12, address, prefix)
    }

    /// Matches an IPv4 destination inside `address/prefix`; in tables of the ip family.
    #[must_use]
    pub fn ip_destination(self, address: Ipv4Addr, prefix: u8) -> Self {
        self.ip_address(16, address, prefix)
    }

    fn ip_address(self, offset: u32, address: Ipv4Addr, prefix: u8) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
        let network = (u32::from(address) & mask).to_be_bytes();
        let loaded = self.expr(Expr::Payload { base: Base::Network, offset, len: 4, to: SCRATCH });
        let masked = match mask {
            u32::MAX => loaded,
            mask => loaded.expr(Expr::Bitwise {
                from: SCRATCH,
                to: SCRATCH,
                mask: mask.to_be_bytes().into(),
                xor: vec![0; 4],
            }),
        };
        masked.expr(Expr::Cmp { reg: SCRATCH, op: CmpOp::Eq, value: network.into() })
    }

    /// Matches a transport destination port.
    #[must_use]
    pub fn destination_port(self, port: u16) -> Self {
        self.load_destination_port(SCRATCH).expr(Expr::Cmp {
            reg: SCRATCH,
            op: CmpOp::Eq,
            value: port.to_be_bytes().into(),
        })
    }

    /// Matches packets to an address of this namespace.
    #[must_use]
    pub fn to_local_address(self) -> Self {
        self.expr(Expr::FibType { address: FibAddress::Destination, to: SCRATCH }).expr(Expr::Cmp {
            reg: SCRATCH,
            op: CmpOp::Eq,
            value: ADDRESS_LOCAL.to_ne_bytes().into(),
        })
    }

    /// Matches if any of these bits of a connection's 4-byte property is set.
    #[must_use]
    pub fn ct_bits(self, key: CtKey, bits: u32) -> Self {
        let mask = bits.to_ne_bytes().into();
        self.expr(Expr::Ct { key, direction: None, to: SCRATCH })
            .expr(Expr::Bitwise { from: SCRATCH, to: SCRATCH, mask, xor: vec![0; 4] })
            .expr(Expr::Cmp { reg: SCRATCH, op: CmpOp::Ne, value: vec![0; 4] })
    }

    /// Matches packets that go the way of a connection's first packet, or back.
    #[must_use]
    pub fn ct_direction(self, reply: bool) -> Self {
        self.expr(Expr::Ct { key: CtKey::Direction, direction: None, to: SCRATCH }).expr(Expr::Cmp {
            reg: SCRATCH,
            op: CmpOp::Eq,
            value: vec![u8::from(reply)],
        })
    }

    /// Loads the transport protocol (1 byte).
    #[must_use]
    pub fn load_l4proto(self, to: Reg) -> Self {
        self.expr(Expr::Meta { key: Meta::L4Proto, to })
    }

    /// Loads the transport destination port (2 bytes).
    #[must_use]
    pub fn load_destination_port(self, to: Reg) -> Self {
        self.expr(Expr::Payload { base: Base::Transport, offset: 2, len: 2, to })
    }

    /// Loads the IPv4 source (4 bytes); in tables of the ip family.
    #[must_use]
    pub fn load_ip_source(self, to: Reg) -> Self {
        self.expr(Expr::Payload { base: Base::Network, offset: 12, len: 4, to })
    }

    /// Loads the IPv4 destination (4 bytes); in tables of the ip family.
    #[must_use]
    pub fn load_ip_destination(self, to: Reg) -> Self {
        self.expr(Expr::Payload { base: Base::Network, offset: 16, len: 4, to })
    }

    /// Loads a constant.
    #[must_use]
    pub fn load(self, to: Reg, value: impl Into<Vec<u8>>) -> Self {
        self.expr(Expr::Immediate { to, value: value.into() })
    }

    /// Goes on if the key is in the set.
    #[must_use]
    pub fn in_set(self, set: &str, key: Reg) -> Self {
        self.expr(Expr::Lookup { set: set.to_owned(), key, invert: false })
    }

    /// Goes on if the key is in the map, and loads what it yields.
    #[must_use]
    pub fn map(self, set: &str, key: Reg, to: Reg) -> Self {
        self.expr(Expr::Map { set: set.to_owned(), key, to })
    }

    /// Ends with the verdict that the map yields.
    #[must_use]
    pub fn verdict_map(self, set: &str, key: Reg) -> Self {
        self.expr(Expr::VerdictMap { set: set.to_owned(), key })
    }

    /// Rewrites the IPv4 destination to the address, and where given the port, in registers.
    #[must_use]
    pub fn dnat(self, address: Reg, port: Option<Reg>) -> Self {
        self.expr(Expr::Nat { kind: NatKind::Dnat, v6: false, address: Some(address), port })
    }

    /// Rewrites the source to the address of the link that the packet leaves by.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.expr(Expr::Masquerade)
    }

    /// Counts packets and bytes.
    #[must_use]
    pub fn counter(self) -> Self {
        self.expr(Expr::Counter)
    }

    /// Ends with a verdict.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.expr(Expr::Verdict(verdict))
    }
}
