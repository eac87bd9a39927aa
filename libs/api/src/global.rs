//! Objects by which users ask for global addresses: spec and status (Submariner chapter 2.1).
//!
//! Validation is Submariner's. A field that is absent or null reads as its default. A status is always written whole, so
//! that a field which somebody else has set is set back.
//! The field comments become the descriptions in the generated CRDs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::lenient::null_as_default;

/// One aspect of an object's state (Kubernetes' `metav1.Condition`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(extend("required" = ["lastTransitionTime", "message", "reason", "status", "type"]))]
pub struct Condition {
    /// Which aspect, in CamelCase.
    #[serde(rename = "type", deserialize_with = "null_as_default")]
    #[schemars(
        length(max = 316),
        regex(
            pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
        )
    )]
    pub type_: String,
    /// Whether it holds: True, False or Unknown.
    #[serde(deserialize_with = "null_as_default")]
    #[schemars(extend("enum" = ["True", "False", "Unknown"]))]
    pub status: String,
    /// The generation of the object that was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 0))]
    pub observed_generation: Option<i64>,
    /// When the status last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Time")]
    pub last_transition_time: Option<Time>,
    /// Why, as a word for programs.
    #[serde(deserialize_with = "null_as_default")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"))]
    pub reason: String,
    /// Why, in words.
    #[serde(deserialize_with = "null_as_default")]
    #[schemars(length(max = 32_768))]
    pub message: String,
}

/// Global addresses by which pods of a namespace leave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(extend("required" = []))]
pub struct GlobalEgressIPSpec {
    /// How many addresses; 1 if absent.
    #[serde(rename = "numberOfIPs", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 0, max = 20))]
    pub number_of_ips: Option<i64>,
    /// Chooses pods of the namespace; absent: all of them, after all objects with a selector.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LabelSelector", extend("x-kubernetes-map-type" = "atomic"))]
    pub pod_selector: Option<LabelSelector>,
}

/// Global addresses by which sources leave that no GlobalEgressIP chooses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(extend("required" = []))]
pub struct ClusterGlobalEgressIPSpec {
    /// How many addresses; 1 if absent.
    #[serde(rename = "numGlobalIPs", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 0, max = 20))]
    pub number_of_ips: Option<i64>,
}

/// The addresses of a GlobalEgressIP or ClusterGlobalEgressIP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(extend("required" = []))]
pub struct GlobalEgressIPStatus {
    /// How the object stands.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
    /// The global addresses that are held.
    #[serde(rename = "allocatedIPs", deserialize_with = "null_as_default")]
    pub allocated_ips: Vec<String>,
}

/// A service, pod or endpoint that a global address leads to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(extend("required" = ["target"]))]
pub struct GlobalIngressIPSpec {
    /// What is reached: ClusterIPService, HeadlessServicePod or HeadlessServiceEndpoints.
    #[serde(deserialize_with = "null_as_default")]
    pub target: String,
    /// The service.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LocalReference", extend("x-kubernetes-map-type" = "atomic"))]
    pub service_ref: Option<LocalReference>,
    /// The pod of a headless service with a selector.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LocalReference", extend("x-kubernetes-map-type" = "atomic"))]
    pub pod_ref: Option<LocalReference>,
}

/// An object of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = []))]
pub struct LocalReference {
    /// Its name.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
}

/// The address of a GlobalIngressIP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(extend("required" = []))]
pub struct GlobalIngressIPStatus {
    /// How the object stands.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
    /// The global address that is held; empty if none is.
    #[serde(rename = "allocatedIP", deserialize_with = "null_as_default")]
    pub allocated_ip: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{ClusterGlobalEgressIP, GlobalEgressIP, GlobalIngressIP, Record as _};

    #[test]
    fn an_object_of_submariners_is_read_and_written_with_the_same_names() {
        let value = json!({
            "apiVersion": "submariner.io/v1",
            "kind": "GlobalIngressIP",
            "metadata": {"name": "pod-web-0", "namespace": "shop", "labels": {"submariner.io/serviceRef": "web"}},
            "spec": {"target": "HeadlessServicePod", "serviceRef": {"name": "web"}, "podRef": {"name": "web-0"}},
            "status": {
                "conditions": [{
                    "type": "Allocated", "status": "True", "reason": "Success", "message": "Allocated global IP",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
                "allocatedIP": "242.1.255.254",
            },
        });
        let object: GlobalIngressIP = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(object.status.allocated_ip, "242.1.255.254");
        assert_eq!(serde_json::to_value(&object).unwrap(), value);
    }

    #[test]
    fn both_spellings_of_the_number_are_submariners() {
        let spec: GlobalEgressIPSpec = serde_json::from_value(json!({"numberOfIPs": 3, "podSelector": {}})).unwrap();
        assert_eq!((spec.number_of_ips, spec.pod_selector), (Some(3), Some(LabelSelector::default())));
        let spec: GlobalEgressIPSpec = serde_json::from_value(json!({"podSelector": null})).unwrap();
        assert_eq!((spec.number_of_ips, spec.pod_selector), (None, None));
        let spec: ClusterGlobalEgressIPSpec = serde_json::from_value(json!({"numGlobalIPs": 8})).unwrap();
        assert_eq!(spec.number_of_ips, Some(8));
    }

    #[test]
    fn a_new_object_has_no_status_and_one_that_is_written_has_all_of_it() {
        let mut object = GlobalEgressIP::new("web", GlobalEgressIPSpec::default());
        assert_eq!(serde_json::to_value(&object).unwrap().get("status"), None);
        object.status.conditions.push(Condition::default());
        assert_eq!(serde_json::to_value(&object).unwrap()["status"]["allocatedIPs"], json!([]));
        assert_eq!(ClusterGlobalEgressIP::PLURAL, "clusterglobalegressips");
    }

    #[test]
    fn null_reads_as_nothing() {
        let object: GlobalEgressIP = serde_json::from_value(json!({
            "apiVersion": "submariner.io/v1", "kind": "GlobalEgressIP", "metadata": {"name": "a"},
            "spec": null, "status": {"conditions": null, "allocatedIPs": null},
        }))
        .unwrap();
        assert_eq!(object.spec, GlobalEgressIPSpec::default());
        assert_eq!(object.status, GlobalEgressIPStatus::default());
    }
}
