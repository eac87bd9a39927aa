//! What a peer, or a stranger, must not send: packets with addresses that are not its own, to addresses that are not for
//! it, and datagrams for tunnels that it is no end of. All of it is dropped and counted.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use culvert_netns_tests::{
    Capture, Deployment, ForgedTunnel, Settings, Submariner, Topology, Watchlist, metrics, send_forged, wait_for,
};
use ipnet::Ipv4Net;

const READY: Duration = Duration::from_secs(20);
const METRICS: u16 = 9780;
const PSK: &str = "default psk";
const GENUINE: &[u8] = b"words from the pod of a peer";
const FORGED: &[u8] = b"words from somebody who lies";
const WORKER_POD: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 2);
const PEER_POD: Ipv4Addr = Ipv4Addr::new(10, 2, 1, 2);

/// Another pod of ours, another node of ours, the peer's node, a third cluster, anybody.
const FORGED_SOURCES: [Ipv4Addr; 5] = [
    Ipv4Addr::new(10, 1, 1, 2),
    Ipv4Addr::new(198, 51, 100, 12),
    Ipv4Addr::new(192, 168, 20, 11),
    Ipv4Addr::new(10, 3, 0, 5),
    Ipv4Addr::new(8, 8, 8, 8),
];

/// A node of ours, the cloud's metadata, a third cluster, the Internet.
const FOREIGN_DESTINATIONS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(198, 51, 100, 12),
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(10, 3, 0, 5),
    Ipv4Addr::new(192, 0, 2, 1),
];

fn foreign_networks() -> Vec<Ipv4Net> {
    FOREIGN_DESTINATIONS.map(Ipv4Net::from).into()
}

/// Returns how often the gateway of east has dropped something for this reason.
fn dropped(deployment: &Deployment, reason: &str) -> f64 {
    let series = metrics(&deployment.lab.node("east", "gw").namespace, METRICS).unwrap();
    series[&format!("culvert_gateway_dropped{{reason=\"{reason}\"}}")]
}

fn wait_dropped(deployment: &Deployment, reason: &str, count: f64) {
    let counted = || {
        let found = dropped(deployment, reason);
        anyhow::ensure!(found == count, "{found} are");
        Ok(Some(()))
    };
    deployment.explain(wait_for(&format!("{count} dropped for {reason}"), READY, counted)).unwrap();
}

/// Watches the worker's link for a text, and what leaves east for addresses that only a lie could lead to.
fn watch(deployment: &Deployment, text: &[u8]) -> (Capture, Capture) {
    let at_worker = Watchlist { markers: vec![text.to_vec()], subnets: Vec::new() };
    let at_router = Watchlist { markers: Vec::new(), subnets: foreign_networks()[1..].to_vec() };
    let worker = &deployment.lab.node("east", "worker").namespace;
    let router = &deployment.lab.cluster("east").router;
    (Capture::start(worker, "eth0", at_worker).unwrap(), Capture::start(router, "wan", at_router).unwrap())
}

/// What was sent before an answered probe has arrived.
fn drain(deployment: &Deployment, west: &Submariner) {
    deployment.wait_reachable(&west.node.pod, WORKER_POD).unwrap();
}

fn assert_lies_are_dropped_and_counted(deployment: &Deployment, west: &Submariner, counters: [&str; 2]) {
    let from = &west.node.namespace;
    drain(deployment, west);
    let (at_worker, _) = watch(deployment, GENUINE);
    send_forged(from, PEER_POD, WORKER_POD, GENUINE).unwrap();
    drain(deployment, west);
    assert!(at_worker.finish().unwrap().with_marker > 0);

    let before = counters.map(|reason| dropped(deployment, reason));
    let (at_worker, at_router) = watch(deployment, FORGED);
    for source in FORGED_SOURCES {
        send_forged(from, source, WORKER_POD, FORGED).unwrap();
    }
    for destination in FOREIGN_DESTINATIONS {
        send_forged(from, PEER_POD, destination, FORGED).unwrap();
    }
    drain(deployment, west);
    assert_eq!(at_worker.finish().unwrap().with_marker, 0);
    assert_eq!(at_router.finish().unwrap().addresses.len(), 0);
    wait_dropped(deployment, counters[0], before[0] + FORGED_SOURCES.len() as f64);
    wait_dropped(deployment, counters[1], before[1] + FOREIGN_DESTINATIONS.len() as f64);
}

#[test]
fn a_wireguard_peer_that_lies_is_not_heard() {
    let (deployment, west, remote) = Submariner::facing_east(|_| {}).unwrap();
    let key = west.start_wireguard().unwrap();
    west.announce(&deployment.lab.broker(), "wireguard", west.node.address, &[("publicKey", &key)]).unwrap();
    west.add_wireguard_peer(&remote, PSK).unwrap();
    west.abuse_wireguard(&remote, &foreign_networks()).unwrap();
    assert_lies_are_dropped_and_counted(&deployment, &west, ["wireguard_source", "wireguard_destination"]);
}

#[test]
fn a_vxlan_peer_that_lies_and_a_stranger_are_not_heard() {
    let (deployment, west, remote) = Submariner::facing_east(|command| {
        command.args(["--allow-vxlan", "west"]);
    })
    .unwrap();
    west.start_vxlan().unwrap();
    // Its multicast would be counted too.
    west.node.namespace.sysctl("net/ipv6/conf/vxlan-tunnel/disable_ipv6", "1").unwrap();
    west.announce(&deployment.lab.broker(), "vxlan", west.node.address, &[]).unwrap();
    west.add_vxlan_peer(&remote).unwrap();
    west.abuse_vxlan(&remote, &foreign_networks()).unwrap();
    assert_lies_are_dropped_and_counted(&deployment, &west, ["dropped_source", "dropped_destination"]);

    let before = dropped(&deployment, "dropped_unknown_peer");
    let gateway = deployment.lab.node("east", "gw");
    let forged = ForgedTunnel {
        to: SocketAddrV4::new(gateway.address, 4500),
        vni: 1000,
        mac: mac(&deployment, "gw", "culvert-vx"),
        inner_source: PEER_POD,
        inner_destination: WORKER_POD,
        payload: FORGED,
    };
    let (at_worker, _) = watch(&deployment, FORGED);
    let stranger = &deployment.lab.internet()[0];
    for _ in 0..3 {
        forged.send(stranger).unwrap();
    }
    drain(&deployment, &west);
    assert_eq!(at_worker.finish().unwrap().with_marker, 0);
    wait_dropped(&deployment, "dropped_unknown_peer", before + 3.0);
    // The very same datagram is taken from the peer: nothing but its sender was wrong.
    let (at_worker, _) = watch(&deployment, FORGED);
    forged.send(&west.node.namespace).unwrap();
    drain(&deployment, &west);
    assert!(at_worker.finish().unwrap().with_marker > 0);
}

#[test]
fn the_overlay_takes_nothing_from_outside_the_cluster() {
    let deployment = Deployment::connected(&Topology::routed(), Settings::default()).unwrap();
    let worker = deployment.lab.node("east", "worker");
    let forged = ForgedTunnel {
        to: SocketAddrV4::new(worker.address, 4800),
        vni: 100,
        mac: mac(&deployment, "worker", "culvert-ov"),
        inner_source: PEER_POD,
        inner_destination: WORKER_POD,
        payload: FORGED,
    };
    let arrivals = |from: &culvert_netns_tests::Namespace| {
        let watchlist = Watchlist { markers: vec![FORGED.to_vec()], subnets: Vec::new() };
        let capture = Capture::start(&worker.pod, "eth0", watchlist).unwrap();
        for _ in 0..3 {
            forged.send(from).unwrap();
        }
        deployment.wait_reachable(&deployment.lab.node("west", "worker").pod, WORKER_POD).unwrap();
        capture.finish().unwrap().with_marker
    };
    for stranger in [&deployment.lab.node("west", "gw").namespace, &deployment.lab.cluster("east").router] {
        assert_eq!(arrivals(stranger), 0, "{}", stranger.name());
    }
    let counter = "nft list counter inet culvert_route_agent dropped_overlay";
    let counted = worker.namespace.run(counter).unwrap();
    assert!(counted.contains("packets 6 "), "{counted}");
    // The very same datagram is taken from a node: nothing but its sender was wrong.
    assert!(arrivals(&deployment.lab.node("east", "gw").namespace) > 0);
}

fn mac(deployment: &Deployment, node: &str, link: &str) -> [u8; 6] {
    let listing = deployment.lab.node("east", node).namespace.run(&format!("ip -json link show {link}")).unwrap();
    let links: serde_json::Value = serde_json::from_str(&listing).unwrap();
    let bytes = links[0]["address"].as_str().unwrap().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap());
    bytes.collect::<Vec<_>>().try_into().unwrap()
}
