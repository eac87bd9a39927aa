//! Decides when flows to a backend that serves no more are forgotten.
//!
//! A pod that ends is not ready any more but may finish what it has begun: its TCP connections live until its address is no
//! endpoint's at all. Everything else is forgotten at once, so that a client that keeps its port comes to somebody who serves
//! (as with kube-proxy).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::{Frontend, Protocol};
use culvert_services::{Backend, Services};

use crate::{Endpoints, ObjectKey};

/// Backends whose connections may come to their end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lingering {
    all: BTreeSet<(Frontend, Backend)>,
}

impl Lingering {
    /// Takes which backends serve no more, and returns those whose flows are to be forgotten now.
    pub fn forgotten(
        &mut self,
        gone: &BTreeSet<(Frontend, Backend)>,
        served: &Services,
        endpoints: &BTreeMap<ObjectKey, Vec<Endpoints>>,
    ) -> BTreeSet<(Frontend, Backend)> {
        let (ending, mut forgotten): (BTreeSet<_>, BTreeSet<_>) =
            gone.iter().copied().partition(|(frontend, _)| frontend.protocol == Protocol::Tcp);
        self.all.extend(ending);
        if self.all.is_empty() {
            return forgotten;
        }
        let serves = |(frontend, backend): &(Frontend, Backend)| {
            served.get(frontend).is_some_and(|service| service.backends.contains_key(backend))
        };
        self.all.retain(|one| !serves(one));
        let wanted: BTreeSet<IpAddr> = self.all.iter().map(|(_, backend)| backend.address).collect();
        let slices = endpoints.values().flatten().flat_map(|slice| &slice.endpoints);
        let there: BTreeSet<IpAddr> =
            slices.map(|endpoint| endpoint.address).filter(|address| wanted.contains(address)).collect();
        forgotten.extend(self.all.iter().filter(|(_, backend)| !there.contains(&backend.address)).copied());
        self.all.retain(|(_, backend)| there.contains(&backend.address));
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use culvert_services::Service;

    use super::*;
    use crate::ServiceEndpoint;

    #[test]
    fn a_connection_lives_until_its_backend_is_no_endpoint_and_a_datagram_does_not() {
        let frontend = |protocol| Frontend { address: "242.0.0.1".parse().unwrap(), protocol, port: 80 };
        let backend = Backend { address: "10.244.0.5".parse().unwrap(), port: 8080 };
        let (tcp, udp) = ((frontend(Protocol::Tcp), backend), (frontend(Protocol::Udp), backend));
        let ending = ServiceEndpoint { address: backend.address, is_ready: false, pod: None, hostname: None };
        let slice = Endpoints { ports: Vec::new(), endpoints: vec![ending] };
        let endpoints = BTreeMap::from([(ObjectKey::default(), vec![slice])]);
        let (none, mut lingering) = (Services::new(), Lingering::default());

        assert_eq!(lingering.forgotten(&[tcp, udp].into(), &none, &endpoints), [udp].into());
        assert_eq!(lingering.forgotten(&[].into(), &none, &endpoints), [].into());
        let mut again = lingering.clone();
        assert_eq!(lingering.forgotten(&[].into(), &none, &BTreeMap::new()), [tcp].into());
        assert_eq!(lingering, Lingering::default());

        // One that is ready again has nothing to be forgotten.
        let service = Service { backends: BTreeMap::from([(backend, 1)]), affinity: None };
        assert_eq!(again.forgotten(&[].into(), &Services::from([(tcp.0, service)]), &endpoints), [].into());
        assert_eq!(again, Lingering::default());
    }
}
