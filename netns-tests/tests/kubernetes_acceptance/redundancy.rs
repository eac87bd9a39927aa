//! R1 to R4, a gateway's label that is moved, a rolling update: what ends and comes back while traffic goes on.

use std::collections::BTreeSet;

use culvert_netns_tests::kubernetes::{CULVERT, join_line};
use culvert_netns_tests::{run, wait_for};
use serde_json::Value;

use crate::world::{PATIENCE, Site, Traffic, World, assert_joined};

const GATEWAY: &str = "culvert-gateway";
const ROUTE_AGENT: &str = "culvert-route-agent";
const LABEL: &str = "submariner.io/gateway=true";
/// As a newer release would be named.
const NEWER: &str = "culvert.lab/culvert:2";

/// R1: the only gateway's pod is deleted.
pub(crate) fn a_gateway_pod_is_replaced(world: &World) {
    let mut traffic = Traffic::start(&world.west, &world.east);
    world.east.replace_pods(GATEWAY, "node1");
    world.east.wait_gateways(&["node1"], &["west"]);
    traffic.assert_flow_lives();
    assert_joined(&world.east, &world.west);
    println!("    {:?}", traffic.finish());
}

/// R2: the active of two gateways' pods is deleted, and the standby takes over. The one that comes back stands by.
pub(crate) fn a_standby_takes_over(world: &World) {
    world.east.label("node2", LABEL);
    world.east.wait_gateways(&["node1", "node2"], &["west"]);
    let traffic = Traffic::start(&world.west, &world.east);
    world.east.replace_pods(GATEWAY, "node1");
    world.east.wait_active(&["node2", "node1"], &["west"]);
    assert_joined(&world.east, &world.west);
    traffic.finish_with_little_loss();
}

/// R3 and R4: routes stay while a node's agent is replaced.
pub(crate) fn route_agents_are_replaced_without_loss(world: &World) {
    let traffic = Traffic::start(&world.east, &world.west);
    for node in ["node1", "node2"] {
        world.east.replace_pods(ROUTE_AGENT, node);
        assert_joined(&world.east, &world.west);
    }
    traffic.finish_without_loss();
}

/// The label goes to another node: the gateway follows it, and nothing is left of it where it was.
pub(crate) fn the_gateways_label_moves(world: &World) {
    let west = &world.west;
    let traffic = Traffic::start(&world.east, west);
    west.label("node2", LABEL);
    west.wait_gateways(&["node1", "node2"], &["east"]);
    west.label("node1", "submariner.io/gateway-");
    west.wait_gateways(&["node2"], &["east"]);
    assert_joined(&world.east, west);
    traffic.finish_with_little_loss();
    assert!(!west.cluster.nodes[0].namespace.run("ip link show").unwrap().contains("culvert-wg"));
}

/// A newer image in both clusters, and VXLAN cables to each other, by the command that joined them. East comes first, which
/// has a standby: little is lost, and the cable stays WireGuard's, since west does not name VXLAN yet.
pub(crate) fn culvert_is_updated_under_traffic(world: &World) {
    let (east, west) = (&world.east, &world.west);
    for node in [east, west].iter().flat_map(|site| &site.cluster.nodes) {
        let tag = ["--namespace", "k8s.io", "images", "tag", CULVERT, NEWER];
        run(node.command("ctr").unwrap().args(tag)).unwrap();
    }
    let traffic = Traffic::start(west, east);
    update(world, east, west);
    east.wait_gateways(&["node1", "node2"], &["west"]);
    assert_joined(east, west);
    assert_eq!(received_by_vxlan(west), None);
    traffic.finish_with_little_loss();

    let traffic = Traffic::start(west, east);
    update(world, west, east);
    let received = wait_for("a VXLAN cable", PATIENCE, || Ok(received_by_vxlan(west))).unwrap();
    west.wait_gateways(&["node2"], &["east"]);
    assert_joined(east, west);
    assert!(received_by_vxlan(west).unwrap() > received, "no packets came by VXLAN");
    println!("    without a standby: {:?}", traffic.finish());
}

fn update(world: &World, site: &Site, peer: &Site) {
    let join = join_line(site.cluster).replace(CULVERT, NEWER);
    world.culvert(site, &format!("{join} --cable-driver vxlan --allow-vxlan {}", peer.name()));
    let pods = [GATEWAY, ROUTE_AGENT].map(|name| site.own_pods(name, None).unwrap()).concat();
    let image = |pod: &Value| pod["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
    assert_eq!(pods.iter().map(image).collect::<BTreeSet<_>>(), [NEWER.to_owned()].into());
}

/// Returns how many packets have come to the gateway of west by VXLAN; none if it has no link for that.
fn received_by_vxlan(west: &Site) -> Option<u64> {
    let statistics = west.cluster.node("node2").namespace.run("ip -json -stats link show culvert-vx").ok()?;
    let links: Value = serde_json::from_str(&statistics).unwrap();
    Some(links[0]["stats64"]["rx"]["packets"].as_u64().unwrap())
}
