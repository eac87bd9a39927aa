//! Sends ICMP echo requests and gives their replies: raw sockets, since unprivileged ones need a sysctl that is not ours.
//!
//! Messages are those of RFC 792 and RFC 4443 section 4, without data. What a reply means is decided by the callers.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use culvert_model::{Addresses, IpFamily};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

const HEADER: usize = 8;
/// Echoes in a row that firewalls take for one flow.
const FLOW: u16 = 4;

/// A raw socket for each family, opened when it is needed and bound to a source address.
pub struct EchoSockets {
    sources: Addresses,
    /// Tells our echoes from those of other programs on the node; process ids are alike in containers.
    identifier: u16,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    /// Whether a failure to open one was logged.
    told: bool,
}

impl Default for EchoSockets {
    fn default() -> Self {
        let identifier = (RandomState::new().build_hasher().finish() & 0xffff) as u16;
        Self { sources: Addresses::default(), identifier, v4: None, v6: None, told: false }
    }
}

impl EchoSockets {
    /// Sets where echoes come from, by family; without a source of its family an echo is not sent.
    pub fn bind(&mut self, sources: Addresses) {
        if self.sources != sources {
            *self = Self { sources, ..Self::default() };
        }
    }

    /// Sends an echo request. One that cannot be sent is one that is not answered: the prober's state shows it.
    pub async fn send(&mut self, destination: IpAddr, sequence: u16) {
        let family = IpFamily::of(destination);
        let Some(source) = self.sources.of(family) else { return };
        let slot = match family {
            IpFamily::V4 => &mut self.v4,
            IpFamily::V6 => &mut self.v6,
        };
        let socket = match slot {
            Some(socket) => socket,
            None => match open(source) {
                Ok(socket) => slot.insert(socket),
                Err(error) => {
                    if !std::mem::replace(&mut self.told, true) {
                        tracing::warn!(%source, %error, "Health check cannot open a raw socket; it takes CAP_NET_RAW");
                    }
                    return;
                }
            },
        };
        let message = request(family, flow(self.identifier, sequence), sequence);
        if let Err(error) = socket.send_to(&message, SocketAddr::new(destination, 0)).await {
            tracing::debug!(%destination, %error, "Echo request is not sent");
        }
    }

    /// Gives the sender and sequence number of the next echo reply to this process. Cancel-safe.
    pub async fn receive(&mut self) -> (IpAddr, u16) {
        loop {
            // An echo reply without data, behind the longest IPv4 header.
            let (mut first, mut second) = ([0; 68], [0; 68]);
            let (family, received) = tokio::select! {
                received = receive_from(self.v4.as_ref(), &mut first) => (IpFamily::V4, received),
                received = receive_from(self.v6.as_ref(), &mut second) => (IpFamily::V6, received),
            };
            let (slot, buffer) = match family {
                IpFamily::V4 => (&mut self.v4, &first),
                IpFamily::V6 => (&mut self.v6, &second),
            };
            match received {
                Ok((length, from)) => {
                    if let Some(sequence) = reply_sequence(from, self.identifier, &buffer[..length]) {
                        return (from, sequence);
                    }
                }
                // The next echo opens it anew.
                Err(_) => *slot = None,
            }
        }
    }
}

async fn receive_from(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<(usize, IpAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await.map(|(length, from)| (length, from.ip())),
        None => std::future::pending().await,
    }
}

/// Opens a raw ICMP socket that receives only what is sent to `source`.
fn open(source: IpAddr) -> io::Result<UdpSocket> {
    let (domain, protocol) = match source {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    // Tokio has no raw sockets; sending and receiving are the same system calls.
    UdpSocket::from_std(OwnedFd::from(socket).into())
}

/// Returns the identifier of an echo; every few it is another one.
///
/// A flow keeps the NAT binding of its first packet for as long as it goes on. An echo that met a node on its way before
/// that node had learnt of the other cluster must not spoil all that follow.
fn flow(identifier: u16, sequence: u16) -> u16 {
    identifier.wrapping_add(sequence / FLOW)
}

/// Returns an echo request with no data.
///
/// The checksum of ICMPv6 stays zero: it covers addresses that only the kernel knows, and the kernel fills it in
/// (RFC 3542 section 3.1).
fn request(family: IpFamily, identifier: u16, sequence: u16) -> [u8; HEADER] {
    let mut message = [0; HEADER];
    message[0] = match family {
        IpFamily::V4 => 8,
        IpFamily::V6 => 128,
    };
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    match family {
        IpFamily::V4 => {
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        IpFamily::V6 => {}
    }
    message
}

/// Returns the sequence number of an echo reply to the flows of `identifier`, from what a raw socket received; `None` for any
/// other message.
///
/// Raw sockets give the IP header with IPv4 messages, and not with IPv6 ones. The kernel has checked the checksum.
fn reply_sequence(from: IpAddr, identifier: u16, received: &[u8]) -> Option<u16> {
    let (message, reply) = match IpFamily::of(from) {
        IpFamily::V4 => (received.get(usize::from(received.first()? & 0x0f) * 4..)?, 0),
        IpFamily::V6 => (received, 129),
    };
    match *message.get(..HEADER)? {
        [kind, 0, _, _, a, b, c, d] => {
            let sequence = u16::from_be_bytes([c, d]);
            (kind == reply && u16::from_be_bytes([a, b]) == flow(identifier, sequence)).then_some(sequence)
        }
        _ => None,
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "10.2.0.1";

    fn ipv4_reply(identifier: u16, sequence: u16) -> Vec<u8> {
        let mut packet = vec![0; 24];
        packet[0] = 0x46; // with options: the header has 24 bytes
        let mut message = request(IpFamily::V4, flow(identifier, sequence), sequence);
        message[0] = 0;
        packet.extend(message);
        packet
    }

    #[test]
    fn a_request_sums_to_all_ones() {
        let message = request(IpFamily::V4, 0xfffe, 0xabcd);
        assert_eq!(checksum(&message), 0);
    }

    #[test]
    fn a_reply_is_known_by_its_identifier() {
        let packet = ipv4_reply(7, 300);
        assert_eq!(reply_sequence(V4.parse().unwrap(), 7, &packet), Some(300));
        assert_eq!(reply_sequence(V4.parse().unwrap(), 8, &packet), None);
        let mut v6 = request(IpFamily::V6, flow(7, 300), 300);
        assert_eq!(reply_sequence("fd00::1".parse().unwrap(), 7, &v6), None, "a request is no reply");
        v6[0] = 129;
        assert_eq!(reply_sequence("fd00::1".parse().unwrap(), 7, &v6), Some(300));
    }

    #[test]
    fn a_spoilt_flow_ends_after_a_few_echoes() {
        let flows: Vec<u16> = (0..6).map(|sequence| flow(u16::MAX, sequence)).collect();
        assert_eq!(flows, [u16::MAX, u16::MAX, u16::MAX, u16::MAX, 0, 0]);
    }

    #[test]
    fn cut_and_empty_messages_are_no_replies() {
        let packet = ipv4_reply(7, 300);
        for length in 0..packet.len() {
            assert_eq!(reply_sequence(V4.parse().unwrap(), 7, &packet[..length]), None, "{length}");
            let v6 = &packet[..length.min(HEADER - 1)];
            assert_eq!(reply_sequence("fd00::1".parse().unwrap(), 7, v6), None);
        }
    }
}
