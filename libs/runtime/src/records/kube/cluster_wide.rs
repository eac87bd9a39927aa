//! Objects of other systems that belong to no namespace, at the API server that has the records.
//!
//! They are no records: nothing is remembered of them, each call is a request of its own, and they are plain JSON.

use std::sync::Arc;

use ::kube::Api;
use ::kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use culvert_api::Resource;
use serde_json::Value;

use super::access::{Link, api};
use super::answer::{Asked, Failure};
use crate::records::error::StoreError;

/// All objects of a kind without namespaces; made by [`crate::Records::cluster_wide`].
///
/// Errors of all calls: [`StoreError::Unreachable`], [`StoreError::Forbidden`], [`StoreError::Refused`].
#[derive(Clone, Debug)]
pub struct ClusterWide {
    link: Arc<Link>,
    /// In whose name fields are set.
    manager: String,
    resource: Resource,
}

impl ClusterWide {
    pub(super) fn new(link: Arc<Link>, manager: &str, resource: Resource) -> Self {
        Self { link, manager: manager.to_owned(), resource }
    }

    /// Returns all objects; `None` if the server does not know the kind.
    ///
    /// # Errors
    ///
    /// As the type's.
    pub async fn list(&self) -> Result<Option<Vec<Value>>, StoreError> {
        match self.ask(async |api| api.list(&ListParams::default()).await).await {
            Ok(list) => {
                Ok(Some(list.items.into_iter().map(|one| serde_json::to_value(one).unwrap_or_default()).collect()))
            }
            Err(failure) if failure.is_missing_kind() => Ok(None),
            Err(failure) => Err(self.explained(failure, &Asked::all("list", self.resource, None))),
        }
    }

    /// Creates an object.
    ///
    /// # Errors
    ///
    /// As the type's, and [`StoreError::Exists`].
    pub async fn create(&self, object: &Value) -> Result<(), StoreError> {
        let (kind, name) = (self.resource.kind, object["metadata"]["name"].as_str().unwrap_or_default());
        let asked = Asked::named("create", self.resource, None, name);
        let typed: DynamicObject = serde_json::from_value(object.clone())
            .map_err(|error| self.explained(Failure::Silent(error.to_string()), &asked))?;
        let parameters = PostParams { field_manager: Some(self.manager.clone()), ..PostParams::default() };
        match self.ask(async |api| api.create(&parameters, &typed).await).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_conflict() => Err(StoreError::Exists { kind, name: name.to_owned() }),
            Err(failure) => Err(self.explained(failure, &asked)),
        }
    }

    /// Changes those fields of an object that `fields` has (RFC 7386).
    ///
    /// # Errors
    ///
    /// As the type's.
    pub async fn merge(&self, name: &str, fields: &Value) -> Result<(), StoreError> {
        let parameters = PatchParams { field_manager: Some(self.manager.clone()), ..PatchParams::default() };
        let answer = self.ask(async |api| api.patch(name, &parameters, &Patch::Merge(fields)).await).await;
        answer.map(drop).map_err(|failure| self.explained(failure, &Asked::named("patch", self.resource, None, name)))
    }

    /// Deletes an object; `false` if it was not there.
    ///
    /// # Errors
    ///
    /// As the type's.
    pub async fn delete(&self, name: &str) -> Result<bool, StoreError> {
        match self.ask(async |api| api.delete(name, &DeleteParams::default()).await).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_missing_object() => Ok(false),
            Err(failure) => Err(self.explained(failure, &Asked::named("delete", self.resource, None, name))),
        }
    }

    async fn ask<T>(&self, request: impl AsyncFnOnce(Api<DynamicObject>) -> ::kube::Result<T>) -> Result<T, Failure> {
        self.link.ask(async |client| request(api(client, self.resource, None)).await).await
    }

    fn explained(&self, failure: Failure, asked: &Asked) -> StoreError {
        failure.explained(asked, &self.link.peer)
    }
}
