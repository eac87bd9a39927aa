//! The objects of a joined cluster as values: those of `deploy/kubernetes`, with an image and settings put in.
//!
//! Uninstalling is Submariner's way (chapter 5): a DaemonSet whose init container takes back what a daemon left on each
//! node, beside a container that only waits, so that "ready" means "done".

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::names::{MANAGED_BY, OPERATOR_NAMESPACE, PSK_SECRET};
use crate::secret::SecretBytes;

/// The DaemonSets.
pub const GATEWAY: &str = "culvert-gateway";
pub const ROUTE_AGENT: &str = "culvert-route-agent";
pub const GLOBALNET: &str = "culvert-globalnet";
/// All of them, in the order in which an uninstallation ends them.
pub const DAEMONS: [&str; 3] = [GATEWAY, ROUTE_AGENT, GLOBALNET];
/// The ConfigMap with their variables, as a join has set them.
pub const SETTINGS: &str = "culvert";

/// The label of nodes that may be gateways.
pub const GATEWAY_LABEL: &str = "submariner.io/gateway";

const FILES: [&str; 5] = [
    include_str!("../../../deploy/kubernetes/namespace.yaml"),
    include_str!("../../../deploy/kubernetes/config.yaml"),
    include_str!("../../../deploy/kubernetes/gateway.yaml"),
    include_str!("../../../deploy/kubernetes/route-agent.yaml"),
    include_str!("../../../deploy/kubernetes/globalnet.yaml"),
];

/// What clusters with Calico have beside these.
const CALICO_FILE: &str = include_str!("../../../deploy/kubernetes/calico/route-agent.yaml");

/// The variable that names the network plugin, as Submariner's (chapter 7).
pub const NETWORK_PLUGIN: &str = "SUBMARINER_NETWORKPLUGIN";

/// The variable with the cluster's global CIDRs, separated by commas; not set without Globalnet (Submariner chapter 4.1).
pub const GLOBAL_CIDR: &str = "SUBMARINER_GLOBALCIDR";

/// What tells a gateway's pod that it has to begin anew; a mounted Secret changes without that.
const PSK_VERSION: &str = "culvert.io/psk-version";

/// A label that no node has.
const PARKED: &str = "culvert.io/parked";

/// Returns the objects as they are in `deploy/kubernetes`, in the order in which they are needed.
pub fn base() -> Vec<Value> {
    FILES.iter().flat_map(|file| documents(file)).collect()
}

/// Returns the objects that clusters with this network plugin have beside those of [`base`].
pub fn of_plugin(plugin: &str) -> Vec<Value> {
    if plugin.eq_ignore_ascii_case("calico") { documents(CALICO_FILE).collect() } else { Vec::new() }
}

/// Returns the objects that a cluster has for whichever network plugin, beside those of [`base`].
pub(crate) fn of_any_plugin() -> Vec<Value> {
    of_plugin("calico")
}

fn documents(file: &'static str) -> impl Iterator<Item = Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(file);
    documents.map(|document| Value::deserialize(document).expect("the manifests are YAML"))
}

/// Returns the image that the manifests name.
pub fn default_image() -> String {
    let image = base().iter().find_map(|object| image_of(object).map(str::to_owned));
    image.expect("a DaemonSet has an image")
}

/// Returns the image that a DaemonSet of ours runs.
pub fn image_of(daemon_set: &Value) -> Option<&str> {
    daemon_set["spec"]["template"]["spec"]["containers"][0]["image"].as_str()
}

/// Returns the objects with an image and with these variables for all daemons, those of their network plugin too.
///
/// Pods are replaced if the variables change; the gateway's also if `psk_version` does. The variables stand in the pods
/// themselves: a kubelet whose view of ConfigMaps is behind, as after an outage of the API server, would start a new pod
/// with the old ones, and nothing would tell.
pub fn objects(image: &str, variables: &BTreeMap<&str, String>, psk_version: &str) -> Vec<Value> {
    let mut objects = base();
    for object in &mut objects {
        match (object["kind"].as_str(), object["metadata"]["name"].as_str()) {
            (Some("ConfigMap"), Some(SETTINGS)) => object["data"] = json!(variables),
            (Some("DaemonSet"), name) => {
                let is_gateway = name == Some(GATEWAY);
                let template = &mut object["spec"]["template"];
                if is_gateway {
                    template["metadata"]["annotations"] = json!({PSK_VERSION: psk_version});
                }
                let container = &mut template["spec"]["containers"][0];
                container["image"] = json!(image);
                set_variables(container, variables);
            }
            _ => {}
        }
    }
    objects.extend(variables.get(NETWORK_PLUGIN).into_iter().flat_map(|plugin| of_plugin(plugin)));
    objects
}

/// Returns the Secret with the pre-shared key, as Submariner has it.
pub fn psk_secret(psk: &SecretBytes) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": PSK_SECRET,
            "namespace": OPERATOR_NAMESPACE,
            "labels": {MANAGED_BY.0: MANAGED_BY.1},
        },
        "type": "Opaque",
        "data": {"psk": STANDARD.encode(psk.expose())},
    })
}

/// Puts variables into a container, in place of those that it would take from the ConfigMap. None of them is a secret.
fn set_variables(container: &mut Value, variables: &BTreeMap<&str, String>) {
    let own = container["env"].as_array().cloned().unwrap_or_default();
    let set = variables.iter().map(|(name, value)| json!({"name": name, "value": value}));
    container["env"] = own.into_iter().chain(set).collect();
    // Empty rather than absent: so it goes too where `kubectl apply` had set it.
    container["envFrom"] = json!([]);
}

/// Returns the name of the DaemonSet that takes back what another one did.
pub fn uninstaller_name(daemon_set: &str) -> String {
    format!("{daemon_set}-uninstall")
}

/// Returns the DaemonSet that takes back what a DaemonSet of ours did, on all nodes: one may have been a gateway once.
pub fn uninstaller(daemon_set: &Value) -> Value {
    let installed = &daemon_set["metadata"];
    let name = uninstaller_name(installed["name"].as_str().unwrap_or_default());
    let mut pod = daemon_set["spec"]["template"]["spec"].clone();
    let mut work = pod["containers"][0].clone();
    if let Some(work) = work.as_object_mut() {
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            work.remove(probe);
        }
        let mut variables = work.get("env").and_then(Value::as_array).cloned().unwrap_or_default();
        variables.push(json!({"name": "SUBMARINER_UNINSTALL", "value": "true"}));
        work.insert("env".to_owned(), json!(variables));
    }
    let wait = json!({
        "name": "done",
        "image": work["image"],
        "imagePullPolicy": work["imagePullPolicy"],
        "command": ["/bin/culvert", "pause"],
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    });
    pod["initContainers"] = json!([work]);
    pod["containers"] = json!([wait]);
    if let Some(pod) = pod.as_object_mut() {
        pod.remove("nodeSelector");
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": installed["namespace"], "labels": installed["labels"]},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
        },
    })
}

/// Returns an uninstaller that waits for its turn: it is there, and runs nowhere.
pub fn parked(uninstaller: &Value) -> Value {
    let mut parked = uninstaller.clone();
    parked["spec"]["template"]["spec"]["nodeSelector"] = json!({PARKED: "true"});
    parked
}

/// Returns an uninstaller that was found, parked or not, as one that is applied to run.
pub fn unparked(found: &Value) -> Value {
    let metadata = &found["metadata"];
    let mut spec = found["spec"].clone();
    if let Some(pod) = spec["template"]["spec"].as_object_mut() {
        pod.remove("nodeSelector");
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": metadata["labels"]},
        "spec": spec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::BROKER_SECRET;
    use crate::object::ObjectRef;

    fn daemon_set(objects: &[Value], name: &str) -> Value {
        let is = |object: &&Value| object["kind"] == "DaemonSet" && object["metadata"]["name"] == name;
        objects.iter().find(is).unwrap().clone()
    }

    #[test]
    fn all_objects_are_ours_and_in_one_namespace() {
        let objects = base();
        assert_eq!(objects.len(), 16);
        for object in &objects {
            let reference = ObjectRef::of(object);
            assert_eq!(object["metadata"]["labels"][MANAGED_BY.0], MANAGED_BY.1, "{reference}");
            // Nothing of others' has its name where names are the whole cluster's.
            let is_ours = match &reference.namespace {
                Some(namespace) => namespace == OPERATOR_NAMESPACE,
                None => [OPERATOR_NAMESPACE, GLOBALNET].contains(&reference.name.as_str()),
            };
            assert!(is_ours, "{reference}");
        }
        let deployed = objects.iter().filter(|object| object["kind"] == "DaemonSet");
        let deployed: Vec<&str> = deployed.filter_map(|object| object["metadata"]["name"].as_str()).collect();
        assert_eq!(deployed, DAEMONS);
        assert_eq!(default_image(), concat!("culvert.io/culvert:", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn rights_in_the_whole_cluster_are_for_globalnet_and_with_calico_for_the_route_agent() {
        let base = base();
        let whole = base.iter().filter(|object| object["kind"].as_str().unwrap().starts_with("ClusterRole"));
        let whole: Vec<&Value> = whole.collect();
        let [role, binding] = whole[..] else { panic!("a role and its binding: {whole:?}") };
        assert_eq!((&role["kind"], &role["metadata"]["name"]), (&json!("ClusterRole"), &json!(GLOBALNET)));
        assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
        let account = json!({"kind": "ServiceAccount", "name": GLOBALNET, "namespace": OPERATOR_NAMESPACE});
        assert_eq!(binding["subjects"], json!([account]));
        for rule in role["rules"].as_array().unwrap() {
            let groups = rule["apiGroups"].as_array().unwrap();
            let only_read = rule["verbs"].as_array().unwrap().iter().all(|verb| *verb == "list" || *verb == "watch");
            assert!(only_read || *groups == [json!("submariner.io")], "what is others' is read: {rule}");
            assert!(!rule["resources"].to_string().contains("secrets"), "{rule}");
        }
    }

    #[test]
    fn objects_for_a_network_plugin_are_for_the_route_agent_and_calico_alone() {
        let names = |plugin: &str| -> Vec<String> {
            let variables = BTreeMap::from([(NETWORK_PLUGIN, plugin.to_owned())]);
            let made = objects("i:1", &variables, "7");
            made[base().len()..].iter().map(|object| ObjectRef::of(object).to_string()).collect()
        };
        assert_eq!(names("flannel"), Vec::<String>::new());
        let calico = ["ClusterRole culvert-route-agent-calico", "ClusterRoleBinding culvert-route-agent-calico"];
        assert_eq!(
            (names("calico"), names("Calico")),
            (calico.map(str::to_owned).into(), calico.map(str::to_owned).into())
        );
        let [role, binding] = &of_plugin("calico")[..] else { panic!("a role and its binding") };
        let rules = json!([{
            "apiGroups": ["projectcalico.org"],
            "resources": ["ippools"],
            "verbs": ["list", "create", "patch", "delete"],
        }]);
        assert_eq!(role["rules"], rules);
        assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
        let account = daemon_set(&base(), ROUTE_AGENT)["spec"]["template"]["spec"]["serviceAccountName"].clone();
        assert_eq!((&binding["subjects"][0]["name"], binding["subjects"].as_array().unwrap().len()), (&account, 1));
        for object in [role, binding] {
            assert_eq!(object["metadata"]["labels"][MANAGED_BY.0], MANAGED_BY.1);
        }
    }

    #[test]
    fn no_container_is_privileged_or_writes_to_its_root() {
        for name in DAEMONS {
            let set = daemon_set(&base(), name);
            for set in [&set, &uninstaller(&set)] {
                let pod = &set["spec"]["template"]["spec"];
                assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
                let all =
                    ["initContainers", "containers"].map(|kind| pod[kind].as_array().cloned().unwrap_or_default());
                for container in all.concat() {
                    let context = &container["securityContext"];
                    assert_eq!(context["privileged"], Value::Null);
                    assert_eq!(context["allowPrivilegeEscalation"], false);
                    assert_eq!(context["readOnlyRootFilesystem"], true);
                    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
                }
            }
        }
    }

    #[test]
    fn the_secrets_that_a_join_makes_are_those_that_are_mounted() {
        let volumes = daemon_set(&base(), GATEWAY)["spec"]["template"]["spec"]["volumes"].clone();
        let secrets: Vec<&str> =
            volumes.as_array().unwrap().iter().filter_map(|one| one["secret"]["secretName"].as_str()).collect();
        assert_eq!(secrets, [BROKER_SECRET, PSK_SECRET]);
    }

    #[test]
    fn settings_and_image_are_put_in_and_pods_follow_them() {
        let variables = BTreeMap::from([("SUBMARINER_CLUSTERID", "east".to_owned())]);
        let pods = |variables: &BTreeMap<&str, String>, psk: &str, name: &str| {
            daemon_set(&objects("i:1", variables, psk), name)["spec"]["template"].clone()
        };
        let made = objects("i:1", &variables, "7");
        let settings = made.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
        assert_eq!(settings["data"], json!({"SUBMARINER_CLUSTERID": "east"}));
        let other = BTreeMap::from([("SUBMARINER_CLUSTERID", "west".to_owned())]);
        for name in DAEMONS {
            assert_eq!(image_of(&daemon_set(&made, name)), Some("i:1"));
            let container = pods(&variables, "7", name)["spec"]["containers"][0].clone();
            let own = json!({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}});
            for expected in [own, json!({"name": "SUBMARINER_CLUSTERID", "value": "east"})] {
                assert!(container["env"].as_array().unwrap().contains(&expected), "{container}");
            }
            assert_eq!(container["envFrom"], json!([]));
            assert_ne!(pods(&variables, "7", name), pods(&other, "7", name));
        }
        assert_ne!(pods(&variables, "7", GATEWAY), pods(&variables, "8", GATEWAY));
        for name in [ROUTE_AGENT, GLOBALNET] {
            assert_eq!(pods(&variables, "7", name), pods(&variables, "8", name));
        }
    }

    #[test]
    fn an_uninstaller_works_first_on_every_node_and_then_waits() {
        for name in DAEMONS {
            let made = uninstaller(&daemon_set(&base(), name));
            assert_eq!(
                made["spec"]["template"]["spec"]["nodeSelector"],
                Value::Null,
                "it may have been a gateway once"
            );
        }
        let made = uninstaller(&daemon_set(&base(), GATEWAY));
        let pod = &made["spec"]["template"]["spec"];
        assert_eq!(made["metadata"]["name"], "culvert-gateway-uninstall");
        assert_eq!(made["spec"]["selector"]["matchLabels"], made["spec"]["template"]["metadata"]["labels"]);
        assert_eq!(pod["nodeSelector"], Value::Null);
        let work = &pod["initContainers"][0];
        assert!(work["env"].as_array().unwrap().contains(&json!({"name": "SUBMARINER_UNINSTALL", "value": "true"})));
        assert_eq!((&work["command"], &work["readinessProbe"]), (&json!(["/bin/culvert-gateway"]), &Value::Null));
        assert_eq!(pod["containers"][0]["command"], json!(["/bin/culvert", "pause"]));
        let parked = parked(&made);
        assert_eq!(parked["spec"]["template"]["spec"]["nodeSelector"], json!({"culvert.io/parked": "true"}));
        assert_eq!((unparked(&parked), unparked(&made)), (made.clone(), made.clone()));
    }
}
