//! UDP at offered rates, and the search for the highest one that loses less than one packet in a hundred.
//!
//! The receiver's buffer is large, so that what is lost was lost on the way. Sending goes in bursts of half a
//! millisecond. A sender that was held up does not catch up, since no queue takes that: `sent` is what it really offered.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_netns_tests::Namespace;
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;

/// Packets per second at which the CPU per packet is measured: every candidate carries it.
pub(crate) const FIXED_RATE: u32 = 20_000;
/// Offered rates, in packets per second. One bisection takes three runs.
pub(crate) const LADDER: [u32; 7] = [30_000, 45_000, 60_000, 80_000, 100_000, 130_000, 170_000];

const BURST: Duration = Duration::from_micros(500);
/// How much of what is overdue is still sent.
const CATCH_UP: Duration = Duration::from_millis(2);
/// How long after the last packet it is waited for others.
const LATE: Duration = Duration::from_millis(300);
const RECEIVE_BUFFER: usize = 16 << 20;

/// One run at one rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Flood {
    /// Packets per second that were asked for.
    pub(crate) offered: u32,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// From the first packet sent to the last.
    pub(crate) seconds: f64,
}

impl Flood {
    /// Tells whether less than one packet in a hundred was lost.
    pub(crate) fn passes(&self) -> bool {
        self.received > 0 && (self.sent - self.received.min(self.sent)) * 100 < self.sent
    }

    /// Returns the packets per second that arrived.
    pub(crate) fn rate(&self) -> f64 {
        self.received as f64 / self.seconds
    }
}

/// Sends datagrams of `size` bytes of payload at `offered` packets per second for `duration`.
pub(crate) fn flood(
    from: &Namespace,
    server: &Namespace,
    to: Ipv4Addr,
    size: usize,
    offered: u32,
    duration: Duration,
) -> Result<Flood> {
    // A port of its own: what is late from an earlier run does not count here.
    let receiving = server.enter(|| bind(LATE))?;
    let address = SocketAddr::from((to, receiving.local_addr()?.port()));
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let receiver = std::thread::spawn(move || receive(&receiving, size, &stopped));
    let sending = from.enter(|| send(&bind(LATE)?, address, size, offered, duration));
    stop.store(true, Ordering::Relaxed);
    let received = receiver.join().expect("the receiver does not panic").context("cannot receive UDP")?;
    let (sent, seconds) = sending.context("cannot send UDP")?;
    Ok(Flood { offered, sent, received, seconds })
}

/// Runs `attempt` at steps of the ladder, by bisection, and returns every run.
///
/// # Errors
///
/// That of an attempt; packet loss is none.
pub(crate) fn climb(mut attempt: impl FnMut(u32) -> Result<Flood>) -> Result<Vec<Flood>> {
    let mut runs = Vec::new();
    let (mut low, mut high) = (0, LADDER.len());
    while low < high {
        let middle = low.midpoint(high);
        let run = attempt(LADDER[middle])?;
        if run.passes() {
            low = middle + 1;
        } else {
            high = middle;
        }
        runs.push(run);
    }
    Ok(runs)
}

fn bind(timeout: Duration) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    socket.set_read_timeout(Some(timeout))?;
    Ok(socket)
}

fn receive(socket: &UdpSocket, size: usize, stop: &AtomicBool) -> Result<u64> {
    let mut buffer = vec![0; size + 1];
    let mut received = 0;
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => received += u64::from(length == size),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(received);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn send(socket: &UdpSocket, to: SocketAddr, size: usize, offered: u32, duration: Duration) -> Result<(u64, f64)> {
    socket.connect(to)?;
    let payload = vec![0; size];
    let mut sent = 0;
    let mut bucket = Bucket { rate: offered, micropackets: 0 };
    let start = Instant::now();
    let mut last = start;
    while last - start < duration {
        let now = Instant::now();
        for _ in 0..bucket.take(now - last) {
            // A full queue or a reported error of an earlier packet is a loss like any other.
            if let Err(error) = socket.send(&payload)
                && !matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::WouldBlock)
                && error.raw_os_error() != Some(nix::errno::Errno::ENOBUFS as i32)
            {
                return Err(error.into());
            }
            sent += 1;
        }
        last = now;
        std::thread::sleep(BURST.saturating_sub(now.elapsed()));
    }
    Ok((sent, (last - start).as_secs_f64()))
}

/// What may be sent at a rate, of which no more is kept than [`CATCH_UP`] brings.
struct Bucket {
    /// Packets per second.
    rate: u32,
    /// Millionths of packets that are due.
    micropackets: u64,
}

impl Bucket {
    /// Returns how many packets are due after another `elapsed`.
    fn take(&mut self, elapsed: Duration) -> u64 {
        let microseconds = u64::try_from(elapsed.min(CATCH_UP).as_micros()).unwrap_or(u64::MAX);
        self.micropackets += microseconds * u64::from(self.rate);
        let due = self.micropackets / 1_000_000;
        self.micropackets %= 1_000_000;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(offered: u32, limit: u32) -> Flood {
        Flood { offered, sent: u64::from(offered), received: u64::from(offered.min(limit)), seconds: 1.0 }
    }

    #[test]
    fn one_packet_in_a_hundred_is_too_much() {
        assert!(run(10_000, 9_901).passes());
        assert!(!run(10_000, 9_900).passes());
        assert!(!Flood { offered: 1, sent: 0, received: 0, seconds: 1.0 }.passes());
    }

    #[test]
    fn three_runs_find_every_step() {
        for (limit, best) in [(20_000, None), (50_000, Some(45_000)), (99_999, Some(100_000)), (500_000, Some(170_000))]
        {
            let runs = climb(|offered| Ok(run(offered, limit))).unwrap();
            let passed = runs.iter().filter(|run| run.passes()).map(|run| run.offered).max();
            assert_eq!((runs.len(), passed), (3, best), "{limit}");
        }
    }

    #[test]
    fn no_fraction_of_a_packet_is_lost() {
        let mut bucket = Bucket { rate: 1_500, micropackets: 0 };
        let packets: Vec<u64> = (0..4).map(|_| bucket.take(Duration::from_micros(500))).collect();
        assert_eq!(packets, [0, 1, 1, 1]);
    }

    #[test]
    fn a_sender_that_was_held_up_does_not_catch_up() {
        let mut bucket = Bucket { rate: 100_000, micropackets: 0 };
        assert_eq!(bucket.take(Duration::from_secs(1)), 200);
    }
}
