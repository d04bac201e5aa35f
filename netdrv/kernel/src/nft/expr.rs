//! Expressions: the instructions of a rule, as plain values.

/// A 32-bit register, 0 to 15. A value longer than four bytes fills the registers that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reg(pub u8);

impl Reg {
    /// Number of registers.
    pub const COUNT: u8 = 16;

    /// `NFT_REG32_00` and the following. A number beyond the last is one that the kernel refuses.
    pub(super) fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

/// What becomes of the packet, or where evaluation goes on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Lets the packet pass this hook.
    Accept,
    /// Drops the packet.
    Drop,
    /// Goes on with the next rule.
    Continue,
    /// Returns to the chain that jumped here.
    Return,
    /// Evaluates another chain, then comes back.
    Jump(String),
    /// Evaluates another chain and does not come back.
    Goto(String),
}

impl Verdict {
    /// The chain that it names.
    pub fn target(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            _ => None,
        }
    }
}

/// Properties of a packet that are not in its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Meta {
    /// Link-layer protocol, 2 bytes in network order.
    Protocol = 1,
    /// Mark, 4 bytes in the byte order of the machine.
    Mark = 3,
    /// Index of the link that it came in by, 4 bytes in the byte order of the machine.
    Iif = 4,
    /// Index of the link that it leaves by.
    Oif = 5,
    /// Name of the link that it came in by, 16 bytes.
    IifName = 6,
    /// Name of the link that it leaves by.
    OifName = 7,
    /// Kind of the link that it came in by, 2 bytes in the byte order of the machine; 1 is Ethernet.
    IifType = 8,
    /// Network protocol, 1 byte: 2 is IPv4, 10 IPv6.
    NfProto = 15,
    /// Transport protocol, 1 byte.
    L4Proto = 16,
}

/// Where an offset into a packet counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Base {
    /// The Ethernet header.
    Link = 0,
    /// The IP header.
    Network = 1,
    /// The TCP, UDP or SCTP header.
    Transport = 2,
}

/// Which checksum a write into a packet has to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum {
    /// Offset of the 16-bit internet checksum from the same base.
    pub offset: u32,
    /// The write changes addresses that the transport's checksum covers too.
    pub pseudo_header: bool,
}

/// How a register is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CmpOp {
    /// Equal.
    Eq = 0,
    /// Not equal.
    Ne = 1,
    /// Less, as bytes.
    Lt = 2,
    /// Less or equal, as bytes.
    Le = 3,
    /// Greater, as bytes.
    Gt = 4,
    /// Greater or equal, as bytes.
    Ge = 5,
}

/// Which end of a connection is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NatKind {
    /// The source.
    Snat = 0,
    /// The destination.
    Dnat = 1,
}

/// How `numgen` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Numgen {
    /// One after the other.
    Incremental = 0,
    /// At random.
    Random = 1,
}

/// Properties of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CtKey {
    /// State of the packet ([`super::ct_state`]), 4 bytes in the byte order of the machine.
    State = 0,
    /// Direction of the packet, 1 byte: 0 is original, 1 reply.
    Direction = 1,
    /// Status of the connection ([`super::ct_status`]), 4 bytes in the byte order of the machine.
    Status = 2,
    /// Mark of the connection, 4 bytes in the byte order of the machine.
    Mark = 3,
    /// Transport destination port of a direction, 2 bytes.
    ProtoDst = 12,
    /// IPv4 source of a direction, 4 bytes.
    SrcIp = 19,
    /// IPv4 destination of a direction, 4 bytes.
    DstIp = 20,
}

/// A direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CtDirection {
    /// As the first packet went.
    Original,
    /// The way back.
    Reply,
}

/// Which address of a packet the routing table is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FibAddress {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    /// With a TCP reset; the rule has to match TCP before.
    TcpReset,
    /// With an ICMP or ICMPv6 "port unreachable".
    PortUnreachable,
}

/// One instruction of a rule. Instructions run in order; the first that does not match ends the rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expr {
    /// Loads a property of the packet.
    Meta {
        /// Which.
        key: Meta,
        /// Where to.
        to: Reg,
    },
    /// Sets a property of the packet (the mark).
    MetaSet {
        /// Which.
        key: Meta,
        /// Where from.
        from: Reg,
    },
    /// Loads bytes of the packet.
    Payload {
        /// Where the offset counts from.
        base: Base,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        len: u32,
        /// Where to.
        to: Reg,
    },
    /// Writes bytes into the packet.
    PayloadSet {
        /// Where the offset counts from.
        base: Base,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        len: u32,
        /// Where from.
        from: Reg,
        /// Checksum to mend; the link header has none.
        checksum: Option<Checksum>,
    },
    /// Goes on if the comparison holds.
    Cmp {
        /// What is compared.
        reg: Reg,
        /// How.
        op: CmpOp,
        /// With what.
        value: Vec<u8>,
    },
    /// `to = (from & mask) ^ xor`.
    Bitwise {
        /// Where from.
        from: Reg,
        /// Where to.
        to: Reg,
        /// As long as the value.
        mask: Vec<u8>,
        /// As long as the value.
        xor: Vec<u8>,
    },
    /// Loads a constant.
    Immediate {
        /// Where to.
        to: Reg,
        /// The constant.
        value: Vec<u8>,
    },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Goes on if the key is in a set (or, inverted, is not).
    Lookup {
        /// Name of the set.
        set: String,
        /// First register of the key.
        key: Reg,
        /// Go on if the key is absent.
        invert: bool,
    },
    /// Goes on if the key is in a map, and loads what the map yields.
    Map {
        /// Name of the map.
        set: String,
        /// First register of the key.
        key: Reg,
        /// First register of the data.
        to: Reg,
    },
    /// Ends the rule with the verdict that a map yields, if the key is in it.
    VerdictMap {
        /// Name of the map.
        set: String,
        /// First register of the key.
        key: Reg,
    },
    /// Rewrites one end of the connection; in chains of the nat type.
    Nat {
        /// Which end.
        kind: NatKind,
        /// For IPv6 instead of IPv4.
        v6: bool,
        /// Register of the new address.
        address: Option<Reg>,
        /// Register of the new port.
        port: Option<Reg>,
    },
    /// Rewrites the source to the address of the link that the packet leaves by.
    Masquerade,
    /// Loads the next of the numbers `offset .. offset + modulus`.
    Numgen {
        /// Where to; 4 bytes in the byte order of the machine.
        to: Reg,
        /// How to count.
        kind: Numgen,
        /// How many numbers.
        modulus: u32,
        /// The first.
        offset: u32,
    },
    /// Loads a hash of registers, in `offset .. offset + modulus`.
    Jhash {
        /// First register that is hashed.
        from: Reg,
        /// How many bytes of them.
        len: u32,
        /// Where to; 4 bytes in the byte order of the machine.
        to: Reg,
        /// How many numbers, at least 1.
        modulus: u32,
        /// Changes the hash.
        seed: u32,
        /// The first.
        offset: u32,
    },
    /// Loads a property of the connection.
    Ct {
        /// Which.
        key: CtKey,
        /// Which direction's, for addresses and ports.
        direction: Option<CtDirection>,
        /// Where to.
        to: Reg,
    },
    /// Sets a property of the connection (the mark).
    CtSet {
        /// Which.
        key: CtKey,
        /// Where from.
        from: Reg,
    },
    /// Puts the connection of the packet into a zone, in one direction only; before connection tracking (raw). Equal
    /// connections of different zones are told apart in that direction.
    CtZone {
        /// Where from; 2 bytes.
        from: Reg,
        /// Which direction.
        direction: CtDirection,
    },
    /// Loads the kind of an address by the routing table: 4 bytes in the byte order of the machine, 1 unicast, 2 local,
    /// 3 broadcast.
    FibType {
        /// Which address.
        address: FibAddress,
        /// Where to.
        to: Reg,
    },
    /// Counts packets and bytes.
    Counter,
    /// Refuses the packet and tells the sender.
    Reject(Reject),
}

/// `RTN_LOCAL`, as [`Expr::FibType`] yields it for an address of this machine.
pub(super) const ADDRESS_LOCAL: u32 = 2;
