//! What daemons report: Gateway.status and RouteAgent.status (Submariner chapter 2.1).
//!
//! A field that is absent or null reads as its default; a state that is not known is an error.
//! The field comments become the descriptions in the generated CRDs.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::lenient::null_as_default;
use crate::{EndpointSpec, go_duration};

/// Whether a gateway holds its cluster's cables or stands by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HaStatus {
    Active,
    #[default]
    Passive,
}

impl HaStatus {
    /// Returns the text as it stands in a record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
        }
    }
}

impl fmt::Display for HaStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionStatus {
    Connected,
    Connecting,
    Error,
    #[default]
    None,
}

impl ConnectionStatus {
    /// Returns the text as it stands in a record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Connecting => "connecting",
            Self::Error => "error",
            Self::None => "none",
        }
    }
}

impl fmt::Display for ConnectionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Round-trip times as Go durations, such as 1.234567ms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct LatencyRtt {
    /// The newest.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub last: String,
    /// The shortest.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub min: String,
    /// The mean.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub average: String,
    /// The longest.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub max: String,
    /// The standard deviation.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub std_dev: String,
}

impl LatencyRtt {
    /// Makes the texts of round-trip times.
    pub fn from_durations(last: Duration, min: Duration, average: Duration, max: Duration, std_dev: Duration) -> Self {
        Self {
            last: go_duration(last),
            min: go_duration(min),
            average: go_duration(average),
            max: go_duration(max),
            std_dev: go_duration(std_dev),
        }
    }
}

/// What a gateway is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayStatus {
    /// The gateway's version.
    #[serde(deserialize_with = "null_as_default")]
    pub version: String,
    /// Whether the gateway holds the cables or stands by.
    #[serde(deserialize_with = "null_as_default")]
    pub ha_status: HaStatus,
    /// This gateway as its cluster announces it.
    #[serde(deserialize_with = "null_as_default")]
    pub local_endpoint: EndpointSpec,
    /// What keeps the gateway from working; empty if nothing does.
    #[serde(deserialize_with = "null_as_default")]
    pub status_failure: String,
    /// One entry for each cable.
    #[serde(deserialize_with = "null_as_default")]
    pub connections: Vec<Connection>,
}

/// A cable to a gateway of another cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Connection {
    /// How the cable stands.
    #[serde(deserialize_with = "null_as_default")]
    pub status: ConnectionStatus,
    /// Why it stands so.
    #[serde(deserialize_with = "null_as_default")]
    pub status_message: String,
    /// The remote gateway.
    #[serde(deserialize_with = "null_as_default")]
    pub endpoint: EndpointSpec,
    /// The address that packets to the remote gateway go to.
    #[serde(rename = "usingIP", deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub using_ip: String,
    /// Whether NAT lies between the gateways.
    #[serde(rename = "usingNAT", deserialize_with = "null_as_default", skip_serializing_if = "is_false")]
    pub using_nat: bool,
    /// Round-trip times through the cable.
    #[serde(rename = "latencyRTT", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LatencyRtt")]
    pub latency_rtt: Option<LatencyRtt>,
}

/// What a node's route agent is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct RouteAgentStatus {
    /// The route agent's version.
    #[serde(deserialize_with = "null_as_default")]
    pub version: String,
    /// What keeps the route agent from working; empty if nothing does.
    #[serde(deserialize_with = "null_as_default")]
    pub status_failure: String,
    /// One entry for each gateway of another cluster.
    #[serde(deserialize_with = "null_as_default")]
    pub remote_endpoints: Vec<RemoteEndpoint>,
}

/// How another cluster's gateway is reached from a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct RemoteEndpoint {
    /// How the way there stands.
    #[serde(deserialize_with = "null_as_default")]
    pub status: ConnectionStatus,
    /// Why it stands so.
    #[serde(deserialize_with = "null_as_default")]
    pub status_message: String,
    /// The remote gateway.
    #[serde(deserialize_with = "null_as_default")]
    pub spec: EndpointSpec,
    /// Round-trip times from the node.
    #[serde(rename = "latencyRTT", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LatencyRtt")]
    pub latency_rtt: Option<LatencyRtt>,
}

fn is_false(value: &bool) -> bool {
    !value
}
