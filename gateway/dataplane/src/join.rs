//! Joins packets that were opened in one go into super-packets for the TUN, by the rules of the kernel's own GRO.
//!
//! Only what the kernel would cut again into the very same packets is joined: consecutive TCP segments with equal
//! headers, or UDP datagrams of one flow and size. A checksum is verified before a packet is joined, since the kernel
//! is then told to complete it and would launder a bad one. Everything else passes alone, in its place: packets of one
//! flow never overtake each other.

use std::io::IoSlice;
use std::net::IpAddr;

use crate::checksum;
use crate::packet::{ACK, PSH, Packet, TCP, TCP_FLAGS, Transport, UDP, set_ip_length};
use crate::tun::{HEADER, Offloads, SegmentKind, Segments, VirtioHeader};

/// Packets joined at most; the kernel takes 64 KiB in one piece.
const MAX_JOINED: usize = 64;
const MAX_BYTES: usize = 65_535;
/// Groups that are looked through for a packet's flow, newest first.
const MAX_LOOKED_THROUGH: usize = 16;

/// Opened packets in the order in which they shall reach the TUN.
pub(crate) struct Joiner {
    /// Bytes of all packets, each behind room for a virtio header.
    bytes: Vec<u8>,
    used: usize,
    groups: Vec<Group>,
    /// Groups in use; the others are kept for their allocations.
    count: usize,
    offloads: Offloads,
}

/// One write to the TUN.
#[derive(Debug, Default)]
struct Group {
    /// First byte and length of the first packet, headers included.
    start: usize,
    length: usize,
    /// Payloads that follow it.
    more: Vec<(usize, usize)>,
    flow: Option<Flow>,
}

/// What a further packet of the group must continue.
#[derive(Clone, Copy, Debug)]
struct Flow {
    source: IpAddr,
    destination: IpAddr,
    transport: Transport,
    /// Payload of the first packet.
    size: usize,
    /// TCP: the sequence number that continues the group.
    next_sequence: u32,
    /// Bytes of the group so far.
    total: usize,
    /// Set by a shorter packet or PSH: nothing may follow.
    closed: bool,
}

impl Joiner {
    /// Makes a joiner with room for `capacity` bytes for a device that takes these super-packets.
    pub(crate) fn new(capacity: usize, offloads: Offloads) -> Self {
        Self { bytes: vec![0; capacity], used: 0, groups: Vec::new(), count: 0, offloads }
    }

    /// Returns room for at least `length` bytes, or `None` when the joiner has to be emptied first.
    pub(crate) fn slot(&mut self, length: usize) -> Option<&mut [u8]> {
        self.bytes.get_mut(self.used + HEADER..).filter(|slot| slot.len() >= length)
    }

    /// Takes the packet at the start of the slot.
    pub(crate) fn push(&mut self, packet: &Packet) {
        let start = self.used + HEADER;
        self.used = start + packet.length;
        let candidate = self.candidate(packet, start);
        if let Some(candidate) = candidate
            && let Some(position) = self.newest_of_flow(&candidate)
            && self.joins(&self.groups[position], &candidate, start)
        {
            let group = &mut self.groups[position];
            let payload = candidate.size;
            group.more.push((start + candidate.transport.payload, payload));
            let pushes = self.bytes[start + candidate.transport.start + TCP_FLAGS] & PSH != 0;
            if candidate.transport.protocol == TCP && pushes {
                self.bytes[group.start + candidate.transport.start + TCP_FLAGS] |= PSH;
            }
            let flow = group.flow.as_mut().expect("only groups with a flow are found");
            flow.total += payload;
            flow.next_sequence = flow.next_sequence.wrapping_add(payload as u32);
            flow.closed = payload < flow.size || candidate.closed || group.more.len() + 1 == MAX_JOINED;
            return;
        }
        if candidate.is_none() {
            self.close(packet);
        }
        if self.count == self.groups.len() {
            self.groups.push(Group::default());
        }
        let group = &mut self.groups[self.count];
        self.count += 1;
        group.start = start;
        group.length = packet.length;
        group.more.clear();
        group.flow = candidate;
    }

    /// Lets nothing more join the flows between a packet's addresses: the packet stands alone and keeps its place.
    fn close(&mut self, packet: &Packet) {
        let oldest = self.count.saturating_sub(MAX_LOOKED_THROUGH);
        let flows = self.groups[oldest..self.count].iter_mut().filter_map(|group| group.flow.as_mut());
        for flow in flows.filter(|flow| flow.source == packet.source && flow.destination == packet.destination) {
            flow.closed = true;
        }
    }

    /// Returns what a packet must be to start or continue a group, or `None` if it has to pass alone.
    fn candidate(&self, packet: &Packet, start: usize) -> Option<Flow> {
        let transport = packet.transport?;
        let bytes = &self.bytes[start..start + packet.length];
        let size = packet.length - transport.payload;
        let segment = &bytes[transport.start..];
        let (next_sequence, closed) = match transport.protocol {
            TCP if self.offloads != Offloads::Nothing && segment[TCP_FLAGS] & !PSH == ACK => {
                let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
                (sequence.wrapping_add(size as u32), segment[TCP_FLAGS] & PSH != 0)
            }
            UDP if self.offloads == Offloads::TcpAndUdp => {
                let length = usize::from(u16::from_be_bytes([segment[4], segment[5]]));
                let checked = segment[6..8] != [0, 0] && length == segment.len();
                checked.then_some((0, false))?
            }
            _ => return None,
        };
        if size == 0 {
            return None;
        }
        let pseudo = checksum::pseudo_header(packet.source, packet.destination, transport.protocol, segment.len());
        checksum::is_intact(checksum::add(pseudo, segment)).then_some(Flow {
            source: packet.source,
            destination: packet.destination,
            transport,
            size,
            next_sequence,
            total: packet.length,
            closed,
        })
    }

    /// Returns the newest group of the same flow; an older one must not be continued, or packets would be reordered.
    fn newest_of_flow(&self, candidate: &Flow) -> Option<usize> {
        let oldest = self.count.saturating_sub(MAX_LOOKED_THROUGH);
        (oldest..self.count).rev().find(|&position| {
            let group = &self.groups[position];
            let ports = |start: usize| &self.bytes[start + candidate.transport.start..][..4];
            match group.flow {
                Some(flow) => {
                    flow.source == candidate.source
                        && flow.destination == candidate.destination
                        && flow.transport.protocol == candidate.transport.protocol
                        && ports(group.start) == ports(self.used - (candidate.transport.payload + candidate.size))
                }
                None => false,
            }
        })
    }

    /// Tells whether the packet at `start` continues `group`.
    fn joins(&self, group: &Group, candidate: &Flow, start: usize) -> bool {
        let Some(flow) = group.flow else { return false };
        if flow.closed
            || flow.transport != candidate.transport
            || candidate.size > flow.size
            || flow.total + candidate.size > MAX_BYTES
        {
            return false;
        }
        let transport = flow.transport;
        let first = &self.bytes[group.start..group.start + transport.payload];
        let this = &self.bytes[start..start + transport.payload];
        self.same_ip_header(first, this, group.more.len() + 1) && {
            let (first, this) = (&first[transport.start..], &this[transport.start..]);
            match transport.protocol {
                TCP => {
                    let sequence = u32::from_be_bytes([this[4], this[5], this[6], this[7]]);
                    sequence == flow.next_sequence
                        // Acknowledgement, header length, flags but PSH, window; then the options.
                        && first[8..13] == this[8..13]
                        && (first[TCP_FLAGS] ^ this[TCP_FLAGS]) & !PSH == 0
                        && first[14..16] == this[14..16]
                        && first[18..] == this[18..]
                }
                _ => true,
            }
        }
    }

    /// Compares what the kernel would copy from the first IP header into the one of the packet `index` places later.
    fn same_ip_header(&self, first: &[u8], this: &[u8], index: usize) -> bool {
        if first[0] >> 4 == 4 {
            let do_not_fragment = first[6] & 0x40 != 0;
            let id = |header: &[u8]| u16::from_be_bytes([header[4], header[5]]);
            first[..2] == this[..2]
                && first[6..9] == this[6..9]
                && (do_not_fragment || id(this) == id(first).wrapping_add(index as u16))
        } else {
            // Version, class and flow label; hop limit.
            first[..4] == this[..4] && first[7] == this[7]
        }
    }

    /// Hands each write to `write`, the virtio header at the start of the first slice, and empties the joiner.
    pub(crate) fn drain(&mut self, mut write: impl FnMut(&[IoSlice<'_>])) {
        for group in &self.groups[..self.count] {
            let header = match group.flow {
                Some(flow) if !group.more.is_empty() => {
                    finish_headers(&mut self.bytes[group.start..group.start + flow.transport.payload], &flow)
                }
                Some(_) | None => VirtioHeader::default(),
            };
            self.bytes[group.start - HEADER..group.start].copy_from_slice(&header.encode());
            let first = IoSlice::new(&self.bytes[group.start - HEADER..group.start + group.length]);
            if group.more.is_empty() {
                write(&[first]);
                continue;
            }
            let mut slices = [IoSlice::new(&[]); MAX_JOINED];
            slices[0] = first;
            for (slice, &(start, length)) in slices[1..].iter_mut().zip(&group.more) {
                *slice = IoSlice::new(&self.bytes[start..start + length]);
            }
            write(&slices[..group.more.len() + 1]);
        }
        self.used = 0;
        self.count = 0;
    }
}

/// Writes the headers of a super-packet: lengths, and the pseudo header's sum where the kernel completes the checksum.
fn finish_headers(headers: &mut [u8], flow: &Flow) -> VirtioHeader {
    let transport = flow.transport;
    set_ip_length(headers, flow.total);
    let length = flow.total - transport.start;
    let segment = &mut headers[transport.start..];
    let kind = match (transport.protocol, transport.start) {
        (TCP, 20) => SegmentKind::TcpV4,
        (TCP, _) => SegmentKind::TcpV6,
        _ => {
            segment[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            SegmentKind::Udp
        }
    };
    let pseudo = checksum::pseudo_header(flow.source, flow.destination, transport.protocol, length);
    let field = transport.checksum_offset();
    segment[field..field + 2].copy_from_slice(&checksum::partial(pseudo));
    VirtioHeader {
        checksum: Some((transport.start, field)),
        segments: Some(Segments { kind, size: flow.size as u16 }),
        header_length: transport.payload as u16,
    }
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
