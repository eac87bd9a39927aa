//! Kubernetes clusters with the same CIDRs are joined by `culvert` alone, and their pods talk by global addresses: beside
//! kube-proxy in each of its modes, and where there is none. Globalnet is switched on and off for a cluster that is joined.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use culvert_netns_tests::kubernetes::{
    BROKER_NAMESPACE, Cluster, Installer, Lab, NAMESPACE, Plan, Pod, ProxyMode, Web, host_pods, join_line, serve,
    service_address, state,
};
use culvert_netns_tests::{Binaries, leftovers, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster, and its web servers.
struct Site<'a> {
    cluster: &'a Cluster,
    web: Web,
}

impl Site<'_> {
    fn name(&self) -> &str {
        self.cluster.name()
    }

    /// Returns the address that a GlobalIngressIP has, once it has one.
    fn global_address(&self, name: &str) -> Ipv4Addr {
        wait_for(&format!("the global address of {name} in {}", self.name()), PATIENCE, || {
            let object = self.cluster.json(&format!("get globalingressips.submariner.io {name}"))?;
            Ok(object["status"]["allocatedIP"].as_str().and_then(|text| text.parse().ok()))
        })
        .unwrap()
    }

    fn cluster_egress(&self) -> BTreeSet<Ipv4Addr> {
        let object =
            self.cluster.json("get clusterglobalegressips.submariner.io cluster-egress.submariner.io").unwrap();
        let addresses = object["status"]["allocatedIPs"].as_array().unwrap();
        addresses.iter().map(|address| address.as_str().unwrap().parse().unwrap()).collect()
    }

    fn export(&self, name: &str) {
        let export = json!({
            "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport",
            "metadata": {"name": name, "namespace": "default"},
        });
        self.cluster.apply(&export.to_string()).unwrap();
    }

    fn ask_for_egress_addresses(&self) {
        let object = json!({
            "apiVersion": "submariner.io/v1", "kind": "GlobalEgressIP",
            "metadata": {"name": "own", "namespace": "default"},
            "spec": {"numberOfIPs": 2},
        });
        self.cluster.apply(&object.to_string()).unwrap();
    }

    /// Makes a headless Service before the same web servers, and exports it.
    fn export_headless(&self) {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "db", "namespace": "default"},
            "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 8080}]},
        });
        self.cluster.apply(&service.to_string()).unwrap();
        self.export("db");
    }

    fn remove_headless(&self) {
        self.cluster.kubectl("delete serviceexports.multicluster.x-k8s.io db").unwrap();
        self.cluster.kubectl("delete service db").unwrap();
    }
}

/// Runs a line of `culvert` that succeeds and returns what it prints.
fn typed(lab: &Lab, installer: &Installer, cluster: &Cluster, line: &str) -> String {
    installer.run(cluster, line).unwrap_or_else(|error| panic!("{error:#}\n{}", state(lab)))
}

/// Asks until a web server answers, and returns who it is and whom it sees.
fn asked(from: &Pod, server: &str) -> (String, Ipv4Addr) {
    let what = format!("an answer of {server} to {}", from.name);
    let answer = wait_for(&what, PATIENCE, || from.ask(server).map(Some)).unwrap();
    (answer.server, answer.source)
}

/// G1, G4 and G6: from pods and hosts of all nodes, to all backends.
fn services_are_reached(sites: &[Site<'_>], hosts: &[Vec<Pod>]) {
    for (from, host) in sites.iter().zip(hosts) {
        let expected = from.cluster_egress();
        assert_eq!(expected.len(), 8, "{}", from.name());
        for to in sites.iter().filter(|to| to.name() != from.name()) {
            let address = to.global_address("web").to_string();
            let servers: BTreeSet<String> = to.web.pods.iter().map(|pod| pod.name.clone()).collect();
            for pod in from.web.pods.iter().chain(host) {
                let mut answered = BTreeSet::new();
                wait_for(&format!("answers of all of {address} to {}", pod.name), PATIENCE, || {
                    let (server, source) = asked(pod, &address);
                    assert!(expected.contains(&source), "{} of {} was seen as {source}", pod.name, from.name());
                    answered.insert(server);
                    Ok((answered == servers).then_some(()))
                })
                .unwrap();
            }
            from.web.pods[0].run(&format!("ping -c 1 -W 5 {address}")).unwrap();
        }
    }
}

/// G5: pods of a headless service are reached by addresses of their own, by which they leave.
fn headless_pods_are_reached(sites: &[Site<'_>]) {
    sites.iter().for_each(Site::export_headless);
    for from in sites {
        for to in sites.iter().filter(|to| to.name() != from.name()) {
            for (pod, other) in from.web.pods.iter().zip(&to.web.pods) {
                let own = from.global_address(&format!("pod-{}", pod.name));
                let address = to.global_address(&format!("pod-{}", other.name));
                let server = format!("{address}:8080");
                wait_for(&format!("{} as {own} at {server}", pod.name), PATIENCE, || {
                    Ok((asked(pod, &server) == (other.name.clone(), own)).then_some(()))
                })
                .unwrap();
            }
        }
    }
    sites.iter().for_each(Site::remove_headless);
}

/// The README's line: which pods stand behind the cluster's addresses, as long as their flows live.
fn a_gateway_tells_who_called(site: &Site<'_>) {
    let told = |address: &Ipv4Addr| {
        let daemon = "daemonset/culvert-globalnet -- /bin/culvert-globalnet";
        site.cluster.kubectl(&format!("exec --namespace {NAMESPACE} {daemon} --who-called {address}")).unwrap()
    };
    let told: String = site.cluster_egress().iter().map(told).collect();
    let pod = |pod: &Pod| told.contains(&format!(" is pod default/{} ({}:", pod.name, pod.address));
    assert!(site.web.pods.iter().all(pod), "{told}");
}

/// What the broker has noted of a cluster's global CIDRs.
fn allocation(broker: &Cluster, id: &str) -> Vec<String> {
    let map = broker.json(&format!("get configmap submariner-globalnet-info --namespace {BROKER_NAMESPACE}")).unwrap();
    let entries: Vec<Value> = serde_json::from_str(map["data"]["clusterinfo"].as_str().unwrap()).unwrap();
    let own = entries.iter().filter(|entry| entry["cluster_id"] == id);
    own.flat_map(|entry| entry["global_cidr"].as_array().cloned().unwrap_or_default())
        .map(|cidr| cidr.as_str().unwrap().to_owned())
        .collect()
}

/// Stands for what a replacement of kube-proxy does for the API server, and for nothing else.
fn lead_to_the_api_server(cluster: &Cluster) {
    let service = service_address(cluster, "kubernetes").unwrap();
    let api = cluster.json("get endpoints kubernetes").unwrap();
    let address = api["subsets"][0]["addresses"][0]["ip"].as_str().unwrap().to_owned();
    let port = api["subsets"][0]["ports"][0]["port"].as_u64().unwrap();
    for node in &cluster.nodes {
        node.namespace
            .nft(&format!(
                "table ip api {{\n chain services {{\n ip daddr {service} tcp dport 443 dnat to {address}:{port}\n }}\n \
                 chain prerouting {{\n type nat hook prerouting priority dstnat\n jump services\n }}\n \
                 chain output {{\n type nat hook output priority -100\n jump services\n }}\n}}\n"
            ))
            .unwrap();
    }
}

#[test]
fn clusters_with_the_same_cidrs_talk_whatever_kube_proxy_does() {
    Binaries::find().unwrap();
    let mut plan = Plan::new("globalnet", &["east", "west", "north"], 2, ProxyMode::Iptables).unwrap();
    for (id, mode) in [("east", ProxyMode::Iptables), ("west", ProxyMode::Nftables), ("north", ProxyMode::None)] {
        let cluster = plan.cluster_mut(id);
        cluster.proxy_mode = mode;
        cluster.network.pod_cidr = "10.244.0.0/16".parse().unwrap();
        cluster.network.service_cidr = "10.96.0.0/16".parse().unwrap();
    }
    let lab = Lab::up(&plan).unwrap();
    lead_to_the_api_server(lab.cluster("north"));
    let installer = Installer::new(&lab).unwrap();
    let broker = lab.cluster("east");
    typed(&lab, &installer, broker, "deploy-broker --globalnet");
    let sites: Vec<Site<'_>> =
        lab.clusters().iter().map(|cluster| Site { cluster, web: serve(cluster).unwrap() }).collect();
    for site in &sites {
        typed(&lab, &installer, site.cluster, &join_line(site.cluster));
        site.export("web");
    }
    for (id, cidr) in [("east", "242.0.0.0/16"), ("west", "242.1.0.0/16"), ("north", "242.2.0.0/16")] {
        assert_eq!(allocation(broker, id), [cidr]);
    }

    let hosts: Vec<Vec<Pod>> = sites.iter().map(|site| host_pods(site.cluster).unwrap()).collect();
    services_are_reached(&sites, &hosts);
    headless_pods_are_reached(&sites);
    a_gateway_tells_who_called(&sites[0]);
    let shown: Value = serde_json::from_str(&typed(&lab, &installer, broker, "show global-ips --output json")).unwrap();
    let rows = shown["globalIps"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["status"] == "allocated"), "{shown:#}");

    for Site { cluster, .. } in &sites {
        typed(&lab, &installer, cluster, "diagnose all");
        let shown = typed(&lab, &installer, cluster, "show versions --output json");
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let globalnet = &shown["versions"][2];
        assert_eq!((&globalnet["component"], &globalnet["running"]), (&json!("culvert-globalnet"), &json!(["1"])));
        let logs = format!("logs --namespace {NAMESPACE} --selector app=culvert-globalnet --tail -1");
        let logs = cluster.kubectl(&logs).unwrap().to_lowercase();
        for lacking in ["forbidden", "not permitted"] {
            assert!(!logs.contains(lacking), "{}: {logs}", cluster.name());
        }
    }

    for site in sites.iter().rev() {
        site.ask_for_egress_addresses();
        typed(&lab, &installer, site.cluster, "uninstall --yes");
        // What users export is not Globalnet's alone.
        let left = site.cluster.kubectl("get customresourcedefinitions --output name").unwrap();
        let definition = "customresourcedefinition.apiextensions.k8s.io/serviceexports.multicluster.x-k8s.io";
        assert_eq!(left.trim(), definition, "{}", site.name());
        for node in &site.cluster.nodes {
            assert_eq!(leftovers(&node.namespace).unwrap(), Vec::<String>::new());
        }
    }
}
