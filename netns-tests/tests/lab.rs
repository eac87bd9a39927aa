//! The lab itself: its networks behave as those it stands for, and it leaves nothing behind. No daemon takes part.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddrV4;
use std::time::Duration;

use culvert_netns_tests::{Capture, Lab, Namespace, Topology, Watchlist, echo, leftovers, ping, throughput, transfer};

const PORT: u16 = 7000;
const MARKER: &[u8] = b"culvert-plaintext-marker";

fn lost(from: &Namespace, to: std::net::Ipv4Addr) -> usize {
    ping(from, to, 3, Duration::from_millis(10)).unwrap().lost
}

/// Joins the pod networks of a lab without NAT by static routes, on the nodes' routers and across the Internet.
fn join_by_static_routes(lab: &Lab) {
    let [east, west] = lab.clusters() else { panic!("two clusters") };
    for (here, there, internet) in [(east, west, &lab.internet()[0]), (west, east, &lab.internet()[1])] {
        for node in &here.nodes {
            here.router.ip(&format!("route add {} via {}", node.pod_network, node.address)).unwrap();
        }
        internet.ip(&format!("route add {} via {}", here.plan.pod_cidr, here.wan_address)).unwrap();
        let core = if std::ptr::eq(here, east) { "203.0.113.254" } else { "203.0.113.253" };
        internet.ip(&format!("route add {} via {core}", there.plan.pod_cidr)).unwrap();
    }
}

#[test]
fn a_lab_leaves_nothing_when_it_is_dropped() {
    let lab = Lab::build(&Topology::east_west().with_north()).unwrap();
    let beginning = format!("{}-", lab.prefix());
    let ours = || {
        let names = fs::read_dir("/run/netns").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(&beginning)).count()
    };
    assert_eq!(ours(), 2 + 3 * 5);
    let broker = lab.broker();
    assert!(broker.exists());

    drop(lab);
    assert_eq!(ours(), 0);
    assert!(!broker.exists());
}

#[test]
fn pods_of_one_cluster_reach_each_other_and_no_other_cluster() {
    let lab = Lab::build(&Topology::east_west()).unwrap();
    for cluster in ["east", "west"] {
        let (gateway, worker) = (lab.node(cluster, "gw"), lab.node(cluster, "worker"));
        assert_eq!(lost(&gateway.pod, worker.pod_address), 0);
        let seen = transfer(&worker.pod, &gateway.pod, SocketAddrV4::new(gateway.pod_address, PORT), MARKER).unwrap();
        assert_eq!(seen.source, worker.pod_address);
    }
    assert_eq!(lost(&lab.node("east", "worker").pod, lab.node("west", "worker").pod_address), 3);
}

#[test]
fn nat_hides_the_nodes_behind_it_and_lets_them_out() {
    let lab = Lab::build(&Topology::east_west()).unwrap();
    let (east, west) = (lab.node("east", "gw"), lab.node("west", "gw"));
    let to = SocketAddrV4::new(east.address, PORT);
    let out = transfer(&west.namespace, &east.namespace, to, MARKER).unwrap();
    assert_eq!(out.source, lab.cluster("west").wan_address);
    assert_eq!(lost(&east.namespace, west.address), 3);
}

#[test]
fn a_pod_that_leaves_its_cluster_is_masqueraded_and_seen_on_the_internet() {
    let lab = Lab::build(&Topology::routed()).unwrap();
    join_by_static_routes(&lab);
    let (east, west) = (lab.node("east", "worker"), lab.node("west", "worker"));
    let watchlist = Watchlist { markers: vec![MARKER.to_vec()], subnets: vec![lab.cluster("west").plan.pod_cidr] };
    let capture = Capture::start(&lab.cluster("east").router, "wan", watchlist).unwrap();

    let seen = transfer(&east.pod, &west.pod, SocketAddrV4::new(west.pod_address, PORT), &MARKER.repeat(1000)).unwrap();
    let captured = capture.finish().unwrap();

    assert_eq!(seen.source, east.address);
    assert!(captured.with_marker > 1, "{captured:?}");
    assert!(captured.addresses.contains(&(east.address, west.pod_address)), "{captured:?}");
}

#[test]
fn a_small_mtu_on_the_internet_fragments_large_datagrams() {
    let mut topology = Topology::routed();
    topology.cluster_mut("west").internet_mtu = 1400;
    let lab = Lab::build(&topology).unwrap();
    let (east, west) = (lab.node("east", "gw"), lab.node("west", "gw"));
    echo(&east.namespace, &west.namespace, SocketAddrV4::new(west.address, PORT), 8000).unwrap();
    let refused = east.namespace.run(&format!("ping -c 1 -W 1 -M do -s 1400 {}", west.address));
    assert!(refused.is_err());
}

#[test]
fn a_cluster_ip_leads_to_the_pod_of_the_node_and_outsiders_are_masqueraded() {
    let lab = Lab::build(&Topology::routed()).unwrap();
    let cluster = lab.cluster("east");
    let gateway = lab.node("east", "gw");
    let to = SocketAddrV4::new(cluster.plan.service_address(), cluster.service_port());
    let seen = transfer(&gateway.namespace, &gateway.pod, to, MARKER).unwrap();
    assert_eq!(seen.source.octets(), [10, 1, 1, 1]);
}

#[test]
fn a_node_has_its_own_host_name_and_run_directory() {
    let lab = Lab::build(&Topology::routed()).unwrap();
    let node = lab.node("east", "gw");
    let shell = |script: &str| culvert_netns_tests::run(node.command("sh").args(["-c", script])).unwrap();
    assert_eq!(shell("cat /proc/sys/kernel/hostname").trim(), "east-gw");
    shell("mkdir /run/culvert && echo key >/run/culvert/key");
    assert_eq!(shell("cat /run/culvert/key && stat -f -c %T /run/culvert").trim(), "key\ntmpfs");
    assert!(!fs::exists("/run/culvert/key").unwrap());
}

#[test]
fn throughput_is_measured() {
    let lab = Lab::build(&Topology::routed()).unwrap();
    let (gateway, worker) = (lab.node("east", "gw"), lab.node("east", "worker"));
    let bits = throughput(&gateway.pod, &worker.pod, worker.pod_address, 1).unwrap();
    assert!(bits > 1e8, "{bits}");
}

#[test]
fn leftovers_are_found_and_nothing_else_is() {
    let lab = Lab::build(&Topology::routed()).unwrap();
    let namespace = &lab.node("east", "gw").namespace;
    assert_eq!(leftovers(namespace).unwrap(), Vec::<String>::new());
    namespace
        .ip("link add culvert-vx type bridge\nroute add unreachable 10.2.0.0/16 table 7202\n\
             route add unreachable 10.2.0.0/16 proto 201\nrule add priority 141 lookup 7201\n")
        .unwrap();
    namespace.nft("table inet culvert_gateway {}").unwrap();
    assert_eq!(leftovers(namespace).unwrap().len(), 5);
}
