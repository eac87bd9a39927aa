//! From objects as they stand at the API server to what the allocation goes by, and back.
//!
//! What cannot be understood of one object is a problem with the object's name; it hides neither the rest of the object
//! nor any other.
//!
//! A snapshot is kept: objects are put in, put in again when they change, and taken out. What it says does not depend on
//! the order, and it notes what has become different.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_api::{
    ClusterGlobalEgressIP, EndpointPort, EndpointSlice, Gateway, GlobalEgressIP, GlobalEgressIPStatus, GlobalIngressIP,
    ObjectMeta, Pod, Record, Service, ServiceExport, SliceEndpoint, globalnet, labels,
};
use culvert_globalnet_core::{EgressObject, Endpoints, Holder, Inputs, ObjectKey, Port, ServiceEndpoint};
use culvert_model::Protocol;
use ipnet::IpNet;

mod changes;
mod global;
mod writing;

pub(crate) use changes::Changes;
pub(crate) use writing::{cluster_egress_object, egress_status, ingress_object, ingress_status};

/// How long a client stays with its backend where a Service does not say, in seconds (Kubernetes API).
const DEFAULT_AFFINITY: i32 = 10_800;

/// What is known of all objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) inputs: Inputs,
    /// What of an object cannot be understood, in words.
    problems: BTreeMap<(&'static str, ObjectKey), BTreeSet<String>>,
    /// The same of objects that cannot be read at all, by kind.
    unclear: BTreeMap<&'static str, BTreeSet<String>>,
    /// The names of a Service's slices, in the order of its endpoints.
    slices: BTreeMap<ObjectKey, Vec<String>>,
    changes: Changes,
}

impl Snapshot {
    /// Starts with the cluster's global CIDRs and no object.
    pub(crate) fn new(cidrs: Vec<IpNet>) -> Self {
        Self { inputs: Inputs { cidrs, ..Inputs::default() }, ..Self::default() }
    }

    /// Returns what of which object cannot be understood, in words.
    pub(crate) fn problems(&self) -> BTreeSet<String> {
        self.problems.values().chain(self.unclear.values()).flatten().cloned().collect()
    }

    /// Returns what has become different since the last call.
    pub(crate) fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    pub(crate) fn put_service(&mut self, record: &Service) {
        let mut texts = Texts::of(record);
        let service = service(record, &mut texts);
        if changes::replace(&mut self.inputs.services, &texts.key, service) {
            self.changes.services.insert(texts.key.clone());
        }
        self.note(texts);
    }

    pub(crate) fn take_service(&mut self, record: &Service) {
        let key = key(&record.metadata);
        self.problems.remove(&(Service::KIND, key.clone()));
        if self.inputs.services.remove(&key).is_some() {
            self.changes.services.insert(key);
        }
    }

    /// Puts a slice among its Service's, which is that of the slice as it was before, if it was there; those of no Service
    /// and of DNS names are none of ours.
    pub(crate) fn put_slice(&mut self, record: &EndpointSlice) {
        let Some(service) = service_of(record) else { return };
        let mut texts = Texts::of(record);
        let endpoints = endpoints(record, &mut texts);
        let (names, all) = (
            self.slices.entry(service.clone()).or_default(),
            self.inputs.endpoints.entry(service.clone()).or_default(),
        );
        let differs = match names.binary_search(&texts.key.name) {
            Ok(at) => {
                let differs = all[at] != endpoints;
                all[at] = endpoints;
                differs
            }
            Err(at) => {
                names.insert(at, texts.key.name.clone());
                all.insert(at, endpoints);
                true
            }
        };
        if differs {
            self.changes.endpoints.insert(service);
        }
        self.note(texts);
    }

    pub(crate) fn take_slice(&mut self, record: &EndpointSlice) {
        let Some(service) = service_of(record) else { return };
        let key = key(&record.metadata);
        self.problems.remove(&(EndpointSlice::KIND, key.clone()));
        let (Some(names), Some(all)) = (self.slices.get_mut(&service), self.inputs.endpoints.get_mut(&service)) else {
            return;
        };
        if let Ok(at) = names.binary_search(&key.name) {
            names.remove(at);
            all.remove(at);
        }
        if all.is_empty() {
            self.slices.remove(&service);
            self.inputs.endpoints.remove(&service);
        }
        self.changes.endpoints.insert(service);
    }

    /// Puts a slice in place of what it was, whose Service may have been another one.
    pub(crate) fn change_slice(&mut self, before: &EndpointSlice, record: &EndpointSlice) {
        if service_of(before) != service_of(record) {
            self.take_slice(before);
        }
        self.put_slice(record);
    }

    pub(crate) fn put_pod(&mut self, record: &Pod) {
        let mut texts = Texts::of(record);
        let pod = pod(record, &mut texts);
        if changes::replace(&mut self.inputs.pods, &texts.key, Some(pod)) {
            self.changes.pods.insert(texts.key.namespace.clone());
        }
        self.note(texts);
    }

    pub(crate) fn take_pod(&mut self, record: &Pod) {
        let key = key(&record.metadata);
        self.problems.remove(&(Pod::KIND, key.clone()));
        if self.inputs.pods.remove(&key).is_some() {
            self.changes.pods.insert(key.namespace);
        }
    }

    /// Puts an export, which is none while it is being deleted.
    pub(crate) fn put_export(&mut self, record: &ServiceExport) {
        if record.metadata.deletion_timestamp.is_some() {
            return self.take_export(record);
        }
        self.changes.others |= self.inputs.exports.insert(key(&record.metadata));
    }

    pub(crate) fn take_export(&mut self, record: &ServiceExport) {
        self.changes.others |= self.inputs.exports.remove(&key(&record.metadata));
    }

    pub(crate) fn put_egress(&mut self, record: &GlobalEgressIP) {
        let object = EgressObject {
            selector: record.spec.pod_selector.as_ref().map(global::selector),
            ..egress_object(&record.metadata, record.spec.number_of_ips, &record.status)
        };
        self.changes.others |= changes::replace(&mut self.inputs.egress, &key(&record.metadata), Some(object));
    }

    pub(crate) fn take_egress(&mut self, record: &GlobalEgressIP) {
        self.changes.others |= self.inputs.egress.remove(&key(&record.metadata)).is_some();
    }

    pub(crate) fn put_cluster_egress(&mut self, record: &ClusterGlobalEgressIP) {
        let object = egress_object(&record.metadata, record.spec.number_of_ips, &record.status);
        let name = record.name().to_owned();
        self.changes.others |= changes::replace(&mut self.inputs.cluster_egress, &name, Some(object));
    }

    pub(crate) fn take_cluster_egress(&mut self, record: &ClusterGlobalEgressIP) {
        self.changes.others |= self.inputs.cluster_egress.remove(record.name()).is_some();
    }

    pub(crate) fn put_ingress(&mut self, record: &GlobalIngressIP) {
        let object = global::ingress_object(record);
        self.changes.others |= changes::replace(&mut self.inputs.ingress, &key(&record.metadata), Some(object));
    }

    pub(crate) fn take_ingress(&mut self, record: &GlobalIngressIP) {
        self.changes.others |= self.inputs.ingress.remove(&key(&record.metadata)).is_some();
    }

    /// Puts all gateways of this cluster.
    pub(crate) fn put_gateways<'a>(&mut self, records: impl Iterator<Item = &'a Gateway>) {
        let address = |record: &Gateway| {
            let all = record.metadata.annotations.as_ref()?;
            all.get(globalnet::GATEWAY_ADDRESS).filter(|address| !address.is_empty()).cloned()
        };
        let gateways = records.map(|record| (record.name().to_owned(), address(record))).collect();
        self.changes.others |= std::mem::replace(&mut self.inputs.gateways, gateways) != self.inputs.gateways;
    }

    /// Puts all objects of a kind that are there but cannot be read at all, with what is wrong with each.
    pub(crate) fn put_unclear(&mut self, kind: &'static str, objects: impl Iterator<Item = (ObjectKey, String)>) {
        let holder = |key: ObjectKey| match kind {
            GlobalEgressIP::KIND => Some(Holder::Egress(key)),
            ClusterGlobalEgressIP::KIND => Some(Holder::ClusterEgress(key.name)),
            GlobalIngressIP::KIND => Some(Holder::Ingress(key)),
            Gateway::KIND => Some(Holder::Gateway(key.name)),
            _ => None,
        };
        let of_kind = |one: &Holder| match one {
            Holder::Egress(_) => kind == GlobalEgressIP::KIND,
            Holder::ClusterEgress(_) => kind == ClusterGlobalEgressIP::KIND,
            Holder::Ingress(_) => kind == GlobalIngressIP::KIND,
            Holder::Gateway(_) => kind == Gateway::KIND,
        };
        let (keys, texts): (Vec<ObjectKey>, BTreeSet<String>) = objects.unzip();
        let exports = &mut self.inputs.unclear_exports;
        let of_exports = match kind {
            Service::KIND => Some(&mut exports.services),
            ServiceExport::KIND => Some(&mut exports.exports),
            EndpointSlice::KIND => Some(&mut exports.slices),
            _ => None,
        };
        if let Some(before) = of_exports {
            let now = keys.iter().cloned().collect();
            self.changes.others |= std::mem::replace(before, now) != *before;
        }
        changes::replace(&mut self.unclear, &kind, Some(texts).filter(|texts| !texts.is_empty()));
        let others = self.inputs.unclear.iter().filter(|one| !of_kind(one)).cloned();
        let unclear: BTreeSet<Holder> = others.chain(keys.into_iter().filter_map(holder)).collect();
        self.changes.others |= unclear != self.inputs.unclear;
        self.inputs.unclear = unclear;
    }

    fn note(&mut self, texts: Texts) {
        let Texts { kind, key, problems } = texts;
        if !problems.is_empty() {
            self.problems.insert((kind, key), problems);
        } else if !self.problems.is_empty() {
            self.problems.remove(&(kind, key));
        }
    }
}

fn service(record: &Service, texts: &mut Texts) -> Option<culvert_globalnet_core::Service> {
    let spec = record.spec.as_ref()?;
    let mut cluster_ips = spec.cluster_ips.clone().unwrap_or_default();
    cluster_ips.extend(spec.cluster_ip.clone());
    let is_headless = cluster_ips.iter().any(|one| one == "None");
    cluster_ips.retain(|one| one != "None" && !one.is_empty());
    let is_sticky = spec.session_affinity.as_deref() == Some("ClientIP");
    let timeout = || {
        let client_ip = spec.session_affinity_config.as_ref()?.client_ip.as_ref()?;
        client_ip.timeout_seconds
    };
    let ports = spec.ports.iter().flatten();
    let ports = ports.filter_map(|port| texts.port(port.name.as_deref(), port.protocol.as_deref(), port.port));
    let ports = ports.collect();
    Some(culvert_globalnet_core::Service {
        cluster_ips: texts.addresses("spec.clusterIPs", &cluster_ips),
        is_headless,
        is_external_name: spec.type_.as_deref() == Some("ExternalName"),
        has_selector: spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()),
        publishes_not_ready: spec.publish_not_ready_addresses == Some(true),
        affinity: is_sticky.then(|| timeout().unwrap_or(DEFAULT_AFFINITY).unsigned_abs()),
        ports,
    })
}

/// Returns the Service that a slice is of, if it is one of addresses.
fn service_of(record: &EndpointSlice) -> Option<ObjectKey> {
    let name = entry(&record.metadata.labels, labels::SERVICE_NAME).filter(|name| !name.is_empty())?;
    let namespace = key(&record.metadata).namespace;
    (record.address_type != "FQDN").then(|| ObjectKey { namespace, name: name.to_owned() })
}

fn endpoints(record: &EndpointSlice, texts: &mut Texts) -> Endpoints {
    let ports = record.ports.iter().flatten();
    let ports = ports.filter_map(|EndpointPort { name, port, protocol, .. }| {
        texts.port(name.as_deref(), protocol.as_deref(), (*port)?)
    });
    let ports = ports.collect();
    let endpoints = record.endpoints.iter().filter_map(|endpoint| slice_endpoint(endpoint, texts)).collect();
    Endpoints { ports, endpoints }
}

fn pod(record: &Pod, texts: &mut Texts) -> culvert_globalnet_core::Pod {
    let mut addresses: Vec<String> = record.status.pod_ips.iter().map(|one| one.ip.clone()).collect();
    addresses.push(record.status.pod_ip.clone());
    addresses.retain(|one| !one.is_empty());
    let phase = record.status.phase.as_str();
    culvert_globalnet_core::Pod {
        labels: record.metadata.labels.clone().unwrap_or_default(),
        addresses: texts.addresses("status.podIPs", &addresses),
        is_on_host_network: record.spec.host_network,
        is_running: phase == "Running",
        is_finished: matches!(phase, "Succeeded" | "Failed"),
    }
}

/// Namespace and name of an object.
pub(crate) fn key(metadata: &ObjectMeta) -> ObjectKey {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    ObjectKey { namespace: text(&metadata.namespace), name: text(&metadata.name) }
}

fn egress_object(metadata: &ObjectMeta, number: Option<i64>, status: &GlobalEgressIPStatus) -> EgressObject {
    EgressObject {
        created: global::created(metadata),
        number,
        selector: None,
        status: global::found_status(&status.allocated_ips, &status.conditions),
    }
}

/// Returns an endpoint by its first address: further ones are the same to Kubernetes, and nobody uses them.
fn slice_endpoint(endpoint: &SliceEndpoint, texts: &mut Texts) -> Option<ServiceEndpoint> {
    let address = texts.address("endpoints.addresses", endpoint.addresses.first()?)?;
    let target = endpoint.target_ref.as_ref().filter(|target| {
        let is_near = target.namespace.as_ref().is_none_or(|namespace| *namespace == texts.key.namespace);
        target.kind.as_deref() == Some("Pod") && is_near
    });
    Some(ServiceEndpoint {
        address,
        is_ready: endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false),
        pod: target.and_then(|target| target.name.clone()),
        hostname: endpoint.hostname.clone(),
    })
}

/// Reads the texts of one object.
struct Texts {
    kind: &'static str,
    key: ObjectKey,
    problems: BTreeSet<String>,
}

impl Texts {
    fn of<R: Record>(record: &R) -> Self {
        Self { kind: R::KIND, key: key(record.metadata()), problems: BTreeSet::new() }
    }

    fn problem(&mut self, text: &str) {
        self.problems.insert(format!("{} {}: {text}", self.kind, self.key));
    }

    fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            self.problem(&format!("{field}: {text:?} is no IP address: correct it"));
        }
        address
    }

    fn addresses(&mut self, field: &str, texts: &[String]) -> BTreeSet<IpAddr> {
        texts.iter().filter_map(|text| self.address(field, text)).collect()
    }

    fn port(&mut self, name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Port> {
        let name = name.unwrap_or_default().to_owned();
        let protocol = match protocol {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(other) => {
                self.problem(&format!("port {name:?}: protocol {other:?} is not known: use TCP, UDP or SCTP"));
                return None;
            }
        };
        match u16::try_from(number) {
            Ok(number @ 1..) => Some(Port { name, protocol, number }),
            Ok(0) | Err(_) => {
                self.problem(&format!("port {name:?}: {number} is no port: use 1 to 65535"));
                None
            }
        }
    }
}

/// Annotations and labels of an object, none if it has none.
fn entry<'a>(all: &'a Option<BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    all.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests;
