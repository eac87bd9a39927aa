//! Pods reach pods and services of another cluster under their own addresses (Submariner's cases D1 to D5).

#![allow(clippy::unwrap_used)]

use std::net::SocketAddrV4;
use std::process::Command;

use culvert_netns_tests::{CableDriver, Deployment, Lab, Role, Settings, Topology, transfer};

const PORT: u16 = 7000;
const NODES: [&str; 2] = ["gw", "worker"];

/// D1 and D4: pod to pod in all four pairs, both ways.
fn assert_pods_reach_pods(deployment: &Deployment) {
    each_pair(|(here, from), (there, to)| {
        let (from, to) = (deployment.lab.node(here, from), deployment.lab.node(there, to));
        let address = SocketAddrV4::new(to.pod_address, PORT);
        let seen = transfer(&from.pod, &to.pod, address, &[7; 100_000]);
        assert_eq!(deployment.explain(seen).unwrap().source, from.pod_address, "{} to {}", from.name, to.name);
    });
}

/// D2: pod to service. The gateway's kube-proxy rules are the first that the packet meets, so its pod answers.
fn assert_pods_reach_services(deployment: &Deployment) {
    each_pair(|(here, from), (there, _)| {
        let (from, to) = (deployment.lab.node(here, from), deployment.lab.node(there, "gw"));
        let cluster = deployment.lab.cluster(there);
        let address = SocketAddrV4::new(cluster.plan.service_address(), cluster.service_port());
        let seen = transfer(&from.pod, &to.pod, address, &[7; 10_000]);
        assert_eq!(deployment.explain(seen).unwrap().source, from.pod_address, "{} to {there}'s service", from.name);
    });
}

/// D3: a process on the node itself to a pod; the matrix names workers' pods only, we take all.
fn assert_hosts_reach_pods(deployment: &Deployment) {
    each_pair(|(here, from), (there, to)| {
        let (from, to) = (deployment.lab.node(here, from), deployment.lab.node(there, to));
        let address = SocketAddrV4::new(to.pod_address, PORT);
        let seen = transfer(&from.namespace, &to.pod, address, &[7; 10_000]);
        deployment.explain(seen).unwrap();
    });
}

/// D5: the active gateway says so, with its version, its endpoint and its connections.
fn assert_gateways_report(deployment: &Deployment, driver: &str) {
    for (here, there) in [("east", "west"), ("west", "east")] {
        let gateway = deployment.active_gateway(here).unwrap().unwrap();
        let status = &gateway["status"];
        assert!(!status["version"].as_str().unwrap().is_empty(), "{gateway}");
        assert_eq!(status["statusFailure"].as_str().unwrap_or_default(), "", "{gateway}");
        assert_eq!(status["localEndpoint"]["cluster_id"], here, "{gateway}");
        assert_eq!(status["localEndpoint"]["backend"], driver, "{gateway}");
        let connections = status["connections"].as_array().unwrap();
        assert_eq!(connections.len(), 1, "{gateway}");
        assert_eq!(connections[0]["status"], "connected", "{gateway}");
        assert_eq!(connections[0]["endpoint"]["cluster_id"], there, "{gateway}");
    }
}

fn each_pair(mut check: impl FnMut((&str, &str), (&str, &str))) {
    for (here, there) in [("east", "west"), ("west", "east")] {
        for from in NODES {
            for to in NODES {
                check((here, from), (there, to));
            }
        }
    }
}

fn assert_all(topology: &Topology, driver: CableDriver, name: &str) {
    let deployment = Deployment::connected(topology, Settings { driver, ..Settings::default() }).unwrap();
    assert_pods_reach_pods(&deployment);
    assert_pods_reach_services(&deployment);
    assert_hosts_reach_pods(&deployment);
    assert_gateways_report(&deployment, name);
}

#[test]
fn wireguard_joins_routed_clusters() {
    assert_all(&Topology::routed(), CableDriver::WireGuard, "wireguard");
}

#[test]
fn vxlan_joins_routed_clusters() {
    assert_all(&Topology::routed(), CableDriver::Vxlan, "vxlan");
}

#[test]
fn wireguard_joins_clusters_with_west_behind_nat() {
    assert_all(&Topology::east_west(), CableDriver::WireGuard, "wireguard");
}

#[test]
fn wireguard_joins_clusters_with_east_behind_nat() {
    let mut topology = Topology::routed();
    topology.cluster_mut("east").behind_nat = true;
    assert_all(&topology, CableDriver::WireGuard, "wireguard");
}

/// One gateway holds both kinds of cable at once: VXLAN has the configured port, WireGuard the next.
#[test]
fn one_gateway_holds_both_kinds_of_cable() {
    let lab = Lab::build(&Topology::routed().with_north()).unwrap();
    let mut deployment = Deployment::new(lab, Settings::default()).unwrap();
    for (cluster, driver, allowed) in
        [("east", "vxlan", "north"), ("north", "vxlan", "east"), ("west", "wireguard", "")]
    {
        for node in ["gw", "worker"] {
            deployment.start(cluster, node, Role::RouteAgent).unwrap();
        }
        // Flags of the lab that name one driver for all give way to variables, which differ.
        let adjust = |command: &mut Command| {
            let mut own = Command::new(command.get_program());
            let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            let at = arguments.iter().position(|argument| argument == "--cable-driver").unwrap();
            own.args(&arguments[..at]).args(&arguments[at + 2..]);
            own.env("SUBMARINER_CABLEDRIVER", driver).env("CULVERT_ALLOW_VXLAN", allowed);
            *command = own;
        };
        deployment.start_with(cluster, "gw", Role::Gateway, adjust).unwrap();
    }
    deployment.wait_connected(&["east", "west", "north"]).unwrap();
    let east = deployment.lab.node("east", "worker");
    for remote in ["west", "north"] {
        let far = deployment.lab.node(remote, "worker");
        deployment.wait_reachable(&east.pod, far.pod_address).unwrap();
        let to = SocketAddrV4::new(far.pod_address, PORT);
        assert_eq!(transfer(&east.pod, &far.pod, to, b"hello").unwrap().source, east.pod_address);
    }
    let own = deployment.wait_endpoint("east").unwrap();
    assert_eq!(own["spec"]["backend_config"]["udp-port"], "4501");
    let shown = deployment.show("connections", "east").unwrap();
    let driver = |cluster: &str| shown.lines().find(|line| line.contains(cluster)).unwrap().to_owned();
    assert!(driver("west").contains("10.2.0.0/16") && driver("north").contains("10.3.0.0/16"), "{shown}");
    let vxlan = deployment.lab.node("east", "gw").namespace.run("ip route show table 7201").unwrap();
    assert!(vxlan.lines().any(|line| line.starts_with("10.3.0.0/16") && line.contains("dev culvert-vx")), "{vxlan}");
    assert!(vxlan.lines().any(|line| line.starts_with("10.2.0.0/16") && line.contains("dev culvert-wg")), "{vxlan}");
}
