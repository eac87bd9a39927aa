//! Cuts a super-packet from the TUN into the packets it stands for, as the kernel would have (TSO, USO).
//!
//! Sequence numbers and IPv4 ids count up, FIN and PSH go to the last packet, CWR to the first, checksums are complete.

use crate::checksum;
use crate::packet::{CWR, FIN, PSH, Packet, TCP, TCP_FLAGS, Transport, UDP, set_ip_length};
use crate::tun::{SegmentKind, VirtioHeader};

/// The packets of one read from the TUN.
pub(crate) struct Cut<'a> {
    packet: &'a mut [u8],
    parsed: Packet,
    plan: Plan,
}

enum Plan {
    /// One packet, ready as it is.
    Whole { taken: bool },
    /// Headers up to `transport.payload`, then payload in steps of `size`.
    Pieces { transport: Transport, size: usize, at: usize },
}

impl<'a> Cut<'a> {
    /// Prepares `packet` for cutting; `None` if header and packet contradict each other.
    pub(crate) fn new(header: &VirtioHeader, packet: &'a mut [u8]) -> Option<Self> {
        let parsed = match header.segments {
            None => Packet::parse(packet)?,
            // The length in the header of a super-packet may be zero or short: what counts is what was read.
            Some(_) => {
                let length = packet.len();
                (length >= 40).then(|| set_ip_length(packet, length))?;
                Packet::parse(packet)?
            }
        };
        let plan = match header.segments {
            None => {
                if let Some((start, offset)) = header.checksum {
                    complete_checksum(&mut packet[..parsed.length], start, offset)?;
                }
                Plan::Whole { taken: false }
            }
            Some(segments) => {
                let transport = parsed.transport?;
                let expected = match segments.kind {
                    SegmentKind::TcpV4 => (TCP, 20),
                    SegmentKind::TcpV6 => (TCP, 40),
                    SegmentKind::Udp => (UDP, transport.start),
                };
                let size = usize::from(segments.size);
                if (transport.protocol, transport.start) != expected || size == 0 {
                    return None;
                }
                Plan::Pieces { transport, size, at: transport.payload }
            }
        };
        Some(Self { packet, parsed, plan })
    }

    /// Returns what all packets have in common.
    pub(crate) fn parsed(&self) -> &Packet {
        &self.parsed
    }

    /// Returns the next packet, built in `scratch` where it has to be built.
    pub(crate) fn next<'b>(&'b mut self, scratch: &'b mut [u8]) -> Option<&'b [u8]> {
        match &mut self.plan {
            Plan::Whole { taken } => {
                let first = !std::mem::replace(taken, true);
                first.then_some(&self.packet[..self.parsed.length])
            }
            Plan::Pieces { transport, size, at } => {
                let transport = *transport;
                if *at >= self.packet.len() {
                    return None;
                }
                let start = *at;
                let end = (start + *size).min(self.packet.len());
                *at = end;
                let index = (start - transport.payload) / *size;
                let length = transport.payload + (end - start);
                let piece = scratch.get_mut(..length)?;
                piece[..transport.payload].copy_from_slice(&self.packet[..transport.payload]);
                piece[transport.payload..].copy_from_slice(&self.packet[start..end]);
                let position = Position { index, offset: start - transport.payload, last: end == self.packet.len() };
                finish_piece(piece, &self.parsed, transport, position);
                Some(piece)
            }
        }
    }
}

/// Where a piece lies in its super-packet.
struct Position {
    index: usize,
    /// Payload bytes before it.
    offset: usize,
    last: bool,
}

fn finish_piece(piece: &mut [u8], parsed: &Packet, transport: Transport, position: Position) {
    let length = piece.len();
    if transport.start == 20 {
        let id = u16::from_be_bytes([piece[4], piece[5]]).wrapping_add(position.index as u16);
        piece[4..6].copy_from_slice(&id.to_be_bytes());
    }
    set_ip_length(piece, length);
    let segment = &mut piece[transport.start..];
    if transport.protocol == TCP {
        let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
        segment[4..8].copy_from_slice(&sequence.wrapping_add(position.offset as u32).to_be_bytes());
        if !position.last {
            segment[TCP_FLAGS] &= !(FIN | PSH);
        }
        if position.index > 0 {
            segment[TCP_FLAGS] &= !CWR;
        }
    } else {
        let length = segment.len() as u16;
        segment[4..6].copy_from_slice(&length.to_be_bytes());
    }
    let field = transport.checksum_offset();
    segment[field..field + 2].fill(0);
    let pseudo = checksum::pseudo_header(parsed.source, parsed.destination, transport.protocol, segment.len());
    let mut sum = checksum::finish(checksum::add(pseudo, segment));
    // RFC 768: a UDP checksum that comes out as zero is sent as ones.
    if transport.protocol == UDP && sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    segment[field..field + 2].copy_from_slice(&sum);
}

/// Completes a checksum of which the kernel has left the sum over the pseudo header in the field.
fn complete_checksum(packet: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let field = start.checked_add(offset)?;
    if field + 2 > packet.len() {
        return None;
    }
    let mut sum = checksum::finish(checksum::add(0, &packet[start..]));
    if offset == 6 && sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    packet[field..field + 2].copy_from_slice(&sum);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ACK, build};
    use crate::tun::Segments;

    const EAST: [u8; 4] = [10, 1, 0, 1];
    const WEST: [u8; 4] = [10, 2, 0, 1];

    fn pieces(header: VirtioHeader, mut packet: Vec<u8>) -> Vec<Vec<u8>> {
        let mut scratch = vec![0; 65_536];
        let mut cut = Cut::new(&header, &mut packet).expect("a packet that can be cut");
        let mut pieces = Vec::new();
        while let Some(piece) = cut.next(&mut scratch) {
            pieces.push(piece.to_vec());
        }
        pieces
    }

    fn segments(kind: SegmentKind, size: u16) -> VirtioHeader {
        VirtioHeader { checksum: Some((20, 16)), segments: Some(Segments { kind, size }), header_length: 40 }
    }

    #[test]
    fn a_tcp_super_packet_is_cut_as_the_sender_would_have() {
        let payload: Vec<u8> = (0..2500u32).map(|n| n as u8).collect();
        let pieces = pieces(
            segments(SegmentKind::TcpV4, 1000),
            build::tcp(EAST, WEST, u32::MAX - 999, ACK | PSH | FIN | CWR, &payload),
        );
        let mut expected = vec![
            build::tcp(EAST, WEST, u32::MAX - 999, ACK | CWR, &payload[..1000]),
            build::tcp(EAST, WEST, 0, ACK, &payload[1000..2000]),
            build::tcp(EAST, WEST, 1000, ACK | PSH | FIN, &payload[2000..]),
        ];
        for (index, packet) in expected.iter_mut().enumerate() {
            packet[5] += index as u8;
            crate::packet::set_ipv4_checksum(packet);
        }
        assert_eq!(pieces, expected);
    }

    #[test]
    fn a_udp_super_packet_is_cut_into_datagrams() {
        let payload = vec![9; 250];
        let pieces = pieces(segments(SegmentKind::Udp, 100), build::udp(EAST, WEST, &payload));
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [128, 128, 78]);
        let mut last = build::udp(EAST, WEST, &payload[200..]);
        last[5] += 2;
        crate::packet::set_ipv4_checksum(&mut last);
        assert_eq!(pieces[2], last);
    }

    #[test]
    fn a_checksum_is_completed() {
        let whole = build::tcp(EAST, WEST, 1, ACK, b"payload");
        let mut packet = whole.clone();
        let pseudo = checksum::pseudo_header(EAST.into(), WEST.into(), TCP, packet.len() - 20);
        packet[36..38].copy_from_slice(&checksum::partial(pseudo));
        let header = VirtioHeader { checksum: Some((20, 16)), ..VirtioHeader::default() };
        assert_eq!(pieces(header, packet), [whole]);
    }

    #[test]
    fn contradictions_are_refused() {
        let udp = build::udp(EAST, WEST, &[0; 100]);
        let tcp = build::tcp(EAST, WEST, 1, ACK, &[0; 100]);
        for (header, mut packet) in [
            (segments(SegmentKind::TcpV4, 50), udp.clone()),
            (segments(SegmentKind::TcpV6, 50), tcp.clone()),
            (segments(SegmentKind::TcpV4, 0), tcp.clone()),
            (segments(SegmentKind::Udp, 50), tcp.clone()),
            (segments(SegmentKind::Udp, 50), vec![0x45; 12]),
            (VirtioHeader { checksum: Some((20, 65_000)), ..VirtioHeader::default() }, tcp.clone()),
            (VirtioHeader::default(), Vec::new()),
        ] {
            assert!(Cut::new(&header, &mut packet).is_none(), "{header:?}");
        }
    }
}
