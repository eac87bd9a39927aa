//! What is read of objects that are Kubernetes' and the Multi-Cluster Services API's.
//!
//! Of pods there are many and they are big: only the fields that are asked for are kept.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Condition;
use crate::lenient::null_as_default;

/// `Pod.spec`, as far as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// Whether the pod's addresses are the node's.
    #[serde(deserialize_with = "null_as_default")]
    pub host_network: bool,
}

/// `Pod.status`, as far as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    #[serde(deserialize_with = "null_as_default")]
    pub phase: String,
    /// The first of the addresses.
    #[serde(rename = "podIP", deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub pod_ip: String,
    /// All addresses, at most one of a family.
    #[serde(rename = "podIPs", deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub pod_ips: Vec<PodIp>,
}

/// An address of a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodIp {
    #[serde(deserialize_with = "null_as_default")]
    pub ip: String,
}

/// What of the exported service others see.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(extend("required" = []))]
pub struct ServiceExportSpec {
    /// Labels of the ServiceImport in other clusters.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_labels: BTreeMap<String, String>,
    /// Annotations of the ServiceImport in other clusters.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_annotations: BTreeMap<String, String>,
}

/// How the export stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(extend("required" = []))]
pub struct ServiceExportStatus {
    /// Valid, Ready and Conflict.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Pod, Record as _, ServiceExport};

    #[test]
    fn of_a_pod_only_what_is_asked_for_is_kept() {
        let pod: Pod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web-0", "namespace": "shop"},
            "spec": {"hostNetwork": true, "containers": [{"name": "web"}]},
            "status": {"phase": "Running", "podIP": "10.1.0.9", "podIPs": [{"ip": "10.1.0.9"}], "qosClass": "Burstable"},
        }))
        .unwrap();
        assert_eq!((Pod::API_VERSION, Pod::PLURAL), ("v1", "pods"));
        assert!(pod.spec.host_network);
        assert_eq!(
            serde_json::to_value(pod.status).unwrap(),
            json!({"phase": "Running", "podIP": "10.1.0.9", "podIPs": [{"ip": "10.1.0.9"}]})
        );
    }

    #[test]
    fn an_export_without_content_is_one_and_an_older_condition_is_read() {
        let export: ServiceExport = serde_json::from_value(json!({
            "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport", "metadata": {"name": "web"},
            "status": {"conditions": [{"type": "Valid", "status": "True", "lastTransitionTime": null}]},
        }))
        .unwrap();
        assert_eq!(export.api_version(), ServiceExport::API_VERSION);
        assert_eq!(export.status.conditions[0].type_, "Valid");
        let written = serde_json::to_value(ServiceExport::new("web", ServiceExportSpec::default())).unwrap();
        assert_eq!((written.get("spec"), written.get("status")), (Some(&json!({})), None));
    }
}
