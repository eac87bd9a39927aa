//! Listens on a link and tells whether something went over it that must not: a payload in the clear, a packet to a
//! subnet that may only be reached through a cable.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};

use crate::namespace::Namespace;

const ETHERNET_HEADER: usize = 14;
const IPV4: [u8; 2] = [8, 0];
/// Bytes of packets that wait for the listener: a burst of bulk traffic must not hide a single packet.
const BUFFER: usize = 64 << 20;

/// What to look for.
#[derive(Clone, Debug, Default)]
pub struct Watchlist {
    /// Bytes that may appear anywhere in a packet.
    pub markers: Vec<Vec<u8>>,
    /// Subnets that an outer source or destination address may be in.
    pub subnets: Vec<Ipv4Net>,
}

/// What went over the link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub packets: usize,
    /// Packets with a marker in them.
    pub with_marker: usize,
    /// Source and destination of packets with an outer address in one of the subnets.
    pub addresses: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
}

/// A running capture.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

impl Capture {
    /// Starts to listen on a link of a namespace; packets from now on are seen.
    pub fn start(namespace: &Namespace, link: &str, watchlist: Watchlist) -> Result<Self> {
        let (socket, index) = namespace.enter(|| {
            let index = if_nametoindex(link).with_context(|| format!("no link {link}"))?;
            let all = Some(SockProtocol::EthAll);
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all)?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            socket2::SockRef::from(&socket.as_fd()).set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok((socket, index as usize))
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let mut buffer = vec![0; 0x2_0000];
            loop {
                // Read before the wait: what was queued when the capture was stopped still counts.
                let last = stopped.load(Ordering::Relaxed);
                match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer).map_err(std::io::Error::from) {
                    Ok((length, Some(address))) if address.ifindex() == index => {
                        seen.handle(&buffer[..length], &watchlist);
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock && last => return Ok(seen),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(error) => return Err(error).context("cannot capture"),
                }
            }
        });
        Ok(Self { stop, thread })
    }

    /// Stops and returns what was seen.
    pub fn finish(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the capture does not panic")
    }
}

impl Seen {
    fn handle(&mut self, frame: &[u8], watchlist: &Watchlist) {
        self.packets += 1;
        if watchlist.markers.iter().any(|marker| contains(frame, marker)) {
            self.with_marker += 1;
        }
        if let Some((source, destination)) = outer_addresses(frame)
            && watchlist.subnets.iter().any(|subnet| subnet.contains(&source) || subnet.contains(&destination))
        {
            self.addresses.insert((source, destination));
        }
    }
}

fn contains(frame: &[u8], marker: &[u8]) -> bool {
    let mut rest = frame;
    while let Some(at) = rest.iter().position(|byte| *byte == marker[0]) {
        rest = &rest[at..];
        if rest.starts_with(marker) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

fn outer_addresses(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let address = |at: usize| {
        let bytes: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    (frame.get(12..ETHERNET_HEADER)? == IPV4).then_some(())?;
    Some((address(ETHERNET_HEADER + 12)?, address(ETHERNET_HEADER + 16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_HEADER + 20];
        frame[12..14].copy_from_slice(&IPV4);
        frame[26..30].copy_from_slice(&source);
        frame[30..34].copy_from_slice(&destination);
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn markers_and_subnets_are_recognised() {
        let watchlist = Watchlist { markers: vec![b"secret".to_vec()], subnets: vec!["10.2.0.0/16".parse().unwrap()] };
        let mut seen = Seen::default();
        seen.handle(&frame([1, 1, 1, 1], [10, 2, 3, 4], b"sesecret"), &watchlist);
        seen.handle(&frame([1, 1, 1, 1], [2, 2, 2, 2], b"secre"), &watchlist);
        seen.handle(&[0; 3], &watchlist);
        let leak = (Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(10, 2, 3, 4));
        assert_eq!(seen, Seen { packets: 3, with_marker: 1, addresses: BTreeSet::from([leak]) });
    }
}
