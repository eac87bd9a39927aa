//! The gateway's UDP port: one socket of each family that hears everybody, and one connected to each living peer.
//!
//! A connected socket spares the kernel a route look-up for every send and every receive, which is a tenth of what a
//! lone packet costs. It is only ever a short cut: what does not match it arrives at the common socket, and a peer that
//! falls silent or moves loses its socket within a tick, so that route and source address are looked up anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::outbox::Batch;
use crate::socket::{Sent, UdpSocket};

/// Sockets by the number that their events carry.
pub(crate) struct Ports {
    sockets: BTreeMap<u64, UdpSocket>,
    connected: BTreeMap<SocketAddr, u64>,
    next: u64,
    port: u16,
    mark: u32,
}

/// Numbers of the common sockets.
const COMMON_V4: u64 = 0;
const COMMON_V6: u64 = 1;
const FIRST_CONNECTED: u64 = 2;

impl Ports {
    /// Opens `port` on all local addresses of both families, with `mark` on what is sent.
    pub(crate) fn open(port: u16, mark: u32) -> io::Result<Self> {
        let mut sockets = BTreeMap::from([(COMMON_V4, UdpSocket::open(false, port, mark)?)]);
        match UdpSocket::open(true, port, mark) {
            Ok(socket) => {
                sockets.insert(COMMON_V6, socket);
            }
            // A host without IPv6 has no IPv6 peers.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {}
            Err(error) => return Err(error),
        }
        Ok(Self { sockets, connected: BTreeMap::new(), next: FIRST_CONNECTED, port, mark })
    }

    /// Lets the common sockets' events be heard.
    pub(crate) fn register(&self, epoll: &Epoll) -> io::Result<()> {
        self.sockets.iter().try_for_each(|(&number, socket)| add(epoll, number, socket))
    }

    /// Makes the connected sockets those of `remotes`; returns those that are done with, which may still hold datagrams.
    ///
    /// A socket that cannot be made is done without.
    pub(crate) fn follow(&mut self, remotes: &BTreeSet<SocketAddr>, epoll: &Epoll) -> Vec<UdpSocket> {
        let mut done = Vec::new();
        let sockets = &mut self.sockets;
        self.connected.retain(|remote, number| {
            let stays = remotes.contains(remote);
            if !stays && let Some(socket) = sockets.remove(number) {
                epoll.delete(socket.fd()).ok();
                done.push(socket);
            }
            stays
        });
        for &remote in remotes {
            if self.connected.contains_key(&remote) {
                continue;
            }
            let number = self.next;
            let made = UdpSocket::connect(remote, self.port, self.mark)
                .and_then(|socket| add(epoll, number, &socket).map(|()| socket));
            match made {
                Ok(socket) => {
                    self.next += 1;
                    self.sockets.insert(number, socket);
                    self.connected.insert(remote, number);
                }
                Err(error) => tracing::debug!(%remote, %error, "No socket of its own for a peer"),
            }
        }
        done
    }

    /// Returns the socket of an event.
    pub(crate) fn of_event(&self, number: u64) -> Option<&UdpSocket> {
        self.sockets.get(&number)
    }

    /// Returns the peer that the socket of an event is connected to.
    pub(crate) fn remote_of_event(&self, number: u64) -> Option<SocketAddr> {
        self.connected.iter().find(|(_, connected)| **connected == number).map(|(&remote, _)| remote)
    }

    /// Sends a batch, waiting for room in the kernel.
    pub(crate) fn send(&self, batch: &Batch, bytes: &[u8]) -> Sent {
        self.towards(batch.to).map_or(Sent::Failed, |socket| socket.send(batch, bytes))
    }

    /// Asks the routers on the way to `to` whether a packet of `mtu` bytes fits.
    pub(crate) fn probe_path(&self, to: SocketAddr, mtu: u16) {
        if let Some(socket) = self.towards(to) {
            socket.probe_path(to, mtu);
        }
    }

    fn towards(&self, to: SocketAddr) -> Option<&UdpSocket> {
        let common = if to.is_ipv6() { COMMON_V6 } else { COMMON_V4 };
        self.sockets.get(self.connected.get(&to).unwrap_or(&common))
    }
}

fn add(epoll: &Epoll, number: u64, socket: &UdpSocket) -> io::Result<()> {
    Ok(epoll.add(socket.fd(), EpollEvent::new(EpollFlags::EPOLLIN, number))?)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as StdSocket;
    use std::time::Duration;

    use nix::sys::epoll::EpollCreateFlags;

    use super::*;
    use crate::outbox::Outbox;
    use crate::socket::Receiver;

    fn loopback() -> StdSocket {
        let socket = StdSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        socket
    }

    /// Returns a port that was free a moment ago.
    fn free_port() -> u16 {
        loopback().local_addr().expect("an address").port()
    }

    fn send(ports: &Ports, to: SocketAddr, byte: u8) -> Sent {
        let mut outbox = Outbox::new();
        outbox.slot()[..40].fill(byte);
        outbox.commit(40, to);
        let (batch, bytes) = outbox.batches().next().expect("a batch");
        ports.send(batch, bytes)
    }

    #[test]
    fn a_connected_peer_and_a_stranger_are_both_heard_and_answered() {
        let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
        let port = free_port();
        // No mark: it takes a capability that this test does without.
        let mut ports = Ports::open(port, 0).expect("ports");
        ports.register(&epoll).expect("events");
        let (peer, stranger) = (loopback(), loopback());
        let peer_address = peer.local_addr().expect("an address");
        assert!(ports.follow(&BTreeSet::from([peer_address]), &epoll).is_empty());

        for (socket, connected) in [(&peer, true), (&stranger, false)] {
            socket.send_to(&[7; 32], ("127.0.0.1", port)).expect("sent");
            let mut events = [EpollEvent::empty(); 4];
            assert_eq!(epoll.wait(&mut events, 5000u16), Ok(1));
            assert_eq!(events[0].data() >= FIRST_CONNECTED, connected);
            let mut receiver = Receiver::new();
            let at = ports.of_event(events[0].data()).expect("a socket");
            assert_eq!(receiver.receive(at, 16), 1);
            let from = receiver.message(0).expect("a message").from;
            assert_eq!(from, socket.local_addr().expect("an address"));
            assert_eq!(send(&ports, from, 9), Sent::Yes);
            let mut buffer = [0; 64];
            assert_eq!(socket.recv(&mut buffer).expect("an answer"), 40);
        }
    }

    #[test]
    fn a_socket_that_is_done_with_is_handed_over_with_what_it_holds() {
        let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
        let port = free_port();
        let mut ports = Ports::open(port, 0).expect("ports");
        let peer = loopback();
        let address = peer.local_addr().expect("an address");
        assert!(ports.follow(&BTreeSet::from([address]), &epoll).is_empty());
        peer.send_to(&[7; 32], ("127.0.0.1", port)).expect("sent");

        let done = ports.follow(&BTreeSet::new(), &epoll);
        let mut receiver = Receiver::new();
        assert_eq!(receiver.receive(&done[0], 16), 1);
        // From now on the common socket hears the peer.
        drop(done);
        peer.send_to(&[7; 32], ("127.0.0.1", port)).expect("sent");
        assert_eq!(receiver.receive(ports.of_event(COMMON_V4).expect("a socket"), 16), 1);
    }

    #[test]
    fn a_peer_that_is_gone_costs_no_datagram_of_the_next() {
        let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
        let mut ports = Ports::open(free_port(), 0).expect("ports");
        let peer = loopback();
        let address = peer.local_addr().expect("an address");
        assert!(ports.follow(&BTreeSet::from([address]), &epoll).is_empty());
        drop(peer);
        // The answer to the first is an ICMP error, which the kernel keeps for the next call.
        assert_eq!(send(&ports, address, 1), Sent::Yes);
        std::thread::yield_now();
        let again = StdSocket::bind(address).expect("the same address");
        again.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        assert_eq!(send(&ports, address, 2), Sent::ButRefused);
        let mut buffer = [0; 64];
        assert_eq!(again.recv(&mut buffer).expect("the second"), 40);
    }

    #[test]
    fn a_batch_arrives_whole_with_and_without_segmentation_by_the_kernel_over_either_family() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let peer = StdSocket::bind(any).expect("a socket");
            peer.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            let to = peer.local_addr().expect("an address");
            for cuts in [true, false] {
                let mut socket = UdpSocket::open(to.is_ipv6(), free_port(), 0).expect("a socket");
                socket.cut_batches(cuts);
                let mut outbox = Outbox::new();
                for length in [100, 100, 60] {
                    outbox.slot()[..length].fill(length as u8);
                    outbox.commit(length, to);
                }
                let (batch, bytes) = outbox.batches().next().expect("a batch");
                assert_eq!(socket.send(batch, bytes), Sent::Yes);
                let mut buffer = [0; 200];
                let lengths = [(); 3].map(|()| peer.recv(&mut buffer).expect("a datagram"));
                assert_eq!(lengths, [100, 100, 60], "{to} cut by the kernel: {cuts}");
            }
        }
    }

    #[test]
    fn a_port_that_is_taken_is_an_error() {
        let taken = StdSocket::bind("0.0.0.0:0").expect("a socket");
        let port = taken.local_addr().expect("an address").port();
        let error = Ports::open(port, 0).err().expect("no second socket");
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        let mine = Ports::open(free_port(), 0).expect("ports");
        let error = Ports::open(mine.port, 0).err().expect("not twice either");
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
    }
}
