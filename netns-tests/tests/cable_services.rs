//! Clusters with CIDRs of their own: a service's cluster address is served to what comes by a cable, with the source kept,
//! also where no kube-proxy runs, and where it runs with rules of its own.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use culvert_netns_tests::{
    BackendPlan, Deployment, Greeter, Proxy, Role, ServicePlan, Settings, Topology, Transport, greet_from, wait_for,
    write_endpoints, write_service,
};

const NODES: [&str; 2] = ["gw", "worker"];
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(10);

fn assert_served(proxy: Proxy) {
    let mut topology = Topology::routed();
    for cluster in &mut topology.clusters {
        cluster.proxy = proxy;
    }
    let mut deployment = Deployment::connected(&topology, Settings::default()).unwrap();
    deployment.start("west", "gw", Role::Globalnet).unwrap();
    deployment.daemon("west", "gw", Role::Globalnet).wait_ready(PATIENCE).unwrap();
    let lab = &deployment.lab;
    let west = lab.cluster("west");
    let _servers = NODES.map(|node| Greeter::start(&lab.node("west", node).pod, node, PORT).unwrap());
    let plan = ServicePlan {
        name: "web".to_owned(),
        cluster_ip: Some(west.plan.service_address()),
        port: west.service_port(),
        target_port: PORT,
        affinity: None,
    };
    let backends = NODES.map(|node| BackendPlan::ready(node, lab.node("west", node).pod_address));
    write_service(&west.records(), &plan, &backends).unwrap();
    let to = SocketAddrV4::new(west.plan.service_address(), plan.port);
    for transport in Transport::ALL {
        for from in NODES.map(|node| lab.node("east", node)) {
            let mut who = BTreeSet::new();
            let found = wait_for("answers of both pods", PATIENCE, || {
                let greeting = greet_from(&from.pod, transport, to, 0)?;
                assert_eq!(greeting.source, from.pod_address, "{transport:?} from {}", from.name);
                who.insert(greeting.who);
                Ok((who.len() == 2).then_some(()))
            });
            deployment.explain(found).unwrap();
        }
    }

    // A backend in the network of its node, on the other node than the gateway's, sees who called as well.
    let worker = lab.node("west", "worker");
    let _host = Greeter::start(&worker.namespace, "host", PORT).unwrap();
    write_endpoints(&west.records(), &plan, &[BackendPlan::ready("host", worker.address)]).unwrap();
    let from = lab.node("east", "worker");
    let found = wait_for("an answer of the host", PATIENCE, || {
        let greeting = greet_from(&from.pod, Transport::Tcp, to, 0)?;
        Ok((greeting.who == "host").then_some(greeting.source))
    });
    assert_eq!(deployment.explain(found).unwrap(), from.pod_address);
}

#[test]
fn cluster_addresses_are_served_without_kube_proxy() {
    assert_served(Proxy::None);
}

#[test]
fn cluster_addresses_are_served_beside_kube_proxy() {
    assert_served(Proxy::Iptables);
}
