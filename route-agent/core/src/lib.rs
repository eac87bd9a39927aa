//! Decides what the route agent wants of its node's kernel, and whether the remote clusters answer from this node.
//!
//! [`desired()`] turns records and node facts into a [`culvert_netstate::State`]; [`Probes`] is the sans-IO machine of
//! the health check; [`pool_changes`] says what Calico is to know. All are free of I/O: the caller passes in what it has
//! read, and the time.

// Tests begin somewhere in time.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

mod desired;
mod filter;
mod inputs;
mod pools;
mod probe;
mod remote;
#[cfg(test)]
mod testing;

pub use desired::desired;
pub use filter::DROPPED_OVERLAY;
pub use inputs::{Inputs, Interface, KnownCluster, Role};
pub use pools::{ForeignPool, FoundPool, POOL_LABEL, PoolChanges, pool_changes, wanted_pools};
pub use probe::{Echo, NoProbe, Pace, ProbeState, Probes, RoundTrip, targets};
pub use remote::Refused;
