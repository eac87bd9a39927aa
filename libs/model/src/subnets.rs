//! Which subnets of another cluster may be routed here.
//!
//! A record that another cluster wrote must never take traffic away from this one: not its pods, its services, its
//! nodes, nor the addresses that every host needs for itself.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Why a remote subnet is not routed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    #[error("subnet {subnet} overlaps {local} of this cluster: give one of the two other CIDRs")]
    OverlapsLocal { subnet: IpNet, local: IpNet },
    #[error("subnet {subnet} covers node network {local}: the clusters' node and pod networks must differ")]
    OverlapsNode { subnet: IpNet, local: IpNet },
    #[error(
        "subnet {subnet} is too wide to belong to one cluster: announce a prefix of /8 (IPv4) or /16 (IPv6) at most"
    )]
    TooWide { subnet: IpNet },
    #[error("subnet {subnet} overlaps {reserved}, which no cluster may claim")]
    Reserved { subnet: IpNet, reserved: IpNet },
    #[error("subnet {subnet} overlaps {overlay}, which Submariner's nodes and cables have themselves")]
    Overlay { subnet: IpNet, overlay: IpNet },
}

/// The subnets of this cluster that no other one may claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignSubnets {
    /// Pod, service and global CIDRs of this cluster.
    pub local: Vec<IpNet>,
    /// Networks that this node is attached to.
    pub nodes: Vec<IpNet>,
}

impl ForeignSubnets {
    /// Checks one subnet that another cluster announces.
    ///
    /// # Errors
    ///
    /// [`SubnetError`] names the subnet and what it collides with.
    pub fn check(&self, subnet: IpNet) -> Result<(), SubnetError> {
        let widest = match subnet {
            IpNet::V4(_) => 8,
            IpNet::V6(_) => 16,
        };
        if subnet.prefix_len() < widest {
            return Err(SubnetError::TooWide { subnet });
        }
        if let Some(reserved) = reserved().find(|reserved| overlaps(reserved, &subnet)) {
            return Err(SubnetError::Reserved { subnet, reserved });
        }
        if let Some(&local) = self.local.iter().find(|local| overlaps(local, &subnet)) {
            return Err(SubnetError::OverlapsLocal { subnet, local });
        }
        if let Some(&local) = self.nodes.iter().find(|local| overlaps(local, &subnet)) {
            return Err(SubnetError::OverlapsNode { subnet, local });
        }
        Ok(())
    }
}

/// Checks a global CIDR, or a range of them, by itself.
///
/// # Errors
///
/// [`SubnetError`]: it is too wide for one cluster, no cluster's at all, or where nodes have addresses within a cluster
/// (240.0.0.0/8) or VXLAN cables theirs (241.0.0.0/8; Submariner chapters 4.9 and 7.3).
pub fn check_global(subnet: IpNet) -> Result<(), SubnetError> {
    ForeignSubnets::default().check(subnet)?;
    let overlays = [240, 241].map(|first| IpNet::V4(Ipv4Net::new_assert([first, 0, 0, 0].into(), 8)));
    match overlays.into_iter().find(|overlay| overlaps(overlay, &subnet)) {
        Some(overlay) => Err(SubnetError::Overlay { subnet, overlay }),
        None => Ok(()),
    }
}

/// Tells whether two subnets share an address.
pub fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Loopback, link-local, multicast, "this network" and limited broadcast (RFC 6890).
fn reserved() -> impl Iterator<Item = IpNet> {
    const V4: [([u8; 4], u8); 5] = [
        ([0, 0, 0, 0], 8),
        ([127, 0, 0, 0], 8),
        ([169, 254, 0, 0], 16),
        ([224, 0, 0, 0], 4),
        ([255, 255, 255, 255], 32),
    ];
    const V6: [(u16, u16, u8); 3] = [(0, 1, 128), (0xfe80, 0, 10), (0xff00, 0, 8)];
    let v4 = V4.into_iter().map(|(address, length)| IpNet::V4(Ipv4Net::new_assert(address.into(), length)));
    let v6 = V6
        .into_iter()
        .map(|(first, last, length)| IpNet::V6(Ipv6Net::new_assert([first, 0, 0, 0, 0, 0, 0, last].into(), length)));
    v4.chain(v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_global_cidr_is_where_no_overlay_is() {
        for subnet in ["240.0.0.0/8", "240.1.0.0/16", "241.255.0.0/24"] {
            let overlay = format!("{}.0.0.0/8", &subnet[..3]).parse().unwrap();
            let subnet = net(subnet);
            assert_eq!(check_global(subnet), Err(SubnetError::Overlay { subnet, overlay }));
        }
        assert!(matches!(check_global(net("127.1.0.0/16")), Err(SubnetError::Reserved { .. })));
        for subnet in ["242.0.0.0/8", "169.253.0.0/16", "10.0.0.0/8", "fd00:242::/48"] {
            assert_eq!(check_global(net(subnet)), Ok(()), "{subnet}");
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a subnet")
    }

    fn ours() -> ForeignSubnets {
        ForeignSubnets { local: vec![net("10.1.0.0/16"), net("100.1.0.0/16")], nodes: vec![net("192.168.7.0/24")] }
    }

    #[test]
    fn disjoint_subnets_are_taken() {
        for subnet in ["10.2.0.0/16", "242.1.0.0/16", "fd00:2::/48", "10.0.0.0/16"] {
            assert_eq!(ours().check(net(subnet)), Ok(()), "{subnet}");
        }
    }

    #[test]
    fn subnets_that_touch_ours_are_refused() {
        assert!(matches!(ours().check(net("10.0.0.0/8")), Err(SubnetError::OverlapsLocal { .. })));
        assert!(matches!(ours().check(net("10.1.3.0/24")), Err(SubnetError::OverlapsLocal { .. })));
        assert!(matches!(ours().check(net("192.168.0.0/16")), Err(SubnetError::OverlapsNode { .. })));
        assert!(matches!(ours().check(net("192.168.7.9/32")), Err(SubnetError::OverlapsNode { .. })));
    }

    #[test]
    fn subnets_that_belong_to_nobody_are_refused() {
        assert!(matches!(ours().check(net("0.0.0.0/0")), Err(SubnetError::TooWide { .. })));
        assert!(matches!(ours().check(net("::/0")), Err(SubnetError::TooWide { .. })));
        for subnet in ["127.0.0.0/8", "169.254.169.254/32", "224.0.0.0/8", "fe80::/64", "0.1.0.0/16"] {
            assert!(matches!(ours().check(net(subnet)), Err(SubnetError::Reserved { .. })), "{subnet}");
        }
    }
}
