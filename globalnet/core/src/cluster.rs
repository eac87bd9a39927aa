//! Kubernetes' services and pods as far as Globalnet asks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use culvert_model::Protocol;

/// Namespace and name of an object; the namespace is empty for kinds without.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its cluster addresses, none for a headless one.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// `clusterIP: None`.
    pub is_headless: bool,
    /// `type: ExternalName`: a DNS name and nothing to translate.
    pub is_external_name: bool,
    /// Whether it has a selector, so that Kubernetes finds its endpoints.
    pub has_selector: bool,
    /// `publishNotReadyAddresses`.
    pub publishes_not_ready: bool,
    /// `sessionAffinity: ClientIP` and its timeout in seconds.
    pub affinity: Option<u32>,
    pub ports: Vec<Port>,
}

/// A port of a Service, or of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Empty for the only port of a Service; it ties the Service's port to that of the endpoints, whose number may differ
    /// among them where the target port has a name.
    pub name: String,
    pub protocol: Protocol,
    pub number: u16,
}

/// Who serves a Service: the content of its EndpointSlices of one family and set of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    pub ports: Vec<Port>,
    pub endpoints: Vec<ServiceEndpoint>,
}

/// An endpoint of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceEndpoint {
    pub address: IpAddr,
    /// `conditions.ready`; unset counts as ready (Kubernetes API).
    pub is_ready: bool,
    /// The pod behind it, if it is one of the Service's namespace.
    pub pod: Option<String>,
    pub hostname: Option<String>,
}

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub labels: BTreeMap<String, String>,
    pub addresses: BTreeSet<IpAddr>,
    /// `hostNetwork`: its addresses are the node's.
    pub is_on_host_network: bool,
    /// `status.phase: Running`.
    pub is_running: bool,
    /// `status.phase: Succeeded` or `Failed`: its addresses may be another pod's by now.
    pub is_finished: bool,
}

impl Pod {
    /// Tells whether an address is the pod's, which is its node's with host network.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        !self.is_finished && self.addresses.contains(&address)
    }
}
