//! Clusters with the same CIDRs reach each other's services and pods by global addresses, and servers see who called
//! (Submariner's cases G1 to G6), whatever rules for services the nodes have besides.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use culvert_netns_tests::{
    BackendPlan, Caller, Greeter, Node, Overlapping, Proxy, Role, Topology, Transport, greet_from, ping, write_egress,
    write_endpoints,
};
use serde_json::json;

const CLUSTERS: [(&str, &str); 2] = Overlapping::CLUSTERS;
const NODES: [&str; 2] = ["gw", "worker"];
const PORT: u16 = Overlapping::PORT;
const TARGET_PORT: u16 = Overlapping::TARGET_PORT;

/// G1 and G6: the server sees one of the addresses of the whole cluster.
fn pods_reach_services_by_global_addresses(world: &Overlapping) {
    for (here, there) in CLUSTERS {
        let to = SocketAddrV4::new(world.global_address(there, "web").unwrap(), PORT);
        let expected = world.cluster_egress(here).unwrap();
        assert_eq!(expected.len(), 8);
        for node in NODES {
            for transport in Transport::ALL {
                let mut who = BTreeSet::new();
                for _ in 0..16 {
                    let greeting = world.greet(&world.pod(here, node), transport, to).unwrap();
                    assert!(expected.contains(&greeting.source), "{transport:?} from {here}-{node}: {greeting:?}");
                    who.insert(greeting.who);
                }
                // One in 32,768 has all sixteen at one backend.
                assert_eq!(who, BTreeSet::from([format!("{there}-gw"), format!("{there}-worker")]), "{transport:?}");
            }
        }
    }
}

/// G4: a process on a node, with an address of the node's, has the cluster's addresses too.
fn hosts_reach_services_by_global_addresses(world: &Overlapping) {
    for (here, there) in CLUSTERS {
        let to = SocketAddrV4::new(world.global_address(there, "web").unwrap(), PORT);
        for node in NODES {
            for transport in Transport::ALL {
                let greeting = world.greet(&world.node(here, node).namespace, transport, to).unwrap();
                assert!(world.cluster_egress(here).unwrap().contains(&greeting.source), "{here}-{node}: {greeting:?}");
            }
        }
    }
}

/// G5: each pod of a headless service has an address of its own, by which it also leaves.
fn headless_pods_are_reached_and_leave_by_their_own_addresses(world: &Overlapping) {
    for (here, there) in CLUSTERS {
        for node in NODES {
            let to = SocketAddrV4::new(world.global_address(there, &format!("pod-db-{node}")).unwrap(), TARGET_PORT);
            let own = world.global_address(here, &format!("pod-db-{node}")).unwrap();
            for transport in Transport::ALL {
                let from = world.second_pod(here, node);
                let greeting = world.greet(&from, transport, to).unwrap();
                assert_eq!(greeting.who, format!("{there}-db-{node}"));
                assert_eq!(greeting.source, own, "{transport:?} from {here}-db-{node}");
            }
        }
    }
}

/// G2 and G3: a namespace's pods, and pods that a selector chooses, which comes first.
fn chosen_pods_leave_by_their_own_addresses(world: &Overlapping) {
    for (here, there) in CLUSTERS {
        let store = world.store(here);
        write_egress(&store, "all", 2, None).unwrap();
        write_egress(&store, "workers", 3, Some(json!({"node": "worker"}))).unwrap();
        let to = SocketAddrV4::new(world.global_address(there, "web").unwrap(), PORT);
        for (node, object, number) in [("gw", "all", 2), ("worker", "workers", 3)] {
            let expected = world.egress(here, object).unwrap();
            assert_eq!(expected.len(), number);
            for transport in Transport::ALL {
                let from = world.pod(here, node);
                world.wait_greeting(&from, transport, to, |it| expected.contains(&it.source)).unwrap();
            }
        }
        // A pod of a headless service keeps its own, but for a selector.
        let to = SocketAddrV4::new(world.global_address(there, "pod-db-gw").unwrap(), TARGET_PORT);
        let greeting = world.greet(&world.second_pod(here, "gw"), Transport::Tcp, to).unwrap();
        assert_eq!(greeting.source, world.global_address(here, "pod-db-gw").unwrap());
    }
}

/// A service's address answers pings, and what nobody holds is refused at once, by the address that was asked.
fn addresses_answer_or_refuse(world: &Overlapping) {
    let from = world.pod("east", "worker");
    for name in ["web", "pod-db-worker"] {
        let pings = ping(&from, world.global_address("west", name).unwrap(), 3, Duration::from_millis(10)).unwrap();
        assert_eq!(pings.lost, 0, "{name}");
    }
    let nobody = "242.2.77.77".parse().unwrap();
    assert_eq!(ping(&from, nobody, 1, Duration::from_millis(10)).unwrap().lost, 1);
    for address in [nobody, world.global_address("west", "web").unwrap()] {
        // Port 81 is no port of the service.
        let error = greet_from(&from, Transport::Tcp, SocketAddrV4::new(address, 81), 0).unwrap_err();
        assert!(format!("{error:#}").contains("refused"), "{error:#}");
        let error = greet_from(&from, Transport::Udp, SocketAddrV4::new(address, 81), 0).unwrap_err();
        assert!(format!("{error:#}").contains("refused"), "{error:#}");
    }
}

/// A backend in the network of its node is reached, and sees who called.
fn backends_on_node_networks_serve(world: &Overlapping) {
    let expected = world.cluster_egress("west").unwrap();
    for node in NODES {
        let Node { namespace, address, .. } = world.node("east", node);
        let _server = Greeter::start(namespace, "host", TARGET_PORT).unwrap();
        write_endpoints(&world.store("east"), &Overlapping::web(), &[BackendPlan::ready("host", *address)]).unwrap();
        let to = SocketAddrV4::new(world.global_address("east", "web").unwrap(), PORT);
        for transport in Transport::ALL {
            let from = world.pod("west", "worker");
            let source = world.wait_greeting(&from, transport, to, |it| it.who == "host").unwrap().source;
            assert!(expected.contains(&source), "{transport:?} to {node}: {source}");
        }
    }
    world.write_web("east").unwrap();
}

/// While a flow lives, its gateway tells which pod stands behind what the server sees.
fn a_gateway_tells_who_called(world: &Overlapping) {
    let to = SocketAddrV4::new(world.global_address("west", "web").unwrap(), PORT);
    let mut caller = Caller::open(&world.pod("east", "worker"), Transport::Tcp, to, 45_678).unwrap();
    let seen = caller.greet().unwrap().source;
    let told = world.deployment.ask_globalnet("east", "gw", &["--who-called", &seen.to_string()]).unwrap();
    let address = world.node("east", "worker").pod_address;
    let line = format!("is pod shop/web-worker ({address}:45678), to {to}");
    assert!(told.contains(&line), "{told}");
    let told = world.deployment.ask_globalnet("east", "gw", &["--who-called", "242.1.99.99"]).unwrap();
    assert!(told.starts_with("No flow on this node leaves by 242.1.99.99"), "{told}");
}

fn assert_all(proxy: Proxy) {
    let world = Overlapping::up(&Topology::overlapping(proxy)).unwrap();
    pods_reach_services_by_global_addresses(&world);
    hosts_reach_services_by_global_addresses(&world);
    headless_pods_are_reached_and_leave_by_their_own_addresses(&world);
    addresses_answer_or_refuse(&world);
    backends_on_node_networks_serve(&world);
    a_gateway_tells_who_called(&world);
    chosen_pods_leave_by_their_own_addresses(&world);
}

#[test]
fn clusters_with_the_same_cidrs_talk_beside_the_nftables_proxy() {
    assert_all(Proxy::Nftables);
}

#[test]
fn clusters_with_the_same_cidrs_talk_beside_the_iptables_proxy() {
    assert_all(Proxy::Iptables);
}

#[test]
fn clusters_with_the_same_cidrs_talk_without_any_proxy() {
    assert_all(Proxy::None);
}

#[test]
fn addresses_and_flows_outlive_a_restart_and_changes_of_others() {
    let mut world = Overlapping::up(&Topology::overlapping(Proxy::Nftables)).unwrap();
    let to = SocketAddrV4::new(world.global_address("west", "web").unwrap(), PORT);
    let mut callers: Vec<Caller> = Transport::ALL
        .into_iter()
        .map(|transport| Caller::open(&world.pod("east", "worker"), transport, to, 0).unwrap())
        .collect();
    let first: Vec<_> = callers.iter_mut().map(|caller| caller.greet().unwrap()).collect();

    for here in ["east", "west"] {
        world.deployment.kill(here, "gw", Role::Globalnet).unwrap();
        world.deployment.start(here, "gw", Role::Globalnet).unwrap();
        world.deployment.daemon(here, "gw", Role::Globalnet).wait_ready(Duration::from_secs(10)).unwrap();
    }
    world.write_another("west", "other").unwrap();
    world.wait_address("west", "other").unwrap();

    assert_eq!(world.global_address("west", "web").unwrap(), *to.ip());
    let second: Vec<_> = callers.iter_mut().map(|caller| caller.greet().unwrap()).collect();
    assert_eq!(first, second);
}

#[test]
fn uninstalling_leaves_nothing() {
    let mut world = Overlapping::up(&Topology::overlapping(Proxy::Nftables)).unwrap();
    world.deployment.uninstall("east").unwrap();
    assert_eq!(world.deployment.leftovers("east").unwrap(), Vec::<String>::new());
}
