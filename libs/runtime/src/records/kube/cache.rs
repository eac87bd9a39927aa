//! What was seen of one kind: the last listing, and every change since.
//!
//! An object is read as its Rust type when it is first asked for, and held in one form only. Of other managers' fields
//! nothing is kept but the object's own content.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::kube::api::DynamicObject;
use ::kube::runtime::watcher::Event;
use culvert_api::Record;
use jiff::Timestamp;
use tokio::sync::watch;

use super::object::{self, Current};
use crate::records::Listing;
use crate::records::error::Problem;

/// All that is seen of a kind.
#[derive(Debug)]
pub(super) struct Cache {
    /// Whose applied fields are remembered.
    manager: String,
    state: Mutex<State>,
    /// Counts changes.
    revision: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// By name; `None` until a listing was complete.
    objects: Option<BTreeMap<String, Held>>,
    /// The listing that is under way.
    coming: BTreeMap<String, Held>,
    /// The resource version of the last change that the watch told; empty since a listing.
    told: String,
    outage: Option<Outage>,
}

/// Since when, and why, the kind cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outage {
    pub(super) since: Timestamp,
    pub(super) cause: String,
}

#[derive(Debug)]
struct Held {
    version: String,
    /// What this process has applied, as JSON: a tree of it takes eight times as much.
    owned: Vec<Box<str>>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// JSON: there may be thousands that nobody asks for.
    Raw(Box<str>),
    /// `Result<R, Problem>` of the cache's kind.
    Parsed(Box<dyn Any + Send + Sync>),
}

impl Cache {
    pub(super) fn new(manager: &str) -> Self {
        Self { manager: manager.to_owned(), state: Mutex::default(), revision: watch::Sender::new(0) }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Takes what the server tells; returns the outage that ends with it.
    pub(super) fn handle(&self, event: Event<DynamicObject>) -> Option<Outage> {
        let mut state = self.state();
        let (changed, ended) = match event {
            Event::Init => {
                state.coming = BTreeMap::new();
                (false, None)
            }
            Event::InitApply(object) => {
                let (name, held) = Held::of(object, &self.manager);
                state.coming.insert(name, held);
                (false, None)
            }
            Event::InitDone => {
                state.objects = Some(std::mem::take(&mut state.coming));
                state.told = String::new();
                (true, state.outage.take())
            }
            Event::Apply(object) => {
                state.told = version_of(&object).to_owned();
                (state.see(object, &self.manager), state.outage.take())
            }
            Event::Delete(object) => {
                state.told = version_of(&object).to_owned();
                (state.remove(&object), state.outage.take())
            }
        };
        drop(state);
        if changed || ended.is_some() {
            self.revision.send_modify(|revision| *revision += 1);
        }
        ended
    }

    /// Notes that the kind cannot be followed; returns whether it could until now.
    pub(super) fn fail(&self, cause: String, now: Timestamp) -> bool {
        let mut state = self.state();
        let since = state.outage.as_ref().map(|outage| outage.since);
        let outage = Some(Outage { since: since.unwrap_or(now), cause });
        let differs = state.outage != outage;
        state.outage = outage;
        drop(state);
        if differs {
            self.revision.send_modify(|revision| *revision += 1);
        }
        since.is_none()
    }

    /// Takes an object that the server has returned for a write, unless the watch has told what is newer: if the object
    /// is not there then, somebody has deleted it since.
    pub(super) fn see(&self, object: DynamicObject) {
        let mut state = self.state();
        let changed = is_older(&state.told, version_of(&object)) && state.see(object, &self.manager);
        drop(state);
        if changed {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }

    /// Takes out an object that was deleted.
    pub(super) fn forget(&self, name: &str) {
        let forgotten = self.state().objects.as_mut().and_then(|objects| objects.remove(name));
        if forgotten.is_some() {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }

    pub(super) fn outage(&self) -> Option<Outage> {
        self.state().outage.clone()
    }

    /// Returns all objects, sorted by name; `None` before the first listing was complete.
    pub(super) fn listing<R: Record>(&self, namespace: &str) -> Option<Listing<R>> {
        let mut state = self.state();
        let mut listing = Listing { records: Vec::new(), problems: Vec::new() };
        for held in state.objects.as_mut()?.values_mut() {
            match held.parsed::<R>(namespace) {
                Ok(record) => listing.records.push(record),
                Err(problem) => listing.problems.push(problem),
            }
        }
        Some(listing)
    }

    /// Returns an object for comparison, or that there is none; `None` if what was seen may be old, or is not understood.
    pub(super) fn current<R: Record>(&self, name: &str) -> Option<Option<Current>> {
        let state = self.state();
        if state.outage.is_some() {
            return None;
        }
        match state.objects.as_ref()?.get(name) {
            Some(held) => held.current::<R>().map(Some),
            None => Some(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is kept is whole at any instruction.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes an object unless a newer state of it is known; tells whether something changed.
    fn see(&mut self, object: DynamicObject, manager: &str) -> bool {
        let Some(objects) = &mut self.objects else { return false };
        let (name, held) = Held::of(object, manager);
        let is_news = objects.get(&name).is_none_or(|known| is_older(&known.version, &held.version));
        if is_news {
            objects.insert(name, held);
        }
        is_news
    }

    fn remove(&mut self, object: &DynamicObject) -> bool {
        let Some(objects) = &mut self.objects else { return false };
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let is_news = objects.get(name).is_some_and(|known| is_older(&known.version, version_of(object)));
        if is_news {
            objects.remove(name);
        }
        is_news
    }
}

impl Held {
    fn of(mut object: DynamicObject, manager: &str) -> (String, Self) {
        let owned = object::take_owned(&mut object, manager).iter().map(|fields| fields.to_string().into()).collect();
        let name = object.metadata.name.clone().unwrap_or_default();
        let version = version_of(&object).to_owned();
        let text = serde_json::to_string(&object).expect("what was read as JSON is written as JSON");
        (name, Self { version, owned, content: Content::Raw(text.into()) })
    }

    fn parsed<R: Record>(&mut self, namespace: &str) -> Result<R, Problem> {
        if let Content::Raw(text) = &self.content {
            let object = serde_json::from_str(text).expect("it was written from an object");
            let parsed: Result<R, Problem> = object::parse(object, namespace);
            self.content = Content::Parsed(Box::new(parsed));
        }
        match &self.content {
            Content::Parsed(parsed) => {
                parsed.downcast_ref::<Result<R, Problem>>().expect("a cache has one kind only").clone()
            }
            Content::Raw(_) => unreachable!("it has just been parsed"),
        }
    }

    fn current<R: Record>(&self) -> Option<Current> {
        let value = match &self.content {
            Content::Raw(text) => serde_json::from_str(text).ok()?,
            Content::Parsed(parsed) => {
                let record = parsed.downcast_ref::<Result<R, Problem>>()?.as_ref().ok()?;
                serde_json::to_value(record).ok()?
            }
        };
        let owned = self.owned.iter().map(|fields| serde_json::from_str(fields)).collect::<Result<_, _>>().ok()?;
        Some(Current { value, owned })
    }
}

fn version_of(object: &DynamicObject) -> &str {
    object.metadata.resource_version.as_deref().unwrap_or_default()
}

/// Tells whether the resource version `one` comes before `other`.
///
/// They are numbers that grow (Kubernetes API conventions, since 1.35; etcd's always were). What is no number is taken
/// as it comes.
fn is_older(one: &str, other: &str) -> bool {
    match (one.parse::<u128>(), other.parse::<u128>()) {
        (Ok(one), Ok(other)) => one < other,
        (Ok(_), Err(_)) | (Err(_), Ok(_)) | (Err(_), Err(_)) => one != other,
    }
}

#[cfg(test)]
mod tests {
    use culvert_api::Cluster;
    use serde_json::json;

    use super::*;

    fn object(name: &str, version: u32, id: &str) -> DynamicObject {
        let value = json!({
            "apiVersion": "submariner.io/v1",
            "kind": "Cluster",
            "metadata": {"name": name, "resourceVersion": version.to_string()},
            "spec": {"cluster_id": id},
        });
        serde_json::from_value(value).unwrap()
    }

    fn listed(objects: &[(&str, u32, &str)]) -> Cache {
        let cache = Cache::new("us");
        list(&cache, objects);
        cache
    }

    fn list(cache: &Cache, objects: &[(&str, u32, &str)]) {
        cache.handle(Event::Init);
        for (name, version, id) in objects {
            cache.handle(Event::InitApply(object(name, *version, id)));
        }
        cache.handle(Event::InitDone);
    }

    fn ids(cache: &Cache) -> Vec<String> {
        let listing = cache.listing::<Cluster>("n").unwrap();
        listing.records.into_iter().map(|record| record.spec.cluster_id).collect()
    }

    #[test]
    fn nothing_is_listed_before_the_first_listing_is_complete() {
        let cache = Cache::new("us");
        cache.handle(Event::Init);
        cache.handle(Event::InitApply(object("a", 1, "a")));
        assert!(cache.listing::<Cluster>("n").is_none());

        cache.handle(Event::InitDone);

        assert_eq!(ids(&cache), ["a"]);
    }

    #[test]
    fn changes_are_seen_and_what_a_new_listing_lacks_is_gone() {
        let cache = listed(&[("b", 1, "b"), ("a", 2, "a")]);
        cache.handle(Event::Apply(object("c", 3, "c")));
        cache.handle(Event::Delete(object("b", 4, "b")));
        assert_eq!(ids(&cache), ["a", "c"]);

        list(&cache, &[("c", 3, "c")]);

        assert_eq!(ids(&cache), ["c"]);
    }

    #[test]
    fn a_write_of_ones_own_is_not_undone_by_older_news() {
        let cache = listed(&[("a", 5, "first")]);
        cache.see(object("a", 100, "second"));
        cache.handle(Event::Apply(object("a", 99, "before")));
        cache.handle(Event::Delete(object("a", 98, "before")));
        assert_eq!(ids(&cache), ["second"]);
        cache.handle(Event::Apply(object("a", 101, "third")));
        assert_eq!(ids(&cache), ["third"]);
    }

    #[test]
    fn a_write_that_somebody_has_undone_meanwhile_is_not_seen() {
        let cache = listed(&[]);
        cache.handle(Event::Apply(object("a", 100, "ours")));
        cache.handle(Event::Delete(object("a", 101, "ours")));
        cache.see(object("a", 100, "ours"));
        assert!(ids(&cache).is_empty());
        cache.see(object("a", 102, "again"));
        assert_eq!(ids(&cache), ["again"]);
    }

    #[test]
    fn a_server_that_was_restored_from_an_older_state_is_believed() {
        let cache = listed(&[("a", 500, "new")]);
        list(&cache, &[("a", 7, "old")]);
        assert_eq!(ids(&cache), ["old"]);
    }

    #[test]
    fn an_outage_keeps_what_was_seen_and_rings_when_it_begins_and_ends() {
        let cache = listed(&[("a", 1, "a")]);
        let mut seen = cache.subscribe();
        let start = Timestamp::from_second(1_700_000_000).unwrap();
        assert!(cache.fail("refused".to_owned(), start));
        assert!(!cache.fail("refused".to_owned(), Timestamp::MAX));
        assert_eq!(cache.outage(), Some(Outage { since: start, cause: "refused".to_owned() }));
        assert!(seen.has_changed().unwrap());
        seen.mark_unchanged();
        assert_eq!(ids(&cache), ["a"]);
        assert!(cache.current::<Cluster>("a").is_none(), "what was seen may be old");

        cache.handle(Event::Init);
        assert!(cache.outage().is_some(), "it has only been asked for");
        cache.handle(Event::InitDone);

        assert!(cache.outage().is_none() && seen.has_changed().unwrap());
    }

    #[test]
    fn an_object_that_is_not_understood_hides_no_other() {
        let mut bad = object("bad", 2, "x");
        bad.data = json!({"spec": {"cluster_id": {"no": "text"}}});
        let cache = listed(&[("a", 1, "a")]);
        cache.handle(Event::Apply(bad));

        let listing = cache.listing::<Cluster>("n").unwrap();

        assert_eq!(listing.records.len(), 1);
        assert_eq!(listing.problems[0].name(), Some("bad"));
        let text = listing.problems[0].to_string();
        assert!(text.starts_with("Cluster n/bad: spec.cluster_id: "), "{text}");
    }
}
