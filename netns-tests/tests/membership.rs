//! Clusters that come and go, and a broker that is away: what is joined already takes no notice.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use culvert_netns_tests::{Deployment, Lab, Namespace, Pinger, Role, Settings, Topology, transfer};

const PORT: u16 = 7000;
const PROBE: Duration = Duration::from_millis(10);
const READY: Duration = Duration::from_secs(20);

fn ends(deployment: &Deployment) -> (Namespace, Namespace, Ipv4Addr) {
    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    (east.pod.clone(), west.pod.clone(), west.pod_address)
}

#[test]
fn a_third_cluster_joins_and_leaves_without_a_lost_probe() {
    let lab = Lab::build(&Topology::east_west().with_north()).unwrap();
    let mut deployment = Deployment::new(lab, Settings::default()).unwrap();
    deployment.start_clusters(&["east", "west"]).unwrap();
    deployment.wait_connected(&["east", "west"]).unwrap();
    let (east, _, address) = ends(&deployment);
    let pinger = Pinger::start(&east, address, PROBE).unwrap();

    deployment.start_clusters(&["north"]).unwrap();
    deployment.wait_connected(&["east", "west", "north"]).unwrap();
    let north = deployment.lab.node("north", "worker");
    let to = SocketAddrV4::new(address, PORT);
    let seen = transfer(&north.pod, &deployment.lab.node("west", "worker").pod, to, b"hello").unwrap();
    assert_eq!(seen.source, north.pod_address);

    deployment.uninstall("north").unwrap();
    for cluster in ["east", "west"] {
        deployment.wait_disconnected(cluster, "north").unwrap();
    }
    let pings = pinger.finish().unwrap();
    assert_eq!(pings.lost, 0, "{pings:?}\n{}", deployment.logs());
    assert_eq!(deployment.leftovers("north").unwrap(), Vec::<String>::new());
}

/// The first packet of a flow decides on its translation, for as long as the flow lives. The kernel itself forgets a
/// masqueraded flow whose link changes, but not one with a fixed source, as some CNIs give (`snat to`).
#[test]
fn a_flow_that_began_before_the_clusters_were_joined_works_once_they_are() {
    let lab = Lab::build(&Topology::east_west()).unwrap();
    let mut deployment = Deployment::new(lab, Settings::default()).unwrap();
    for node in &deployment.lab.cluster("east").nodes {
        let rule = format!("ip saddr 10.1.0.0/16 ip daddr != 10.1.0.0/16 snat to {}", node.address);
        let script = format!("flush chain ip nat-cni postrouting\nadd rule ip nat-cni postrouting {rule}\n");
        node.namespace.nft(&script).unwrap();
    }
    deployment.start_clusters(&["east"]).unwrap();
    let (east, _, address) = ends(&deployment);
    let early = Pinger::start(&east, address, PROBE).unwrap();

    deployment.start_clusters(&["west"]).unwrap();
    deployment.wait_connected(&["east", "west"]).unwrap();
    deployment.wait_reachable(&east, address).unwrap();
    std::thread::sleep(Duration::from_secs(1));

    let pings = early.finish().unwrap();
    assert!(pings.lost < pings.sent, "all {} probes of the early flow are lost\n{}", pings.sent, deployment.logs());
}

#[test]
fn a_broker_that_is_away_changes_nothing() {
    let mut deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let (east, west, address) = ends(&deployment);
    let broker = deployment.lab.broker();
    let away = broker.with_extension("away");
    let pinger = Pinger::start(&east, address, PROBE).unwrap();
    fs::rename(&broker, &away).unwrap();

    transfer(&east, &west, SocketAddrV4::new(address, PORT), &[7; 1_000_000]).unwrap();
    assert_eq!(pinger.finish().unwrap().lost, 0);
    for cluster in ["east", "west"] {
        deployment.kill(cluster, "gw", Role::Gateway).unwrap();
        deployment.start(cluster, "gw", Role::Gateway).unwrap();
        deployment.daemon(cluster, "gw", Role::Gateway).wait_ready(READY).unwrap();
    }
    deployment.wait_connected(&["east", "west"]).unwrap();

    let pinger = Pinger::start(&east, address, PROBE).unwrap();
    fs::rename(&away, &broker).unwrap();
    deployment.wait_connected(&["east", "west"]).unwrap();
    assert_eq!(pinger.finish().unwrap().lost, 0);
}

#[test]
fn an_empty_broker_does_not_cut_what_is_joined() {
    let deployment = Deployment::connected(&Topology::east_west(), Settings::default()).unwrap();
    let (east, _, address) = ends(&deployment);
    let pinger = Pinger::start(&east, address, PROBE).unwrap();
    for directory in ["endpoints", "clusters"] {
        for entry in fs::read_dir(deployment.lab.broker().join(directory)).unwrap() {
            fs::remove_file(entry.unwrap().path()).ok();
        }
    }
    let count = |directory: &str| {
        let entries = fs::read_dir(deployment.lab.broker().join(directory)).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "yaml")).count()
    };
    let whole = || Ok((count("endpoints") == 2 && count("clusters") == 2).then_some(()));
    deployment.explain(culvert_netns_tests::wait_for("the records to be back", READY, whole)).unwrap();
    deployment.wait_connected(&["east", "west"]).unwrap();
    assert_eq!(pinger.finish().unwrap().lost, 0);
}

/// What README shows for sites without Kubernetes: no broker, each side's records copied to the other.
#[test]
fn sites_without_a_broker_are_joined_by_copied_records() {
    let lab = Lab::build(&Topology::east_west()).unwrap();
    let mut deployment = Deployment::new(lab, Settings { broker: false, ..Settings::default() }).unwrap();
    deployment.start_clusters(&["east", "west"]).unwrap();
    for (cluster, other) in [("east", "west"), ("west", "east")] {
        deployment.wait_active(cluster, "gw").unwrap();
        deployment.copy_records(cluster, other).unwrap();
    }
    deployment.wait_connected(&["east", "west"]).unwrap();
}
