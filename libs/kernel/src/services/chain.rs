//! Chains as messages: each step of a rule is one expression of nftables' machine, or a few.

use culvert_model::IpFamily;
use culvert_services::{Map, Step, Target};

use super::message::{DELETE_RULE, NEW_CHAIN, NEW_RULE, NLM_F_APPEND, NLM_F_CREATE, Writer};

// Attributes of chains and rules.
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

/// `NFT_REG32_00`: the first word.
const FIRST_WORD: u32 = 8;
/// `NFT_META_PRIORITY`, `NFT_META_NFPROTO` and `NFT_META_L4PROTO`.
const META_PRIORITY: u32 = 2;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_NG_RANDOM`.
const RANDOM: u32 = 1;
/// `NFT_DYNSET_OP_UPDATE` and `NFT_DYNSET_OP_DELETE`.
const UPDATE: u32 = 1;
const DELETE: u32 = 2;
/// `NFT_NAT_DNAT`.
const DNAT: u32 = 1;

/// Writes messages that make a chain, or fill it anew, and returns how many rules it has.
pub(super) fn put(writer: &mut Writer, table: &str, family: IpFamily, target: Target) -> usize {
    let chain = target.chain(family);
    let message = writer.message(NEW_CHAIN, NLM_F_CREATE);
    writer.text(CHAIN_TABLE, table);
    writer.text(CHAIN_NAME, &chain);
    writer.end_message(message);
    let message = writer.message(DELETE_RULE, 0);
    writer.text(RULE_TABLE, table);
    writer.text(RULE_CHAIN, &chain);
    writer.end_message(message);
    let rules = target.rules(family);
    for rule in &rules {
        let message = writer.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND);
        writer.text(RULE_TABLE, table);
        writer.text(RULE_CHAIN, &chain);
        let list = writer.nest(RULE_EXPRESSIONS);
        rule.iter().for_each(|step| put_step(writer, *step));
        writer.end_nest(list);
        writer.end_message(message);
    }
    rules.len()
}

/// The value of an attribute of an expression.
enum Value<'a> {
    Number(u32),
    Word(u32),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// Data, which is an attribute of its own within.
    Data(&'a [u8]),
}

fn put_step(writer: &mut Writer, step: Step) {
    use Value::{Bytes, Data, Number, Text, Word};
    let family_number = |family| match family {
        IpFamily::V4 => 2_u8,
        IpFamily::V6 => 10,
    };
    // Where an IP header has its addresses, and how long those are.
    let source = |family| match family {
        IpFamily::V4 => (12, 4),
        IpFamily::V6 => (8, 16),
    };
    let load = |writer: &mut Writer, header, offset, length, to| {
        let values = [(1, Word(to)), (2, Number(header)), (3, Number(offset)), (4, Number(length))];
        expression(writer, "payload", &values);
    };
    let update = |writer: &mut Writer, operation, family, client, id, milliseconds: Option<u64>| {
        let name = Map::Learned.name(family);
        let bytes = milliseconds.map(u64::to_be_bytes);
        let mut values = vec![(1, Text(&name)), (3, Number(operation)), (4, Word(client)), (5, Word(id))];
        values.extend(bytes.iter().map(|bytes| (6, Bytes(bytes))));
        expression(writer, "dynset", &values);
    };
    match step {
        Step::Family(family) => {
            // The first word is free: whatever it is for is loaded later.
            expression(writer, "meta", &[(1, Word(0)), (2, Number(META_FAMILY))]);
            expression(writer, "cmp", &[(1, Word(0)), (2, Number(0)), (3, Data(&[family_number(family)]))]);
        }
        Step::Source { family, to } => {
            let (offset, length) = source(family);
            load(writer, NETWORK_HEADER, offset, length, to);
        }
        Step::Destination { family, to } => {
            let (offset, length) = source(family);
            load(writer, NETWORK_HEADER, offset + length, length, to);
        }
        Step::Protocol { to } => expression(writer, "meta", &[(1, Word(to)), (2, Number(META_PROTOCOL))]),
        Step::Port { to } => load(writer, TRANSPORT_HEADER, 2, 2, to),
        Step::Draw { below, to } => {
            expression(writer, "numgen", &[(1, Word(to)), (2, Number(below)), (3, Number(RANDOM))]);
        }
        Step::Find { map, family, key, to } => {
            expression(writer, "lookup", &[(1, Text(&map.name(family))), (2, Word(key)), (3, Word(to))]);
        }
        Step::Name { word } => {
            expression(writer, "meta", &[(2, Number(META_PRIORITY)), (3, Word(word))]);
            expression(writer, "meta", &[(1, Word(word)), (2, Number(META_PRIORITY))]);
        }
        Step::Clear { word } => {
            expression(writer, "immediate", &[(1, Word(word)), (2, Data(&[0; 4]))]);
            expression(writer, "meta", &[(2, Number(META_PRIORITY)), (3, Word(word))]);
        }
        Step::Hold { family, client, id, seconds } => {
            update(writer, UPDATE, family, client, id, Some(u64::from(seconds) * 1000));
        }
        Step::Release { family, client, id } => update(writer, DELETE, family, client, id, None),
        Step::Go { family, address, port } => {
            let family = Number(family_number(family).into());
            expression(writer, "nat", &[(1, Number(DNAT)), (2, family), (3, Word(address)), (5, Word(port))]);
        }
    }
}

fn expression(writer: &mut Writer, name: &str, values: &[(u16, Value<'_>)]) {
    let element = writer.nest(LIST_ELEMENT);
    writer.text(EXPRESSION_NAME, name);
    let data = writer.nest(EXPRESSION_DATA);
    for (kind, value) in values {
        match value {
            Value::Number(number) => writer.number(*kind, *number),
            Value::Word(word) => writer.number(*kind, FIRST_WORD + word),
            Value::Text(text) => writer.text(*kind, text),
            Value::Bytes(bytes) => writer.attribute(*kind, bytes),
            Value::Data(bytes) => {
                let nest = writer.nest(*kind);
                writer.attribute(1, bytes);
                writer.end_nest(nest);
            }
        }
    }
    writer.end_nest(data);
    writer.end_nest(element);
}
