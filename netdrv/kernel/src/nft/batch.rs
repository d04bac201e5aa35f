//! Batches: any number of changes that take effect together or not at all.

use rustix::io::Errno;

use super::object::{Chain, Data, Hook, Policy, Set};
use super::value::{Element, layout};
use super::{Error, Result, Rule, SUBSYSTEM, Socket, Table, message};
use crate::netlink::{Answer, F_ACK, F_APPEND, F_CREATE, F_EXCL, F_REQUEST, Writer};

/// Largest batch in bytes: some 150,000 elements. The kernel holds a batch in one buffer.
const MAX_BATCH: usize = 16 << 20;
/// Elements of one message, in bytes: their list is an attribute, whose length has 16 bits.
const MAX_LIST: usize = 60_000;
/// Longest comment in bytes: its length has one byte, and the kernel takes 256 for all.
const MAX_COMMENT: usize = 127;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// In the begin of a batch: the generation that it is made for.
const BATCH_GENERATION: u16 = 1;
/// Generation mismatch: the kernel's `ERESTART`, which no library names.
const ERESTART: i32 = 85;

const SET_FLAG_MAP: u32 = 8;
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

/// Changes that take effect together or not at all, in the order given. A batch can be committed more than once.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    writer: Writer,
    messages: Vec<Message>,
    generation: Option<u32>,
    too_long: Option<String>,
}

/// One message, for the words of an error.
#[derive(Debug, Clone)]
struct Message {
    offset: usize,
    verb: &'static str,
    object: String,
}

impl Message {
    fn what(&self) -> String {
        format!("{} {}", self.verb, self.object)
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// No change is in it.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.writer.len()
    }

    /// Lets the commit fail with [`Error::Changed`] if the ruleset is of another generation, that is, if anybody changed
    /// anything in this namespace since [`Socket::generation`] was asked.
    pub fn expect_generation(&mut self, generation: u32) -> &mut Self {
        self.generation = Some(generation);
        self
    }

    /// Makes a table, or leaves the one that exists.
    pub fn add_table(&mut self, table: &Table) -> &mut Self {
        self.table_message(message::NEW_TABLE, F_CREATE, "add table", table)
    }

    /// Makes a table; it is an error that it exists.
    pub fn create_table(&mut self, table: &Table) -> &mut Self {
        self.table_message(message::NEW_TABLE, F_CREATE | F_EXCL, "create table", table)
    }

    /// Deletes a table and all in it; it is an error that it does not exist.
    pub fn delete_table(&mut self, table: &Table) -> &mut Self {
        self.table_message(message::DELETE_TABLE, 0, "delete table", table)
    }

    /// Deletes a table and all in it, if it exists.
    pub fn remove_table(&mut self, table: &Table) -> &mut Self {
        self.add_table(table).delete_table(table)
    }

    /// Makes an empty table in place of one that may exist.
    pub fn reset_table(&mut self, table: &Table) -> &mut Self {
        self.remove_table(table).add_table(table)
    }

    fn table_message(&mut self, kind: u16, flags: u16, verb: &'static str, table: &Table) -> &mut Self {
        self.message(kind, flags, verb, table, None, |w| w.text(1, &table.name))
    }

    /// Makes a chain, or leaves the one that exists with the same hook.
    pub fn add_chain(&mut self, table: &Table, chain: &Chain) -> &mut Self {
        self.message(message::NEW_CHAIN, F_CREATE, "add chain", table, Some(&chain.name), |w| {
            w.text(1, &table.name);
            w.text(3, &chain.name);
            let Some((kind, hook, priority, policy)) = &chain.base else {
                return;
            };
            w.nest(4, |w| {
                w.be32(1, hook.number());
                w.be32(2, priority.cast_unsigned());
                if let Hook::Ingress(device) | Hook::Egress(device) = hook {
                    w.text(3, device);
                }
            });
            w.be32(5, u32::from(*policy == Policy::Accept));
            w.text(7, kind.name());
        })
    }

    /// Deletes a chain with its rules; nothing may jump to it.
    pub fn delete_chain(&mut self, table: &Table, chain: &str) -> &mut Self {
        self.flush_chain(table, chain).message(message::DELETE_CHAIN, 0, "delete chain", table, Some(chain), |w| {
            w.text(1, &table.name);
            w.text(3, chain);
        })
    }

    /// Deletes the rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) -> &mut Self {
        self.message(message::DELETE_RULE, 0, "flush chain", table, Some(chain), |w| {
            w.text(1, &table.name);
            w.text(2, chain);
        })
    }

    /// Deletes the rules of all chains of a table; chains, sets and maps stay.
    pub fn flush_table(&mut self, table: &Table) -> &mut Self {
        self.message(message::DELETE_RULE, 0, "flush table", table, None, |w| w.text(1, &table.name))
    }

    /// Makes a set or a map, or leaves the one that exists with the same types.
    pub fn add_set(&mut self, table: &Table, set: &Set) -> &mut Self {
        // The number by which messages of the same batch could refer to the set; names do as well.
        let id = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        self.message(message::NEW_SET, F_CREATE, "add set", table, Some(&set.name), |w| {
            let (key_len, key_type) = layout(&set.key);
            w.text(1, &table.name);
            w.text(2, &set.name);
            w.be32(3, if set.data.is_some() { SET_FLAG_MAP } else { 0 });
            w.be32(4, key_type);
            w.be32(5, key_len);
            match &set.data {
                None => {}
                Some(Data::Verdict) => w.be32(6, DATA_TYPE_VERDICT),
                Some(Data::Values(types)) => {
                    let (data_len, data_type) = layout(types);
                    w.be32(6, data_type);
                    w.be32(7, data_len);
                }
            }
            if let Some(size) = set.size {
                w.nest(9, |w| w.be32(1, size));
            }
            w.be32(10, id);
        })
    }

    /// Deletes a set or a map; no rule may use it.
    pub fn delete_set(&mut self, table: &Table, set: &str) -> &mut Self {
        self.message(message::DELETE_SET, 0, "delete set", table, Some(set), |w| {
            w.text(1, &table.name);
            w.text(2, set);
        })
    }

    /// Deletes all elements of a set or a map.
    pub fn flush_set(&mut self, table: &Table, set: &str) -> &mut Self {
        self.message(message::DELETE_ELEMENT, 0, "flush set", table, Some(set), |w| {
            w.text(1, &table.name);
            w.text(2, set);
        })
    }

    /// Adds elements. A key that is there already with the same data is left; with other data it is an error, so that data
    /// is changed by deleting and adding in one batch ([`Batch::replace_elements`]).
    pub fn add_elements(&mut self, table: &Table, set: &str, elements: &[Element]) -> &mut Self {
        self.element_messages(message::NEW_ELEMENT, F_CREATE, "add elements to", table, set, elements)
    }

    /// Deletes elements by their keys; it is an error that one is not there.
    pub fn delete_elements(&mut self, table: &Table, set: &str, elements: &[Element]) -> &mut Self {
        self.element_messages(message::DELETE_ELEMENT, 0, "delete elements of", table, set, elements)
    }

    /// Gives keys that are there other data, without an instant in which they are absent.
    pub fn replace_elements(&mut self, table: &Table, set: &str, elements: &[Element]) -> &mut Self {
        self.delete_elements(table, set, elements).add_elements(table, set, elements)
    }

    fn element_messages(
        &mut self,
        kind: u16,
        flags: u16,
        verb: &'static str,
        table: &Table,
        set: &str,
        elements: &[Element],
    ) -> &mut Self {
        let mut rest = elements;
        while !rest.is_empty() {
            let mut size = 0;
            let fitting = rest.iter().take_while(|e| {
                size += e.size();
                size <= MAX_LIST
            });
            // At least one, so that the walk ends; one that is too long by itself is noticed by the writer.
            let (now, later) = rest.split_at(fitting.count().max(1));
            rest = later;
            self.message(kind, flags, verb, table, Some(set), |w| {
                w.text(1, &table.name);
                w.text(2, set);
                w.nest(3, |w| now.iter().for_each(|e| e.write(w, kind == message::DELETE_ELEMENT)));
            });
        }
        self
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: &Rule) -> &mut Self {
        if rule.comment.as_ref().is_some_and(|c| c.len() > MAX_COMMENT) {
            self.too_long.get_or_insert_with(|| format!("add rule {table} {chain}"));
        }
        self.message(message::NEW_RULE, F_CREATE | F_APPEND, "add rule", table, Some(chain), |w| {
            w.text(1, &table.name);
            w.text(2, chain);
            w.nest(4, |w| rule.expressions.iter().for_each(|e| e.write(w)));
            if let Some(comment) = &rule.comment {
                w.attribute(7, &user_comment(comment));
            }
        })
    }

    /// Deletes the rule of that handle ([`super::RuleInfo::handle`]).
    pub fn delete_rule(&mut self, table: &Table, chain: &str, handle: u64) -> &mut Self {
        self.message(message::DELETE_RULE, 0, "delete rule", table, Some(chain), |w| {
            w.text(1, &table.name);
            w.text(2, chain);
            w.be64(3, handle);
        })
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        verb: &'static str,
        table: &Table,
        name: Option<&str>,
        body: impl FnOnce(&mut Writer),
    ) -> &mut Self {
        if self.messages.is_empty() {
            self.writer.start(BATCH_BEGIN, F_REQUEST, 0, 0, SUBSYSTEM);
            self.writer.finish();
        }
        let object = match name {
            Some(name) => format!("{table} {name}"),
            None => table.to_string(),
        };
        let offset = self.writer.len();
        let sequence = u32::try_from(self.messages.len() + 1).unwrap_or(u32::MAX);
        self.writer.start(SUBSYSTEM << 8 | kind, F_REQUEST | flags, sequence, table.family.number(), 0);
        body(&mut self.writer);
        self.writer.finish();
        let entry = Message { offset, verb, object };
        if self.writer.overflowed() {
            self.too_long.get_or_insert_with(|| entry.what());
        }
        self.messages.push(entry);
        self
    }

    /// Hands the batch to the kernel. On an error nothing changed, except after [`Error::NoAnswer`], which does not know.
    pub fn commit(&self, socket: &mut Socket) -> Result<()> {
        let Some(last) = self.messages.last() else {
            return Ok(());
        };
        if let Some(what) = &self.too_long {
            return Err(Error::TooLong { what: what.clone() });
        }
        if self.bytes() > MAX_BATCH {
            return Err(Error::TooLarge { bytes: self.bytes() });
        }
        let last_sequence = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        let request = self.request(last, last_sequence);
        let fail = |e| Error::from_netlink("commit", e);
        socket.netlink.send(&request).map_err(fail)?;

        // The kernel has handled the batch when the call returns. It answers with all errors, and with the acknowledgement
        // that the last message asks for, in the order of the messages.
        let mut first: Option<(u32, Errno, Option<String>)> = None;
        let (mut refused, mut acknowledged) = (0, false);
        let complete = socket.netlink.collect(|answer| {
            let Answer::Outcome(sequence, outcome) = answer else {
                return false;
            };
            if let Some((errno, text)) = outcome {
                refused += 1;
                first.get_or_insert((sequence, errno, text));
            }
            acknowledged |= sequence == last_sequence;
            acknowledged
        });
        match (first, complete) {
            (Some((_, errno, _)), _) if errno.raw_os_error() == ERESTART => Err(Error::Changed),
            (Some((sequence, errno, text)), _) => {
                let position = usize::try_from(sequence).ok().and_then(|s| s.checked_sub(1));
                let what =
                    position.and_then(|p| self.messages.get(p)).map_or_else(|| "commit".to_owned(), Message::what);
                Err(Error::Refused { what, position, errno, text, refused })
            }
            (None, Err(e)) => Err(fail(e)),
            (None, Ok(false)) => Err(Error::NoAnswer { what: "commit".to_owned() }),
            (None, Ok(true)) => Ok(()),
        }
    }

    /// The whole batch: begin, messages, end.
    fn request(&self, last: &Message, last_sequence: u32) -> Vec<u8> {
        let mut whole = Writer::default();
        if let Some(generation) = self.generation {
            whole.start(BATCH_BEGIN, F_REQUEST, 0, 0, SUBSYSTEM);
            whole.be32(BATCH_GENERATION, generation);
            whole.finish();
        }
        let mut body = self.writer.clone();
        body.add_flags(last.offset, F_ACK);
        body.start(BATCH_END, F_REQUEST, last_sequence.saturating_add(1), 0, SUBSYSTEM);
        body.finish();
        let mut bytes = whole.bytes().to_vec();
        // With a generation the batch has a begin of its own, in place of the plain one.
        let skip = if self.generation.is_some() { crate::netlink::HEADER } else { 0 };
        bytes.extend_from_slice(body.bytes().get(skip..).unwrap_or_default());
        bytes
    }
}

/// A comment as the `nft` program writes and shows it: type, length, text with NUL.
fn user_comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![0, length];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

/// The text of a comment.
pub(super) fn comment_of(bytes: &[u8]) -> Option<String> {
    match bytes {
        [0, length, text @ ..] => Some(crate::netlink::text_of(text.get(..usize::from(*length))?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nft::{Family, Field};

    #[test]
    fn comments_come_back() {
        assert_eq!(comment_of(&user_comment("skep mesh")).as_deref(), Some("skep mesh"));
        assert_eq!(comment_of(&[]), None);
        assert_eq!(comment_of(&[0, 200, b'x']), None);
    }

    #[test]
    fn many_elements_become_messages_that_fit() {
        let table = Table::new(Family::Ip, "t");
        let elements: Vec<Element> = (0..10_000).map(|n| Element::key(&[Field::Mark(n)])).collect();
        let mut batch = Batch::new();
        batch.add_elements(&table, "s", &elements);
        assert!(batch.len() > 1 && batch.len() < 10, "{}", batch.len());
        assert!(batch.too_long.is_none());
    }

    #[test]
    fn one_element_is_one_small_message() {
        let table = Table::new(Family::Ip, "skep");
        let element = Element::map(
            &[Field::Ipv4([10, 0, 0, 50].into()), Field::Proto(6), Field::Port(80), Field::Mark(1)],
            &[Field::Ipv4([10, 0, 0, 11].into()), Field::Port(80)],
        );
        let mut batch = Batch::new();
        batch.add_elements(&table, "endpoints", &[element]);
        assert_eq!(batch.len(), 1);
        assert!(batch.bytes() < 160, "{}", batch.bytes());
    }

    #[test]
    fn a_comment_that_does_not_fit_is_an_error() {
        let mut batch = Batch::new();
        batch.add_rule(&Table::new(Family::Ip, "t"), "c", &Rule::new().comment("x".repeat(200)));
        assert!(batch.too_long.is_some());
    }
}
