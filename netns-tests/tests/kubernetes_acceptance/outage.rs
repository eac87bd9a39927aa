//! R5: a lease that cannot be renewed; an API server that is away for minutes, and a node that is drained meanwhile. No
//! packet waits for any of it.

use std::time::{Duration, Instant};

use anyhow::ensure;
use culvert_netns_tests::kubernetes::{NAMESPACE, Node, pods};
use culvert_netns_tests::{ControlPlane, kill_control_plane, run, start_control_plane, wait_for};
use serde_json::{Value, json};

use crate::world::{PATIENCE, SHOP, Site, Traffic, World, assert_joined};

/// How long the API server of east stays away, which has the broker as well.
const OUTAGE: Duration = Duration::from_secs(120);

/// R5: west's gateway loses the right to its lease and is deposed, but forwards. With the right it has the lease again.
pub(crate) fn a_lease_cannot_be_renewed(world: &World) {
    let west = &world.west;
    let active = west.cluster.node("node2");
    let deposed = times_deposed(active);
    let role = west.cluster.json(&format!("get role culvert-gateway --namespace {NAMESPACE}")).unwrap();
    let mut without = role.clone();
    let rules = without["rules"].as_array_mut().unwrap();
    rules.retain(|rule| rule["resources"] != json!(["leases"]));
    assert_eq!(rules.len() + 1, role["rules"].as_array().unwrap().len(), "{role}");
    let traffic = Traffic::start(&world.east, west);
    west.cluster.apply(&bare(without).to_string()).unwrap();
    wait_deposed(active, deposed);
    assert_joined(&world.east, west);
    let renewed = lease_renewed(west);
    west.cluster.apply(&bare(role).to_string()).unwrap();
    wait_renewed(west, &renewed);
    west.wait_active(&["node2"], &["east"]);
    assert_joined(&world.east, west);
    traffic.finish_without_loss();
}

/// The API server of east is killed. Its gateway cannot renew its lease and is deposed, but all goes on; west's nodes are
/// drained and its pods replaced meanwhile, without a broker. When the server is back, the gateway has its lease again.
pub(crate) fn an_api_server_is_away_for_minutes(world: &World) -> ControlPlane {
    let (east, west) = (&world.east, &world.west);
    let active = east.cluster.node("node2");
    let deposed = times_deposed(active);
    let renewed = lease_renewed(east);
    let traffic = Traffic::start(west, east);
    kill_control_plane(east.cluster).unwrap();
    let began = Instant::now();
    wait_deposed(active, deposed);
    wait_failure(west, "the broker's outage in the status", |failure| failure.contains("broker"));
    assert_joined(east, west);
    for node in ["node1", "node2"] {
        west.replace_pods("culvert-route-agent", node);
    }
    a_node_is_drained(world);
    traffic.finish_without_loss();

    // West's gateway starts anew with what its own API server has of east.
    let mut traffic = Traffic::start(west, east);
    west.replace_pods("culvert-gateway", "node2");
    traffic.assert_flow_lives();
    assert_joined(east, west);
    traffic.finish();

    let traffic = Traffic::start(west, east);
    // Nothing is asserted of this time; packets are to be on their way during it.
    std::thread::sleep(OUTAGE.saturating_sub(began.elapsed()));
    assert_joined(east, west);
    let server = start_control_plane(world.lab, east.cluster).unwrap();
    wait_renewed(east, &renewed);
    // Whichever comes first.
    east.wait_gateways(&["node2", "node1"], &["west"]);
    wait_failure(west, "a status without an outage", str::is_empty);
    assert_joined(east, west);
    traffic.finish_without_loss();
    server
}

/// The node of west's gateway goes out of service: the pods of Deployments go elsewhere and are reached there.
fn a_node_is_drained(world: &World) {
    let (east, west) = (&world.east, &world.west);
    let drained = &west.cluster.node("node2").name;
    let shop = || pods(west.cluster, "app=shop");
    assert!(shop().unwrap().iter().any(|pod| pod.node.name == *drained), "a pod is on the node that is drained");
    west.cluster.kubectl(&format!("drain {drained} --ignore-daemonsets --timeout=120s")).unwrap();
    west.cluster.kubectl("rollout status deployment/shop --timeout=120s").unwrap();
    let moved = shop().unwrap();
    assert!(moved.len() == SHOP && moved.iter().all(|pod| pod.node.name != *drained), "{moved:?}");
    for pod in &east.web.pods {
        let answer = wait_for("an answer of a pod that has moved", PATIENCE, || {
            let answer = pod.ask(&west.shop)?;
            ensure!(moved.iter().any(|moved| moved.name == answer.server), "{answer:?}");
            Ok(Some(answer))
        });
        assert_eq!(answer.unwrap().source, pod.address);
    }
    west.wait_gateways(&["node2"], &["east"]);
    assert_joined(east, west);
    west.cluster.kubectl(&format!("uncordon {drained}")).unwrap();
}

fn wait_failure(site: &Site, what: &str, wanted: impl Fn(&str) -> bool) {
    wait_for(what, PATIENCE, || {
        let gateways = site.gateways()?;
        let failure = gateways[0]["status"]["statusFailure"].as_str().unwrap_or_default().to_owned();
        ensure!(wanted(&failure), "{failure:?}");
        Ok(Some(()))
    })
    .unwrap();
}

fn lease_renewed(site: &Site) -> Value {
    let lease = format!("get lease submariner-gateway-lock --namespace {NAMESPACE}");
    site.cluster.json(&lease).unwrap()["spec"]["renewTime"].clone()
}

fn wait_renewed(site: &Site, before: &Value) {
    wait_for("a lease that is renewed again", PATIENCE, || Ok((lease_renewed(site) != *before).then_some(()))).unwrap();
}

fn wait_deposed(node: &Node, before: usize) {
    wait_for("a gateway that cannot renew its lease", PATIENCE, || Ok((times_deposed(node) > before).then_some(())))
        .unwrap();
}

/// Returns an object without what the API server wrote about it.
fn bare(mut object: Value) -> Value {
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.retain(|key, _| ["name", "namespace", "labels"].contains(&key.as_str()));
    object
}

/// Counts how often gateways on a node have said that they are deposed, in the node's own files: no API server is asked.
fn times_deposed(node: &Node) -> usize {
    let logs = "cat /var/log/pods/*_culvert-gateway-*/*/*.log";
    let text = run(node.command("sh").unwrap().args(["-c", logs])).unwrap();
    text.lines().filter(|line| line.contains("Leadership has changed") && line.contains("Deposed")).count()
}
