//! Decides which services are served to what comes by a cable: by their global addresses, or without Globalnet by their
//! cluster addresses.
//!
//! Backends are the ready endpoints themselves, on whatever node they run; nothing is asked of kube-proxy. A Service's
//! port and its endpoints' are tied by name (Kubernetes API, EndpointSlice), so a target port may have another number on
//! every endpoint.

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_model::{Frontend, IpFamily};
use culvert_services::{Backend, Service as Served, Services};

use crate::{Endpoints, GlobalAddresses, ObjectKey, Port, Service};

/// Returns what is served to other clusters.
pub fn served(
    addresses: &GlobalAddresses,
    services: &BTreeMap<ObjectKey, Service>,
    endpoints: &BTreeMap<ObjectKey, Vec<Endpoints>>,
) -> Services {
    let mut all = Services::new();
    let none = Vec::new();
    let mut serve = |address: IpAddr, key: &ObjectKey, service: &Service| {
        let slices = endpoints.get(key).unwrap_or(&none);
        for port in &service.ports {
            let frontend = Frontend { address, protocol: port.protocol, port: port.number };
            let backends = backends(service, port, slices, IpFamily::of(address));
            if !backends.is_empty() {
                all.insert(frontend, Served { backends, affinity: service.affinity });
            }
        }
    };
    if addresses.cidrs.is_empty() {
        for (key, service) in services {
            service.cluster_ips.iter().for_each(|&address| serve(address, key, service));
        }
    } else {
        for (&address, key) in &addresses.ingress_services {
            if let Some(service) = services.get(key) {
                serve(address, key, service);
            }
        }
    }
    all
}

fn backends(service: &Service, port: &Port, slices: &[Endpoints], family: IpFamily) -> BTreeMap<Backend, u32> {
    let mut backends = BTreeMap::new();
    for slice in slices {
        let is_same = |other: &&Port| other.name == port.name && other.protocol == port.protocol;
        let Some(target) = slice.ports.iter().find(is_same) else { continue };
        for endpoint in &slice.endpoints {
            if IpFamily::of(endpoint.address) == family && (endpoint.is_ready || service.publishes_not_ready) {
                backends.insert(Backend { address: endpoint.address, port: target.number }, 1);
            }
        }
    }
    backends
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use culvert_model::Protocol;

    use super::*;
    use crate::ServiceEndpoint;

    fn port(name: &str, protocol: Protocol, number: u16) -> Port {
        Port { name: name.to_owned(), protocol, number }
    }

    fn endpoint(address: &str, is_ready: bool) -> ServiceEndpoint {
        ServiceEndpoint { address: address.parse().unwrap(), is_ready, pod: None, hostname: None }
    }

    fn web() -> ObjectKey {
        ObjectKey { namespace: "shop".to_owned(), name: "web".to_owned() }
    }

    fn cluster() -> (BTreeMap<ObjectKey, Service>, BTreeMap<ObjectKey, Vec<Endpoints>>) {
        let service = Service {
            cluster_ips: BTreeSet::from(["10.96.0.7".parse().unwrap(), "fd00:96::7".parse().unwrap()]),
            ports: vec![port("http", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)],
            affinity: Some(60),
            ..Service::default()
        };
        let slices = vec![
            Endpoints {
                ports: vec![port("http", Protocol::Tcp, 8080), port("dns", Protocol::Udp, 53)],
                endpoints: vec![endpoint("10.244.0.5", true), endpoint("10.244.0.6", false)],
            },
            // The same name of a target port, another number.
            Endpoints {
                ports: vec![port("http", Protocol::Tcp, 9090)],
                endpoints: vec![endpoint("10.244.0.7", true), endpoint("fd00:244::7", true)],
            },
        ];
        (BTreeMap::from([(web(), service)]), BTreeMap::from([(web(), slices)]))
    }

    fn shown(services: &Services) -> String {
        let line = |(frontend, service): (&Frontend, &Served)| {
            let backends: Vec<String> =
                service.backends.keys().map(|backend| format!("{}:{}", backend.address, backend.port)).collect();
            format!("{frontend} affinity {:?}: {}", service.affinity, backends.join(", "))
        };
        services.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_global_address_leads_to_the_ready_endpoints_of_every_port() {
        let (services, endpoints) = cluster();
        let addresses = GlobalAddresses {
            cidrs: vec!["242.0.0.0/16".parse().unwrap()],
            ingress_services: BTreeMap::from([("242.0.255.1".parse().unwrap(), web())]),
            ..GlobalAddresses::default()
        };

        insta::assert_snapshot!(shown(&served(&addresses, &services, &endpoints)), @r"
        242.0.255.1:80/tcp affinity Some(60): 10.244.0.5:8080, 10.244.0.7:9090
        242.0.255.1:53/udp affinity Some(60): 10.244.0.5:53
        ");
    }

    #[test]
    fn without_globalnet_cluster_addresses_of_both_families_are_served() {
        let (services, endpoints) = cluster();

        insta::assert_snapshot!(shown(&served(&GlobalAddresses::default(), &services, &endpoints)), @r"
        10.96.0.7:80/tcp affinity Some(60): 10.244.0.5:8080, 10.244.0.7:9090
        10.96.0.7:53/udp affinity Some(60): 10.244.0.5:53
        [fd00:96::7]:80/tcp affinity Some(60): fd00:244::7:9090
        ");
    }

    #[test]
    fn endpoints_that_are_not_ready_serve_where_the_service_says_so() {
        let (mut services, endpoints) = cluster();
        services.get_mut(&web()).unwrap().publishes_not_ready = true;

        let all = served(&GlobalAddresses::default(), &services, &endpoints);

        let frontend = Frontend { address: "10.96.0.7".parse().unwrap(), protocol: Protocol::Udp, port: 53 };
        assert_eq!(all[&frontend].backends.len(), 2);
    }

    #[test]
    fn a_service_without_endpoints_is_not_served() {
        let (services, _) = cluster();

        assert_eq!(served(&GlobalAddresses::default(), &services, &BTreeMap::new()), Services::new());
    }
}
