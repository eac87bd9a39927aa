//! At most one address of each family, as Submariner's list fields hold them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// An Internet address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Returns the family of a subnet.
    pub fn of_net(net: &ipnet::IpNet) -> Self {
        Self::of(net.addr())
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "4",
            Self::V6 => "6",
        })
    }
}

/// At most one IPv4 and one IPv6 address of one thing, such as a gateway's private addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addresses {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Returns the address of `family`.
    pub fn of(&self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.v4.map(IpAddr::V4),
            IpFamily::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// Sets the address of the family of `address`.
    pub fn set(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.v4 = Some(v4),
            IpAddr::V6(v6) => self.v6 = Some(v6),
        }
    }

    /// Returns the addresses that are there, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        IpFamily::ALL.into_iter().filter_map(|family| self.of(family))
    }

    /// Tells whether `address` is one of these.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.iter().any(|own| own == address)
    }
}

impl From<IpAddr> for Addresses {
    fn from(address: IpAddr) -> Self {
        let mut addresses = Self::default();
        addresses.set(address);
        addresses
    }
}

impl FromIterator<IpAddr> for Addresses {
    /// Collects addresses; the first of a family wins.
    fn from_iter<T: IntoIterator<Item = IpAddr>>(iter: T) -> Self {
        let mut addresses = Self::default();
        for address in iter {
            if addresses.of(IpFamily::of(address)).is_none() {
                addresses.set(address);
            }
        }
        addresses
    }
}
