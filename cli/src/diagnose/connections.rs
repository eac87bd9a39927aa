//! Decides for each other cluster whether it is connected, or the one cause why not.
//!
//! What would explain everything comes first: a gateway that does not run has no cables, whatever its record says. Then the
//! broker, by which clusters learn of each other; then each cluster's cable; then the ways from the nodes to the gateway.

use std::collections::BTreeSet;

use culvert_api::{Cluster, Connection, ConnectionStatus, Endpoint, EndpointSpec, Gateway, HaStatus, Record};
use culvert_api::{backend_config, labels, object_name, ports};
use culvert_setup::manifests::GATEWAY;
use culvert_setup::{BrokerSeen, BrokerState, claims, conflicts_of};
use jiff::Timestamp;

use super::deployment::gateway_cannot_run;
use super::{Cause, Check, ago, see_log};
use crate::snapshot::Snapshot;
use crate::view::{node, silence, written};

/// How the message of a cable begins that was not heard through yet.
const WAITING: &str = "waiting for the first answer";

/// Returns what is found: of the gateway, of the broker, and of each other cluster.
pub(super) fn checks(snapshot: &Snapshot, now: Timestamp) -> Vec<Check> {
    let gateway = active_gateway(snapshot, now);
    let mut checks = vec![gateway_check(&gateway, now)];
    checks.extend(
        snapshot.broker.as_ref().map(|broker| broker_check(snapshot, broker, gateway.as_ref().ok().copied(), now)),
    );
    let clusters = remote_clusters(snapshot);
    if clusters.is_empty() {
        checks.push(Check::ok("Other clusters", "none is known here: there is nothing to connect"));
    }
    for cluster in clusters {
        let subject = format!("Cluster {cluster}");
        checks.push(match &gateway {
            Ok(gateway) => cluster_check(snapshot, gateway, &cluster),
            Err(_) => {
                Check::failed(subject, Cause::new("not connected, since this cluster has no gateway", "see above"))
            }
        });
    }
    checks
}

fn gateway_check(gateway: &Result<&Gateway, Cause>, now: Timestamp) -> Check {
    match gateway {
        Err(cause) => Check::failed("Gateway", cause.clone()),
        Ok(gateway) if !gateway.status.status_failure.is_empty() => Check::failed(
            format!("Gateway {}", node(gateway)),
            Cause::new(gateway.status.status_failure.clone(), see_log(GATEWAY)),
        ),
        Ok(gateway) => {
            let age = written(gateway).map(|then| ago(then, now)).unwrap_or_default();
            Check::ok(format!("Gateway {}", node(gateway)), format!("active, heard of {age} ago"))
        }
    }
}

/// Returns the gateway that holds the cables now, or why there is none.
fn active_gateway(snapshot: &Snapshot, now: Timestamp) -> Result<&Gateway, Cause> {
    let runs = |gateway: &&Gateway| match &snapshot.survey {
        // Its record lives longer than a gateway that was killed.
        Some(survey) => survey.pods.iter().any(|pod| {
            pod["metadata"]["labels"]["app"] == GATEWAY
                && pod["metadata"]["deletionTimestamp"].is_null()
                && pod["spec"]["nodeName"].as_str().is_some_and(|name| object_name(name) == gateway.name())
                && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
        }),
        None => true,
    };
    let heard: Vec<&Gateway> = snapshot.gateways.iter().filter(|gateway| silence(gateway, now).is_none()).collect();
    let active = heard.iter().filter(|gateway| gateway.status.ha_status == HaStatus::Active).copied().filter(runs);
    if let Some(active) = active.max_by_key(|gateway| written(gateway)) {
        return Ok(active);
    }
    if let Some(cause) = snapshot.survey.as_ref().and_then(gateway_cannot_run) {
        return Err(cause);
    }
    let latest = snapshot.gateways.iter().max_by_key(|gateway| written(gateway));
    Err(match (heard.as_slice(), latest) {
        ([], None) => Cause::new("no gateway of this cluster has reported yet", see_log(GATEWAY)),
        ([], Some(silent)) => {
            let since = match written(silent) {
                Some(then) => format!("its status is {} old, do not trust it", ago(then, now)),
                None => "its status does not say how old it is, do not trust it".to_owned(),
            };
            Cause::new(
                format!("{} is not heard of: {since}", node(silent)),
                format!("see that its node runs and reaches this cluster's records; {}", see_log(GATEWAY)),
            )
        }
        ([first, ..], _) => {
            let names = heard.iter().map(|gateway| node(gateway)).collect::<Vec<_>>().join(", ");
            let failure = &first.status.status_failure;
            match failure.is_empty() {
                true => Cause::new(format!("no gateway is active; standing by: {names}"), see_log(GATEWAY)),
                false => Cause::new(format!("no gateway is active; {} says: {failure}", node(first)), see_log(GATEWAY)),
            }
        }
    })
}

fn broker_check(snapshot: &Snapshot, broker: &BrokerSeen, gateway: Option<&Gateway>, now: Timestamp) -> Check {
    let subject = format!("Broker {}", broker.url);
    let again = "run `culvert join` again with a broker file that holds";
    let (clusters, endpoints) = match &broker.state {
        BrokerState::NoCredentials => {
            return Check::failed(subject, Cause::new("this cluster has no token for it", again));
        }
        BrokerState::Refused(reason) => {
            let cause = match broker.expires.filter(|expires| *expires <= now) {
                Some(expires) => format!("this cluster's token has expired {} ago", ago(expires, now)),
                None => format!("it refuses this cluster: {reason}"),
            };
            return Check::failed(subject, Cause::new(cause, again));
        }
        BrokerState::Unreachable(reason) => {
            let told = gateway.is_some_and(|gateway| gateway.status.status_failure.contains("broker"));
            let cause = Cause::new(
                format!("not seen from here: {reason}"),
                match told {
                    true => "the gateway does not see it either, as it says above",
                    false => "the gateway says nothing against it; run this where it can be reached to see more",
                },
            );
            return Check::warning(subject, cause);
        }
        BrokerState::Seen { clusters, endpoints } => (clusters, endpoints),
    };
    let own = snapshot.own_ids();
    let announced = endpoints.iter().filter(|endpoint| own.contains(endpoint.spec.cluster_id.as_str()));
    let announced: Vec<&Endpoint> = announced.collect();
    let present = gateway.map(|gateway| &gateway.status.local_endpoint);
    match (announced.as_slice(), present) {
        ([], _) => Check::failed(
            subject,
            Cause::new("this cluster's Endpoint is not there, so no other cluster knows its gateway", see_log(GATEWAY)),
        ),
        (announced, Some(present)) if !announced.iter().any(|one| same_gateway(&one.spec, present)) => Check::failed(
            subject,
            Cause::new(
                "it has an older Endpoint of this cluster, so others look for a former gateway",
                see_log(GATEWAY),
            ),
        ),
        _ => Check::ok(subject, format!("answers; {} clusters in its set", clusters.len())),
    }
}

fn same_gateway(one: &EndpointSpec, other: &EndpointSpec) -> bool {
    let key = |spec: &EndpointSpec| spec.backend_config.get(backend_config::PUBLIC_KEY).cloned();
    one.cable_name == other.cable_name && key(one) == key(other)
}

/// Returns the ids of all other clusters that anything tells of, but for those that left.
fn remote_clusters(snapshot: &Snapshot) -> BTreeSet<String> {
    let own = snapshot.own_ids();
    let departed = |cluster: &&Cluster| {
        cluster.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(labels::DEPARTED))
    };
    let gone: BTreeSet<&str> =
        snapshot.clusters.iter().filter(departed).map(|one| one.spec.cluster_id.as_str()).collect();
    let broker = at_broker(snapshot);
    let endpoints = snapshot.endpoints.iter().chain(broker.map_or(&[][..], |(_, endpoints)| endpoints));
    let clusters = snapshot.clusters.iter().filter(|cluster| !departed(cluster));
    let clusters = clusters.chain(broker.map_or(&[][..], |(clusters, _)| clusters));
    let known = endpoints.filter(|one| !snapshot.is_own(*one, &one.spec.cluster_id)).map(|one| &one.spec.cluster_id);
    let members = clusters.filter(|one| !snapshot.is_own(*one, &one.spec.cluster_id)).map(|one| &one.spec.cluster_id);
    let connected = snapshot.gateways.iter().flat_map(|gateway| &gateway.status.connections);
    let connected = connected.map(|one| &one.endpoint.cluster_id).filter(|id| !gone.contains(id.as_str()));
    known.chain(members).chain(connected).filter(|id| !id.is_empty() && !own.contains(id.as_str())).cloned().collect()
}

fn at_broker(snapshot: &Snapshot) -> Option<(&[Cluster], &[Endpoint])> {
    match snapshot.broker.as_ref().map(|broker| &broker.state) {
        Some(BrokerState::Seen { clusters, endpoints }) => Some((clusters, endpoints)),
        _ => None,
    }
}

fn cluster_check(snapshot: &Snapshot, gateway: &Gateway, cluster: &str) -> Check {
    let subject = format!("Cluster {cluster}");
    let found = gateway.status.connections.iter().find(|one| one.endpoint.cluster_id == cluster);
    let Some(connection) = found else { return Check::failed(subject, no_cable(snapshot, gateway, cluster)) };
    if connection.status != ConnectionStatus::Connected {
        return Check::failed(subject, no_connection(connection, &gateway.status.local_endpoint));
    }
    // Submariner counts bytes in the message.
    let message = match connection.status_message.split_once("; ") {
        // What is not carried outlasts the wait.
        Some((first, refused)) if first.starts_with(WAITING) => refused,
        _ => connection.status_message.as_str(),
    };
    if let Some(cause) = nodes_cut_off(snapshot, gateway, cluster) {
        return Check::failed(subject, cause);
    }
    if message.starts_with(WAITING) {
        return Check::warning(subject, Cause::new(format!("connected, but {message}"), "ask again in some seconds"));
    }
    if !message.is_empty() && !message.starts_with("Rx=") {
        let Cause { message, way_out } = told(message);
        return Check::failed(subject, Cause::new(format!("connected, but not for all subnets: {message}"), way_out));
    }
    let driver = &connection.endpoint.backend;
    let times = connection.latency_rtt.as_ref().map(|times| format!(", {} there and back", times.average));
    Check::ok(subject, format!("connected by {driver}, via {}{}", connection.using_ip, times.unwrap_or_default()))
}

/// Returns why the gateway has no cable to a cluster: how far its records have come.
fn no_cable(snapshot: &Snapshot, gateway: &Gateway, cluster: &str) -> Cause {
    let broker = at_broker(snapshot);
    let all = snapshot.clusters.iter().chain(broker.map_or(&[][..], |(clusters, _)| clusters));
    let theirs: Vec<Cluster> = all.filter(|one| one.spec.cluster_id == cluster).cloned().collect();
    let own = snapshot.clusters.iter().find(|one| snapshot.is_own(*one, &one.spec.cluster_id));
    let overlap = own.and_then(|own| conflicts_of(own.name(), &claims(&own.spec), &theirs).into_iter().next());
    if let Some(overlap) = overlap {
        return told(&overlap.to_string());
    }
    let here = snapshot.endpoints.iter().any(|one| one.spec.cluster_id == cluster);
    let there = broker.is_some_and(|(_, endpoints)| endpoints.iter().any(|one| one.spec.cluster_id == cluster));
    let refused = gateway.status.status_failure.split("; ").find(|one| {
        one.split(|character: char| !(character.is_alphanumeric() || character == '-')).any(|word| word == cluster)
    });
    match (here, there, refused) {
        (_, _, Some(refused)) => Cause::new(refused, format!("correct that in cluster {cluster}")),
        (true, _, None) => Cause::new("the gateway does not use its Endpoint", see_log(GATEWAY)),
        (false, true, None) => Cause::new("its Endpoint is at the broker, but has not come here", see_log(GATEWAY)),
        (false, false, None) => Cause::new(
            "it has announced no gateway",
            format!(
                "run `culvert diagnose all` in cluster {cluster}: its gateway does not run, or not reach the broker"
            ),
        ),
    }
}

/// Returns why a cable does not connect, from what the gateway says of it.
fn no_connection(connection: &Connection, own: &EndpointSpec) -> Cause {
    let message = connection.status_message.as_str();
    let cluster = &connection.endpoint.cluster_id;
    let silent = ["no handshake", "the handshake is not renewed", "nothing has come"];
    if let Some(found) = silent.iter().find(|start| message.starts_with(**start)) {
        let (theirs, ours) = (way_to(&connection.endpoint), way_to(own));
        let what = match *found {
            "no handshake" => format!("no packet of its gateway has come yet from {theirs}"),
            _ => format!("no packet of its gateway comes any more from {theirs}"),
        };
        return Cause::new(
            what,
            format!(
                "UDP must reach {theirs} from here, or {ours} from there: open that in the firewall before that gateway, \
                 see that the gateway of {cluster} runs, and that both joined with the same broker file"
            ),
        );
    }
    if message.contains("does not answer to echo requests") {
        return Cause::new(
            format!("the cable stands, but {message}"),
            format!("see that {cluster}'s gateway node has that address, and that no firewall there drops ICMP"),
        );
    }
    match (connection.status, message) {
        (ConnectionStatus::Connecting, _) => Cause::new(
            format!("connecting, {}", if message.is_empty() { "no reason is given" } else { message }),
            "ask again in half a minute",
        ),
        (_, "") => Cause::new(format!("{}, and the gateway gives no reason", connection.status), see_log(GATEWAY)),
        (_, message) => told(message),
    }
}

/// Returns the addresses and the port at which a gateway is looked for, such as `192.0.2.1:4500`.
fn way_to(spec: &EndpointSpec) -> String {
    let private = if spec.private_ips.is_empty() { std::slice::from_ref(&spec.private_ip) } else { &spec.private_ips };
    let public = if spec.public_ips.is_empty() { std::slice::from_ref(&spec.public_ip) } else { &spec.public_ips };
    let port = spec.backend_config.get(backend_config::UDP_PORT).cloned().unwrap_or_else(|| ports::CABLE.to_string());
    let mut ways: Vec<String> = Vec::new();
    for address in private.iter().chain(public).filter(|address| !address.is_empty()) {
        let way = if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    if ways.is_empty() { format!("any address, port {port}") } else { ways.join(" or ") }
}

/// Returns which nodes do not reach a cluster that the gateway reaches.
fn nodes_cut_off(snapshot: &Snapshot, gateway: &Gateway, cluster: &str) -> Option<Cause> {
    let cut_off = snapshot.present_agents().filter_map(|agent| {
        let mut ways = agent.status.remote_endpoints.iter();
        ways.find(|way| way.spec.cluster_id == cluster && way.status == ConnectionStatus::Error)
            .map(|way| (agent.name(), way.status_message.as_str()))
    });
    let cut_off: Vec<(&str, &str)> = cut_off.collect();
    let (_, reason) = cut_off.first()?;
    let nodes = cut_off.iter().map(|(node, _)| *node).collect::<Vec<_>>().join(", ");
    Some(Cause::new(
        format!("connected, but not from {nodes}: {reason}"),
        format!("UDP 4800 must pass between these nodes and the gateway {}", node(gateway)),
    ))
}

/// Splits what a daemon or an error says, `cause: way out`.
fn told(text: &str) -> Cause {
    match text.split_once(": ") {
        Some((cause, way_out)) => Cause::new(cause, way_out),
        None => Cause::new(text, see_log(GATEWAY)),
    }
}
