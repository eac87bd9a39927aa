//! Clusters in which real Submariner runs are joined: its WireGuard and VXLAN cables, its NAT discovery, its records.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use culvert_netns_tests::{
    Capture, Deployment, NatDiscovery, Release, Submariner, Watchlist, ping, transfer, wait_for,
};

const PORT: u16 = 7000;
const PROBE: Duration = Duration::from_millis(10);
const READY: Duration = Duration::from_secs(20);
/// Nobody has it: what is sent there is lost.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 199);
const PSK: &str = "b25seSBmb3IgdGVzdHM=";

/// Pings and TCP between the pods of both of east's nodes and west's pod, both ways, with their own addresses.
fn assert_pods_reach_each_other(deployment: &Deployment, west: &Submariner) {
    let far = &west.node;
    for node in ["gw", "worker"] {
        let near = deployment.lab.node("east", node);
        deployment.wait_reachable(&near.pod, far.pod_address).unwrap();
        for (from, to) in [(near, far), (far, near)] {
            let pings = ping(&from.pod, to.pod_address, 20, PROBE).unwrap();
            assert_eq!(pings.lost, 0, "{} to {}: {pings:?}\n{}", from.name, to.name, deployment.logs());
            let to_pod = SocketAddrV4::new(to.pod_address, PORT);
            let seen = deployment.explain(transfer(&from.pod, &to.pod, to_pod, &[7; 500_000])).unwrap();
            assert_eq!(seen.source, from.pod_address, "{} to {}", from.name, to.name);
        }
    }
}

#[test]
fn submariner_is_joined_over_wireguard() {
    let (deployment, west, remote) = Submariner::facing_east(|command| {
        command.env("CE_IPSEC_PSK", PSK);
    })
    .unwrap();
    let key = west.start_wireguard().unwrap();
    west.announce(&deployment.lab.broker(), "wireguard", west.node.address, &[("publicKey", &key)]).unwrap();
    west.add_wireguard_peer(&remote, PSK).unwrap();

    let connected = |connection: &serde_json::Value| connection["status"] == "connected";
    let connection = deployment.wait_connection("east", "west", "connected", connected).unwrap();
    assert_eq!(connection["usingIP"], west.node.address.to_string());
    assert_eq!(connection["endpoint"]["backend"], "wireguard");
    assert_pods_reach_each_other(&deployment, &west);
}

#[test]
fn a_submariner_gateway_that_restarts_with_a_new_key_is_followed() {
    let (deployment, west, remote) = Submariner::facing_east(|command| {
        command.env("CE_IPSEC_PSK", PSK);
    })
    .unwrap();
    for _ in 0..2 {
        let key = west.start_wireguard().unwrap();
        west.announce(&deployment.lab.broker(), "wireguard", west.node.address, &[("publicKey", &key)]).unwrap();
        west.add_wireguard_peer(&remote, PSK).unwrap();
        let pod = &deployment.lab.node("east", "worker").pod;
        deployment.wait_reachable(pod, west.node.pod_address).unwrap();
        west.stop_wireguard().unwrap();
    }
}

#[test]
fn another_pre_shared_key_makes_no_cable() {
    let (deployment, west, remote) = Submariner::facing_east(|command| {
        command.env("CE_IPSEC_PSK", PSK);
    })
    .unwrap();
    let key = west.start_wireguard().unwrap();
    west.announce(&deployment.lab.broker(), "wireguard", west.node.address, &[("publicKey", &key)]).unwrap();
    west.add_wireguard_peer(&remote, "another text").unwrap();
    deployment.wait_connection("east", "west", "a cable", |_| true).unwrap();
    let pings = ping(&west.node.pod, deployment.lab.node("east", "gw").pod_address, 20, PROBE).unwrap();
    assert_eq!(pings.lost, 20);
    assert!(deployment.connected_clusters("east").unwrap().is_empty());
}

/// The record names a public address that leads nowhere and must be used, unless NAT discovery finds the private one.
fn assert_vxlan_after_nat_discovery(release: Release, own_id: &str, remote_id: &str) {
    let (deployment, west, remote) = Submariner::facing_east(|command| {
        command.args(["--allow-vxlan", "west"]);
    })
    .unwrap();
    west.start_vxlan().unwrap();
    west.add_vxlan_peer(&remote).unwrap();
    let discovery = NatDiscovery::start(&west, &remote, "east", release).unwrap();
    west.announce(&deployment.lab.broker(), "vxlan", NOWHERE, &[]).unwrap();

    let found = |connection: &serde_json::Value| {
        connection["usingIP"] == west.node.address.to_string() && connection["status"] == "connected"
    };
    let connection = deployment.wait_connection("east", "west", "the private address", found).unwrap();
    assert_eq!(connection["endpoint"]["backend"], "vxlan");
    assert_ne!(connection["usingNAT"], true);
    assert_pods_reach_each_other(&deployment, &west);

    let dialogue = discovery.finish().unwrap();
    assert!(dialogue.accepted >= 1, "{dialogue:?}");
    assert_eq!(dialogue.behind_nat, 0, "{dialogue:?}");
    assert!(dialogue.asked_for.contains(own_id), "{dialogue:?}");
    // OK, by the name in the asker's form.
    assert_eq!(dialogue.answers.into_iter().collect::<Vec<_>>(), [(0, remote_id.to_owned())]);
}

#[test]
fn submariner_up_to_0_20_is_joined_over_vxlan_after_nat_discovery() {
    let (own, remote) = ("submariner-cable-west-192-168-20-11", "submariner-cable-east-198-51-100-11");
    assert_vxlan_after_nat_discovery(Release::UpTo020, own, remote);
}

#[test]
fn submariner_since_0_21_is_joined_over_vxlan_after_nat_discovery() {
    let (own, remote) = ("submariner-cable-west-192-168-20-11-v4", "submariner-cable-east-198-51-100-11-v4");
    assert_vxlan_after_nat_discovery(Release::Since021, own, remote);
}

/// Neither an unencrypted cable that nobody allowed, nor one that we do not speak, nor anything in the clear instead.
#[test]
fn cables_that_are_not_for_us_are_errors_with_a_way_out_and_nothing_leaves() {
    let (deployment, west, remote) = Submariner::facing_east(|_| {}).unwrap();
    west.start_vxlan().unwrap();
    west.add_vxlan_peer(&remote).unwrap();
    for (backend, way_out) in [("vxlan", "--allow-vxlan west"), ("libreswan", "--cable-driver wireguard")] {
        west.announce(&deployment.lab.broker(), backend, west.node.address, &[]).unwrap();
        let says = |connection: &serde_json::Value| {
            let message = connection["statusMessage"].as_str().unwrap_or_default();
            connection["status"] == "error" && message.contains(backend) && message.contains(way_out)
        };
        deployment.wait_connection("east", "west", way_out, says).unwrap();
        assert!(deployment.show("connections", "east").unwrap().contains(way_out));

        let (gateway, worker) = (deployment.lab.node("east", "gw"), deployment.lab.node("east", "worker"));
        for node in [gateway, worker] {
            let fail_closed = || {
                let routes = node.namespace.run("ip route show table 7202")?;
                Ok(routes.contains("unreachable 10.2.0.0/16").then_some(()))
            };
            deployment.explain(wait_for("an unreachable route to west", READY, fail_closed)).unwrap();
        }
        let subnets = vec![west.plan.pod_cidr, west.plan.service_cidr, "241.0.0.0/8".parse().unwrap()];
        let watchlist = Watchlist { markers: Vec::new(), subnets };
        let capture = Capture::start(&deployment.lab.cluster("east").router, "wan", watchlist).unwrap();
        for (from, to) in [
            (&gateway.namespace, west.node.pod_address),
            (&worker.pod, west.node.pod_address),
            (&worker.namespace, west.plan.service_address()),
        ] {
            assert_eq!(ping(from, to, 3, PROBE).unwrap().lost, 3);
        }
        let seen = capture.finish().unwrap();
        assert_eq!(seen.addresses.len(), 0, "{backend}: {seen:?}");
    }
}
