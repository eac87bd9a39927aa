//! Decides which services are served to what comes by a cable: by their global addresses, or without Globalnet by their
//! cluster addresses.
//!
//! Backends are the ready endpoints themselves, on whatever node they run; nothing is asked of kube-proxy. A Service's
//! port and its endpoints' are tied by name (Kubernetes API, EndpointSlice), so a target port may have another number on
//! every endpoint.
//!
//! [`served`] is the rule. [`Serving`] keeps what it has led to and looks at changed services only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::{Frontend, IpFamily};
use culvert_services::{Backend, Service as Served, Services};

use crate::{Endpoints, GlobalAddresses, Inputs, ObjectKey, Port, Service};

/// Returns what is served to other clusters.
pub fn served(
    addresses: &GlobalAddresses,
    services: &BTreeMap<ObjectKey, Service>,
    endpoints: &BTreeMap<ObjectKey, Vec<Endpoints>>,
) -> Services {
    let mut all = Services::new();
    let mut serve = |address: IpAddr, key: &ObjectKey, service: &Service| {
        all.extend(served_at(address, service, endpoints.get(key)));
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

/// What is served, from pass to pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    all: Services,
    /// Where each service is served.
    frontends: BTreeMap<ObjectKey, Vec<Frontend>>,
    /// The global addresses of each service; `None` without Globalnet.
    addresses: Option<BTreeMap<ObjectKey, BTreeSet<IpAddr>>>,
    /// Services have cluster addresses in common, which Kubernetes does not allow: who is served depends on all.
    has_rivals: bool,
}

impl Serving {
    /// Returns what is served.
    pub fn services(&self) -> &Services {
        &self.all
    }

    /// Takes who holds which address `now`, and who did `before`; returns the services that have others, which are to be
    /// passed to [`Self::update`].
    pub fn readdress(&mut self, before: Option<&GlobalAddresses>, now: &GlobalAddresses) -> BTreeSet<ObjectKey> {
        let mut touched = BTreeSet::new();
        if now.cidrs.is_empty() {
            return touched;
        }
        let all = self.addresses.get_or_insert_default();
        let mut take = |address: &IpAddr, key: &ObjectKey, all: &mut BTreeMap<ObjectKey, BTreeSet<IpAddr>>| {
            touched.insert(key.clone());
            all.entry(key.clone()).or_default().remove(address);
        };
        let mut new = Vec::new();
        let mut old = before.iter().flat_map(|before| &before.ingress_services).peekable();
        for (address, key) in &now.ingress_services {
            while let Some((gone, holder)) = old.next_if(|(before, _)| *before < address) {
                take(gone, holder, all);
            }
            match old.next_if(|(before, _)| *before == address) {
                Some((_, holder)) if holder == key => continue,
                Some((_, holder)) => take(address, holder, all),
                None => {}
            }
            new.push((address, key));
        }
        old.for_each(|(gone, holder)| take(gone, holder, all));
        for (address, key) in new {
            all.entry(key.clone()).or_default().insert(*address);
            touched.insert(key.clone());
        }
        all.retain(|_, addresses| !addresses.is_empty());
        touched
    }

    /// Looks again at services that changed: their objects, their endpoints, or their addresses.
    pub fn update(&mut self, inputs: &Inputs, changed: &BTreeSet<ObjectKey>) {
        changed.iter().for_each(|key| self.serve(inputs, key));
        if self.has_rivals {
            self.all.clear();
            self.frontends.clear();
            self.has_rivals = false;
            inputs.services.keys().for_each(|key| self.serve(inputs, key));
        }
    }

    fn serve(&mut self, inputs: &Inputs, key: &ObjectKey) {
        for frontend in self.frontends.remove(key).into_iter().flatten() {
            self.all.remove(&frontend);
        }
        let Some(service) = inputs.services.get(key) else { return };
        let own = match &self.addresses {
            Some(all) => all.get(key),
            None => Some(&service.cluster_ips),
        };
        let endpoints = inputs.endpoints.get(key);
        let mut frontends = Vec::new();
        for (frontend, served) in own.into_iter().flatten().flat_map(|&one| served_at(one, service, endpoints)) {
            let replaced = self.all.insert(frontend, served).is_some();
            self.has_rivals |= replaced && !frontends.contains(&frontend);
            frontends.push(frontend);
        }
        if !frontends.is_empty() {
            self.frontends.insert(key.clone(), frontends);
        }
    }
}

/// Returns what is served at an address of a service.
fn served_at<'a>(
    address: IpAddr,
    service: &'a Service,
    slices: Option<&'a Vec<Endpoints>>,
) -> impl Iterator<Item = (Frontend, Served)> + use<'a> {
    service.ports.iter().filter_map(move |port| {
        let frontend = Frontend { address, protocol: port.protocol, port: port.number };
        let backends = backends(service, port, slices.map_or(&[], Vec::as_slice), IpFamily::of(address));
        (!backends.is_empty()).then_some((frontend, Served { backends, affinity: service.affinity }))
    })
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
    use proptest::collection::{btree_set, vec};
    use proptest::option;
    use proptest::prelude::*;

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

    /// A service of a few ports, with an address that another one may have too.
    fn some_service() -> impl Strategy<Value = Service> {
        let port = (0u16..3, any::<bool>()).prop_map(|(number, tcp)| {
            port(if tcp { "a" } else { "b" }, if tcp { Protocol::Tcp } else { Protocol::Udp }, 80 + number)
        });
        (vec(port, 0..3), btree_set(1u8..5, 0..3)).prop_map(|(ports, hosts)| Service {
            cluster_ips: hosts.into_iter().map(|host| IpAddr::from([10, 96, 0, host])).collect(),
            ports,
            ..Service::default()
        })
    }

    fn some_endpoints() -> impl Strategy<Value = Vec<Endpoints>> {
        let slice = (any::<bool>(), vec((1u8..9, any::<bool>()), 0..3)).prop_map(|(tcp, all)| Endpoints {
            ports: vec![if tcp { port("a", Protocol::Tcp, 8080) } else { port("b", Protocol::Udp, 53) }],
            endpoints: all.into_iter().map(|(host, ready)| endpoint(&format!("10.244.0.{host}"), ready)).collect(),
        });
        vec(slice, 0..3)
    }

    proptest! {
        /// Whatever changes, and in whichever order, what is kept is what a look at everything finds.
        #[test]
        fn what_is_kept_is_what_is_served(
            is_global in any::<bool>(),
            steps in vec((0u8..4, option::of(some_service()), option::of(some_endpoints()), option::of(0u8..4)), 1..20),
        ) {
            let mut inputs = Inputs::default();
            let mut addresses = GlobalAddresses::default();
            if is_global {
                addresses.cidrs = vec!["242.0.0.0/16".parse().unwrap()];
            }
            let mut serving = Serving::default();
            serving.readdress(None, &addresses);
            for (name, service, endpoints, address) in steps {
                let key = ObjectKey { namespace: "shop".to_owned(), name: name.to_string() };
                match service {
                    Some(service) => drop(inputs.services.insert(key.clone(), service)),
                    None => drop(inputs.services.remove(&key)),
                }
                match endpoints {
                    Some(endpoints) => drop(inputs.endpoints.insert(key.clone(), endpoints)),
                    None => drop(inputs.endpoints.remove(&key)),
                }
                let mut changed = BTreeSet::from([key.clone()]);
                if is_global {
                    let before = addresses.clone();
                    match address {
                        Some(host) => drop(addresses.ingress_services.insert(IpAddr::from([242, 0, 0, host]), key)),
                        None => addresses.ingress_services.retain(|_, holder| *holder != key),
                    }
                    changed.extend(serving.readdress(Some(&before), &addresses));
                }
                serving.update(&inputs, &changed);
                prop_assert_eq!(serving.services(), &served(&addresses, &inputs.services, &inputs.endpoints));
            }
        }
    }

    #[test]
    fn a_service_without_endpoints_is_not_served() {
        let (services, _) = cluster();

        assert_eq!(served(&GlobalAddresses::default(), &services, &BTreeMap::new()), Services::new());
    }
}
