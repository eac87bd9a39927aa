//! Two Kubernetes clusters are made members of a clusterset by `culvert` alone, and leave it: images, manifests, pods. One
//! of them looks as if Calico were its network plugin.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_netns_tests::kubernetes::{
    BROKER_NAMESPACE, Cluster, Installer, Lab, NAMESPACE, Plan, Pod, ProxyMode, Web, join_line, serve, state,
};
use culvert_netns_tests::{Binaries, ConnectProxy, Conversation, leftovers, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
/// Of a flow that lives on.
const FLOW_PORT: u16 = 7000;
/// Of the proxy between a cluster and the world.
const PROXY_PORT: u16 = 3128;
/// What load balancers are given, one after the other.
const BALANCERS: [&str; 2] = ["203.0.113.77", "203.0.113.78"];

/// Runs a line of `culvert` that succeeds and returns what it prints.
fn typed(lab: &Lab, installer: &Installer, cluster: &Cluster, line: &str) -> String {
    installer.run(cluster, line).unwrap_or_else(|error| panic!("{error:#}\n{}", state(lab)))
}

/// Runs a line that fails and returns why.
fn refused(installer: &Installer, cluster: &Cluster, line: &str) -> String {
    let output = installer.command(cluster, line).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "culvert {line}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that all pods of one cluster reach all of the other's, and its Service, and are seen as who they are.
fn assert_reached(from: &Web, to: &Web) {
    for pod in &from.pods {
        for other in &to.pods {
            pod.run(&format!("ping -c 1 -W 5 {}", other.address)).unwrap();
            assert_source_kept(pod, &other.web());
        }
        assert_source_kept(pod, &to.service.to_string());
    }
}

fn assert_source_kept(pod: &Pod, server: &str) {
    let what = format!("an answer of {server} to {}", pod.name);
    let source = wait_for(&what, PATIENCE, || pod.source_seen_by(server).map(Some)).unwrap();
    assert_eq!(source, pod.address, "{what}");
}

/// Returns what `culvert` finds wrong in a cluster, as it says it to programs, and its exit status.
fn diagnosis(installer: &Installer, cluster: &Cluster) -> (Value, Option<i32>) {
    let output = installer.command(cluster, "diagnose all --output json").output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {words}"));
    (report, output.status.code())
}

/// Waits until a diagnosis that fails names a cause.
fn assert_diagnosed(installer: &Installer, cluster: &Cluster, cause: &str) {
    wait_for(&format!("a diagnosis of {cause:?}"), PATIENCE, || {
        let (report, status) = diagnosis(installer, cluster);
        let failed = report["checks"].as_array().unwrap().iter().filter(|check| check["verdict"] == "failed");
        let named = failed.into_iter().any(|check| check["message"].as_str().unwrap().contains(cause));
        if named {
            assert_eq!(status, Some(1), "{report}");
        }
        Ok(named.then_some(()))
    })
    .unwrap();
}

/// Asserts that a member that is well is shown as it is, and that nothing wrong is found.
fn assert_well(installer: &Installer, cluster: &Cluster) {
    let shown: Value = serde_json::from_str(&installer.run(cluster, "show all --output json").unwrap()).unwrap();
    let pods = cluster.plan.network.pod_cidr.to_string();
    assert_eq!(shown["networks"]["networks"][0]["announced"], json!([pods]), "{shown}");
    let services = &shown["networks"]["networks"][1];
    assert_eq!(services["discovered"], json!([cluster.plan.network.service_cidr.to_string()]), "{shown}");
    assert_eq!(shown["brokers"][0]["clusters"], 2, "{shown}");
    assert_eq!(shown["brokers"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(shown["versions"][1]["configured"], "1", "{shown}");
    let mut last = Value::Null;
    wait_for("a diagnosis without a cause", PATIENCE, || {
        let (report, status) = diagnosis(installer, cluster);
        last = report;
        Ok((last["healthy"] == true && status == Some(0)).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {last:#}"));
}

/// Returns the pods of Culvert, by what the API server knows them by.
fn own_pods(cluster: &Cluster) -> Vec<String> {
    let pods = cluster.items(&format!("get pods --namespace {NAMESPACE}")).unwrap();
    pods.iter().map(|pod| pod["metadata"]["uid"].as_str().unwrap().to_owned()).collect()
}

/// Puts a proxy on the router of a cluster, which from now on is the only way to a broker.
fn hide_behind_proxy(cluster: &Cluster, broker: &Cluster) -> (ConnectProxy, SocketAddrV4) {
    let address = SocketAddrV4::new(cluster.plan.network.router_address(), PROXY_PORT);
    let rule = format!(
        "table ip no-broker {{
    chain forward {{
        type filter hook forward priority filter
        ip daddr {} tcp dport 6443 reject with tcp reset
    }}
}}",
        broker.public_address
    );
    cluster.router.nft(&rule).unwrap();
    (ConnectProxy::start(&cluster.router, address).unwrap(), address)
}

/// Asserts that the gateways of a cluster are announced at the broker with the address that a Service is given, and with
/// the next one; before, they say what they lack.
fn assert_balanced(cluster: &Cluster, broker: &Cluster, service: &str) {
    let complaint = format!("public IP resolver lb:{service} finds no address at the Service yet");
    wait_for("a word about the load balancer", PATIENCE, || {
        let gateways = cluster.items(&format!("get gateways.submariner.io --namespace {NAMESPACE}"))?;
        let said = |gateway: &Value| gateway["status"]["statusFailure"].to_string().contains(&complaint);
        Ok(gateways.iter().any(said).then_some(()))
    })
    .unwrap();
    for address in BALANCERS {
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
        let patch = format!("patch service {service} --subresource=status --type=merge --patch {status}");
        cluster.kubectl(&format!("--namespace {NAMESPACE} {patch}")).unwrap();
        wait_for(&format!("the Endpoint with {address}"), PATIENCE, || {
            let endpoints = broker.items(&format!("get endpoints.submariner.io --namespace {BROKER_NAMESPACE}"))?;
            let own = endpoints.iter().find(|endpoint| endpoint["spec"]["cluster_id"] == cluster.name());
            let spec = own.map(|endpoint| &endpoint["spec"]);
            let is_there =
                |spec: &Value| spec["public_ip"] == address && spec["backend_config"]["using-loadbalancer"] == "true";
            Ok(spec.is_some_and(is_there).then_some(()))
        })
        .unwrap();
    }
}

fn exists(cluster: &Cluster, object: &str) -> bool {
    cluster.kubectl(&format!("get {object}")).is_ok()
}

/// Makes a cluster look as if Calico were its network plugin, though without its API.
fn look_like_calico(cluster: &Cluster) {
    let config = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "calico-config", "namespace": "kube-system"},
    });
    cluster.apply(&config.to_string()).unwrap();
}

/// Writes what an operator of a cluster with Calico would: the manifests with their component for it. Returns its folder.
fn overlay_for_calico(directory: &Path) -> PathBuf {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes").canonicalize().unwrap();
    let overlay = directory.canonicalize().unwrap().join("overlay");
    fs::create_dir(&overlay).unwrap();
    let up = "../".repeat(overlay.components().count() - 1);
    let manifests = format!("{up}{}", manifests.strip_prefix("/").unwrap().display());
    let kustomization = json!({"resources": [manifests], "components": [format!("{manifests}/calico")]});
    fs::write(overlay.join("kustomization.yaml"), kustomization.to_string()).unwrap();
    overlay
}

/// Installs the kind of Calico's pools, with what is used of it.
fn install_pools(cluster: &Cluster) {
    let boolean = json!({"type": "boolean"});
    let spec = json!({
        "type": "object",
        "required": ["cidr"],
        "properties": {
            "cidr": {"type": "string"},
            "natOutgoing": boolean,
            "disabled": boolean,
            "disableBGPExport": boolean,
        },
    });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "ippools.projectcalico.org"},
        "spec": {
            "group": "projectcalico.org",
            "scope": "Cluster",
            "names": {"kind": "IPPool", "plural": "ippools", "singular": "ippool"},
            "versions": [{
                "name": "v3",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
            }],
        },
    });
    cluster.apply(&definition.to_string()).unwrap();
    cluster.kubectl("wait crd/ippools.projectcalico.org --for=condition=Established --timeout=60s").unwrap();
}

/// Makes a pool that is not Culvert's.
fn make_pool(cluster: &Cluster, name: &str, cidr: &str) {
    let pool = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": name},
        "spec": {"cidr": cidr, "natOutgoing": true},
    });
    cluster.apply(&pool.to_string()).unwrap();
}

/// Returns the subnets of pools by name: of all, or with a selector.
fn pools(cluster: &Cluster, selector: &str) -> anyhow::Result<BTreeMap<String, Value>> {
    let found = cluster.items(&format!("get ippools.projectcalico.org {selector}"))?;
    Ok(found.iter().map(|pool| (pool["metadata"]["name"].as_str().unwrap().to_owned(), pool["spec"].clone())).collect())
}

/// Waits until a cluster has pools for these subnets of clusters, and no others of Culvert's.
fn assert_pools(cluster: &Cluster, subnets: &[(&str, &str)]) {
    let pool = |(id, subnet): &(&str, &str)| {
        let spec = json!({"cidr": subnet, "natOutgoing": false, "disabled": true, "disableBGPExport": true});
        (format!("submariner-{id}-{}", subnet.replace('/', "-")), spec)
    };
    let expected: BTreeMap<String, Value> = subnets.iter().map(pool).collect();
    wait_for(&format!("{expected:?}"), PATIENCE, || {
        let found = pools(cluster, "--selector submariner.io/ippool=true")?;
        if found == expected { Ok(Some(())) } else { anyhow::bail!("found {found:?}") }
    })
    .unwrap();
}

/// Returns what a node's route agent says is not as it should be.
fn reported(cluster: &Cluster, node: &str) -> anyhow::Result<String> {
    let agent = cluster.json(&format!("get routeagents.submariner.io {node} --namespace {NAMESPACE}"))?;
    Ok(agent["status"]["statusFailure"].as_str().unwrap_or_default().to_owned())
}

fn assert_reported(cluster: &Cluster, node: &str, words: &str) {
    wait_for(words, PATIENCE, || {
        let found = reported(cluster, node)?;
        if found.contains(words) { Ok(Some(())) } else { anyhow::bail!("it says {found:?}") }
    })
    .unwrap();
}

/// Asserts that a cluster's Calico is told of the other cluster and of what becomes known, and that others' pools stay.
fn assert_calico_is_told(cluster: &Cluster, other: &Cluster) {
    let [gateway, worker] = [&cluster.nodes[0].name, &cluster.nodes[1].name];
    assert_reported(cluster, gateway, "the API server has no ippools of projectcalico.org/v3");
    assert_eq!(reported(cluster, worker).unwrap(), "", "only the gateway's node keeps pools");

    install_pools(cluster);
    let (id, network) = (other.name(), &other.plan.network);
    let [pods, services] = [network.pod_cidr, network.service_cidr].map(|cidr| cidr.to_string());
    let of_other = [(id, pods.as_str()), (id, services.as_str())];
    assert_pools(cluster, &of_other);

    make_pool(cluster, "default-ipv4-ippool", "192.168.0.0/16");
    make_pool(cluster, "submariner-north-10.9.0.0-16", "192.168.0.0/17");
    let north = json!({
        "apiVersion": "submariner.io/v1",
        "kind": "Cluster",
        "metadata": {"name": "north", "namespace": NAMESPACE},
        "spec": {
            "cluster_id": "north",
            "cluster_cidr": ["10.9.0.0/16"],
            "service_cidr": ["fd00:9::/108"],
            "global_cidr": [],
            "color_codes": [],
        },
    });
    cluster.apply(&north.to_string()).unwrap();
    assert_reported(cluster, gateway, "IPPool submariner-north-10.9.0.0-16 has no label submariner.io/ippool=true");
    let v6 = "submariner-north-fd00-0009-0000-0000-0000-0000-0000-0000-108";
    assert_eq!(pools(cluster, "").unwrap()[v6]["cidr"], "fd00:9::/108");
    cluster.kubectl("delete ippools.projectcalico.org submariner-north-10.9.0.0-16").unwrap();
    wait_for("a pool in the place of one that was somebody else's", PATIENCE, || {
        let found = pools(cluster, "")?.remove("submariner-north-10.9.0.0-16").unwrap_or_default();
        Ok((found["cidr"] == "10.9.0.0/16").then_some(()))
    })
    .unwrap();

    let used = format!("submariner-{id}-{}", pods.replace('/', "-"));
    let patch = r#"{"spec":{"disabled":false}}"#;
    cluster.kubectl(&format!("patch ippools.projectcalico.org {used} --type merge --patch {patch}")).unwrap();
    cluster.kubectl(&format!("delete clusters.submariner.io north --namespace {NAMESPACE}")).unwrap();
    assert_pools(cluster, &of_other);
    wait_for("a route agent without a complaint", PATIENCE, || {
        Ok(reported(cluster, gateway)?.is_empty().then_some(()))
    })
    .unwrap();
}

#[test]
fn two_clusters_join_by_command_alone_and_leave_nothing() {
    Binaries::find().unwrap();
    let plan = Plan::new("join", &["east", "west"], 2, ProxyMode::Iptables).unwrap();
    let lab = Lab::up(&plan).unwrap();
    let (east, west) = (lab.cluster("east"), lab.cluster("west"));
    let installer = Installer::new(&lab).unwrap();
    let run = |cluster: &Cluster, line: &str| typed(&lab, &installer, cluster, line);
    let refused = |cluster: &Cluster, line: &str| refused(&installer, cluster, line);

    look_like_calico(west);
    run(east, "deploy-broker");
    let shown: Value = serde_json::from_str(&run(east, "show brokers --output json")).unwrap();
    let broker = &shown["brokers"][0];
    assert_eq!((&broker["namespace"], &broker["clusters"]), (&json!(BROKER_NAMESPACE), &json!(0)), "{shown}");
    let join = |cluster: &Cluster| format!("{} --output json", join_line(cluster));
    let report: Value = serde_json::from_str(&run(east, &join(east))).unwrap();
    assert_eq!(report["connections"], json!([]));
    assert_eq!(report["serviceCidr"], json!([east.plan.network.service_cidr.to_string()]));
    assert_eq!(report["gateways"], json!(["east-node1"]));
    assert!(!exists(east, "clusterrole culvert-route-agent-calico"));

    // What speaks against a join is said, and nothing is changed.
    let without = refused(west, "join broker-info.subm --clusterid west");
    assert!(without.contains("--clustercidr") && without.contains(&west.nodes[0].pod_network.to_string()), "{without}");
    let overlap = refused(west, "join broker-info.subm --clusterid west --clustercidr 10.1.7.0/24");
    assert!(overlap.contains("10.1.7.0/24 of cluster west overlaps 10.1.0.0/16 of cluster east"), "{overlap}");
    let taken = refused(west, "join broker-info.subm --clusterid east --clustercidr 10.2.0.0/16");
    assert!(taken.contains("another cluster has joined as east"), "{taken}");
    assert!(!exists(west, &format!("namespace {NAMESPACE}")));
    assert!(!exists(east, "--namespace submariner-k8s-broker serviceaccount cluster-west"));

    // The manifests stand for themselves; a join goes on from there.
    west.kubectl(&format!("apply -k {}", overlay_for_calico(installer.directory()).display())).unwrap();
    let settings = west.json(&format!("get configmap culvert --namespace {NAMESPACE}")).unwrap();
    assert_eq!(settings["data"]["SUBMARINER_NETWORKPLUGIN"], "calico");
    let report: Value = serde_json::from_str(&run(west, &join(west))).unwrap();
    assert_eq!(report["connections"], json!([{"cluster": "east", "status": "connected"}]), "{}", state(&lab));
    assert_eq!(report["networkPlugin"], "calico");
    let gateways = west.json(&format!("get daemonset culvert-gateway --namespace {NAMESPACE}")).unwrap();
    let container = &gateways["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["envFrom"].as_array().map_or(0, Vec::len), 0, "{container}");

    let webs = [east, west].map(|cluster| serve(cluster).unwrap());
    assert_reached(&webs[0], &webs[1]);
    assert_reached(&webs[1], &webs[0]);
    assert_calico_is_told(west, east);

    // A second run changes nothing that works.
    let before = own_pods(west);
    let report: Value = serde_json::from_str(&run(west, &join(west))).unwrap();
    assert_eq!((&report["repaired"], before), (&json!(true), own_pods(west)));
    // And brings back what is missing.
    west.kubectl(&format!("--namespace {NAMESPACE} delete daemonset/culvert-gateway secret/submariner-broker-secret"))
        .unwrap();
    run(west, &join(west));
    assert_reached(&webs[1], &webs[0]);

    // What is well is called so; what breaks it is named.
    assert_well(&installer, east);
    assert_well(&installer, west);
    west.kubectl("label node west-node1 submariner.io/gateway-").unwrap();
    assert_diagnosed(&installer, west, "no node has the label submariner.io/gateway=true");
    let image = "set image daemonset/culvert-gateway culvert-gateway=registry.invalid/culvert:9";
    west.kubectl(&format!("--namespace {NAMESPACE} {image}")).unwrap();
    west.kubectl("label node west-node1 submariner.io/gateway=true").unwrap();
    assert_diagnosed(&installer, west, "ImagePull");
    run(west, &join(west));
    assert_well(&installer, west);

    // New settings replace all pods, one gateway after the other: with a standby, what flows goes on.
    west.kubectl("label node west-node2 submariner.io/gateway=true").unwrap();
    wait_for("a standby", PATIENCE, || {
        let gateways = west.items(&format!("get gateways.submariner.io --namespace {NAMESPACE}"))?;
        Ok((gateways.len() == 2).then_some(()))
    })
    .unwrap();
    let before = own_pods(west);
    let [client, server] = [&webs[1].pods[1], &webs[0].pods[1]].map(|pod| pod.network().unwrap());
    let to = SocketAddrV4::new(webs[0].pods[1].address, FLOW_PORT);
    let mut flow = Conversation::open(&client, &server, to).unwrap();
    flow.say(b"before").unwrap();
    flow.hear(b"before", PATIENCE).unwrap();
    let (proxy, proxy_address) = hide_behind_proxy(west, east);
    west.kubectl(&format!("--namespace {NAMESPACE} create service loadbalancer gateways --tcp=4500:4500")).unwrap();
    run(west, &format!("{} --https-proxy {proxy_address} --public-ip lb:gateways", join(west)));
    assert!(own_pods(west).iter().all(|pod| !before.contains(pod)));
    flow.say(b"after").unwrap();
    flow.hear(b"after", PATIENCE).unwrap();
    flow.close().unwrap();
    // What they ask of the broker goes through the proxy, and nothing else does.
    assert_balanced(west, east, "gateways");
    assert_eq!(proxy.asked(), [format!("{}:6443", east.public_address)].into());

    let unasked = refused(west, "uninstall");
    assert!(unasked.contains("--yes"), "{unasked}");
    run(west, "uninstall --yes");
    for node in &west.nodes {
        assert_eq!(leftovers(&node.namespace).unwrap(), Vec::<String>::new());
    }
    assert!(!exists(west, &format!("namespace {NAMESPACE}")));
    assert_eq!(pools(west, "").unwrap().into_keys().collect::<Vec<_>>(), ["default-ipv4-ippool"]);
    for kind in ["clusterrole", "clusterrolebinding"] {
        for name in ["culvert-route-agent-calico", "culvert-globalnet"] {
            assert!(!exists(west, &format!("{kind} {name}")));
        }
    }
    west.kubectl("delete customresourcedefinition ippools.projectcalico.org").unwrap();
    assert_eq!(west.kubectl("get customresourcedefinitions --output name").unwrap(), "");
    for kind in ["clusters", "endpoints"] {
        let left = east.items(&format!("get {kind} --namespace {BROKER_NAMESPACE}")).unwrap();
        assert!(left.iter().all(|record| record["spec"]["cluster_id"] != "west"), "{left:?}");
    }

    // A broker without members goes with its own cluster.
    let said = run(east, "uninstall --yes");
    assert!(said.contains("The broker in namespace submariner-k8s-broker had no members and is gone"), "{said}");
    for node in &east.nodes {
        assert_eq!(leftovers(&node.namespace).unwrap(), Vec::<String>::new());
    }
    assert!(!exists(east, &format!("namespace {NAMESPACE}")));
    assert!(!exists(east, &format!("namespace {BROKER_NAMESPACE}")));
    assert_eq!(east.kubectl("get customresourcedefinitions --output name").unwrap(), "");
}
