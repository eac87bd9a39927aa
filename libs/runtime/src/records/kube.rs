//! The records in one namespace of an API server.
//!
//! A kind is listed and watched from the first time that somebody asks for it ([`follow`]); listings are answered from
//! what was seen ([`cache`]). Writes and single reads are requests of their own, and what they return is seen at once,
//! so that nobody who writes reads something older afterwards.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::kube::Api;
use ::kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use culvert_api::{Record, Resource};
use futures_util::future::select_all;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::error::StoreError;
use super::{Applied, Listing};

mod access;
mod answer;
mod cache;
mod cluster_wide;
mod follow;
mod object;

use access::Link;
pub use access::{Access, Choice, Server};
use answer::{Asked, Failure};
use cache::Cache;
pub use cluster_wide::ClusterWide;
use object::Current;

/// The longest time that a request may take, the answer included: as long as a gateway has for a renewal of its lease,
/// from when that is due until it steps down.
const REQUEST: Duration = Duration::from_secs(5);

/// A namespace of an API server. Clones share what they have seen.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    link: Arc<Link>,
    /// Under which fields are applied.
    manager: String,
    /// By plural.
    followed: Mutex<HashMap<&'static str, Followed>>,
    /// Kinds whose objects have no status of their own to be written apart.
    without_status: Mutex<HashSet<&'static str>>,
}

/// A kind that is listed and watched; dropping it ends that.
#[derive(Debug)]
struct Followed {
    cache: Arc<Cache>,
    task: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Namespace {
    pub(super) async fn open(server: &Server, manager: &str) -> Result<Self, StoreError> {
        let link = Link::open(server).await.map_err(|cause| StoreError::Access { cause })?;
        let inner = Inner {
            link: Arc::new(link),
            manager: manager.to_owned(),
            followed: Mutex::default(),
            without_status: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(super) async fn list<R: Record>(&self) -> Result<Listing<R>, StoreError> {
        let cache = self.follow(R::RESOURCE);
        let mut seen = cache.subscribe();
        let deadline = Instant::now() + REQUEST;
        loop {
            seen.mark_unchanged();
            if let Some(listing) = cache.listing(self.name()) {
                return Ok(listing);
            }
            let cause = match cache.outage() {
                Some(outage) => outage.cause,
                None if timeout_at(deadline, seen.changed()).await.is_ok() => continue,
                None => "no answer yet".to_owned(),
            };
            return Err(StoreError::Unread { server: self.server(), resource: R::PLURAL, cause });
        }
    }

    pub(super) async fn find<R: Record>(&self, name: &str) -> Result<Option<R>, StoreError> {
        let found = self.read::<R>(name).await?;
        found.map(|object| self.parsed(object)).transpose()
    }

    pub(super) async fn create<R: Record>(&self, record: &R) -> Result<R, StoreError> {
        let asked = Asked::of("create", record);
        let wanted = object::to_create(record, self.name());
        let object = object::dynamic::<R>(&wanted, self.name())?;
        let parameters = PostParams { field_manager: Some(self.inner.manager.clone()), ..PostParams::default() };
        let answer = self.ask::<R, _>(async |api| api.create(&parameters, &object).await).await;
        let written = answer.map_err(|failure| {
            if failure.is_conflict() {
                return StoreError::Exists { kind: R::KIND, name: record.name().to_owned() };
            }
            self.explained(failure, &asked)
        })?;
        let written = self.with_status::<R>(&wanted, written).await?;
        self.parsed(written)
    }

    pub(super) async fn update<R: Record>(&self, record: &R) -> Result<R, StoreError> {
        let (asked, name) = (Asked::of("update", record), record.name());
        let conflict = || StoreError::Conflict { kind: R::KIND, name: name.to_owned() };
        if record.metadata().resource_version.is_none() {
            return Err(conflict());
        }
        let wanted = object::to_update(record, self.name());
        let object = object::dynamic::<R>(&wanted, self.name())?;
        let parameters = PostParams { field_manager: Some(self.inner.manager.clone()), ..PostParams::default() };
        let answer = self.ask::<R, _>(async |api| api.replace(name, &parameters, &object).await).await;
        let written = answer.map_err(|failure| {
            if failure.is_conflict() {
                conflict()
            } else if failure.is_missing_object() {
                StoreError::NotFound { kind: R::KIND, name: name.to_owned() }
            } else {
                self.explained(failure, &asked)
            }
        })?;
        let written = self.with_status::<R>(&wanted, written).await?;
        self.parsed(written)
    }

    pub(super) async fn apply<R: Record>(&self, record: &R) -> Result<Applied, StoreError> {
        let name = record.name();
        let mut wanted = object::to_apply(record, self.name());
        let current = self.current::<R>(name).await?;
        if let Some(current) = &current {
            object::leave_to_others(&mut wanted, current);
            if !object::would_change(&wanted, current) {
                return Ok(Applied::Unchanged);
            }
        }
        let parameters = PatchParams::apply(&self.inner.manager).force();
        let patch = Patch::Apply(&wanted);
        let answer = self.ask::<R, _>(async |api| api.patch(name, &parameters, &patch).await).await;
        let written = answer.map_err(|failure| self.explained(failure, &Asked::of("patch", record)))?;
        self.with_status::<R>(&wanted, written).await?;
        Ok(if current.is_some() { Applied::Updated } else { Applied::Created })
    }

    pub(super) async fn delete<R: Record>(&self, name: &str) -> Result<bool, StoreError> {
        let answer = self.ask::<R, _>(async |api| api.delete(name, &DeleteParams::default()).await).await;
        let deleted = match answer {
            Ok(_) => true,
            Err(failure) if failure.is_missing_object() => false,
            Err(failure) => return Err(self.explained(failure, &Asked::by_name::<R>("delete", name))),
        };
        if let Some(cache) = self.followed_cache(R::PLURAL) {
            cache.forget(name);
        }
        Ok(deleted)
    }

    pub(super) fn watch(&self, kinds: &'static [Resource]) -> Watch {
        let seen = kinds.iter().map(|kind| self.follow(*kind).subscribe()).collect();
        Watch { seen, _namespace: self.clone() }
    }

    pub(super) fn cluster_wide(&self, resource: Resource) -> ClusterWide {
        ClusterWide::new(self.inner.link.clone(), &self.inner.manager, resource)
    }

    pub(super) fn outage(&self) -> Option<String> {
        let outages = self.followed();
        let first =
            outages.values().filter_map(|followed| followed.cache.outage()).min_by_key(|outage| outage.since)?;
        let (server, since) = (self.server(), first.since.strftime("%Y-%m-%d %H:%M:%S UTC"));
        Some(format!(
            "records of API server {server} cannot be followed since {since} and count as they were: {}",
            first.cause
        ))
    }

    /// Returns what is seen of a kind, which is followed from now on.
    fn follow(&self, resource: Resource) -> Arc<Cache> {
        let mut followed = self.followed();
        // A task that has ended has panicked: what it saw last must not count for ever.
        if let Some(followed) = followed.get(resource.plural).filter(|followed| !followed.task.is_finished()) {
            return followed.cache.clone();
        }
        let cache = match followed.remove(resource.plural) {
            Some(ended) => ended.cache.clone(),
            None => Arc::new(Cache::new(&self.inner.manager)),
        };
        let task = tokio::spawn(follow::run(self.inner.link.clone(), resource, cache.clone()));
        followed.insert(resource.plural, Followed { cache: cache.clone(), task });
        cache
    }

    fn followed_cache(&self, plural: &str) -> Option<Arc<Cache>> {
        self.followed().get(plural).map(|followed| followed.cache.clone())
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<&'static str, Followed>> {
        // What is kept is whole at any instruction.
        self.inner.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an object as it is seen, or else as the server has it.
    async fn current<R: Record>(&self, name: &str) -> Result<Option<Current>, StoreError> {
        let seen = self.followed_cache(R::PLURAL).and_then(|cache| cache.current::<R>(name));
        match seen {
            Some(current) => Ok(current),
            None => Ok(self.read::<R>(name).await?.map(|object| Current::of(object, &self.inner.manager))),
        }
    }

    async fn read<R: Record>(&self, name: &str) -> Result<Option<DynamicObject>, StoreError> {
        match self.ask::<R, _>(async |api| api.get(name).await).await {
            Ok(object) => Ok(Some(object)),
            Err(failure) if failure.is_missing_object() => Ok(None),
            Err(failure) => Err(self.explained(failure, &Asked::by_name::<R>("get", name))),
        }
    }

    /// Writes the status apart if the server did not take it with the rest, as it does for kinds that are served so.
    async fn with_status<R: Record>(
        &self,
        wanted: &Value,
        written: DynamicObject,
    ) -> Result<DynamicObject, StoreError> {
        let is_apart = !object::status_stands(wanted, &written) && !self.without_status().contains(R::PLURAL);
        let written = if is_apart {
            let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
            let status = object::status_only(wanted);
            let parameters = PatchParams::apply(&self.inner.manager).force();
            let patch = Patch::Apply(&status);
            match self.ask::<R, _>(async |api| api.patch_status(name, &parameters, &patch).await).await {
                Ok(object) => object,
                // The object has just been written. What is not there is a status apart: the server keeps no such field.
                Err(Failure::Status(status)) if status.code == 404 => {
                    self.without_status().insert(R::PLURAL);
                    written
                }
                Err(failure) => {
                    let asked = Asked::by_name::<R>("patch", name).status();
                    return Err(self.explained(failure, &asked));
                }
            }
        } else {
            written
        };
        if let Some(cache) = self.followed_cache(R::PLURAL) {
            cache.see(written.clone());
        }
        Ok(written)
    }

    fn without_status(&self) -> MutexGuard<'_, HashSet<&'static str>> {
        self.inner.without_status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask<R: Record, T>(
        &self,
        request: impl AsyncFnOnce(Api<DynamicObject>) -> ::kube::Result<T>,
    ) -> Result<T, Failure> {
        let link = &self.inner.link;
        link.ask(async |client| request(link.api(client, R::RESOURCE)).await).await
    }

    fn explained(&self, failure: Failure, asked: &Asked) -> StoreError {
        failure.explained(asked, &self.inner.link.peer)
    }

    fn parsed<R: Record>(&self, object: DynamicObject) -> Result<R, StoreError> {
        object::parse(object, self.name()).map_err(|problem| StoreError::Unreadable { problem })
    }

    fn name(&self) -> &str {
        &self.inner.link.peer.namespace
    }

    fn server(&self) -> String {
        self.inner.link.peer.server.clone()
    }
}

/// A watch on kinds of a namespace.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: Vec<tokio::sync::watch::Receiver<u64>>,
    /// What is followed is followed for as long as somebody has it.
    _namespace: Namespace,
}

impl Watch {
    pub(crate) async fn changed(&mut self) {
        if self.seen.is_empty() {
            return std::future::pending().await;
        }
        // No sender goes while this watch has the namespace.
        let _ = select_all(self.seen.iter_mut().map(|seen| Box::pin(seen.changed()))).await;
    }
}
