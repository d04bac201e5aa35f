//! The messages that lead from found tables to wanted ones, in an order that the kernel accepts. Only what differs is
//! looked at where the two share what they have in common.

use std::collections::BTreeMap;

use imbl::ordmap::DiffItem;

use super::{Base, Data, Elements, Family, Field, Rule, SeenTable, Set, Table, Value};

/// One message of a transaction, in the order in which they must be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the table, set or chain by name and its content")]
pub enum NftOp {
    /// Make a table.
    AddTable { table: (Family, String) },
    /// Make a chain without rules.
    AddChain { table: (Family, String), chain: String, base: Option<Base> },
    /// Make a set without elements.
    AddSet { table: (Family, String), set: String, key: Vec<Field>, data: Data },
    /// Remove elements by key; the values are those that they were found to have.
    DelElements { table: (Family, String), set: String, elements: Vec<(Vec<u8>, Value)> },
    /// Add elements.
    AddElements { table: (Family, String), set: String, elements: Vec<(Vec<u8>, Value)> },
    /// Remove all rules of a chain.
    FlushChain { table: (Family, String), chain: String },
    /// Append a rule.
    AddRule { table: (Family, String), chain: String, rule: Rule },
    /// Remove a set.
    DelSet { table: (Family, String), set: String },
    /// Remove a chain without rules.
    DelChain { table: (Family, String), chain: String },
    /// Remove a table with all that it holds.
    DelTable { table: (Family, String) },
}

/// The transaction that leads from the found tables to the wanted ones; empty when they agree.
#[must_use]
pub fn diff_tables(
    seen: &BTreeMap<(Family, String), SeenTable>,
    wanted: &BTreeMap<(Family, String), Table>,
) -> Vec<NftOp> {
    let mut ops = Vec::new();
    for table in seen.keys().filter(|k| !wanted.contains_key(*k)) {
        ops.push(NftOp::DelTable { table: table.clone() });
    }
    for (id, table) in wanted {
        match seen.get(id) {
            Some(found) => diff_table(id, found, table, &mut ops),
            None => {
                ops.push(NftOp::AddTable { table: id.clone() });
                diff_table(id, &SeenTable::default(), table, &mut ops);
            }
        }
    }
    ops
}

/// The chains of a table that have to change.
#[derive(Default)]
struct ChangedChains<'a> {
    /// There is none of that name yet.
    new: Vec<&'a String>,
    /// Its rules are to be written, after those that are there (if so) are removed.
    rules: Vec<(&'a String, bool)>,
    /// It is no longer wanted.
    gone: Vec<&'a String>,
}

fn changed_chains<'a>(seen: &'a SeenTable, wanted: &'a Table) -> ChangedChains<'a> {
    let mut changed = ChangedChains::default();
    for item in seen.chains.diff(&wanted.chains.tags) {
        match item {
            DiffItem::Add(name, tags) => {
                changed.new.push(name);
                if !tags.is_empty() {
                    changed.rules.push((name, false));
                }
            }
            DiffItem::Update { old: (_, held), new: (name, _) } => changed.rules.push((name, !held.is_empty())),
            DiffItem::Remove(name, _) => changed.gone.push(name),
        }
    }
    changed
}

fn diff_table(id: &(Family, String), seen: &SeenTable, wanted: &Table, ops: &mut Vec<NftOp>) {
    let table = || id.clone();
    let changed = changed_chains(seen, wanted);
    for name in &changed.new {
        let base = wanted.chains.get(name).and_then(|c| c.base.clone());
        ops.push(NftOp::AddChain { table: table(), chain: (*name).clone(), base });
    }
    for (name, set) in &wanted.sets {
        if !seen.sets.contains_key(name) {
            ops.push(NftOp::AddSet { table: table(), set: name.clone(), key: set.key.clone(), data: set.data.clone() });
        }
        diff_elements(id, name, seen.sets.get(name), set, ops);
    }
    // Rules of chains that go must go before the sets and chains they name.
    for name in &changed.gone {
        ops.push(NftOp::FlushChain { table: table(), chain: (*name).clone() });
    }
    for (name, occupied) in changed.rules {
        if occupied {
            ops.push(NftOp::FlushChain { table: table(), chain: name.clone() });
        }
        for rule in wanted.chains.get(name).into_iter().flat_map(|c| &c.rules) {
            ops.push(NftOp::AddRule { table: table(), chain: name.clone(), rule: rule.clone() });
        }
    }
    for name in seen.sets.keys().filter(|name| !wanted.sets.contains_key(*name)) {
        ops.push(NftOp::DelSet { table: table(), set: name.clone() });
    }
    for name in changed.gone {
        ops.push(NftOp::DelChain { table: table(), chain: name.clone() });
    }
}

fn diff_elements(id: &(Family, String), name: &str, seen: Option<&Elements>, wanted: &Set, ops: &mut Vec<NftOp>) {
    let none = Elements::new();
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for item in seen.unwrap_or(&none).diff(&wanted.elements) {
        if let DiffItem::Remove(key, value) | DiffItem::Update { old: (key, value), .. } = item {
            old.push((key.clone(), value.clone()));
        }
        if let DiffItem::Add(key, value) | DiffItem::Update { new: (key, value), .. } = item {
            new.push((key.clone(), value.clone()));
        }
    }
    if !old.is_empty() {
        ops.push(NftOp::DelElements { table: id.clone(), set: name.to_owned(), elements: old });
    }
    if !new.is_empty() {
        ops.push(NftOp::AddElements { table: id.clone(), set: name.to_owned(), elements: new });
    }
}
