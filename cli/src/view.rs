//! Decides what is shown of the records: one row a connection, endpoint or gateway, with the columns of subctl.
//!
//! A Gateway record outlives a gateway that was killed. One that was not written for 45 s (it is written every 15 s;
//! Submariner chapter 3.5) says what was, not what is, and is shown as stale.

use std::time::Duration;

use culvert_api::{Connection, ConnectionStatus, EndpointSpec, Gateway, Record, labels};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::What;
use crate::deployed::{self, BrokerRow, NetworksView, VersionRow};
use crate::global_ips::GlobalIpRow;
use crate::snapshot::Snapshot;

const FRESH: Duration = culvert_api::gateway_record::STALE;

/// What was asked for, ready to be written as a table or as data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct View {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateways: Option<Vec<GatewayRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoints: Option<Vec<EndpointRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connections: Option<Vec<ConnectionRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) networks: Option<NetworksView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) versions: Option<Vec<VersionRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) brokers: Option<Vec<BrokerRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) global_ips: Option<Vec<GlobalIpRow>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayRow {
    pub(crate) node: String,
    pub(crate) ha_status: String,
    pub(crate) summary: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointRow {
    /// First, so that rows sort by it.
    #[serde(rename = "type")]
    pub(crate) place: Place,
    pub(crate) cluster: String,
    pub(crate) endpoint_ip: String,
    pub(crate) public_ip: String,
    pub(crate) cable_driver: String,
}

/// Whether an endpoint is of this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    Local,
    Remote,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectionRow {
    /// The remote gateway.
    pub(crate) gateway: String,
    pub(crate) cluster: String,
    pub(crate) remote_ip: String,
    pub(crate) nat: bool,
    pub(crate) cable_driver: String,
    pub(crate) subnets: Vec<String>,
    pub(crate) status: RowStatus,
    /// A Go duration, empty if not measured.
    pub(crate) rtt_average: String,
    /// Why it is not connected; empty if it is.
    pub(crate) reason: String,
    /// The gateway node of this cluster that reports it.
    pub(crate) reported_by: String,
}

/// How a connection is, as far as can be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RowStatus {
    Connected,
    Connecting,
    Error,
    None,
    Stale,
}

impl RowStatus {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connected => ConnectionStatus::Connected.as_str(),
            Self::Connecting => ConnectionStatus::Connecting.as_str(),
            Self::Error => ConnectionStatus::Error.as_str(),
            Self::None => ConnectionStatus::None.as_str(),
            Self::Stale => "stale",
        }
    }
}

impl From<ConnectionStatus> for RowStatus {
    fn from(status: ConnectionStatus) -> Self {
        match status {
            ConnectionStatus::Connected => Self::Connected,
            ConnectionStatus::Connecting => Self::Connecting,
            ConnectionStatus::Error => Self::Error,
            ConnectionStatus::None => Self::None,
        }
    }
}

impl View {
    /// Returns the rows that were asked for, as they are at `now`.
    pub(crate) fn of(snapshot: &Snapshot, asked: What, now: Timestamp) -> Self {
        let gateways = &snapshot.gateways;
        Self {
            gateways: asked
                .includes(What::Gateways)
                .then(|| gateways.iter().map(|gateway| gateway_row(gateway, now)).collect()),
            endpoints: asked.includes(What::Endpoints).then(|| endpoint_rows(snapshot)),
            connections: asked
                .includes(What::Connections)
                .then(|| gateways.iter().flat_map(|gateway| connection_rows(gateway, now)).collect()),
            networks: asked.includes(What::Networks).then(|| NetworksView::of(snapshot)),
            versions: asked.includes(What::Versions).then(|| deployed::versions(snapshot, now)),
            brokers: asked.includes(What::Brokers).then(|| deployed::brokers(snapshot)),
            global_ips: snapshot.global.as_ref().map(|global| global.rows(gateways)),
        }
    }
}

fn gateway_row(gateway: &Gateway, now: Timestamp) -> GatewayRow {
    let connections = &gateway.status.connections;
    let up = connections.iter().filter(|connection| connection.status == ConnectionStatus::Connected).count();
    let summary = match silence(gateway, now) {
        Some(silence) => format!("Stale: {silence}"),
        None if !gateway.status.status_failure.is_empty() => gateway.status.status_failure.clone(),
        None if connections.is_empty() => "There are no connections".to_owned(),
        None if up == connections.len() => format!("All connections ({up}) are established"),
        None => format!("{up} connections out of {} are established", connections.len()),
    };
    GatewayRow { node: node(gateway), ha_status: gateway.status.ha_status.to_string(), summary }
}

fn connection_rows(gateway: &Gateway, now: Timestamp) -> impl Iterator<Item = ConnectionRow> {
    let (silence, node) = (silence(gateway, now), node(gateway));
    gateway.status.connections.iter().map(move |connection| connection_row(connection, &node, silence.as_deref()))
}

fn connection_row(connection: &Connection, node: &str, silence: Option<&str>) -> ConnectionRow {
    let spec = &connection.endpoint;
    let recorded = connection.status;
    let (status, reason) = match silence {
        Some(silence) => (RowStatus::Stale, format!("gateway {node} is {silence}; the connection was {recorded} then")),
        // A cable that works may still not carry all that was announced. Submariner counts bytes here instead.
        None if recorded == ConnectionStatus::Connected && connection.status_message.starts_with("Rx=") => {
            (RowStatus::Connected, String::new())
        }
        None if recorded == ConnectionStatus::Connected => (RowStatus::Connected, connection.status_message.clone()),
        None if connection.status_message.is_empty() => (recorded.into(), "the gateway gives no reason".to_owned()),
        None => (recorded.into(), connection.status_message.clone()),
    };
    let known = [connection.using_ip.clone(), public_ip(spec), private_ip(spec)];
    ConnectionRow {
        gateway: spec.hostname.clone(),
        cluster: spec.cluster_id.clone(),
        remote_ip: known.into_iter().find(|address| !address.is_empty()).unwrap_or_default(),
        nat: connection.using_nat,
        cable_driver: spec.backend.clone(),
        subnets: spec.subnets.clone(),
        status,
        rtt_average: connection.latency_rtt.as_ref().map(|rtt| rtt.average.clone()).unwrap_or_default(),
        reason,
        reported_by: node.to_owned(),
    }
}

fn endpoint_rows(snapshot: &Snapshot) -> Vec<EndpointRow> {
    let mut rows: Vec<_> = snapshot
        .endpoints
        .iter()
        .map(|endpoint| EndpointRow {
            place: match snapshot.is_own(endpoint, &endpoint.spec.cluster_id) {
                true => Place::Local,
                false => Place::Remote,
            },
            cluster: endpoint.spec.cluster_id.clone(),
            endpoint_ip: private_ip(&endpoint.spec),
            public_ip: public_ip(&endpoint.spec),
            cable_driver: endpoint.spec.backend.clone(),
        })
        .collect();
    rows.sort();
    rows
}

/// Returns when a gateway wrote its record, if that says so.
pub(crate) fn written(gateway: &Gateway) -> Option<Timestamp> {
    let second = gateway.metadata.annotations.as_ref()?.get(labels::UPDATE_TIMESTAMP)?.parse().ok()?;
    Timestamp::from_second(second).ok()
}

/// Returns since when a gateway says nothing, in words; `None` if it is heard.
pub(crate) fn silence(gateway: &Gateway, now: Timestamp) -> Option<String> {
    let Some(written) = written(gateway) else {
        return Some("not reporting: its record says not when it was written".to_owned());
    };
    // A time in the future is from a clock that differs from ours.
    let stale = now.duration_since(written) > FRESH.try_into().expect("it is in range");
    stale.then(|| format!("not reporting since {written}"))
}

pub(crate) fn node(gateway: &Gateway) -> String {
    match gateway.status.local_endpoint.hostname.as_str() {
        "" => gateway.name().to_owned(),
        hostname => hostname.to_owned(),
    }
}

/// Returns the first address of the newer field, else the older one (Submariner chapter 1).
fn private_ip(spec: &EndpointSpec) -> String {
    spec.private_ips.first().unwrap_or(&spec.private_ip).clone()
}

fn public_ip(spec: &EndpointSpec) -> String {
    spec.public_ips.first().unwrap_or(&spec.public_ip).clone()
}
