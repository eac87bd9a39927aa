//! What the daemons say of themselves: Gateway and RouteAgent records (Submariner's case D5), the lease (R5), metrics.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use culvert_netns_tests::{
    Deployment, Lab, NodePlan, Pinger, Role, Settings, Topology, metrics, records, set_flag, wait_for, write_record,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PROBE: Duration = Duration::from_millis(10);
const READY: Duration = Duration::from_secs(20);

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn gateway(deployment: &Deployment, name: &str) -> Value {
    let gateways = records(&deployment.lab.cluster("east").records(), "gateways").unwrap();
    gateways.into_iter().find(|gateway| gateway["metadata"]["name"] == name).unwrap_or_default()
}

fn written(gateway: &Value) -> u64 {
    gateway["metadata"]["annotations"]["update-timestamp"].as_str().unwrap().parse().unwrap()
}

/// D5, and that records of gateways that are gone do not stay.
#[test]
fn active_and_standby_gateways_report_and_stale_records_go() {
    let mut topology = Topology::east_west();
    topology.cluster_mut("east").nodes.push(NodePlan::worker("standby"));
    let mut deployment = Deployment::connected(&topology, Settings::default()).unwrap();
    deployment.start("east", "standby", Role::Gateway).unwrap();
    deployment.daemon("east", "standby", Role::Gateway).wait_ready(READY).unwrap();
    let ghost = gateway(&deployment, "east-gw").to_string().replace("east-gw", "east-ghost");
    let stamp = written(&gateway(&deployment, "east-gw")).to_string();
    let ghost = ghost.replace(&stamp, &(now() - 60).to_string()).replace("active", "passive");
    write_record(&deployment.lab.cluster("east").records(), "gateways", "east-ghost", &ghost).unwrap();

    let measured = |connection: &Value| connection["latencyRTT"]["last"].is_string();
    let connection = deployment.wait_connection("east", "west", "round trips", measured).unwrap();
    let active = gateway(&deployment, "east-gw");
    assert_eq!(active["kind"], "Gateway");
    assert_eq!(active["status"]["haStatus"], "active");
    assert!(active["status"]["version"].as_str().unwrap().starts_with("culvert-"), "{active}");
    let local = &active["status"]["localEndpoint"];
    assert_eq!(local["cluster_id"], "east");
    assert_eq!(local["hostname"], "east-gw");
    assert_eq!(local["cable_name"], "submariner-cable-east-198-51-100-11");
    assert_eq!(local["subnets"], json!(["100.1.0.0/16", "10.1.0.0/16"]));
    assert_eq!((&local["private_ip"], &local["privateIPs"]), (&json!("198.51.100.11"), &json!(["198.51.100.11"])));
    assert_eq!(local["healthCheckIP"], "10.1.1.1");
    assert_eq!(connection["status"], "connected");
    assert_eq!(connection["endpoint"]["hostname"], "west-gw");
    assert_eq!(connection["usingIP"], deployment.lab.cluster("west").wan_address.to_string());
    assert_eq!(connection["usingNAT"], true);
    for field in ["last", "min", "average", "max", "stdDev"] {
        let value = connection["latencyRTT"][field].as_str().unwrap();
        assert!(value.ends_with('s') && value.starts_with(|first: char| first.is_ascii_digit()), "{field}: {value}");
    }

    let passive = gateway(&deployment, "east-standby");
    assert_eq!(passive["status"]["haStatus"], "passive");
    assert_eq!(passive["status"]["localEndpoint"]["hostname"], "east-standby");
    assert_eq!(passive["status"]["connections"], json!([]));

    let gone = || Ok(gateway(&deployment, "east-ghost").is_null().then_some(()));
    deployment.explain(wait_for("the end of the stale record", READY, gone)).unwrap();
    for name in ["east-gw", "east-standby"] {
        let first = written(&gateway(&deployment, name));
        assert!(now().abs_diff(first) <= 30, "{name}: {first}");
        let again = || Ok((written(&gateway(&deployment, name)) > first).then_some(()));
        deployment.explain(wait_for("the next heartbeat", READY, again)).unwrap();
    }
}

/// R5: without the lease the gateway says so, goes on forwarding, and wins it again.
#[test]
fn a_gateway_that_cannot_renew_its_lease_goes_on_forwarding_and_regains_it() {
    let lab = Lab::build(&Topology::east_west()).unwrap();
    let mut deployment = Deployment::new(lab, Settings::default()).unwrap();
    deployment.start_clusters(&["west"]).unwrap();
    for node in ["gw", "worker"] {
        deployment.start("east", node, Role::RouteAgent).unwrap();
    }
    let hasty = ["--lease-duration", "3", "--renew-deadline", "2", "--retry-period", "1"];
    let start = deployment.start_with("east", "gw", Role::Gateway, |command| {
        command.args(hasty);
    });
    start.unwrap();
    deployment.wait_connected(&["east", "west"]).unwrap();
    let west = deployment.lab.node("west", "worker").pod_address;
    let east = deployment.lab.node("east", "worker").pod.clone();
    let pinger = Pinger::start(&east, west, PROBE).unwrap();

    let leases = deployment.lab.cluster("east").records().join("leases");
    let away = leases.with_extension("away");
    fs::rename(&leases, &away).unwrap();
    fs::write(&leases, "no directory").unwrap();
    let passive = || Ok((gateway(&deployment, "east-gw")["status"]["haStatus"] == "passive").then_some(()));
    deployment.explain(wait_for("the gateway to say that it is passive", READY, passive)).unwrap();
    fs::remove_file(&leases).unwrap();
    fs::rename(&away, &leases).unwrap();
    deployment.wait_active("east", "gw").unwrap();
    let pings = pinger.finish().unwrap();
    assert_eq!(pings.lost, 0, "{pings:?}\n{}", deployment.logs());

    // Somebody else has it, and is never heard of again.
    let records = deployment.lab.cluster("east").records();
    let lease = "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata:\n  name: submariner-gateway-lock\nspec:\n  \
                 holderIdentity: stranger\n  leaseDurationSeconds: 2\n  leaseTransitions: 7\n  \
                 renewTime: \"2026-01-02T03:04:05.000000Z\"\n";
    write_record(&records, "leases", "submariner-gateway-lock", lease).unwrap();
    deployment.explain(wait_for("the gateway to stand by", READY, passive)).unwrap();
    deployment.wait_active("east", "gw").unwrap();
    deployment.wait_connected(&["east", "west"]).unwrap();
    assert!(deployment.daemon("east", "gw", Role::Gateway).is_running().unwrap());
}

#[test]
fn metrics_have_submariners_names_and_none_outlives_its_peer() {
    let mut deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let namespace = deployment.lab.node("east", "gw").namespace.clone();
    let labels = "cable_driver=\"wireguard\",local_cluster=\"east\",local_hostname=\"east-gw\",\
                  local_endpoint_ip=\"198.51.100.11\",remote_cluster=\"west\",remote_hostname=\"west-gw\",\
                  remote_endpoint_ip=\"203.0.113.6\"";
    let expected = [
        format!("submariner_gateway_rx_bytes{{{labels}}}"),
        format!("submariner_gateway_tx_bytes{{{labels}}}"),
        format!("submariner_connections{{{labels},status=\"connected\"}}"),
        "submariner_connections_short{cable_driver=\"wireguard\",status=\"connected\"}".to_owned(),
        format!("submariner_connection_established_timestamp{{{labels}}}"),
        format!("submariner_connection_latency_seconds{{{labels}}}"),
        "submariner_gateway_sync_iterations".to_owned(),
    ];
    let complete = || {
        let found = metrics(&namespace, 9780)?;
        let missing: Vec<&String> = expected.iter().filter(|series| !found.contains_key(*series)).collect();
        anyhow::ensure!(missing.is_empty(), "missing: {missing:#?}; found: {:#?}", found.keys());
        Ok(found.get(&expected[0]).filter(|bytes| **bytes > 0.0).map(|_| found.clone()))
    };
    let found = deployment.explain(wait_for("all metrics", READY, complete)).unwrap();
    for (series, value) in &expected[2..4].iter().map(|series| (series, found[series])).collect::<Vec<_>>() {
        assert_eq!(*value, 1.0, "{series}");
    }
    assert!(found[&expected[5]] > 0.0 && found[&expected[5]] < 1.0);
    assert_eq!(found.keys().filter(|series| series.starts_with("submariner_connections{")).count(), 1);

    deployment.uninstall("west").unwrap();
    deployment.wait_disconnected("east", "west").unwrap();
    let forgotten = || {
        let found = metrics(&namespace, 9780)?;
        let stale: Vec<&String> = found.keys().filter(|series| series.contains("west")).collect();
        anyhow::ensure!(stale.is_empty(), "stale: {stale:#?}");
        Ok(Some(found))
    };
    let found = deployment.explain(wait_for("no metric of west", READY, forgotten)).unwrap();
    assert_eq!(found.keys().filter(|series| series.starts_with("submariner_connection")).count(), 0);
}

/// Waits until the only connection has this status, and watches meanwhile that it never has two.
fn wait_single_series(deployment: &Deployment, status: &str) {
    let namespace = &deployment.lab.node("east", "gw").namespace;
    let single = || {
        let found = metrics(namespace, 9780)?;
        let of = |name: &str| found.iter().filter(|(series, _)| series.starts_with(name)).collect::<Vec<_>>();
        let (long, short) = (of("submariner_connections{"), of("submariner_connections_short{"));
        for series in [&long, &short] {
            assert!(series.len() <= 1 && series.iter().all(|(_, value)| **value == 1.0), "{series:?}");
        }
        let word = format!("status=\"{status}\"");
        let (Some((long, _)), Some((short, _))) = (long.first(), short.first()) else { return Ok(None) };
        anyhow::ensure!(long.contains(&word) && short.contains(&word), "{long} {short}");
        let since = of("submariner_connection_established_timestamp{").len();
        assert_eq!(since, usize::from(status == "connected"), "{found:?}");
        Ok(Some(()))
    };
    let found = wait_for(&format!("one series of {status}"), Duration::from_secs(60), single);
    deployment.explain(found).unwrap();
}

#[test]
fn a_connection_has_one_series_whatever_becomes_of_it() {
    let mut deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    wait_single_series(&deployment, "connected");
    for _ in 0..2 {
        deployment.daemon("west", "gw", Role::Gateway).signal(Signal::SIGSTOP).unwrap();
        wait_single_series(&deployment, "error");
        let error = |connection: &Value| connection["status"] == "error";
        deployment.wait_connection("east", "west", "the error", error).unwrap();
        deployment.daemon("west", "gw", Role::Gateway).signal(Signal::SIGCONT).unwrap();
        wait_single_series(&deployment, "connected");
    }
}

#[test]
fn a_public_address_that_no_resolver_finds_is_complained_about_by_the_resolvers_name() {
    let mut deployment = Deployment::new(Lab::build(&Topology::east_west()).unwrap(), Settings::default()).unwrap();
    // Nobody serves anything there.
    let resolver = "api:127.0.0.1/ip";
    let asking = |command: &mut Command| set_flag(command, "--public-ip", resolver);
    deployment.start_with("east", "gw", Role::Gateway, asking).unwrap();
    let said = || {
        let gateway = gateway(&deployment, "east-gw");
        let failure = gateway["status"]["statusFailure"].as_str().unwrap_or_default();
        anyhow::ensure!(failure.contains(resolver) && failure.contains("--public-ip"), "{gateway}");
        Ok(Some(()))
    };
    deployment.explain(wait_for("the resolver in the status", READY, said)).unwrap();
    deployment.daemon("east", "gw", Role::Gateway).wait_ready(READY).unwrap();
}

#[test]
fn route_agents_report_what_they_reach() {
    let deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    for (name, address, status) in [("east-gw", "198.51.100.11", "none"), ("east-worker", "198.51.100.12", "connected")]
    {
        let reported = || {
            let agents = records(&deployment.lab.cluster("east").records(), "routeagents")?;
            let agent = agents.into_iter().find(|agent| agent["metadata"]["name"] == name).unwrap_or_default();
            let remotes = agent["status"]["remoteEndpoints"].as_array().cloned().unwrap_or_default();
            anyhow::ensure!(remotes.len() == 1 && remotes[0]["status"] == status, "it is {agent}");
            Ok(Some(agent))
        };
        let agent = deployment.explain(wait_for(&format!("{name}'s report"), READY, reported)).unwrap();
        assert_eq!(agent["kind"], "RouteAgent");
        assert_eq!(agent["metadata"]["annotations"]["culvert.io/node-addresses"], address);
        assert!(!agent["status"]["version"].as_str().unwrap().is_empty());
        assert_eq!(agent["status"]["statusFailure"].as_str().unwrap_or_default(), "");
        let remote = &agent["status"]["remoteEndpoints"][0];
        assert_eq!(remote["spec"]["cluster_id"], "west");
        // On the gateway's node the gateway's own health check tells how the cable is.
        assert_eq!(remote["latencyRTT"]["average"].is_string(), status == "connected", "{remote}");
    }
}
