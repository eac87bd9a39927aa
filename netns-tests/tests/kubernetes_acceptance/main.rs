//! The acceptance list on real clusters: what Submariner's end-to-end suite asks, and what operators do to a clusterset.
//!
//! One lab, one installation by `culvert deploy-broker` and `culvert join`, all cases one after the other: D1 to D5, R1 to
//! R5 and R7, each in the words of its function. No case waits for a time; those with traffic say what it lost.

#![allow(clippy::unwrap_used)]

mod connectivity;
mod membership;
mod outage;
mod redundancy;
mod standalone;
mod world;

use std::time::Instant;

use culvert_netns_tests::Binaries;
use culvert_netns_tests::kubernetes::{Lab, Plan, ProxyMode};

use crate::world::{LastWords, World};

#[test]
fn two_clusters_and_a_third_hold_what_the_list_asks() {
    Binaries::find().unwrap();
    let mut plan = Plan::new("acceptance", &["east", "west", "north"], 2, ProxyMode::Iptables).unwrap();
    plan.cluster_mut("west").proxy_mode = ProxyMode::Nftables;
    let north = &mut plan.cluster_mut("north").network;
    north.nodes.truncate(1);
    north.behind_nat = true;
    let lab = Lab::up(&plan).unwrap();
    let _last_words = LastWords(&lab);
    let world = World::new(&lab);
    let before = [&world.east, &world.west].map(|site| site.objects());

    case("two clusters are joined by deploy-broker and join", || {
        world.installer.deploy(world.east.cluster, &[world.east.cluster, world.west.cluster]).unwrap();
    });
    case("D1, D4: pods reach pods as who they are", || connectivity::pods_reach_pods_as_who_they_are(&world));
    case("D2: pods reach Services as who they are", || connectivity::pods_reach_services_as_who_they_are(&world));
    case("D3: pods in the host's network reach pods", || connectivity::host_network_pods_reach_pods(&world));
    case("D5: gateways report themselves", || connectivity::gateways_report_themselves(&world));
    case("R1: a gateway's pod is replaced", || redundancy::a_gateway_pod_is_replaced(&world));
    case("R2: a standby takes over", || redundancy::a_standby_takes_over(&world));
    case("R3, R4: route agents are replaced without loss", || {
        redundancy::route_agents_are_replaced_without_loss(&world);
    });
    case("the gateway's label moves", || redundancy::the_gateways_label_moves(&world));
    case("R5: a lease cannot be renewed for a while", || outage::a_lease_cannot_be_renewed(&world));
    let _server = case("an API server is away for minutes, a node is drained", || {
        outage::an_api_server_is_away_for_minutes(&world)
    });
    case("R7: a third cluster joins and leaves", || membership::a_third_cluster_joins_and_leaves(&world));
    case("a site without Kubernetes joins and leaves", || {
        standalone::a_site_without_kubernetes_joins_and_leaves(&world)
    });
    case("Culvert is updated under traffic, and changes to VXLAN", || {
        redundancy::culvert_is_updated_under_traffic(&world)
    });
    case("all leave and nothing is left", || {
        membership::all_leave_and_nothing_is_left(&world, [&before[0], &before[1]]);
    });
}

/// Says that a case holds, and how long that took to find out.
fn case<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = work();
    println!("ok: {name} ({:.0} s)", began.elapsed().as_secs_f64());
    result
}
