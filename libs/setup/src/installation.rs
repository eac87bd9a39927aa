//! Decides what a join sets in the cluster that joins, and what there speaks against it.

use std::collections::{BTreeMap, BTreeSet};

use culvert_api::labels;
use culvert_model::ClusterId;
use ipnet::IpNet;
use serde_json::Value;

use crate::definitions::{Definitions, UnusableDefinition, definitions};
use crate::error::ServerError;
use crate::local::daemon_set;
use crate::manifests::{self, DAEMONS, GATEWAY_LABEL, GLOBAL_CIDR, NETWORK_PLUGIN, uninstaller_name};
use crate::names::{BROKER_SECRET, OPERATOR_NAMESPACE};
use crate::networks::Networks;
use crate::object::{Kind, ObjectRef};
use crate::rights::{Right, granted, list};
use crate::server::Server;

/// Submariner's gateways: they and ours would take each other's ports and records.
const SUBMARINER_GATEWAY: &str = "submariner-gateway";

/// What is set in a cluster that joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub cluster: ClusterId,
    pub networks: Networks,
    /// Its CIDRs in the clusterset's global addresses; none without Globalnet.
    pub global: Vec<IpNet>,
    /// The broker's API server, with scheme.
    pub broker_url: String,
    pub broker_namespace: String,
    /// Variables of the daemons that the join's flags set, beyond these.
    pub variables: BTreeMap<&'static str, String>,
}

/// What a cluster has of an earlier join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installation {
    /// The id that it joined by.
    pub cluster: Option<String>,
    /// Its global CIDRs, as they are written; empty without Globalnet.
    pub global: String,
    /// The namespace of its broker.
    pub broker_namespace: Option<String>,
    /// Its own Cluster records; other clusters' are not here.
    pub recorded: BTreeSet<String>,
    /// Whether Submariner runs in it.
    pub submariner: bool,
    /// Whether an uninstallation of it was broken off: its pods would undo a join when they start again.
    pub half_uninstalled: bool,
    pub definitions: Definitions,
}

/// What in the cluster itself speaks against a join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalObstacle {
    #[error("this cluster has joined as {0}: pass --clusterid {0} to repair it, or run `culvert uninstall` first")]
    OtherId(String),
    #[error("Submariner runs in this cluster (DaemonSet {SUBMARINER_GATEWAY}): run `subctl uninstall` first")]
    Submariner,
    #[error("an uninstallation of this cluster was broken off: run `culvert uninstall` again first")]
    HalfUninstalled,
    #[error(
        "no node has the label {GATEWAY_LABEL}=true: label those that are to be gateways, or leave --label-gateway on"
    )]
    NoGateway,
    #[error("{0}")]
    Definition(UnusableDefinition),
    #[error("you may not {0}: ask for these rights, or use another context")]
    Lacking(String),
}

/// The nodes that are gateways, or may become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayNodes {
    Labelled(Vec<String>),
    /// Best first: workers before nodes of the control plane, ready ones before others.
    Candidates(Vec<String>),
}

impl Settings {
    /// Returns the variables of the daemons.
    pub fn variables(&self) -> BTreeMap<&'static str, String> {
        let cidrs = |cidrs: &[IpNet]| cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut variables = BTreeMap::from([
            ("SUBMARINER_CLUSTERID", self.cluster.to_string()),
            ("SUBMARINER_CLUSTERCIDR", cidrs(&self.networks.pods)),
            ("SUBMARINER_SERVICECIDR", cidrs(&self.networks.services)),
            (NETWORK_PLUGIN, self.networks.plugin.clone()),
            ("BROKER_K8S_APISERVER", self.broker_url.trim_start_matches("https://").trim_end_matches('/').to_owned()),
            ("BROKER_K8S_REMOTENAMESPACE", self.broker_namespace.clone()),
        ]);
        if !self.global.is_empty() {
            variables.insert(GLOBAL_CIDR, cidrs(&self.global));
        }
        variables.extend(self.variables.iter().map(|(name, value)| (*name, value.clone())));
        variables
    }
}

impl Installation {
    /// Tells whether the cluster is a member by this id already.
    pub fn is_known_as(&self, id: &ClusterId) -> bool {
        self.cluster.as_deref() == Some(id.as_str()) || self.recorded.contains(id.as_str())
    }

    /// Returns what speaks against a join by this id.
    pub fn obstacles(&self, id: &ClusterId) -> Vec<LocalObstacle> {
        let other = self.cluster.clone().filter(|joined| joined != id.as_str());
        let submariner = self.submariner.then_some(LocalObstacle::Submariner);
        let half = self.half_uninstalled.then_some(LocalObstacle::HalfUninstalled);
        let unusable = self.definitions.unusable.iter().cloned().map(LocalObstacle::Definition);
        other.map(LocalObstacle::OtherId).into_iter().chain(submariner).chain(half).chain(unusable).collect()
    }
}

impl GatewayNodes {
    /// Sorts nodes out.
    pub fn of(nodes: &[Value]) -> Self {
        let name = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let labelled = |node: &&Value| node["metadata"]["labels"][GATEWAY_LABEL] == "true";
        let found: Vec<String> = nodes.iter().filter(labelled).map(name).collect();
        if !found.is_empty() {
            return Self::Labelled(found);
        }
        let controls = |node: &Value| {
            let labels = &node["metadata"]["labels"];
            ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"]
                .iter()
                .any(|key| !labels[key].is_null())
        };
        let ready = |node: &Value| {
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        let mut ranked: Vec<(bool, bool, String)> =
            nodes.iter().map(|node| (controls(node), !ready(node), name(node))).collect();
        ranked.sort();
        Self::Candidates(ranked.into_iter().map(|(_, _, name)| name).collect())
    }
}

impl Server {
    /// Looks at what the cluster has of an earlier join. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn installation(&self) -> Result<Installation, ServerError> {
        let settings = ObjectRef::new(Kind::CONFIG_MAP, OPERATOR_NAMESPACE, manifests::SETTINGS);
        let settings = self.find(&settings).await?.unwrap_or_default();
        let setting = |name: &str| settings["data"][name].as_str().filter(|value| !value.is_empty()).map(str::to_owned);
        let own = |cluster: &&Value| cluster["metadata"]["labels"][labels::CLUSTER_ID].is_null();
        let clusters = self.list(Kind::CLUSTER, OPERATOR_NAMESPACE).await?;
        let recorded = clusters.iter().filter(own).filter_map(|cluster| cluster["metadata"]["name"].as_str());
        let mut half_uninstalled = false;
        for name in DAEMONS.map(uninstaller_name) {
            half_uninstalled |= self.find(&daemon_set(&name)).await?.is_some();
        }
        Ok(Installation {
            cluster: setting("SUBMARINER_CLUSTERID"),
            global: setting(GLOBAL_CIDR).unwrap_or_default(),
            broker_namespace: setting("BROKER_K8S_REMOTENAMESPACE"),
            recorded: recorded.map(str::to_owned).collect(),
            submariner: self.find(&daemon_set(SUBMARINER_GATEWAY)).await?.is_some(),
            half_uninstalled,
            definitions: self.found_definitions().await?,
        })
    }

    /// Tells which rights a join lacks in the cluster that joins.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn lacking_for_join(&self) -> Result<Option<LocalObstacle>, ServerError> {
        self.obstacle(&rights(), &manifests::base()).await
    }

    /// Tells which rights a join lacks for what clusters with this network plugin have beside the rest.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn lacking_for_plugin(&self, plugin: &str) -> Result<Option<LocalObstacle>, ServerError> {
        self.obstacle(&plugin_rights(plugin), &manifests::of_plugin(plugin)).await
    }

    /// Says which are lacking of some rights, and of those that the roles among `objects` give.
    async fn obstacle(&self, rights: &[Right], objects: &[Value]) -> Result<Option<LocalObstacle>, ServerError> {
        let mut lacking = self.lacking(rights).await?;
        lacking.extend(self.lacking_to_grant(&granted(objects)).await?);
        Ok((!lacking.is_empty()).then(|| LocalObstacle::Lacking(list(&lacking))))
    }
}

/// Returns the rights that a join takes: on its objects, and to what tells of the cluster's networks.
fn rights() -> Vec<Right> {
    let secret = ObjectRef::new(Kind::SECRET, OPERATOR_NAMESPACE, BROKER_SECRET);
    let objects = definitions().into_iter().chain(manifests::base()).map(|object| ObjectRef::of(&object));
    let mut rights: BTreeSet<Right> = objects.chain([secret]).flat_map(|object| rights_on(&object)).collect();
    rights.extend(["list", "patch"].map(|verb| Right::new(verb, "", "nodes", None)));
    rights.insert(Right::new("list", "submariner.io", "clusters", Some(OPERATOR_NAMESPACE)));
    rights.insert(Right::new("list", "submariner.io", "gateways", Some(OPERATOR_NAMESPACE)));
    rights.insert(Right::new("get", "config.openshift.io", "networks", None));
    for (group, resource) in
        [("", "pods"), ("apps", "daemonsets"), ("", "configmaps"), ("networking.k8s.io", "servicecidrs")]
    {
        rights.insert(Right::new("list", group, resource, None));
    }
    rights.into_iter().collect()
}

fn plugin_rights(plugin: &str) -> Vec<Right> {
    manifests::of_plugin(plugin).iter().flat_map(|object| rights_on(&ObjectRef::of(object))).collect()
}

fn rights_on(object: &ObjectRef) -> [Right; 3] {
    let Kind { group, plural, .. } = object.kind;
    ["create", "get", "patch"].map(|verb| Right::new(verb, group, plural, object.namespace.as_deref()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, labels: Value, ready: &str) -> Value {
        json!({
            "metadata": {"name": name, "labels": labels},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        })
    }

    #[test]
    fn the_first_ready_worker_is_the_best_gateway() {
        let control = node("a", json!({"node-role.kubernetes.io/control-plane": ""}), "True");
        let nodes =
            [control, node("b", json!({}), "False"), node("d", json!({}), "True"), node("c", json!({}), "True")];
        let names = ["c", "d", "b", "a"].map(str::to_owned).to_vec();
        assert_eq!(GatewayNodes::of(&nodes), GatewayNodes::Candidates(names));
        let labelled = [nodes[0].clone(), node("e", json!({GATEWAY_LABEL: "true"}), "False")];
        assert_eq!(GatewayNodes::of(&labelled), GatewayNodes::Labelled(vec!["e".to_owned()]));
        assert_eq!(GatewayNodes::of(&[]), GatewayNodes::Candidates(vec![]));
    }

    #[test]
    fn a_join_by_another_id_and_beside_submariner_is_refused() {
        let (east, west): (ClusterId, ClusterId) = ("east".parse().unwrap(), "west".parse().unwrap());
        let joined = Installation { cluster: Some("east".to_owned()), ..Installation::default() };
        assert_eq!(joined.obstacles(&east), []);
        assert!(joined.is_known_as(&east) && !joined.is_known_as(&west));
        assert_eq!(joined.obstacles(&west), [LocalObstacle::OtherId("east".to_owned())]);
        let half = Installation { half_uninstalled: true, ..joined.clone() };
        assert_eq!(half.obstacles(&east), [LocalObstacle::HalfUninstalled]);
        let beside = Installation { submariner: true, ..joined };
        assert!(beside.obstacles(&east)[0].to_string().contains("subctl uninstall"));
    }

    #[test]
    fn settings_become_the_daemons_variables() {
        let settings = Settings {
            cluster: "east".parse().unwrap(),
            networks: Networks {
                plugin: "generic".to_owned(),
                pods: vec!["10.1.0.0/16".parse().unwrap(), "fd01::/48".parse().unwrap()],
                services: vec!["100.1.0.0/16".parse().unwrap()],
            },
            global: vec![],
            broker_url: "https://192.0.2.1:6443/".to_owned(),
            broker_namespace: "ns".to_owned(),
            variables: BTreeMap::from([("CE_IPSEC_NATTPORT", "4501".to_owned())]),
        };
        assert!(
            !settings.variables().contains_key("SUBMARINER_GLOBALCIDR"),
            "nothing changes where there is no Globalnet"
        );
        let variables = Settings { global: vec!["242.1.0.0/16".parse().unwrap()], ..settings }.variables();
        assert_eq!(variables["SUBMARINER_GLOBALCIDR"], "242.1.0.0/16");
        assert_eq!(variables["SUBMARINER_NETWORKPLUGIN"], "generic");
        assert_eq!(variables["SUBMARINER_CLUSTERCIDR"], "10.1.0.0/16,fd01::/48");
        assert_eq!(variables["BROKER_K8S_APISERVER"], "192.0.2.1:6443");
        assert_eq!(variables["CE_IPSEC_NATTPORT"], "4501");
    }

    #[test]
    fn every_object_of_a_join_has_a_right_that_is_checked_first() {
        let rights = list(&rights());
        for right in [
            "create/get/patch daemonsets.apps in namespace submariner-operator,",
            "patch secrets in namespace submariner-operator,",
            "create/get/patch roles.rbac.authorization.k8s.io in namespace submariner-operator,",
            "patch nodes,",
            "create/get/patch clusterroles.rbac.authorization.k8s.io,",
            "create/get/patch clusterrolebindings.rbac.authorization.k8s.io,",
        ] {
            assert!(rights.contains(right), "{right} is not in {rights}");
        }
    }

    #[test]
    fn rights_for_a_network_plugin_are_asked_for_with_calico_only() {
        assert_eq!(plugin_rights("flannel"), []);
        let of_roles = "create/get/patch clusterroles.rbac.authorization.k8s.io";
        let rights = list(&plugin_rights("calico"));
        assert!(rights.contains(of_roles) && rights.contains("patch clusterrolebindings."), "{rights}");
    }
}
