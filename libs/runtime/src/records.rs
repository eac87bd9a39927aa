//! The record store: Kubernetes objects, in a directory or in one namespace of an API server; [`Objects`] are those of
//! all namespaces.
//!
//! The directory is `<root>/<plural>/<name>.yaml`, one object a file. Written is under an exclusive lock on
//! `<root>/.lock`: a temporary dotfile, synced, renamed over the old file. So readers take no lock, several processes
//! may write, and a crash at any instruction leaves the old object or the new one. The resource version is a hash of the
//! file's content and stands in no file, so a hand edit counts as a change. A root that is not there is "away", never
//! "empty", and is never made.
//!
//! Of an API server each kind that is asked for is listed once and watched from then on. A listing is answered from
//! what was seen, however long ago if the server is away: [`Records::outage`] tells.

use std::path::PathBuf;
use std::sync::Arc;

use culvert_api::{Record, Resource};

use crate::watch::Watch;

pub(crate) mod directory;
mod error;
mod key;
pub(crate) mod kube;
mod objects;

use directory::{Directory, Layout};
pub use error::{Place, Problem, StoreError};
use key::Key;
pub use kube::{Access, Choice, ClusterWide, Server};
use kube::{Scope, Store};
pub use objects::Objects;

/// Where records are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Directory(PathBuf),
    Server(Server),
}

impl<P: Into<PathBuf>> From<P> for Location {
    fn from(root: P) -> Self {
        Self::Directory(root.into())
    }
}

/// A record store. Clones share what they have read.
#[derive(Clone, Debug)]
pub struct Records {
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Directory(Directory),
    Namespace(Store),
}

/// All objects of a kind, and those that cannot be understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing<R> {
    /// Sorted by namespace and name.
    pub records: Vec<R>,
    /// Such an object is neither there nor gone: see [`Problem::name`].
    pub problems: Vec<Problem>,
}

/// A listing that costs nothing to have: who asks again gets the same one, or the same objects, as far as nothing changed.
pub type Shared<R> = Arc<Listing<Arc<R>>>;

impl<R: Clone> Listing<Arc<R>> {
    /// Returns the listing with objects of its own.
    fn cloned(&self) -> Listing<R> {
        Listing {
            records: self.records.iter().map(|record| R::clone(record)).collect(),
            problems: self.problems.clone(),
        }
    }
}

/// What [`Records::apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    Created,
    Updated,
    Unchanged,
}

impl Records {
    /// Makes a handle on the store in the directory `root`, which may be away now and come back.
    pub fn open(root: impl Into<PathBuf>) -> Self {
        Self { form: Form::Directory(Directory::open(root, Layout::Flat)) }
    }

    /// Makes a handle on the store at `location`, which may be away now and come back.
    ///
    /// `manager` is the name under which this process applies fields at an API server; see [`Self::apply`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Access`] if the files that say how the API server is reached cannot be used. That it is not reached
    /// is no error.
    pub async fn at(location: &Location, manager: &str) -> Result<Self, StoreError> {
        Ok(match location {
            Location::Directory(root) => Self::open(root),
            Location::Server(server) => {
                Self { form: Form::Namespace(Store::open(server, manager, Scope::OneNamespace).await?) }
            }
        })
    }

    /// Returns all objects of a kind.
    ///
    /// The first listing of a kind waits some seconds for an API server.
    ///
    /// # Errors
    ///
    /// A directory: [`StoreError::Away`] if the root is not there, [`StoreError::Io`] if a directory or file cannot be
    /// read. An API server: [`StoreError::Unread`] until it has answered once. An object that cannot be understood is a
    /// [`Problem`] in the listing instead.
    pub async fn list<R: Record>(&self) -> Result<Listing<R>, StoreError> {
        Ok(self.list_shared().await?.cloned())
    }

    /// Returns all objects of a kind without a copy of them.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub async fn list_shared<R: Record>(&self) -> Result<Shared<R>, StoreError> {
        match &self.form {
            Form::Directory(directory) => directory.list().await.map(Arc::new),
            Form::Namespace(store) => store.list().await,
        }
    }

    /// Returns the object called `name` as it is now, or `None` if there is none. An API server is asked each time.
    ///
    /// # Errors
    ///
    /// [`StoreError::Name`], [`StoreError::Unreadable`]; a directory: [`StoreError::Away`], [`StoreError::Io`]; an API
    /// server: [`StoreError::Unreachable`], [`StoreError::Forbidden`], [`StoreError::Refused`].
    pub async fn find<R: Record>(&self, name: &str) -> Result<Option<R>, StoreError> {
        let key = self.key::<R>(name)?;
        match &self.form {
            Form::Directory(directory) => directory.find(&key).await,
            Form::Namespace(store) => store.find(&key).await,
        }
    }

    /// Creates an object and returns it as it now stands, with uid, creation time and resource version.
    ///
    /// # Errors
    ///
    /// [`StoreError::Exists`], or as [`Self::find`].
    pub async fn create<R: Record>(&self, record: &R) -> Result<R, StoreError> {
        let key = self.key::<R>(record.name())?;
        match &self.form {
            Form::Directory(directory) => directory.create(&key, record).await,
            Form::Namespace(store) => store.create(&key, record).await,
        }
    }

    /// Replaces an object if it is still of the resource version that `record` names, and returns it as it now stands.
    ///
    /// Uid and creation time stay. An object that is the same already is not written.
    ///
    /// # Errors
    ///
    /// [`StoreError::Conflict`], [`StoreError::NotFound`], or as [`Self::find`].
    pub async fn update<R: Record>(&self, record: &R) -> Result<R, StoreError> {
        let key = self.key::<R>(record.name())?;
        match &self.form {
            Form::Directory(directory) => directory.update(&key, record).await,
            Form::Namespace(store) => store.update(&key, record).await,
        }
    }

    /// Creates an object, or brings it to what `record` says, whatever its resource version; uid and creation time stay.
    ///
    /// In a directory this replaces the object. At an API server it is a server-side apply, forced: fields that others
    /// manage stay as they are, and what this manager applied before and `record` no longer has goes. Writes only on
    /// difference.
    ///
    /// # Errors
    ///
    /// As [`Self::find`]; a file that cannot be understood is not replaced.
    pub async fn apply<R: Record>(&self, record: &R) -> Result<Applied, StoreError> {
        let key = self.key::<R>(record.name())?;
        match &self.form {
            Form::Directory(directory) => directory.apply(&key, record).await,
            Form::Namespace(store) => store.apply(&key, record).await,
        }
    }

    /// Sets an annotation of an object, or takes it away, and leaves all the rest to whom it belongs.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], or as [`Self::find`].
    pub async fn annotate<R: Record>(
        &self,
        name: &str,
        annotation: &str,
        value: Option<&str>,
    ) -> Result<(), StoreError> {
        let key = self.key::<R>(name)?;
        match &self.form {
            Form::Directory(directory) => directory.annotate::<R>(&key, annotation, value).await,
            Form::Namespace(store) => store.annotate::<R>(&key, annotation, value).await,
        }
    }

    /// Deletes an object, understood or not; `false` if it was not there.
    ///
    /// # Errors
    ///
    /// As [`Self::find`], but for [`StoreError::Unreadable`].
    pub async fn delete<R: Record>(&self, name: &str) -> Result<bool, StoreError> {
        let key = self.key::<R>(name)?;
        match &self.form {
            Form::Directory(directory) => directory.delete::<R>(&key).await,
            Form::Namespace(store) => store.delete::<R>(&key).await,
        }
    }

    /// Watches all objects of `kinds`. Needs a Tokio runtime.
    ///
    /// To miss nothing, watch first and list then.
    pub fn watch(&self, kinds: &'static [Resource]) -> Watch {
        match &self.form {
            Form::Directory(directory) => Watch::of_directory(directory.watch(kinds)),
            Form::Namespace(store) => Watch::of_server(store.watch(kinds)),
        }
    }

    /// Returns the way to objects of a kind without namespaces at the API server that has the records; `None` if a directory
    /// has them.
    pub fn cluster_wide(&self, resource: Resource) -> Option<ClusterWide> {
        match &self.form {
            Form::Directory(_) => None,
            Form::Namespace(store) => Some(store.cluster_wide(resource)),
        }
    }

    /// Tells in words since when listings are not up to date, because the API server cannot be followed; `None` if they are.
    ///
    /// The text stays the same while the outage and its cause do. A directory that is away gives no listing at all.
    pub fn outage(&self) -> Option<String> {
        match &self.form {
            Form::Directory(_) => None,
            Form::Namespace(store) => store.outage(),
        }
    }

    fn key<R: Record>(&self, name: &str) -> Result<Key, StoreError> {
        match &self.form {
            Form::Directory(_) => Key::of::<R>("", name),
            Form::Namespace(store) => Key::of::<R>(store.namespace_of(R::RESOURCE).unwrap_or_default(), name),
        }
    }
}
