//! Whose word on a cluster's CIDRs counts, in pieces of what API servers of many makes show.

use serde_json::json;

use super::*;

fn component(name: &str, words: &[&str]) -> Value {
    json!({
        "metadata": {"name": format!("{name}-node1"), "labels": {"component": name}},
        "spec": {"containers": [{"command": [name], "args": words}]},
    })
}

/// A cluster as kubeadm makes it.
fn kubeadm() -> Facts {
    Facts {
        pods: vec![
            component("kube-apiserver", &["--v=2", "--service-cluster-ip-range=10.96.0.0/12"]),
            component("kube-controller-manager", &["--cluster-cidr=10.244.0.0/16,fd00:10::/56"]),
        ],
        ..Facts::default()
    }
}

fn texts_of(facts: &Facts) -> (String, String, String) {
    let Networks { plugin, pods, services } = facts.networks(&[], &[]).unwrap();
    let join = |cidrs: &[IpNet]| cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    (plugin, join(&pods), join(&services))
}

fn is(facts: &Facts, plugin: &str, pods: &str, services: &str) {
    assert_eq!(texts_of(facts), (plugin.to_owned(), pods.to_owned(), services.to_owned()));
}

#[test]
fn flags_of_kubernetes_own_components_count_where_no_plugin_says() {
    is(&kubeadm(), "generic", "10.244.0.0/16,fd00:10::/56", "10.96.0.0/12");
    let mut facts = kubeadm();
    facts.config_maps.push(json!({"metadata": {"name": "calico-config"}}));
    is(&facts, "calico", "10.244.0.0/16,fd00:10::/56", "10.96.0.0/12");
    facts.pods[1] = json!({
        "metadata": {"name": "kube-proxy-x", "labels": {"k8s-app": "kube-proxy"}},
        "spec": {"containers": [{"command": ["kube-proxy", "--cluster-cidr=10.3.0.0/16"]}]},
    });
    is(&facts, "calico", "10.3.0.0/16", "10.96.0.0/12");
}

#[test]
fn openshift_says_all() {
    let mut facts = kubeadm();
    facts.openshift = Some(json!({"spec": {
        "networkType": "OVNKubernetes",
        "clusterNetwork": [{"cidr": "10.128.0.0/14", "hostPrefix": 23}],
        "serviceNetwork": ["172.30.0.0/16"],
    }}));
    is(&facts, "OVNKubernetes", "10.128.0.0/14", "172.30.0.0/16");
}

#[test]
fn plugins_are_found_in_submariners_order() {
    let mut facts = kubeadm();
    let kindnet = json!({
        "metadata": {"name": "kindnet-1", "labels": {"app": "kindnet"}},
        "spec": {"containers": [{"env": [{"name": "POD_SUBNET", "value": "10.8.0.0/16"}]}]},
    });
    facts.pods.push(kindnet);
    is(&facts, "kindnet", "10.8.0.0/16", "10.96.0.0/12");
    facts.daemon_sets.push(json!({"metadata": {"name": "kube-flannel-ds", "namespace": "kube-flannel"}}));
    facts.config_maps.push(json!({
        "metadata": {"name": "kube-flannel-cfg"},
        "data": {"net-conf.json": "{\"Network\": \"10.7.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}"},
    }));
    is(&facts, "flannel", "10.7.0.0/16", "10.96.0.0/12");
    facts.daemon_sets.push(json!({"metadata": {"name": "canal", "labels": {"k8s-app": "canal"}}}));
    is(&facts, "canal-flannel", "10.7.0.0/16", "10.96.0.0/12");
    facts.pods.push(json!({
        "metadata": {"name": "weave-net-1", "labels": {"name": "weave-net"}},
        "spec": {"containers": [{"env": [{"name": "IPALLOC_RANGE", "value": "10.32.0.0/12"}]}]},
    }));
    is(&facts, "weave-net", "10.32.0.0/12", "10.96.0.0/12");
    facts.pods.push(json!({"metadata": {"name": "o", "labels": {"app": "ovnkube-node"}}, "spec": {}}));
    facts.config_maps.push(json!({
        "metadata": {"name": "ovn-config"},
        "data": {"net_cidr": "10.6.0.0/16/24", "svc_cidr": "10.5.0.0/16"},
    }));
    is(&facts, "OVNKubernetes", "10.6.0.0/16", "10.5.0.0/16");
}

#[test]
fn the_only_nodes_network_is_that_of_all_pods() {
    let node = |cidr: &str| json!({"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}});
    let mut facts = Facts {
        nodes: vec![node("10.1.1.0/24")],
        service_cidrs: vec![json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["100.1.0.0/16"]}})],
        ..Facts::default()
    };
    is(&facts, "generic", "10.1.1.0/24", "100.1.0.0/16");
    facts.nodes.push(node("10.1.2.0/24"));
    let error = facts.networks(&[], &[]).unwrap_err().to_string();
    assert!(error.contains("its nodes have 10.1.1.0/24, 10.1.2.0/24") && error.contains("--clustercidr"), "{error}");
}

#[test]
fn older_servers_tell_their_services_when_they_refuse_one() {
    let facts = Facts {
        refusal: Some(
            "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"1.1.1.1\"]: failed to allocate IP 1.1.1.1: the \
             provided IP (1.1.1.1) is not in the valid range. The range of valid IPs is 10.43.0.0/16"
                .to_owned(),
        ),
        ..Facts::default()
    };
    let pods = ["10.42.0.0/16".parse().unwrap()];
    assert_eq!(facts.networks(&pods, &[]).unwrap().services[0].to_string(), "10.43.0.0/16");
    assert_eq!(Facts::default().networks(&pods, &[]), Err(NetworksError::Services));
}

#[test]
fn what_is_given_counts_and_what_is_no_cidr_is_named() {
    let given = ["10.9.0.0/16".parse().unwrap()];
    assert_eq!(kubeadm().networks(&given, &[]).unwrap().pods, given);
    assert_eq!(kubeadm().networks(&[], &given).unwrap().services, given);
    let facts = Facts { pods: vec![component("kube-controller-manager", &["--cluster-cidr=ten"])], ..Facts::default() };
    let error = facts.networks(&[], &given).unwrap_err().to_string();
    assert!(error.contains("\"ten\", kube-controller-manager says") && error.contains("--clustercidr"), "{error}");
}

#[test]
fn nodes_are_known_by_all_their_addresses_and_not_by_names() {
    let addresses = json!([
        {"type": "InternalIP", "address": "192.168.1.10"},
        {"type": "InternalIP", "address": "fd00::10"},
        {"type": "Hostname", "address": "n1"},
    ]);
    let nodes = vec![json!({"status": {"addresses": addresses}}), json!({})];
    let facts = Facts { nodes, ..Facts::default() };
    let expected: Vec<IpNet> = ["192.168.1.10/32", "fd00::10/128"].map(|text| text.parse().unwrap()).into();
    assert_eq!(facts.node_addresses(), expected);
}
