//! How expressions and verdicts look on the wire: attribute numbers are those of the `enum nft_*_attributes` of each
//! expression.

use super::expr::{CtDirection, Expr, FibAddress, Reject, Verdict};
use super::value::{DATA_VALUE, DATA_VERDICT};
use crate::netlink::{Attributes, Writer};

const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

pub(super) fn write_verdict(w: &mut Writer, verdict: &Verdict) {
    w.nest(DATA_VERDICT, |w| {
        w.be32(VERDICT_CODE, verdict.code().cast_unsigned());
        if let Some(chain) = verdict.target() {
            w.text(VERDICT_CHAIN, chain);
        }
    });
}

impl Verdict {
    fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Continue => -1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }

    pub(super) fn read(attributes: Attributes<'_>) -> Option<Self> {
        let chain = || attributes.get_text(VERDICT_CHAIN);
        match attributes.get_be32(VERDICT_CODE)?.cast_signed() {
            0 => Some(Self::Drop),
            1 => Some(Self::Accept),
            -1 => Some(Self::Continue),
            -3 => chain().map(Self::Jump),
            -4 => chain().map(Self::Goto),
            -5 => Some(Self::Return),
            _ => None,
        }
    }
}

const LIST_ELEMENT: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;

impl Expr {
    /// The kernel's name of the instruction.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Payload { .. } | Self::PayloadSet { .. } => "payload",
            Self::Cmp { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Lookup { .. } | Self::Map { .. } | Self::VerdictMap { .. } => "lookup",
            Self::Nat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Numgen { .. } => "numgen",
            Self::Jhash { .. } => "hash",
            Self::Ct { .. } | Self::CtSet { .. } | Self::CtZone { .. } => "ct",
            Self::FibType { .. } => "fib",
            Self::Counter => "counter",
            Self::Reject(_) => "reject",
        }
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.nest(LIST_ELEMENT, |w| {
            w.text(EXPR_NAME, self.name());
            w.nest(EXPR_DATA, |w| self.write_data(w));
        });
    }

    fn write_data(&self, w: &mut Writer) {
        match self {
            Self::Meta { key, to } => {
                w.be32(1, to.number());
                w.be32(2, *key as u32);
            }
            Self::MetaSet { key, from } => {
                w.be32(2, *key as u32);
                w.be32(3, from.number());
            }
            Self::Payload { .. } | Self::PayloadSet { .. } => self.write_payload(w),
            Self::Cmp { reg, op, value } => {
                w.be32(1, reg.number());
                w.be32(2, *op as u32);
                w.nest(3, |w| w.attribute(DATA_VALUE, value));
            }
            Self::Bitwise { from, to, mask, xor } => {
                w.be32(1, from.number());
                w.be32(2, to.number());
                w.be32(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
                w.nest(4, |w| w.attribute(DATA_VALUE, mask));
                w.nest(5, |w| w.attribute(DATA_VALUE, xor));
            }
            Self::Immediate { to, value } => {
                w.be32(1, to.number());
                w.nest(2, |w| w.attribute(DATA_VALUE, value));
            }
            Self::Verdict(verdict) => {
                w.be32(1, VERDICT_REGISTER);
                w.nest(2, |w| write_verdict(w, verdict));
            }
            Self::Lookup { set, key, invert } => {
                w.text(1, set);
                w.be32(2, key.number());
                w.be32(5, u32::from(*invert));
            }
            Self::Map { set, key, to } => {
                w.text(1, set);
                w.be32(2, key.number());
                w.be32(3, to.number());
            }
            Self::VerdictMap { set, key } => {
                w.text(1, set);
                w.be32(2, key.number());
                w.be32(3, VERDICT_REGISTER);
            }
            _ => self.write_action(w),
        }
    }

    fn write_payload(&self, w: &mut Writer) {
        match self {
            Self::Payload { base, offset, len, to } => {
                w.be32(1, to.number());
                w.be32(2, *base as u32);
                w.be32(3, *offset);
                w.be32(4, *len);
            }
            Self::PayloadSet { base, offset, len, from, checksum } => {
                w.be32(2, *base as u32);
                w.be32(3, *offset);
                w.be32(4, *len);
                w.be32(5, from.number());
                w.be32(6, u32::from(checksum.is_some()));
                w.be32(7, checksum.map_or(0, |c| c.offset));
                w.be32(8, u32::from(checksum.is_some_and(|c| c.pseudo_header)));
            }
            _ => {}
        }
    }

    fn write_action(&self, w: &mut Writer) {
        match self {
            Self::Nat { kind, v6, address, port } => {
                w.be32(1, *kind as u32);
                w.be32(2, if *v6 { 10 } else { 2 });
                if let Some(reg) = address {
                    w.be32(3, reg.number());
                }
                if let Some(reg) = port {
                    w.be32(5, reg.number());
                }
            }
            Self::Numgen { to, kind, modulus, offset } => {
                w.be32(1, to.number());
                w.be32(2, *modulus);
                w.be32(3, *kind as u32);
                w.be32(4, *offset);
            }
            Self::Jhash { from, len, to, modulus, seed, offset } => {
                w.be32(1, from.number());
                w.be32(2, to.number());
                w.be32(3, *len);
                w.be32(4, *modulus);
                w.be32(5, *seed);
                w.be32(6, *offset);
                w.be32(7, 0);
            }
            Self::Ct { key, direction, to } => {
                w.be32(1, to.number());
                w.be32(2, *key as u32);
                if let Some(direction) = direction {
                    w.attribute(3, &[u8::from(*direction == CtDirection::Reply)]);
                }
            }
            Self::CtSet { key, from } => {
                w.be32(2, *key as u32);
                w.be32(4, from.number());
            }
            Self::CtZone { from, direction } => {
                // `NFT_CT_ZONE`.
                w.be32(2, 17);
                w.attribute(3, &[u8::from(*direction == CtDirection::Reply)]);
                w.be32(4, from.number());
            }
            Self::FibType { address, to } => {
                w.be32(1, to.number());
                w.be32(2, 3);
                w.be32(3, if *address == FibAddress::Source { 1 } else { 2 });
            }
            Self::Counter => {
                w.be64(1, 0);
                w.be64(2, 0);
            }
            Self::Reject(Reject::TcpReset) => {
                w.be32(1, 1);
                w.attribute(2, &[0]);
            }
            Self::Reject(Reject::PortUnreachable) => {
                // The family-independent code: 1 is "port unreachable".
                w.be32(1, 2);
                w.attribute(2, &[1]);
            }
            _ => {}
        }
    }
}

/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;
