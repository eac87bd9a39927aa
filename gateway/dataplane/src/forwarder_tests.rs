//! Two forwarders that exchange datagrams in memory: sessions, filters, movement, garbage.

use std::time::Duration;

use culvert_model::{CableReport, PublicKey, WireGuardCable};
use proptest::prelude::*;

use super::*;
use crate::packet::build;
use crate::tun::{HEADER, Offloads, SegmentKind, Segments};

const PERIOD: Duration = Duration::from_millis(100);
const EAST_POD: [u8; 4] = [10, 1, 0, 5];
const WEST_POD: [u8; 4] = [10, 2, 0, 5];

/// A forwarder with its surroundings.
struct Gateway {
    forwarder: Forwarder,
    address: SocketAddr,
    outbox: Outbox,
    joiner: Joiner,
    /// Packets that reached the TUN.
    delivered: Vec<Vec<u8>>,
}

impl Gateway {
    fn new(private_key: u8, address: [u8; 4]) -> Self {
        Self {
            forwarder: Forwarder::new([private_key; 32], [9; 32]),
            address: SocketAddr::from((address, 4500)),
            outbox: Outbox::new(),
            joiner: Joiner::new(1 << 20, Offloads::TcpAndUdp),
            delivered: Vec::new(),
        }
    }

    fn public_key(&self) -> PublicKey {
        PublicKey(*self.forwarder.own.public.as_bytes())
    }

    fn connect(&mut self, peer: &Gateway, candidates: &[SocketAddr], remote: &str, local: &str, now: Instant) {
        let cable = WireGuardCable {
            public_key: peer.public_key(),
            candidates: candidates.to_vec(),
            subnets: vec![remote.parse().expect("a subnet")],
        };
        let set = CableSet {
            cables: BTreeMap::from([("cable".to_owned(), cable)]),
            local_subnets: vec![local.parse().expect("a subnet")],
            ..CableSet::default()
        };
        self.forwarder.apply(set, now);
    }

    fn send(&mut self, mut packet: Vec<u8>, now: Instant) {
        self.forwarder.handle_tun(&VirtioHeader::default(), &mut packet, now, &mut self.outbox);
    }

    /// Takes what waits to be sent, one datagram each with its destination.
    fn take_sent(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        let sent = self.outbox.batches().flat_map(|(batch, bytes)| {
            bytes.chunks(batch.segment).map(|datagram| (batch.to, datagram.to_vec())).collect::<Vec<_>>()
        });
        let sent = sent.collect();
        self.outbox.clear();
        sent
    }

    fn receive(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) {
        self.forwarder.handle_network(datagram, from, now, &mut self.joiner, &mut self.outbox);
        let delivered = &mut self.delivered;
        self.joiner.drain(|slices| {
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            delivered.push(bytes[HEADER..].to_vec());
        });
    }

    fn report(&self, now: Instant) -> CableReport {
        self.forwarder.report(now).cables["cable"].clone()
    }
}

/// Carries datagrams until none is left; those to other addresses than the two gateways' are lost.
fn exchange(east: &mut Gateway, west: &mut Gateway, now: Instant) {
    loop {
        let (from_east, from_west) = (east.take_sent(), west.take_sent());
        if from_east.is_empty() && from_west.is_empty() {
            return;
        }
        for (to, datagram) in from_east {
            if to == west.address {
                west.receive(&datagram, east.address, now);
            }
        }
        for (to, datagram) in from_west {
            if to == east.address {
                east.receive(&datagram, west.address, now);
            }
        }
    }
}

/// Two gateways that know each other; only `east` knows where the other is.
fn pair(now: Instant) -> (Gateway, Gateway) {
    let mut east = Gateway::new(1, [192, 0, 2, 1]);
    let mut west = Gateway::new(2, [192, 0, 2, 2]);
    let address = west.address;
    east.connect(&west, &[address], "10.2.0.0/16", "10.1.0.0/16", now);
    west.connect(&east, &[], "10.1.0.0/16", "10.2.0.0/16", now);
    (east, west)
}

#[test]
fn a_packet_before_the_first_session_arrives_after_it() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    let packet = build::udp(EAST_POD, WEST_POD, b"hello");
    east.send(packet.clone(), now);
    exchange(&mut east, &mut west, now);
    assert_eq!(west.delivered, [packet]);
}

#[test]
fn many_peers_take_turns_to_be_looked_for_and_none_is_left_out() {
    let now = Instant::now();
    let mut gateway = Gateway::new(1, [192, 0, 2, 1]);
    let count = SOUGHT_AT_ONCE * 3 - 1;
    let cable = |number: usize| {
        let low = u8::try_from(number).expect("few");
        let candidates = vec![SocketAddr::from(([198, 51, 100, low], 4500))];
        let subnets = vec![format!("10.9.{low}.0/24").parse().expect("a subnet")];
        (format!("cable-{number}"), WireGuardCable { public_key: PublicKey([low + 10; 32]), candidates, subnets })
    };
    let set = CableSet { cables: (0..count).map(cable).collect(), ..CableSet::default() };
    gateway.forwarder.apply(set, now);
    let mut sought = BTreeSet::new();
    for tick in 0..3_u32 {
        gateway.forwarder.tick(now + PERIOD * tick, &mut gateway.outbox);
        let sent = gateway.take_sent();
        assert!(sent.len() <= SOUGHT_AT_ONCE, "{} at once", sent.len());
        sought.extend(sent.into_iter().map(|(to, _)| to));
    }
    assert_eq!(sought.len(), count);
}

#[test]
fn the_side_without_an_address_answers_where_packets_come_from() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut west, now);
    let answer = build::udp(WEST_POD, EAST_POD, b"answer");
    west.send(answer.clone(), now);
    exchange(&mut east, &mut west, now);
    assert_eq!(east.delivered, [answer]);
    assert_eq!(west.report(now).remote, Some(east.address));
}

#[test]
fn a_peer_that_moves_is_followed() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut west, now);
    east.address = SocketAddr::from(([198, 51, 100, 7], 777));
    east.send(build::udp(EAST_POD, WEST_POD, b"moved"), now);
    exchange(&mut east, &mut west, now);
    assert_eq!(west.report(now).remote, Some(east.address));
}

#[test]
fn a_cable_that_gets_another_name_keeps_its_session() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut west, now);
    let cable = WireGuardCable {
        public_key: east.public_key(),
        candidates: vec![SocketAddr::from(([192, 0, 2, 77], 4500)), SocketAddr::from(([0, 0, 0, 0], 4500))],
        subnets: vec!["10.1.0.0/16".parse().expect("a subnet")],
    };
    let set = CableSet {
        cables: BTreeMap::from([("renamed".to_owned(), cable)]),
        local_subnets: vec!["10.2.0.0/16".parse().expect("a subnet")],
        ..CableSet::default()
    };

    west.forwarder.apply(set, now);

    let packet = build::udp(EAST_POD, WEST_POD, b"still open");
    east.send(packet.clone(), now);
    exchange(&mut east, &mut west, now);
    assert_eq!(west.delivered, [packet]);
    let report = west.forwarder.report(now);
    assert_eq!(report.cables.keys().collect::<Vec<_>>(), ["renamed"]);
    west.forwarder.tick(now, &mut west.outbox);
    let targets: Vec<_> = west.take_sent().into_iter().map(|(to, _)| to).collect();
    assert!(targets.iter().all(|target| !target.ip().is_unspecified()), "{targets:?}");
}

#[test]
fn an_initiation_goes_to_every_candidate() {
    let now = Instant::now();
    let (mut east, west) = pair(now);
    let wrong = SocketAddr::from(([203, 0, 113, 9], 4500));
    east.connect(&west, &[wrong, west.address], "10.2.0.0/16", "10.1.0.0/16", now);
    east.forwarder.tick(now, &mut east.outbox);
    let targets: Vec<_> = east.take_sent().into_iter().map(|(to, _)| to).collect();
    assert!(targets.contains(&wrong) && targets.contains(&west.address), "{targets:?}");
}

#[test]
fn foreign_sources_and_destinations_are_dropped_and_counted() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    let node = [192, 168, 20, 10];
    for (source, destination) in
        [([10, 3, 0, 1], WEST_POD), (EAST_POD, node), (EAST_POD, [169, 254, 169, 254]), ([10, 2, 0, 9], WEST_POD)]
    {
        // What a hostile east would send: its own routes do not stop it.
        let packet = build::udp(source, destination, b"x");
        let place = east.forwarder.routes.find(WEST_POD.into()).expect("a route");
        let peer = east.forwarder.peers[place].as_mut().expect("a peer");
        peer.seal(&packet, now, &mut east.outbox);
        exchange(&mut east, &mut west, now);
    }
    assert_eq!(west.delivered, Vec::<Vec<u8>>::new());
    let report = west.report(now);
    assert_eq!((report.dropped_source, report.dropped_destination), (2, 2));
}

#[test]
fn a_replayed_datagram_is_rejected() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut west, now);
    east.send(build::udp(EAST_POD, WEST_POD, b"once"), now);
    let sent = east.take_sent();
    for _ in 0..2 {
        for (_, datagram) in &sent {
            west.receive(datagram, east.address, now);
        }
    }
    assert_eq!(west.delivered.len(), 1);
    assert_eq!(west.forwarder.totals().rejected_datagrams, 1);
}

#[test]
fn a_restarted_gateway_is_connected_again_by_its_first_initiation() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut west, now);
    // TAI64N stamps must grow, as they do over a real restart.
    std::thread::sleep(Duration::from_millis(20));
    let mut again = Gateway::new(1, [192, 0, 2, 1]);
    again.connect(&west, &[west.address], "10.2.0.0/16", "10.1.0.0/16", now);
    again.forwarder.tick(now, &mut again.outbox);
    exchange(&mut again, &mut west, now);
    let packet = build::udp(WEST_POD, EAST_POD, b"back");
    west.send(packet.clone(), now);
    exchange(&mut again, &mut west, now);
    assert_eq!(again.delivered, [packet]);
}

#[test]
fn a_cable_that_stays_is_not_disturbed_by_one_that_comes_or_goes() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut west, now);
    let north = Gateway::new(3, [192, 0, 2, 3]);
    let cable = |gateway: &Gateway, subnet: &str| WireGuardCable {
        public_key: gateway.public_key(),
        candidates: vec![gateway.address],
        subnets: vec![subnet.parse().expect("a subnet")],
    };
    let local_subnets = vec!["10.1.0.0/16".parse().expect("a subnet")];
    let both = BTreeMap::from([
        ("cable".to_owned(), cable(&west, "10.2.0.0/16")),
        ("north".to_owned(), cable(&north, "10.3.0.0/16")),
    ]);
    let mut one = both.clone();
    one.remove("north");
    for cables in [both, one] {
        east.forwarder.apply(CableSet { cables, local_subnets: local_subnets.clone(), ..CableSet::default() }, now);
        let packet = build::udp(EAST_POD, WEST_POD, b"still here");
        east.send(packet.clone(), now);
        exchange(&mut east, &mut west, now);
        assert_eq!(west.delivered.pop(), Some(packet));
    }
    east.send(build::udp(EAST_POD, [10, 3, 0, 1], b"gone"), now);
    assert_eq!(east.forwarder.totals().unroutable_packets, 1);
}

#[test]
fn a_receive_only_cable_delivers_but_is_not_sent_to() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut west, now);
    let cable = WireGuardCable {
        public_key: west.public_key(),
        candidates: vec![west.address],
        subnets: vec!["10.2.0.0/16".parse().expect("a subnet")],
    };
    east.forwarder.apply(
        CableSet {
            cables: BTreeMap::from([("cable".to_owned(), cable)]),
            receive_only: BTreeSet::from(["cable".to_owned()]),
            successors: BTreeMap::new(),
            local_subnets: vec!["10.1.0.0/16".parse().expect("a subnet")],
        },
        now,
    );
    east.send(build::udp(EAST_POD, WEST_POD, b"not this way"), now);
    west.send(build::udp(WEST_POD, EAST_POD, b"late"), now);
    exchange(&mut east, &mut west, now);
    assert_eq!((east.delivered.len(), west.delivered.len()), (1, 0));
}

#[test]
fn a_successor_carries_from_the_first_packet_on_that_comes_by_it() {
    let now = Instant::now();
    let (mut east, mut old) = pair(now);
    let mut new = Gateway::new(3, [192, 0, 2, 3]);
    let cable = |gateway: &Gateway| WireGuardCable {
        public_key: gateway.public_key(),
        candidates: vec![gateway.address],
        subnets: vec!["10.2.0.0/16".parse().expect("a subnet")],
    };
    let set = CableSet {
        cables: BTreeMap::from([("old".to_owned(), cable(&old)), ("new".to_owned(), cable(&new))]),
        receive_only: BTreeSet::from(["new".to_owned()]),
        successors: BTreeMap::from([("new".to_owned(), "old".to_owned())]),
        local_subnets: vec!["10.1.0.0/16".parse().expect("a subnet")],
    };
    east.forwarder.apply(set, now);
    new.connect(&east, &[east.address], "10.1.0.0/16", "10.2.0.0/16", now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut old, now);
    new.forwarder.tick(now, &mut new.outbox);
    exchange(&mut new, &mut east, now);
    let packet = |payload: &[u8]| build::udp(EAST_POD, WEST_POD, payload);

    east.send(packet(b"as before"), now);
    exchange(&mut east, &mut old, now);
    assert_eq!((old.delivered.len(), new.delivered.len()), (1, 0), "a session alone changes nothing");
    new.send(build::udp(WEST_POD, EAST_POD, b"question"), now);
    exchange(&mut new, &mut east, now);
    east.send(packet(b"answer"), now);
    exchange(&mut east, &mut new, now);
    assert_eq!(new.delivered, [packet(b"answer")]);
    old.send(build::udp(WEST_POD, EAST_POD, b"late"), now);
    exchange(&mut old, &mut east, now);
    assert_eq!(east.delivered.len(), 2, "the old one is still listened to");
}

#[test]
fn a_living_peer_that_is_said_to_have_moved_is_sought_without_being_given_up() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut west, now);
    let elsewhere = SocketAddr::from(([203, 0, 113, 9], 4500));

    let told = now + Duration::from_millis(1);
    east.connect(&west, &[elsewhere], "10.2.0.0/16", "10.1.0.0/16", told);
    assert_eq!(east.forwarder.living_remotes(), BTreeSet::from([west.address]));
    east.forwarder.tick(now, &mut east.outbox);
    assert!(east.take_sent().is_empty(), "a tick of before knows nothing of it, and loses nothing");
    east.forwarder.tick(told, &mut east.outbox);
    assert!(east.take_sent().iter().any(|(to, datagram)| *to == elsewhere && datagram[0] == INITIATION));

    let packet = build::udp(EAST_POD, WEST_POD, b"still there");
    east.send(packet.clone(), now);
    exchange(&mut east, &mut west, now);
    assert_eq!(west.delivered, [packet]);
}

#[test]
fn a_peer_whose_port_is_closed_is_sought_until_it_is_heard() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut west, now);
    let initiations = |gateway: &mut Gateway, now| {
        gateway.forwarder.tick(now, &mut gateway.outbox);
        gateway.take_sent().iter().filter(|(_, datagram)| datagram[0] == INITIATION).count()
    };
    assert_eq!(initiations(&mut east, now), 0);

    east.forwarder.handle_refused(west.address, now);
    assert_eq!(initiations(&mut east, now), 1);
    assert_eq!(initiations(&mut east, now + Duration::from_millis(300)), 1);

    west.send(build::udp(WEST_POD, EAST_POD, b"here"), now);
    exchange(&mut east, &mut west, now);
    assert_eq!(initiations(&mut east, now + Duration::from_millis(600)), 0);
}

#[test]
fn a_silent_peer_is_noticed() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut west, now);
    east.forwarder.take_changed();
    east.send(build::udp(EAST_POD, WEST_POD, b"lost"), now + Duration::from_millis(1));
    east.take_sent();
    east.forwarder.tick(now + Duration::from_secs(3), &mut east.outbox);
    assert!(east.forwarder.take_changed());
}

proptest! {
    #[test]
    fn garbage_is_rejected_and_counted(
        datagrams in prop::collection::vec(
            (prop::option::of(1u8..5), prop::collection::vec(any::<u8>(), 0..200)), 1..40)
    ) {
        let now = Instant::now();
        let (mut east, mut west) = pair(now);
        east.forwarder.tick(now, &mut east.outbox);
        exchange(&mut east, &mut west, now);
        let count = datagrams.len() as u64;
        for (kind, mut datagram) in datagrams {
            // Half of it looks like a message at first sight.
            if let Some(kind) = kind && datagram.len() >= 8 {
                datagram[..8].copy_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
            }
            west.receive(&datagram, SocketAddr::from(([203, 0, 113, 66], 666)), now);
        }
        prop_assert_eq!(west.forwarder.totals().rejected_datagrams, count);
        prop_assert_eq!(west.delivered.len(), 0);
        prop_assert_eq!(west.report(now).remote, Some(east.address));
        let packet = build::udp(EAST_POD, WEST_POD, b"unharmed");
        east.send(packet.clone(), now);
        exchange(&mut east, &mut west, now);
        prop_assert_eq!(&west.delivered, &[packet]);
    }
}

#[test]
fn a_burst_of_super_packets_is_sealed_whole() {
    let now = Instant::now();
    let (mut east, mut west) = pair(now);
    east.forwarder.tick(now, &mut east.outbox);
    exchange(&mut east, &mut west, now);
    for size in [1368, 48] {
        let payload = vec![7; 64_000];
        let segments = Segments { kind: SegmentKind::TcpV4, size };
        let header = VirtioHeader { segments: Some(segments), ..VirtioHeader::default() };
        let mut sealed = 0;
        let mut sent = 0;
        for _ in 0..20 {
            let mut packet = build::tcp(EAST_POD, WEST_POD, 1, crate::packet::ACK, &payload);
            east.forwarder.handle_tun(&header, &mut packet, now, &mut east.outbox);
            sealed += payload.len().div_ceil(usize::from(size));
            if east.outbox.is_full() {
                sent += east.take_sent().len();
            }
        }
        sent += east.take_sent().len();
        assert_eq!(sent, sealed, "segments of {size} bytes");
    }
}
