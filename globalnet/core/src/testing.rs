//! A cluster for tests: objects made in a word, and written to as a decision says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::{
    CLUSTER_EGRESS, CLUSTER_EGRESS_NUMBER, Decision, EgressObject, Endpoints, FoundStatus, Holder, IngressObject,
    Inputs, Memory, ObjectKey, Pod, Selector, Service, ServiceEndpoint, Status, allocate,
};

pub(crate) fn key(text: &str) -> ObjectKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectKey { namespace: namespace.to_owned(), name: name.to_owned() }
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn labels(label: &str) -> BTreeMap<String, String> {
    let (key, value) = label.split_once('=').unwrap();
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

/// A cluster, and the process that allocates in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) inputs: Inputs,
    pub(crate) memory: Memory,
    pub(crate) now: i64,
}

impl Cluster {
    pub(crate) fn new(cidr: &str) -> Self {
        let inputs = Inputs { cidrs: vec![cidr.parse().unwrap()], ..Inputs::default() };
        Self { inputs, ..Self::default() }
    }

    /// A service with a cluster address, exported.
    pub(crate) fn export(&mut self, name: &str, cluster_ip: &str) {
        let service = Service { cluster_ips: BTreeSet::from([address(cluster_ip)]), ..Service::default() };
        self.inputs.services.insert(key(name), service);
        self.inputs.exports.insert(key(name));
    }

    /// A headless service, exported.
    pub(crate) fn export_headless(&mut self, name: &str, has_selector: bool) {
        let service = Service { is_headless: true, has_selector, ..Service::default() };
        self.inputs.services.insert(key(name), service);
        self.inputs.exports.insert(key(name));
    }

    /// A running pod.
    pub(crate) fn pod(&mut self, name: &str, ip: &str, label: &str) {
        let pod =
            Pod { labels: labels(label), addresses: BTreeSet::from([address(ip)]), is_running: true, ..Pod::default() };
        self.inputs.pods.insert(key(name), pod);
    }

    /// A ready endpoint of a service.
    pub(crate) fn endpoint(&mut self, service: &str, ip: &str, pod: Option<&str>) {
        let endpoint =
            ServiceEndpoint { address: address(ip), is_ready: true, pod: pod.map(str::to_owned), hostname: None };
        let slices = self.inputs.endpoints.entry(key(service)).or_insert_with(|| vec![Endpoints::default()]);
        slices[0].endpoints.push(endpoint);
    }

    /// A GlobalEgressIP for the pods with a label, or the whole namespace; it is younger than all before.
    pub(crate) fn egress(&mut self, name: &str, number: i64, label: Option<&str>) {
        self.now += 1;
        let object = EgressObject {
            created: Some(self.now),
            number: Some(number),
            selector: label.map(|label| Ok(Selector::of_labels(labels(label)))),
            status: FoundStatus::default(),
        };
        self.inputs.egress.insert(key(name), object);
    }

    /// Another process becomes active.
    pub(crate) fn restart(&mut self) {
        self.memory = Memory::default();
    }

    /// One pass, all of it written.
    pub(crate) fn pass(&mut self) -> Decision {
        let decision = self.decide();
        self.write(&decision);
        decision
    }

    /// Passes until nothing is written; the last decision.
    pub(crate) fn settle(&mut self) -> Decision {
        for _ in 0..4 {
            let decision = self.pass();
            if decision.is_settled() {
                return decision;
            }
        }
        panic!("no end: {:?}", allocate(&self.inputs, &self.memory));
    }

    /// One pass, nothing of it written.
    pub(crate) fn decide(&mut self) -> Decision {
        let decision = allocate(&self.inputs, &self.memory);
        self.memory = decision.memory.clone();
        decision
    }

    pub(crate) fn write(&mut self, decision: &Decision) {
        self.now += 1;
        for key in &decision.delete {
            self.inputs.ingress.remove(key);
        }
        for (key, spec) in &decision.apply {
            let new =
                || IngressObject { created: Some(self.now), spec: Ok(spec.clone()), status: FoundStatus::default() };
            self.inputs.ingress.entry(key.clone()).or_insert_with(new).spec = Ok(spec.clone());
        }
        if decision.create_cluster_egress {
            let object = EgressObject {
                created: Some(self.now),
                number: Some(CLUSTER_EGRESS_NUMBER),
                ..EgressObject::default()
            };
            self.inputs.cluster_egress.insert(CLUSTER_EGRESS.to_owned(), object);
        }
        for (name, address) in &decision.gateways {
            self.inputs.gateways.insert(name.clone(), address.map(|address| address.to_string()));
        }
        for (holder, status) in &decision.statuses {
            self.write_status(holder, status);
        }
    }

    fn write_status(&mut self, holder: &Holder, status: &Status) {
        let found = self.status(holder);
        found.addresses = status.addresses.iter().map(ToString::to_string).collect();
        found.conditions.clone_from(&status.conditions);
    }

    /// The status of an object that is there.
    pub(crate) fn status(&mut self, holder: &Holder) -> &mut FoundStatus {
        match holder {
            Holder::Gateway(name) => panic!("Gateway {name} has no status of addresses"),
            Holder::ClusterEgress(name) => &mut self.inputs.cluster_egress.get_mut(name).unwrap().status,
            Holder::Egress(key) => &mut self.inputs.egress.get_mut(key).unwrap().status,
            Holder::Ingress(key) => &mut self.inputs.ingress.get_mut(key).unwrap().status,
        }
    }

    /// The addresses in the status of an object.
    pub(crate) fn held(&mut self, holder: &Holder) -> Vec<String> {
        self.status(holder).addresses.clone()
    }

    /// A condition in words: `Allocated False ZeroInput: …`; empty if there is none.
    pub(crate) fn condition(&mut self, holder: &Holder, kind: &str) -> String {
        let conditions = &self.status(holder).conditions;
        let found = conditions.iter().find(|one| one.kind == kind);
        found.map(|one| format!("{} {}: {}", one.status, one.reason, one.message)).unwrap_or_default()
    }
}

pub(crate) fn egress(name: &str) -> Holder {
    Holder::Egress(key(name))
}

pub(crate) fn ingress(name: &str) -> Holder {
    Holder::Ingress(key(name))
}

pub(crate) fn cluster_egress() -> Holder {
    Holder::ClusterEgress(CLUSTER_EGRESS.to_owned())
}
