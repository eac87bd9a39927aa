//! Kubernetes' objects around services as YAML in a record store, as an API server would have them.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::records::{delete_record, write_record};

/// The namespace of a lab's services.
pub const NAMESPACE: &str = "shop";

/// A service of one port, TCP and UDP, as a lab has it.
#[derive(Clone, Debug)]
pub struct ServicePlan {
    pub name: String,
    /// `None`: headless.
    pub cluster_ip: Option<Ipv4Addr>,
    /// The Service's port.
    pub port: u16,
    /// The backends'.
    pub target_port: u16,
    /// Seconds of client affinity.
    pub affinity: Option<u32>,
}

/// A pod behind a service.
#[derive(Clone, Debug)]
pub struct BackendPlan {
    pub pod: String,
    pub address: Ipv4Addr,
    pub ready: bool,
}

impl BackendPlan {
    /// A backend that is ready.
    pub fn ready(pod: &str, address: Ipv4Addr) -> Self {
        Self { pod: pod.to_owned(), address, ready: true }
    }
}

/// Writes a Service and its EndpointSlice.
pub fn write_service(store: &Path, plan: &ServicePlan, backends: &[BackendPlan]) -> Result<()> {
    let ports = ["TCP", "UDP"].map(|protocol| {
        json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": plan.port, "targetPort": plan.target_port})
    });
    let cluster_ip = plan.cluster_ip.map_or("None".to_owned(), |address| address.to_string());
    let mut spec = json!({
        "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ports": ports,
        "selector": {"app": plan.name},
    });
    if let Some(seconds) = plan.affinity {
        spec["sessionAffinity"] = json!("ClientIP");
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
    }
    write(store, "services", "v1", "Service", &plan.name, json!({"spec": spec}))?;
    write_endpoints(store, plan, backends)
}

/// Writes the EndpointSlice of a service alone.
pub fn write_endpoints(store: &Path, plan: &ServicePlan, backends: &[BackendPlan]) -> Result<()> {
    let ports = ["TCP", "UDP"]
        .map(|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": plan.target_port}));
    let endpoints: Vec<Value> = backends
        .iter()
        .map(|backend| {
            json!({
                "addresses": [backend.address.to_string()],
                "conditions": {"ready": backend.ready},
                "targetRef": {"kind": "Pod", "name": backend.pod, "namespace": NAMESPACE},
            })
        })
        .collect();
    let content = json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints});
    let labels = json!({"kubernetes.io/service-name": plan.name});
    write_labelled(store, "endpointslices", "discovery.k8s.io/v1", "EndpointSlice", &plan.name, labels, content)
}

/// Writes a Pod that runs.
pub fn write_pod(store: &Path, name: &str, address: Ipv4Addr, labels: Value) -> Result<()> {
    let status = json!({"phase": "Running", "podIP": address.to_string(), "podIPs": [{"ip": address.to_string()}]});
    write_labelled(store, "pods", "v1", "Pod", name, labels, json!({"spec": {}, "status": status}))
}

/// Exports a service.
pub fn write_export(store: &Path, name: &str) -> Result<()> {
    write(store, "serviceexports", "multicluster.x-k8s.io/v1alpha1", "ServiceExport", name, json!({"spec": {}}))
}

/// Takes an export back.
pub fn delete_export(store: &Path, name: &str) -> Result<()> {
    delete_record(store, &format!("serviceexports/{NAMESPACE}"), name)
}

/// Writes a GlobalEgressIP, for the pods that `selector` chooses or for the namespace.
pub fn write_egress(store: &Path, name: &str, number: u32, selector: Option<Value>) -> Result<()> {
    let mut spec = json!({"numberOfIPs": number});
    if let Some(selector) = selector {
        spec["podSelector"] = json!({"matchLabels": selector});
    }
    write(store, "globalegressips", "submariner.io/v1", "GlobalEgressIP", name, json!({"spec": spec}))
}

fn write(store: &Path, plural: &str, api_version: &str, kind: &str, name: &str, content: Value) -> Result<()> {
    write_labelled(store, plural, api_version, kind, name, json!({}), content)
}

fn write_labelled(
    store: &Path,
    plural: &str,
    api_version: &str,
    kind: &str,
    name: &str,
    labels: Value,
    content: Value,
) -> Result<()> {
    let mut object = json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
    });
    if let (Some(object), Value::Object(content)) = (object.as_object_mut(), content) {
        object.extend(content);
    }
    write_record(store, &format!("{plural}/{NAMESPACE}"), name, &serde_yaml_ng::to_string(&object)?)
}
