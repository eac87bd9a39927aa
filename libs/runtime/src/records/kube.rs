//! Objects of an API server: the records in one namespace, or those of all namespaces.
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
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::error::StoreError;
use super::key::Key;
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

/// Which objects of an API server a store lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Of kinds that have namespaces those of the server's own one.
    OneNamespace,
    /// Those of all namespaces. They are held as their Rust type from their arrival.
    All,
}

/// Objects of an API server. Clones share what they have seen.
#[derive(Clone, Debug)]
pub(super) struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    link: Arc<Link>,
    scope: Scope,
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

impl Store {
    pub(super) async fn open(server: &Server, manager: &str, scope: Scope) -> Result<Self, StoreError> {
        let link = Link::open(server).await.map_err(|cause| StoreError::Access { cause })?;
        let inner = Inner {
            link: Arc::new(link),
            scope,
            manager: manager.to_owned(),
            followed: Mutex::default(),
            without_status: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(super) async fn list<R: Record>(&self) -> Result<Arc<Listing<Arc<R>>>, StoreError> {
        let cache = self.follow(R::RESOURCE);
        if self.inner.scope == Scope::All {
            cache.read_as::<R>();
        }
        let mut seen = cache.subscribe();
        let deadline = Instant::now() + REQUEST;
        loop {
            seen.mark_unchanged();
            if let Some(listing) = cache.listing() {
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

    pub(super) async fn find<R: Record>(&self, key: &Key) -> Result<Option<R>, StoreError> {
        let found = self.read::<R>(key).await?;
        found.map(|object| parsed(object, key)).transpose()
    }

    pub(super) async fn create<R: Record>(&self, key: &Key, record: &R) -> Result<R, StoreError> {
        let wanted = object::to_create(record, &key.namespace);
        let object = object::dynamic::<R>(&wanted, &key.namespace)?;
        let parameters = PostParams { field_manager: Some(self.inner.manager.clone()), ..PostParams::default() };
        let answer = self.ask::<R, _>(key, async |api| api.create(&parameters, &object).await).await;
        let written = answer.map_err(|failure| {
            if failure.is_conflict() {
                return StoreError::Exists { kind: R::KIND, name: self.called(key) };
            }
            self.explained::<R>(failure, "create", key)
        })?;
        let written = self.with_status::<R>(key, &wanted, written).await?;
        parsed(written, key)
    }

    pub(super) async fn update<R: Record>(&self, key: &Key, record: &R) -> Result<R, StoreError> {
        if record.metadata().resource_version.is_none() {
            return Err(self.conflict::<R>(key));
        }
        let wanted = object::to_update(record, &key.namespace);
        let object = object::dynamic::<R>(&wanted, &key.namespace)?;
        let parameters = PostParams { field_manager: Some(self.inner.manager.clone()), ..PostParams::default() };
        let answer = self.ask::<R, _>(key, async |api| api.replace(&key.name, &parameters, &object).await).await;
        let written = answer.map_err(|failure| {
            if failure.is_conflict() {
                self.conflict::<R>(key)
            } else if failure.is_missing_object() {
                StoreError::NotFound { kind: R::KIND, name: self.called(key) }
            } else {
                self.explained::<R>(failure, "update", key)
            }
        })?;
        let written = self.with_status::<R>(key, &wanted, written).await?;
        parsed(written, key)
    }

    pub(super) async fn apply<R: Record>(&self, key: &Key, record: &R) -> Result<Applied, StoreError> {
        let mut wanted = object::to_apply(record, &key.namespace);
        let current = self.current::<R>(key).await?;
        if let Some(current) = &current {
            object::leave_to_others(&mut wanted, current);
            if !object::would_change(&wanted, current) {
                return Ok(Applied::Unchanged);
            }
        }
        let parameters = PatchParams::apply(&self.inner.manager).force();
        let patch = Patch::Apply(&wanted);
        let answer = self.ask::<R, _>(key, async |api| api.patch(&key.name, &parameters, &patch).await).await;
        let written = answer.map_err(|failure| self.explained::<R>(failure, "patch", key))?;
        self.with_status::<R>(key, &wanted, written).await?;
        Ok(if current.is_some() { Applied::Updated } else { Applied::Created })
    }

    pub(super) async fn apply_status<R: Record>(&self, key: &Key, record: &R) -> Result<Applied, StoreError> {
        let missing = || StoreError::NotFound { kind: R::KIND, name: self.called(key) };
        let wanted = object::to_apply(record, &key.namespace);
        let Some(current) = self.current::<R>(key).await? else { return Err(missing()) };
        let there = current.uid();
        if record.metadata().uid.as_deref().is_some_and(|uid| Some(uid) != there) {
            return Err(self.conflict::<R>(key));
        }
        if !object::status_would_change(&wanted, &current) {
            return Ok(Applied::Unchanged);
        }
        // With the uid, an apply makes no object anew that has gone meanwhile.
        let status = object::status_only(&wanted, there);
        let written = match self.apply_status_apart::<R>(key, &status).await {
            Ok(Some(object)) => Ok(object),
            Ok(None) => {
                let parameters = PatchParams::apply(&self.inner.manager).force();
                let patch = Patch::Apply(&status);
                self.ask::<R, _>(key, async |api| api.patch(&key.name, &parameters, &patch).await).await
            }
            Err(failure) => Err(failure),
        };
        let written = written.map_err(|failure| {
            if failure.is_conflict() {
                self.conflict::<R>(key)
            } else if failure.is_missing_object() {
                missing()
            } else {
                self.explained_status::<R>(failure, key)
            }
        })?;
        self.see::<R>(&written);
        Ok(Applied::Updated)
    }

    pub(super) async fn annotate<R: Record>(
        &self,
        key: &Key,
        annotation: &str,
        value: Option<&str>,
    ) -> Result<(), StoreError> {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: value}}}));
        let parameters = PatchParams { field_manager: Some(self.inner.manager.clone()), ..PatchParams::default() };
        let answer = self.ask::<R, _>(key, async |api| api.patch(&key.name, &parameters, &patch).await).await;
        let written = answer.map_err(|failure| match failure.is_missing_object() {
            true => StoreError::NotFound { kind: R::KIND, name: self.called(key) },
            false => self.explained::<R>(failure, "patch", key),
        })?;
        self.see::<R>(&written);
        Ok(())
    }

    pub(super) async fn delete<R: Record>(&self, key: &Key) -> Result<bool, StoreError> {
        let answer = self.ask::<R, _>(key, async |api| api.delete(&key.name, &DeleteParams::default()).await).await;
        let deleted = match answer {
            Ok(answer) => {
                let is_held =
                    |object: &DynamicObject| object.metadata.finalizers.as_ref().is_some_and(|all| !all.is_empty());
                if let Some(going) = answer.left().filter(is_held) {
                    // It goes once those agree who hold it.
                    self.see::<R>(&going);
                    return Ok(true);
                }
                true
            }
            Err(failure) if failure.is_missing_object() => false,
            Err(failure) => return Err(self.explained::<R>(failure, "delete", key)),
        };
        if let Some(cache) = self.followed_cache(R::PLURAL) {
            cache.forget(key);
        }
        Ok(deleted)
    }

    pub(super) fn watch(&self, kinds: &'static [Resource]) -> Watch {
        let seen = kinds.iter().map(|kind| self.follow(*kind).subscribe()).collect();
        Watch { seen, _store: self.clone() }
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
        let namespace = self.namespace_of(resource).map(str::to_owned);
        let task = tokio::spawn(follow::run(self.inner.link.clone(), resource, namespace, cache.clone()));
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
    async fn current<R: Record>(&self, key: &Key) -> Result<Option<Current>, StoreError> {
        let seen = self.followed_cache(R::PLURAL).and_then(|cache| cache.current::<R>(key));
        match seen {
            Some(current) => Ok(current),
            None => Ok(self.read::<R>(key).await?.map(|object| Current::of(object, &self.inner.manager))),
        }
    }

    async fn read<R: Record>(&self, key: &Key) -> Result<Option<DynamicObject>, StoreError> {
        match self.ask::<R, _>(key, async |api| api.get(&key.name).await).await {
            Ok(object) => Ok(Some(object)),
            Err(failure) if failure.is_missing_object() => Ok(None),
            Err(failure) => Err(self.explained::<R>(failure, "get", key)),
        }
    }

    /// Writes the status apart if the server did not take it with the rest, as it does for kinds that are served so.
    async fn with_status<R: Record>(
        &self,
        key: &Key,
        wanted: &Value,
        written: DynamicObject,
    ) -> Result<DynamicObject, StoreError> {
        let mut written = written;
        if !object::status_stands(wanted, &written) {
            let apart = self.apply_status_apart::<R>(key, &object::status_only(wanted, None)).await;
            let apart = apart.map_err(|failure| self.explained_status::<R>(failure, key))?;
            written = apart.unwrap_or(written);
        }
        self.see::<R>(&written);
        Ok(written)
    }

    /// Applies the status of an object that is there; `None` if those of its kind have none to be written apart.
    async fn apply_status_apart<R: Record>(&self, key: &Key, status: &Value) -> Result<Option<DynamicObject>, Failure> {
        if self.without_status().contains(R::PLURAL) {
            return Ok(None);
        }
        let parameters = PatchParams::apply(&self.inner.manager).force();
        let patch = Patch::Apply(status);
        match self.ask::<R, _>(key, async |api| api.patch_status(&key.name, &parameters, &patch).await).await {
            Ok(object) => Ok(Some(object)),
            Err(Failure::Status(status)) if status.code == 404 => {
                // The object has gone, or what is not there is a status apart: the answers look alike.
                if self.ask::<R, _>(key, async |api| api.get(&key.name).await).await.is_ok() {
                    self.without_status().insert(R::PLURAL);
                }
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    fn see<R: Record>(&self, written: &DynamicObject) {
        if let Some(cache) = self.followed_cache(R::PLURAL) {
            cache.see(written.clone());
        }
    }

    fn without_status(&self) -> MutexGuard<'_, HashSet<&'static str>> {
        self.inner.without_status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for an object, in its namespace if it has one.
    async fn ask<R: Record, T>(
        &self,
        key: &Key,
        request: impl AsyncFnOnce(Api<DynamicObject>) -> ::kube::Result<T>,
    ) -> Result<T, Failure> {
        self.inner.link.ask(async |client| request(access::api(client, R::RESOURCE, key.namespace())).await).await
    }

    fn explained<R: Record>(&self, failure: Failure, verb: &'static str, key: &Key) -> StoreError {
        failure.explained(&self.asked::<R>(verb, key), &self.inner.link.peer)
    }

    fn explained_status<R: Record>(&self, failure: Failure, key: &Key) -> StoreError {
        failure.explained(&self.asked::<R>("patch", key).status(), &self.inner.link.peer)
    }

    fn asked<R: Record>(&self, verb: &'static str, key: &Key) -> Asked {
        Asked::named(verb, R::RESOURCE, key.namespace(), &self.called(key))
    }

    fn conflict<R: Record>(&self, key: &Key) -> StoreError {
        StoreError::Conflict { kind: R::KIND, name: self.called(key) }
    }

    /// Returns what an object is called among those that are listed.
    fn called(&self, key: &Key) -> String {
        match self.inner.scope {
            Scope::OneNamespace => key.name.to_string(),
            Scope::All => key.to_string(),
        }
    }

    /// Returns the namespace that the objects of a kind are of; `None`: they are of all, or have none.
    pub(super) fn namespace_of(&self, resource: Resource) -> Option<&str> {
        match self.inner.scope {
            Scope::OneNamespace if resource.is_namespaced => Some(&self.inner.link.peer.namespace),
            Scope::OneNamespace | Scope::All => None,
        }
    }

    fn server(&self) -> String {
        self.inner.link.peer.server.clone()
    }
}

fn parsed<R: Record>(object: DynamicObject, key: &Key) -> Result<R, StoreError> {
    object::parse(object, &key.namespace).map_err(|problem| StoreError::Unreadable { problem })
}

/// A watch on kinds of objects.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: Vec<tokio::sync::watch::Receiver<u64>>,
    /// What is followed is followed for as long as somebody has it.
    _store: Store,
}

impl Watch {
    pub(crate) async fn changed(&mut self) {
        if self.seen.is_empty() {
            return std::future::pending().await;
        }
        // No sender goes while this watch has the store.
        let _ = select_all(self.seen.iter_mut().map(|seen| Box::pin(seen.changed()))).await;
    }
}
