//! Which GlobalIngressIPs there have to be for the exported services (Submariner chapter 8.4).
//!
//! A service with a cluster address has one, whatever its type; a headless one has one for each running pod, or for each
//! endpoint if it has no selector. A pod has one object though several services choose it, and keeps it while one does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::IpFamily;

use crate::names::ingress_name;
use crate::{IngressSpec, Inputs, ObjectKey, Service, ServiceEndpoint, Target};

/// What there has to be for the exports.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) objects: BTreeMap<ObjectKey, IngressSpec>,
    /// Those of them that stay just as they are, since what they rest on is not understood.
    pub(crate) kept: BTreeSet<ObjectKey>,
    /// Exports that lead to nothing.
    pub(crate) notices: BTreeSet<String>,
}

/// What makes two specs the same object, beside the namespace.
type Identity = (Target, String, Option<IpAddr>);

/// Returns the objects that there have to be; existing ones keep their names.
pub(crate) fn wanted(inputs: &Inputs) -> Wanted {
    let existing = existing(inputs);
    let mut all = Wanted::default();
    all.keep(inputs);
    let mut hosts: BTreeMap<(&str, Identity), IngressSpec> = BTreeMap::new();
    for export in inputs.exports.iter().filter(|export| !inputs.unclear_exports.has(export)) {
        let Some(service) = inputs.services.get(export) else {
            all.notices.insert(format!(
                "ServiceExport {export}: there is no Service {export}: create it, or delete the export"
            ));
            continue;
        };
        if service.is_external_name {
            all.notices.insert(format!(
                "ServiceExport {export}: Service {export} is of type ExternalName, which has no address: delete the export"
            ));
            continue;
        }
        if !service.is_headless {
            if !service.cluster_ips.is_empty() {
                let name = export.name.clone();
                let spec = IngressSpec { target: Target::Service, service: name, pod: None, address: None };
                all.objects.entry(export.clone()).or_insert(spec);
            }
            continue;
        }
        for spec in host_specs(inputs, export, service, &existing) {
            let place = (export.namespace.as_str(), identity(&spec));
            // The service that an object names stays named.
            let is_named = existing.get(&place).is_some_and(|(_, found)| found.service == spec.service);
            if is_named || !hosts.contains_key(&place) {
                hosts.insert(place, spec);
            }
        }
    }
    hosts.retain(|place, _| !existing.get(place).is_some_and(|(key, _)| all.kept.contains(key)));
    all.name(hosts, &existing);
    all
}

impl Wanted {
    /// Adds what is there and is not to change.
    fn keep(&mut self, inputs: &Inputs) {
        for (key, object) in &inputs.ingress {
            if let Ok(spec) = &object.spec
                && inputs.unclear_exports.concern(&key.namespace, spec)
            {
                self.objects.insert(key.clone(), spec.clone());
                self.kept.insert(key.clone());
            }
        }
    }

    /// Adds the objects of pods and endpoints by their names.
    fn name(
        &mut self,
        hosts: BTreeMap<(&str, Identity), IngressSpec>,
        existing: &BTreeMap<(&str, Identity), (&ObjectKey, &IngressSpec)>,
    ) {
        let mut new = Vec::new();
        for (place, spec) in hosts {
            // A service may be called as a pod's object is.
            match existing.get(&place).filter(|(key, _)| !self.objects.contains_key(*key)) {
                Some((key, _)) => drop(self.objects.insert((*key).clone(), spec)),
                None => new.push((place, spec)),
            }
        }
        if new.is_empty() {
            return;
        }
        let mut taken: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for key in self.objects.keys() {
            taken.entry(key.namespace.clone()).or_default().insert(key.name.clone());
        }
        for ((namespace, _), spec) in new {
            let taken = taken.entry(namespace.to_owned()).or_default();
            let name = ingress_name(&spec, taken);
            taken.insert(name.clone());
            self.objects.insert(ObjectKey { namespace: namespace.to_owned(), name }, spec);
        }
    }
}

/// Returns the objects of pods and endpoints that are there; of several for the same one, the first by name.
fn existing(inputs: &Inputs) -> BTreeMap<(&str, Identity), (&ObjectKey, &IngressSpec)> {
    let mut all = BTreeMap::new();
    for (key, object) in &inputs.ingress {
        if let Ok(spec) = &object.spec
            && spec.target != Target::Service
        {
            all.entry((key.namespace.as_str(), identity(spec))).or_insert((key, spec));
        }
    }
    all
}

fn identity(spec: &IngressSpec) -> Identity {
    match &spec.pod {
        Some(pod) => (spec.target, pod.clone(), None),
        None => (spec.target, spec.service.clone(), spec.address),
    }
}

/// Returns the objects of a headless service's pods or endpoints.
fn host_specs(
    inputs: &Inputs,
    key: &ObjectKey,
    service: &Service,
    existing: &BTreeMap<(&str, Identity), (&ObjectKey, &IngressSpec)>,
) -> Vec<IngressSpec> {
    let endpoints = inputs.endpoints.get(key).into_iter().flatten().flat_map(|endpoints| &endpoints.endpoints);
    let spec_of = |endpoint: &ServiceEndpoint| {
        let (target, pod) =
            if service.has_selector { (Target::Pod, Some(endpoint.pod.clone()?)) } else { (Target::Endpoint, None) };
        Some(IngressSpec { target, service: key.name.clone(), pod, address: Some(endpoint.address) })
    };
    let mut pods: BTreeMap<String, IngressSpec> = BTreeMap::new();
    let mut all = Vec::new();
    for endpoint in endpoints {
        let Some(spec) = spec_of(endpoint) else { continue };
        // What has an object keeps it while it is listed: not being ready for a moment costs no address.
        let found = existing.get(&(key.namespace.as_str(), identity(&spec)));
        let is_up = match &spec.pod {
            Some(pod) => {
                let pod = ObjectKey { namespace: key.namespace.clone(), name: pod.clone() };
                match inputs.pods.get(&pod) {
                    Some(pod) if pod.has(endpoint.address) => pod.is_running,
                    None if found.is_some_and(|(_, found)| found.address == spec.address) => true,
                    // Whoever writes an EndpointSlice may name any pod beside any address.
                    Some(_) | None => continue,
                }
            }
            None => endpoint.is_ready || found.is_some(),
        };
        if !is_up && !service.publishes_not_ready {
            continue;
        }
        match spec.pod.clone() {
            None => all.push(spec),
            // Of a pod with two addresses the first family counts that has a global CIDR.
            Some(pod) => {
                let other = pods.get(&pod);
                if other.is_none_or(|other| preference(inputs, &spec) < preference(inputs, other)) {
                    pods.insert(pod, spec);
                }
            }
        }
    }
    all.extend(pods.into_values());
    all
}

fn preference(inputs: &Inputs, spec: &IngressSpec) -> (bool, Option<IpAddr>) {
    let has_cidr = |address| inputs.cidrs.iter().any(|cidr| IpFamily::of_net(cidr) == IpFamily::of(address));
    (!spec.address.is_some_and(has_cidr), spec.address)
}
