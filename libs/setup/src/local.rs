//! Requests to the API server of the cluster that joins or leaves: what is there, labels of nodes, how far pods are.

use std::collections::BTreeSet;
use std::time::Duration;

use culvert_api::{Connection, Gateway, HaStatus};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use serde_json::{Value, json};

use crate::ask::ask;
use crate::error::ServerError;
use crate::manifests::GATEWAY_LABEL;
use crate::names::{MANAGED_BY, OPERATOR_NAMESPACE};
use crate::networks::{Facts, is_flannel};
use crate::object::{Kind, ObjectRef};
use crate::rollout::Rollout;
use crate::server::Server;

const POD: Kind = kind("", "v1", "Pod", "pods");
const NODE: Kind = kind("", "v1", "Node", "nodes");
const GATEWAY: Kind = kind("submariner.io", "v1", "Gateway", "gateways");
const SERVICE: Kind = kind("", "v1", "Service", "services");
const SERVICE_CIDR: Kind = kind("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs");
const OPENSHIFT_NETWORK: Kind = kind("config.openshift.io", "v1", "Network", "networks");

/// Annotation of a node that a join gave the gateways' label.
const LABELLED_BY: &str = "culvert.io/gateway-label";

/// How long the server's controllers may take to delete what an object holds.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(200);

const fn kind(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Kind {
    Kind { group, version, kind, plural }
}

impl Server {
    /// Returns what tells this cluster from all others: the UID of its namespace `kube-system`.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn identity(&self) -> Result<String, ServerError> {
        let reference = ObjectRef { kind: Kind::NAMESPACE, namespace: None, name: "kube-system".to_owned() };
        let namespace = self.find(&reference).await?.unwrap_or_default();
        namespace["metadata"]["uid"].as_str().map(str::to_owned).ok_or_else(|| ServerError::Answer {
            server: self.url().to_owned(),
            what: reference.to_string(),
            message: "it has no UID".to_owned(),
        })
    }

    /// Reads what tells of the cluster's networks. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn network_facts(&self) -> Result<Facts, ServerError> {
        let everywhere = None;
        let openshift = ObjectRef { kind: OPENSHIFT_NETWORK, namespace: None, name: "cluster".to_owned() };
        let mut pods = self.list_where(POD, Some("kube-system"), "", "").await?;
        pods.extend(self.list_where(POD, everywhere, "app=ovnkube-node", "").await?);
        let daemon_sets = self.list_where(Kind::DAEMON_SET, everywhere, "", "").await?;
        let mut config_maps = Vec::new();
        for name in ["calico-config", "ovn-config"] {
            let named = format!("metadata.name={name}");
            config_maps.extend(self.list_where(Kind::CONFIG_MAP, everywhere, "", &named).await?);
        }
        let canal = |set: &Value| set["metadata"]["labels"]["k8s-app"] == "canal";
        for set in daemon_sets.iter().filter(|set| is_flannel(set) || canal(set)) {
            let volumes = set["spec"]["template"]["spec"]["volumes"].as_array().into_iter().flatten();
            for name in volumes.filter_map(|volume| volume["configMap"]["name"].as_str()) {
                let namespace = set["metadata"]["namespace"].as_str().unwrap_or_default();
                config_maps.extend(self.find(&ObjectRef::new(Kind::CONFIG_MAP, namespace, name)).await?);
            }
        }
        let service_cidrs = self.list_where(SERVICE_CIDR, everywhere, "", "").await?;
        Ok(Facts {
            openshift: self.find(&openshift).await?,
            pods,
            daemon_sets,
            config_maps,
            nodes: self.nodes().await?,
            refusal: if service_cidrs.is_empty() { self.refused_service().await? } else { None },
            service_cidrs,
        })
    }

    /// Returns all nodes.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn nodes(&self) -> Result<Vec<Value>, ServerError> {
        self.list_where(NODE, None, "", "").await
    }

    /// Makes a node a gateway, and notes that nobody else did.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn label_gateway(&self, node: &str) -> Result<(), ServerError> {
        let metadata = json!({"labels": {GATEWAY_LABEL: "true"}, "annotations": {LABELLED_BY: MANAGED_BY.1}});
        self.patch_node(node, &metadata).await
    }

    /// Takes the gateways' label from those nodes that a join gave it to.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn unlabel_gateways(&self) -> Result<(), ServerError> {
        let metadata = json!({"labels": {GATEWAY_LABEL: null}, "annotations": {LABELLED_BY: null}});
        for node in self.nodes().await? {
            if node["metadata"]["annotations"][LABELLED_BY] == MANAGED_BY.1 {
                self.patch_node(node["metadata"]["name"].as_str().unwrap_or_default(), &metadata).await?;
            }
        }
        Ok(())
    }

    /// Reads how far a DaemonSet of ours is; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn rollout(&self, name: &str) -> Result<Option<Rollout>, ServerError> {
        let Some(set) = self.find(&daemon_set(name)).await? else { return Ok(None) };
        Ok(Some(Rollout::of(&set, &self.pods_of(name).await?)))
    }

    /// Returns the pods of a DaemonSet of ours, those that are ending too.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn pods_of(&self, daemon_set: &str) -> Result<Vec<Value>, ServerError> {
        self.list_where(POD, Some(OPERATOR_NAMESPACE), &format!("app={daemon_set}"), "").await
    }

    /// Returns the pods of a namespace.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn pods_in(&self, namespace: &str) -> Result<Vec<Value>, ServerError> {
        self.list_where(POD, Some(namespace), "", "").await
    }

    /// Returns the clusters that have announced a gateway at the broker, this one too.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn announced_clusters(&self, broker_namespace: &str) -> Result<BTreeSet<String>, ServerError> {
        let endpoints = self.list_where(Kind::ENDPOINT, Some(broker_namespace), "", "").await?;
        Ok(endpoints.iter().filter_map(|one| one["spec"]["cluster_id"].as_str().map(str::to_owned)).collect())
    }

    /// Returns what this cluster's active gateway says of its connections.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn connections(&self) -> Result<Vec<Connection>, ServerError> {
        let mut connections = Vec::new();
        for found in self.list_where(GATEWAY, Some(OPERATOR_NAMESPACE), "", "").await? {
            let gateway: Gateway = serde_json::from_value(found).map_err(|error| ServerError::Answer {
                server: self.url().to_owned(),
                what: GATEWAY.plural.to_owned(),
                message: error.to_string(),
            })?;
            if gateway.status.ha_status == HaStatus::Active {
                connections.extend(gateway.status.connections);
            }
        }
        Ok(connections)
    }

    /// Returns the objects of a kind that have these labels, in one namespace or, if `None`, everywhere. Selectors are
    /// written as for `kubectl`; an empty one selects all. A kind that the server does not know has no objects.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn list_where(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        labels: &str,
        fields: &str,
    ) -> Result<Vec<Value>, ServerError> {
        let mut params = ListParams::default();
        if !labels.is_empty() {
            params = params.labels(labels);
        }
        if !fields.is_empty() {
            params = params.fields(fields);
        }
        let api = self.api(kind, namespace);
        match ask(|| api.list(&params)).await {
            Ok(list) => Ok(list.items.into_iter().map(|one| serde_json::to_value(one).unwrap_or_default()).collect()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(error) => {
                let place = namespace.map(|namespace| format!(" of {namespace}")).unwrap_or_default();
                Err(self.error(format!("{}{place}", kind.plural), &error))
            }
        }
    }

    /// Deletes an object and what belongs to it; `false` if it was not there.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn delete(&self, reference: &ObjectRef) -> Result<bool, ServerError> {
        let params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        let api = self.api(reference.kind, reference.namespace.as_deref());
        match ask(|| api.delete(&reference.name, &params)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(self.error(reference.to_string(), &error)),
        }
    }

    /// Waits until an object that was deleted is gone.
    ///
    /// # Errors
    ///
    /// [`ServerError`], also if it takes too long.
    pub(crate) async fn wait_gone(&self, reference: &ObjectRef) -> Result<(), ServerError> {
        let poll = async {
            while self.find(reference).await?.is_some() {
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        };
        let timed_out = |_| self.too_long(format!("the end of {reference}"), PATIENCE.as_secs());
        tokio::time::timeout(PATIENCE, poll).await.map_err(timed_out)?
    }

    async fn patch_node(&self, node: &str, metadata: &Value) -> Result<(), ServerError> {
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let api = self.api(NODE, None);
        let params = PatchParams::default();
        let patched = ask(|| api.patch(node, &params, &patch)).await;
        patched.map(drop).map_err(|error| self.error(format!("Node {node}"), &error))
    }

    /// Returns what the server says to a Service with an address that no cluster gives. Nothing is made.
    async fn refused_service(&self) -> Result<Option<String>, ServerError> {
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "culvert-invalid", "namespace": "default"},
            "spec": {"clusterIP": "1.1.1.1", "ports": [{"port": 443}]},
        });
        let service = serde_json::from_value(service).expect("a Service is an object");
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let api = self.api(SERVICE, Some("default"));
        match ask(|| api.create(&params, &service)).await {
            // Not every refusal is of the address: others tell nothing of networks, and are no reason to give up.
            Err(kube::Error::Api(status)) => Ok(Some(status.message.clone())),
            Ok(_) => Ok(None),
            Err(error) => Err(self.error("Service culvert-invalid", &error)),
        }
    }
}

/// Names a DaemonSet of ours.
pub(crate) fn daemon_set(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::DAEMON_SET, OPERATOR_NAMESPACE, name)
}
