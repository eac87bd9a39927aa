//! An Internet link that takes 1400 bytes only: large datagrams and bulk TCP arrive nevertheless.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddrV4;

use culvert_netns_tests::{CableDriver, Deployment, Settings, Topology, echo, transfer};

const PORT: u16 = 7000;

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
