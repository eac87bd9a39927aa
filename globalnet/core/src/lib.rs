//! Globalnet's decisions: who holds which global address, and the NAT that follows (Submariner chapter 8).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod addresses;
mod cluster;
mod nat;
mod served;

pub use addresses::{EgressGroup, GlobalAddresses};
pub use cluster::{Endpoints, ObjectKey, Pod, Port, Service, ServiceEndpoint};
pub use nat::{REFUSED, desired, from_cable, is_global};
pub use served::served;
