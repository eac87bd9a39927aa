//! A cluster that claims what is ours, and then corrects its records in place: refused first, joined after, and whoever
//! was joined before takes no notice.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use culvert_netns_tests::{
    Deployment, Lab, Pinger, Role, Settings, Topology, ping, set_flag, transfer, wait_for, write_record,
};

const PROBE: Duration = Duration::from_millis(10);
const READY: Duration = Duration::from_secs(20);
const PORT: u16 = 7000;

const RIGHT: &str = "10.2.0.0/16";
/// Within the pods of east.
const WRONG: &str = "10.1.128.0/17";

/// Waits until every node of east has a route to `wanted` and none to the others, but perhaps `unreachable` ones.
fn wait_routes(deployment: &Deployment, wanted: &str, others: &[&str]) {
    let settled = || {
        for node in ["gw", "worker"] {
            let routes = deployment.lab.node("east", node).namespace.run("ip route show table all")?;
            let has = |net: &str| routes.lines().any(|line| line.starts_with(net));
            anyhow::ensure!(has(wanted) && !others.iter().any(|other| has(other)), "on {node}: {routes}");
        }
        Ok(Some(()))
    };
    deployment.explain(wait_for("the routes of east", READY, settled)).unwrap();
}

/// Waits until east says what it refuses, and takes the rest: the services of west.
fn wait_refused(deployment: &Deployment) {
    let refused = |connection: &serde_json::Value| {
        let message = connection["statusMessage"].as_str().unwrap_or_default();
        connection["status"] == "connected" && message.contains(WRONG) && message.contains("overlaps")
    };
    deployment.wait_connection("east", "west", "the refusal", refused).unwrap();
    let shown = deployment.show("all", "east").unwrap();
    assert!(shown.contains(WRONG) && shown.contains("overlaps"), "{shown}");
    wait_routes(deployment, "100.2.0.0/16", &[RIGHT, WRONG]);
    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    assert_eq!(ping(&east.pod, west.pod_address, 3, PROBE).unwrap().lost, 3);
}

/// Waits until nothing is refused any more, and packets pass from pod to pod.
fn assert_taken(deployment: &Deployment) {
    let content =
        |connection: &serde_json::Value| !connection["statusMessage"].as_str().unwrap_or_default().contains("overlaps");
    deployment.wait_connection("east", "west", "no refusal", content).unwrap();
    deployment.wait_connected(&["east", "west"]).unwrap();
    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    let pings = ping(&east.pod, west.pod_address, 20, PROBE).unwrap();
    assert_eq!(pings.lost, 0, "{pings:?}\n{}", deployment.logs());
    let to = SocketAddrV4::new(west.pod_address, PORT);
    assert_eq!(transfer(&east.pod, &west.pod, to, b"hello").unwrap().source, east.pod_address);
    wait_routes(deployment, RIGHT, &[WRONG]);
}

/// Returns the file that holds west's record of this kind in east's store.
fn record_of_west(deployment: &Deployment, plural: &str) -> PathBuf {
    let entries = fs::read_dir(deployment.lab.cluster("east").records().join(plural)).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    paths.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("west")).unwrap()
}

/// Replaces a text in west's records in east's store, each in one step.
fn correct(deployment: &Deployment, wrong: &str, right: &str) {
    for plural in ["endpoints", "clusters"] {
        let path = record_of_west(deployment, plural);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(wrong), "{text}");
        let name = path.file_stem().unwrap().to_string_lossy();
        write_record(&deployment.lab.cluster("east").records(), plural, &name, &text.replace(wrong, right)).unwrap();
    }
}

#[test]
fn an_overlap_in_the_store_ends_when_the_records_are_edited() {
    let lab = Lab::build(&Topology::east_west()).unwrap();
    let mut deployment = Deployment::new(lab, Settings { broker: false, ..Settings::default() }).unwrap();
    deployment.start_clusters(&["east", "west"]).unwrap();
    for (from, to) in [("east", "west"), ("west", "east")] {
        deployment.wait_active(from, "gw").unwrap();
        deployment.copy_records(from, to).unwrap();
    }
    deployment.wait_connected(&["east", "west"]).unwrap();

    // A record that turns bad while it is in use loses what it claims no more.
    correct(&deployment, RIGHT, WRONG);
    wait_refused(&deployment);
    correct(&deployment, WRONG, RIGHT);
    assert_taken(&deployment);
}

#[test]
fn an_overlap_at_the_broker_ends_when_the_cluster_is_started_with_other_flags() {
    let lab = Lab::build(&Topology::east_west().with_north()).unwrap();
    let mut deployment = Deployment::new(lab, Settings::default()).unwrap();
    deployment.start_clusters(&["east", "north"]).unwrap();
    deployment.wait_connected(&["east", "north"]).unwrap();
    let north = deployment.lab.node("north", "worker").pod_address;
    let pinger = Pinger::start(&deployment.lab.node("east", "worker").pod, north, PROBE).unwrap();
    let mistaken = |command: &mut Command| {
        set_flag(command, "--cluster-cidr", WRONG);
    };
    let roles = [("gw", Role::RouteAgent), ("worker", Role::RouteAgent), ("gw", Role::Gateway)];
    for (node, role) in roles {
        deployment.start_with("west", node, role, mistaken).unwrap();
    }
    wait_refused(&deployment);
    let before = record_of_west(&deployment, "endpoints");

    for (node, role) in roles {
        deployment.terminate("west", node, role).unwrap();
        deployment.start("west", node, role).unwrap();
    }
    assert_taken(&deployment);
    assert_eq!(record_of_west(&deployment, "endpoints"), before, "the same record, corrected in place");
    let pings = pinger.finish().unwrap();
    assert_eq!(pings.lost, 0, "{pings:?}\n{}", deployment.logs());
}

#[test]
fn an_overlap_with_a_third_cluster_ends_when_the_younger_claim_is_corrected() {
    let lab = Lab::build(&Topology::east_west().with_north()).unwrap();
    let mut deployment = Deployment::new(lab, Settings { broker: false, ..Settings::default() }).unwrap();
    deployment.start_clusters(&["east", "north", "west"]).unwrap();
    for id in ["east", "north", "west"] {
        deployment.wait_active(id, "gw").unwrap();
    }
    for (from, to) in [("east", "north"), ("north", "east")] {
        deployment.copy_records(from, to).unwrap();
    }
    deployment.wait_connected(&["east", "north"]).unwrap();
    let north = deployment.lab.node("north", "worker").pod_address;
    let pinger = Pinger::start(&deployment.lab.node("east", "worker").pod, north, PROBE).unwrap();
    let taken = "10.3.0.0/16";

    deployment.copy_records("east", "west").unwrap();
    deployment.copy_records("west", "east").unwrap();
    correct(&deployment, RIGHT, taken);
    let said = || {
        let shown = deployment.show("all", "east")?;
        anyhow::ensure!(shown.contains(taken) && shown.contains("of cluster north, which was there first"), "{shown}");
        Ok(Some(()))
    };
    deployment.explain(wait_for("the refusal", READY, said)).unwrap();
    correct(&deployment, taken, RIGHT);
    assert_taken(&deployment);
    let pings = pinger.finish().unwrap();
    assert_eq!(pings.lost, 0, "{pings:?}\n{}", deployment.logs());
}
