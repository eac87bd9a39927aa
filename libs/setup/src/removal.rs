//! Decides what an uninstall deletes, in which order, and what stays because it is somebody else's.
//!
//! What Culvert made has its label; a namespace or a definition without it was there before. Records go after the
//! daemons that would write them again, definitions last and only if nothing uses them: a broker may be on this cluster.
//! A broker of ours goes too once it has no members, as with `subctl uninstall`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::definitions::definitions;
use crate::error::ServerError;
use crate::manifests;
use crate::names::{ADMIN, BROKER_SECRET, MANAGED_BY, OPERATOR_NAMESPACE, PSK_SECRET, admin_namespace};
use crate::object::{Kind, ObjectRef};
use crate::objects::{Broker, TOKEN_LIFETIME};
use crate::server::Server;

const LEASE: Kind = Kind { group: "coordination.k8s.io", version: "v1", kind: "Lease", plural: "leases" };
const DEPLOYMENT: Kind = Kind { group: "apps", version: "v1", kind: "Deployment", plural: "deployments" };

/// What a broker that is used has: members' records, and that of Submariner's operator. A member that only shares services
/// has no Cluster.
const BROKER_RECORDS: [Kind; 5] = [
    Kind::BROKER,
    Kind::CLUSTER,
    Kind::ENDPOINT,
    Kind { group: "multicluster.x-k8s.io", version: "v1alpha1", kind: "ServiceImport", plural: "serviceimports" },
    Kind { group: "discovery.k8s.io", version: "v1", kind: "EndpointSlice", plural: "endpointslices" },
];

/// Kinds of records in a joined cluster's namespace: copies of other clusters' ones among them.
const RECORDS: [Kind; 4] =
    [Kind::ENDPOINT, Kind::CLUSTER, submariner("Gateway", "gateways"), submariner("RouteAgent", "routeagents")];

/// Objects by which this cluster's pods and services have global addresses, those that users made too: without Globalnet
/// they mean nothing. As `subctl uninstall` does.
const GLOBAL_OBJECTS: [Kind; 3] = [
    submariner("GlobalIngressIP", "globalingressips"),
    submariner("GlobalEgressIP", "globalegressips"),
    submariner("ClusterGlobalEgressIP", "clusterglobalegressips"),
];

const SERVICE_EXPORT: Kind =
    Kind { group: "multicluster.x-k8s.io", version: "v1alpha1", kind: "ServiceExport", plural: "serviceexports" };

const fn submariner(kind: &'static str, plural: &'static str) -> Kind {
    Kind { group: "submariner.io", version: "v1", kind, plural }
}

/// What an uninstall did beside the join itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// What it left, and why.
    pub kept: Vec<String>,
    /// Namespaces of brokers that it deleted.
    pub brokers: Vec<String>,
}

/// Returns the objects of a join that are deleted by name once the daemons are gone, those first that others need last.
fn objects() -> Vec<ObjectRef> {
    let base = manifests::base();
    let kinds = [Kind::DAEMON_SET.kind, Kind::NAMESPACE.kind];
    let base = base.iter().rev().filter(|object| !kinds.iter().any(|kind| object["kind"] == *kind));
    let secrets = [BROKER_SECRET, PSK_SECRET].map(|name| ObjectRef::new(Kind::SECRET, OPERATOR_NAMESPACE, name));
    base.map(ObjectRef::of).chain(secrets).collect()
}

/// Returns the kinds whose definitions a join brings.
fn defined_kinds() -> impl Iterator<Item = Kind> {
    RECORDS.into_iter().chain(GLOBAL_OBJECTS).chain([SERVICE_EXPORT])
}

fn is_ours(object: &Value) -> bool {
    object["metadata"]["labels"][MANAGED_BY.0] == MANAGED_BY.1
}

impl Server {
    /// Deletes what a join made in this cluster, but for the daemons, which must be gone.
    ///
    /// # Errors
    ///
    /// [`ServerError`]; what could be deleted is, and a second run deletes the rest.
    pub async fn remove_join(&self) -> Result<Removal, ServerError> {
        let mut removal = Removal::default();
        for kind in RECORDS {
            for record in self.list(kind, OPERATOR_NAMESPACE).await? {
                self.delete(&reference(kind, &record)).await?;
            }
        }
        for kind in GLOBAL_OBJECTS {
            for object in self.list_where(kind, None, "", "").await? {
                self.delete(&reference(kind, &object)).await?;
            }
        }
        self.delete(&ObjectRef::new(LEASE, OPERATOR_NAMESPACE, GATEWAY_LEASE)).await?;
        for object in objects() {
            self.delete(&object).await?;
        }
        self.unlabel_gateways().await?;
        removal.kept.extend(self.remove_plugin_objects("").await?);
        removal.kept.extend(self.remove_namespace(OPERATOR_NAMESPACE).await?);
        self.remove_brokers(&mut removal).await?;
        self.remove_definitions(&mut removal.kept).await?;
        Ok(removal)
    }

    /// Deletes what is there for other network plugins than this one; it may have been another one at the join. Returns why
    /// some stay: whether they may be deleted is asked of nobody before.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn remove_plugin_objects(&self, plugin: &str) -> Result<Vec<String>, ServerError> {
        let mut kept = Vec::new();
        if !manifests::of_plugin(plugin).is_empty() {
            return Ok(kept);
        }
        for object in manifests::of_any_plugin().iter().rev().map(ObjectRef::of) {
            match self.delete(&object).await {
                Ok(_) => {}
                Err(ServerError::Forbidden { .. }) => {
                    kept.push(format!("{object}, if it is there: you may not delete it"))
                }
                Err(error) => return Err(error),
            }
        }
        Ok(kept)
    }

    /// Deletes a namespace, or says why it stays.
    async fn remove_namespace(&self, name: &str) -> Result<Option<String>, ServerError> {
        let reference = ObjectRef { kind: Kind::NAMESPACE, namespace: None, name: name.to_owned() };
        let Some(found) = self.find(&reference).await? else { return Ok(None) };
        let mut others = self.pods_in(name).await?;
        others.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        others.extend(self.list_where(DEPLOYMENT, Some(name), "", "").await?);
        match others.first() {
            _ if !is_ours(&found) => Ok(Some(format!("{reference} was there before"))),
            Some(other) => {
                let name = other["metadata"]["name"].as_str().unwrap_or_default();
                Ok(Some(format!("{reference} has other things in it, {name} among them")))
            }
            None => {
                self.delete(&reference).await?;
                self.wait_gone(&reference).await?;
                Ok(None)
            }
        }
    }

    /// Deletes the brokers in this cluster that are ours and have no members.
    async fn remove_brokers(&self, removal: &mut Removal) -> Result<(), ServerError> {
        for role in self.broker_roles().await? {
            let role_reference = ObjectRef::of(&role);
            let Some(namespace) = role_reference.namespace.clone() else { continue };
            let mut records = Vec::new();
            for kind in BROKER_RECORDS {
                records.extend(self.list_where(kind, Some(&namespace), "", "").await?);
            }
            if let Some(reason) = broker_stays(&role, &records) {
                removal.kept.push(format!("the broker in namespace {namespace} {reason}"));
                continue;
            }
            // Lifetimes of tokens do not change what there is.
            let Ok(broker) = Broker::new(&namespace, TOKEN_LIFETIME) else { continue };
            let admin = admin_namespace(&namespace);
            let objects = broker.objects().into_iter().chain(broker.initial_objects());
            let mut objects: Vec<ObjectRef> = objects.map(|object| ObjectRef::of(&object)).collect();
            objects.push(ObjectRef::new(Kind::SECRET, &admin, PSK_SECRET));
            // By the role the broker is found again if this is broken off.
            objects.retain(|object| object.kind != Kind::NAMESPACE && *object != role_reference);
            for object in &objects {
                self.delete(object).await?;
            }
            removal.kept.extend(self.remove_namespace(&admin).await?);
            self.delete(&role_reference).await?;
            removal.kept.extend(self.remove_namespace(&namespace).await?);
            removal.brokers.push(namespace);
        }
        Ok(())
    }

    /// Returns the role by which clusters are joined, in the namespaces of all brokers here, whichever system made them.
    pub(crate) async fn broker_roles(&self) -> Result<Vec<Value>, ServerError> {
        let mut roles = self.list_where(Kind::ROLE, None, "", &format!("metadata.name={ADMIN}")).await?;
        for role in &mut roles {
            // Lists of the API server leave out what their items are.
            role["apiVersion"] = json!(format!("{}/{}", Kind::ROLE.group, Kind::ROLE.version));
            role["kind"] = json!(Kind::ROLE.kind);
        }
        Ok(roles)
    }

    async fn remove_definitions(&self, kept: &mut Vec<String>) -> Result<(), ServerError> {
        if let Some(role) = self.broker_roles().await?.first() {
            let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default();
            kept.push(format!("the definitions of records serve the broker in namespace {namespace}"));
            return Ok(());
        }
        for definition in definitions() {
            let reference = ObjectRef::of(&definition);
            let Some(found) = self.find(&reference).await? else { continue };
            let Some(kind) = defined_kinds().find(|kind| found["spec"]["names"]["kind"] == kind.kind) else { continue };
            if !is_ours(&found) {
                kept.push(format!("{reference} was there before"));
            } else if !self.list_where(kind, None, "", "").await?.is_empty() {
                kept.push(format!("{reference} has objects in other namespaces"));
            } else {
                self.delete(&reference).await?;
                self.wait_gone(&reference).await?;
            }
        }
        Ok(())
    }
}

/// The lease of the active gateway (Submariner chapter 4.2).
const GATEWAY_LEASE: &str = "submariner-gateway-lock";

/// Returns why a broker is not deleted, from the role by which clusters are joined and all records in its namespace.
fn broker_stays(role: &Value, records: &[Value]) -> Option<String> {
    if !is_ours(role) {
        return Some("is not Culvert's".to_owned());
    }
    let user = |record: &Value| {
        let id = &record["spec"]["cluster_id"];
        id.as_str().or(record["metadata"]["name"].as_str()).unwrap_or_default().to_owned()
    };
    let users: BTreeSet<String> = records.iter().map(user).collect();
    let users: Vec<String> = users.into_iter().collect();
    (!users.is_empty()).then(|| format!("is in use: {}", users.join(", ")))
}

fn reference(kind: Kind, object: &Value) -> ObjectRef {
    let text = |key: &str| object["metadata"][key].as_str().map(str::to_owned);
    ObjectRef { kind, namespace: text("namespace"), name: text("name").unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_stays_while_it_is_used_or_somebody_elses() {
        let role = json!({"metadata": {"labels": {MANAGED_BY.0: MANAGED_BY.1}}});
        let record = |id: &str| json!({"metadata": {"name": format!("{id}-1")}, "spec": {"cluster_id": id}});
        let slice = json!({"metadata": {"name": "web-north"}});
        assert_eq!(broker_stays(&role, &[]), None);
        let reason = broker_stays(&role, &[record("west"), record("east"), record("west"), slice]);
        assert_eq!(reason.as_deref(), Some("is in use: east, web-north, west"));
        assert_eq!(broker_stays(&json!({}), &[]).as_deref(), Some("is not Culvert's"));
    }

    #[test]
    fn every_definition_that_a_join_brings_can_be_taken_back() {
        let known: BTreeSet<String> = defined_kinds().map(|kind| format!("{}.{}", kind.plural, kind.group)).collect();
        let brought = definitions().into_iter().map(|one| one["metadata"]["name"].as_str().unwrap().to_owned());
        assert_eq!(known, brought.collect());
        let object = |metadata: Value| json!({"metadata": metadata});
        let [ingress, _, cluster_egress] = GLOBAL_OBJECTS;
        let exported = reference(ingress, &object(json!({"name": "web", "namespace": "shop"})));
        assert_eq!(exported.to_string(), "GlobalIngressIP shop/web");
        assert_eq!(reference(cluster_egress, &object(json!({"name": "all"}))).namespace, None);
    }

    #[test]
    fn everything_that_a_join_makes_is_deleted_but_daemons_and_namespace_which_have_their_own_turn() {
        let objects: Vec<String> = objects().iter().map(ToString::to_string).collect();
        assert_eq!(objects.len(), manifests::base().len() - 4 + 2);
        assert!(objects.contains(&"Secret submariner-operator/submariner-broker-secret".to_owned()), "{objects:?}");
        assert!(objects.contains(&"Role submariner-operator/culvert-gateway".to_owned()), "{objects:?}");
        for whole in ["ClusterRole culvert-globalnet", "ClusterRoleBinding culvert-globalnet"] {
            assert!(objects.contains(&whole.to_owned()), "{objects:?}");
        }
        assert!(!objects.iter().any(|object| object.starts_with("DaemonSet") || object.starts_with("Namespace")));
    }
}
