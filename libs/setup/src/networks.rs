//! Decides which CIDRs a cluster's pods and services have, from what its API server shows (Submariner chapter 5.1).
//!
//! Network plugins are looked for in Submariner's order, and have its names. Where a plugin does not say, the flags of
//! Kubernetes' own components do. Unlike Submariner, services are first looked for in ServiceCIDR objects.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

/// What was found at the API server; what a server does not know is not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Network `cluster` of config.openshift.io.
    pub openshift: Option<Value>,
    /// Pods of kube-system, and those with the label `app=ovnkube-node` elsewhere.
    pub pods: Vec<Value>,
    /// All DaemonSets.
    pub daemon_sets: Vec<Value>,
    /// ConfigMaps `calico-config` and `ovn-config`, and those that a flannel DaemonSet mounts.
    pub config_maps: Vec<Value>,
    pub nodes: Vec<Value>,
    /// ServiceCIDR objects of networking.k8s.io.
    pub service_cidrs: Vec<Value>,
    /// What the API server says to a Service with an address that no cluster gives.
    pub refusal: Option<String>,
}

/// A cluster's networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks {
    /// The network plugin by Submariner's name, `generic` if it is none that is known.
    pub plugin: String,
    pub pods: Vec<IpNet>,
    pub services: Vec<IpNet>,
}

impl Networks {
    /// Returns the CIDRs of pods and services.
    pub fn all(&self) -> Vec<IpNet> {
        self.pods.iter().chain(&self.services).copied().collect()
    }
}

/// Why the networks are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworksError {
    #[error(
        "the CIDR of this cluster's pods cannot be found out (network plugin: {plugin}{nodes}): give it with --clustercidr"
    )]
    Pods { plugin: String, nodes: String },
    #[error("the CIDR of this cluster's services cannot be found out: give it with --servicecidr")]
    Services,
    #[error("{value:?}, {place} says, is no CIDR: give the right one with {flag}")]
    Cidr { value: String, place: &'static str, flag: &'static str },
}

/// What one source says of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Whose word it is, such as `kube-apiserver`.
    pub place: &'static str,
    /// As they are written there.
    pub cidrs: Vec<String>,
}

/// What a cluster says of its networks, without anything given by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    /// The network plugin by Submariner's name, `generic` if it is none that is known.
    pub plugin: String,
    /// `None` if nothing says.
    pub pods: Option<Found>,
    pub services: Option<Found>,
}

impl Facts {
    /// Decides which networks the cluster has; what is given by hand counts.
    ///
    /// # Errors
    ///
    /// [`NetworksError`] names the flag that helps.
    pub fn networks(&self, pods: &[IpNet], services: &[IpNet]) -> Result<Networks, NetworksError> {
        let Discovered { plugin, pods: found_pods, services: found_services } = self.discovered();
        let pods = match pods {
            [] => {
                let nodes = self.node_cidrs();
                let nodes = match nodes.is_empty() {
                    true => String::new(),
                    false => format!("; its nodes have {}", nodes.into_iter().collect::<Vec<_>>().join(", ")),
                };
                let found = found_pods.ok_or_else(|| NetworksError::Pods { plugin: plugin.clone(), nodes })?;
                parsed(found, "--clustercidr")?
            }
            given => given.to_vec(),
        };
        let services = match services {
            [] => parsed(found_services.ok_or(NetworksError::Services)?, "--servicecidr")?,
            given => given.to_vec(),
        };
        Ok(Networks { plugin, pods, services })
    }

    /// Returns what the cluster says of its networks.
    pub fn discovered(&self) -> Discovered {
        let (plugin, pods, services) = self.plugin();
        Discovered {
            plugin,
            pods: pods.or_else(|| self.generic_pods()),
            services: services.or_else(|| self.generic_services()),
        }
    }

    /// Returns the addresses of the nodes, each as the CIDR that it alone is in.
    pub fn node_addresses(&self) -> Vec<IpNet> {
        let addresses = self.nodes.iter().flat_map(|node| node["status"]["addresses"].as_array().into_iter().flatten());
        // Other types, such as Hostname, are no addresses.
        let parsed = addresses.filter_map(|one| one["address"].as_str()?.parse::<IpAddr>().ok());
        parsed.map(IpNet::from).collect()
    }

    /// Returns the plugin's name, and what it says of pods and of services.
    fn plugin(&self) -> (String, Option<Found>, Option<Found>) {
        if let Some(network) = &self.openshift
            && let Some(name) = network["spec"]["networkType"].as_str()
        {
            let name = if name.eq_ignore_ascii_case("calico") { "calico" } else { name };
            let place = "OpenShift's Network cluster";
            let pods = network["spec"]["clusterNetwork"].as_array().into_iter().flatten();
            let pods = pods.map(|one| &one["cidr"]);
            let services = network["spec"]["serviceNetwork"].as_array().into_iter().flatten();
            return (name.to_owned(), found(place, texts(pods)), found(place, texts(services)));
        }
        if self.pods.iter().any(|pod| label(pod, "app") == "ovnkube-node") {
            let place = "ConfigMap ovn-config";
            let config = self.config_maps.iter().find(|map| name(map) == "ovn-config");
            let of =
                |key: &str| config.and_then(|map| found(place, list(map["data"][key].as_str().unwrap_or_default())));
            return ("OVNKubernetes".to_owned(), of("net_cidr"), of("svc_cidr"));
        }
        if let Some(pod) = self.pods.iter().find(|pod| label(pod, "name") == "weave-net") {
            return ("weave-net".to_owned(), found("weave's pod", list(variable(pod, "IPALLOC_RANGE"))), None);
        }
        if self.daemon_sets.iter().any(|set| label(set, "k8s-app") == "canal") {
            return ("canal-flannel".to_owned(), self.flannel_pods(), None);
        }
        let calico = self.config_maps.iter().any(|map| name(map) == "calico-config")
            || self.daemon_sets.iter().any(|set| name(set) == "calico-node");
        if calico {
            return ("calico".to_owned(), None, None);
        }
        if self.daemon_sets.iter().any(is_flannel) {
            return ("flannel".to_owned(), self.flannel_pods(), None);
        }
        if let Some(pod) = self.pods.iter().find(|pod| label(pod, "app") == "kindnet") {
            return ("kindnet".to_owned(), found("kindnet's pod", list(variable(pod, "POD_SUBNET"))), None);
        }
        ("generic".to_owned(), None, None)
    }

    fn flannel_pods(&self) -> Option<Found> {
        let config = self.config_maps.iter().find_map(|map| map["data"]["net-conf.json"].as_str())?;
        let config: Value = serde_json::from_str(config).ok()?;
        found("flannel's ConfigMap", texts([&config["Network"], &config["IPv6Network"]].into_iter()))
    }

    fn generic_pods(&self) -> Option<Found> {
        let of = |component, place| found(place, self.flag(component, "--cluster-cidr"));
        let components =
            || of("kube-controller-manager", "kube-controller-manager").or_else(|| of("kube-proxy", "kube-proxy"));
        components().or_else(|| match self.nodes.as_slice() {
            [_] => found("the only node", self.node_cidrs().into_iter().collect()),
            _ => None,
        })
    }

    fn generic_services(&self) -> Option<Found> {
        let objects = self.service_cidrs.iter().filter(|one| name(one) == "kubernetes");
        let objects = texts(objects.flat_map(|one| one["spec"]["cidrs"].as_array().into_iter().flatten()));
        let refusal = || {
            let (_, text) = self.refusal.as_deref()?.split_once("valid IPs is ")?;
            found("the API server", list(text.split_whitespace().next().unwrap_or_default()))
        };
        found("ServiceCIDR kubernetes", objects)
            .or_else(|| found("kube-apiserver", self.flag("kube-apiserver", "--service-cluster-ip-range")))
            .or_else(refusal)
    }

    /// Returns what a component of Kubernetes that runs as a pod was given for a flag.
    fn flag(&self, component: &str, flag: &str) -> Vec<String> {
        let is_component = |pod: &&Value| label(pod, "component") == component || label(pod, "k8s-app") == component;
        let containers = self.pods.iter().filter(is_component).flat_map(containers);
        let words = containers.flat_map(|container| {
            ["command", "args"].into_iter().flat_map(move |field| container[field].as_array().into_iter().flatten())
        });
        let values = words.filter_map(|word| word.as_str()?.strip_prefix(flag)?.strip_prefix('='));
        values.map(list).next().unwrap_or_default()
    }

    fn node_cidrs(&self) -> BTreeSet<String> {
        let of_node = |node: &Value| {
            let all = node["spec"]["podCIDRs"].as_array().cloned();
            all.unwrap_or_else(|| vec![node["spec"]["podCIDR"].clone()])
        };
        self.nodes.iter().flat_map(of_node).filter_map(|cidr| cidr.as_str().map(str::to_owned)).collect()
    }
}

/// Tells whether a DaemonSet is flannel's; newer ones are in a namespace of their own.
pub(crate) fn is_flannel(set: &Value) -> bool {
    let namespace = set["metadata"]["namespace"].as_str().unwrap_or_default();
    name(set).contains("flannel") && ["kube-system", "kube-flannel"].contains(&namespace)
}

fn found(place: &'static str, cidrs: Vec<String>) -> Option<Found> {
    (!cidrs.is_empty()).then_some(Found { place, cidrs })
}

fn parsed(found: Found, flag: &'static str) -> Result<Vec<IpNet>, NetworksError> {
    let Found { place, cidrs } = found;
    let parse = |value: String| match value.parse::<IpNet>() {
        Ok(cidr) => Ok(cidr.trunc()),
        Err(_) => Err(NetworksError::Cidr { value, place, flag }),
    };
    cidrs.into_iter().map(parse).collect()
}

/// Reads a list with commas. OVN-Kubernetes writes the size of a node's part behind a second slash.
fn list(text: &str) -> Vec<String> {
    let cidrs = text.split(',').map(str::trim).filter(|cidr| !cidr.is_empty());
    cidrs.map(|cidr| cidr.split('/').take(2).collect::<Vec<_>>().join("/")).collect()
}

fn texts<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<String> {
    values.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn label<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"]["labels"][key].as_str().unwrap_or_default()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    pod["spec"]["containers"].as_array().into_iter().flatten()
}

fn variable<'a>(pod: &'a Value, name: &str) -> &'a str {
    let mut all = containers(pod).flat_map(|container| container["env"].as_array().into_iter().flatten());
    all.find(|one| one["name"] == name).and_then(|one| one["value"].as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
