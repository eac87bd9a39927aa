//! What was seen of one kind: the last listing, and every change since.
//!
//! An object is read as its Rust type when it is first asked for, or from its arrival on ([`Cache::read_as`]), and held in
//! one form only. Of other managers' fields nothing is kept but the object's own content.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::kube::api::DynamicObject;
use ::kube::runtime::watcher::Event;
use culvert_api::Record;
use jiff::Timestamp;
use tokio::sync::watch;

use super::object::{self, Current};
use crate::records::Listing;
use crate::records::error::Problem;
use crate::records::key::Key;

/// Where `kubectl apply` keeps the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

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
    /// `None` until a listing was complete.
    objects: Option<BTreeMap<Key, Held>>,
    /// The listing that is under way.
    coming: BTreeMap<Key, Held>,
    /// `Arc<Listing<Arc<R>>>` of what is here, for as long as nothing changes.
    listing: Option<Arc<dyn Any + Send + Sync>>,
    /// How objects are read from their arrival on.
    reader: Option<Reader>,
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
    Parsed(Parsed),
}

/// `Result<Arc<R>, Problem>` of the cache's kind.
type Parsed = Box<dyn Any + Send + Sync>;

/// What is known of the cache's kind.
#[derive(Clone, Copy, Debug)]
struct Reader {
    parse: fn(DynamicObject, &str) -> Parsed,
    /// Tells whether an object is the same in all but its version.
    is_same: fn(&Parsed, &Parsed) -> bool,
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
                let (key, held) = Held::of(object, &self.manager, state.reader);
                state.coming.insert(key, held);
                (false, None)
            }
            Event::InitDone => {
                state.objects = Some(std::mem::take(&mut state.coming));
                state.listing = None;
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

    /// Has objects read as `R` from their arrival on, and those that are here now. A change that `R` does not show counts as
    /// none then.
    pub(super) fn read_as<R: Record>(&self) {
        let mut state = self.state();
        if state.reader.is_some() {
            return;
        }
        let reader = Reader { parse: parse_lean::<R>, is_same: is_same::<R> };
        state.reader = Some(reader);
        let State { objects, coming, .. } = &mut *state;
        for (key, held) in coming.iter_mut().chain(objects.iter_mut().flatten()) {
            held.ensure_read(reader.parse, &key.namespace);
        }
    }

    /// Takes out an object that was deleted.
    pub(super) fn forget(&self, key: &Key) {
        let mut state = self.state();
        let forgotten = state.objects.as_mut().and_then(|objects| objects.remove(key));
        if forgotten.is_some() {
            state.listing = None;
        }
        drop(state);
        if forgotten.is_some() {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }

    pub(super) fn outage(&self) -> Option<Outage> {
        self.state().outage.clone()
    }

    /// Returns all objects, sorted by namespace and name, the same listing while nothing changes; `None` before the first
    /// listing was complete.
    pub(super) fn listing<R: Record>(&self) -> Option<Arc<Listing<Arc<R>>>> {
        let mut state = self.state();
        let State { objects, listing: known, .. } = &mut *state;
        let objects = objects.as_mut()?;
        if let Some(known) = known.clone().and_then(|known| known.downcast().ok()) {
            return Some(known);
        }
        let mut listing = Listing { records: Vec::with_capacity(objects.len()), problems: Vec::new() };
        for (key, held) in objects {
            match held.read::<R>(&key.namespace) {
                Ok(record) => listing.records.push(record.clone()),
                Err(problem) => listing.problems.push(problem.clone()),
            }
        }
        let listing = Arc::new(listing);
        *known = Some(listing.clone());
        Some(listing)
    }

    /// Returns an object for comparison, or that there is none; `None` if what was seen may be old, or is not understood.
    pub(super) fn current<R: Record>(&self, key: &Key) -> Option<Option<Current>> {
        let state = self.state();
        if state.outage.is_some() {
            return None;
        }
        match state.objects.as_ref()?.get(key) {
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
        let (key, held) = Held::of(object, manager, self.reader);
        let known = objects.get(&key);
        if known.is_some_and(|known| !is_older(&known.version, &held.version)) {
            return false;
        }
        let changed = match (self.reader, known.map(|known| &known.content), &held.content) {
            (Some(reader), Some(Content::Parsed(known)), Content::Parsed(now)) => !(reader.is_same)(known, now),
            _ => true,
        };
        objects.insert(key, held);
        self.listing = None;
        changed
    }

    fn remove(&mut self, object: &DynamicObject) -> bool {
        let Some(objects) = &mut self.objects else { return false };
        let key = key_of(object);
        let is_news = objects.get(&key).is_some_and(|known| is_older(&known.version, version_of(object)));
        if is_news {
            objects.remove(&key);
            self.listing = None;
        }
        is_news
    }
}

impl Held {
    fn of(mut object: DynamicObject, manager: &str, reader: Option<Reader>) -> (Key, Self) {
        let owned = object::take_owned(&mut object, manager).iter().map(|fields| fields.to_string().into()).collect();
        let key = key_of(&object);
        let version = version_of(&object).to_owned();
        let content = match reader {
            Some(reader) => Content::Parsed((reader.parse)(object, &key.namespace)),
            None => {
                let text = serde_json::to_string(&object).expect("what was read as JSON is written as JSON");
                Content::Raw(text.into())
            }
        };
        (key, Self { version, owned, content })
    }

    fn ensure_read(&mut self, parse: fn(DynamicObject, &str) -> Parsed, namespace: &str) {
        if let Content::Raw(text) = &self.content {
            let object = serde_json::from_str(text).expect("it was written from an object");
            self.content = Content::Parsed(parse(object, namespace));
        }
    }

    fn read<R: Record>(&mut self, namespace: &str) -> &Result<Arc<R>, Problem> {
        self.ensure_read(parse::<R>, namespace);
        match &self.content {
            Content::Parsed(parsed) => parsed.downcast_ref().expect("a cache has one kind only"),
            Content::Raw(_) => unreachable!("it has just been parsed"),
        }
    }

    fn current<R: Record>(&self) -> Option<Current> {
        let value = match &self.content {
            Content::Raw(text) => serde_json::from_str(text).ok()?,
            Content::Parsed(parsed) => {
                let record = parsed.downcast_ref::<Result<Arc<R>, Problem>>()?.as_ref().ok()?;
                serde_json::to_value(&**record).ok()?
            }
        };
        let owned = self.owned.iter().map(|fields| serde_json::from_str(fields)).collect::<Result<_, _>>().ok()?;
        Some(Current { value, owned })
    }
}

fn parse<R: Record>(object: DynamicObject, namespace: &str) -> Parsed {
    let parsed: Result<Arc<R>, Problem> = object::parse(object, namespace).map(Arc::new);
    Box::new(parsed)
}

/// As [`parse`], without what nobody asks for.
fn parse_lean<R: Record>(mut object: DynamicObject, namespace: &str) -> Parsed {
    if let Some(annotations) = &mut object.metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    parse::<R>(object, namespace)
}

fn is_same<R: Record>(one: &Parsed, other: &Parsed) -> bool {
    match (one.downcast_ref::<Result<Arc<R>, Problem>>(), other.downcast_ref::<Result<Arc<R>, Problem>>()) {
        (Some(Ok(one)), Some(Ok(other))) => {
            let mut one = R::clone(one);
            one.metadata_mut().resource_version.clone_from(&other.metadata().resource_version);
            one == **other
        }
        (Some(one), Some(other)) => one == other,
        (None, _) | (_, None) => false,
    }
}

fn key_of(object: &DynamicObject) -> Key {
    let text = |part: &Option<String>| part.as_deref().unwrap_or_default().into();
    Key { namespace: text(&object.metadata.namespace), name: text(&object.metadata.name) }
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
mod tests;
