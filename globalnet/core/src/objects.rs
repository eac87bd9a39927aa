//! What the allocation reads and what it decides: Globalnet's objects as values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Endpoints, GlobalAddresses, ObjectKey, Pod, Selector, SelectorError, Service};

/// Everything that the allocation goes by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The cluster's global CIDRs, at most one of a family; none without Globalnet, and then everything is given back.
    pub cidrs: Vec<IpNet>,
    pub services: BTreeMap<ObjectKey, Service>,
    /// Contents of the EndpointSlices by their Service.
    pub endpoints: BTreeMap<ObjectKey, Vec<Endpoints>>,
    pub pods: BTreeMap<ObjectKey, Pod>,
    /// ServiceExports, but for those that are being deleted.
    pub exports: BTreeSet<ObjectKey>,
    pub egress: BTreeMap<ObjectKey, EgressObject>,
    /// By name; they have no namespace.
    pub cluster_egress: BTreeMap<String, EgressObject>,
    pub ingress: BTreeMap<ObjectKey, IngressObject>,
    /// Names of this cluster's Gateway objects, and the global address in their annotation.
    pub gateways: BTreeMap<String, Option<String>>,
    /// Objects that are there but cannot be understood: what they were known to hold stays theirs.
    pub unclear: BTreeSet<Holder>,
    /// The same of what exports rest on.
    pub unclear_exports: UnclearExports,
}

/// What exports rest on and cannot be understood, though it is there: the GlobalIngressIPs that it has a say in stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnclearExports {
    pub services: BTreeSet<ObjectKey>,
    pub exports: BTreeSet<ObjectKey>,
    /// Whose Service they are cannot be told either, so they count for all of their namespaces.
    pub slices: BTreeSet<ObjectKey>,
}

impl UnclearExports {
    /// Tells whether that is so of the Service or its export.
    pub(crate) fn has(&self, service: &ObjectKey) -> bool {
        self.services.contains(service) || self.exports.contains(service)
    }

    /// Tells whether it has a say in an object in `namespace`.
    pub(crate) fn concern(&self, namespace: &str, spec: &IngressSpec) -> bool {
        let service = || ObjectKey { namespace: namespace.to_owned(), name: spec.service.clone() };
        let of_namespace = || self.slices.iter().any(|slice| slice.namespace == namespace);
        *self != Self::default() && (spec.target != Target::Service && of_namespace() || self.has(&service()))
    }
}

impl Inputs {
    /// Tells whether the endpoints of a service have a say: else a pass for their sake changes nothing.
    pub fn reads_endpoints_of(&self, service: &ObjectKey) -> bool {
        self.exports.contains(service) && self.services.get(service).is_some_and(|service| service.is_headless)
    }

    /// Returns the namespaces whose pods have a say: for the others' sake a pass changes nothing, unless
    /// [all pods have](Self::reads_all_pods).
    pub fn namespaces_of_pods(&self) -> BTreeSet<&str> {
        let headless = self.exported_headless().map(|(key, _)| key);
        let kept = self.kept_without_clarity(Target::Pod);
        self.egress.keys().chain(headless).chain(kept).map(|key| key.namespace.as_str()).collect()
    }

    /// Returns the headless Services that are exported. Few are headless, and all may be exported.
    fn exported_headless(&self) -> impl Iterator<Item = (&ObjectKey, &Service)> {
        self.services.iter().filter(|(key, service)| service.is_headless && self.exports.contains(*key))
    }

    /// Returns the objects of a kind that stay because of what is not understood.
    fn kept_without_clarity(&self, target: Target) -> impl Iterator<Item = &ObjectKey> {
        let stays = move |key: &ObjectKey, object: &IngressObject| {
            object
                .spec
                .as_ref()
                .is_ok_and(|spec| spec.target == target && self.unclear_exports.concern(&key.namespace, spec))
        };
        self.ingress.iter().filter(move |(key, object)| stays(key, object)).map(|(key, _)| key)
    }

    /// Tells whether pods of all namespaces have a say: where endpoints without pods are exported, they are not to leave as
    /// somebody's pod.
    pub fn reads_all_pods(&self) -> bool {
        self.exported_headless().any(|(_, service)| !service.has_selector)
            || self.kept_without_clarity(Target::Endpoint).next().is_some()
    }
}

/// A GlobalEgressIP or ClusterGlobalEgressIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressObject {
    /// Seconds since 1970.
    pub created: Option<i64>,
    /// How many addresses are asked for; 1 if it does not say.
    pub number: Option<i64>,
    /// Which pods; `None`: all of the namespace, after all objects with a selector.
    ///
    /// An empty selector chooses all pods too, but is one: it comes before headless services and whole namespaces, as with
    /// Submariner.
    pub selector: Option<Result<Selector, SelectorError>>,
    pub status: FoundStatus,
}

/// A GlobalIngressIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressObject {
    /// Seconds since 1970.
    pub created: Option<i64>,
    /// What it leads to, or why that cannot be understood.
    pub spec: Result<IngressSpec, String>,
    pub status: FoundStatus,
}

/// What a GlobalIngressIP leads to, with labels and annotations.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IngressSpec {
    pub target: Target,
    /// Name of the exported Service.
    pub service: String,
    /// Name of the pod, for [`Target::Pod`].
    pub pod: Option<String>,
    /// Address of the pod or endpoint; `None` for [`Target::Service`], and where it is not well written.
    pub address: Option<IpAddr>,
}

/// The kinds of what a GlobalIngressIP leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// `ClusterIPService`.
    Service,
    /// `HeadlessServicePod`.
    Pod,
    /// `HeadlessServiceEndpoints`.
    Endpoint,
}

/// A status as it stands in an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundStatus {
    /// Whatever stands there, addresses or not; empty texts left out.
    pub addresses: Vec<String>,
    pub conditions: Vec<Condition>,
}

/// A status as it has to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub addresses: Vec<IpAddr>,
    /// All of them: those of others stay as they are.
    pub conditions: Vec<Condition>,
}

/// One aspect of an object's state, without its times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    pub reason: String,
    pub message: String,
}

/// An object that can hold global addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    Gateway(String),
    ClusterEgress(String),
    Egress(ObjectKey),
    Ingress(ObjectKey),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(name) => write!(f, "Gateway {name}"),
            Self::ClusterEgress(name) => write!(f, "ClusterGlobalEgressIP {name}"),
            Self::Egress(key) => write!(f, "GlobalEgressIP {key}"),
            Self::Ingress(key) => write!(f, "GlobalIngressIP {key}"),
        }
    }
}

/// What this process has given, from pass to pass. A process that has just become active has none, and goes by what
/// stands in the objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub held: BTreeMap<Holder, Vec<IpAddr>>,
    /// Addresses that were given back, and who had them, the one that rests longest first: their old holder gets them
    /// again, others only when no other address is free. At most 4096.
    pub rested: Vec<(IpAddr, Holder)>,
}

/// What has to be. Only differences are to be written; the order does not matter, and what fails comes again in the next
/// pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub addresses: GlobalAddresses,
    /// To be passed in next time, whether or not everything was written.
    pub memory: Memory,
    /// GlobalIngressIPs to be created, or to be set right in spec, label and annotation; new ones have a status below.
    pub apply: BTreeMap<ObjectKey, IngressSpec>,
    /// GlobalIngressIPs to be deleted.
    pub delete: BTreeSet<ObjectKey>,
    /// Whether the default ClusterGlobalEgressIP is to be created; it has a status below.
    pub create_cluster_egress: bool,
    /// Statuses that are not as they have to be; none of gateways.
    pub statuses: BTreeMap<Holder, Status>,
    /// Global addresses to be written to Gateway objects; `None`: taken away.
    pub gateways: BTreeMap<String, Option<IpAddr>>,
    /// What somebody should look at, in words; for the log and for events, and gone when it is over.
    pub notices: BTreeSet<String>,
}

impl Decision {
    /// Tells whether there is nothing to be written.
    pub fn is_settled(&self) -> bool {
        let Self { addresses: _, memory: _, apply, delete, create_cluster_egress, statuses, gateways, notices: _ } =
            self;
        apply.is_empty() && delete.is_empty() && !create_cluster_egress && statuses.is_empty() && gateways.is_empty()
    }
}
