//! The shell that all daemons share: the record store, the reconcile loop, the lease, metrics, logs, shutdown.

pub mod authorities;
pub mod echo;
pub mod flags;
pub mod lease;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod proxy;
pub mod reconcile;
mod records;
pub mod shutdown;
pub mod task;
mod watch;

pub use records::{
    Access, Applied, Choice, ClusterWide, Listing, Location, Objects, Place, Problem, Records, Server, Shared,
    StoreError,
};
pub use watch::Watch;
