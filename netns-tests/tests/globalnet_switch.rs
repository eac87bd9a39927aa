//! A joined cluster gets global CIDRs, and loses them again: its Endpoint is another one each time, and the other clusters
//! take no notice. Nothing translates addresses here.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use culvert_netns_tests::{Deployment, Lab, Pinger, Role, Settings, Topology, records, wait_for};
use serde_json::{Value, json};

const GLOBAL: &str = "242.3.0.0/16";
const PROBE: Duration = Duration::from_millis(10);
const READY: Duration = Duration::from_secs(20);
/// How soon a cluster that has changed is to be reached.
const SOON: Duration = Duration::from_secs(5);

/// Starts north's daemons anew, one after the other as Kubernetes does.
fn restart_north(deployment: &mut Deployment, flags: &[&str]) {
    for (node, role) in [("gw", Role::RouteAgent), ("worker", Role::RouteAgent), ("gw", Role::Gateway)] {
        deployment.terminate("north", node, role).unwrap();
        deployment.start_with("north", node, role, |command| _ = command.args(flags)).unwrap();
        deployment.daemon("north", node, role).wait_ready(READY).unwrap();
    }
}

/// Waits until the broker has one Endpoint of north, with these subnets, and returns its name.
fn endpoint_with(deployment: &Deployment, subnets: &Value) -> String {
    let found = || {
        let all = records(&deployment.lab.broker(), "endpoints")?;
        let of_north: Vec<&Value> = all.iter().filter(|one| one["spec"]["cluster_id"] == "north").collect();
        Ok(match &of_north[..] {
            [one] if one["spec"]["subnets"] == *subnets => one["metadata"]["name"].as_str().map(str::to_owned),
            _ => None,
        })
    };
    deployment.explain(wait_for("north's Endpoint", READY, found)).unwrap()
}

/// Returns the routes of a node in a table.
fn routes(deployment: &Deployment, cluster: &str, node: &str, table: u32) -> String {
    let namespace = &deployment.lab.node(cluster, node).namespace;
    namespace.run(&format!("ip route show table {table}")).unwrap()
}

#[test]
fn a_cluster_changes_to_globalnet_and_back_and_others_lose_no_probe() {
    let lab = Lab::build(&Topology::east_west().with_north()).unwrap();
    let mut deployment = Deployment::new(lab, Settings::default()).unwrap();
    let all = ["east", "west", "north"];
    deployment.start_clusters(&all).unwrap();
    deployment.wait_connected(&all).unwrap();
    let own = json!(["100.3.0.0/16", "10.3.0.0/16"]);
    let plain = endpoint_with(&deployment, &own);
    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    let pinger = Pinger::start(&east.pod, west.pod_address, PROBE).unwrap();

    restart_north(&mut deployment, &["--global-cidr", GLOBAL]);
    let began = Instant::now();
    let global = endpoint_with(&deployment, &json!([GLOBAL]));
    assert!(global.starts_with(&format!("{plain}g")), "{global}");
    for other in ["east", "west"] {
        let subnets = |connection: &Value| {
            connection["endpoint"]["subnets"] == json!([GLOBAL]) && connection["status"] == "connected"
        };
        deployment.wait_connection(other, "north", "a cable for the global CIDR", subnets).unwrap();
        let cables = routes(&deployment, other, "gw", 7201);
        assert!(cables.contains("242.3.0.0/16 dev culvert-wg") && !cables.contains("10.3.0.0/16"), "{cables}");
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    for node in ["gw", "worker"] {
        let guarded = routes(&deployment, "north", node, 7202);
        assert!(guarded.contains("unreachable 242.3.0.0/16"), "{guarded}");
    }

    restart_north(&mut deployment, &[]);
    let began = Instant::now();
    let north = deployment.lab.node("north", "worker");
    deployment.wait_reachable(&deployment.lab.node("east", "worker").pod, north.pod_address).unwrap();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(endpoint_with(&deployment, &own), plain);
    assert!(!routes(&deployment, "north", "worker", 7202).contains("242.3"));

    let pings = pinger.finish().unwrap();
    assert_eq!(pings.lost, 0, "{pings:?}\n{}", deployment.logs());
}
