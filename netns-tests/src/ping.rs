//! Sends echo requests at a fixed interval from inside a namespace, and says which were lost and for how long.
//!
//! The system's `ping` counts, but does not tell when; an outage is what matters here.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;

/// How long the last replies are waited for.
const LATE: Duration = Duration::from_secs(1);
/// How often the receiver looks whether the series has ended.
const WAKE: Duration = Duration::from_millis(20);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// A running series of probes.
pub struct Pinger {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Pings>>,
}

/// What became of a series of probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pings {
    pub sent: usize,
    pub lost: usize,
    /// The longest time from an answered probe to the next answered one, if any was lost between; else zero.
    pub longest_outage: Duration,
    /// The median round trip of those answered.
    pub round_trip: Option<Duration>,
}

/// Sends `count` probes, one every `interval`, and waits up to a second for the last replies.
///
/// # Errors
///
/// The namespace cannot be entered or refuses a raw socket. Lost probes are no error.
pub fn ping(from: &Namespace, to: Ipv4Addr, count: usize, interval: Duration) -> Result<Pings> {
    from.enter(|| Series::new(to, interval)?.run(|sent| sent >= count))
}

impl Pinger {
    /// Starts to probe `to` from `from`, one probe every `interval`.
    pub fn start(from: &Namespace, to: Ipv4Addr, interval: Duration) -> Result<Self> {
        let series = from.enter(|| Series::new(to, interval))?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        // The socket belongs to the namespace it was made in: the thread need not enter it again.
        let thread = thread::spawn(move || series.run(|_| seen.load(Ordering::Relaxed)));
        Ok(Self { stop, thread })
    }

    /// Stops and waits for the last replies.
    pub fn finish(self) -> Result<Pings> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the prober does not panic")
    }
}

struct Series {
    socket: Socket,
    to: Ipv4Addr,
    interval: Duration,
    id: u16,
}

#[derive(Clone, Copy)]
struct Probe {
    sent: Instant,
    round_trip: Option<Duration>,
}

impl Series {
    fn new(to: Ipv4Addr, interval: Duration) -> Result<Self> {
        static NEXT_ID: AtomicU16 = AtomicU16::new(1);
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).context("no raw ICMP socket")?;
        socket.set_read_timeout(Some(WAKE))?;
        Ok(Self { socket, to, interval, id: NEXT_ID.fetch_add(1, Ordering::Relaxed) })
    }

    fn run(&self, done: impl Fn(usize) -> bool) -> Result<Pings> {
        let ended = OnceLock::new();
        thread::scope(|scope| {
            // A thread of its own: a sender that is late must not make replies late.
            let receiver = scope.spawn(|| self.receive(&ended));
            let sent = self.send(done);
            ended.set(sent.len()).expect("the series ends once");
            let mut received = receiver.join().expect("the receiver does not panic")?;
            let probe = |(sequence, sent): (u16, Instant)| {
                let round_trip = received.remove(&sequence).map(|received| received - sent);
                Probe { sent, round_trip }
            };
            Ok(summary(&(0..).zip(sent).map(probe).collect::<Vec<_>>()))
        })
    }

    /// Sends until `done`, or the sequence numbers are used up, and returns when each probe left.
    fn send(&self, done: impl Fn(usize) -> bool) -> Vec<Instant> {
        let mut sent = Vec::new();
        while let Ok(sequence) = u16::try_from(sent.len())
            && !done(sent.len())
        {
            let now = Instant::now();
            sent.push(now);
            // A route that is unreachable or away is a lost probe, not the end of the series.
            let _ = self.socket.send_to(&echo_request(self.id, sequence), &SocketAddrV4::new(self.to, 0).into());
            thread::sleep((now + self.interval).saturating_duration_since(Instant::now()));
        }
        sent
    }

    /// Returns when each reply came. Waits [`LATE`] for the last ones once the number of probes is known.
    fn receive(&self, ended: &OnceLock<usize>) -> Result<BTreeMap<u16, Instant>> {
        let mut received = BTreeMap::new();
        let mut deadline = None;
        let mut buffer = [0; 256];
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(length) => {
                    let reply = echo_reply(&buffer[..length]).filter(|(id, _)| *id == self.id);
                    if let Some((_, sequence)) = reply {
                        received.entry(sequence).or_insert_with(Instant::now);
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                // An ICMP error that the kernel reports here belongs to a probe that is lost anyway.
                Err(error) if matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => {}
                Err(error) => return Err(error).context("cannot read echo replies"),
            }
            if let Some(&sent) = ended.get() {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + LATE);
                if received.len() >= sent || Instant::now() >= deadline {
                    return Ok(received);
                }
            }
        }
    }
}

/// Builds an echo request (RFC 792) of 16 bytes.
fn echo_request(id: u16, sequence: u16) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = ECHO_REQUEST;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from(folded).expect("eight words carry once at most");
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Returns the identifier and the sequence number, if this IPv4 packet is an echo reply.
fn echo_reply(packet: &[u8]) -> Option<(u16, u16)> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let icmp = packet.get(header..header + 8)?;
    let word = |at: usize| u16::from_be_bytes([icmp[at], icmp[at + 1]]);
    (icmp[0] == ECHO_REPLY).then(|| (word(4), word(6)))
}

fn summary(probes: &[Probe]) -> Pings {
    let mut longest_outage = Duration::ZERO;
    let (Some(first), Some(last)) = (probes.first(), probes.last()) else {
        return Pings { sent: 0, lost: 0, longest_outage, round_trip: None };
    };
    let mut answered = first.sent;
    let mut missing = false;
    for probe in probes {
        if probe.round_trip.is_none() {
            missing = true;
            continue;
        }
        if missing {
            longest_outage = longest_outage.max(probe.sent - answered);
        }
        (answered, missing) = (probe.sent, false);
    }
    if missing {
        longest_outage = longest_outage.max(last.sent - answered);
    }
    let mut round_trips: Vec<Duration> = probes.iter().filter_map(|probe| probe.round_trip).collect();
    round_trips.sort();
    Pings {
        sent: probes.len(),
        lost: probes.len() - round_trips.len(),
        longest_outage,
        round_trip: round_trips.get(round_trips.len() / 2).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes(answers: &[bool]) -> Vec<Probe> {
        let start = Instant::now();
        let reply = |&answered: &bool| answered.then_some(Duration::from_millis(3));
        let times = (0..).map(|n| start + Duration::from_millis(10) * n);
        answers.iter().zip(times).map(|(answer, sent)| Probe { sent, round_trip: reply(answer) }).collect()
    }

    #[test]
    fn an_outage_runs_from_one_answered_probe_to_the_next() {
        let pings = summary(&probes(&[true, false, true, false, false, true]));
        assert_eq!((pings.sent, pings.lost, pings.longest_outage), (6, 3, Duration::from_millis(30)));
    }

    #[test]
    fn an_outage_may_last_to_the_end() {
        let pings = summary(&probes(&[true, false, false, false]));
        assert_eq!((pings.lost, pings.longest_outage), (3, Duration::from_millis(30)));
    }

    #[test]
    fn no_loss_is_no_outage() {
        let pings = summary(&probes(&[true, true]));
        assert_eq!((pings.lost, pings.longest_outage), (0, Duration::ZERO));
        assert_eq!(pings.round_trip, Some(Duration::from_millis(3)));
    }

    #[test]
    fn only_echo_replies_are_taken() {
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[24..28].copy_from_slice(&[0, 7, 0, 9]);
        assert_eq!(echo_reply(&packet), Some((7, 9)));
        packet[20] = 3;
        assert_eq!(echo_reply(&packet), None);
        assert_eq!(echo_reply(&packet[..22]), None);
        assert_eq!(echo_reply(&[]), None);
    }

    #[test]
    fn a_request_sums_to_all_ones() {
        let packet = echo_request(0xfffe, 0xffff);
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
