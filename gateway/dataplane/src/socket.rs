//! UDP sockets that send and receive many datagrams per system call.
//!
//! Sending uses `UDP_SEGMENT` (Linux 4.18), receiving `UDP_GRO` (5.0) and `recvmmsg`; a kernel that lacks one of them
//! gets plain datagrams. Outer packets are never fragmented by us (`IP_PMTUDISC_DO`): the kernel learns the path MTU
//! from the routers' answers, and we ask it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::sockopt::{Mark, UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::outbox::Batch;

/// Bytes the kernel queues in each direction; what fits a burst while the other direction is served.
const BUFFER: usize = 4 << 20;
/// How long a send waits for room, in milliseconds. A device that is stuck for longer costs packets, not the thread.
const SEND_TIMEOUT: u8 = 100;
/// Datagrams, or joined groups of them, per `recvmmsg`.
pub(crate) const MESSAGES: usize = 16;
/// Bytes of one datagram or group.
const MESSAGE: usize = 65_536;

/// A socket of one address family, perhaps connected to one peer.
pub(crate) struct UdpSocket {
    socket: Socket,
    is_connected: bool,
    cuts: bool,
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Yes,
    /// Sent, but nobody listened at the peer's port when an earlier datagram came there.
    ButRefused,
    /// At least one datagram is larger than the path takes.
    TooLarge,
    Failed,
}

impl UdpSocket {
    /// Opens a socket on `port` of all local addresses of a family, with `mark` on what it sends.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` if any other socket has the port, one that would share it included.
    pub(crate) fn open(is_v6: bool, port: u16, mark: u32) -> io::Result<Self> {
        // The connected sockets share the port; nobody else shall.
        let alone = marked(is_v6, 0)?;
        alone.bind(&any_address(is_v6, port).into())?;
        drop(alone);
        let socket = sharing(is_v6, mark)?;
        socket.bind(&any_address(is_v6, port).into())?;
        Ok(Self::new(socket, false))
    }

    /// Opens a socket on `port` that hears and is sent to `remote` only, beside the common one.
    pub(crate) fn connect(remote: SocketAddr, port: u16, mark: u32) -> io::Result<Self> {
        let is_v6 = remote.is_ipv6();
        let socket = sharing(is_v6, mark)?;
        socket.bind(&any_address(is_v6, port).into())?;
        socket.connect(&remote.into())?;
        Ok(Self::new(socket, true))
    }

    fn new(socket: Socket, is_connected: bool) -> Self {
        // UDP_SEGMENT of zero changes nothing, and fails where the option is unknown.
        let cuts = setsockopt(&socket, UdpGsoSegment, &0).is_ok();
        setsockopt(&socket, UdpGroSegment, &true).ok();
        Self { socket, is_connected, cuts }
    }

    /// Sets whether the kernel is asked to cut batches, as if it could or could not.
    #[cfg(test)]
    pub(crate) fn cut_batches(&mut self, cuts: bool) {
        self.cuts = cuts;
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a batch, waiting for room in the kernel.
    pub(crate) fn send(&self, batch: &Batch, bytes: &[u8]) -> Sent {
        if batch.count() == 1 {
            return self.send_one(batch.to, bytes);
        }
        if self.cuts {
            match self.send_cut(batch, bytes).or_else(|error| self.again(error, || self.send_cut(batch, bytes))) {
                Ok(sent) => return sent,
                // The kernel refuses the whole batch if one datagram is too large for the path.
                Err(libc::EMSGSIZE | libc::EINVAL | libc::EIO) => {}
                Err(_) => return Sent::Failed,
            }
        }
        let mut worst = Sent::Yes;
        for datagram in bytes.chunks(batch.segment) {
            let sent = self.send_one(batch.to, datagram);
            if sent != Sent::Yes {
                worst = sent;
            }
        }
        worst
    }

    fn send_cut(&self, batch: &Batch, bytes: &[u8]) -> Result<Sent, libc::c_int> {
        let segment = batch.segment as u16;
        let slices = [io::IoSlice::new(bytes)];
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let to = (!self.is_connected).then(|| SockaddrStorage::from(batch.to));
        sendmsg(self.socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), to.as_ref())
            .map(|_| Sent::Yes)
            .map_err(|errno| errno as libc::c_int)
    }

    fn send_one(&self, to: SocketAddr, datagram: &[u8]) -> Sent {
        let send = || {
            let sent =
                if self.is_connected { self.socket.send(datagram) } else { self.socket.send_to(datagram, &to.into()) };
            sent.map(|_| Sent::Yes).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
        };
        match send().or_else(|error| self.again(error, send)) {
            Ok(sent) => sent,
            Err(libc::EMSGSIZE) => Sent::TooLarge,
            Err(_) => Sent::Failed,
        }
    }

    /// Sends again when there is room, or after an error that was an earlier datagram's: the kernel hands ICMP errors of
    /// a connected socket to the next call, whatever it is.
    fn again(&self, error: libc::c_int, send: impl FnOnce() -> Result<Sent, libc::c_int>) -> Result<Sent, libc::c_int> {
        if error == libc::EAGAIN {
            let room = &mut [PollFd::new(self.fd(), PollFlags::POLLOUT)];
            // Whatever comes of waiting, sending says it.
            poll(room, SEND_TIMEOUT).ok();
            return send();
        }
        if !self.is_connected || error == libc::EMSGSIZE {
            return Err(error);
        }
        send().map(|sent| if error == libc::ECONNREFUSED { Sent::ButRefused } else { sent })
    }

    /// Sends a datagram of zeros that fills the path's MTU, so that a router with a smaller one says so. Every
    /// WireGuard drops it: no message has type zero.
    pub(crate) fn probe_path(&self, to: SocketAddr, mtu: u16) {
        let headers = if to.is_ipv4() { 28 } else { 48 };
        let probe = vec![0; usize::from(mtu.saturating_sub(headers))];
        self.send_one(to, &probe);
    }
}

/// Returns the kernel's MTU of the path to `to`, in bytes: the route's, or what routers on the way have said.
pub(crate) fn path_mtu(to: SocketAddr, mark: u32) -> Option<u16> {
    let socket = marked(to.is_ipv6(), mark).ok()?;
    socket.connect(&to.into()).ok()?;
    let (level, name) =
        if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let mtu = option(&socket, level, name).ok()?;
    u16::try_from(mtu).ok()
}

/// Makes a datagram socket whose packets carry `mark` and are never fragmented.
fn marked(is_v6: bool, mark: u32) -> io::Result<Socket> {
    let domain = if is_v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    if mark != 0 {
        setsockopt(&socket, Mark, &mark)?;
    }
    if is_v6 {
        socket.set_only_v6(true)?;
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?;
    } else {
        set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
    }
    Ok(socket)
}

/// Makes a socket that may share its port with others of this process, with large buffers.
fn sharing(is_v6: bool, mark: u32) -> io::Result<Socket> {
    let socket = marked(is_v6, mark)?;
    // Beyond the limits for the unprivileged where that is allowed.
    if force_buffers(&socket).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
        socket.set_send_buffer_size(BUFFER)?;
    }
    // epoll looks through the datagrams of a socket whose reads would block.
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

fn any_address(is_v6: bool, port: u16) -> SocketAddr {
    let any = if is_v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    SocketAddr::new(any, port)
}

fn force_buffers(socket: &Socket) -> io::Result<()> {
    let size = BUFFER as libc::c_int;
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, size)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size)
}

fn set_option(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` lives through the call and `length` is its size.
    #[allow(unsafe_code)]
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn option(socket: &Socket, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` and `length` live through the call and `length` is the size of `value`.
    #[allow(unsafe_code)]
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Buffers for one `recvmmsg`.
pub(crate) struct Receiver {
    bytes: Vec<u8>,
    addresses: Vec<libc::sockaddr_storage>,
    control: Vec<[u64; 8]>,
    vectors: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
    was_refused: bool,
}

/// What was received from one peer: one datagram, or several of `segment` bytes (the last may be shorter).
pub(crate) struct Received<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) bytes: &'a [u8],
    pub(crate) segment: usize,
}

#[allow(unsafe_code)]
impl Receiver {
    pub(crate) fn new() -> Self {
        // SAFETY: all of these are plain C structs for which zeros are a valid value.
        let (address, vector, message) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            bytes: vec![0; MESSAGES * MESSAGE],
            addresses: vec![address; MESSAGES],
            control: vec![[0; 8]; MESSAGES],
            vectors: vec![vector; MESSAGES],
            messages: vec![message; MESSAGES],
            was_refused: false,
        }
    }

    /// Receives up to `limit` messages, without waiting for any; returns how many there are.
    pub(crate) fn receive(&mut self, socket: &UdpSocket, limit: usize) -> usize {
        let limit = limit.min(MESSAGES);
        for index in 0..limit {
            let start = index * MESSAGE;
            self.vectors[index] =
                libc::iovec { iov_base: self.bytes[start..start + MESSAGE].as_mut_ptr().cast(), iov_len: MESSAGE };
            let header = &mut self.messages[index].msg_hdr;
            header.msg_name = (&raw mut self.addresses[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = self.control[index].as_mut_ptr().cast();
            header.msg_controllen = size_of::<[u64; 8]>();
            header.msg_flags = 0;
        }
        // SAFETY: each header points to buffers of this struct, disjoint and of the lengths given; none of them moves
        // before the call returns, and the pointers are not used afterwards but through `message`.
        let count = unsafe {
            let fd = socket.socket.as_raw_fd();
            if limit == 1 {
                // A lone packet is spared what `recvmmsg` does for the sake of more.
                let length = libc::recvmsg(fd, &raw mut self.messages[0].msg_hdr, libc::MSG_DONTWAIT);
                self.messages[0].msg_len = u32::try_from(length).unwrap_or(0);
                if length < 0 { -1 } else { 1 }
            } else {
                let (messages, none) = (self.messages.as_mut_ptr(), std::ptr::null_mut());
                libc::recvmmsg(fd, messages, limit as libc::c_uint, libc::MSG_DONTWAIT, none)
            }
        };
        self.was_refused = count < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ECONNREFUSED);
        usize::try_from(count).unwrap_or(0)
    }

    /// Tells whether the last [`Self::receive`] heard that nobody listens at the peer's port.
    pub(crate) fn was_refused(&self) -> bool {
        self.was_refused
    }

    /// Returns message `index` of the last [`Self::receive`]; `None` if its sender's address cannot be read.
    pub(crate) fn message(&self, index: usize) -> Option<Received<'_>> {
        let start = index * MESSAGE;
        let message = &self.messages[index];
        let bytes = &self.bytes[start..start + (message.msg_len as usize).min(MESSAGE)];
        let from = socket_address(&self.addresses[index])?;
        let segment = self.segment(index).filter(|&segment| segment > 0).unwrap_or(bytes.len().max(1));
        Some(Received { from, bytes, segment })
    }

    /// Returns the size of the datagrams that the kernel joined into message `index`.
    fn segment(&self, index: usize) -> Option<usize> {
        let header = &self.messages[index].msg_hdr;
        // SAFETY: the kernel has filled the control buffer, which is alive and aligned, up to `msg_controllen`; the
        // CMSG functions stay within it, and the value of a UDP_GRO message is an int.
        unsafe {
            let mut control = libc::CMSG_FIRSTHDR(header);
            while let Some(message) = control.as_ref() {
                if message.cmsg_level == libc::SOL_UDP && message.cmsg_type == libc::UDP_GRO {
                    let size: libc::c_int = std::ptr::read_unaligned(libc::CMSG_DATA(message).cast());
                    return usize::try_from(size).ok();
                }
                control = libc::CMSG_NXTHDR(header, message);
            }
        }
        None
    }
}

/// Reads the sender's address; an IPv4 address mapped into IPv6 does not occur, since the sockets are of one family.
#[allow(unsafe_code)]
fn socket_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage, which is larger and aligned for it, holds a `sockaddr_in`.
            let address = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for a `sockaddr_in6`.
            let address = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

// SAFETY: the raw pointers in the message headers point into the vectors of the same struct, are set anew before every
// call and never dereferenced by us; moving the struct to another thread moves the vectors' heap blocks with it.
#[allow(unsafe_code)]
unsafe impl Send for Receiver {}
