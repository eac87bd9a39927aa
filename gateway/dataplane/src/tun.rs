//! The TUN device and the virtio header in front of each packet on it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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

/// The open device.
pub(crate) struct Tun {
    device: SyncDevice,
}

impl Tun {
    /// Makes the device, up, with offloads, in the calling thread's network namespace.
    pub(crate) fn open(link: &str, mtu: u16) -> Result<Self, StartError> {
        let device = DeviceBuilder::new()
            .name(link)
            .layer(Layer::L3)
            .offload(true)
            .mtu(mtu)
            .tx_queue_len(QUEUE_LENGTH)
            .build_sync()
            .map_err(|source| describe(link, source))?;
        device.set_nonblocking(true).map_err(|source| StartError::Tun { link: link.to_owned(), source })?;
        Ok(Self { device })
    }

    /// Tells whether the kernel cuts and takes UDP super-packets (Linux 6.2).
    pub(crate) fn has_udp_segments(&self) -> bool {
        self.device.udp_gso()
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
}
