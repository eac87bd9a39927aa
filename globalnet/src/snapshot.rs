//! From objects as they stand at the API server to what the allocation goes by, and back.
//!
//! What cannot be understood of one object is a problem with the object's name; it hides neither the rest of the object
//! nor any other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_api::{
    ClusterGlobalEgressIP, EndpointPort, EndpointSlice, Gateway, GlobalEgressIP, GlobalEgressIPStatus, GlobalIngressIP,
    ObjectMeta, Pod, Record, Service, ServiceExport, SliceEndpoint, globalnet, labels,
};
use culvert_globalnet_core::{EgressObject, Endpoints, Holder, Inputs, ObjectKey, Port, ServiceEndpoint};
use culvert_model::Protocol;
use ipnet::IpNet;

mod global;
mod writing;

pub(crate) use writing::{cluster_egress_object, egress_status, ingress_object, ingress_status};

/// How long a client stays with its backend where a Service does not say, in seconds (Kubernetes API).
const DEFAULT_AFFINITY: i32 = 10_800;

/// What is known of all objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) inputs: Inputs,
    /// What of which object cannot be understood, in words.
    pub(crate) problems: BTreeSet<String>,
}

impl Snapshot {
    /// Starts with the cluster's global CIDRs and no object.
    pub(crate) fn new(cidrs: Vec<IpNet>) -> Self {
        Self { inputs: Inputs { cidrs, ..Inputs::default() }, ..Self::default() }
    }

    pub(crate) fn add_service(&mut self, record: &Service) {
        let mut texts = Texts::of(record);
        let Some(spec) = &record.spec else { return };
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
        let service = culvert_globalnet_core::Service {
            cluster_ips: texts.addresses("spec.clusterIPs", &cluster_ips),
            is_headless,
            is_external_name: spec.type_.as_deref() == Some("ExternalName"),
            has_selector: spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()),
            publishes_not_ready: spec.publish_not_ready_addresses == Some(true),
            affinity: is_sticky.then(|| timeout().unwrap_or(DEFAULT_AFFINITY).unsigned_abs()),
            ports,
        };
        self.inputs.services.insert(texts.key.clone(), service);
        self.problems.extend(texts.problems);
    }

    /// Adds a slice to its Service's; those of no Service and of DNS names are none of ours.
    pub(crate) fn add_slice(&mut self, record: &EndpointSlice) {
        let mut texts = Texts::of(record);
        let name = record.metadata.labels.as_ref().and_then(|all| all.get(labels::SERVICE_NAME));
        let Some(name) = name.filter(|name| !name.is_empty()) else { return };
        if record.address_type == "FQDN" {
            return;
        }
        let ports = record.ports.iter().flatten();
        let ports = ports.filter_map(|EndpointPort { name, port, protocol, .. }| {
            texts.port(name.as_deref(), protocol.as_deref(), (*port)?)
        });
        let ports = ports.collect();
        let endpoints = record.endpoints.iter().filter_map(|endpoint| slice_endpoint(endpoint, &mut texts)).collect();
        let service = ObjectKey { namespace: texts.key.namespace.clone(), name: name.clone() };
        self.inputs.endpoints.entry(service).or_default().push(Endpoints { ports, endpoints });
        self.problems.extend(texts.problems);
    }

    pub(crate) fn add_pod(&mut self, record: &Pod) {
        let mut texts = Texts::of(record);
        let mut addresses: Vec<String> = record.status.pod_ips.iter().map(|one| one.ip.clone()).collect();
        addresses.push(record.status.pod_ip.clone());
        addresses.retain(|one| !one.is_empty());
        let phase = record.status.phase.as_str();
        let pod = culvert_globalnet_core::Pod {
            labels: record.metadata.labels.clone().unwrap_or_default(),
            addresses: texts.addresses("status.podIPs", &addresses),
            is_on_host_network: record.spec.host_network,
            is_running: phase == "Running",
            is_finished: matches!(phase, "Succeeded" | "Failed"),
        };
        self.inputs.pods.insert(texts.key.clone(), pod);
        self.problems.extend(texts.problems);
    }

    /// Adds an export, unless it is being deleted.
    pub(crate) fn add_export(&mut self, record: &ServiceExport) {
        if record.metadata.deletion_timestamp.is_none() {
            self.inputs.exports.insert(key(&record.metadata));
        }
    }

    pub(crate) fn add_egress(&mut self, record: &GlobalEgressIP) {
        let object = EgressObject {
            selector: record.spec.pod_selector.as_ref().map(global::selector),
            ..egress_object(&record.metadata, record.spec.number_of_ips, &record.status)
        };
        self.inputs.egress.insert(key(&record.metadata), object);
    }

    pub(crate) fn add_cluster_egress(&mut self, record: &ClusterGlobalEgressIP) {
        let object = egress_object(&record.metadata, record.spec.number_of_ips, &record.status);
        self.inputs.cluster_egress.insert(record.name().to_owned(), object);
    }

    pub(crate) fn add_ingress(&mut self, record: &GlobalIngressIP) {
        self.inputs.ingress.insert(key(&record.metadata), global::ingress_object(record));
    }

    /// Adds a gateway of this cluster.
    pub(crate) fn add_gateway(&mut self, record: &Gateway) {
        let annotation = record.metadata.annotations.as_ref().and_then(|all| all.get(globalnet::GATEWAY_ADDRESS));
        let address = annotation.filter(|address| !address.is_empty()).cloned();
        self.inputs.gateways.insert(record.name().to_owned(), address);
    }

    /// Adds an object that is there but cannot be read at all, by its kind; `problem` says why.
    pub(crate) fn add_unclear(&mut self, kind: &str, key: ObjectKey, problem: String) {
        self.problems.insert(problem);
        let holder = match kind {
            GlobalEgressIP::KIND => Holder::Egress(key),
            ClusterGlobalEgressIP::KIND => Holder::ClusterEgress(key.name),
            GlobalIngressIP::KIND => Holder::Ingress(key),
            Gateway::KIND => Holder::Gateway(key.name),
            _ => return,
        };
        self.inputs.unclear.insert(holder);
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
