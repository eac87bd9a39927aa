//! Which backends serve an address, protocol and port, and the nftables state that follows.
//!
//! One renderer for global addresses, for cluster addresses that arrive by a cable, and for clusterset addresses. Each
//! user has an nftables table of its own ([`Table`]): a few maps that all services share, and one chain for each number
//! of slots, not for each service ([`structure`]). A service is elements of the maps ([`Placed`]).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod placed;
mod slots;
pub mod structure;

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_model::Frontend;

pub use placed::{Change, Element, Id, Placed};
pub use structure::{Map, Table, Target};

/// Services by where clients find them.
pub type Services = BTreeMap<Frontend, Service>;

/// Who serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Backends of the frontend's family with their weights, at least 1. Without any, packets are left alone.
    pub backends: BTreeMap<Backend, u32>,
    /// How long a client stays with the backend that it had, in seconds since its last new flow; `None`: each flow is
    /// placed by chance.
    pub affinity: Option<u32>,
}

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
}
