//! What an attacker sends: packets with addresses that are not his, datagrams for tunnels that are not his, and floods.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;

const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;
const DISCARD_PORT: u16 = 9;
/// A raw socket of this protocol takes whole packets, header and all (raw(7)).
const RAW: i32 = 255;
/// A flood is sent in bursts, one a millisecond.
const BURST: Duration = Duration::from_millis(1);

/// Sends a UDP packet with any source address out of a namespace, along its routes.
pub fn send_forged(from: &Namespace, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Result<()> {
    let packet = udp_packet(source, destination, payload);
    from.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)))?;
        let to = SocketAddrV4::new(destination, 0);
        socket.send_to(&packet, &to.into()).with_context(|| format!("cannot send from {source} to {destination}"))?;
        Ok(())
    })
}

/// A VXLAN datagram (RFC 7348) as somebody writes it who is not the tunnel's other end.
#[derive(Clone, Copy, Debug)]
pub struct ForgedTunnel<'a> {
    pub to: SocketAddrV4,
    pub vni: u32,
    /// MAC of the receiving device.
    pub mac: [u8; 6],
    pub inner_source: Ipv4Addr,
    pub inner_destination: Ipv4Addr,
    pub payload: &'a [u8],
}

impl ForgedTunnel<'_> {
    /// Sends it from a namespace's own address.
    pub fn send(&self, from: &Namespace) -> Result<()> {
        let mut datagram = vec![8, 0, 0, 0];
        datagram.extend_from_slice(&(self.vni << 8).to_be_bytes());
        datagram.extend_from_slice(&self.mac);
        datagram.extend_from_slice(&[2, 0, 0, 0, 0, 1, 8, 0]);
        datagram.extend_from_slice(&udp_packet(self.inner_source, self.inner_destination, self.payload));
        from.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.send_to(&datagram, self.to).with_context(|| format!("cannot send to {}", self.to))?;
            Ok(())
        })
    }
}

/// Builds an IPv4 packet (RFC 791) with a UDP datagram in it, without the latter's checksum, which is optional.
fn udp_packet(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).expect("forged packets are short").to_be_bytes();
    let udp_length = UDP_HEADER + payload.len();
    let mut packet = vec![0; IPV4_HEADER];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length(IPV4_HEADER + udp_length));
    packet[8] = 64;
    packet[9] = UDP;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("ten words carry once at most");
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    for port in [DISCARD_PORT; 2] {
        packet.extend_from_slice(&port.to_be_bytes());
    }
    packet.extend_from_slice(&length(udp_length));
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    packet
}

/// Very many datagrams.
pub struct Flood {
    thread: JoinHandle<Result<usize>>,
}

impl Flood {
    /// Starts to send `datagrams` in turn to `to`, so many `per_second`, for `duration`.
    pub fn start(
        from: &Namespace,
        to: SocketAddrV4,
        datagrams: Vec<Vec<u8>>,
        per_second: usize,
        duration: Duration,
    ) -> Result<Self> {
        let socket = from.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            let mut sent = 0;
            while start.elapsed() < duration {
                let due = usize::try_from(start.elapsed().as_millis())? * per_second / 1000;
                while sent < due {
                    // A full queue on the way is as good as an arrival.
                    let _ = socket.send_to(&datagrams[sent % datagrams.len()], to);
                    sent += 1;
                }
                std::thread::sleep(BURST);
            }
            Ok(sent)
        });
        Ok(Self { thread })
    }

    /// Waits for its end and returns how many were sent.
    pub fn finish(self) -> Result<usize> {
        self.thread.join().expect("the flood does not panic")
    }
}

/// Returns `length` bytes that mean nothing, the same for the same seed (xorshift64).
pub fn garbage(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_packet_is_whole() {
        let packet = udp_packet([10, 1, 2, 3].into(), [10, 4, 5, 6].into(), b"words");
        assert_eq!(packet.len(), 33);
        assert_eq!(packet[2..4], [0, 33]);
        assert_eq!(packet[24..26], [0, 13]);
        let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    #[test]
    fn garbage_can_be_repeated() {
        assert_eq!(garbage(7, 100), garbage(7, 100));
        assert_ne!(garbage(7, 100), garbage(8, 100));
    }
}
