//! Reads IP, TCP and UDP headers in place; whatever is not well formed is `None`, never a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Offset of the flags byte in a TCP header, and its bits (RFC 9293 section 3.1).
pub(crate) const TCP_FLAGS: usize = 13;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const CWR: u8 = 0x80;

/// What the forwarder needs to know of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The transport protocol, if its header follows the fixed IP header at once; otherwise `None` (options, extension
    /// headers, fragments).
    pub(crate) transport: Option<Transport>,
    /// Length by the IP header, in bytes; never more than the buffer.
    pub(crate) length: usize,
}

/// A TCP or UDP header that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transport {
    /// [`TCP`] or [`UDP`].
    pub(crate) protocol: u8,
    /// Offset of the transport header: 20 or 40.
    pub(crate) start: usize,
    /// Offset of the payload.
    pub(crate) payload: usize,
}

impl Packet {
    /// Parses the header of an IPv4 or IPv6 packet.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<20>()?;
        let header_length = usize::from(header[0] & 0x0f) * 4;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_length < 20 || length < header_length || length > bytes.len() {
            return None;
        }
        let address = |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
        let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        let plain = header_length == 20 && !is_fragment;
        Some(Self {
            source: address(12),
            destination: address(16),
            transport: if plain { Transport::parse(&bytes[..length], header[9], 20) } else { None },
            length,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<40>()?;
        let length = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if length > bytes.len() {
            return None;
        }
        let address = |at: usize| {
            let octets: [u8; 16] = header[at..at + 16].try_into().expect("sixteen of forty bytes");
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        Some(Self {
            source: address(8),
            destination: address(24),
            transport: Transport::parse(&bytes[..length], header[6], 40),
            length,
        })
    }
}

impl Transport {
    fn parse(packet: &[u8], protocol: u8, start: usize) -> Option<Self> {
        let header = &packet[start..];
        let header_length = match protocol {
            TCP if header.len() >= 20 => usize::from(header[12] >> 4) * 4,
            UDP if header.len() >= 8 => 8,
            _ => return None,
        };
        let whole = header_length <= header.len() && (protocol == UDP || header_length >= 20);
        whole.then_some(Self { protocol, start, payload: start + header_length })
    }

    /// Offset of the checksum within the transport header.
    pub(crate) fn checksum_offset(&self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }
}

/// Writes the length of the whole packet into the IP header, and IPv4's header checksum.
pub(crate) fn set_ip_length(packet: &mut [u8], length: usize) {
    let is_v4 = packet[0] >> 4 == 4;
    // Callers hold to 65,535 bytes: the TUN delivers and takes no more.
    let field = u16::try_from(if is_v4 { length } else { length - 40 }).unwrap_or(u16::MAX).to_be_bytes();
    if is_v4 {
        packet[2..4].copy_from_slice(&field);
        set_ipv4_checksum(packet);
    } else {
        packet[4..6].copy_from_slice(&field);
    }
}

/// Computes the header checksum of an IPv4 packet without options.
pub(crate) fn set_ipv4_checksum(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = crate::checksum::finish(crate::checksum::add(0, &packet[..20]));
    packet[10..12].copy_from_slice(&sum);
}

#[cfg(test)]
pub(crate) mod build {
    //! Packets for tests.

    use super::{TCP, UDP};
    use crate::checksum;

    /// Returns an IPv4 packet with a correct header, of `protocol` around `segment` (checksum at `field` computed).
    fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, segment: &[u8], field: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet.extend(segment);
        let length = packet.len();
        super::set_ip_length(&mut packet, length);
        let pseudo = checksum::pseudo_header(source.into(), destination.into(), protocol, segment.len());
        packet[20 + field..22 + field].fill(0);
        let sum = checksum::finish(checksum::add(pseudo, &packet[20..]));
        packet[20 + field..22 + field].copy_from_slice(&sum);
        packet
    }

    pub(crate) fn tcp(source: [u8; 4], destination: [u8; 4], sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(40_000u16.to_be_bytes());
        segment.extend(80u16.to_be_bytes());
        segment.extend(sequence.to_be_bytes());
        segment.extend(77u32.to_be_bytes());
        segment.extend([0x50, flags, 0x10, 0, 0, 0, 0, 0]);
        segment.extend(payload);
        ipv4(source, destination, TCP, &segment, 16)
    }

    pub(crate) fn udp(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(40_001u16.to_be_bytes());
        segment.extend(53u16.to_be_bytes());
        segment.extend(u16::try_from(payload.len() + 8).expect("short").to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(payload);
        ipv4(source, destination, UDP, &segment, 6)
    }

    /// Returns an ICMP echo request.
    pub(crate) fn icmp(source: [u8; 4], destination: [u8; 4], sequence: u16) -> Vec<u8> {
        let mut segment = vec![8, 0, 0, 0, 0, 1];
        segment.extend(sequence.to_be_bytes());
        segment.extend([0xaa; 56]);
        ipv4(source, destination, 1, &segment, 2)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tcp_header_is_found() {
        let packet = build::tcp([10, 1, 0, 1], [10, 2, 0, 1], 5, ACK, b"hello");
        let parsed = Packet::parse(&packet).expect("a packet");
        assert_eq!(parsed.destination, IpAddr::from([10, 2, 0, 1]));
        assert_eq!(parsed.transport, Some(Transport { protocol: TCP, start: 20, payload: 40 }));
    }

    #[test]
    fn a_fragment_has_no_transport_header() {
        let mut packet = build::udp([10, 1, 0, 1], [10, 2, 0, 1], &[0; 64]);
        packet[6] = 0x20;
        assert_eq!(Packet::parse(&packet).expect("a packet").transport, None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Some(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.length <= bytes.len());
                if let Some(transport) = packet.transport {
                    prop_assert!(transport.payload <= packet.length);
                }
            }
        }
    }
}
