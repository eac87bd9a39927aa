//! Messages of nftables over nfnetlink (`nf_tables.h`, `nfnetlink.h`), with the numbers as they stand there.

/// Length of a netlink message's header.
const HEADER: usize = 16;
/// Length of what nfnetlink puts before the attributes: family, version, resource.
const GENERIC: usize = 4;
/// Length of an attribute's own header.
const ATTRIBUTE: usize = 4;

// Flags.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

// Kinds of messages.
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(super) const NEW_CHAIN: u16 = NFNL_SUBSYS_NFTABLES << 8 | 3;
pub(super) const GET_CHAIN: u16 = NFNL_SUBSYS_NFTABLES << 8 | 4;
pub(super) const NEW_RULE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 6;
pub(super) const GET_RULE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 7;
pub(super) const DELETE_RULE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 8;
pub(super) const GET_SET: u16 = NFNL_SUBSYS_NFTABLES << 8 | 10;
pub(super) const NEW_ELEMENT: u16 = NFNL_SUBSYS_NFTABLES << 8 | 12;
pub(super) const GET_ELEMENT: u16 = NFNL_SUBSYS_NFTABLES << 8 | 13;
pub(super) const DELETE_ELEMENT: u16 = NFNL_SUBSYS_NFTABLES << 8 | 14;
pub(super) const GET_GENERATION: u16 = NFNL_SUBSYS_NFTABLES << 8 | 16;

/// Attribute of a batch's beginning: the generation that the change is meant for.
const NFNL_BATCH_GENID: u16 = 1;
const NESTED: u16 = 0x8000;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;

/// Messages that are written one after the other.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// Messages so far.
    messages: u32,
    /// Where the last one begins.
    last: usize,
}

/// Where a message or an attribute began whose length is not known yet.
#[must_use]
#[derive(Clone, Copy)]
pub(super) struct Begun(usize);

impl Writer {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Begins a message about tables of family `inet`.
    pub(super) fn message(&mut self, kind: u16, flags: u16) -> Begun {
        self.header(kind, flags, NFPROTO_INET, 0)
    }

    /// Begins a transaction that the kernel refuses unless it has this generation of tables.
    pub(super) fn begin(&mut self, generation: u32) {
        let message = self.header(NFNL_MSG_BATCH_BEGIN, 0, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES);
        self.attribute(NFNL_BATCH_GENID, &generation.to_be_bytes());
        self.end_message(message);
    }

    /// Ends a transaction. Its last message is answered; others are only if the kernel refuses them.
    pub(super) fn commit(&mut self) {
        let flags = self.last + 6;
        if let Some(found) = take(&self.bytes, flags).map(u16::from_ne_bytes) {
            self.bytes[flags..flags + 2].copy_from_slice(&(found | NLM_F_ACK).to_ne_bytes());
        }
        let message = self.header(NFNL_MSG_BATCH_END, 0, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES);
        self.end_message(message);
    }

    pub(super) fn end_message(&mut self, begun: Begun) {
        let length = u32::try_from(self.bytes.len() - begun.0).expect("messages are below 64 KiB");
        self.bytes[begun.0..begun.0 + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Writes an attribute, filled up to a multiple of four bytes.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE + value.len()).expect("names and keys are short");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.fill();
    }

    /// Writes a number in network byte order.
    pub(super) fn number(&mut self, kind: u16, number: u32) {
        self.attribute(kind, &number.to_be_bytes());
    }

    /// Writes a text, which ends with a zero in netlink.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, &[text.as_bytes(), &[0]].concat());
    }

    /// Begins an attribute that has attributes.
    pub(super) fn nest(&mut self, kind: u16) -> Begun {
        let begun = Begun(self.bytes.len());
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        begun
    }

    pub(super) fn end_nest(&mut self, begun: Begun) {
        let length = u16::try_from(self.bytes.len() - begun.0).expect("messages are below 64 KiB");
        self.bytes[begun.0..begun.0 + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn header(&mut self, kind: u16, flags: u16, family: u8, resource: u16) -> Begun {
        let begun = Begun(self.bytes.len());
        self.messages += 1;
        self.last = begun.0;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.messages.to_ne_bytes());
        // The sender, which the kernel fills in.
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        begun
    }

    fn fill(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message as it was received.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    #[cfg(test)]
    flags: u16,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Returns the messages in one datagram; what is cut off is left out.
    pub(super) fn all(mut bytes: &'a [u8]) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let length = usize::try_from(u32::from_ne_bytes(take(bytes, 0)?)).ok()?;
            let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            let number = |at| take(message, at).map(u16::from_ne_bytes);
            Some(Self {
                kind: number(4)?,
                #[cfg(test)]
                flags: number(6)?,
                body: &message[HEADER..],
            })
        })
    }

    /// Returns the attributes of a message that is no error.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.body.get(GENERIC..).unwrap_or_default())
    }

    /// Returns the error number of an answer or the end of a dump, 0 for success; `None` if there is none.
    pub(super) fn error(&self) -> Option<i32> {
        take(self.body, 0).map(|bytes| i32::from_ne_bytes(bytes).saturating_abs())
    }
}

/// Attributes one after the other.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Returns the first attribute of a kind.
    pub(super) fn get(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// Returns the attributes within the first attribute of a kind.
    pub(super) fn nested(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Self)
    }

    /// Returns the attributes within an attribute's value.
    pub(super) fn within(value: &'a [u8]) -> Self {
        Self(value)
    }

    /// Returns an attribute that is a number in network byte order.
    pub(super) fn number(self, kind: u16) -> Option<u32> {
        self.get(kind).and_then(|value| take(value, 0)).map(u32::from_be_bytes)
    }

    /// Returns an attribute that is a text.
    pub(super) fn text(self, kind: u16) -> Option<&'a str> {
        let value = self.get(kind)?;
        std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
    }

    /// Returns all of these as they stand.
    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(take(self.0, 0)?));
        let kind = u16::from_ne_bytes(take(self.0, 2)?) & !NESTED;
        let value = self.0.get(ATTRIBUTE..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.begin(7);
        let message = writer.message(NEW_ELEMENT, NLM_F_CREATE);
        writer.text(1, "table");
        let nest = writer.nest(3);
        writer.attribute(2, &[1, 2, 3]);
        writer.attribute(5, &9_u32.to_be_bytes());
        writer.end_nest(nest);
        writer.end_message(message);
        writer.commit();
        let bytes = writer.into_bytes();

        let messages: Vec<Message<'_>> = Message::all(&bytes).collect();
        let kinds: Vec<u16> = messages.iter().map(|message| message.kind).collect();
        assert_eq!(kinds, [NFNL_MSG_BATCH_BEGIN, NEW_ELEMENT, NFNL_MSG_BATCH_END]);
        assert_eq!(messages[0].attributes().number(NFNL_BATCH_GENID), Some(7));
        assert_eq!(messages[1].flags, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK);
        let attributes = messages[1].attributes();
        assert_eq!(attributes.text(1), Some("table"));
        let nested = attributes.nested(3).unwrap();
        assert_eq!((nested.get(2), nested.number(5)), (Some(&[1, 2, 3][..]), Some(9)));
        assert_eq!(attributes.get(4), None);
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        let mut writer = Writer::default();
        writer.begin(7);
        let bytes = writer.into_bytes();
        for length in 0..bytes.len() {
            assert_eq!(Message::all(&bytes[..length]).count(), 0);
        }
        assert_eq!(Attributes::within(&[200, 0, 1, 0, 5]).count(), 0);
        assert_eq!(Attributes::within(&[0, 0, 1, 0, 5, 0, 0, 0]).count(), 0);
    }
}
