//! Two Kubernetes clusters are made members of a clusterset by `culvert` alone, and leave it: images, manifests, pods.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use culvert_netns_tests::kubernetes::{BUSYBOX, Cluster, Lab, Plan, ProxyMode};
use culvert_netns_tests::{Binaries, leftovers, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
const PORT: u16 = 8080;
const IMAGE: &str = "culvert.lab/culvert:1";
const NAMESPACE: &str = "submariner-operator";

/// `culvert` in a directory of its own.
struct Tool<'a> {
    lab: &'a Lab,
    binaries: Binaries,
    directory: tempfile::TempDir,
}

impl Tool<'_> {
    fn command(&self, cluster: &Cluster, line: &str) -> Output {
        let mut command = Command::new(self.binaries.tool());
        command.args(line.split_whitespace()).arg("--kubeconfig").arg(cluster.kubeconfig());
        command.current_dir(self.directory.path()).output().unwrap()
    }

    /// Runs a line that succeeds and returns what it prints.
    fn run(&self, cluster: &Cluster, line: &str) -> String {
        let output = self.command(cluster, line);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !words.contains("warning:"), "culvert {line}: {words}\n{}", state(self.lab));
        println!("culvert {line}\n{words}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a line that fails and returns why.
    fn refused(&self, cluster: &Cluster, line: &str) -> String {
        let output = self.command(cluster, line);
        assert_eq!(output.status.code(), Some(1), "culvert {line}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// A pod of the DaemonSet that [`serve`] makes.
struct Pod {
    name: String,
    address: String,
}

/// Returns how all pods of Culvert are, and their last words.
fn state(lab: &Lab) -> String {
    let of = |cluster: &Cluster| {
        let lines = [
            "get nodes,daemonsets,pods --all-namespaces --output wide".to_owned(),
            format!("get events --namespace {NAMESPACE}"),
            format!("logs --namespace {NAMESPACE} --selector app=culvert-gateway --tail 20 --prefix"),
            format!("logs --namespace {NAMESPACE} --selector app=culvert-route-agent --tail 20 --prefix"),
            "get clusters.submariner.io,endpoints.submariner.io,gateways.submariner.io --all-namespaces --output yaml"
                .to_owned(),
        ];
        lines.map(|line| cluster.kubectl(&line).unwrap_or_else(|error| format!("{error:#}"))).join("\n")
    };
    lab.clusters().iter().map(|cluster| format!("--- {}\n{}\n", cluster.name(), of(cluster))).collect()
}

fn json(cluster: &Cluster, line: &str) -> Value {
    serde_json::from_str(&cluster.kubectl(&format!("{line} --output json")).unwrap()).unwrap()
}

fn items(cluster: &Cluster, line: &str) -> Vec<Value> {
    json(cluster, line)["items"].as_array().unwrap().clone()
}

/// Runs a web server on each node, behind the service `web`, that tells whom it sees; returns its pods.
fn serve(cluster: &Cluster) -> Vec<Pod> {
    let program = |name: &str, line: &str| format!("printf '#!/bin/sh\n{line}\n' >/tmp/cgi-bin/{name}; ");
    let script = [
        "mkdir -p /tmp/cgi-bin; ",
        &program("source", "echo; echo $REMOTE_ADDR"),
        &program("stream", "echo; until [ -e /tmp/end ]; do echo on; sleep 0.1; done; echo end"),
        &format!("chmod +x /tmp/cgi-bin/*; exec httpd -f -p {PORT} -h /tmp"),
    ]
    .concat();
    let manifests = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "web"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {
                        "terminationGracePeriodSeconds": 0,
                        "containers": [{
                            "name": "web",
                            "image": BUSYBOX,
                            "imagePullPolicy": "Never",
                            "command": ["sh", "-c", script],
                            "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
                        }],
                    },
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": PORT}]},
        },
    ]});
    cluster.apply(&manifests.to_string()).unwrap();
    cluster.kubectl("rollout status daemonset/web --timeout=120s").unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pod = |pod: &Value| Pod { name: text(&pod["metadata"]["name"]), address: text(&pod["status"]["podIP"]) };
    items(cluster, "get pods --selector app=web").iter().map(pod).collect()
}

/// Asserts that a web server under this address sees a pod of the other cluster as who it is.
fn assert_source_kept(cluster: &Cluster, pod: &Pod, url: &str) {
    let what = format!("an answer of {url} to {}", pod.name);
    let source = wait_for(&what, PATIENCE, || {
        Ok(Some(cluster.kubectl(&format!("exec {} -- timeout 5 wget -q -O - {url}/cgi-bin/source", pod.name))?))
    });
    // busybox writes it as its socket has it.
    let source = source.unwrap();
    assert_eq!(source.trim().trim_start_matches("[::ffff:").trim_end_matches(']'), pod.address, "{what}");
}

/// Asserts that all pods of one cluster reach all of the other's, and its Service.
fn assert_reached(from: &Cluster, pods: &[Pod], to: &Cluster, others: &[Pod]) {
    let service = json(to, "get service web")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    for pod in pods {
        for other in others {
            from.kubectl(&format!("exec {} -- ping -c 1 -W 5 {}", pod.name, other.address)).unwrap();
            assert_source_kept(from, pod, &format!("http://{}:{PORT}", other.address));
        }
        assert_source_kept(from, pod, &format!("http://{service}"));
    }
}

/// Returns the pods of Culvert, by what the API server knows them by.
fn own_pods(cluster: &Cluster) -> Vec<String> {
    let pods = items(cluster, &format!("get pods --namespace {NAMESPACE}"));
    pods.iter().map(|pod| pod["metadata"]["uid"].as_str().unwrap().to_owned()).collect()
}

fn exists(cluster: &Cluster, object: &str) -> bool {
    cluster.kubectl(&format!("get {object}")).is_ok()
}

#[test]
fn two_clusters_join_by_command_alone_and_leave_nothing() {
    let binaries = Binaries::find().unwrap();
    let plan = Plan::new("join", &["east", "west"], 2, ProxyMode::Iptables).unwrap();
    let lab = Lab::up(&plan).unwrap();
    let (east, west) = (lab.cluster("east"), lab.cluster("west"));
    let tool = Tool { lab: &lab, binaries, directory: tempfile::tempdir().unwrap() };
    let image = culvert_image::culvert(IMAGE, tool.binaries.tool().parent().unwrap(), tool.directory.path()).unwrap();
    let archive = image.write(tool.directory.path()).unwrap();
    lab.clusters().iter().for_each(|cluster| cluster.import(&archive).unwrap());

    tool.run(east, "deploy-broker");
    let join = |cluster: &Cluster| {
        let (id, pods) = (cluster.name(), cluster.plan.network.pod_cidr);
        let flags = format!("--clusterid {id} --clustercidr {pods} --image {IMAGE} --natt=false --output json");
        format!("join broker-info.subm {flags}")
    };
    let report: Value = serde_json::from_str(&tool.run(east, &join(east))).unwrap();
    assert_eq!(report["connections"], json!([]));
    assert_eq!(report["serviceCidr"], json!([east.plan.network.service_cidr.to_string()]));
    assert_eq!(report["gateways"], json!(["east-node1"]));

    // What speaks against a join is said, and nothing is changed.
    let without = tool.refused(west, "join broker-info.subm --clusterid west");
    assert!(without.contains("--clustercidr") && without.contains(&west.nodes[0].pod_network.to_string()), "{without}");
    let overlap = tool.refused(west, "join broker-info.subm --clusterid west --clustercidr 10.1.7.0/24");
    assert!(overlap.contains("10.1.7.0/24 of cluster west overlaps 10.1.0.0/16 of cluster east"), "{overlap}");
    let taken = tool.refused(west, "join broker-info.subm --clusterid east --clustercidr 10.2.0.0/16");
    assert!(taken.contains("another cluster has joined as east"), "{taken}");
    assert!(!exists(west, &format!("namespace {NAMESPACE}")));
    assert!(!exists(east, "--namespace submariner-k8s-broker serviceaccount cluster-west"));

    // The manifests stand for themselves; a join goes on from there.
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
    west.kubectl(&format!("apply -k {}", manifests.display())).unwrap();
    let report: Value = serde_json::from_str(&tool.run(west, &join(west))).unwrap();
    assert_eq!(report["connections"], json!([{"cluster": "east", "status": "connected"}]), "{}", state(&lab));

    let pods = [serve(east), serve(west)];
    assert_reached(east, &pods[0], west, &pods[1]);
    assert_reached(west, &pods[1], east, &pods[0]);

    // A second run changes nothing that works.
    let before = own_pods(west);
    let report: Value = serde_json::from_str(&tool.run(west, &join(west))).unwrap();
    assert_eq!((&report["repaired"], before), (&json!(true), own_pods(west)));
    // And brings back what is missing.
    west.kubectl(&format!("--namespace {NAMESPACE} delete daemonset/culvert-gateway secret/submariner-broker-secret"))
        .unwrap();
    tool.run(west, &join(west));
    assert_reached(west, &pods[1], east, &pods[0]);

    // New settings replace all pods, one gateway after the other: with a standby, what flows goes on.
    west.kubectl("label node west-node2 submariner.io/gateway=true").unwrap();
    wait_for("a standby", PATIENCE, || {
        let gateways = items(west, &format!("get gateways.submariner.io --namespace {NAMESPACE}"));
        Ok((gateways.len() == 2).then_some(()))
    })
    .unwrap();
    let before = own_pods(west);
    let mut stream = west.kubectl_command();
    let url = format!("http://{}:{PORT}/cgi-bin/stream", pods[0][1].address);
    stream.args(["exec", &pods[1][1].name, "--", "wget", "-q", "-O", "-", &url]);
    let mut stream = stream.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(stream.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "on");
    tool.run(west, &format!("{} --health-check-interval 1", join(west)));
    assert!(own_pods(west).iter().all(|pod| !before.contains(pod)));
    east.kubectl(&format!("exec {} -- touch /tmp/end", pods[0][1].name)).unwrap();
    assert_eq!(lines.last().unwrap().unwrap(), "end");
    assert!(stream.wait().unwrap().success());

    let unasked = tool.refused(west, "uninstall");
    assert!(unasked.contains("--yes"), "{unasked}");
    tool.run(west, "uninstall --yes");
    for node in &west.nodes {
        assert_eq!(leftovers(&node.namespace).unwrap(), Vec::<String>::new());
    }
    assert!(!exists(west, &format!("namespace {NAMESPACE}")));
    assert_eq!(west.kubectl("get customresourcedefinitions --output name").unwrap(), "");
    for kind in ["clusters", "endpoints"] {
        let left = items(east, &format!("get {kind} --namespace submariner-k8s-broker"));
        assert!(left.iter().all(|record| record["spec"]["cluster_id"] != "west"), "{left:?}");
    }

    // The broker stays where it is when its own cluster leaves.
    let said = tool.run(east, "uninstall --yes");
    assert!(said.contains("the broker in namespace submariner-k8s-broker"), "{said}");
    for node in &east.nodes {
        assert_eq!(leftovers(&node.namespace).unwrap(), Vec::<String>::new());
    }
    assert!(!exists(east, &format!("namespace {NAMESPACE}")));
    assert_eq!(items(east, "get endpoints.submariner.io,clusters.submariner.io --all-namespaces"), Vec::<Value>::new());
}
