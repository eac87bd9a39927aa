//! D1 to D5: who reaches whom, as whom, and what the records say.

use culvert_netns_tests::wait_for;

use crate::world::{PATIENCE, Site, World, assert_pods_reach_pods, assert_pods_reach_service};

/// D1 and D4: worker and gateway nodes' pods, both directions.
pub(crate) fn pods_reach_pods_as_who_they_are(world: &World) {
    assert_pods_reach_pods(&world.east, &world.west);
    assert_pods_reach_pods(&world.west, &world.east);
}

/// D2: kube-proxy is in its iptables form on one side, in its nftables form on the other.
pub(crate) fn pods_reach_services_as_who_they_are(world: &World) {
    assert_pods_reach_service(&world.east, &world.west);
    assert_pods_reach_service(&world.west, &world.east);
    // That of a Deployment, too.
    for (from, to) in [(&world.east, &world.west), (&world.west, &world.east)] {
        for pod in &from.web.pods {
            let source = wait_for("the shop", PATIENCE, || pod.source_seen_by(&to.shop).map(Some)).unwrap();
            assert_eq!(source, pod.address);
        }
    }
}

/// D3: pods in the network of a worker node and of a gateway node.
pub(crate) fn host_network_pods_reach_pods(world: &World) {
    for (from, to) in [(&world.east, &world.west), (&world.west, &world.east)] {
        for pod in &from.hosts {
            for other in &to.web.pods {
                let what = format!("an answer of {} to node {}", other.address, pod.node.name);
                let name = wait_for(&what, PATIENCE, || pod.page(&format!("http://{}", other.web())).map(Some));
                assert_eq!(name.unwrap().trim(), other.name, "{what}");
                pod.fetch_large(&other.web()).unwrap();
            }
        }
    }
}

/// D5: each labelled node has a Gateway record that says what is so; `culvert show` says the same.
pub(crate) fn gateways_report_themselves(world: &World) {
    for (here, there) in [(&world.east, &world.west), (&world.west, &world.east)] {
        let gateway = here.wait_gateways(&["node1"], &[there.name()]);
        let status = &gateway["status"];
        assert!(status["version"].as_str().unwrap().starts_with("culvert-"), "{gateway}");
        assert_eq!(status["statusFailure"].as_str().unwrap_or_default(), "", "{gateway}");
        assert_eq!(status["localEndpoint"]["cluster_id"], here.name());
        assert_eq!(status["localEndpoint"]["hostname"], here.cluster.nodes[0].name);
        assert_eq!(status["localEndpoint"]["private_ip"], here.cluster.nodes[0].address.to_string());
        let connection = &status["connections"][0];
        assert_eq!(connection["usingIP"], there.cluster.nodes[0].address.to_string());
        assert_eq!(connection["endpoint"]["hostname"], there.cluster.nodes[0].name);
        assert_shown(world, here, there);
    }
}

fn assert_shown(world: &World, here: &Site, there: &Site) {
    let gateways = world.culvert(here, "show gateways");
    assert!(gateways.contains(&here.cluster.nodes[0].name) && gateways.contains("active"), "{gateways}");
    let connections = world.culvert(here, "show connections");
    assert!(connections.contains(&there.cluster.nodes[0].name) && connections.contains("connected"), "{connections}");
}
