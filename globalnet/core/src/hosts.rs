//! Which hosts behind global addresses leave by them too.
//!
//! An EndpointSlice says what its author likes, and a GlobalIngressIP's address comes from there. To lead packets to that
//! address is no more than Kubernetes does; to let packets from it leave by the global one gives its traffic a name. So a
//! pod leaves by it only if the pod's own status has the address, and an endpoint only if the address is no pod's of
//! another namespace. Pods in host network do not: other clusters would take the whole node for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::{IngressSpec, Inputs, ObjectKey, Pod, Target};

/// Who has the addresses that exports name.
#[derive(Debug)]
pub(crate) struct Hosts<'a> {
    pods: &'a BTreeMap<ObjectKey, Pod>,
    /// Namespaces of the pods with an endpoint's address; `None`: it is a node's.
    owners: BTreeMap<IpAddr, BTreeSet<Option<&'a str>>>,
}

impl<'a> Hosts<'a> {
    /// Looks for who has the addresses of `specs`.
    pub(crate) fn of(inputs: &'a Inputs, specs: &BTreeMap<ObjectKey, IngressSpec>) -> Self {
        let endpoints = specs.values().filter(|spec| spec.target == Target::Endpoint);
        let mut owners: BTreeMap<IpAddr, BTreeSet<Option<&str>>> =
            endpoints.filter_map(|spec| Some((spec.address?, BTreeSet::new()))).collect();
        if !owners.is_empty() {
            for (key, pod) in inputs.pods.iter().filter(|(_, pod)| pod.is_on_host_network || !pod.is_finished) {
                let owner = (!pod.is_on_host_network).then_some(key.namespace.as_str());
                for address in &pod.addresses {
                    if let Some(owners) = owners.get_mut(address) {
                        owners.insert(owner);
                    }
                }
            }
        }
        Self { pods: &inputs.pods, owners }
    }

    /// Tells whether what `spec`, of an object in `namespace`, leads to leaves by the object's address.
    pub(crate) fn leaves(&self, namespace: &str, spec: &IngressSpec) -> bool {
        let (Some(address), pod) = (spec.address, &spec.pod) else { return false };
        match spec.target {
            Target::Service => false,
            Target::Pod => pod.as_ref().is_some_and(|name| {
                let pod = self.pods.get(&ObjectKey { namespace: namespace.to_owned(), name: name.clone() });
                pod.is_some_and(|pod| pod.has(address) && !pod.is_on_host_network)
            }),
            Target::Endpoint => {
                let mut owners = self.owners.get(&address).into_iter().flatten();
                owners.all(|owner| *owner == Some(namespace))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Cluster, address, key};
    use crate::{Memory, UnclearExports};

    /// How many of a cluster's hosts can be reached, and how many leave by the same address.
    fn reached_and_leaving(cluster: &mut Cluster) -> (usize, usize) {
        let addresses = cluster.settle().addresses;
        (addresses.ingress_hosts.len(), addresses.leaving.len())
    }

    #[test]
    fn a_slice_gives_nobody_the_address_of_a_pod_of_others() {
        let mut cluster = Cluster::new("242.1.0.0/16");
        cluster.pod("bank/victim", "10.1.0.9", "app=bank");
        cluster.pod("shop/db-0", "10.1.0.5", "app=db");
        cluster.export_headless("shop/db", true);
        cluster.endpoint("shop/db", "10.1.0.9", Some("db-0"));
        cluster.inputs.services.get_mut(&key("shop/db")).unwrap().publishes_not_ready = true;
        assert_eq!(reached_and_leaving(&mut cluster), (0, 0), "the pod has another address");
        cluster.endpoint("shop/db", "10.1.0.9", Some("no-such-pod"));
        assert_eq!(reached_and_leaving(&mut cluster), (0, 0), "there is no such pod");
        cluster.endpoint("shop/db", "10.1.0.5", Some("db-0"));
        assert_eq!(reached_and_leaving(&mut cluster), (1, 1));

        cluster.export_headless("shop/free", false);
        cluster.endpoint("shop/free", "10.1.0.9", None);
        assert_eq!(reached_and_leaving(&mut cluster), (2, 1));
        cluster.inputs.pods.get_mut(&key("bank/victim")).unwrap().is_finished = true;
        assert_eq!(reached_and_leaving(&mut cluster), (2, 2), "it is nobody's any more");
        cluster.pod("shop/own", "10.1.0.9", "app=own");
        assert_eq!(reached_and_leaving(&mut cluster), (2, 2), "of the same namespace");
    }

    #[test]
    fn a_pod_that_is_gone_keeps_its_object_only_with_the_address_it_had() {
        let mut cluster = Cluster::new("242.1.0.0/16");
        cluster.pod("shop/db-0", "10.1.0.5", "app=db");
        cluster.export_headless("shop/db", true);
        cluster.endpoint("shop/db", "10.1.0.5", Some("db-0"));
        assert_eq!(reached_and_leaving(&mut cluster), (1, 1));
        cluster.inputs.pods.clear();
        assert_eq!(reached_and_leaving(&mut cluster), (1, 0));
        cluster.inputs.endpoints.get_mut(&key("shop/db")).unwrap()[0].endpoints[0].address = address("10.1.0.9");
        assert_eq!(reached_and_leaving(&mut cluster), (0, 0));
    }

    #[test]
    fn what_rests_on_something_unclear_stays_as_it_is() {
        let mut cluster = Cluster::new("242.1.0.0/16");
        cluster.export("shop/web", "10.96.0.7");
        cluster.pod("shop/db-0", "10.1.0.5", "app=db");
        cluster.export_headless("shop/db", true);
        cluster.endpoint("shop/db", "10.1.0.5", Some("db-0"));
        let before = cluster.settle();
        let clear = cluster.clone();
        for what in 0..3 {
            cluster = clear.clone();
            let unclear = &mut cluster.inputs.unclear_exports;
            match what {
                0 => unclear.services = [key("shop/web"), key("shop/db")].into(),
                1 => unclear.exports = [key("shop/web"), key("shop/db")].into(),
                _ => drop(unclear.slices.insert(key("shop/db-x7x9y"))),
            }
            match what {
                0 => cluster.inputs.services.clear(),
                1 => cluster.inputs.exports.clear(),
                _ => cluster.inputs.endpoints.clear(),
            }
            for memory in [cluster.memory.clone(), Memory::default()] {
                cluster.memory = memory;
                let decision = cluster.pass();
                assert!(decision.is_settled() && decision.notices.is_empty(), "{decision:?}");
                assert_eq!(decision.addresses, before.addresses);
            }
            cluster.inputs.unclear_exports = UnclearExports::default();
            assert!(!cluster.pass().delete.is_empty(), "clear again, and gone");
        }
        // A pod that is new is served all the same.
        cluster = clear;
        cluster.inputs.unclear_exports.slices.insert(key("shop/db-x7x9y"));
        cluster.pod("shop/db-1", "10.1.0.6", "app=db");
        cluster.endpoint("shop/db", "10.1.0.6", Some("db-1"));
        assert_eq!(reached_and_leaving(&mut cluster), (2, 2));
    }

    #[test]
    fn nodes_do_not_leave_by_the_address_of_a_pod_or_an_endpoint() {
        let mut cluster = Cluster::new("242.1.0.0/16");
        cluster.pod("shop/agent", "172.18.0.2", "app=agent");
        cluster.inputs.pods.get_mut(&key("shop/agent")).unwrap().is_on_host_network = true;
        cluster.export_headless("shop/agent", true);
        cluster.endpoint("shop/agent", "172.18.0.2", Some("agent"));
        assert_eq!(reached_and_leaving(&mut cluster), (1, 0));
        cluster.export_headless("shop/node", false);
        cluster.endpoint("shop/node", "172.18.0.2", None);
        cluster.endpoint("shop/node", "172.18.0.77", None);
        assert_eq!(reached_and_leaving(&mut cluster), (3, 1), "the last is no node, as far as anybody knows");
    }
}
