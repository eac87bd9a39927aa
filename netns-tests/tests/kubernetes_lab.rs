//! The lab of Kubernetes clusters: real ones, apart from each other, and gone when they are taken down.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use culvert_netns_tests::kubernetes::{Cluster, HOST_LINK, Image, Lab, Plan, Pod, ProxyMode, Web, serve};
use culvert_netns_tests::{run, wait_for};

const PATIENCE: Duration = Duration::from_secs(120);

/// A lab that is kept makes others fail instead of wait.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    // A test that failed has dropped its lab.
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lab down that its test may have left standing.
struct TakenDown(&'static str);

impl Drop for TakenDown {
    fn drop(&mut self) {
        Lab::down(self.0).unwrap();
    }
}

/// Everything of a lab that can be found on this machine, each under its kind.
fn remains(lab: &str, networks: &BTreeSet<u64>) -> BTreeSet<(&'static str, String)> {
    let beginning = format!("kube-{lab}-");
    let directory = format!("/culvert-lab/kubernetes/{lab}/");
    let mut found = BTreeSet::new();
    for name in names_in("/run/netns").filter(|name| name.starts_with(&beginning)) {
        found.insert(("network namespace", name));
    }
    for mount in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        if mount.contains(&beginning) || mount.contains(&directory) {
            found.insert(("mount", mount.to_owned()));
        }
        if fields[2].starts_with("cgroup") {
            let groups = names_in(fields[1]).filter(|name| name.starts_with(&beginning));
            found.extend(groups.map(|name| ("control group", format!("{}/{name}", fields[1]))));
        }
    }
    for process in names_in("/proc").filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
        let network = fs::metadata(format!("/proc/{process}/ns/net")).map(|metadata| metadata.ino());
        let ours = read("cgroup").contains(&beginning) || read("cmdline").contains(&directory);
        if ours || network.is_ok_and(|network| networks.contains(&network)) {
            found.insert(("process", format!("{process} {}", read("comm").trim())));
        }
    }
    for path in [format!("/var/lib{}", directory.trim_end_matches('/')), format!("/run/culvert-lab/{lab}.json")] {
        if Path::new(&path).exists() {
            found.insert(("file", path));
        }
    }
    if Path::new("/sys/class/net").join(HOST_LINK).exists() {
        found.insert(("link", HOST_LINK.to_owned()));
    }
    found
}

fn names_in(directory: &str) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap())
}

/// Returns the kernel's numbers of a lab's network namespaces.
fn networks(lab: &str) -> BTreeSet<u64> {
    let beginning = format!("kube-{lab}-");
    let names = names_in("/run/netns").filter(|name| name.starts_with(&beginning));
    names.map(|name| fs::metadata(format!("/run/netns/{name}")).unwrap().ino()).collect()
}

fn kinds<'a>(remains: &BTreeSet<(&'a str, String)>) -> BTreeSet<&'a str> {
    remains.iter().map(|(kind, _)| *kind).collect()
}

/// Returns the host's addresses, routes, rules and filters.
fn host_network() -> String {
    let words = [vec!["ip", "address"], vec!["ip", "route", "show", "table", "all"], vec!["ip", "rule"]];
    let addresses = words.iter().map(|words| run(Command::new(words[0]).args(&words[1..])).unwrap());
    let filters = run(Command::new("nft").args(["list", "ruleset"])).unwrap();
    // Lifetimes of addresses count down.
    let lines: Vec<String> =
        addresses.flat_map(|text| text.lines().map(ToOwned::to_owned).collect::<Vec<_>>()).collect();
    let lines = lines.into_iter().filter(|line| !line.contains("valid_lft"));
    lines.chain([filters]).collect::<Vec<_>>().join("\n")
}

/// Asks a service until an answer comes: kube-proxy follows its endpoints by a moment.
fn page(pod: &Pod, url: &str) -> String {
    wait_for(&format!("an answer of {url} to {}", pod.name), PATIENCE, || pod.page(url).map(Some)).unwrap()
}

fn assert_nodes_are_as_planned(cluster: &Cluster) {
    let nodes = cluster.items("get nodes").unwrap();
    assert_eq!(nodes.len(), cluster.nodes.len());
    for (seen, planned) in nodes.iter().zip(&cluster.nodes) {
        assert_eq!(seen["metadata"]["name"], planned.name);
        assert_eq!(seen["spec"]["podCIDR"], planned.pod_network.to_string());
        assert_eq!(seen["status"]["addresses"][0]["address"], planned.address.to_string());
        let gateway = seen["metadata"]["labels"].get("submariner.io/gateway");
        assert_eq!(gateway.is_some(), planned.gateway);
        let conditions = seen["status"]["conditions"].as_array().unwrap();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap();
        assert_eq!(ready["status"], "True");
    }
}

fn assert_pods_services_and_names_work(cluster: &Cluster, web: &Web) {
    let nodes: Vec<&str> = web.pods.iter().map(|pod| pod.node.name.as_str()).collect();
    assert_eq!(nodes, cluster.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>());
    for from in &web.pods {
        for to in &web.pods {
            from.run(&format!("ping -c 1 -W 5 {}", to.address)).unwrap();
        }
        let names: BTreeSet<&str> = web.pods.iter().map(|pod| pod.name.as_str()).collect();
        let answer = page(from, "http://web.default.svc.cluster.local");
        assert!(names.contains(answer.trim()), "{answer}");
    }
    // As `kubectl` has it done.
    let answer = cluster.kubectl(&format!("exec {} -- hostname", web.pods[0].name)).unwrap();
    assert_eq!(answer.trim(), web.pods[0].name);
    // The node's own processes reach services too.
    let mut wget = cluster.nodes[1].command("busybox").unwrap();
    run(wget.args(["timeout", "5", "wget", "-q", "-O", "-", &format!("http://{}", web.service)])).unwrap();
}

#[test]
fn two_clusters_serve_pods_services_and_names_and_leave_nothing() {
    let _alone = alone();
    let before = host_network();
    let mut plan = Plan::new("both", &["east", "west"], 2, ProxyMode::Iptables).unwrap();
    let west = plan.cluster_mut("west");
    west.network.behind_nat = true;
    west.proxy_mode = ProxyMode::Nftables;
    let lab = Lab::up(&plan).unwrap();
    let (east, west) = (lab.cluster("east"), lab.cluster("west"));

    let webs: Vec<Web> = lab.clusters().iter().map(|cluster| serve(cluster).unwrap()).collect();
    for (cluster, web) in lab.clusters().iter().zip(&webs) {
        assert_nodes_are_as_planned(cluster);
        assert_pods_services_and_names_work(cluster, web);
    }
    // Each kube-proxy works by the means it was given.
    let tables = |cluster: &Cluster| cluster.nodes[1].namespace.run("nft list tables").unwrap();
    let chains = |cluster: &Cluster| cluster.nodes[1].namespace.run("iptables -t nat -S").unwrap();
    assert!(tables(west).contains("table ip kube-proxy") && !chains(west).contains("KUBE-SERVICES"));
    assert!(!tables(east).contains("table ip kube-proxy") && chains(east).contains("KUBE-SERVICES"));
    // Nothing joins the clusters but the Internet.
    let apart = webs[0].pods[0].run(&format!("ping -c 1 -W 1 {}", webs[1].pods[0].address));
    assert!(format!("{:#}", apart.unwrap_err()).contains("exit status: 1)"));

    // The kubeconfigs work on the host, and on the other cluster's nodes, in front of and behind NAT.
    for cluster in lab.clusters() {
        let mut kubectl = lab.programs().command("kubectl");
        run(kubectl.arg("--kubeconfig").arg(cluster.kubeconfig()).args(["get", "--raw", "/readyz"])).unwrap();
    }
    for (here, there) in [(east, west), (west, east)] {
        for node in &here.nodes {
            let kubeconfig = format!("--kubeconfig={}", there.kubeconfig().display());
            let mut kubectl = node.namespace.command(lab.programs().binary().to_str().unwrap());
            let names = run(kubectl.args(["kubectl", &kubeconfig, "get", "nodes", "--output", "name"])).unwrap();
            assert!(names.contains(&there.nodes[1].name), "{names}");
        }
    }
    // And on the cluster's own nodes, through the router and back.
    let kubeconfig = format!("--kubeconfig={}", west.kubeconfig().display());
    let mut kubectl = west.nodes[1].namespace.command(lab.programs().binary().to_str().unwrap());
    run(kubectl.args(["kubectl", &kubeconfig, "get", "--raw", "/readyz"])).unwrap();

    let networks = networks("both");
    let all = ["control group", "file", "link", "mount", "network namespace", "process"];
    assert_eq!(kinds(&remains("both", &networks)), BTreeSet::from(all));
    drop(lab);
    assert_eq!(remains("both", &networks), BTreeSet::new());
    assert_eq!(host_network(), before);
}

#[test]
fn what_a_killed_owner_left_is_removed_by_the_next_who_brings_a_lab_up() {
    let _alone = alone();
    let mut owner = Command::new(env!("CARGO_BIN_EXE_kubernetes-lab"))
        .args(["up", "--name", "killed", "--clusters", "east", "--nodes", "1"])
        .spawn()
        .unwrap();
    wait_for("a lab whose node runs", PATIENCE, || {
        let lab = Lab::find("killed")?;
        Ok(lab.cluster("east").node("node1").init()?.map(|_| ()))
    })
    .unwrap();
    let networks = networks("killed");
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(Lab::find("killed").is_err());
    let before = remains("killed", &networks);
    assert!(kinds(&before).contains("process"));

    let plan = Plan::new("next", &["east"], 1, ProxyMode::None).unwrap();
    let lab = Lab::up(&plan).unwrap();
    // The kernel may have given a namespace's number again, and the host's link is the next lab's.
    let left = remains("killed", &networks);
    let left: BTreeSet<_> = left.intersection(&before).filter(|(kind, _)| *kind != "link").collect();
    assert_eq!(left, BTreeSet::new());
    assert!(!kinds(&remains("killed", &BTreeSet::new())).contains("process"));

    // Without kube-proxy nothing leads to a service, but pods run.
    let node = &lab.cluster("east").nodes[0];
    assert!(!node.namespace.run("nft list ruleset").unwrap().contains("KUBE-SERVICES"));
    let pods = lab.cluster("east").items("get pods --namespace kube-system").unwrap();
    assert_eq!(pods[0]["status"]["phase"], "Running");
}

#[test]
fn a_kept_lab_stands_until_it_is_taken_down_and_refuses_another() {
    let _alone = alone();
    let _kept = TakenDown("kept");
    let tool = |line: &str| run(Command::new(env!("CARGO_BIN_EXE_kubernetes-lab")).args(line.split(' ')));
    // `ip` would take such a name for the beginning of one of its own words.
    tool("up --name kept --clusters a --nodes 1 --proxy-mode nftables").unwrap();
    let networks = networks("kept");

    let other = Plan::new("other", &["east"], 1, ProxyMode::Iptables).unwrap();
    let refusal = Lab::up(&other).err().unwrap().to_string();
    assert!(refusal.contains("cargo xtask lab down --name kept"), "{refusal}");
    assert!(tool("status --name kept").unwrap().contains("a-node1   Ready"));
    let kubeconfig = tool("kubeconfig a --name kept").unwrap();
    assert!(fs::read_to_string(kubeconfig.trim()).unwrap().contains("https://203.0.113.2:6443"));
    assert!(tool("kubeconfig north --name kept").unwrap_err().to_string().contains("it has a"));

    // An image of one's own, with libraries and all.
    let lab = Lab::find("kept").unwrap();
    let nft = run(Command::new("sh").args(["-c", "command -v nft"])).unwrap();
    let image = Image {
        reference: "culvert.lab/nft:1".to_owned(),
        programs: vec![nft.trim().into()],
        command: vec!["nft".to_owned(), "--version".to_owned()],
    };
    let cluster = lab.cluster("a");
    cluster.import(&image.write(&lab.directory().join("images")).unwrap()).unwrap();
    cluster.kubectl("run nft --image culvert.lab/nft:1 --image-pull-policy Never --restart Never").unwrap();
    cluster.kubectl("wait pod/nft --for=jsonpath={.status.phase}=Succeeded --timeout=60s").unwrap();
    assert!(cluster.kubectl("logs nft").unwrap().contains("nftables v"));

    tool("down --name kept").unwrap();
    assert_eq!(remains("kept", &networks), BTreeSet::new());
    assert!(tool("status --name kept").is_err());
}
