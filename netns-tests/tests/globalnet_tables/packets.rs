//! IP packets by hand: what a kernel without sockets of ours sees of a conversation. Checksums of every packet that is
//! read are held against its content.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_model::IpFamily;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
/// IPsec (RFC 4303): no ports, and nothing that a kernel without keys could check.
const ESP: u8 = 50;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// SCTP chunks (RFC 9260 section 3.2).
pub(crate) const INIT: u8 = 1;
pub(crate) const INIT_ACK: u8 = 2;
pub(crate) const COOKIE_ECHO: u8 = 10;
pub(crate) const COOKIE_ACK: u8 = 11;

/// An IP packet of either family.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) content: Content,
}

/// What a packet carries. Ports are source and destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Tcp {
        ports: (u16, u16),
        flags: u8,
        sequence: u32,
        acknowledged: u32,
    },
    Udp {
        ports: (u16, u16),
    },
    /// One chunk; INIT and INIT ACK name the tag that their sender wants.
    Sctp {
        ports: (u16, u16),
        tag: u32,
        chunk: u8,
        wanted: u32,
    },
    Echo {
        is_reply: bool,
        id: u16,
    },
    Esp,
    /// "Port unreachable" of either family, and the packet that it is about.
    Unreachable(Box<Packet>),
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} {:?}", self.source, self.destination, self.content)
    }
}

impl Packet {
    /// Returns the packet as the kernel takes it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (protocol, mut content) = self.content();
        let at = match protocol {
            TCP => Some(16),
            UDP => Some(6),
            ICMP | ICMPV6 => Some(2),
            _ => None,
        };
        if let Some(at) = at {
            let sum = checksum(&self.pseudo_header(protocol, content.len()), &content);
            content[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        if protocol == SCTP {
            let sum = crc32c(&content);
            content[8..12].copy_from_slice(&sum.to_le_bytes());
        }
        let length = |more: usize| u16::try_from(content.len() + more).unwrap().to_be_bytes();
        let mut packet = Vec::new();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                packet.extend_from_slice(&[0x45, 0]);
                packet.extend_from_slice(&length(IPV4_HEADER));
                packet.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
                packet.extend_from_slice(&source.octets());
                packet.extend_from_slice(&destination.octets());
                let sum = checksum(&[], &packet);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                packet.extend_from_slice(&[0x60, 0, 0, 0]);
                packet.extend_from_slice(&length(0));
                packet.extend_from_slice(&[protocol, 64]);
                packet.extend_from_slice(&source.octets());
                packet.extend_from_slice(&destination.octets());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("addresses of two families"),
        }
        packet.extend_from_slice(&content);
        packet
    }

    /// Returns where it comes from; the port is an echo's id, and 0 where there is none.
    pub(crate) fn sender(&self) -> Point {
        let port = match &self.content {
            Content::Tcp { ports, .. } | Content::Udp { ports } | Content::Sctp { ports, .. } => ports.0,
            Content::Echo { id, .. } => *id,
            Content::Esp | Content::Unreachable(_) => 0,
        };
        (self.source, port)
    }

    /// Returns protocol number and content, checksums left out.
    fn content(&self) -> (u8, Vec<u8>) {
        let family = IpFamily::of(self.source);
        let icmp = if family == IpFamily::V4 { ICMP } else { ICMPV6 };
        let of_ports = |(source, destination): (u16, u16)| [source.to_be_bytes(), destination.to_be_bytes()].concat();
        match &self.content {
            Content::Tcp { ports, flags, sequence, acknowledged } => {
                let mut content = of_ports(*ports);
                content.extend_from_slice(&sequence.to_be_bytes());
                content.extend_from_slice(&acknowledged.to_be_bytes());
                content.extend_from_slice(&[0x50, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                (TCP, content)
            }
            Content::Udp { ports } => {
                let mut content = of_ports(*ports);
                content.extend_from_slice(&[0, 12, 0, 0]);
                content.extend_from_slice(b"word");
                (UDP, content)
            }
            Content::Sctp { ports, tag, chunk, wanted } => {
                let mut content = of_ports(*ports);
                content.extend_from_slice(&tag.to_be_bytes());
                content.extend_from_slice(&[0; 4]);
                if matches!(*chunk, INIT | INIT_ACK) {
                    content.extend_from_slice(&[*chunk, 0, 0, 20]);
                    content.extend_from_slice(&wanted.to_be_bytes());
                    // Window, streams out and in, first number.
                    content.extend_from_slice(&[0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1]);
                } else {
                    content.extend_from_slice(&[*chunk, 0, 0, 4]);
                }
                (SCTP, content)
            }
            Content::Echo { is_reply, id } => {
                let kind = match (family, is_reply) {
                    (IpFamily::V4, false) => 8,
                    (IpFamily::V4, true) => 0,
                    (IpFamily::V6, false) => 128,
                    (IpFamily::V6, true) => 129,
                };
                let [high, low] = id.to_be_bytes();
                (icmp, vec![kind, 0, 0, 0, high, low, 0, 1, b'w', b'o', b'r', b'd'])
            }
            Content::Esp => (ESP, b"spi and number".to_vec()),
            Content::Unreachable(about) => {
                let (kind, code) = if family == IpFamily::V4 { (3, 3) } else { (1, 4) };
                let mut content = vec![kind, code, 0, 0, 0, 0, 0, 0];
                content.extend_from_slice(&about.bytes());
                (icmp, content)
            }
        }
    }

    /// Returns what a checksum covers of the header (RFC 9293 section 3.1, RFC 8200 section 8.1); ICMP of IPv4 has none.
    fn pseudo_header(&self, protocol: u8, length: usize) -> Vec<u8> {
        let length = u16::try_from(length).unwrap().to_be_bytes();
        let mut header = match (self.source, self.destination) {
            (IpAddr::V4(_), _) if protocol == ICMP => return Vec::new(),
            (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
            (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("addresses of two families"),
        };
        header.extend_from_slice(&[0, protocol]);
        header.extend_from_slice(&length);
        header
    }

    /// Reads a packet.
    ///
    /// # Panics
    ///
    /// If a checksum is wrong, or it is nothing that anybody sends in these tests.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        Self::parse_as(bytes, true)
    }

    /// Reads a packet; one within another has been changed on its way without its checksum.
    fn parse_as(bytes: &[u8], is_outer: bool) -> Self {
        let (source, destination, protocol, content) = if bytes[0] >> 4 == 4 {
            assert!(!is_outer || checksum(&[], &bytes[..IPV4_HEADER]) == 0, "checksum of {bytes:x?}");
            let address = |at: usize| IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap()));
            (address(12), address(16), bytes[9], &bytes[usize::from(bytes[0] & 0xf) * 4..])
        } else {
            let address = |at: usize| IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap()));
            (address(8), address(24), bytes[6], &bytes[IPV6_HEADER..])
        };
        let mut packet = Self { source, destination, content: Content::Esp };
        if is_outer && matches!(protocol, TCP | UDP | ICMP | ICMPV6) {
            let sum = checksum(&packet.pseudo_header(protocol, content.len()), content);
            assert_eq!(sum, 0, "checksum of {packet:?}: {bytes:x?}");
        }
        if is_outer && protocol == SCTP {
            let mut zeroed = content.to_vec();
            zeroed[8..12].fill(0);
            assert_eq!(crc32c(&zeroed).to_le_bytes(), content[8..12], "checksum of {packet:?}: {bytes:x?}");
        }
        let short = |at: usize| u16::from_be_bytes([content[at], content[at + 1]]);
        let long = |at: usize| u32::from_be_bytes(content[at..at + 4].try_into().unwrap());
        let ports = || (short(0), short(2));
        packet.content = match protocol {
            TCP => Content::Tcp { ports: ports(), flags: content[13], sequence: long(4), acknowledged: long(8) },
            UDP => Content::Udp { ports: ports() },
            SCTP => {
                let wanted = if matches!(content[12], INIT | INIT_ACK) { long(16) } else { 0 };
                Content::Sctp { ports: ports(), tag: long(4), chunk: content[12], wanted }
            }
            ICMP | ICMPV6 => match (protocol, content[0], content[1]) {
                (ICMP, 8, 0) | (ICMPV6, 128, 0) => Content::Echo { is_reply: false, id: short(4) },
                (ICMP, 0, 0) | (ICMPV6, 129, 0) => Content::Echo { is_reply: true, id: short(4) },
                (ICMP, 3, 3) | (ICMPV6, 1, 4) => Content::Unreachable(Box::new(Self::parse_as(&content[8..], false))),
                (_, kind, code) => panic!("{packet:?} of ICMP type {kind} code {code}"),
            },
            ESP => Content::Esp,
            other => panic!("{packet:?} of protocol {other}"),
        };
        packet
    }
}

/// Returns the Internet checksum (RFC 1071) of a header and what follows it.
fn checksum(header: &[u8], content: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]));
    let mut sum: u32 = header.chunks(2).chain(content.chunks(2)).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Returns the checksum of an SCTP packet (RFC 9260 appendix A), which stands in it with the lowest byte first.
fn crc32c(content: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in content {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !sum
}

/// What a conversation is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Sctp,
    /// Pings; the client's port is their id.
    Echo,
    /// Packets of IPsec, which have no ports.
    Esp,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [Self::Tcp, Self::Udp, Self::Sctp, Self::Echo, Self::Esp];
}

/// Address and port.
pub(crate) type Point = (IpAddr, u16);

/// A conversation between two points, as it looks somewhere on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Talk {
    pub(crate) kind: Kind,
    pub(crate) client: Point,
    pub(crate) server: Point,
}

/// The packets of a conversation in their order; the last two may come again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Opening,
    Answer,
    More,
    MoreAnswer,
}

/// Tags and sequence numbers that clients and servers begin with.
const CLIENT: u32 = 1000;
const SERVER: u32 = 5000;

impl Talk {
    pub(crate) fn packet(&self, step: Step) -> Packet {
        let is_answer = matches!(step, Step::Answer | Step::MoreAnswer);
        let (from, to) = if is_answer { (self.server, self.client) } else { (self.client, self.server) };
        let ports = (from.1, to.1);
        let content = match self.kind {
            Kind::Tcp => {
                let (flags, sequence, acknowledged) = match step {
                    Step::Opening => (SYN, CLIENT, 0),
                    Step::Answer => (SYN | ACK, SERVER, CLIENT + 1),
                    Step::More => (ACK, CLIENT + 1, SERVER + 1),
                    Step::MoreAnswer => (ACK, SERVER + 1, CLIENT + 1),
                };
                Content::Tcp { ports, flags, sequence, acknowledged }
            }
            Kind::Udp => Content::Udp { ports },
            Kind::Sctp => {
                let (tag, chunk, wanted) = match step {
                    Step::Opening => (0, INIT, CLIENT),
                    Step::Answer => (CLIENT, INIT_ACK, SERVER),
                    Step::More => (SERVER, COOKIE_ECHO, 0),
                    Step::MoreAnswer => (CLIENT, COOKIE_ACK, 0),
                };
                Content::Sctp { ports, tag, chunk, wanted }
            }
            Kind::Echo => Content::Echo { is_reply: is_answer, id: self.client.1 },
            Kind::Esp => Content::Esp,
        };
        Packet { source: from.0, destination: to.0, content }
    }
}

/// Returns how somebody who has nothing at a port refuses a packet to it: TCP resets.
pub(crate) fn refusal(of: &Packet) -> Packet {
    let Content::Tcp { ports: (source, destination), sequence, .. } = of.content else { return unreachable(of) };
    let acknowledged = sequence + 1;
    let content = Content::Tcp { ports: (destination, source), flags: RST | ACK, sequence: 0, acknowledged };
    Packet { source: of.destination, destination: of.source, content }
}

/// Returns the error of whoever was asked.
pub(crate) fn unreachable(of: &Packet) -> Packet {
    Packet { source: of.destination, destination: of.source, content: Content::Unreachable(Box::new(of.clone())) }
}
