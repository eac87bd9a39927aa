//! Globalnet's decisions: who holds which global address, and the NAT that follows (Submariner chapter 8).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod addresses;
mod allocation;
mod applicants;
mod cluster;
mod conditions;
mod exports;
mod groups;
mod hosts;
mod ledger;
mod lingering;
mod names;
mod nat;
mod objects;
mod pool;
mod selector;
mod served;
#[cfg(test)]
mod testing;

pub use addresses::{EgressGroup, GlobalAddresses};
pub use allocation::allocate;
pub use applicants::{CLUSTER_EGRESS, CLUSTER_EGRESS_NUMBER, MAX_ADDRESSES};
pub use cluster::{Endpoints, ObjectKey, Pod, Port, Service, ServiceEndpoint};
pub use conditions::{ALLOCATED, CONFLICTED};
pub use lingering::Lingering;
pub use nat::{REFUSED, UNTRANSLATED, desired, from_cable};
pub use objects::{
    Condition, Decision, EgressObject, FoundStatus, Holder, IngressObject, IngressSpec, Inputs, Memory, Status, Target,
    UnclearExports,
};
pub use pool::{Pool, PoolError};
pub use selector::{Selector, SelectorError};
pub use served::{Serving, served};
