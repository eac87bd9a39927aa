//! Elements of the maps as the kernel has them: keys of several fields, each filled up to four bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_model::{Frontend, IpFamily, Protocol};
use culvert_services::{Backend, Element, Id, Map, Target};

use super::message::{Attributes, DELETE_ELEMENT, NEW_ELEMENT, NLM_F_CREATE, Writer};

// Attributes.
pub(super) const LIST_TABLE: u16 = 1;
pub(super) const LIST_SET: u16 = 2;
pub(super) const LIST_ELEMENTS: u16 = 3;
pub(super) const LIST_ELEMENT: u16 = 1;
const KEY: u16 = 1;
const DATA: u16 = 2;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFT_GOTO`.
const GOTO: i32 = -4;
/// Elements of a message, in bytes: its length, and those of lists, are numbers of 16 bits.
const MESSAGE: usize = 60_000;

/// An element that is not one of ours, by its map and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stranger {
    pub(super) map: Map,
    pub(super) family: IpFamily,
    pub(super) key: Vec<u8>,
}

/// Writes messages that add the elements.
pub(super) fn add(writer: &mut Writer, table: &str, map: (Map, IpFamily), elements: &[Element]) {
    write(writer, NEW_ELEMENT, NLM_F_CREATE, table, map, elements, |writer, element| {
        writer.key(&key(element));
        let data = writer.nest(DATA);
        match *element {
            Element::Service(frontend, target) => {
                let verdict = writer.nest(VERDICT);
                writer.attribute(VERDICT_CODE, &GOTO.to_be_bytes());
                writer.text(VERDICT_CHAIN, &target.chain(IpFamily::of(frontend.address)));
                writer.end_nest(verdict);
            }
            Element::Slot(_, _, backend) | Element::ById(_, _, backend) => {
                writer.attribute(VALUE, &fields(backend.address, None, backend.port));
            }
            Element::SlotId(_, _, id) => writer.attribute(VALUE, &id.number().to_ne_bytes()),
        }
        writer.end_nest(data);
    });
}

/// Writes messages that remove the elements.
pub(super) fn remove(writer: &mut Writer, table: &str, map: (Map, IpFamily), elements: &[Element]) {
    write(writer, DELETE_ELEMENT, 0, table, map, elements, |writer, element| writer.key(&key(element)));
}

/// Writes messages that remove what others put into one of our maps.
pub(super) fn remove_strangers(writer: &mut Writer, table: &str, map: (Map, IpFamily), strangers: &[&Stranger]) {
    write(writer, DELETE_ELEMENT, 0, table, map, strangers, |writer, stranger| writer.key(&stranger.key));
}

/// Writes who is asked for in a message about one element.
pub(super) fn ask(writer: &mut Writer, element: &Element) {
    let list = writer.nest(LIST_ELEMENTS);
    let nest = writer.nest(LIST_ELEMENT);
    writer.key(&key(element));
    writer.end_nest(nest);
    writer.end_nest(list);
}

fn write<T>(
    writer: &mut Writer,
    kind: u16,
    flags: u16,
    table: &str,
    (map, family): (Map, IpFamily),
    mut elements: &[T],
    element: impl Fn(&mut Writer, &T),
) {
    while !elements.is_empty() {
        let message = writer.message(kind, flags);
        writer.text(LIST_TABLE, table);
        writer.text(LIST_SET, &map.name(family));
        let begun = writer.len();
        let list = writer.nest(LIST_ELEMENTS);
        while let Some((first, rest)) = elements.split_first()
            && writer.len() - begun < MESSAGE
        {
            let nest = writer.nest(LIST_ELEMENT);
            element(writer, first);
            writer.end_nest(nest);
            elements = rest;
        }
        writer.end_nest(list);
        writer.end_message(message);
    }
}

impl Writer {
    fn key(&mut self, key: &[u8]) {
        let nest = self.nest(KEY);
        self.attribute(VALUE, key);
        self.end_nest(nest);
    }
}

/// Returns the key of an element.
fn key(element: &Element) -> Vec<u8> {
    let frontend = element.frontend();
    let mut key = fields(frontend.address, Some(frontend.protocol), frontend.port);
    match *element {
        Element::Service(..) => {}
        // Numbers that no packet carries are in the byte order of the machine.
        Element::Slot(_, slot, _) | Element::SlotId(_, slot, _) => key.extend(slot.to_ne_bytes()),
        Element::ById(_, id, _) => key.extend(id.number().to_ne_bytes()),
    }
    key
}

fn fields(address: IpAddr, protocol: Option<Protocol>, port: u16) -> Vec<u8> {
    let mut fields = Vec::with_capacity(28);
    match address {
        IpAddr::V4(address) => fields.extend(address.octets()),
        IpAddr::V6(address) => fields.extend(address.octets()),
    }
    if let Some(protocol) = protocol {
        fields.extend([protocol.number(), 0, 0, 0]);
    }
    fields.extend(port.to_be_bytes());
    fields.extend([0; 2]);
    fields
}

/// Reads an element of a dump; `Err` is one that we would not have put.
pub(super) fn read(map: Map, family: IpFamily, attributes: Attributes<'_>) -> Result<Element, Stranger> {
    let key = attributes.nested(KEY).and_then(|key| key.get(VALUE)).unwrap_or_default();
    parse(map, family, key, attributes).ok_or_else(|| Stranger { map, family, key: key.to_vec() })
}

fn parse(map: Map, family: IpFamily, key: &[u8], attributes: Attributes<'_>) -> Option<Element> {
    let data = attributes.nested(DATA)?;
    let mut key = Fields(key);
    let (address, [protocol], port) = (key.address(family)?, key.take()?, key.port()?);
    let frontend = Frontend { address, protocol: Protocol::of_number(protocol)?, port };
    let value = || Some(Fields(data.get(VALUE)?));
    let backend = || {
        let mut value = value()?;
        Some(Backend { address: value.address(family)?, port: value.port()? })
    };
    match map {
        Map::Services => {
            let verdict = data.nested(VERDICT)?;
            let (of, target) = Target::of_chain(verdict.text(VERDICT_CHAIN)?)?;
            let goes = verdict.number(VERDICT_CODE) == Some(u32::from_ne_bytes(GOTO.to_ne_bytes()));
            (goes && of == family).then_some(Element::Service(frontend, target))
        }
        Map::Slots => Some(Element::Slot(frontend, key.number()?, backend()?)),
        Map::Ids => Some(Element::SlotId(frontend, key.number()?, Id::of_number(value()?.number()?)?)),
        Map::ById => Some(Element::ById(frontend, Id::of_number(key.number()?)?, backend()?)),
        Map::Learned => None,
    }
}

/// Fields of a key or a value that are still to be read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let field = self.0.get(..N)?.try_into().ok()?;
        self.0 = self.0.get(N.next_multiple_of(4)..).unwrap_or_default();
        Some(field)
    }

    fn address(&mut self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.take().map(|octets: [u8; 4]| Ipv4Addr::from(octets).into()),
            IpFamily::V6 => self.take().map(|octets: [u8; 16]| Ipv6Addr::from(octets).into()),
        }
    }

    fn port(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn number(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Message;
    use super::*;

    fn frontend(address: &str) -> Frontend {
        Frontend { address: address.parse().unwrap(), protocol: Protocol::Sctp, port: 0x1234 }
    }

    /// Returns the elements in messages of one map.
    fn elements(bytes: &[u8], map: Map, family: IpFamily) -> Vec<Result<Element, Stranger>> {
        let lists = Message::all(bytes).filter_map(|message| message.attributes().nested(LIST_ELEMENTS));
        lists.flatten().map(|(_, element)| read(map, family, Attributes::within(element))).collect()
    }

    #[test]
    fn elements_are_read_as_they_were_written() {
        for (address, backend) in [("242.0.0.1", "10.1.2.3"), ("fd00::1", "fd01::7")] {
            let frontend = frontend(address);
            let family = IpFamily::of(frontend.address);
            let backend = Backend { address: backend.parse().unwrap(), port: 8080 };
            let id = Id::of_number(0x203).unwrap();
            for element in [
                Element::Service(frontend, Target::Stick { slots: 3, seconds: 10_800 }),
                Element::Slot(frontend, 17, backend),
                Element::SlotId(frontend, 17, id),
                Element::ById(frontend, id, backend),
            ] {
                let mut writer = Writer::default();
                add(&mut writer, "culvert_test", (element.map(), family), &[element]);
                assert_eq!(elements(&writer.into_bytes(), element.map(), family), [Ok(element)]);
            }
        }
    }

    #[test]
    fn a_key_has_its_fields_in_words() {
        let slot = Element::Slot(frontend("242.0.0.1"), 5, Backend { address: [10, 1, 2, 3].into(), port: 80 });
        let expected = [&[242, 0, 0, 1, 132, 0, 0, 0, 0x12, 0x34, 0, 0][..], &5_u32.to_ne_bytes()].concat();
        assert_eq!(key(&slot), expected);
    }

    #[test]
    fn many_elements_are_several_messages() {
        let backend = Backend { address: [10, 1, 2, 3].into(), port: 80 };
        let many: Vec<Element> = (0..5000).map(|slot| Element::Slot(frontend("242.0.0.1"), slot, backend)).collect();
        let mut writer = Writer::default();
        add(&mut writer, "culvert_test", (Map::Slots, IpFamily::V4), &many);
        let bytes = writer.into_bytes();
        assert!(Message::all(&bytes).count() > 1);
        let read: Vec<Element> = elements(&bytes, Map::Slots, IpFamily::V4).into_iter().map(Result::unwrap).collect();
        assert_eq!(read, many);
    }

    #[test]
    fn what_we_would_not_have_put_is_a_stranger() {
        let service = Element::Service(frontend("242.0.0.1"), Target::Pick { slots: 3 });
        let mut writer = Writer::default();
        add(&mut writer, "culvert_test", (Map::Services, IpFamily::V4), &[service]);
        let bytes = writer.into_bytes();
        let read = elements(&bytes, Map::Slots, IpFamily::V4);
        assert_eq!(read, [Err(Stranger { map: Map::Slots, family: IpFamily::V4, key: key(&service) })]);
    }
}
