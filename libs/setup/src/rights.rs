//! Which rights the caller has, asked of the API server before anything is changed.
//!
//! Whoever makes a role must have the rights that it gives, or the right to give more: else a run that may make everything
//! would stop half-way (Kubernetes, RBAC, privilege escalation).

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use serde_json::Value;

use crate::ask::ask;
use crate::error::ServerError;
use crate::object::{Kind, ObjectRef};
use crate::server::Server;

/// Reviews that are under way at a time: there are a hundred, and some servers are far away.
const REVIEWS: usize = 8;

const VERBS: [&str; 7] = ["create", "get", "list", "watch", "patch", "update", "delete"];

/// A right that an operation needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    pub verb: &'static str,
    pub group: String,
    /// With a subresource after a slash, if it is about one.
    pub resource: String,
    pub namespace: Option<String>,
}

impl Server {
    /// Tells whether the caller has a right.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn may(&self, right: &Right) -> Result<bool, ServerError> {
        let (resource, subresource) = match right.resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (right.resource.as_str(), None),
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(right.verb.to_owned()),
                    group: Some(right.group.clone()),
                    resource: Some(resource.to_owned()),
                    subresource,
                    namespace: right.namespace.clone(),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let review = ask(|| api.create(&params, &review)).await;
        let review = review.map_err(|error| self.error("a review of the caller's rights", &error))?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }

    /// Returns those of `rights` that the caller lacks.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn lacking(&self, rights: &[Right]) -> Result<Vec<Right>, ServerError> {
        let asked = rights.iter().map(async |right| Ok((!self.may(right).await?).then(|| right.clone())));
        let answers: Vec<Option<Right>> = stream::iter(asked).buffered(REVIEWS).try_collect().await?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Returns those of the rights that roles give which the caller lacks; none if he may give what he lacks.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub(crate) async fn lacking_to_grant(&self, granted: &BTreeSet<Right>) -> Result<Vec<Right>, ServerError> {
        let lacking = self.lacking(&granted.iter().cloned().collect::<Vec<_>>()).await?;
        let namespaces: BTreeSet<&Option<String>> = lacking.iter().map(|right| &right.namespace).collect();
        let power = |namespace: &Option<String>| {
            ["escalate", "bind"].map(|verb| Right {
                verb,
                group: Kind::ROLE.group.to_owned(),
                resource: if namespace.is_some() { Kind::ROLE } else { Kind::CLUSTER_ROLE }.plural.to_owned(),
                namespace: namespace.clone(),
            })
        };
        let powers: Vec<Right> = namespaces.into_iter().flat_map(power).collect();
        Ok(if self.lacking(&powers).await?.is_empty() { vec![] } else { lacking })
    }
}

impl Right {
    pub(crate) fn new(verb: &'static str, group: &str, resource: &str, namespace: Option<&str>) -> Self {
        Self { verb, group: group.to_owned(), resource: resource.to_owned(), namespace: namespace.map(str::to_owned) }
    }

    /// Returns what the right is on, without the verb.
    pub(crate) fn on(&self) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let namespace = self.namespace.as_ref().map(|name| format!(" in namespace {name}")).unwrap_or_default();
        format!("{}{group}{namespace}", self.resource)
    }
}

/// Returns the rights that the roles among these objects give.
pub(crate) fn granted(objects: &[Value]) -> BTreeSet<Right> {
    let is_role = |object: &&Value| [Kind::ROLE, Kind::CLUSTER_ROLE].iter().any(|kind| object["kind"] == kind.kind);
    let roles = objects.iter().filter(is_role);
    roles.flat_map(of_role).collect()
}

fn of_role(role: &Value) -> Vec<Right> {
    let namespace = ObjectRef::of(role).namespace;
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for (group, resource) in
            texts(&rule["apiGroups"]).flat_map(|group| texts(&rule["resources"]).map(move |resource| (group, resource)))
        {
            for verb in VERBS.into_iter().filter(|verb| texts(&rule["verbs"]).any(|given| given == *verb)) {
                rights.push(Right {
                    verb,
                    group: group.to_owned(),
                    resource: resource.to_owned(),
                    namespace: namespace.clone(),
                });
            }
        }
    }
    rights
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Returns rights in words, all verbs on the same resources together.
pub(crate) fn list(rights: &[Right]) -> String {
    let mut verbs: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for right in rights {
        verbs.entry(right.on()).or_default().insert(right.verb);
    }
    let words = |(on, verbs): (&String, &BTreeSet<&str>)| {
        format!("{} {on}", verbs.iter().copied().collect::<Vec<_>>().join("/"))
    };
    verbs.iter().map(words).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests;

    #[test]
    fn whoever_makes_a_role_needs_what_it_gives() {
        let base = manifests::base();
        let rights: Vec<Right> = granted(&base).into_iter().collect();
        let text = list(&rights);
        for right in [
            "create/delete/get/list/patch/watch routeagents.submariner.io in namespace submariner-operator",
            "get/update secrets in namespace submariner-operator",
            "list/watch services,",
            "create/delete/get/list/patch/watch globalingressips.submariner.io,",
            "get/patch globalegressips/status.submariner.io,",
        ] {
            assert!(text.contains(right), "{right} is not in {text}");
        }
        let given = |role: &Value| role["rules"].as_array().unwrap().clone();
        let rules =
            base.iter().filter(|object| object["kind"] == "Role" || object["kind"] == "ClusterRole").flat_map(given);
        let verbs: BTreeSet<String> =
            rules.flat_map(|rule| texts(&rule["verbs"]).map(str::to_owned).collect::<Vec<_>>()).collect();
        assert!(verbs.iter().all(|verb| VERBS.contains(&verb.as_str())), "{verbs:?}");
    }
}
