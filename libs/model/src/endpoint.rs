//! What another cluster, or this one, says about its gateway.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Addresses, ClusterId, PublicKey};

/// How two gateways are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CableKind {
    /// Encrypted by WireGuard in user space.
    WireGuard,
    /// Not encrypted: the kernel's VXLAN device, for links that are trusted by local configuration.
    Vxlan,
}

impl CableKind {
    /// Returns the name as it stands in an Endpoint's `backend`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WireGuard => "wireguard",
            Self::Vxlan => "vxlan",
        }
    }
}

impl fmt::Display for CableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The cable driver that an Endpoint names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// A kind that Culvert speaks.
    Cable(CableKind),
    /// Anything else, `libreswan` above all: named in errors.
    Unsupported(String),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cable(kind) => kind.fmt(f),
            Self::Unsupported(name) => f.write_str(name),
        }
    }
}

impl From<&str> for Backend {
    fn from(name: &str) -> Self {
        match name {
            "wireguard" => Self::Cable(CableKind::WireGuard),
            "vxlan" => Self::Cable(CableKind::Vxlan),
            other => Self::Unsupported(other.to_owned()),
        }
    }
}

/// A gateway of a cluster and the subnets behind it (Submariner chapter 2.1, Endpoint.spec).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub cluster: ClusterId,
    /// The gateway's name among those of all clusters; see [`cable_name`].
    pub cable_name: String,
    /// The host name of the gateway node.
    pub hostname: String,
    /// What is reached through this gateway.
    pub subnets: Vec<IpNet>,
    /// Addresses in the gateway's own network.
    pub private: Addresses,
    /// Addresses under which the Internet reaches it, perhaps through NAT.
    pub public: Addresses,
    /// Addresses that answer to echo requests through the cable.
    pub health_check: Addresses,
    /// Whether the cluster says that its gateways sit behind NAT.
    pub nat_enabled: bool,
    pub backend: Backend,
    /// Where the cable's datagrams go.
    pub udp_port: u16,
    /// Where NAT discovery is answered; `None` when it is off.
    pub nat_discovery_port: Option<u16>,
    /// The WireGuard key; a Culvert gateway always has one, whatever its backend.
    pub public_key: Option<PublicKey>,
    /// Whether a load balancer stands before the gateway.
    pub using_load_balancer: bool,
    /// Whether the gateway is Culvert's: both sides then choose the cable kind by the same rule.
    pub culvert: bool,
    /// When the record was made, in seconds since 1970; of two Endpoints of a cluster the newer one counts.
    pub created: i64,
}

/// The most subnets that an Endpoint may announce: more than any cluster has CIDRs, and few enough to compare each with
/// each.
pub const MAX_SUBNETS: usize = 256;
/// The longest name in an Endpoint, in bytes: that of a DNS name.
const MAX_NAME: usize = 253;

/// An Endpoint that nobody needs to be so large: it would swell every status and routing table that it gets into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OversizedEndpoint {
    #[error("Endpoint of cluster {cluster} announces {count} subnets: announce wider ones, {MAX_SUBNETS} at most")]
    Subnets { cluster: ClusterId, count: usize },
    #[error("Endpoint of cluster {cluster} has a {field} of {length} bytes: shorten it to {MAX_NAME}")]
    Name { cluster: ClusterId, field: &'static str, length: usize },
}

impl Endpoint {
    /// Checks that the Endpoint is of a size that can be passed on.
    ///
    /// # Errors
    ///
    /// [`OversizedEndpoint`] names the cluster and what is too long.
    pub fn check_size(&self) -> Result<(), OversizedEndpoint> {
        let cluster = || self.cluster.clone();
        if self.subnets.len() > MAX_SUBNETS {
            return Err(OversizedEndpoint::Subnets { cluster: cluster(), count: self.subnets.len() });
        }
        let backend = self.backend.to_string();
        for (field, text) in [("cable_name", &self.cable_name), ("hostname", &self.hostname), ("backend", &backend)] {
            if text.len() > MAX_NAME {
                return Err(OversizedEndpoint::Name { cluster: cluster(), field, length: text.len() });
            }
        }
        Ok(())
    }
}

/// Returns the cable name of the gateway with `private` address in `cluster` (Submariner chapter 2.1).
pub fn cable_name(cluster: &ClusterId, private: IpAddr) -> String {
    let address = private.to_string().replace(['.', ':'], "-");
    format!("submariner-cable-{cluster}-{address}")
}

/// Returns the cable name of the gateway with `private` address in a cluster that is reached by `global` CIDRs alone.
///
/// It is another one for other CIDRs. Submariner's gateways know an Endpoint by its cable name: they keep the subnets of one
/// that they know, and cut its cable when a record with that name goes (chapter 4.3). It has no more dashes than
/// [`cable_name`], since older releases find the cluster's id by counting them.
pub fn global_cable_name(cluster: &ClusterId, private: IpAddr, global: &[IpNet]) -> String {
    // FNV-1a of 32 bits: the same in every release.
    let mix = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let text: String = global.iter().map(|cidr| format!("{cidr} ")).collect();
    let hash = text.as_bytes().iter().fold(0x811c_9dc5, mix);
    format!("{}g{hash:08x}", cable_name(cluster, private))
}

/// Tells whether a cable name is one that the gateway with `private` address in `cluster` may have by the rules of
/// [`cable_name`] and [`global_cable_name`].
pub fn is_cable_name_of(name: &str, cluster: &ClusterId, private: IpAddr) -> bool {
    let is_hash = |rest: &str| rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit());
    let rest = name.strip_prefix(&cable_name(cluster, private));
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('g').is_some_and(is_hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cable_has_another_name_with_other_global_cidrs() {
        let cluster: ClusterId = "a-b".parse().unwrap();
        let private = "192.168.1.10".parse().unwrap();
        let global = |text: &str| global_cable_name(&cluster, private, &[text.parse().unwrap()]);
        let name = global("242.1.0.0/16");
        assert_eq!(name, "submariner-cable-a-b-192-168-1-10gb7a7be94");
        assert_ne!(name, global("242.2.0.0/16"));
        for name in [cable_name(&cluster, private), name] {
            assert!(is_cable_name_of(&name, &cluster, private), "{name}");
        }
        for other in ["submariner-cable-a-b-192-168-1-101", "submariner-cable-a-b-192-168-1-10g12", "x"] {
            assert!(!is_cable_name_of(other, &cluster, private), "{other}");
        }
    }

    #[test]
    fn a_cable_name_is_submariners() {
        let cluster: ClusterId = "east".parse().expect("id");
        let name = cable_name(&cluster, "192.168.1.10".parse().expect("address"));
        assert_eq!(name, "submariner-cable-east-192-168-1-10");
    }
}
