//! The words of Culvert: what a cluster, an endpoint, a cable and an MTU mean.
//!
//! Every value here has been checked: whoever holds an [`Endpoint`] need not ask again whether its
//! subnets parse or its key has 32 bytes. How these look on the wire is the business of `libs/api`.

mod addresses;
mod cable;
mod cluster;
mod endpoint;
mod key;
mod link;
mod mtu;
mod service;
mod subnets;
mod text;

pub use addresses::{Addresses, IpFamily};
pub use cable::{CableName, CableReport, CableSet, WireGuardCable};
pub use cluster::{ClusterId, ClusterIdError, is_dns_label};
pub use endpoint::{
    Backend, CableKind, Endpoint, MAX_SUBNETS, OversizedEndpoint, cable_name, global_cable_name, is_cable_name_of,
};
pub use key::{PublicKey, PublicKeyError};
pub use link::{MacAddr, link_local, vtep_mac};
pub use mtu::{MIN_MTU, cable_mtu, overlay_mtu};
pub use service::{Frontend, Protocol};
pub use subnets::{ForeignSubnets, SubnetError, check_global, overlaps};
pub use text::clipped;
