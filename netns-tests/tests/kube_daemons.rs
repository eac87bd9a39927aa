//! Two Kubernetes clusters that are joined by the real daemons, which find their records in API servers: the cluster's
//! own, and that of one of them as the broker. Each daemon has an account with the least that it needs.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use culvert_netns_tests::kubernetes::{BROKER_NAMESPACE, Cluster, Lab, NAMESPACE, Node, Plan, ProxyMode, Web, serve};
use culvert_netns_tests::{
    Binaries, ControlPlane, Daemon, Role, kill_control_plane, leftovers, run, start_control_plane, wait_for,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);

/// What each daemon may do in its own namespace, and every member at the broker (Submariner's role, chapter 3.1).
const RIGHTS: [(&str, &[(&str, &str)]); 2] = [
    (
        "culvert-gateway",
        &[
            ("clusters.submariner.io,endpoints.submariner.io", "get,list,watch,create,update,patch,delete"),
            ("gateways.submariner.io", "get,list,watch,create,patch,delete"),
            ("leases.coordination.k8s.io", "get,list,watch,create,update,delete"),
        ],
    ),
    (
        "culvert-route-agent",
        &[
            ("clusters.submariner.io,endpoints.submariner.io", "list,watch"),
            ("routeagents.submariner.io", "get,list,watch,create,patch,delete"),
        ],
    ),
];
const MEMBER: &[(&str, &str)] =
    &[("clusters.submariner.io,endpoints.submariner.io", "get,list,watch,create,update,patch,delete")];

/// The daemons of a cluster, and their files.
struct Members<'a> {
    cluster: &'a Cluster,
    broker: &'a Cluster,
    directory: PathBuf,
    /// For keys, which no disk may keep.
    memory: TempDir,
    binaries: Binaries,
    daemons: Vec<(&'a Node, Role, Daemon)>,
}

impl<'a> Members<'a> {
    /// Lays out the accounts and files of a cluster's daemons; starts none.
    fn new(lab: &Lab, cluster: &'a Cluster, broker: &'a Cluster) -> Self {
        let directory = lab.directory().join(format!("{}-culvert", cluster.name()));
        fs::create_dir_all(directory.join("broker")).unwrap();
        cluster.kubectl(&format!("create namespace {NAMESPACE}")).unwrap();
        for (account, rights) in RIGHTS {
            let token = account_with(cluster, NAMESPACE, account, rights);
            let kubeconfig = kubeconfig(cluster, &token);
            fs::write(directory.join(account), kubeconfig.to_string()).unwrap();
        }
        // As the Secret `submariner-broker-secret` is mounted.
        let account = format!("cluster-{}", cluster.name());
        let file = |name: &str, text: &str| fs::write(directory.join("broker").join(name), text).unwrap();
        file("token", &account_with(broker, BROKER_NAMESPACE, &account, MEMBER));
        file("ca.crt", &authority(broker));
        file("namespace", BROKER_NAMESPACE);
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        Self { cluster, broker, directory, memory, binaries: Binaries::find().unwrap(), daemons: Vec::new() }
    }

    fn start(&mut self) {
        for node in &self.cluster.nodes {
            let roles = if node.gateway { &[Role::RouteAgent, Role::Gateway][..] } else { &[Role::RouteAgent] };
            for &role in roles {
                let log = self.directory.join(format!("{}-{}.log", node.name, role.as_str()));
                let daemon = Daemon::start(role, self.command(node, role), &log).unwrap();
                self.daemons.push((node, role, daemon));
            }
        }
        for index in 0..self.daemons.len() {
            if let Err(error) = self.daemons[index].2.wait_ready(PATIENCE) {
                panic!("{error:#}\n{}", self.logs());
            }
        }
    }

    fn command(&self, node: &Node, role: Role) -> Command {
        let network = &self.cluster.plan.network;
        let mut command = node.namespace.command(self.binaries.daemon(role).to_str().unwrap());
        let mut flag = |name: &str, value: &str| {
            command.arg(name).arg(value);
        };
        flag("--cluster-id", self.cluster.name());
        flag("--cluster-cidr", &network.pod_cidr.to_string());
        flag("--service-cidr", &network.service_cidr.to_string());
        flag("--node-name", &node.name);
        flag("--kubeconfig", self.directory.join(format!("culvert-{}", role.as_str())).to_str().unwrap());
        if role == Role::Gateway {
            flag("--public-ip", &format!("ipv4:{}", node.address));
            flag("--broker-server", &format!("{}:6443", self.broker.public_address));
            flag("--broker-secret", self.directory.join("broker").to_str().unwrap());
            flag("--key-file", self.memory.path().join(format!("{}.key", node.name)).to_str().unwrap());
        }
        command
    }

    /// Returns what `culvert show …` prints for the cluster, as its administrator sees it.
    fn show(&self, what: &str) -> String {
        let mut culvert = Command::new(self.binaries.tool());
        run(culvert.args(["show", what, "--kubeconfig"]).arg(self.cluster.kubeconfig())).unwrap()
    }

    /// Asks the daemons to end, and removes what is theirs from nodes, API server and broker.
    fn uninstall(&mut self) {
        for (_, _, daemon) in &mut self.daemons {
            daemon.signal(Signal::SIGTERM).unwrap();
            daemon.wait_end(PATIENCE).unwrap();
        }
        for (node, role, _) in &self.daemons {
            run(self.command(node, *role).arg("--uninstall")).unwrap();
        }
        self.daemons.clear();
    }

    fn logs(&self) -> String {
        self.daemons.iter().map(|(_, _, daemon)| daemon.log_tail(20)).collect::<Vec<_>>().join("\n")
    }
}

fn authority(cluster: &Cluster) -> String {
    cluster.kubectl("get configmap kube-root-ca.crt --output jsonpath={.data.ca\\.crt}").unwrap()
}

/// Makes an account that may do just this in its namespace, and returns a token of it.
fn account_with(cluster: &Cluster, namespace: &str, account: &str, rights: &[(&str, &str)]) -> String {
    let kubectl = |line: &str| cluster.kubectl(&format!("--namespace {namespace} {line}")).unwrap();
    kubectl(&format!("create serviceaccount {account}"));
    for (number, (resources, verbs)) in rights.iter().enumerate() {
        let role = format!("{account}-{number}");
        kubectl(&format!("create role {role} --verb={verbs} --resource={resources}"));
        kubectl(&format!("create rolebinding {role} --role={role} --serviceaccount={namespace}:{account}"));
    }
    kubectl(&format!("create token {account}")).trim().to_owned()
}

fn kubeconfig(cluster: &Cluster, token: &str) -> Value {
    let file = cluster.kubeconfig().with_file_name("pki").join("ca.crt");
    // On its own network, as from a pod.
    let server = format!("https://{}:6443", cluster.nodes[0].address);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "own", "cluster": {"server": server, "certificate-authority": file}}],
        "users": [{"name": "daemon", "user": {"token": token}}],
        "contexts": [{"name": "own", "context": {"cluster": "own", "user": "daemon"}}],
        "current-context": "own",
    })
}

fn install_custom_resources(cluster: &Cluster) {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds"));
    for entry in fs::read_dir(directory).unwrap() {
        let file = entry.unwrap().path();
        if file.to_str().unwrap().contains("submariner.io") {
            cluster.apply(&fs::read_to_string(file).unwrap()).unwrap();
        }
    }
    for plural in ["clusters", "endpoints", "gateways", "routeagents"] {
        cluster.kubectl(&format!("wait crd/{plural}.submariner.io --for=condition=Established --timeout=60s")).unwrap();
    }
}

fn assert_reached_with_source_kept(from: &Web, to: &Web) {
    for pod in &from.pods {
        for other in &to.pods {
            let address = other.address;
            wait_for(&format!("an answer of {address} to {}", pod.address), PATIENCE, || {
                pod.run(&format!("ping -c 1 -W 2 {address}")).map(Some)
            })
            .unwrap();
            assert_eq!(pod.source_seen_by(&other.web()).unwrap(), pod.address);
            pod.fetch_large(&other.web()).unwrap();
        }
    }
}

/// Takes away the broker, which is one of the clusters' own API server as well, and then brings it back.
fn assert_no_packet_waits_for_an_api_server(lab: &Lab, others: &Web) -> ControlPlane {
    let east = lab.cluster("east");
    kill_control_plane(east).unwrap();
    // As a pod of each node does.
    for node in &east.nodes {
        let address = node.pod_network.hosts().next().unwrap();
        for other in &others.pods {
            let ping = format!("ping -c 30 -i 0.1 -W 2 -I {address} {}", other.address);
            let answers = node.namespace.run(&ping).unwrap();
            assert!(answers.contains(" 0% packet loss"), "{answers}");
        }
    }
    start_control_plane(lab, east).unwrap()
}

fn objects(cluster: &Cluster, namespace: &str) -> Vec<String> {
    let kinds =
        "clusters.submariner.io,endpoints.submariner.io,gateways.submariner.io,routeagents.submariner.io,leases";
    let listing = cluster.kubectl(&format!("--namespace {namespace} get {kinds} --output name")).unwrap();
    listing.lines().map(str::to_owned).collect()
}

#[test]
fn two_clusters_are_joined_by_records_in_their_api_servers() {
    Binaries::find().unwrap();
    let lab = Lab::up(&Plan::new("daemons", &["east", "west"], 2, ProxyMode::Iptables).unwrap()).unwrap();
    let (east, west) = (lab.cluster("east"), lab.cluster("west"));
    [east, west].into_iter().for_each(install_custom_resources);
    east.kubectl(&format!("create namespace {BROKER_NAMESPACE}")).unwrap();
    let webs = [east, west].map(|cluster| serve(cluster).unwrap());
    let mut members = [east, west].map(|cluster| Members::new(&lab, cluster, east));

    for member in &mut members {
        member.start();
    }

    for member in &members {
        wait_for("a cable", PATIENCE, || {
            let shown = member.show("connections");
            anyhow::ensure!(shown.contains("connected"), "{shown}\n{}", member.logs());
            Ok(Some(()))
        })
        .unwrap();
    }
    assert_reached_with_source_kept(&webs[0], &webs[1]);
    assert_reached_with_source_kept(&webs[1], &webs[0]);
    // Each has its own, the other's, and what it says of itself; the broker has both.
    for (cluster, nodes) in [("east", "east-node"), ("west", "west-node")] {
        let found = objects(lab.cluster(cluster), NAMESPACE);
        for name in ["cluster.submariner.io/east", "cluster.submariner.io/west"] {
            assert!(found.iter().any(|object| object == name), "{found:?}");
        }
        let own = |kind: &str| found.iter().filter(|object| object.starts_with(&format!("{kind}{nodes}"))).count();
        assert_eq!((own("gateway.submariner.io/"), own("routeagent.submariner.io/")), (1, 2), "{found:?}");
    }
    assert_eq!(objects(east, BROKER_NAMESPACE).len(), 4, "two Clusters and two Endpoints");
    assert!(members[1].show("gateways").contains("All connections (1) are established"));

    let _server = assert_no_packet_waits_for_an_api_server(&lab, &webs[1]);

    for member in &mut members {
        member.uninstall();
    }

    for cluster in lab.clusters() {
        for node in &cluster.nodes {
            assert_eq!(leftovers(&node.namespace).unwrap(), Vec::<String>::new(), "{}", node.name);
        }
        assert_eq!(objects(cluster, NAMESPACE), Vec::<String>::new(), "{}", cluster.name());
    }
    assert_eq!(objects(east, BROKER_NAMESPACE), Vec::<String>::new());
}
