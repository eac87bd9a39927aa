//! R7 and the end: a third cluster comes and goes, and everybody leaves.

use std::collections::BTreeSet;
use std::thread;

use anyhow::ensure;
use culvert_netns_tests::kubernetes::join_line;
use culvert_netns_tests::{leftovers, run, wait_for};

use crate::world::{PATIENCE, Site, Traffic, World, assert_joined, broker_records};

/// R7: north, behind NAT, joins by the address that its router shows, and leaves again. The others lose nothing.
pub(crate) fn a_third_cluster_joins_and_leaves(world: &World) {
    let [east, west, north] = world.sites();
    let before = north.objects();
    let traffic = Traffic::start(east, west);
    let public = format!("--public-ip=ipv4:{}", north.cluster.public_address);
    world.culvert(north, &join_line(north.cluster).replace("--natt=false", &public));
    north.wait_gateways(&["node1"], &["east", "west"]);
    for other in [east, west] {
        assert_joined(north, other);
    }
    world.culvert(north, "uninstall --yes");
    assert_nothing_left(north, &before);
    for (site, gateways, peer) in [(east, &["node2", "node1"][..], "west"), (west, &["node2"], "east")] {
        site.wait_gateways(gateways, &[peer]);
        assert_no_way_to(site, north);
    }
    assert!(broker_records(east).iter().all(|record| !record.contains("/north")), "{:?}", broker_records(east));
    traffic.finish_without_loss();
}

/// Connectivity goes, and by a refusal on the node: not by packets that leave the cluster in clear.
fn assert_no_way_to(site: &Site, gone: &Site) {
    for pod in &site.web.pods {
        wait_for("the end of the way to a cluster that has left", PATIENCE, || {
            let answer =
                pod.command(&["ping", "-c", "1", "-W", "1", &gone.web.pods[0].address.to_string()])?.output()?;
            ensure!(!answer.status.success(), "it answers");
            Ok(Some(()))
        })
        .unwrap();
        let route =
            pod.node.namespace.run(&format!("ip route get {} from {} iif cni0", gone.web.pods[0].address, pod.address));
        assert!(route.is_err(), "{} still has a way to {}: {route:?}", pod.node.name, gone.name());
    }
}

/// Both leave at once, the broker's cluster last; nothing is left of it all.
pub(crate) fn all_leave_and_nothing_is_left(world: &World, before: [&BTreeSet<String>; 2]) {
    world.culvert(&world.west, "uninstall --yes");
    world.culvert(&world.east, "uninstall --yes");
    thread::scope(|scope| {
        for (site, before) in [&world.east, &world.west].into_iter().zip(before) {
            scope.spawn(move || assert_nothing_left(site, before));
        }
    });
}

fn assert_nothing_left(site: &Site, before: &BTreeSet<String>) {
    for node in &site.cluster.nodes {
        assert_eq!(leftovers(&node.namespace).unwrap(), Vec::<String>::new(), "{}", node.name);
        let keys = "find /run/culvert -type f";
        assert_eq!(run(node.command("sh").unwrap().args(["-c", keys])).unwrap(), "", "{}", node.name);
    }
    // The server's own controllers take a moment.
    let what = format!("an API server of {} as it was before", site.name());
    wait_for(&what, PATIENCE, || {
        let now = site.objects();
        let left: Vec<&String> = now.difference(before).collect();
        let lost: Vec<&String> = before.difference(&now).collect();
        ensure!(left.is_empty() && lost.is_empty(), "left: {left:?}; lost: {lost:?}");
        Ok(Some(()))
    })
    .unwrap();
}
