//! Keys and data of sets and maps, and the elements made of them.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::encode::write_verdict;
use super::expr::Verdict;
use crate::link::Mac;
use crate::netlink::{Attributes, Writer};

/// Type of one field of a key or of data. The kernel only knows lengths; the numbers are those that the `nft` program shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// An IPv4 address, 4 bytes.
    Ipv4,
    /// An IPv6 address, 16 bytes.
    Ipv6,
    /// An Ethernet address, 6 bytes.
    Ether,
    /// A transport protocol, 1 byte.
    Proto,
    /// A port, 2 bytes.
    Port,
    /// A mark, and anything that `numgen` or `jhash` yield; 4 bytes in the byte order of the machine.
    Mark,
    /// Name of a link, 16 bytes.
    IfName,
}

impl Type {
    /// Length in bytes.
    pub const fn len(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Mark => 4,
            Self::Ipv6 | Self::IfName => 16,
            Self::Ether => 6,
            Self::Proto => 1,
            Self::Port => 2,
        }
    }

    /// Length in bytes with the padding that a field of a concatenation gets.
    pub const fn padded(self) -> u32 {
        self.len().next_multiple_of(4)
    }

    /// A field is never empty.
    pub const fn is_empty(self) -> bool {
        false
    }

    const fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Ether => 9,
            Self::Proto => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::IfName => 41,
        }
    }
}

/// Length and type number of a field or a concatenation of fields.
pub(super) fn layout(types: &[Type]) -> (u32, u32) {
    match types {
        [one] => (one.len(), one.number()),
        many => many.iter().fold((0, 0), |(length, number), t| (length + t.padded(), number << 6 | t.number())),
    }
}

/// One field of a key or of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field<'a> {
    /// An IPv4 address.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6(Ipv6Addr),
    /// An Ethernet address.
    Ether(Mac),
    /// A transport protocol: 6 is TCP, 17 UDP, 132 SCTP.
    Proto(u8),
    /// A port.
    Port(u16),
    /// A mark or a slot.
    Mark(u32),
    /// Name of a link, at most 15 bytes; the rest is cut.
    IfName(&'a str),
}

/// A key or data: a field alone as it is, several fields each padded to four bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(Vec<u8>);

impl Value {
    /// The value made of these fields.
    pub fn of(fields: &[Field<'_>]) -> Self {
        let mut bytes = Vec::with_capacity(fields.len() * 4);
        for field in fields {
            match field {
                Field::Ipv4(a) => bytes.extend_from_slice(&a.octets()),
                Field::Ipv6(a) => bytes.extend_from_slice(&a.octets()),
                Field::Ether(m) => bytes.extend_from_slice(&m.0),
                Field::Proto(p) => bytes.push(*p),
                Field::Port(p) => bytes.extend_from_slice(&p.to_be_bytes()),
                Field::Mark(m) => bytes.extend_from_slice(&m.to_ne_bytes()),
                Field::IfName(name) => bytes.extend_from_slice(&if_name(name)),
            }
            if fields.len() > 1 {
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
        }
        Self(bytes)
    }

    /// These bytes, as the kernel shall have them.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes as the kernel has them.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A link's name as the kernel compares it: 16 bytes, filled with NUL.
pub(super) fn if_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// An element of a set or a map.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Element {
    /// What is looked up.
    pub key: Value,
    /// What a map yields; `None` in a set.
    pub data: Option<ElementData>,
}

/// What a map yields for an element.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ElementData {
    /// A value, into registers.
    Value(Value),
    /// A verdict, in effect at once.
    Verdict(Verdict),
}

impl Element {
    /// An element of a set.
    pub fn key(key: &[Field<'_>]) -> Self {
        Self { key: Value::of(key), data: None }
    }

    /// An element of a map.
    pub fn map(key: &[Field<'_>], data: &[Field<'_>]) -> Self {
        Self { key: Value::of(key), data: Some(ElementData::Value(Value::of(data))) }
    }

    /// An element of a verdict map.
    pub fn verdict(key: &[Field<'_>], verdict: Verdict) -> Self {
        Self { key: Value::of(key), data: Some(ElementData::Verdict(verdict)) }
    }

    /// Upper bound of the element's size in a message.
    pub(super) fn size(&self) -> usize {
        let data = match &self.data {
            None => 0,
            Some(ElementData::Value(v)) => v.0.len() + 12,
            Some(ElementData::Verdict(v)) => v.target().map_or(0, |t| t.len() + 8) + 24,
        };
        self.key.0.len() + 20 + data
    }

    /// Writes the element, or only its key (to delete it).
    pub(super) fn write(&self, w: &mut Writer, key_only: bool) {
        w.nest(LIST_ELEMENT, |w| {
            w.nest(ELEMENT_KEY, |w| w.attribute(DATA_VALUE, &self.key.0));
            match &self.data {
                Some(ElementData::Value(value)) if !key_only => {
                    w.nest(ELEMENT_DATA, |w| w.attribute(DATA_VALUE, &value.0))
                }
                Some(ElementData::Verdict(verdict)) if !key_only => w.nest(ELEMENT_DATA, |w| write_verdict(w, verdict)),
                _ => {}
            }
        });
    }

    pub(super) fn read(attributes: Attributes<'_>) -> Option<Self> {
        let key = Value::raw(attributes.inside(ELEMENT_KEY).get(DATA_VALUE)?);
        let data = attributes.inside(ELEMENT_DATA);
        let value = data.get(DATA_VALUE).map(|v| ElementData::Value(Value::raw(v)));
        let data = value.or_else(|| Verdict::read(data.inside(DATA_VERDICT)).map(ElementData::Verdict));
        Some(Self { key, data })
    }
}

pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_field_alone_is_not_padded_and_several_are() {
        assert_eq!(Value::of(&[Field::Port(80)]).bytes(), [0, 80]);
        let address = Ipv4Addr::new(10, 0, 0, 11);
        let both = Value::of(&[Field::Proto(6), Field::Ipv4(address), Field::Port(0x1f90)]);
        assert_eq!(both.bytes(), [6, 0, 0, 0, 10, 0, 0, 11, 0x1f, 0x90, 0, 0]);
        assert_eq!(Value::of(&[Field::Mark(1)]).bytes(), 1u32.to_ne_bytes());
    }

    #[test]
    fn layouts_follow_the_values() {
        for types in
            [&[Type::Port][..], &[Type::Ipv4, Type::Proto, Type::Port, Type::Mark], &[Type::Ether, Type::IfName]]
        {
            let fields: Vec<Field<'_>> = types
                .iter()
                .map(|t| match t {
                    Type::Ipv4 => Field::Ipv4(Ipv4Addr::LOCALHOST),
                    Type::Ipv6 => Field::Ipv6(Ipv6Addr::LOCALHOST),
                    Type::Ether => Field::Ether(Mac([0; 6])),
                    Type::Proto => Field::Proto(6),
                    Type::Port => Field::Port(1),
                    Type::Mark => Field::Mark(1),
                    Type::IfName => Field::IfName("eth0"),
                })
                .collect();
            assert_eq!(layout(types).0 as usize, Value::of(&fields).bytes().len(), "{types:?}");
        }
        // ipv4_addr . inet_service as the nft program numbers it.
        assert_eq!(layout(&[Type::Ipv4, Type::Port]), (8, 7 << 6 | 13));
    }

    #[test]
    fn elements_come_back_as_they_were_written() {
        let elements = [
            Element::key(&[Field::Port(80)]),
            Element::map(&[Field::Port(80), Field::Mark(1)], &[Field::Ipv4(Ipv4Addr::LOCALHOST), Field::Port(8080)]),
            Element::verdict(&[Field::Mark(3)], Verdict::Goto("three".into())),
            Element::verdict(&[Field::Mark(3)], Verdict::Drop),
        ];
        for element in elements {
            let mut w = Writer::default();
            element.write(&mut w, false);
            assert!(w.len() <= element.size(), "{element:?}: {} > {}", w.len(), element.size());
            let read = Element::read(Attributes(w.bytes()).inside(LIST_ELEMENT)).unwrap();
            assert_eq!(read, element);
        }
    }

    #[test]
    fn a_long_link_name_keeps_its_final_nul() {
        assert_eq!(if_name("0123456789abcdefgh")[15], 0);
    }
}
