//! Looks at a table: its elements, which is dear, and whether it is still as we know it, which is cheap.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use culvert_model::{Frontend, IpFamily};
use culvert_services::{Element, Map, Placed, Target};

use super::chain::{CHAIN_NAME, CHAIN_TABLE, RULE_TABLE};
use super::element::{self, LIST_ELEMENTS, LIST_SET, LIST_TABLE, Stranger};
use super::message::{Attributes, GET_CHAIN, GET_ELEMENT, GET_RULE, GET_SET, Writer};
use super::socket::{ENOENT, Nfnetlink};

// Attributes.
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_HANDLE: u16 = 16;
/// Number of elements, which older kernels do not tell (Linux 6.18 does).
const SET_COUNT: u16 = 20;

/// A map of one family.
pub(super) type FamilyMap = (Map, IpFamily);

/// All maps whose elements are put by us.
pub(super) fn maps() -> impl Iterator<Item = FamilyMap> {
    Map::PUT.into_iter().flat_map(|map| IpFamily::ALL.map(|family| (map, family)))
}

/// What a table is apart from its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Hash of the rules and of which maps there are.
    hash: u64,
    pub(super) rules: usize,
    /// How many elements maps have; nothing if the kernel does not tell.
    counts: BTreeMap<FamilyMap, usize>,
}

impl Shape {
    /// Tells whether rules and maps are the same.
    pub(super) fn same_structure(&self, other: &Self) -> bool {
        self.hash == other.hash
    }

    /// Tells whether the maps have so many elements, as far as the kernel tells.
    pub(super) fn have(&self, counts: &BTreeMap<FamilyMap, usize>) -> bool {
        self.counts.iter().all(|(map, count)| counts.get(map).copied().unwrap_or(0) == *count)
    }

    /// Tells whether the kernel tells how many elements there are.
    pub(super) fn has_counts(&self) -> bool {
        !self.counts.is_empty()
    }
}

/// The elements of a table.
#[derive(Debug, Default)]
pub(super) struct Elements {
    pub(super) placed: BTreeMap<Frontend, Placed>,
    pub(super) counts: BTreeMap<FamilyMap, usize>,
    pub(super) strangers: Vec<Stranger>,
}

/// Lists the chains of services in a table, none if there is no table.
pub(super) fn chains(socket: &mut Nfnetlink, table: &str) -> io::Result<Vec<(IpFamily, Target)>> {
    // The kernel lists those of all tables.
    socket.dump(GET_CHAIN, &[], |found: &mut Vec<_>, attributes| {
        if attributes.text(CHAIN_TABLE) == Some(table) {
            found.extend(attributes.text(CHAIN_NAME).and_then(Target::of_chain));
        }
    })
}

/// Looks at rules and maps; `None` if there is no table.
pub(super) fn shape(socket: &mut Nfnetlink, table: &str) -> io::Result<Option<Shape>> {
    let rules = socket.dump(GET_RULE, &[(RULE_TABLE, table)], |found: &mut Vec<_>, attributes| {
        if attributes.text(RULE_TABLE) == Some(table) {
            found.push(hash(attributes.bytes()));
        }
    });
    let rules = match rules {
        Err(error) if error.raw_os_error() == Some(ENOENT) => return Ok(None),
        rules => rules?,
    };
    let names: BTreeMap<String, FamilyMap> = maps().map(|map| (map.0.name(map.1), map)).collect();
    type Sets = (Vec<(String, Vec<u8>)>, BTreeMap<FamilyMap, usize>);
    let sets = socket.dump(GET_SET, &[(SET_TABLE, table)], |(handles, counts): &mut Sets, attributes| {
        let name = attributes.text(SET_NAME).unwrap_or_default();
        let handle = attributes.get(SET_HANDLE).unwrap_or_default();
        let learned = IpFamily::ALL.iter().any(|family| Map::Learned.name(*family) == name);
        if learned || names.contains_key(name) {
            handles.push((name.to_owned(), handle.to_vec()));
        }
        if let (Some(map), Some(count)) = (names.get(name), attributes.number(SET_COUNT)) {
            counts.insert(*map, count as usize);
        }
    });
    match sets {
        Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(None),
        Err(error) => Err(error),
        Ok((handles, counts)) => Ok(Some(Shape { hash: hash(&(&rules, handles)), rules: rules.len(), counts })),
    }
}

/// Reads all elements.
pub(super) fn elements(socket: &mut Nfnetlink, table: &str) -> io::Result<Elements> {
    let mut all = Elements::default();
    for map in maps() {
        let name = map.0.name(map.1);
        let arguments = [(LIST_TABLE, table), (LIST_SET, name.as_str())];
        let found = socket.dump(GET_ELEMENT, &arguments, |found: &mut Vec<_>, attributes| {
            let elements = attributes.nested(LIST_ELEMENTS).into_iter().flatten();
            found.extend(elements.map(|(_, value)| element::read(map.0, map.1, Attributes::within(value))));
        })?;
        all.counts.insert(map, found.len());
        for element in found {
            match element {
                Ok(element) => all.placed.entry(element.frontend()).or_default().insert(&element),
                Err(stranger) => all.strangers.push(stranger),
            }
        }
    }
    Ok(all)
}

/// Tells whether an element is in its map, with whatever value.
pub(super) fn has(socket: &mut Nfnetlink, table: &str, element: &Element) -> io::Result<bool> {
    let mut writer = Writer::default();
    let message = writer.message(GET_ELEMENT, 0);
    writer.text(LIST_TABLE, table);
    writer.text(LIST_SET, &element.map().name(IpFamily::of(element.frontend().address)));
    element::ask(&mut writer, element);
    writer.end_message(message);
    match socket.ask(writer, |_| Some(())) {
        Ok(found) => Ok(found.is_some()),
        Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
