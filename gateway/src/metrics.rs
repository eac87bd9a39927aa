//! Prometheus metrics by Submariner's names (chapter 4.11), and those that only Culvert has.
//!
//! Every update begins with an empty set of series, so that none outlives what it tells of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use culvert_api::ConnectionStatus;
use culvert_dataplane::Totals;
use culvert_gateway_core::cables::{Choice, ChosenCable};
use culvert_gateway_core::status::Status;
use culvert_model::{CableKind, CableName, CableReport, Endpoint};
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::publish::Statuses;

/// A connection, as Submariner labels it; the addresses are the public ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    cable_driver: String,
    local_cluster: String,
    local_hostname: String,
    local_endpoint_ip: String,
    remote_cluster: String,
    remote_hostname: String,
    remote_endpoint_ip: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    #[prometheus(flatten)]
    connection: Labels,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShortLabels {
    cable_driver: String,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabels {
    store: &'static str,
}

type Float = Gauge<f64, AtomicU64>;

/// All metrics of the gateway.
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    received: Family<Labels, Gauge>,
    sent: Family<Labels, Gauge>,
    connections: Family<StatusLabels, Gauge>,
    connections_short: Family<ShortLabels, Gauge>,
    established: Family<Labels, Gauge>,
    latency: Family<Labels, Float>,
    /// A gauge in form: a counter's name would end in `_total`, which Submariner's does not.
    sync_iterations: Gauge,
    dropped: Family<ReasonLabels, Gauge>,
    outage: Family<StoreLabels, Gauge>,
    /// When each cable came up, in seconds since 1970.
    up_since: Mutex<BTreeMap<CableName, i64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let metrics = Self {
            registry: Arc::default(),
            received: Family::default(),
            sent: Family::default(),
            connections: Family::default(),
            connections_short: Family::default(),
            established: Family::default(),
            latency: Family::default(),
            sync_iterations: Gauge::default(),
            dropped: Family::default(),
            outage: Family::default(),
            up_since: Mutex::default(),
        };
        registry.register("submariner_gateway_rx_bytes", "Bytes received through the cable", metrics.received.clone());
        registry.register("submariner_gateway_tx_bytes", "Bytes sent through the cable", metrics.sent.clone());
        registry.register("submariner_connections", "Connections and their status", metrics.connections.clone());
        registry.register(
            "submariner_connections_short",
            "Connections by cable driver and status",
            metrics.connections_short.clone(),
        );
        registry.register(
            "submariner_connection_established_timestamp",
            "When the connection came up, in seconds since 1970",
            metrics.established.clone(),
        );
        registry.register(
            "submariner_connection_latency_seconds",
            "Average round-trip time of health probes",
            metrics.latency.clone(),
        );
        registry.register(
            "submariner_gateway_sync_iterations",
            "Passes of the broker sync",
            metrics.sync_iterations.clone(),
        );
        registry.register(
            "culvert_gateway_dropped",
            "Packets and datagrams dropped, by reason",
            metrics.dropped.clone(),
        );
        registry.register(
            "culvert_gateway_records_outage",
            "1 while the API server with these records cannot be followed, else 0",
            metrics.outage.clone(),
        );
        Self { registry: Arc::new(registry), ..metrics }
    }
}

/// What an update rests on.
pub(crate) struct Update<'a> {
    pub(crate) own: &'a Endpoint,
    pub(crate) statuses: &'a Statuses<'a>,
    pub(crate) reports: &'a BTreeMap<CableName, CableReport>,
    pub(crate) totals: Totals,
    /// Packets by nft counter.
    pub(crate) kernel_drops: &'a BTreeMap<String, (u64, u64)>,
    /// Whether the cluster's own API server cannot be followed.
    pub(crate) cluster_is_away: bool,
    pub(crate) broker_is_away: bool,
    pub(crate) sync_passes: u64,
}

impl Metrics {
    pub(crate) fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.registry)
    }

    /// Shows what is known now, and nothing of what was.
    pub(crate) fn update(&self, update: &Update<'_>) {
        self.received.clear();
        self.sent.clear();
        self.connections.clear();
        self.connections_short.clear();
        self.established.clear();
        self.latency.clear();
        let mut up_since = self.up_since.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        up_since
            .retain(|name, _| update.statuses.get(name).is_some_and(|(_, status)| status.status == Status::Connected));
        for (&name, (choice, status)) in update.statuses {
            let labels = labels(update.own, choice);
            let word = word(status.status);
            self.connections
                .get_or_create(&StatusLabels { connection: labels.clone(), status: word.to_owned() })
                .set(1);
            let short = ShortLabels { cable_driver: labels.cable_driver.clone(), status: word.to_owned() };
            self.connections_short.get_or_create(&short).inc();
            if status.status == Status::Connected {
                let since = *up_since.entry(name.clone()).or_insert_with(|| Timestamp::now().as_second());
                self.established.get_or_create(&labels).set(since);
            }
            if let Some(average) = status.round_trips.as_ref().and_then(|trips| trips.average()) {
                self.latency.get_or_create(&labels).set(average.as_secs_f64());
            }
            if let Some(report) = update.reports.get(name) {
                self.received.get_or_create(&labels).set(signed(report.received_bytes));
                self.sent.get_or_create(&labels).set(signed(report.sent_bytes));
            }
        }
        self.update_dropped(update);
        for (store, is_away) in [("cluster", update.cluster_is_away), ("broker", update.broker_is_away)] {
            self.outage.get_or_create(&StoreLabels { store }).set(i64::from(is_away));
        }
        self.sync_iterations.set(signed(update.sync_passes));
    }

    fn update_dropped(&self, update: &Update<'_>) {
        let sum = |count: fn(&CableReport) -> u64| update.reports.values().map(count).sum::<u64>();
        let drops = [
            ("wireguard_source", sum(|report| report.dropped_source)),
            ("wireguard_destination", sum(|report| report.dropped_destination)),
            ("rejected_datagram", update.totals.rejected_datagrams),
            ("unroutable", update.totals.unroutable_packets),
            ("oversized", update.totals.oversized_packets),
            ("failed_write", update.totals.failed_writes),
            ("queue", update.totals.queue_drops),
        ];
        let kernel = update.kernel_drops.iter().map(|(name, (packets, _))| (name.as_str(), *packets));
        for (reason, count) in drops.into_iter().chain(kernel) {
            self.dropped.get_or_create(&ReasonLabels { reason: reason.to_owned() }).set(signed(count));
        }
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Connected => ConnectionStatus::Connected,
        Status::Connecting => ConnectionStatus::Connecting,
        Status::Error => ConnectionStatus::Error,
    }
    .as_str()
}

fn labels(own: &Endpoint, choice: &Choice) -> Labels {
    let remote = &choice.endpoint;
    let driver = match &choice.cable {
        ChosenCable::WireGuard(_) => CableKind::WireGuard.to_string(),
        ChosenCable::Vxlan(_) => CableKind::Vxlan.to_string(),
        ChosenCable::Refused(_) => own.backend.to_string(),
    };
    let public = |endpoint: &Endpoint| endpoint.public.iter().next().map(|a: IpAddr| a.to_string()).unwrap_or_default();
    Labels {
        cable_driver: driver,
        local_cluster: own.cluster.to_string(),
        local_hostname: own.hostname.clone(),
        local_endpoint_ip: public(own),
        remote_cluster: remote.cluster.to_string(),
        remote_hostname: remote.hostname.clone(),
        remote_endpoint_ip: public(remote),
    }
}
