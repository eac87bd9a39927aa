//! How large an inner packet may be, from how large an outer one may be.

use crate::{CableKind, IpFamily};

/// The smallest path MTU, in bytes, that is believed, whatever a router claims: IPv6's minimum (RFC 8200 section 5).
///
/// A forged "packet too big" cannot push a cable below what fits it.
pub const MIN_MTU: u16 = 1280;

const UDP_HEADER: u16 = 8;
/// Type, receiver, counter and tag of a transport message (WireGuard paper, section 5.4.6).
const WIREGUARD_OVERHEAD: u16 = 32;
/// VXLAN header (RFC 7348 section 5) and the inner Ethernet header.
const VXLAN_OVERHEAD: u16 = 8 + 14;

/// Returns the largest inner packet, in bytes, that a cable carries over a path of `path_mtu` bytes.
///
/// The outer header takes 20 bytes for IPv4 or 40 for IPv6, UDP 8, WireGuard 32 (its padding to 16 is left off where
/// the MTU would forbid it) and VXLAN 22. A path below [`MIN_MTU`] is taken for one of that.
pub fn cable_mtu(kind: CableKind, path_mtu: u16, outer: IpFamily) -> u16 {
    let overhead = match kind {
        CableKind::WireGuard => WIREGUARD_OVERHEAD,
        CableKind::Vxlan => VXLAN_OVERHEAD,
    };
    path_mtu.max(MIN_MTU) - (ip_header(outer) + UDP_HEADER + overhead)
}

/// Returns the largest inner packet, in bytes, of the overlay between nodes whose link has `link_mtu` bytes.
pub fn overlay_mtu(link_mtu: u16, outer: IpFamily) -> u16 {
    cable_mtu(CableKind::Vxlan, link_mtu, outer)
}

fn ip_header(family: IpFamily) -> u16 {
    match family {
        IpFamily::V4 => 20,
        IpFamily::V6 => 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_follow_the_headers() {
        assert_eq!(cable_mtu(CableKind::WireGuard, 1500, IpFamily::V4), 1440);
        assert_eq!(cable_mtu(CableKind::WireGuard, 1500, IpFamily::V6), 1420);
        assert_eq!(cable_mtu(CableKind::Vxlan, 1500, IpFamily::V4), 1450);
        assert_eq!(cable_mtu(CableKind::WireGuard, 1400, IpFamily::V4), 1340);
        assert_eq!(overlay_mtu(9000, IpFamily::V6), 8930);
    }

    #[test]
    fn a_sealed_packet_fits_its_path_down_to_the_smallest_that_is_believed() {
        for path in [1280, 1300, 1339, 1340, 1500] {
            assert_eq!(cable_mtu(CableKind::WireGuard, path, IpFamily::V4) + 60, path);
            assert_eq!(cable_mtu(CableKind::WireGuard, path, IpFamily::V6) + 80, path);
        }
    }

    #[test]
    fn no_claim_pushes_below_the_minimum() {
        for claim in [0, 68, 1279] {
            assert_eq!(cable_mtu(CableKind::WireGuard, claim, IpFamily::V4), MIN_MTU - 60);
        }
    }
}
