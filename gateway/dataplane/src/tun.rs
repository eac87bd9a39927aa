//! The TUN device and the virtio header in front of each packet on it.
//!
//! Offloads are taken as far as the kernel has them: TSO and USO, TSO alone, or none. Without any, the device has no
//! virtio header; [`Tun`] then puts an empty one where its users look for it, and packets pass one by one.

use std::io::{self, IoSlice};
use std::iter;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::uio::writev;
use nix::unistd::{read, write};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::StartError;

/// Length of a virtio net header without the merged-buffers field, in bytes (virtio 1.2, section 5.1.6).
pub(crate) const HEADER: usize = 10;

/// The largest packet on the device, in bytes.
pub(crate) const MAX_PACKET: usize = 65_535;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// A flag on top of the kind: the flow uses ECN.
const GSO_ECN: u8 = 0x80;

/// What a virtio header says that we use; its `hdr_len` is not to be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VirtioHeader {
    /// Offsets of the checksummed part and of the field in it, if the checksum is still to be completed.
    pub(crate) checksum: Option<(usize, usize)>,
    /// How the packet is to be cut.
    pub(crate) segments: Option<Segments>,
    /// Length of all headers, for the kernel's sake.
    pub(crate) header_length: u16,
}

/// A super-packet: one header in front of the payload of several packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segments {
    pub(crate) kind: SegmentKind,
    /// Payload of each packet, in bytes.
    pub(crate) size: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentKind {
    TcpV4,
    TcpV6,
    Udp,
}

impl VirtioHeader {
    /// Reads a header; `None` for a kind that was never agreed on.
    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let kind = match bytes[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(SegmentKind::TcpV4),
            GSO_TCPV6 => Some(SegmentKind::TcpV6),
            GSO_UDP_L4 => Some(SegmentKind::Udp),
            _ => return None,
        };
        let checksum = (bytes[0] & NEEDS_CSUM != 0).then(|| (usize::from(field(6)), usize::from(field(8))));
        Some(Self { checksum, segments: kind.map(|kind| Segments { kind, size: field(4) }), header_length: field(2) })
    }

    /// Writes a header.
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        if let Some(segments) = self.segments {
            bytes[1] = match segments.kind {
                SegmentKind::TcpV4 => GSO_TCPV4,
                SegmentKind::TcpV6 => GSO_TCPV6,
                SegmentKind::Udp => GSO_UDP_L4,
            };
            bytes[2..4].copy_from_slice(&self.header_length.to_ne_bytes());
            bytes[4..6].copy_from_slice(&segments.size.to_ne_bytes());
        }
        if let Some((start, offset)) = self.checksum {
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
            bytes[8..10].copy_from_slice(&(offset as u16).to_ne_bytes());
        }
        bytes
    }
}

/// Which super-packets pass the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offloads {
    /// None; checksums are complete.
    Nothing,
    Tcp,
    /// USO too, since Linux 6.2.
    TcpAndUdp,
}

/// The open device.
pub(crate) struct Tun {
    device: SyncDevice,
    offloads: Offloads,
}

impl Tun {
    /// Makes the device, up, with what offloads there are, in the calling thread's network namespace.
    pub(crate) fn open(link: &str, mtu: u16) -> Result<Self, StartError> {
        let opened = with_or_without(|with_offloads| Self::open_with(link, mtu, with_offloads));
        let tun = opened.map_err(|source| describe(link, source))?;
        match tun.offloads {
            Offloads::TcpAndUdp => {}
            Offloads::Tcp => tracing::info!(link, "Kernel has no USO (Linux 6.2): UDP packets pass one by one"),
            Offloads::Nothing => tracing::warn!(link, "Kernel refuses TUN offloads: all packets pass one by one"),
        }
        Ok(tun)
    }

    fn open_with(link: &str, mtu: u16, with_offloads: bool) -> io::Result<Self> {
        let device = DeviceBuilder::new()
            .name(link)
            .layer(Layer::L3)
            .offload(with_offloads)
            .mtu(mtu)
            .tx_queue_len(QUEUE_LENGTH)
            .build_sync()?;
        device.set_nonblocking(true)?;
        let offloads = match (device.tcp_gso(), device.udp_gso()) {
            (false, _) => Offloads::Nothing,
            (true, false) => Offloads::Tcp,
            (true, true) => Offloads::TcpAndUdp,
        };
        Ok(Self { device, offloads })
    }

    pub(crate) fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Reads a packet behind its header; returns the length of both, in bytes.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        match self.offloads {
            Offloads::Tcp | Offloads::TcpAndUdp => read(self.fd(), buffer),
            Offloads::Nothing => {
                buffer[..HEADER].fill(0);
                read(self.fd(), &mut buffer[HEADER..]).map(|length| HEADER + length)
            }
        }
    }

    /// Writes a packet; the header is the beginning of the first slice.
    pub(crate) fn write(&self, slices: &[IoSlice<'_>]) -> nix::Result<usize> {
        match (self.offloads, slices) {
            (Offloads::Nothing, [first, more @ ..]) => {
                let packet: Vec<_> = iter::once(IoSlice::new(&first[HEADER..])).chain(more.iter().copied()).collect();
                writev(self.fd(), &packet)
            }
            (_, [whole]) => write(self.fd(), whole),
            _ => writev(self.fd(), slices),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the device owns the descriptor and outlives the borrow of `self`.
        #[allow(unsafe_code)]
        unsafe {
            BorrowedFd::borrow_raw(self.device.as_raw_fd())
        }
    }
}

/// Packets that wait in the kernel for us; super-packets count once.
const QUEUE_LENGTH: u32 = 500;

/// What kernels say to an offload, or to a virtio header, that they do not know.
const REFUSALS: [i32; 4] = [libc::EINVAL, libc::ENOTTY, libc::EOPNOTSUPP, libc::ENOSYS];

/// Opens with offloads; without them if the kernel refuses just those.
fn with_or_without<T>(open: impl Fn(bool) -> io::Result<T>) -> io::Result<T> {
    match open(true) {
        Err(error) if error.raw_os_error().is_some_and(|code| REFUSALS.contains(&code)) => {
            tracing::debug!(%error, "TUN device does not open with offloads");
            open(false)
        }
        outcome => outcome,
    }
}

fn describe(link: &str, source: io::Error) -> StartError {
    let link = link.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => StartError::NoTun(source),
        Some(libc::EBUSY | libc::EEXIST) => StartError::LinkInUse { link, source },
        Some(libc::EPERM | libc::EACCES) => StartError::Permission { link, source },
        _ => StartError::Tun { link, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_bytes() {
        let header = VirtioHeader {
            checksum: Some((20, 16)),
            segments: Some(Segments { kind: SegmentKind::TcpV4, size: 1368 }),
            header_length: 52,
        };
        assert_eq!(VirtioHeader::decode(&header.encode()), Some(header));
        assert_eq!(VirtioHeader::decode(&[0; HEADER]), Some(VirtioHeader::default()));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut bytes = [0; HEADER];
        bytes[1] = 3;
        assert_eq!(VirtioHeader::decode(&bytes), None);
    }

    #[test]
    fn offloads_are_done_without_if_just_they_are_refused() {
        let error = |code: i32| Err(io::Error::from_raw_os_error(code));
        let outcome = |first: i32, second: Option<i32>| {
            let opened = with_or_without(|with| match (with, second) {
                (true, _) => error(first),
                (false, Some(second)) => error(second),
                (false, None) => Ok("plain"),
            });
            opened.map_err(|error| error.raw_os_error())
        };
        assert_eq!(with_or_without(Ok).ok(), Some(true));
        for refusal in REFUSALS {
            assert_eq!(outcome(refusal, None), Ok("plain"));
            assert_eq!(outcome(refusal, Some(libc::EPERM)), Err(Some(libc::EPERM)));
        }
        for failure in [libc::EBUSY, libc::EPERM, libc::ENOENT, libc::ENODEV] {
            assert_eq!(outcome(failure, None), Err(Some(failure)));
        }
    }

    /// Runs `work` in a network namespace of its own.
    fn in_namespace(work: impl FnOnce() + Send + 'static) {
        let inside = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace (run as root)");
            work();
        });
        inside.join().expect("the work inside succeeds");
    }

    /// Reads the next UDP packet; the kernel sends others of its own, such as router solicitations.
    fn next_udp(tun: &Tun) -> Vec<u8> {
        let mut buffer = vec![0; HEADER + MAX_PACKET];
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while std::time::Instant::now() < deadline {
            match tun.read(&mut buffer) {
                Ok(length) if buffer[HEADER] >> 4 == 4 && buffer[HEADER + 9] == 17 => return buffer[..length].to_vec(),
                Ok(_) => {}
                Err(nix::Error::EAGAIN) => std::thread::yield_now(),
                Err(errno) => panic!("the device fails: {errno}"),
            }
        }
        panic!("no packet came");
    }

    /// A device without virtio header looks to its user like one with an empty header.
    #[test]
    fn packets_pass_a_device_without_offloads_both_ways() {
        in_namespace(|| {
            let tun = Tun::open_with("plain", 1400, false).expect("a device");
            assert_eq!(tun.offloads(), Offloads::Nothing);
            let ip = |arguments: &str| {
                let status = std::process::Command::new("ip").args(arguments.split(' ')).status();
                assert!(status.expect("ip runs").success(), "ip {arguments}");
            };
            ip("address add 192.0.2.1/24 dev plain");
            let socket = std::net::UdpSocket::bind("192.0.2.1:7000").expect("a socket");
            socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a timeout");
            socket.send_to(&[7; 1000], "192.0.2.2:7001").expect("sent");

            let mut bytes = next_udp(&tun);
            let (header, packet) = bytes.split_first_chunk_mut::<HEADER>().expect("a header");
            assert_eq!(VirtioHeader::decode(header), Some(VirtioHeader::default()));
            assert_eq!(packet.len(), 1028);
            let segment = &packet[20..];
            let pseudo = crate::checksum::pseudo_header(
                "192.0.2.1".parse().expect("an address"),
                "192.0.2.2".parse().expect("an address"),
                17,
                segment.len(),
            );
            assert!(crate::checksum::is_intact(crate::checksum::add(pseudo, segment)), "a complete checksum");

            // Swapped ends leave both checksums as they are.
            for (here, there, length) in [(12, 16, 4), (20, 22, 2)] {
                let (low, high) = packet.split_at_mut(there);
                low[here..here + length].swap_with_slice(&mut high[..length]);
            }
            let (first, rest) = bytes.split_at(HEADER + 600);
            let written = tun.write(&[IoSlice::new(first), IoSlice::new(rest)]);
            assert_eq!(written, Ok(1028));
            let mut answer = [0; 2000];
            let (length, from) = socket.recv_from(&mut answer).expect("the answer");
            assert_eq!((length, from), (1000, "192.0.2.2:7001".parse().expect("an address")));
            assert!(answer[..length].iter().all(|byte| *byte == 7));
        });
    }
}
