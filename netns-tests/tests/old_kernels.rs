//! Kernels without the offloads that make a gateway fast: it does without them by itself, and says so.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddrV4;
use std::time::Duration;

use culvert_netns_tests::{Deployment, Lab, Lacking, Role, Settings, Topology, garbage, pretend_old_kernel, transfer};

const READY: Duration = Duration::from_secs(20);
const PORT: u16 = 7000;

/// Joins two clusters with the kernel of east's gateway lacking something, and sends through both ways.
fn assert_joined(lacking: Lacking, words: &str) {
    let lab = Lab::build(&Topology::routed()).unwrap();
    let mut deployment = Deployment::new(lab, Settings::default()).unwrap();
    deployment.start_clusters(&["west"]).unwrap();
    for node in ["gw", "worker"] {
        deployment.start("east", node, Role::RouteAgent).unwrap();
    }
    deployment.start_with("east", "gw", Role::Gateway, |command| pretend_old_kernel(command, lacking)).unwrap();
    deployment.daemon("east", "gw", Role::Gateway).wait_ready(READY).unwrap();
    deployment.wait_connected(&["east", "west"]).unwrap();

    let log = deployment.daemon("east", "gw", Role::Gateway).log_text().unwrap();
    assert!(log.contains(words), "{log}");
    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    for (from, to) in [(east, west), (west, east)] {
        // Enough for segments that are joined and cut where that is possible; what arrives is compared.
        let seen = transfer(&from.pod, &to.pod, SocketAddrV4::new(to.pod_address, PORT), &garbage(3, 3_000_000));
        assert_eq!(deployment.explain(seen).unwrap().source, from.pod_address);
    }
}

#[test]
fn a_kernel_without_udp_offloads_does_without_them() {
    assert_joined(Lacking::UdpOffloads, "Kernel has no USO");
}

#[test]
fn a_kernel_without_any_tun_offload_does_without_them() {
    assert_joined(Lacking::AllOffloads, "Kernel refuses TUN offloads");
}
