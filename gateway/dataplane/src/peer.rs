//! One cable: a WireGuard session pair with a remote gateway, and the search for a way to it.
//!
//! boringtun keeps the sessions and their timers (WireGuard paper, section 6). On top of it a cable looks for its peer
//! more eagerly: an initiation goes to every candidate address at once, soon and often as long as there is no session
//! or the peer is silent, and the first authenticated answer decides where packets go. An authenticated packet from
//! another address moves the cable there (section 2.1 of the paper), so a peer behind NAT is answered where its packets
//! come from.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use culvert_model::{CableName, CableReport, WireGuardCable};

use crate::outbox::Outbox;

/// What keeps a NAT binding alive, in seconds (Submariner chapter 4.8).
const KEEPALIVE: u16 = 10;
/// A peer that is sent data and says nothing for this long is looked for anew.
const SILENCE: Duration = Duration::from_secs(2);
/// A session this young is not doubted.
const SETTLED: Duration = Duration::from_secs(2);
/// First bytes of the messages (section 5.4).
pub(crate) const INITIATION: u8 = 1;
pub(crate) const RESPONSE: u8 = 2;
pub(crate) const COOKIE: u8 = 3;
pub(crate) const DATA: u8 = 4;

/// A cable and its sessions.
pub(crate) struct Peer {
    pub(crate) name: CableName,
    pub(crate) cable: WireGuardCable,
    tunnel: Tunn,
    remote: Option<SocketAddr>,
    /// Packets wait in boringtun for a session.
    waiting: bool,
    attempts: u32,
    next_attempt: Instant,
    established: Option<Instant>,
    last_received: Option<Instant>,
    last_data_sent: Option<Instant>,
    is_silent: bool,
    /// Nobody listened at the remote address since its last packet: its gateway has ended, and may be back any moment.
    is_refused: bool,
    /// One initiation is due, whether or not there is a session.
    is_said_to_have_moved: bool,
    /// The routes to this cable's subnets lead elsewhere.
    pub(crate) is_receive_only: bool,
    /// That ends with the first packet that comes by it, and then holds for this cable.
    pub(crate) succeeds: Option<CableName>,
    pub(crate) path: Path,
    counters: CableReport,
    /// Something happened that the owner wants to know at once.
    pub(crate) changed: bool,
}

/// What is known of the path to the peer.
#[derive(Default)]
pub(crate) struct Path {
    /// The largest outer packet, in bytes.
    pub(crate) mtu: Option<u16>,
    checks: u32,
    next_check: Option<Instant>,
}

/// What came of a datagram.
pub(crate) enum Opened {
    /// An inner packet of this many bytes lies at the start of the buffer.
    Packet(usize),
    /// A message without a packet: handshake, keepalive, cookie.
    Control,
    Rejected,
}

/// This gateway's side of every session.
pub(crate) struct Identity {
    pub(crate) secret: x25519::StaticSecret,
    pub(crate) public: x25519::PublicKey,
    pub(crate) preshared_key: [u8; 32],
    /// Never limits: the forwarder screens handshakes before it looks for their peer.
    pub(crate) unlimited: Arc<RateLimiter>,
}

impl Peer {
    pub(crate) fn new(name: CableName, cable: WireGuardCable, index: u32, own: &Identity, now: Instant) -> Self {
        let tunnel = Tunn::new(
            own.secret.clone(),
            x25519::PublicKey::from(cable.public_key.0),
            Some(own.preshared_key),
            Some(KEEPALIVE),
            index,
            Some(Arc::clone(&own.unlimited)),
        );
        Self {
            name,
            cable,
            tunnel,
            remote: None,
            waiting: false,
            attempts: 0,
            next_attempt: now,
            established: None,
            last_received: None,
            last_data_sent: None,
            is_silent: false,
            is_refused: false,
            is_said_to_have_moved: false,
            is_receive_only: false,
            succeeds: None,
            path: Path::default(),
            counters: CableReport::default(),
            changed: false,
        }
    }

    /// Takes new candidates and subnets; a peer that is said to have moved is looked for at once.
    pub(crate) fn update(&mut self, cable: WireGuardCable, now: Instant) {
        let moved = cable.candidates != self.cable.candidates
            && self.remote.is_none_or(|remote| !cable.candidates.contains(&remote));
        self.cable = cable;
        if moved && !self.cable.candidates.is_empty() {
            // A peer that still answers at its old address stays there until it answers at a new one.
            self.is_said_to_have_moved = true;
            self.attempts = 0;
            self.next_attempt = now;
        }
    }

    /// Looks for the peer at once and often. That somebody could forge such news costs a few initiations.
    pub(crate) fn handle_refused(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.is_refused, true) {
            self.attempts = 0;
            self.next_attempt = now;
        }
    }

    /// Tells whether there is a session, whether or not the peer answers.
    pub(crate) fn has_session(&self) -> bool {
        self.established.is_some()
    }

    /// Tells whether there is a session and the peer answers.
    pub(crate) fn is_alive(&self) -> bool {
        self.established.is_some() && !self.is_silent
    }

    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// Seals an inner packet into the outbox, or keeps it until there is a session.
    pub(crate) fn seal(&mut self, packet: &[u8], now: Instant, outbox: &mut Outbox) {
        if let TunnResult::WriteToNetwork(datagram) = self.tunnel.encapsulate(packet, outbox.slot()) {
            let (kind, length) = (datagram[0], datagram.len());
            if kind == DATA {
                self.counters.sent_bytes += packet.len() as u64;
                self.last_data_sent = Some(now);
            } else {
                self.waiting = true;
            }
            self.dispatch(kind, length, outbox);
        } else {
            self.waiting = true;
        }
    }

    /// Sends what boringtun wrote into the slot: initiations to everywhere, all else to where the peer is.
    fn dispatch(&mut self, kind: u8, length: usize, outbox: &mut Outbox) {
        if kind != INITIATION {
            if let Some(remote) = self.remote {
                outbox.commit(length, remote);
            }
            return;
        }
        let others = self.cable.candidates.iter().copied().filter(|&candidate| Some(candidate) != self.remote);
        let mut targets = self.remote.into_iter().chain(others);
        if let Some(first) = targets.next() {
            outbox.commit(length, first);
            for target in targets {
                outbox.repeat_last(length, target);
            }
        }
    }

    /// Opens a datagram of this peer into `plain`, which is at least as long.
    pub(crate) fn open(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        plain: &mut [u8],
        now: Instant,
        outbox: &mut Outbox,
    ) -> Opened {
        let kind = datagram[0];
        let opened = if kind == DATA {
            match self.tunnel.decapsulate(None, datagram, plain) {
                TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                    Opened::Packet(packet.len())
                }
                TunnResult::Done => Opened::Control,
                TunnResult::WriteToNetwork(_) | TunnResult::Err(_) => return Opened::Rejected,
            }
        } else {
            match self.tunnel.decapsulate(Some(from.ip()), datagram, outbox.slot()) {
                TunnResult::WriteToNetwork(answer) => {
                    let length = answer.len();
                    outbox.commit(length, from);
                }
                TunnResult::Done => {}
                TunnResult::Err(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                    return Opened::Rejected;
                }
            }
            Opened::Control
        };
        self.authenticated(kind, from, now);
        // A responder's session is in use only once the initiator's first data has come.
        if self.waiting && matches!(kind, RESPONSE | DATA) {
            self.drain_waiting(now, outbox);
        }
        opened
    }

    /// Notes that the peer has proved to be at `from`. A cookie proves nothing of the kind.
    fn authenticated(&mut self, kind: u8, from: SocketAddr, now: Instant) {
        if kind == COOKIE {
            return;
        }
        self.last_received = Some(now);
        self.is_refused = false;
        if self.remote != Some(from) {
            self.remote = Some(from);
            self.path = Path::default();
            self.changed = true;
        }
        if std::mem::take(&mut self.is_silent) {
            self.changed = true;
        }
        if kind == RESPONSE || (kind == DATA && self.established.is_none()) {
            self.changed |= self.established.is_none();
            self.established = Some(now);
            self.attempts = 0;
        }
    }

    fn drain_waiting(&mut self, now: Instant, outbox: &mut Outbox) {
        while let TunnResult::WriteToNetwork(datagram) = self.tunnel.decapsulate(None, &[], outbox.slot()) {
            let (kind, length) = (datagram[0], datagram.len());
            self.dispatch(kind, length, outbox);
            if kind != DATA {
                return;
            }
            self.counters.sent_bytes += (length - 32) as u64;
            self.last_data_sent = Some(now);
        }
        self.waiting = false;
    }

    /// Runs boringtun's timers and the search for the peer; tells whether an initiation was made.
    pub(crate) fn tick(&mut self, now: Instant, outbox: &mut Outbox) -> bool {
        let mut has_initiated = false;
        if let TunnResult::WriteToNetwork(datagram) = self.tunnel.update_timers(outbox.slot()) {
            let (kind, length) = (datagram[0], datagram.len());
            has_initiated |= kind == INITIATION;
            self.dispatch(kind, length, outbox);
        }
        if (self.has_to_seek(now) || self.is_said_to_have_moved) && now >= self.next_attempt {
            self.is_said_to_have_moved = false;
            self.next_attempt = now + pause_after(self.attempts);
            self.attempts = self.attempts.saturating_add(1);
            if let TunnResult::WriteToNetwork(datagram) = self.tunnel.format_handshake_initiation(outbox.slot(), true) {
                let length = datagram.len();
                has_initiated = true;
                self.dispatch(INITIATION, length, outbox);
            }
        }
        has_initiated
    }

    fn has_to_seek(&mut self, now: Instant) -> bool {
        let has_session = self.tunnel.time_since_last_handshake().is_some();
        if !has_session || self.established.is_none() {
            self.established = None;
            return true;
        }
        let unanswered = self.last_data_sent > self.last_received
            && self.last_received.is_none_or(|received| now.duration_since(received) >= SILENCE);
        if unanswered && !self.is_silent {
            self.is_silent = true;
            self.changed = true;
        }
        if self.is_refused {
            return true;
        }
        unanswered && self.established.is_none_or(|established| now.duration_since(established) >= SETTLED)
    }

    /// Returns where to ask for the path's MTU, if it is time to; `true` if a full-sized probe should go there first.
    pub(crate) fn path_check(&mut self, now: Instant) -> Option<(SocketAddr, bool)> {
        let remote = self.remote?;
        if self.path.next_check.is_some_and(|next| now < next) {
            return None;
        }
        // A probe, a look at what the routers said to it, then a look every five seconds and a probe every minute.
        let probes = self.path.checks.is_multiple_of(12);
        let pause = if self.path.checks == 0 { Duration::from_millis(200) } else { Duration::from_secs(5) };
        self.path.checks += 1;
        self.path.next_check = Some(now + pause);
        Some((remote, probes))
    }

    pub(crate) fn set_path_mtu(&mut self, mtu: u16) {
        if self.path.mtu != Some(mtu) {
            self.path.mtu = Some(mtu);
            self.changed = true;
        }
    }

    /// Tells whether an inner packet may come from `source` although the routes to it lead elsewhere.
    pub(crate) fn takes_from(&self, source: IpAddr) -> bool {
        self.is_receive_only && self.cable.subnets.iter().any(|subnet| subnet.contains(&source))
    }

    pub(crate) fn count_received(&mut self, bytes: usize) {
        self.counters.received_bytes += bytes as u64;
    }

    pub(crate) fn count_dropped_source(&mut self) {
        self.counters.dropped_source += 1;
    }

    pub(crate) fn count_dropped_destination(&mut self) {
        self.counters.dropped_destination += 1;
    }

    pub(crate) fn report(&self, now: Instant) -> CableReport {
        CableReport {
            last_handshake: self.established.and(self.tunnel.time_since_last_handshake()),
            last_received: self.last_received.map(|received| now.duration_since(received)),
            remote: self.remote,
            path_mtu: self.path.mtu,
            ..self.counters.clone()
        }
    }
}

/// Pauses between attempts to reach a peer: four a second for the first second, one in five seconds in the end.
fn pause_after(attempts: u32) -> Duration {
    match attempts {
        0..=3 => Duration::from_millis(250),
        4..=7 => Duration::from_millis(500),
        8..=12 => Duration::from_secs(1),
        13.. => Duration::from_secs(5),
    }
}

/// Tells whether a candidate can be an address of a peer at all.
pub(crate) fn is_reachable(candidate: &SocketAddr) -> bool {
    let ip = candidate.ip();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    candidate.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}
