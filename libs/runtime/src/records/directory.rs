//! The record store in a directory; [`super`] tells how files stand for objects, [`super::objects`] those of all
//! namespaces.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use culvert_api::{Record, Resource};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::error::{Problem, ReadError, StoreError};
use super::key::{Key, is_namespace};
use super::{Applied, Listing};

mod file;
mod lock;
pub(crate) mod watch;

use file::{Stamp, Wanted};
use lock::Lock;
use watch::Watch;

/// A parsed file counts until its stamp differs, unless it was read this soon after its last change: within one tick
/// of the file system's clock a second change may leave the same stamp.
const SETTLED: Duration = Duration::from_secs(1);

/// Where the files of objects lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// In the directory of their kind: which namespace they are of goes without saying.
    Flat,
    /// Below it, in one directory for each namespace, if their kind has namespaces.
    ByNamespace,
}

impl Layout {
    fn has_namespaces(self, resource: Resource) -> bool {
        self == Self::ByNamespace && resource.is_namespaced
    }
}

/// A store in a directory. Clones share what they have read.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    layout: Layout,
    /// Parsed files, by plural.
    cache: Mutex<HashMap<&'static str, Cache>>,
}

/// By namespace, empty if there is none, and file name.
type Cache = BTreeMap<String, HashMap<String, Cached>>;

#[derive(Debug)]
struct Cached {
    stamp: Stamp,
    settled: bool,
    /// `Result<Arc<R>, Problem>` of the kind that the cache is for.
    parsed: Box<dyn Any + Send + Sync>,
}

struct Loaded<R> {
    path: PathBuf,
    record: R,
}

impl Directory {
    pub(super) fn open(root: impl Into<PathBuf>, layout: Layout) -> Self {
        Self { inner: Arc::new(Inner { root: root.into(), layout, cache: Mutex::default() }) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.inner.root
    }

    pub(super) async fn list<R: Record>(&self) -> Result<Listing<Arc<R>>, StoreError> {
        let root = self.identity()?;
        let mut cache = self.caches().remove(R::PLURAL).unwrap_or_default();
        let listing = self.read_all(&mut cache);
        self.caches().insert(R::PLURAL, cache);
        self.ensure_same(root)?;
        listing
    }

    pub(super) async fn find<R: Record>(&self, key: &Key) -> Result<Option<R>, StoreError> {
        let root = self.identity()?;
        let loaded = self.load::<R>(key)?;
        if loaded.is_none() {
            self.ensure_same(root)?;
        }
        Ok(loaded.map(|loaded| loaded.record))
    }

    pub(super) async fn create<R: Record>(&self, key: &Key, record: &R) -> Result<R, StoreError> {
        let _lock = self.lock().await?;
        if self.files::<R>(key).iter().any(|path| fs::symlink_metadata(path).is_ok()) {
            return Err(StoreError::Exists { kind: R::KIND, name: key.to_string() });
        }
        self.write_new(key, record)
    }

    pub(super) async fn update<R: Record>(&self, key: &Key, record: &R) -> Result<R, StoreError> {
        let _lock = self.lock().await?;
        let Some(current) = self.load::<R>(key)? else { return Err(missing::<R>(key)) };
        let version = &record.metadata().resource_version;
        if version.is_none() || *version != current.record.metadata().resource_version {
            return Err(conflict::<R>(key));
        }
        match self.difference(&current, record)? {
            Some(new) => self.write(key, &current.path, &new),
            None => Ok(current.record),
        }
    }

    pub(super) async fn apply<R: Record>(&self, key: &Key, record: &R) -> Result<Applied, StoreError> {
        self.identity()?;
        if let Some(current) = self.load::<R>(key)?
            && self.applied(&current, record)?.is_none()
        {
            return Ok(Applied::Unchanged);
        }
        let _lock = self.lock().await?;
        let Some(current) = self.load::<R>(key)? else {
            self.write_new(key, record)?;
            return Ok(Applied::Created);
        };
        match self.applied(&current, record)? {
            Some(new) => self.write(key, &current.path, &new).map(|_| Applied::Updated),
            None => Ok(Applied::Unchanged),
        }
    }

    pub(super) async fn apply_status<R: Record>(&self, key: &Key, record: &R) -> Result<Applied, StoreError> {
        let _lock = self.lock().await?;
        let Some(current) = self.load::<R>(key)? else { return Err(missing::<R>(key)) };
        // A file that nobody has written but by hand has no uid.
        let (uid, there) = (&record.metadata().uid, &current.record.metadata().uid);
        if uid.is_some() && uid != there {
            return Err(conflict::<R>(key));
        }
        let new = file::with_status(&current.path, &current.record, record)?;
        match self.difference(&current, &new)? {
            Some(new) => self.write(key, &current.path, &new).map(|_| Applied::Updated),
            None => Ok(Applied::Unchanged),
        }
    }

    pub(super) async fn annotate<R: Record>(
        &self,
        key: &Key,
        annotation: &str,
        value: Option<&str>,
    ) -> Result<(), StoreError> {
        let _lock = self.lock().await?;
        let Some(current) = self.load::<R>(key)? else { return Err(missing::<R>(key)) };
        let mut new = current.record.clone();
        let all = new.metadata_mut().annotations.get_or_insert_default();
        match value {
            Some(value) => drop(all.insert(annotation.to_owned(), value.to_owned())),
            None => drop(all.remove(annotation)),
        }
        match self.difference(&current, &new)? {
            Some(new) => self.write(key, &current.path, &new).map(drop),
            None => Ok(()),
        }
    }

    pub(super) async fn delete<R: Record>(&self, key: &Key) -> Result<bool, StoreError> {
        let _lock = self.lock().await?;
        let mut deleted = false;
        for path in self.files::<R>(key) {
            deleted |= file::remove(&path).map_err(|source| StoreError::Io { file: path, source })?;
        }
        if deleted {
            let directory = self.directory::<R>(&key.namespace);
            file::sync_directory(&directory).map_err(|source| StoreError::Io { file: directory, source })?;
        }
        Ok(deleted)
    }

    pub(super) fn watch(&self, kinds: &'static [Resource]) -> Watch {
        Watch::new(self.root(), self.inner.layout, kinds)
    }

    /// Returns where the objects of a namespace are, or those of the kind if it is empty.
    fn directory<R: Record>(&self, namespace: &str) -> PathBuf {
        let directory = self.root().join(R::PLURAL);
        if namespace.is_empty() { directory } else { directory.join(namespace) }
    }

    /// Returns where an object may be; what we make is the first.
    fn files<R: Record>(&self, key: &Key) -> [PathBuf; 2] {
        let directory = self.directory::<R>(&key.namespace);
        file::EXTENSIONS.map(|extension| directory.join(format!("{}.{extension}", key.name)))
    }

    /// Returns what a file must say of its namespace to hold an object of it.
    fn wanted<'a>(&self, namespace: &'a str) -> Wanted<'a> {
        match self.inner.layout {
            Layout::Flat => Wanted::Any,
            Layout::ByNamespace if namespace.is_empty() => Wanted::None,
            Layout::ByNamespace => Wanted::This(namespace),
        }
    }

    /// Returns which directory the root is now.
    fn identity(&self) -> Result<(u64, u64), StoreError> {
        watch::identity(self.root()).map_err(|source| StoreError::Away { root: self.root().to_owned(), source })
    }

    /// Makes sure that what was not found is not there: the root may have gone while it was read.
    fn ensure_same(&self, before: (u64, u64)) -> Result<(), StoreError> {
        if self.identity()? == before {
            return Ok(());
        }
        let source = io::Error::other("it was replaced while it was read");
        Err(StoreError::Away { root: self.root().to_owned(), source })
    }

    async fn lock(&self) -> Result<Lock, StoreError> {
        self.identity()?;
        Lock::acquire(self.root()).await
    }

    fn caches(&self) -> std::sync::MutexGuard<'_, HashMap<&'static str, Cache>> {
        // What is cached is whole at any instruction.
        self.inner.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_all<R: Record>(&self, cache: &mut Cache) -> Result<Listing<Arc<R>>, StoreError> {
        let mut listing = Listing { records: Vec::new(), problems: Vec::new() };
        if !self.inner.layout.has_namespaces(R::RESOURCE) {
            self.read_directory("", cache.entry(String::new()).or_default(), &mut listing)?;
            return Ok(listing);
        }
        let mut namespaces: BTreeSet<String> = cache.keys().cloned().collect();
        let directory = self.directory::<R>("");
        let io_error = |source| StoreError::Io { file: directory.clone(), source };
        for entry in file::entries(&directory).map_err(io_error)? {
            if !entry.is_directory {
                if entry.holds_object {
                    let message = "it lies in no namespace: move it to a directory that is called as its own";
                    listing.problems.push(Problem::of(&directory.join(&entry.name), message));
                }
            } else if is_namespace(&entry.name) {
                namespaces.insert(entry.name);
            } else {
                let message = "no namespace is called so: use at most 63 of a-z, 0-9 and '-'";
                listing.problems.push(Problem::of(&directory.join(&entry.name), message));
            }
        }
        for namespace in namespaces {
            let files = cache.entry(namespace.clone()).or_default();
            self.read_directory(&namespace, files, &mut listing)?;
            if files.is_empty() {
                cache.remove(&namespace);
            }
        }
        Ok(listing)
    }

    /// Adds the objects of a namespace, or those of the kind if it is empty.
    fn read_directory<R: Record>(
        &self,
        namespace: &str,
        cache: &mut HashMap<String, Cached>,
        listing: &mut Listing<Arc<R>>,
    ) -> Result<(), StoreError> {
        let directory = self.directory::<R>(namespace);
        let mut names: BTreeSet<String> = cache.keys().cloned().collect();
        // A file that is replaced while the directory is read may be left out (POSIX, readdir). So what was there before
        // is opened by name, seen or not.
        let entries = file::entries(&directory).map_err(|source| StoreError::Io { file: directory.clone(), source })?;
        names.extend(entries.into_iter().filter(|entry| entry.holds_object).map(|entry| entry.name));
        let now = SystemTime::now();
        let mut found = BTreeMap::new();
        for file_name in names {
            let path = directory.join(&file_name);
            match read_cached::<R>(&path, self.wanted(namespace), &file_name, cache, now) {
                Ok(None) => {
                    cache.remove(&file_name);
                }
                Ok(Some(record)) => match found.entry(record.name().to_owned()) {
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        entry.insert(record);
                    }
                    // `.yaml` sorts before `.yml`.
                    std::collections::btree_map::Entry::Occupied(_) => {
                        listing.problems.push(Problem::of(&path, "another file holds this object already: remove one"));
                    }
                },
                Err(ReadError::Problem(problem)) => listing.problems.push(problem),
                Err(ReadError::Io(source)) => return Err(StoreError::Io { file: path, source }),
            }
        }
        listing.records.extend(found.into_values());
        Ok(())
    }

    fn load<R: Record>(&self, key: &Key) -> Result<Option<Loaded<R>>, StoreError> {
        let wanted = self.wanted(&key.namespace);
        for path in self.files::<R>(key) {
            let parsed = file::open(&path).and_then(|opened| opened.map(|file| file.parse(&path, wanted)).transpose());
            match parsed {
                Ok(None) => {}
                Ok(Some(record)) => return Ok(Some(Loaded { path, record })),
                Err(ReadError::Problem(problem)) => return Err(StoreError::Unreadable { problem }),
                Err(ReadError::Io(source)) => return Err(StoreError::Io { file: path, source }),
            }
        }
        Ok(None)
    }

    /// Returns `record` with the immutable metadata of `current`, or `None` if it is the same then.
    fn difference<R: Record>(&self, current: &Loaded<R>, record: &R) -> Result<Option<R>, StoreError> {
        let mut new = record.clone();
        new.metadata_mut().uid.clone_from(&current.record.metadata().uid);
        new.metadata_mut().creation_timestamp.clone_from(&current.record.metadata().creation_timestamp);
        // Texts: a time in memory may be finer than in a file.
        if file::render(&current.path, &new)? == file::render(&current.path, &current.record)? {
            return Ok(None);
        }
        if new.metadata().uid.is_none() {
            new.metadata_mut().uid = Some(file::random_uid()?);
        }
        Ok(Some(new))
    }

    /// As [`Self::difference`]; a record without a status says nothing of it.
    fn applied<R: Record>(&self, current: &Loaded<R>, record: &R) -> Result<Option<R>, StoreError> {
        if file::has_status(&current.record) && !file::has_status(record) {
            return self.difference(current, &file::with_status(&current.path, record, &current.record)?);
        }
        self.difference(current, record)
    }

    fn write_new<R: Record>(&self, key: &Key, record: &R) -> Result<R, StoreError> {
        let mut new = record.clone();
        new.metadata_mut().uid = Some(file::random_uid()?);
        new.metadata_mut().creation_timestamp = Some(Time(Timestamp::now()));
        let [path, _] = self.files::<R>(key);
        self.write(key, &path, &new)
    }

    /// Replaces the file at `path`; the caller holds the lock.
    fn write<R: Record>(&self, key: &Key, path: &Path, record: &R) -> Result<R, StoreError> {
        let text = file::render(path, record)?;
        // What could not be read again is not written.
        let written = file::parse(path, self.wanted(&key.namespace), text.as_bytes(), Timestamp::now())
            .map_err(|problem| StoreError::Unreadable { problem })?;
        file::replace(self.root(), &self.directory::<R>(&key.namespace), path, text.as_bytes())
            .map_err(|source| StoreError::Io { file: path.to_owned(), source })?;
        Ok(written)
    }
}

fn missing<R: Record>(key: &Key) -> StoreError {
    StoreError::NotFound { kind: R::KIND, name: key.to_string() }
}

fn conflict<R: Record>(key: &Key) -> StoreError {
    StoreError::Conflict { kind: R::KIND, name: key.to_string() }
}

fn read_cached<R: Record>(
    path: &Path,
    wanted: Wanted<'_>,
    file_name: &str,
    cache: &mut HashMap<String, Cached>,
    now: SystemTime,
) -> Result<Option<Arc<R>>, ReadError> {
    let Some(opened) = file::open(path)? else { return Ok(None) };
    let stamp = opened.stamp;
    let known = cache.get(file_name).filter(|cached| cached.stamp == stamp);
    let known =
        known.and_then(|cached| Some((cached.settled, cached.parsed.downcast_ref::<Result<Arc<R>, Problem>>()?)));
    if let Some((true, parsed)) = known {
        return parsed.clone().map(Some).map_err(ReadError::Problem);
    }
    let known = known.and_then(|(_, parsed)| parsed.as_ref().ok());
    let parsed = match opened.parse_unless_known(path, wanted, known) {
        Ok(record) => Ok(record),
        Err(ReadError::Problem(problem)) => Err(problem),
        Err(ReadError::Io(error)) => return Err(ReadError::Io(error)),
    };
    let cached = Cached { stamp, settled: stamp.is_older_than(SETTLED, now), parsed: Box::new(parsed.clone()) };
    cache.insert(file_name.to_owned(), cached);
    parsed.map(Some).map_err(ReadError::Problem)
}

#[cfg(test)]
mod namespaces_tests;
#[cfg(test)]
mod process_tests;
#[cfg(test)]
mod tests;
