//! Turns, order and drops of the queue, packet by packet; CoDel by given times.

use super::*;
use crate::packet::build;

const US: [u8; 4] = [10, 1, 0, 5];
const THEM: [u8; 4] = [10, 2, 0, 5];

fn bulk(flow: u8, sequence: u32) -> Vec<u8> {
    build::tcp([10, 1, 0, flow], THEM, sequence, 0x10, &[0; 60_000])
}

fn put(queue: &mut FairQueue, packet: &[u8], now: Instant) {
    let length = HEADER + packet.len();
    queue.room()[HEADER..length].copy_from_slice(packet);
    queue.push(length, now);
}

/// Returns the sequence number of the next packet, if it is TCP, and its source's last byte.
fn take(queue: &mut FairQueue, now: Instant) -> Option<(u8, u32)> {
    let packet = queue.pop(now)?.get(HEADER..)?.to_vec();
    let sequence = u32::from_be_bytes(packet[24..28].try_into().expect("four bytes"));
    Some((packet[15], if packet[9] == 6 { sequence } else { 0 }))
}

fn drain(queue: &mut FairQueue, now: Instant) -> Vec<(u8, u32)> {
    std::iter::from_fn(|| take(queue, now)).collect()
}

#[test]
fn a_ping_passes_by_what_bulk_has_waiting() {
    let (mut queue, now) = (FairQueue::new(7), Instant::now());
    for sequence in 0..20 {
        put(&mut queue, &bulk(1, sequence), now);
    }
    assert_eq!(take(&mut queue, now), Some((1, 0)));
    put(&mut queue, &build::icmp(US, THEM, 1), now);
    assert_eq!(take(&mut queue, now), Some((5, 0)), "the ping");
    assert_eq!(drain(&mut queue, now), (1..20).map(|sequence| (1, sequence)).collect::<Vec<_>>());
    assert!(queue.is_empty());
    assert_eq!(queue.take_dropped(), 0);
}

#[test]
fn flows_take_turns_and_keep_their_order() {
    let (mut queue, now) = (FairQueue::new(7), Instant::now());
    for sequence in 0..4 {
        for flow in [1, 1, 2] {
            put(&mut queue, &bulk(flow, sequence), now);
        }
    }
    let out = drain(&mut queue, now);
    // Both have had as much after eight packets, although one has twice as many waiting.
    assert_eq!(out[..8].iter().filter(|(flow, _)| *flow == 2).count(), 4);
    for flow in [1, 2] {
        let order: Vec<u32> = out.iter().filter(|(of, _)| *of == flow).map(|(_, sequence)| *sequence).collect();
        assert!(order.is_sorted(), "{order:?}");
    }
    assert_eq!(out.len(), 12);
}

#[test]
fn a_flow_of_small_packets_has_as_many_bytes_as_one_of_large_ones() {
    let (mut queue, now) = (FairQueue::new(7), Instant::now());
    put(&mut queue, &bulk(1, 0), now);
    put(&mut queue, &bulk(1, 1), now);
    for sequence in 0..100 {
        put(&mut queue, &build::tcp([10, 1, 0, 2], THEM, sequence, 0x10, &[0; 1000]), now);
    }
    let small_between = drain(&mut queue, now).into_iter().skip(1).take_while(|(flow, _)| *flow == 2).count();
    assert!((50..=70).contains(&small_between), "{small_between} of 1,040 bytes to one of 60,040");
}

#[test]
fn a_flow_that_empties_is_not_fresh_again_while_others_wait() {
    let (mut queue, now) = (FairQueue::new(7), Instant::now());
    for sequence in 0..6 {
        put(&mut queue, &bulk(1, sequence), now);
    }
    assert_eq!(take(&mut queue, now), Some((1, 0)));
    let mut turns = Vec::new();
    for _ in 0..40 {
        put(&mut queue, &build::tcp([10, 1, 0, 2], THEM, 9, 0x10, &[0; 4000]), now);
        turns.push(take(&mut queue, now).expect("a packet").0);
    }
    assert!(turns.contains(&1), "a flow that is always just empty starves nobody: {turns:?}");
}

#[test]
fn in_a_full_queue_the_longest_flow_loses_its_oldest() {
    let (mut queue, now) = (FairQueue::new(7), Instant::now());
    put(&mut queue, &build::icmp(US, THEM, 1), now);
    for sequence in 0..SLOTS as u32 {
        put(&mut queue, &bulk(1, sequence), now);
    }
    assert_eq!(queue.take_dropped(), 1);
    queue.room();
    assert_eq!((queue.take_dropped(), queue.slots.len()), (0, SLOTS + 1), "to look for more costs nothing");
    let out = drain(&mut queue, now);
    assert_eq!((out.len(), out[0], out[1]), (SLOTS, (5, 0), (1, 1)));
}

#[test]
fn what_cannot_be_parsed_waits_and_passes_too() {
    let (mut queue, now) = (FairQueue::new(7), Instant::now());
    queue.room()[..3].fill(0);
    queue.push(3, now);
    put(&mut queue, &[0xff; 100], now);
    put(&mut queue, &[], now);
    let lengths: Vec<usize> = std::iter::from_fn(|| queue.pop(now).map(|bytes| bytes.len())).collect();
    assert_eq!(lengths, [3, HEADER + 100, HEADER]);
    assert!(queue.is_empty());
}

/// Offers one packet a millisecond and takes as many, with `standing` packets ahead; returns how many were dropped.
fn drops_with(standing: u32, milliseconds: u32) -> u64 {
    let (mut queue, start) = (FairQueue::new(7), Instant::now());
    for sequence in 0..standing {
        put(&mut queue, &bulk(1, sequence), start);
    }
    for step in 0..milliseconds {
        let now = start + Duration::from_millis(u64::from(step));
        put(&mut queue, &bulk(1, standing + step), now);
        take(&mut queue, now);
    }
    queue.take_dropped()
}

#[test]
fn a_queue_that_stands_loses_packets_ever_faster_and_a_short_one_none() {
    assert_eq!(drops_with(3, 1000), 0, "three milliseconds of waiting are no queue");
    assert_eq!(drops_with(30, 100), 0, "a burst is put up with for an interval");
    // Twenty-six drops would empty the queue to what is put up with.
    let (early, late) = (drops_with(30, 400), drops_with(30, 800));
    assert!(early >= 3 && late - early > early, "{early}, {late}");
}

#[test]
fn codel_stops_as_soon_as_waiting_is_short() {
    let (mut codel, start) = (Codel::default(), Instant::now());
    let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
    let long = Duration::from_millis(20);
    assert!(!codel.drops(long, at(0)));
    assert!(!codel.drops(long, at(99)));
    assert!(codel.drops(long, at(100)));
    assert!(!codel.drops(long, at(101)));
    assert!(codel.drops(long, at(200)), "the second drop comes an interval after the first");
    assert!(codel.drops(long, at(271)), "the third sooner, by the square root of two");
    assert!(!codel.drops(Duration::from_millis(4), at(272)));
    assert!(!codel.drops(long, at(273)), "the interval begins anew");
}

#[test]
fn a_lone_packet_passes_at_once_and_its_buffer_is_used_again() {
    let (mut queue, now) = (FairQueue::new(7), Instant::now());
    queue.room()[0] = 9;
    assert_eq!(queue.pass(3), [9, 0, 0]);
    assert!(queue.is_empty());
    put(&mut queue, &bulk(1, 4), now);
    assert_eq!(drain(&mut queue, now), [(1, 4)]);
    assert_eq!(queue.slots.len(), 1);
}
