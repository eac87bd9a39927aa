//! Link-layer addresses that follow from network addresses.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// An EUI-48 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The address of the default entry of a VXLAN forwarding table: "any other destination".
    pub const ZERO: Self = Self([0; 6]);
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
        bytes
            .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no link-layer address such as 02:c1:0a:00:00:01"))
    }
}

/// Returns the MAC of the VXLAN device of the node with `address`: locally administered, the same after every start.
///
/// A device that gets a random MAC each time is unreachable until its peers' neighbour entries expire, which was
/// measured at 8.4 s on Submariner. IPv4 addresses are copied; of IPv6 ones the last four bytes are folded with the
/// others.
pub fn vtep_mac(address: IpAddr) -> MacAddr {
    let tail = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let mut folded = [0; 4];
            for (position, byte) in v6.octets().into_iter().enumerate() {
                folded[position % 4] ^= byte.rotate_left(position as u32 / 4);
            }
            folded
        }
    };
    let [a, b, c, d] = tail;
    let family = if address.is_ipv4() { 0xc1 } else { 0xc6 };
    MacAddr([0x02, family, a, b, c, d])
}

/// Returns the link-local address that follows from a MAC (RFC 4291 appendix A).
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let interface = [a ^ 0x02, b, c, 0xff, 0xfe, d, e, f];
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&interface);
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vtep_mac_follows_from_the_address() {
        assert_eq!(vtep_mac("10.1.2.3".parse().expect("address")).to_string(), "02:c1:0a:01:02:03");
        let v6: IpAddr = "fd00::1".parse().expect("address");
        assert_eq!(vtep_mac(v6), vtep_mac(v6));
        assert_ne!(vtep_mac(v6), vtep_mac("fd00::2".parse().expect("address")));
    }

    #[test]
    fn a_link_local_address_follows_from_the_mac() {
        let mac = MacAddr([0x02, 0xc1, 10, 1, 2, 3]);
        assert_eq!(link_local(mac), "fe80::c1:aff:fe01:203".parse::<Ipv6Addr>().expect("address"));
    }

    #[test]
    fn a_mac_survives_its_text() {
        let mac = MacAddr([2, 0xc1, 10, 0, 0xff, 1]);
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert!("02:c1:0a".parse::<MacAddr>().is_err());
    }
}
