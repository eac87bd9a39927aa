//! The forwarding step as a plain struct: packets and time in, an outbox and joined packets out.
//!
//! From the TUN: the destination's longest prefix names the cable. From the network: the receiver index names it, and
//! an inner packet passes only with a source behind that cable and a destination in this cluster. Handshakes are
//! screened by their MACs, and by cookies under load, before anything costly is done (WireGuard paper, section 5.3).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet as Message, TunnResult};
use boringtun::x25519;
use culvert_model::CableSet;

use crate::join::Joiner;
use crate::outbox::Outbox;
use crate::packet::Packet;
use crate::peer::{COOKIE, DATA, INITIATION, Identity, Opened, Peer, RESPONSE, is_reachable};
use crate::prefixes::Prefixes;
use crate::segment::Cut;
use crate::tun::VirtioHeader;
use crate::{Report, Totals};

/// Handshakes a second that are taken without a cookie.
const HANDSHAKES_PER_SECOND: u64 = 200;
/// Peers without a session that one tick looks for: an initiation costs a tenth of a millisecond and more, in which no
/// packet moves.
const SOUGHT_AT_ONCE: usize = 32;
/// The shortest message: an empty packet.
const MIN_DATAGRAM: usize = 32;

/// All cables of a gateway.
pub(crate) struct Forwarder {
    own: Identity,
    screen: RateLimiter,
    peers: Vec<Option<Peer>>,
    by_key: HashMap<[u8; 32], usize>,
    /// Subnets to the place of their cable.
    routes: Prefixes<usize>,
    local: Prefixes<()>,
    totals: Totals,
    scratch: Box<[u8]>,
    /// Whose turn it is to be looked for first.
    next_sought: usize,
}

impl Forwarder {
    pub(crate) fn new(private_key: [u8; 32], preshared_key: [u8; 32]) -> Self {
        let secret = x25519::StaticSecret::from(private_key);
        let public = x25519::PublicKey::from(&secret);
        Self {
            screen: RateLimiter::new(&public, HANDSHAKES_PER_SECOND),
            own: Identity { secret, public, preshared_key, unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)) },
            peers: Vec::new(),
            by_key: HashMap::new(),
            routes: Prefixes::default(),
            local: Prefixes::default(),
            totals: Totals::default(),
            scratch: vec![0; 65_536].into(),
            next_sought: 0,
        }
    }

    /// Makes the running cables those of `set`; what has not changed goes on undisturbed.
    pub(crate) fn apply(&mut self, set: CableSet, now: Instant) {
        let by_key = set.cables.into_iter().map(|(name, mut cable)| {
            cable.candidates.retain(is_reachable);
            (cable.public_key, (name, cable))
        });
        let mut wanted: BTreeMap<_, _> = by_key.collect();
        for slot in &mut self.peers {
            let Some(peer) = slot else { continue };
            match wanted.remove(&peer.cable.public_key) {
                // A session belongs to a key: a gateway that has a new address, and so a new cable name, goes on.
                Some((name, cable)) => {
                    peer.name = name;
                    peer.update(cable, now);
                }
                None => *slot = None,
            }
        }
        for (name, cable) in wanted.into_values() {
            let place = self.peers.iter().position(Option::is_none).unwrap_or_else(|| {
                self.peers.push(None);
                self.peers.len() - 1
            });
            self.peers[place] = Some(Peer::new(name, cable, place as u32, &self.own, now));
        }
        let running = || self.peers.iter().enumerate().filter_map(|(place, peer)| Some((place, peer.as_ref()?)));
        self.by_key = running().map(|(place, peer)| (peer.cable.public_key.0, place)).collect();
        for peer in self.peers.iter_mut().flatten() {
            peer.is_receive_only = set.receive_only.contains(&peer.name);
            peer.succeeds = set.successors.get(&peer.name).cloned();
        }
        self.route();
        self.local = Prefixes::new(set.local_subnets.into_iter().map(|subnet| (subnet, ())));
    }

    /// Leads each cable's subnets to it, unless it is received from only.
    fn route(&mut self) {
        let running = self.peers.iter().enumerate().filter_map(|(place, peer)| Some((place, peer.as_ref()?)));
        let carrying = running.filter(|(_, peer)| !peer.is_receive_only);
        self.routes = Prefixes::new(
            carrying.flat_map(|(place, peer)| peer.cable.subnets.iter().map(move |&subnet| (subnet, place))),
        );
    }

    /// Has a successor carry traffic in place of the cable before it, if the cable is one.
    fn take_over(&mut self, place: usize) {
        let Some(successor) = self.peers.get_mut(place).and_then(Option::as_mut) else { return };
        let Some(predecessor) = successor.succeeds.take() else { return };
        successor.is_receive_only = false;
        for peer in self.peers.iter_mut().flatten().filter(|peer| peer.name == predecessor) {
            peer.is_receive_only = true;
        }
        self.route();
    }

    /// Seals a packet, or the packets of a super-packet, that was read from the TUN.
    pub(crate) fn handle_tun(&mut self, header: &VirtioHeader, packet: &mut [u8], now: Instant, outbox: &mut Outbox) {
        let Some(mut cut) = Cut::new(header, packet) else {
            self.totals.unroutable_packets += 1;
            return;
        };
        let peer = self.routes.find(cut.parsed().destination).and_then(|place| self.peers[place].as_mut());
        let Some(peer) = peer else {
            self.totals.unroutable_packets += 1;
            return;
        };
        while let Some(piece) = cut.next(&mut self.scratch) {
            peer.seal(piece, now, outbox);
        }
    }

    /// Opens one datagram; the packet in it, if any, goes to `joiner`, which has room for it.
    pub(crate) fn handle_network(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
        joiner: &mut Joiner,
        outbox: &mut Outbox,
    ) {
        let Some(place) = self.peer_of(datagram, from, outbox) else {
            self.totals.rejected_datagrams += 1;
            return;
        };
        let Some(peer) = self.peers.get_mut(place).and_then(Option::as_mut) else {
            self.totals.rejected_datagrams += 1;
            return;
        };
        let Some(plain) = joiner.slot(datagram.len()) else {
            self.totals.failed_writes += 1;
            return;
        };
        match peer.open(datagram, from, plain, now, outbox) {
            Opened::Packet(length) => {
                let Some(packet) = Packet::parse(&plain[..length]) else {
                    peer.count_dropped_source();
                    return;
                };
                if self.routes.find(packet.source) != Some(place) && !peer.takes_from(packet.source) {
                    peer.count_dropped_source();
                } else if self.local.find(packet.destination).is_none() {
                    peer.count_dropped_destination();
                } else {
                    peer.count_received(packet.length);
                    joiner.push(&packet);
                    if peer.succeeds.is_some() {
                        self.take_over(place);
                    }
                }
            }
            Opened::Control => {}
            Opened::Rejected => self.totals.rejected_datagrams += 1,
        }
    }

    /// Returns the place of the cable that a datagram belongs to; a handshake under load is answered with a cookie.
    fn peer_of(&self, datagram: &[u8], from: SocketAddr, outbox: &mut Outbox) -> Option<usize> {
        if datagram.len() < MIN_DATAGRAM || datagram[1..4] != [0; 3] {
            return None;
        }
        let index_at = |at: usize| {
            let bytes = datagram.get(at..at + 4)?.try_into().expect("four bytes");
            Some((u32::from_le_bytes(bytes) >> 8) as usize)
        };
        match datagram[0] {
            DATA | COOKIE => index_at(4),
            RESPONSE => index_at(8),
            INITIATION => match self.screen.verify_packet(Some(from.ip()), datagram, outbox.slot()) {
                Ok(Message::HandshakeInit(initiation)) => {
                    let half = parse_handshake_anon(&self.own.secret, &self.own.public, &initiation).ok()?;
                    self.by_key.get(&half.peer_static_public).copied()
                }
                Err(TunnResult::WriteToNetwork(cookie)) => {
                    let length = cookie.len();
                    outbox.commit(length, from);
                    None
                }
                Ok(_) | Err(_) => None,
            },
            _ => None,
        }
    }

    /// Runs all timers; to be called about ten times a second.
    ///
    /// Where many peers are looked for they take turns, so that those that have a session do not wait for them.
    pub(crate) fn tick(&mut self, now: Instant, outbox: &mut Outbox) {
        self.screen.reset_count();
        let (first, count) = (self.next_sought, self.peers.len());
        let mut sought = 0;
        let mut waiting = None;
        for place in (0..count).map(|step| (first + step) % count) {
            let Some(peer) = &mut self.peers[place] else { continue };
            if peer.has_session() {
                peer.tick(now, outbox);
            } else if sought < SOUGHT_AT_ONCE {
                sought += usize::from(peer.tick(now, outbox));
            } else {
                waiting = waiting.or(Some(place));
            }
        }
        self.next_sought = waiting.unwrap_or(0);
    }

    /// Returns the paths whose MTU is to be looked up now, and whether a probe should be sent on them.
    pub(crate) fn path_checks(&mut self, now: Instant) -> Vec<(SocketAddr, bool)> {
        self.peers.iter_mut().flatten().filter_map(|peer| peer.path_check(now)).collect()
    }

    /// Notes the MTU of the path to `remote`.
    pub(crate) fn set_path_mtu(&mut self, remote: SocketAddr, mtu: u16) {
        for peer in self.peers.iter_mut().flatten().filter(|peer| peer.remote() == Some(remote)) {
            peer.set_path_mtu(mtu);
        }
    }

    /// Notes that nobody listens at `remote`.
    pub(crate) fn handle_refused(&mut self, remote: SocketAddr, now: Instant) {
        for peer in self.peers.iter_mut().flatten().filter(|peer| peer.remote() == Some(remote)) {
            peer.handle_refused(now);
        }
    }

    /// Returns the addresses of the peers that have a session and answer.
    pub(crate) fn living_remotes(&self) -> BTreeSet<SocketAddr> {
        self.peers.iter().flatten().filter(|peer| peer.is_alive()).filter_map(Peer::remote).collect()
    }

    pub(crate) fn totals(&mut self) -> &mut Totals {
        &mut self.totals
    }

    /// Tells, once, whether something happened that cannot wait for the next look at the report.
    pub(crate) fn take_changed(&mut self) -> bool {
        let mut any = false;
        for peer in self.peers.iter_mut().flatten() {
            any |= std::mem::take(&mut peer.changed);
        }
        any
    }

    pub(crate) fn report(&self, now: Instant) -> Report {
        let cables: BTreeMap<_, _> =
            self.peers.iter().flatten().map(|peer| (peer.name.clone(), peer.report(now))).collect();
        Report { cables, totals: self.totals, failure: None }
    }
}

#[cfg(test)]
#[path = "forwarder_tests.rs"]
mod tests;
