//! The record store in a directory; [`super`] tells how files stand for objects.

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
use super::{Applied, Listing};

mod file;
mod lock;
pub(crate) mod watch;

use file::Stamp;
use lock::Lock;
use watch::Watch;

/// A parsed file counts until its stamp differs, unless it was read this soon after its last change: within one tick
/// of the file system's clock a second change may leave the same stamp.
const SETTLED: Duration = Duration::from_secs(1);

/// A store in a directory. Clones share what they have read.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Parsed files, by plural and file name.
    cache: Mutex<HashMap<&'static str, Cache>>,
}

type Cache = HashMap<String, Cached>;

#[derive(Debug)]
struct Cached {
    stamp: Stamp,
    settled: bool,
    /// `Result<R, Problem>` of the kind that the cache is for.
    parsed: Box<dyn Any + Send + Sync>,
}

struct Loaded<R> {
    path: PathBuf,
    record: R,
}

impl Directory {
    pub(super) fn open(root: impl Into<PathBuf>) -> Self {
        Self { inner: Arc::new(Inner { root: root.into(), cache: Mutex::default() }) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.inner.root
    }

    pub(super) async fn list<R: Record>(&self) -> Result<Listing<R>, StoreError> {
        let root = self.identity()?;
        let mut cache = self.caches().remove(R::PLURAL).unwrap_or_default();
        let listing = self.read_all(&mut cache);
        self.caches().insert(R::PLURAL, cache);
        self.ensure_same(root)?;
        listing
    }

    pub(super) async fn find<R: Record>(&self, name: &str) -> Result<Option<R>, StoreError> {
        let root = self.identity()?;
        let loaded = self.load::<R>(name)?;
        if loaded.is_none() {
            self.ensure_same(root)?;
        }
        Ok(loaded.map(|loaded| loaded.record))
    }

    pub(super) async fn create<R: Record>(&self, record: &R) -> Result<R, StoreError> {
        let _lock = self.lock().await?;
        if self.files::<R>(record.name()).iter().any(|path| fs::symlink_metadata(path).is_ok()) {
            return Err(StoreError::Exists { kind: R::KIND, name: record.name().to_owned() });
        }
        self.write_new(record)
    }

    pub(super) async fn update<R: Record>(&self, record: &R) -> Result<R, StoreError> {
        let name = record.name();
        let _lock = self.lock().await?;
        let Some(current) = self.load::<R>(name)? else {
            return Err(StoreError::NotFound { kind: R::KIND, name: name.to_owned() });
        };
        let version = &record.metadata().resource_version;
        if version.is_none() || *version != current.record.metadata().resource_version {
            return Err(StoreError::Conflict { kind: R::KIND, name: name.to_owned() });
        }
        match self.difference(&current, record)? {
            Some(new) => self.write(&current.path, &new),
            None => Ok(current.record),
        }
    }

    pub(super) async fn apply<R: Record>(&self, record: &R) -> Result<Applied, StoreError> {
        let name = record.name();
        self.identity()?;
        if let Some(current) = self.load::<R>(name)?
            && self.difference(&current, record)?.is_none()
        {
            return Ok(Applied::Unchanged);
        }
        let _lock = self.lock().await?;
        let Some(current) = self.load::<R>(name)? else {
            self.write_new(record)?;
            return Ok(Applied::Created);
        };
        match self.difference(&current, record)? {
            Some(new) => self.write(&current.path, &new).map(|_| Applied::Updated),
            None => Ok(Applied::Unchanged),
        }
    }

    pub(super) async fn delete<R: Record>(&self, name: &str) -> Result<bool, StoreError> {
        let _lock = self.lock().await?;
        let mut deleted = false;
        for path in self.files::<R>(name) {
            deleted |= file::remove(&path).map_err(|source| StoreError::Io { file: path, source })?;
        }
        if deleted {
            let directory = self.directory::<R>();
            file::sync_directory(&directory).map_err(|source| StoreError::Io { file: directory, source })?;
        }
        Ok(deleted)
    }

    pub(super) fn watch(&self, kinds: &'static [Resource]) -> Watch {
        Watch::new(self.root(), kinds)
    }

    fn directory<R: Record>(&self) -> PathBuf {
        self.root().join(R::PLURAL)
    }

    /// Returns where an object may be; what we make is the first.
    fn files<R: Record>(&self, name: &str) -> [PathBuf; 2] {
        file::EXTENSIONS.map(|extension| self.directory::<R>().join(format!("{name}.{extension}")))
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

    fn read_all<R: Record>(&self, cache: &mut Cache) -> Result<Listing<R>, StoreError> {
        let directory = self.directory::<R>();
        let mut names: BTreeSet<String> = cache.keys().cloned().collect();
        // A file that is replaced while the directory is read may be left out (POSIX, readdir). So what was there before
        // is opened by name, seen or not.
        file::scan(&directory, &mut names).map_err(|source| StoreError::Io { file: directory.clone(), source })?;
        let now = SystemTime::now();
        let mut found = BTreeMap::new();
        let mut problems = Vec::new();
        for file_name in names {
            let path = directory.join(&file_name);
            match read_cached::<R>(&path, &file_name, cache, now) {
                Ok(None) => {
                    cache.remove(&file_name);
                }
                Ok(Some(record)) => match found.entry(record.name().to_owned()) {
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        entry.insert(record);
                    }
                    // `.yaml` sorts before `.yml`.
                    std::collections::btree_map::Entry::Occupied(_) => {
                        problems.push(Problem::of(&path, "another file holds this object already: remove one"));
                    }
                },
                Err(ReadError::Problem(problem)) => problems.push(problem),
                Err(ReadError::Io(source)) => return Err(StoreError::Io { file: path, source }),
            }
        }
        Ok(Listing { records: found.into_values().collect(), problems })
    }

    fn load<R: Record>(&self, name: &str) -> Result<Option<Loaded<R>>, StoreError> {
        for path in self.files::<R>(name) {
            let parsed = file::open(&path).and_then(|opened| opened.map(|file| file.parse(&path)).transpose());
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

    fn write_new<R: Record>(&self, record: &R) -> Result<R, StoreError> {
        let mut new = record.clone();
        new.metadata_mut().uid = Some(file::random_uid()?);
        new.metadata_mut().creation_timestamp = Some(Time(Timestamp::now()));
        let [path, _] = self.files::<R>(record.name());
        self.write(&path, &new)
    }

    /// Replaces the file at `path`; the caller holds the lock.
    fn write<R: Record>(&self, path: &Path, record: &R) -> Result<R, StoreError> {
        let text = file::render(path, record)?;
        // What could not be read again is not written.
        let written = file::parse(path, text.as_bytes(), Timestamp::now())
            .map_err(|problem| StoreError::Unreadable { problem })?;
        file::replace(self.root(), &self.directory::<R>(), path, text.as_bytes())
            .map_err(|source| StoreError::Io { file: path.to_owned(), source })?;
        Ok(written)
    }
}

fn read_cached<R: Record>(
    path: &Path,
    file_name: &str,
    cache: &mut Cache,
    now: SystemTime,
) -> Result<Option<R>, ReadError> {
    let Some(opened) = file::open(path)? else { return Ok(None) };
    let stamp = opened.stamp;
    if let Some(cached) = cache.get(file_name)
        && cached.settled
        && cached.stamp == stamp
        && let Some(parsed) = cached.parsed.downcast_ref::<Result<R, Problem>>()
    {
        return parsed.clone().map(Some).map_err(ReadError::Problem);
    }
    let parsed = match opened.parse::<R>(path) {
        Ok(record) => Ok(record),
        Err(ReadError::Problem(problem)) => Err(problem),
        Err(ReadError::Io(error)) => return Err(ReadError::Io(error)),
    };
    let cached = Cached { stamp, settled: stamp.is_older_than(SETTLED, now), parsed: Box::new(parsed.clone()) };
    cache.insert(file_name.to_owned(), cached);
    parsed.map(Some).map_err(ReadError::Problem)
}

#[cfg(test)]
mod process_tests;
#[cfg(test)]
mod tests;
