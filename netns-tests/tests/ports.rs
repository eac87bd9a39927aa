//! UDP ports that somebody else on the node has: who needs them says so before it takes the lease, and no cable that
//! works takes notice.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use culvert_netns_tests::{Deployment, Lab, NodePlan, Pinger, Role, Settings, Topology, set_flag, wait_for};
use nix::sys::signal::Signal;

const PROBE: Duration = Duration::from_millis(10);
const READY: Duration = Duration::from_secs(20);

/// Binds a port of a node, as a program that has nothing to do with Culvert.
fn take_port(deployment: &Deployment, node: &str, port: u16) -> UdpSocket {
    let namespace = &deployment.lab.node("east", node).namespace;
    namespace.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?)).unwrap()
}

/// Reserves a port for VXLAN cables to a cluster that need not be there.
fn with_vxlan(command: &mut Command) {
    set_flag(command, "--allow-vxlan", "north");
}

fn east_with_standby() -> Topology {
    let mut topology = Topology::routed();
    topology.cluster_mut("east").nodes.push(NodePlan::worker("standby"));
    topology
}

/// Starts a gateway on `standby` that cannot have its port; it ends and says why, and the active one goes on.
fn assert_standby_refuses(port: u16, cables: &str, adjust: fn(&mut Command)) {
    let mut deployment = Deployment::connected(&east_with_standby(), Settings::default()).unwrap();
    let far = deployment.lab.node("west", "worker").pod_address;
    let pinger = Pinger::start(&deployment.lab.node("east", "worker").pod, far, PROBE).unwrap();
    let held = take_port(&deployment, "standby", port);

    deployment.start_with("east", "standby", Role::Gateway, adjust).unwrap();
    let standby = deployment.daemon("east", "standby", Role::Gateway);
    let status = standby.wait_end(READY).unwrap();
    let log = standby.log_text().unwrap();
    assert!(!status.success() && !log.contains("panicked"), "{log}");
    for words in [&format!("UDP port {port} is in use"), cables, "ss -ulnp", "--natt-port"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    // It must not have stood for election, let alone won.
    assert!(!log.contains("stands for election"), "{log}");
    deployment.wait_active("east", "gw").unwrap();

    drop(held);
    deployment.start_with("east", "standby", Role::Gateway, adjust).unwrap();
    deployment.daemon("east", "standby", Role::Gateway).wait_ready(READY).unwrap();
    let pings = pinger.finish().unwrap();
    assert_eq!(pings.lost, 0, "{pings:?}\n{}", deployment.logs());
}

#[test]
fn a_standby_whose_wireguard_port_is_taken_says_so_and_does_not_stand() {
    assert_standby_refuses(4500, "wireguard cables", |_| {});
}

#[test]
fn a_standby_whose_vxlan_port_is_taken_says_so_and_does_not_stand() {
    assert_standby_refuses(4500, "vxlan cables", with_vxlan);
}

#[test]
fn nobody_takes_the_ports_of_a_standby_that_takes_over() {
    let mut deployment = Deployment::connected(&east_with_standby(), Settings::default()).unwrap();
    deployment.start_with("east", "standby", Role::Gateway, with_vxlan).unwrap();
    deployment.daemon("east", "standby", Role::Gateway).wait_ready(READY).unwrap();
    let namespace = deployment.lab.node("east", "standby").namespace.clone();
    for port in [4500, 4501] {
        let taken = namespace.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok())).unwrap();
        assert!(!taken, "{port}");
    }

    deployment.terminate("east", "gw", Role::Gateway).unwrap();
    deployment.wait_active("east", "standby").unwrap();
    deployment.wait_connected(&["east", "west"]).unwrap();
}

/// The VXLAN device comes only with the first VXLAN cable, and what made it may be undone by others.
#[test]
fn a_vxlan_port_that_is_lost_while_active_is_named_and_costs_wireguard_nothing() {
    let lab = Lab::build(&Topology::routed().with_north()).unwrap();
    let mut deployment = Deployment::new(lab, Settings::default()).unwrap();
    deployment.start_clusters(&["west"]).unwrap();
    for (cluster, other) in [("east", "north"), ("north", "east")] {
        for node in ["gw", "worker"] {
            deployment.start(cluster, node, Role::RouteAgent).unwrap();
        }
        let both = |command: &mut Command| {
            set_flag(command, "--cable-driver", "vxlan");
            set_flag(command, "--allow-vxlan", other);
        };
        deployment.start_with(cluster, "gw", Role::Gateway, both).unwrap();
    }
    deployment.wait_connected(&["east", "west", "north"]).unwrap();

    // The port is taken where the gateway cannot prevent it: the device is deleted while the gateway is not running.
    let gateway = deployment.lab.node("east", "gw").namespace.clone();
    deployment.daemon("east", "gw", Role::Gateway).signal(Signal::SIGSTOP).unwrap();
    gateway.ip("link delete culvert-vx").unwrap();
    let held = take_port(&deployment, "gw", 4500);
    deployment.daemon("east", "gw", Role::Gateway).signal(Signal::SIGCONT).unwrap();
    let said = || {
        let active = deployment.active_gateway("east")?.unwrap_or_default();
        let failure = active["status"]["statusFailure"].as_str().unwrap_or_default();
        anyhow::ensure!(failure.contains("UDP port 4500 is in use") && failure.contains("--natt-port"), "{active}");
        Ok(Some(()))
    };
    deployment.explain(wait_for("the port in the status of east", READY, said)).unwrap();

    let (east, west) = (deployment.lab.node("east", "worker"), deployment.lab.node("west", "worker"));
    deployment.wait_reachable(&east.pod, west.pod_address).unwrap();
    let pinger = Pinger::start(&east.pod, west.pod_address, PROBE).unwrap();
    // Several passes fail meanwhile.
    std::thread::sleep(Duration::from_secs(3));
    let pings = pinger.finish().unwrap();
    assert_eq!(pings.lost, 0, "{pings:?}\n{}", deployment.logs());

    drop(held);
    deployment.wait_connected(&["east", "west", "north"]).unwrap();
}
