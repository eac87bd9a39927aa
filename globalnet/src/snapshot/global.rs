//! What Globalnet's own objects say.

use std::net::IpAddr;

use culvert_api::{Condition, GlobalIngressIP, LabelSelector, LocalReference, ObjectMeta, globalnet};
use culvert_globalnet_core::{FoundStatus, IngressObject, IngressSpec, Selector, SelectorError, Target};
use culvert_model::clipped;

use super::entry;

/// How much of a text is repeated.
const QUOTED: usize = 64;

pub(super) fn created(metadata: &ObjectMeta) -> Option<i64> {
    metadata.creation_timestamp.as_ref().map(|time| time.0.as_second())
}

pub(super) fn found_status<'a>(
    addresses: impl IntoIterator<Item = &'a String>,
    conditions: &[Condition],
) -> FoundStatus {
    FoundStatus {
        addresses: addresses.into_iter().filter(|text| !text.is_empty()).cloned().collect(),
        conditions: conditions.iter().map(condition).collect(),
    }
}

/// Returns a condition without its times.
pub(super) fn condition(condition: &Condition) -> culvert_globalnet_core::Condition {
    culvert_globalnet_core::Condition {
        kind: condition.type_.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    }
}

pub(super) fn selector(selector: &LabelSelector) -> Result<Selector, SelectorError> {
    let labels = Selector::of_labels(selector.match_labels.clone().unwrap_or_default());
    selector.match_expressions.iter().flatten().try_fold(labels, |all, one| {
        let values = one.values.iter().flatten().cloned().collect();
        all.with(one.key.clone(), &one.operator, values)
    })
}

pub(super) fn ingress_object(record: &GlobalIngressIP) -> IngressObject {
    IngressObject {
        created: created(&record.metadata),
        spec: ingress_spec(record),
        status: found_status([&record.status.allocated_ip], &record.status.conditions),
    }
}

fn ingress_spec(record: &GlobalIngressIP) -> Result<IngressSpec, String> {
    let spec = &record.spec;
    let (target, annotation) = match spec.target.as_str() {
        "ClusterIPService" => (Target::Service, None),
        "HeadlessServicePod" => (Target::Pod, Some(globalnet::POD_ADDRESS)),
        "HeadlessServiceEndpoints" => (Target::Endpoint, Some(globalnet::ENDPOINT_ADDRESS)),
        other => {
            let other = clipped(other, QUOTED);
            return Err(format!(
                "spec.target: {other:?} is not known: export a Service instead of writing a GlobalIngressIP"
            ));
        }
    };
    let name = |reference: &Option<LocalReference>| {
        let name = reference.as_ref().map(|reference| reference.name.clone());
        name.filter(|name| !name.is_empty())
    };
    let service = name(&spec.service_ref).ok_or_else(|| missing("serviceRef", &spec.target))?;
    let pod = match target {
        Target::Pod => Some(name(&spec.pod_ref).ok_or_else(|| missing("podRef", &spec.target))?),
        Target::Service | Target::Endpoint => None,
    };
    // An object without the label that others find it by is as one without its address: it is set right.
    let is_labelled = entry(&record.metadata.labels, globalnet::SERVICE) == Some(service.as_str());
    let annotation = annotation.and_then(|annotation| entry(&record.metadata.annotations, annotation));
    let address: Option<IpAddr> = annotation.and_then(|text| text.parse().ok()).filter(|_| is_labelled);
    Ok(IngressSpec { target, service, pod, address })
}

fn missing(field: &str, target: &str) -> String {
    format!("spec.{field}.name is missing for target {target}: export the Service instead of writing a GlobalIngressIP")
}
