//! Decides what an uninstall deletes, in which order, and what stays because it is somebody else's.
//!
//! What Culvert made has its label; a namespace or a definition without it was there before. Records go after the
//! daemons that would write them again, definitions last and only if nothing uses them: a broker may be on this cluster.

use serde_json::Value;

use crate::error::ServerError;
use crate::install::definitions;
use crate::manifests;
use crate::names::{ADMIN, BROKER_SECRET, MANAGED_BY, OPERATOR_NAMESPACE, PSK_SECRET};
use crate::object::{Kind, ObjectRef};
use crate::server::Server;

const LEASE: Kind = Kind { group: "coordination.k8s.io", version: "v1", kind: "Lease", plural: "leases" };
const DEPLOYMENT: Kind = Kind { group: "apps", version: "v1", kind: "Deployment", plural: "deployments" };

/// Kinds of records in a joined cluster's namespace: copies of other clusters' ones among them.
const RECORDS: [(&str, &str); 4] =
    [("Endpoint", "endpoints"), ("Cluster", "clusters"), ("Gateway", "gateways"), ("RouteAgent", "routeagents")];

/// What an uninstall leaves, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept(pub Vec<String>);

/// Returns the objects of a join that are deleted by name once the daemons are gone, those first that others need last.
fn objects() -> Vec<ObjectRef> {
    let base = manifests::base();
    let kinds = [Kind::DAEMON_SET.kind, Kind::NAMESPACE.kind];
    let base = base.iter().rev().filter(|object| !kinds.iter().any(|kind| object["kind"] == *kind));
    let secrets = [BROKER_SECRET, PSK_SECRET].map(|name| ObjectRef::new(Kind::SECRET, OPERATOR_NAMESPACE, name));
    base.map(ObjectRef::of).chain(secrets).collect()
}

fn record_kinds() -> impl Iterator<Item = Kind> {
    RECORDS.iter().map(|(kind, plural)| Kind { group: "submariner.io", version: "v1", kind, plural })
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
    pub async fn remove_join(&self) -> Result<Kept, ServerError> {
        let mut kept = Kept::default();
        for kind in record_kinds() {
            for record in self.list(kind, OPERATOR_NAMESPACE).await? {
                self.delete(&named(kind, &record)).await?;
            }
        }
        self.delete(&ObjectRef::new(LEASE, OPERATOR_NAMESPACE, GATEWAY_LEASE)).await?;
        for object in objects() {
            self.delete(&object).await?;
        }
        self.unlabel_gateways().await?;
        self.remove_namespace(&mut kept).await?;
        self.remove_definitions(&mut kept).await?;
        Ok(kept)
    }

    async fn remove_namespace(&self, kept: &mut Kept) -> Result<(), ServerError> {
        let reference = ObjectRef { kind: Kind::NAMESPACE, namespace: None, name: OPERATOR_NAMESPACE.to_owned() };
        let Some(found) = self.find(&reference).await? else { return Ok(()) };
        let mut others = self.pods_in(OPERATOR_NAMESPACE).await?;
        others.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        others.extend(self.list_where(DEPLOYMENT, Some(OPERATOR_NAMESPACE), "", "").await?);
        match others.first() {
            _ if !is_ours(&found) => kept.0.push(format!("{reference} was there before")),
            Some(other) => {
                let name = other["metadata"]["name"].as_str().unwrap_or_default();
                kept.0.push(format!("{reference} has other things in it, {name} among them"));
            }
            None => {
                self.delete(&reference).await?;
                self.wait_gone(&reference).await?;
            }
        }
        Ok(())
    }

    async fn remove_definitions(&self, kept: &mut Kept) -> Result<(), ServerError> {
        // Whoever joins clusters has this role in a broker's namespace, whichever system made it.
        let admins = self.list_where(Kind::ROLE, None, "", &format!("metadata.name={ADMIN}")).await?;
        if let Some(broker) = admins.first() {
            let namespace = broker["metadata"]["namespace"].as_str().unwrap_or_default();
            kept.0.push(format!("the definitions of records serve the broker in namespace {namespace}"));
            return Ok(());
        }
        for definition in definitions() {
            let reference = ObjectRef::of(&definition);
            let Some(found) = self.find(&reference).await? else { continue };
            let Some(kind) = record_kinds().find(|kind| found["spec"]["names"]["kind"] == kind.kind) else { continue };
            if !is_ours(&found) {
                kept.0.push(format!("{reference} was there before"));
            } else if !self.list_where(kind, None, "", "").await?.is_empty() {
                kept.0.push(format!("{reference} has objects in other namespaces"));
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

fn named(kind: Kind, object: &Value) -> ObjectRef {
    ObjectRef::new(kind, OPERATOR_NAMESPACE, object["metadata"]["name"].as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_a_join_makes_is_deleted_but_daemons_and_namespace_which_have_their_own_turn() {
        let objects: Vec<String> = objects().iter().map(ToString::to_string).collect();
        assert_eq!(objects.len(), manifests::base().len() - 3 + 2);
        assert!(objects.contains(&"Secret submariner-operator/submariner-broker-secret".to_owned()), "{objects:?}");
        assert!(objects.contains(&"Role submariner-operator/culvert-gateway".to_owned()), "{objects:?}");
        assert!(!objects.iter().any(|object| object.starts_with("DaemonSet") || object.starts_with("Namespace")));
    }
}
