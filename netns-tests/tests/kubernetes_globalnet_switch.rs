//! `culvert` gives joined clusters of Kubernetes global CIDRs, takes them back, and says what it could not give back.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use culvert_netns_tests::kubernetes::{
    BROKER_NAMESPACE, Cluster, Installer, Lab, NAMESPACE, Plan, ProxyMode, join_line, state,
};
use culvert_netns_tests::{Binaries, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// Returns what the broker has noted: entries, and what rests.
fn noted(broker: &Cluster) -> (Value, String) {
    let map = broker.json(&format!("get configmap submariner-globalnet-info --namespace {BROKER_NAMESPACE}")).unwrap();
    let entries = serde_json::from_str(map["data"]["clusterinfo"].as_str().unwrap()).unwrap();
    let resting = map["metadata"]["annotations"]["culvert.io/globalnet-resting"].as_str().unwrap_or_default();
    (entries, resting.to_owned())
}

/// Waits until the broker has one Endpoint of a cluster, with these subnets, and its Cluster says the same.
fn wait_announced(broker: &Cluster, id: &str, subnets: &Value, global: &Value) {
    let announced = || {
        let namespace = format!("--namespace {BROKER_NAMESPACE}");
        let endpoints = broker.items(&format!("get endpoints.submariner.io {namespace}"))?;
        let own: Vec<&Value> = endpoints.iter().filter(|one| one["spec"]["cluster_id"] == id).collect();
        let cluster = broker.json(&format!("get clusters.submariner.io {id} {namespace}"))?;
        let is_so = matches!(&own[..], [one] if one["spec"]["subnets"] == *subnets);
        if is_so && cluster["spec"]["global_cidr"] == *global {
            return Ok(Some(()));
        }
        anyhow::bail!("there is {cluster} with {own:?}")
    };
    wait_for(&format!("{subnets} of {id}"), PATIENCE, announced).unwrap();
}

#[test]
fn joined_clusters_get_global_cidrs_and_give_them_back() {
    Binaries::find().unwrap();
    let plan = Plan::new("globalnet", &["east", "west"], 1, ProxyMode::Iptables).unwrap();
    let lab = Lab::up(&plan).unwrap();
    let (east, west) = (lab.cluster("east"), lab.cluster("west"));
    let installer = Installer::new(&lab).unwrap();
    let run = |cluster: &Cluster, line: &str| {
        installer.run(cluster, line).unwrap_or_else(|error| panic!("{error:#}\n{}", state(&lab)))
    };
    let refused = |cluster: &Cluster, line: &str| {
        let output = installer.command(cluster, line).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "culvert {line}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let join = |cluster: &Cluster, flags: &str| -> Value {
        // Connected is who answers probes of its global address, so that it is translated too.
        let line = format!("{} {flags} --output json", join_line(cluster));
        serde_json::from_str(&run(cluster, &line)).unwrap()
    };
    let cidrs = |cluster: &Cluster| {
        let network = &cluster.plan.network;
        json!([network.service_cidr.to_string(), network.pod_cidr.to_string()])
    };

    run(east, "deploy-broker");
    for cluster in [east, west] {
        let report = join(cluster, "");
        assert_eq!(report["globalCidr"], json!([]), "{report}");
        wait_announced(east, cluster.name(), &cidrs(cluster), &json!([]));
    }
    let without = refused(west, &format!("{} --globalnet", join_line(west)));
    assert!(without.contains("run `culvert deploy-broker --globalnet` first"), "{without}");

    // On, for one cluster and then for the other.
    run(east, "deploy-broker --globalnet");
    let local = refused(west, &format!("{} --globalnet-cidr 10.2.0.0/17", join_line(west)));
    assert!(local.contains("10.2.0.0/17 of cluster west overlaps 10.2.0.0/16 of this cluster itself"), "{local}");
    let remote = refused(west, &format!("{} --globalnet-cidr 100.1.0.0/24", join_line(west)));
    assert!(remote.contains("overlaps 100.1.0.0/16 of cluster east"), "{remote}");
    assert_eq!(noted(east).0, json!([]));
    let report = join(west, "--globalnet-cidr 242.9.0.0/16");
    assert_eq!(report["globalCidr"], json!(["242.9.0.0/16"]), "{report}");
    wait_announced(east, "west", &json!(["242.9.0.0/16"]), &json!(["242.9.0.0/16"]));
    let report = join(east, "");
    assert_eq!(report["globalCidr"], json!(["242.0.0.0/16"]), "{report}");
    wait_announced(east, "east", &json!(["242.0.0.0/16"]), &json!(["242.0.0.0/16"]));
    assert_eq!(report["connections"], json!([{"cluster": "west", "status": "connected"}]), "{report}");
    let shown: Value = serde_json::from_str(&run(east, "show all --output json")).unwrap();
    assert_eq!(shown["networks"]["networks"][2]["announced"], json!(["242.0.0.0/16"]), "{shown}");
    assert_eq!(shown["brokers"][0]["globalnet"], "242.0.0.0/8", "{shown}");

    // Off again: given back only once no daemon has it.
    join(west, "--globalnet=false");
    wait_announced(east, "west", &cidrs(west), &json!([]));
    let (entries, resting) = noted(east);
    assert_eq!(entries, json!([{"cluster_id": "east", "global_cidr": ["242.0.0.0/16"]}]));
    assert!(resting.contains("242.9.0.0/16"), "{resting}");
    let env = west.json(&format!("get daemonset culvert-gateway --namespace {NAMESPACE}")).unwrap().to_string();
    assert!(!env.contains("SUBMARINER_GLOBALCIDR"), "{env}");
    // What it had rests for it.
    assert_eq!(join(west, "")["globalCidr"], json!(["242.9.0.0/16"]));

    // Without the broker's file it is said what is left; with it, or where the broker is, it goes along.
    let said = run(west, "uninstall --yes");
    assert!(said.contains("Global CIDR 242.9.0.0/16 is still noted at the broker"), "{said}");
    assert!(noted(east).0.to_string().contains("242.9.0.0/16"));
    let said = run(west, "uninstall --yes --gone west --broker-info broker-info.subm");
    assert!(said.contains("Global CIDR 242.9.0.0/16 of cluster west is given back"), "{said}");
    join(west, "");
    let said = run(west, "uninstall --yes --broker-info broker-info.subm");
    assert!(said.contains("Global CIDR 242.9.0.0/16 is given back"), "{said}");
    let said = run(east, "uninstall --yes");
    assert!(said.contains("Global CIDR 242.0.0.0/16 is given back"), "{said}");
    assert!(said.contains("The broker in namespace submariner-k8s-broker had no members and is gone"), "{said}");
}
