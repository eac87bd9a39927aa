//! Says in the Gateway record what the gateway knows: at once when something changes, with many cables after a while, and
//! from time to time otherwise.

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
use culvert_runtime::reconcile::Restraint;
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

/// What of the Gateway record was written, and when the next is.
#[derive(Debug, Default)]
pub(crate) struct Published {
    status: Option<GatewayStatus>,
    restraint: Restraint,
}

impl Published {
    /// Tells whether `status` is to be written now; who is the active gateway never waits.
    pub(crate) fn is_due(&mut self, status: &GatewayStatus, now: Instant) -> bool {
        let (is_news, is_urgent) = match &self.status {
            Some(written) => (differs(written, status), written.ha_status != status.ha_status),
            None => (true, true),
        };
        !self.restraint.holds_back(is_news && !is_urgent, now) && is_news
    }

    /// Takes what was written.
    pub(crate) fn handle_written(&mut self, status: GatewayStatus, now: Instant) {
        self.restraint.handle_written(status.connections.len(), now);
        self.status = Some(status);
    }

    /// Has the next status written, whatever it says.
    pub(crate) fn forget(&mut self) {
        self.status = None;
    }

    /// Returns when the record is to catch up with what is known.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.restraint.poll_timeout()
    }
}

/// Tells whether two statuses differ in more than round-trip times, which change all the time; the first one is news.
fn differs(old: &GatewayStatus, new: &GatewayStatus) -> bool {
    let strip = |status: &GatewayStatus| {
        let mut status = status.clone();
        for connection in &mut status.connections {
            connection.latency_rtt = connection.latency_rtt.take().map(|_| LatencyRtt::default());
        }
        status
    };
    strip(old) != strip(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(connections: usize, failure: &str) -> GatewayStatus {
        let endpoint = culvert_api::EndpointSpec::default();
        let connection = Connection {
            status: ConnectionStatus::Connecting,
            status_message: String::new(),
            endpoint,
            using_ip: String::new(),
            using_nat: false,
            latency_rtt: None,
        };
        GatewayStatus {
            version: VERSION.to_owned(),
            ha_status: HaStatus::Active,
            local_endpoint: culvert_api::EndpointSpec::default(),
            status_failure: failure.to_owned(),
            connections: vec![connection; connections],
        }
    }

    fn written(status: &GatewayStatus, now: Instant) -> Published {
        let mut published = Published::default();
        assert!(published.is_due(status, now));
        published.handle_written(status.clone(), now);
        published
    }

    #[test]
    fn what_changes_nothing_is_not_written_until_it_is_asked_for() {
        let start = Instant::now();
        let mut published = written(&status(2, ""), start);
        let later = start + Duration::from_secs(3);
        assert!(!published.is_due(&status(2, ""), later));
        published.forget();
        assert!(published.is_due(&status(2, ""), later));
    }

    #[test]
    fn of_round_trip_times_only_the_first_is_news() {
        let start = Instant::now();
        let mut published = written(&status(1, ""), start);
        let measured = |milliseconds| {
            let mut status = status(1, "");
            let time = Duration::from_millis(milliseconds);
            status.connections[0].latency_rtt =
                Some(LatencyRtt::from_durations(time, time, time, time, Duration::ZERO));
            status
        };
        let later = start + Duration::from_secs(3);
        assert!(published.is_due(&measured(1), later));
        published.handle_written(measured(1), later);
        assert!(!published.is_due(&measured(2), later + Duration::from_secs(3)));
    }

    #[test]
    fn news_of_many_cables_wait_for_a_while_and_are_not_forgotten() {
        let start = Instant::now();
        let mut published = written(&status(1000, ""), start);
        let soon = start + Duration::from_millis(100);
        assert!(!published.is_due(&status(999, ""), soon));
        let then = published.poll_timeout().unwrap();
        assert!(published.is_due(&status(999, ""), then));
        published.handle_written(status(999, ""), then);
        assert_eq!(published.poll_timeout(), None);
    }

    #[test]
    fn news_that_are_over_before_they_are_written_leave_nothing_to_do() {
        let start = Instant::now();
        let mut published = written(&status(1000, ""), start);
        let soon = start + Duration::from_millis(100);
        assert!(!published.is_due(&status(1000, "away"), soon));
        assert!(!published.is_due(&status(1000, ""), soon));
        assert_eq!(published.poll_timeout(), None);
    }

    #[test]
    fn who_is_the_active_gateway_is_said_at_once() {
        let start = Instant::now();
        let mut published = written(&status(1000, ""), start);
        let standby = GatewayStatus { ha_status: HaStatus::Passive, ..status(1000, "") };
        assert!(published.is_due(&standby, start));
    }
}
