//! Joining held against cutting: whatever is joined, the kernel cuts into the packets that came.

use proptest::prelude::*;

use super::*;
use crate::packet::{FIN, build};
use crate::segment::Cut;

const EAST: [u8; 4] = [10, 1, 0, 1];
const WEST: [u8; 4] = [10, 2, 0, 1];
const SOUTH: [u8; 4] = [10, 3, 0, 1];

/// Returns what is written to the TUN for `packets` opened in one go.
fn written(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    written_by(Joiner::new(1 << 20, Offloads::TcpAndUdp), packets)
}

fn written_by(mut joiner: Joiner, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    for packet in packets {
        joiner.slot(packet.len()).expect("room")[..packet.len()].copy_from_slice(packet);
        joiner.push(&Packet::parse(packet).expect("a packet"));
    }
    let mut writes = Vec::new();
    joiner.drain(|slices| writes.push(slices.iter().flat_map(|slice| slice.to_vec()).collect()));
    writes
}

/// Returns the packets into which the kernel would cut what was written.
fn cut(writes: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for write in writes {
        let (header, packet) = write.split_at(crate::tun::HEADER);
        let header = VirtioHeader::decode(header.try_into().expect("ten bytes")).expect("a header");
        let mut packet = packet.to_vec();
        let mut scratch = vec![0; 65_536];
        let mut cut = Cut::new(&header, &mut packet).expect("a packet that can be cut");
        while let Some(piece) = cut.next(&mut scratch) {
            packets.push(piece.to_vec());
        }
    }
    packets
}

fn with_id(mut packet: Vec<u8>, id: u16) -> Vec<u8> {
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    crate::packet::set_ipv4_checksum(&mut packet);
    packet
}

#[test]
fn consecutive_segments_become_one_write_that_is_cut_alike() {
    let packets: Vec<_> = (0..5u32)
        .map(|n| {
            let flags = if n == 4 { ACK | PSH } else { ACK };
            with_id(build::tcp(EAST, WEST, n * 1000, flags, &vec![n as u8; if n == 4 { 700 } else { 1000 }]), n as u16)
        })
        .collect();
    let writes = written(&packets);
    assert_eq!(writes.len(), 1);
    assert_eq!(cut(&writes), packets);
}

#[test]
fn two_echo_requests_stay_two_packets() {
    let packets = [build::icmp(EAST, WEST, 1), build::icmp(EAST, WEST, 2)];
    assert_eq!(cut(&written(&packets)), packets);
    assert_eq!(written(&packets).len(), 2);
}

#[test]
fn a_gap_a_flag_or_a_larger_segment_is_not_joined() {
    let first = build::tcp(EAST, WEST, 0, ACK, &[1; 1000]);
    for second in [
        build::tcp(EAST, WEST, 1001, ACK, &[2; 1000]),
        build::tcp(EAST, WEST, 1000, ACK | FIN, &[2; 1000]),
        build::tcp(EAST, WEST, 1000, ACK, &[2; 1001]),
        build::tcp(EAST, WEST, 1000, ACK, &[]),
        build::tcp(EAST, SOUTH, 1000, ACK, &[2; 1000]),
    ] {
        assert_eq!(written(&[first.clone(), second]).len(), 2);
    }
}

#[test]
fn a_bad_checksum_is_passed_on_as_it_came() {
    let first = build::tcp(EAST, WEST, 0, ACK, &[1; 1000]);
    let mut second = build::tcp(EAST, WEST, 1000, ACK, &[2; 1000]);
    second[50] ^= 1;
    let writes = written(&[first.clone(), second.clone()]);
    assert_eq!(writes.len(), 2);
    assert_eq!(writes[1][crate::tun::HEADER..], second);
}

#[test]
fn datagrams_of_one_size_are_joined_and_a_shorter_one_ends_them() {
    let packets: Vec<_> = [400, 400, 100, 100]
        .iter()
        .enumerate()
        .map(|(n, &size)| with_id(build::udp(EAST, WEST, &vec![n as u8; size]), n as u16))
        .collect();
    let writes = written(&packets);
    assert_eq!(writes.len(), 2);
}

#[test]
fn a_kernel_without_udp_segments_gets_single_datagrams() {
    let packets = [build::udp(EAST, WEST, &[1; 400]), with_id(build::udp(EAST, WEST, &[2; 400]), 0x1235)];
    let writes = written_by(Joiner::new(1 << 20, Offloads::Tcp), &packets);
    assert_eq!(cut(&writes), packets);
    assert_eq!(writes.len(), 2);
    assert_eq!(written(&packets).len(), 1);
}

#[test]
fn a_device_without_offloads_gets_single_segments_with_complete_checksums() {
    let packets = [build::tcp(EAST, WEST, 0, ACK, &[1; 1000]), build::tcp(EAST, WEST, 1000, ACK, &[2; 1000])];
    let writes = written_by(Joiner::new(1 << 20, Offloads::Nothing), &packets);
    assert!(writes.iter().all(|write| write[..crate::tun::HEADER] == [0; crate::tun::HEADER]));
    assert_eq!(cut(&writes), packets);
    assert_eq!(writes.len(), 2);
    assert_eq!(written(&packets).len(), 1);
}

#[test]
fn a_closed_group_is_not_passed_by_a_later_packet() {
    let packets = [
        build::tcp(EAST, WEST, 0, ACK, &[0; 1000]),
        build::tcp(EAST, WEST, 1000, ACK | PSH, &[1; 500]),
        build::tcp(EAST, WEST, 1500, ACK, &[2; 1000]),
        build::tcp(EAST, WEST, 2500, ACK, &[3; 1000]),
    ];
    let writes = written(&packets);
    assert_eq!(writes.len(), 2);
    let sequences: Vec<u32> = cut(&writes).iter().map(|p| u32::from_be_bytes([p[24], p[25], p[26], p[27]])).collect();
    assert_eq!(sequences, [0, 1000, 1500, 2500]);
}

#[test]
fn a_packet_that_stands_alone_is_not_passed_by_later_ones_of_its_flow() {
    let packets = [build::udp(EAST, WEST, &[1; 1000]), build::udp(EAST, WEST, &[]), build::udp(EAST, WEST, &[2; 1000])];
    assert_eq!(cut(&written(&packets)), packets);
}

/// One packet of a random mix: flow, kind, size, flags.
fn packet() -> impl Strategy<Value = (usize, u8, usize, bool)> {
    (0usize..3, 0u8..3, prop_oneof![Just(0usize), Just(100), Just(1000), 1usize..1400], any::<bool>())
}

proptest! {
    /// Whatever is joined, the kernel cuts into the packets that came, in their order within each flow.
    #[test]
    fn joining_and_cutting_gives_the_same_packets(mix in prop::collection::vec(packet(), 1..80)) {
        let mut sequences = [0u32; 3];
        let mut ids = [0u16; 3];
        let packets: Vec<Vec<u8>> = mix
            .into_iter()
            .map(|(flow, kind, size, push)| {
                let source = [10, 1, 0, flow as u8];
                let id = ids[flow];
                ids[flow] = id.wrapping_add(1);
                let packet = match kind {
                    0 => {
                        let sequence = sequences[flow];
                        sequences[flow] = sequence.wrapping_add(size as u32);
                        build::tcp(source, WEST, sequence, if push { ACK | PSH } else { ACK }, &vec![flow as u8; size])
                    }
                    1 => build::udp(source, WEST, &vec![flow as u8; size]),
                    _ => build::icmp(source, WEST, size as u16),
                };
                // Ids of packets that may not be fragmented carry no meaning (RFC 6864) and are not kept by GRO.
                with_id(packet, if kind == 2 { id } else { 0 })
            })
            .collect();
        let out = cut(&written(&packets));
        for flow in 0..3u8 {
            for protocol in [1u8, TCP, UDP] {
                let of_flow = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
                    packets
                        .iter()
                        .filter(|packet| packet[15] == flow && packet[9] == protocol)
                        .map(|packet| if protocol == 1 { packet.clone() } else { with_id(packet.clone(), 0) })
                        .collect()
                };
                prop_assert_eq!(of_flow(&out), of_flow(&packets));
            }
        }
    }
}
