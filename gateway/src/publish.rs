//! Says in the Gateway record what the gateway knows: at once when something changes, every five seconds otherwise.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use culvert_api::{
    Connection, ConnectionStatus, Endpoint, Gateway, GatewayStatus, HaStatus, LatencyRtt, backend_config,
    endpoint_record, labels, object_name,
};
use culvert_gateway_core::cables::{Choice, Choices};
use culvert_gateway_core::health::RoundTrips;
use culvert_gateway_core::status::{self, Evidence, Status, connection_status};
use culvert_model::{CableName, CableReport, clipped};
use jiff::Timestamp;

use crate::leadership::Leadership;
use crate::prober::Healths;

/// The release that the record names.
const VERSION: &str = concat!("culvert-", env!("CARGO_PKG_VERSION"));

/// Of all complaints together, and of one connection's message, in bytes: a record takes 1 MiB.
const MAX_COMPLAINTS: usize = 8192;
const MAX_MESSAGE: usize = 1024;

/// What is known of all cables.
pub(crate) struct Knowledge<'a> {
    pub(crate) leadership: Leadership,
    pub(crate) own: &'a culvert_model::Endpoint,
    pub(crate) choices: &'a Choices,
    pub(crate) reports: &'a BTreeMap<CableName, CableReport>,
    /// `None` where health is not checked.
    pub(crate) healths: Option<&'a Healths>,
    /// Since when each cable is wanted.
    pub(crate) since: &'a BTreeMap<CableName, Instant>,
    pub(crate) complaints: &'a [String],
    pub(crate) now: Instant,
}

/// What is said about each cable.
pub(crate) type Statuses<'a> = BTreeMap<&'a CableName, (&'a Choice, status::ConnectionStatus)>;

impl<'a> Knowledge<'a> {
    pub(crate) fn statuses(&self) -> Statuses<'a> {
        let evidence = |name: &CableName| Evidence {
            age: self.since.get(name).map_or(Duration::ZERO, |&since| self.now.duration_since(since)),
            report: self.reports.get(name),
            health: self.healths.and_then(|healths| healths.get(name)).map(|(state, trips)| (state, trips)),
        };
        let choices = self.choices.0.iter();
        choices.map(|(name, choice)| (name, (choice, connection_status(choice, &evidence(name))))).collect()
    }

    /// Returns the status of the Gateway record.
    pub(crate) fn status(&self, statuses: &Statuses<'_>) -> GatewayStatus {
        GatewayStatus {
            version: VERSION.to_owned(),
            ha_status: match self.leadership {
                Leadership::Active => HaStatus::Active,
                Leadership::Standby | Leadership::Deposed => HaStatus::Passive,
            },
            local_endpoint: endpoint_record(self.own).spec,
            status_failure: clipped(&self.complaints.join("; "), MAX_COMPLAINTS),
            connections: statuses
                .iter()
                .map(|(name, (choice, status))| connection(choice, status, self.reports.get(*name)))
                .collect(),
        }
    }
}

fn connection(choice: &Choice, status: &status::ConnectionStatus, report: Option<&CableReport>) -> Connection {
    let mut endpoint: Endpoint = endpoint_record(&choice.endpoint);
    // Kept in this copy only, as Submariner keeps its own figures here (chapter 4.6).
    if let Some(remote) = report.and_then(|report| report.remote) {
        endpoint.spec.backend_config.insert(backend_config::USING_PORT.to_owned(), remote.port().to_string());
    }
    Connection {
        status: match status.status {
            Status::Connected => ConnectionStatus::Connected,
            Status::Connecting => ConnectionStatus::Connecting,
            Status::Error => ConnectionStatus::Error,
        },
        status_message: clipped(&status.message, MAX_MESSAGE),
        endpoint: endpoint.spec,
        using_ip: status.using_ip.map(|address| address.to_string()).unwrap_or_default(),
        using_nat: status.using_nat,
        latency_rtt: status.round_trips.as_ref().and_then(latency),
    }
}

fn latency(trips: &RoundTrips) -> Option<LatencyRtt> {
    Some(LatencyRtt::from_durations(
        trips.last()?,
        trips.min()?,
        trips.average()?,
        trips.max()?,
        trips.standard_deviation()?,
    ))
}

/// Returns the Gateway record with `status`, stamped with the time of day.
pub(crate) fn gateway_record(node: &str, status: GatewayStatus) -> Gateway {
    let mut record = Gateway::new(&object_name(node), status);
    let stamp = (labels::UPDATE_TIMESTAMP.to_owned(), Timestamp::now().as_second().to_string());
    record.metadata.annotations = Some(BTreeMap::from([stamp]));
    record
}

/// Tells whether two statuses differ in more than round-trip times, which change all the time.
pub(crate) fn differs(old: &GatewayStatus, new: &GatewayStatus) -> bool {
    let strip = |status: &GatewayStatus| {
        let mut status = status.clone();
        for connection in &mut status.connections {
            connection.latency_rtt = None;
        }
        status
    };
    strip(old) != strip(new)
}
