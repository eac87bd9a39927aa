//! An Internet link that takes 1400 bytes only: large datagrams and bulk TCP arrive nevertheless.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddrV4;
use std::time::Duration;

use culvert_netns_tests::{CableDriver, Deployment, Settings, Topology, echo, transfer, wait_for};

const PORT: u16 = 7000;

/// The sender of a packet that may not be fragmented is told the cable's MTU: 1400 less 20 + 8 + 32.
#[test]
fn a_packet_too_big_for_the_cable_is_answered_with_its_mtu() {
    let mut topology = Topology::east_west();
    topology.cluster_mut("west").internet_mtu = 1400;
    let deployment = Deployment::connected(&topology, Settings::default()).unwrap();
    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    let ping = format!("ping -M do -c 1 -W 1 -s 1400 {}", west.pod_address);
    let told = || {
        // It fails, since no answer comes; what it prints says why.
        let output = east.pod.command("sh").args(["-c", &format!("{ping} 2>&1 || true")]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("mtu = 1340").then_some(()))
    };
    deployment.explain(wait_for("the answer with the MTU", Duration::from_secs(20), told)).unwrap();
}

fn assert_large_packets_arrive(mut topology: Topology, driver: CableDriver) {
    topology.cluster_mut("west").internet_mtu = 1400;
    let deployment = Deployment::connected(&topology, Settings { driver, ..Settings::default() }).unwrap();
    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    for (from, to) in [(east, west), (west, east)] {
        let address = SocketAddrV4::new(to.pod_address, PORT);
        let bulk = transfer(&from.pod, &to.pod, address, &vec![7; 4_000_000]);
        deployment.explain(bulk).unwrap();
        for size in [1300, 1400, 1472, 8000, 60_000] {
            // The first large datagram may be the one by which the path MTU is learnt.
            let tries = [(); 3].map(|()| echo(&from.pod, &to.pod, address, size));
            let arrived = tries.into_iter().reduce(|one, other| one.or(other)).unwrap();
            deployment.explain(arrived).unwrap();
        }
    }
}

#[test]
fn large_packets_arrive_over_wireguard() {
    assert_large_packets_arrive(Topology::east_west(), CableDriver::WireGuard);
}

#[test]
fn large_packets_arrive_over_vxlan() {
    assert_large_packets_arrive(Topology::routed(), CableDriver::Vxlan);
}
