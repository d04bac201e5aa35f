//! Reading the ruleset back: the generation, cheaply and often; the rest only to verify after drift.

use super::batch::comment_of;
use super::value::LIST_ELEMENT;
use super::{Element, Error, Family, Result, SUBSYSTEM, Socket, Table, message};
use crate::netlink::{self, Attributes, F_DUMP, F_REQUEST, Writer};

/// How often a dump is begun again when the ruleset changes meanwhile.
const ATTEMPTS: usize = 8;

/// Which version of the ruleset is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// Grows by one with every transaction of anybody in this namespace.
    pub id: u32,
}

/// A table that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    /// Its family and name.
    pub table: Table,
    /// Number of chains, sets and maps in it.
    pub objects: u32,
}

/// A chain that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its name.
    pub name: String,
    /// Number of its rules and of the jumps to it.
    pub uses: u32,
    /// For a base chain: number of the hook, priority, and the link of a netdev chain.
    pub hook: Option<(u32, i32, Option<String>)>,
}

/// A set or a map that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetInfo {
    /// Its name.
    pub name: String,
    /// It is a map.
    pub map: bool,
    /// Length of its key in bytes, with padding.
    pub key_len: u32,
}

/// A rule that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its chain.
    pub chain: String,
    /// Its number, unique in the table.
    pub handle: u64,
    /// Its owner's comment.
    pub comment: Option<String>,
    /// The kernel's names of its expressions, in order.
    pub expressions: Vec<String>,
}

impl Socket {
    /// Which version of the ruleset is in force. Costs one small message: the way to notice that somebody else changed
    /// something, as the number is known after each of one's own batches.
    pub fn generation(&mut self) -> Result<Generation> {
        let mut found = None;
        self.ask(
            "read the generation",
            message::GET_GENERATION,
            Family::Other(0),
            false,
            |_| {},
            |_, attributes| {
                found = attributes.get_be32(1).map(|id| Generation { id });
            },
        )?;
        found.ok_or_else(|| Error::NoAnswer { what: "read the generation".to_owned() })
    }

    /// All tables of the namespace.
    pub fn tables(&mut self) -> Result<Vec<TableInfo>> {
        self.list(
            "list tables",
            message::GET_TABLE,
            Family::Other(0),
            |_| {},
            |family, attributes| {
                let table = Table::new(Family::of(family), attributes.get_text(1)?);
                Some(TableInfo { table, objects: attributes.get_be32(3).unwrap_or(0) })
            },
        )
    }

    /// The chains of a table; none if the table does not exist.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<ChainInfo>> {
        self.list(
            "list chains",
            message::GET_CHAIN,
            table.family,
            |w| w.text(1, &table.name),
            |family, attributes| {
                let mine = family == table.family.number() && attributes.get_text(1)? == table.name;
                let hook = attributes.inside(4);
                let base = hook.get_be32(1).map(|number| {
                    let priority = hook.get_be32(2).unwrap_or(0).cast_signed();
                    (number, priority, hook.get_text(3))
                });
                let chain =
                    ChainInfo { name: attributes.get_text(3)?, uses: attributes.get_be32(6).unwrap_or(0), hook: base };
                mine.then_some(chain)
            },
        )
    }

    /// The sets and maps of a table; none if the table does not exist.
    pub fn sets(&mut self, table: &Table) -> Result<Vec<SetInfo>> {
        self.list(
            "list sets",
            message::GET_SET,
            table.family,
            |w| w.text(1, &table.name),
            |family, attributes| {
                let mine = family == table.family.number() && attributes.get_text(1)? == table.name;
                let map = attributes.get_be32(3).unwrap_or(0) & 8 != 0;
                let set = SetInfo { name: attributes.get_text(2)?, map, key_len: attributes.get_be32(5).unwrap_or(0) };
                mine.then_some(set)
            },
        )
    }

    /// The rules of a table in order, chain by chain.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<RuleInfo>> {
        self.list(
            "list rules",
            message::GET_RULE,
            table.family,
            |w| w.text(1, &table.name),
            |family, attributes| {
                let mine = family == table.family.number() && attributes.get_text(1)? == table.name;
                let expressions = attributes.inside(4).filter_map(|(_, e)| Attributes(e).get_text(1)).collect();
                let rule = RuleInfo {
                    chain: attributes.get_text(2)?,
                    handle: attributes.get_be64(3)?,
                    comment: attributes.get(7).and_then(comment_of),
                    expressions,
                };
                mine.then_some(rule)
            },
        )
    }

    /// The elements of a set or a map, in no order. Slow for big ones: for verification only.
    pub fn elements(&mut self, table: &Table, set: &str) -> Result<Vec<Element>> {
        let name = |w: &mut Writer| {
            w.text(1, &table.name);
            w.text(2, set);
        };
        let lists = self.list("list elements", message::GET_ELEMENT, table.family, name, |_, attributes| {
            let elements = attributes.inside(3).filter(|(kind, _)| *kind == LIST_ELEMENT);
            Some(elements.filter_map(|(_, e)| Element::read(Attributes(e))).collect::<Vec<_>>())
        })?;
        Ok(lists.into_iter().flatten().collect())
    }

    fn list<T>(
        &mut self,
        what: &str,
        kind: u16,
        family: Family,
        body: impl Fn(&mut Writer),
        read: impl Fn(u8, Attributes<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            match self.ask(what, kind, family, true, &body, |family, attributes| found.extend(read(family, attributes)))
            {
                Ok(()) => return Ok(found),
                Err(Error::Interrupted { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::Interrupted { what: what.to_owned() })
    }

    fn ask(
        &mut self,
        what: &str,
        kind: u16,
        family: Family,
        dump: bool,
        body: impl FnOnce(&mut Writer),
        each: impl FnMut(u8, Attributes<'_>),
    ) -> Result<()> {
        let mut w = Writer::default();
        let flags = F_REQUEST | if dump { F_DUMP } else { 0 };
        w.start(SUBSYSTEM << 8 | kind, flags, self.netlink.next_sequence(), family.number(), 0);
        body(&mut w);
        w.finish();
        self.netlink.query(w.bytes(), dump, each).map_err(|e: netlink::Error| Error::from_netlink(what, e))
    }
}
