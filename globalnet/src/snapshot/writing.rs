//! What is written: Globalnet's objects and statuses as they stand at the API server.

use std::collections::BTreeMap;

use culvert_api::{
    ClusterGlobalEgressIP, ClusterGlobalEgressIPSpec, Condition, GlobalEgressIPStatus, GlobalIngressIP,
    GlobalIngressIPSpec, GlobalIngressIPStatus, LocalReference, Time, globalnet,
};
use culvert_globalnet_core::{CLUSTER_EGRESS, CLUSTER_EGRESS_NUMBER, IngressSpec, ObjectKey, Status, Target};

use super::global::condition;

/// Returns a GlobalIngressIP without a status.
pub(crate) fn ingress_object(key: &ObjectKey, spec: &IngressSpec) -> GlobalIngressIP {
    let (target, annotation) = match spec.target {
        Target::Service => ("ClusterIPService", None),
        Target::Pod => ("HeadlessServicePod", Some(globalnet::POD_ADDRESS)),
        Target::Endpoint => ("HeadlessServiceEndpoints", Some(globalnet::ENDPOINT_ADDRESS)),
    };
    let reference = |name: &String| LocalReference { name: name.clone() };
    let content = GlobalIngressIPSpec {
        target: target.to_owned(),
        service_ref: Some(reference(&spec.service)),
        pod_ref: spec.pod.as_ref().map(reference),
    };
    let mut object = GlobalIngressIP::new(&key.name, content);
    object.metadata.namespace = Some(key.namespace.clone());
    if let Some(annotation) = annotation {
        object.metadata.labels = Some(BTreeMap::from([(globalnet::SERVICE.to_owned(), spec.service.clone())]));
        let address = spec.address.map(|address| (annotation.to_owned(), address.to_string()));
        object.metadata.annotations = address.map(|address| BTreeMap::from([address]));
    }
    object
}

/// Returns the ClusterGlobalEgressIP that every cluster has, without a status.
pub(crate) fn cluster_egress_object() -> ClusterGlobalEgressIP {
    let spec = ClusterGlobalEgressIPSpec { number_of_ips: Some(CLUSTER_EGRESS_NUMBER) };
    ClusterGlobalEgressIP::new(CLUSTER_EGRESS, spec)
}

/// Returns the status of a GlobalEgressIP or ClusterGlobalEgressIP, to be written at `now` in place of `found`.
pub(crate) fn egress_status(status: &Status, found: &GlobalEgressIPStatus, now: &Time) -> GlobalEgressIPStatus {
    GlobalEgressIPStatus {
        conditions: conditions(status, &found.conditions, now),
        allocated_ips: status.addresses.iter().map(ToString::to_string).collect(),
    }
}

/// Returns the status of a GlobalIngressIP, to be written at `now` in place of `found`.
pub(crate) fn ingress_status(status: &Status, found: &GlobalIngressIPStatus, now: &Time) -> GlobalIngressIPStatus {
    GlobalIngressIPStatus {
        conditions: conditions(status, &found.conditions, now),
        allocated_ip: status.addresses.first().map(ToString::to_string).unwrap_or_default(),
    }
}

/// Returns all conditions; one whose status does not change keeps the time of its last change.
fn conditions(status: &Status, found: &[Condition], now: &Time) -> Vec<Condition> {
    let written = |new: &culvert_globalnet_core::Condition| {
        let current = found.iter().find(|current| current.type_ == new.kind);
        if let Some(same) = current.filter(|current| condition(current) == *new) {
            // The API server wants a time, and not everybody has written one.
            return Condition {
                last_transition_time: same.last_transition_time.clone().or(Some(now.clone())),
                ..same.clone()
            };
        }
        let since = current.filter(|current| current.status == new.status);
        Condition {
            type_: new.kind.clone(),
            status: new.status.clone(),
            observed_generation: None,
            last_transition_time: since
                .and_then(|current| current.last_transition_time.clone())
                .or_else(|| Some(now.clone())),
            reason: new.reason.clone(),
            message: new.message.clone(),
        }
    };
    status.conditions.iter().map(written).collect()
}
