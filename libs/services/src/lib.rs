//! Which backends serve an address, protocol and port, and the nftables state that follows.
//!
//! One renderer for global addresses, for cluster addresses that arrive by a cable, and for clusterset addresses. Each
//! user has an nftables table of its own ([`Table`]): a few maps that all services share, and one chain for each number
//! of slots, not for each service ([`Target`]). A service is elements of the maps ([`Placed`]).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod chain;
mod placed;
mod slots;
mod structure;

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_model::Frontend;

pub use chain::{Rule, Step};
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

/// Returns what differs in `after` from `before`: a service that is new or another, or `None` for one that is away.
pub fn changed<'a>(before: &'a Services, after: &'a Services) -> Vec<(Frontend, Option<&'a Service>)> {
    let mut changed = Vec::new();
    let mut old = before.iter().peekable();
    for (frontend, service) in after {
        while let Some((gone, _)) = old.next_if(|(before, _)| *before < frontend) {
            changed.push((*gone, None));
        }
        if old.next_if(|(before, _)| *before == frontend).is_none_or(|(_, before)| before != service) {
            changed.push((*frontend, Some(service)));
        }
    }
    changed.extend(old.map(|(gone, _)| (*gone, None)));
    changed
}

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
}

#[cfg(test)]
mod tests {
    use culvert_model::Protocol;

    use super::*;

    #[test]
    fn what_is_new_another_or_away_has_changed() {
        let frontend = |port| Frontend { address: "242.0.0.1".parse().unwrap(), protocol: Protocol::Udp, port };
        let service = |affinity| Service { backends: BTreeMap::new(), affinity: Some(affinity) };
        let before =
            [(1, 0), (3, 0), (4, 0), (6, 0)].map(|(port, affinity)| (frontend(port), service(affinity))).into();
        let after = [(2, 0), (3, 0), (4, 9)].map(|(port, affinity)| (frontend(port), service(affinity))).into();
        let (new, other) = (service(0), service(9));
        let expected = [(1, None), (2, Some(&new)), (4, Some(&other)), (6, None)];
        assert_eq!(changed(&before, &after), expected.map(|(port, service)| (frontend(port), service)));
        assert_eq!(changed(&before, &before), []);
    }
}
