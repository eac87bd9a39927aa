//! The table of NAT discovery's cases (Submariner chapter 4.4), requester's side.

use proptest::prelude::*;

use super::super::{NatSource, respond};
use super::*;
use crate::testing::{address, endpoint};

const SECOND: Duration = Duration::from_secs(1);
const PRIVATE: &str = "192.168.2.10";
const PUBLIC: &str = "198.51.100.2";

fn start_with(west: &Endpoint, start: Instant) -> NatDiscovery {
    let mut discovery = NatDiscovery::new(OwnEndpoint::from(&endpoint("east", 1)), u64::MAX, start);
    discovery.set_peers([west], start);
    discovery
}

fn probes(discovery: &mut NatDiscovery, now: Instant) -> Vec<Probe> {
    discovery.handle_timeout(now);
    std::iter::from_fn(|| discovery.poll_transmit(now)).collect()
}

fn probe_to<'a>(probes: &'a [Probe], to: &str, form: IdForm) -> &'a Probe {
    let id = form.id(&endpoint("west", 2).cable_name, IpFamily::V4);
    probes
        .iter()
        .find(|probe| probe.to.ip() == address(to) && probe.request.receiver.as_ref().unwrap().endpoint_id == id)
        .unwrap()
}

/// An answer with `code` to `probe`, as it arrives from `from`.
fn reply(discovery: &mut NatDiscovery, probe: &Probe, code: Code, from: &str, now: Instant) {
    let response =
        Response { request_number: probe.request.request_number, response: code.into(), ..Response::default() };
    let datagram = Message { version: 0, body: Some(Body::Response(response)) }.encode_to_vec();
    assert_eq!(discovery.handle_datagram(&datagram, SocketAddr::new(address(from), 4490), now), None);
}

fn choice(discovery: &NatDiscovery) -> Option<NatChoice> {
    discovery.choices().into_values().next()
}

fn chosen(to: &str, nat: bool, source: NatSource) -> Option<NatChoice> {
    Some(NatChoice { address: address(to), nat, source })
}

#[test]
fn each_answer_leads_to_its_choice() {
    let private = chosen(PRIVATE, false, NatSource::Private);
    for (to, code, from, expected) in [
        (PRIVATE, Code::Ok, PRIVATE, private),
        (PRIVATE, Code::NatDetected, PRIVATE, private),
        (PRIVATE, Code::Ok, PUBLIC, None),
        (PUBLIC, Code::Ok, PUBLIC, chosen(PUBLIC, false, NatSource::Public)),
        (PUBLIC, Code::NatDetected, PUBLIC, chosen(PUBLIC, true, NatSource::Public)),
        (PRIVATE, Code::UnknownDestinationCluster, PRIVATE, None),
        (PRIVATE, Code::UnknownDestinationEndpoint, PRIVATE, None),
        (PUBLIC, Code::Malformed, PUBLIC, None),
    ] {
        for form in IdForm::ALL {
            let start = Instant::now();
            let mut discovery = start_with(&endpoint("west", 2), start);
            let sent = probes(&mut discovery, start);
            reply(&mut discovery, probe_to(&sent, to, form), code, from, start);
            assert_eq!(choice(&discovery), expected, "{code:?} to {to} from {from} in form {form:?}");
            assert_eq!(discovery.poll_timeout().is_none(), expected.is_some());
        }
    }
}

#[test]
fn an_answer_by_the_private_address_replaces_a_public_one_for_a_second() {
    let start = Instant::now();
    for (later, expected) in [(SECOND / 2, PRIVATE), (SECOND, PUBLIC)] {
        let mut discovery = start_with(&endpoint("west", 2), start);
        let sent = probes(&mut discovery, start);
        reply(&mut discovery, probe_to(&sent, PUBLIC, IdForm::Bare), Code::Ok, PUBLIC, start);
        reply(&mut discovery, probe_to(&sent, PRIVATE, IdForm::Bare), Code::Ok, PRIVATE, start + later);
        reply(&mut discovery, probe_to(&sent, PUBLIC, IdForm::Family), Code::Ok, PUBLIC, start + later);
        assert_eq!(choice(&discovery).unwrap().address, address(expected));
    }
}

#[test]
fn both_targets_are_asked_in_both_forms_every_two_seconds() {
    let start = Instant::now();
    let mut discovery = start_with(&endpoint("west", 2), start);

    let first = probes(&mut discovery, start);
    assert_eq!(first.len(), 4);
    let numbers: Vec<u64> = first.iter().map(|probe| probe.request.request_number).collect();
    assert_eq!(numbers, [u64::MAX, 0, 1, 2]);
    assert_eq!(discovery.poll_timeout(), Some(start + SECOND * 2));
    assert!(probes(&mut discovery, start + SECOND).is_empty());
    assert_eq!(probes(&mut discovery, start + SECOND * 2).len(), 4);
}

#[test]
fn an_answer_to_an_older_round_or_a_forged_number_counts_for_nothing() {
    let start = Instant::now();
    let mut discovery = start_with(&endpoint("west", 2), start);
    let old = probes(&mut discovery, start);
    probes(&mut discovery, start + SECOND * 2);
    reply(&mut discovery, &old[0], Code::Ok, PRIVATE, start + SECOND * 2);
    assert_eq!(choice(&discovery), None);
}

#[test]
fn one_address_under_two_names_is_asked_once() {
    let start = Instant::now();
    let west = Endpoint { public: address(PRIVATE).into(), ..endpoint("west", 2) };
    assert_eq!(probes(&mut start_with(&west, start), start).len(), 2);
}

#[test]
fn a_silent_peer_is_chosen_by_the_old_rule_and_asked_on() {
    let start = Instant::now();
    let nat = endpoint("west", 2);
    let no_nat = Endpoint { nat_enabled: false, ..nat.clone() };
    let load_balancer = Endpoint { using_load_balancer: true, ..no_nat.clone() };
    for (west, time_out, expected) in [
        (nat, SECOND * 60, chosen(PUBLIC, true, NatSource::Fallback)),
        (no_nat, SECOND * 60, chosen(PRIVATE, false, NatSource::Fallback)),
        (load_balancer, SECOND * 6, chosen(PUBLIC, true, NatSource::Fallback)),
    ] {
        let mut discovery = start_with(&west, start);
        probes(&mut discovery, start + time_out - SECOND);
        assert_eq!(choice(&discovery), None);
        assert_eq!(probes(&mut discovery, start + time_out), []);
        assert_eq!(choice(&discovery), expected);
        assert_eq!(probes(&mut discovery, start + time_out + SECOND).len(), 4);
        assert_eq!(discovery.poll_timeout(), Some(start + time_out + SECOND * 31));
    }
}

#[test]
fn a_late_answer_replaces_the_old_rule() {
    let start = Instant::now();
    let mut discovery = start_with(&endpoint("west", 2), start);
    let later = start + SECOND * 90;
    let sent = probes(&mut discovery, later);
    assert_eq!(choice(&discovery).unwrap().source, NatSource::Fallback);
    reply(&mut discovery, probe_to(&sent, PRIVATE, IdForm::Bare), Code::Ok, PRIVATE, later);
    assert_eq!(choice(&discovery), chosen(PRIVATE, false, NatSource::Private));
}

#[test]
fn without_a_port_on_either_side_the_old_rule_holds_at_once() {
    let start = Instant::now();
    let west = endpoint("west", 2);
    let mut portless = start_with(&Endpoint { nat_discovery_port: None, ..west.clone() }, start);
    let own = OwnEndpoint { port: None, ..OwnEndpoint::from(&endpoint("east", 1)) };
    let mut off = NatDiscovery::new(own, 0, start);
    off.set_peers([&west], start);

    for discovery in [&mut portless, &mut off] {
        assert_eq!(choice(discovery), chosen(PUBLIC, true, NatSource::Fallback));
        assert_eq!(probes(discovery, start), []);
        assert_eq!(discovery.poll_timeout(), None);
    }
}

#[test]
fn a_seed_holds_until_the_peer_answers() {
    let start = Instant::now();
    let west = endpoint("west", 2);
    let seed = chosen(PRIVATE, false, NatSource::Private).unwrap();
    let mut discovery = NatDiscovery::new(OwnEndpoint::from(&endpoint("east", 1)), 7, start);
    discovery.seed(&west.cable_name, seed);
    discovery.set_peers([&west], start);

    assert_eq!(choice(&discovery), Some(seed));
    let sent = probes(&mut discovery, start + SECOND * 70);
    assert_eq!(choice(&discovery), Some(seed));
    reply(&mut discovery, probe_to(&sent, PUBLIC, IdForm::Bare), Code::Ok, PUBLIC, start + SECOND * 70);
    assert_eq!(choice(&discovery).unwrap().source, NatSource::Public);
    discovery.seed(&west.cable_name, seed);
    assert_eq!(choice(&discovery).unwrap().source, NatSource::Public);
}

#[test]
fn a_seed_that_is_not_the_peers_is_ignored() {
    let start = Instant::now();
    let mut discovery = start_with(&endpoint("west", 2), start);
    discovery.seed(&endpoint("west", 2).cable_name, chosen("203.0.113.66", true, NatSource::Public).unwrap());
    assert_eq!(choice(&discovery), None);
}

#[test]
fn a_changed_record_starts_over_and_an_unchanged_one_does_not() {
    let start = Instant::now();
    let west = endpoint("west", 2);
    let mut discovery = start_with(&west, start);
    let sent = probes(&mut discovery, start);
    reply(&mut discovery, probe_to(&sent, PRIVATE, IdForm::Bare), Code::Ok, PRIVATE, start);

    discovery.set_peers([&west], start + SECOND);
    assert!(probes(&mut discovery, start + SECOND).is_empty());
    let moved = Endpoint { private: address("192.168.2.11").into(), ..west };
    discovery.set_peers([&moved], start + SECOND);
    assert_eq!(choice(&discovery), None);
    // The form that the peer takes is known by now.
    assert_eq!(probes(&mut discovery, start + SECOND).len(), 2);
    discovery.set_peers([], start + SECOND);
    assert_eq!(discovery.poll_timeout(), None);
}

#[test]
fn our_own_cluster_is_not_asked() {
    let start = Instant::now();
    assert!(probes(&mut start_with(&endpoint("east", 3), start), start).is_empty());
}

#[test]
fn two_of_us_find_each_other() {
    let start = Instant::now();
    let mut east = start_with(&endpoint("west", 2), start);
    let west = OwnEndpoint::from(&endpoint("west", 2));
    let source = SocketAddr::new(address("192.168.1.10"), 4490);

    while let Some(probe) = east.poll_transmit(start) {
        let answer = respond(&west, &probe.datagram(source), source).unwrap();
        assert_eq!(east.handle_datagram(&answer, probe.to, start), None);
    }

    assert_eq!(choice(&east), chosen(PRIVATE, false, NatSource::Private));
}

#[test]
fn a_flood_of_requests_gets_a_hundred_answers_a_second() {
    let start = Instant::now();
    let mut discovery = start_with(&endpoint("west", 2), start);
    let source = SocketAddr::new(address("192.168.2.10"), 4490);
    let datagram = probes(&mut discovery, start)[0].datagram(source);
    let mut answers = |second: u32| {
        (0..10_000)
            .filter(|&n| {
                let now = start + SECOND * second + SECOND * n / 10_000;
                discovery.handle_datagram(&datagram, source, now).is_some()
            })
            .count()
    };
    assert_eq!([answers(0), answers(1), answers(100)], [199, 100, 199]);
}

proptest! {
    #[test]
    fn garbage_changes_nothing(datagram in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200, flip: u8) {
        let start = Instant::now();
        let mut discovery = start_with(&endpoint("west", 2), start);
        let sent = probes(&mut discovery, start);
        let before = discovery.peers.clone();
        let source = SocketAddr::new(address("203.0.113.5"), 1);
        let mut mangled = sent[0].datagram(source);
        mangled.truncate(cut);
        if let Some(last) = mangled.last_mut() {
            *last ^= flip;
        }
        discovery.handle_datagram(&datagram, source, start);
        discovery.handle_datagram(&mangled, source, start);
        prop_assert_eq!(discovery.peers, before);
    }
}
