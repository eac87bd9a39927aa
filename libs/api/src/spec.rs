//! What clusters say about themselves: Cluster.spec and Endpoint.spec (Submariner chapter 2.1).
//!
//! Field names are Submariner's, mixed styles included. A field that is absent or null reads as its default; all but
//! the deprecated or optional ones are always written, because the older generation's schema requires them.
//! The field comments become the descriptions in the generated CRDs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::lenient::null_as_default;

/// A cluster's id and address ranges.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["cluster_cidr", "cluster_id", "global_cidr", "service_cidr"]))]
pub struct ClusterSpec {
    /// The cluster's id: a DNS label, unique in the clusterset.
    #[serde(deserialize_with = "null_as_default")]
    #[schemars(length(min = 1, max = 63))]
    pub cluster_id: String,
    /// Not used; Submariner always writes "blue".
    #[serde(deserialize_with = "null_as_default")]
    pub color_codes: Vec<String>,
    /// Service CIDRs.
    #[serde(deserialize_with = "null_as_default")]
    pub service_cidr: Vec<String>,
    /// Pod CIDRs.
    #[serde(deserialize_with = "null_as_default")]
    pub cluster_cidr: Vec<String>,
    /// Globalnet CIDRs; empty without Globalnet.
    #[serde(deserialize_with = "null_as_default")]
    pub global_cidr: Vec<String>,
}

/// A gateway, how it is reached, and the subnets behind it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["backend", "cable_name", "cluster_id", "hostname", "nat_enabled", "subnets"]))]
pub struct EndpointSpec {
    /// The id of the gateway's cluster.
    #[serde(deserialize_with = "null_as_default")]
    #[schemars(length(min = 1, max = 63))]
    pub cluster_id: String,
    /// The gateway's name in the clusterset: submariner-cable-, the cluster id, and the private address with dashes.
    #[serde(deserialize_with = "null_as_default")]
    pub cable_name: String,
    /// The host name of the gateway node.
    #[serde(deserialize_with = "null_as_default")]
    pub hostname: String,
    /// The CIDRs that are reached through the gateway.
    #[serde(deserialize_with = "null_as_default")]
    pub subnets: Vec<String>,
    /// Deprecated: the IPv4 entry of privateIPs.
    #[serde(deserialize_with = "null_as_default")]
    pub private_ip: String,
    /// Deprecated: the IPv4 entry of publicIPs.
    #[serde(deserialize_with = "null_as_default")]
    pub public_ip: String,
    /// The gateway's addresses in its own network, one of each family.
    #[serde(rename = "privateIPs", deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub private_ips: Vec<String>,
    /// The gateway's addresses as seen from outside its network, one of each family.
    #[serde(rename = "publicIPs", deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub public_ips: Vec<String>,
    /// Deprecated: the IPv4 entry of healthCheckIPs.
    #[serde(rename = "healthCheckIP", deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub health_check_ip: String,
    /// Addresses that answer to echo requests through the cable, one of each family.
    #[serde(rename = "healthCheckIPs", deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub health_check_ips: Vec<String>,
    /// Whether the gateway may sit behind NAT.
    #[serde(deserialize_with = "null_as_default")]
    pub nat_enabled: bool,
    /// The cable driver: wireguard, vxlan or libreswan.
    #[serde(deserialize_with = "null_as_default")]
    pub backend: String,
    /// Settings of the cable driver, such as udp-port and publicKey.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub backend_config: BTreeMap<String, String>,
}
