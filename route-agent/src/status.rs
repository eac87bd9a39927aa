//! Decides what the node's RouteAgent record says, and when it is written again (Submariner chapter 7.9).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use culvert_api::{
    ConnectionStatus, Endpoint, EndpointSpec, LatencyRtt, ObjectMeta, RemoteEndpoint, RouteAgent, RouteAgentStatus,
    endpoint_record, labels, object_name,
};
use culvert_model::{Addresses, clipped};
use culvert_route_agent_core::{NoProbe, ProbeState, RoundTrip};

use crate::config::Config;
use crate::known::usable;

/// How long a record stays as it is when only round-trip times change.
pub(crate) const REFRESH: Duration = Duration::from_secs(60);

/// Of all obstacles together, and of a name in a record that cannot be used, in bytes: a record takes 1 MiB.
const MAX_OBSTACLES: usize = 8192;
const MAX_NAME: usize = 253;

/// State and round-trip times of each probe, by cable name.
pub(crate) type ProbeStates = BTreeMap<String, (ProbeState, Option<RoundTrip>)>;

/// Returns the name of this node's record.
pub(crate) fn record_name(config: &Config) -> String {
    object_name(&config.node)
}

/// What a record tells.
pub(crate) struct Report<'a> {
    pub(crate) config: &'a Config,
    pub(crate) address: Addresses,
    /// All that is not as it should be, in words.
    pub(crate) obstacles: &'a BTreeSet<String>,
    pub(crate) endpoints: &'a BTreeMap<String, Endpoint>,
    pub(crate) targets: &'a BTreeMap<String, Result<IpAddr, NoProbe>>,
    pub(crate) probes: &'a ProbeStates,
}

impl Report<'_> {
    /// Returns the record; `found` is the one that is there.
    pub(crate) fn record(&self, found: Option<&RouteAgent>) -> RouteAgent {
        let own = self.config.cluster.as_str();
        let remote = self.endpoints.values().filter(|endpoint| endpoint.spec.cluster_id != own);
        let status = RouteAgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            status_failure: clipped(
                &self.obstacles.iter().map(String::as_str).collect::<Vec<_>>().join("; "),
                MAX_OBSTACLES,
            ),
            remote_endpoints: remote.map(|endpoint| self.remote_endpoint(endpoint)).collect(),
        };
        let mut record = RouteAgent::new(&record_name(self.config), status);
        if let Some(found) = found {
            record.metadata = ObjectMeta { name: record.metadata.name, ..found.metadata.clone() };
        }
        let addresses: Vec<String> = self.address.iter().map(|address| address.to_string()).collect();
        let annotations = record.metadata.annotations.get_or_insert_default();
        annotations.insert(labels::NODE_ADDRESSES.to_owned(), addresses.join(","));
        record
    }

    fn remote_endpoint(&self, endpoint: &Endpoint) -> RemoteEndpoint {
        let name = &endpoint.spec.cable_name;
        let probe = self.probes.get(name);
        let (status, status_message) = match (self.targets.get(name), probe.map(|(state, _)| state)) {
            (None, _) => (ConnectionStatus::Error, "the record cannot be used, see statusFailure".to_owned()),
            (Some(Err(reason)), _) => (ConnectionStatus::None, reason.to_string()),
            (Some(Ok(_)), None | Some(ProbeState::Connecting)) => (ConnectionStatus::Connecting, String::new()),
            (Some(Ok(_)), Some(ProbeState::Connected)) => (ConnectionStatus::Connected, String::new()),
            (Some(Ok(address)), Some(ProbeState::Error)) => {
                (ConnectionStatus::Error, format!("{address} does not answer echo requests"))
            }
        };
        let latency_rtt = probe.and_then(|(_, times)| *times).map(latency);
        RemoteEndpoint { status, status_message, spec: shown(endpoint), latency_rtt }
    }
}

/// Returns what is shown of an Endpoint: what is understood of it, or whose it is.
fn shown(endpoint: &Endpoint) -> EndpointSpec {
    usable(endpoint).map(|endpoint| endpoint_record(&endpoint).spec).unwrap_or_else(|_| EndpointSpec {
        cluster_id: clipped(&endpoint.spec.cluster_id, MAX_NAME),
        cable_name: clipped(&endpoint.spec.cable_name, MAX_NAME),
        ..EndpointSpec::default()
    })
}

/// Tells whether two records differ in nothing but round-trip times.
pub(crate) fn same_but_times(a: &RouteAgent, b: &RouteAgent) -> bool {
    let timeless = |record: &RouteAgent| {
        let mut record = record.clone();
        for endpoint in &mut record.status.remote_endpoints {
            endpoint.latency_rtt = None;
        }
        record
    };
    timeless(a) == timeless(b)
}

fn latency(times: RoundTrip) -> LatencyRtt {
    LatencyRtt::from_durations(times.last, times.min, times.average, times.max, times.deviation)
}

#[cfg(test)]
mod tests {
    use culvert_api::Record;

    use super::*;

    fn config() -> Config {
        Config {
            cluster: "east".parse().unwrap(),
            pods: vec!["10.1.0.0/16".parse().unwrap()],
            services: Vec::new(),
            global: Vec::new(),
            records: "/r".into(),
            node: "Worker_1".to_owned(),
            address: None,
            probe: None,
            calico: false,
        }
    }

    fn endpoint(cluster: &str) -> (String, Endpoint) {
        let cable_name = format!("cable-{cluster}");
        let spec = EndpointSpec { cluster_id: cluster.to_owned(), cable_name, ..EndpointSpec::default() };
        (cluster.to_owned(), Endpoint::new(cluster, spec))
    }

    fn record(
        target: Option<Result<IpAddr, NoProbe>>,
        probe: Option<(ProbeState, Option<RoundTrip>)>,
        found: Option<&RouteAgent>,
    ) -> RouteAgent {
        let targets = target.map(|target| ("cable-west".to_owned(), target)).into_iter().collect();
        let probes = probe.map(|probe| ("cable-west".to_owned(), probe)).into_iter().collect();
        let report = Report {
            config: &config(),
            address: ["192.168.1.20", "fd00::20"].iter().map(|text| text.parse::<IpAddr>().unwrap()).collect(),
            obstacles: &BTreeSet::from(["first".to_owned(), "second".to_owned()]),
            endpoints: &BTreeMap::from([endpoint("east"), endpoint("west")]),
            targets: &targets,
            probes: &probes,
        };
        report.record(found)
    }

    fn times(milliseconds: u64) -> RoundTrip {
        let time = Duration::from_millis(milliseconds);
        RoundTrip { last: time, min: time, average: time, max: time, deviation: Duration::ZERO }
    }

    #[test]
    fn a_record_names_the_node_its_addresses_and_its_obstacles() {
        let record = record(None, None, None);

        assert_eq!(record.name(), "worker-1");
        assert_eq!(record.metadata.annotations.unwrap()[labels::NODE_ADDRESSES], "192.168.1.20,fd00::20");
        assert_eq!(record.status.status_failure, "first; second");
    }

    #[test]
    fn remote_endpoints_tell_how_they_are_reached() {
        let address: IpAddr = "10.2.0.1".parse().unwrap();
        let answered = Some(times(3));
        for (target, probe, status, message, timed) in [
            (None, None, ConnectionStatus::Error, "the record cannot be used, see statusFailure", false),
            (
                Some(Err(NoProbe::NoAddress)),
                None,
                ConnectionStatus::None,
                "the endpoint has no health check address",
                false,
            ),
            (Some(Ok(address)), None, ConnectionStatus::Connecting, "", false),
            (Some(Ok(address)), Some((ProbeState::Connected, answered)), ConnectionStatus::Connected, "", true),
            (
                Some(Ok(address)),
                Some((ProbeState::Error, answered)),
                ConnectionStatus::Error,
                "10.2.0.1 does not answer echo requests",
                true,
            ),
        ] {
            let record = record(target, probe, None);

            let [remote] = &record.status.remote_endpoints[..] else { panic!("one remote endpoint: {record:?}") };
            assert_eq!((remote.status, remote.status_message.as_str()), (status, message));
            assert_eq!(remote.latency_rtt.is_some(), timed, "{message}");
            assert_eq!(remote.spec.cluster_id, "west");
        }
    }

    #[test]
    fn what_others_wrote_in_the_metadata_stays() {
        let mut found = RouteAgent::new("worker-1", RouteAgentStatus::default());
        found.metadata.resource_version = Some("7".to_owned());
        found.metadata.annotations = Some(BTreeMap::from([("theirs".to_owned(), "yes".to_owned())]));

        let metadata = record(None, None, Some(&found)).metadata;

        assert_eq!(metadata.resource_version, found.metadata.resource_version);
        assert_eq!(metadata.annotations.unwrap().len(), 2);
    }

    #[test]
    fn an_endpoint_of_an_absurd_size_does_not_swell_the_record() {
        let (name, mut north) = endpoint("north");
        north.spec.backend_config.insert("x".to_owned(), "x".repeat(1 << 20));
        let report = Report {
            config: &config(),
            address: Addresses::default(),
            obstacles: &BTreeSet::from(["x".repeat(1 << 20)]),
            endpoints: &BTreeMap::from([(name, north)]),
            targets: &BTreeMap::new(),
            probes: &ProbeStates::new(),
        };

        let status = report.record(None).status;

        assert!(status.status_failure.len() < 10_000);
        assert_eq!(status.remote_endpoints[0].spec.backend_config, BTreeMap::new());
        assert_eq!(status.remote_endpoints[0].spec.cluster_id, "north");
    }

    #[test]
    fn round_trip_times_alone_make_no_difference() {
        let target = Some(Ok("10.2.0.1".parse().unwrap()));
        let fast = record(target, Some((ProbeState::Connected, Some(times(1)))), None);
        let slow = record(target, Some((ProbeState::Connected, Some(times(9)))), None);
        let down = record(target, Some((ProbeState::Error, Some(times(9)))), None);

        assert_ne!(fast, slow);
        assert!(same_but_times(&fast, &slow));
        assert!(!same_but_times(&slow, &down));
    }
}
