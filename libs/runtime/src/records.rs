//! The record store: Kubernetes objects, in a directory or in one namespace of an API server.
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

use culvert_api::{Record, Resource};

use crate::watch::Watch;

pub(crate) mod directory;
mod error;
pub(crate) mod kube;

use directory::Directory;
pub use error::{Place, Problem, StoreError};
use kube::Namespace;
pub use kube::{Access, Choice, ClusterWide, Server};

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
    Namespace(Namespace),
}

/// All objects of a kind, and those that cannot be understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing<R> {
    /// Sorted by name.
    pub records: Vec<R>,
    /// Such an object is neither there nor gone: see [`Problem::name`].
    pub problems: Vec<Problem>,
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
        Self { form: Form::Directory(Directory::open(root)) }
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
            Location::Server(server) => Self { form: Form::Namespace(Namespace::open(server, manager).await?) },
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
        match &self.form {
            Form::Directory(directory) => directory.list().await,
            Form::Namespace(namespace) => namespace.list().await,
        }
    }

    /// Returns the object called `name` as it is now, or `None` if there is none. An API server is asked each time.
    ///
    /// # Errors
    ///
    /// [`StoreError::Name`], [`StoreError::Unreadable`]; a directory: [`StoreError::Away`], [`StoreError::Io`]; an API
    /// server: [`StoreError::Unreachable`], [`StoreError::Forbidden`], [`StoreError::Refused`].
    pub async fn find<R: Record>(&self, name: &str) -> Result<Option<R>, StoreError> {
        check_name::<R>(name)?;
        match &self.form {
            Form::Directory(directory) => directory.find(name).await,
            Form::Namespace(namespace) => namespace.find(name).await,
        }
    }

    /// Creates an object and returns it as it now stands, with uid, creation time and resource version.
    ///
    /// # Errors
    ///
    /// [`StoreError::Exists`], or as [`Self::find`].
    pub async fn create<R: Record>(&self, record: &R) -> Result<R, StoreError> {
        check_name::<R>(record.name())?;
        match &self.form {
            Form::Directory(directory) => directory.create(record).await,
            Form::Namespace(namespace) => namespace.create(record).await,
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
        check_name::<R>(record.name())?;
        match &self.form {
            Form::Directory(directory) => directory.update(record).await,
            Form::Namespace(namespace) => namespace.update(record).await,
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
        check_name::<R>(record.name())?;
        match &self.form {
            Form::Directory(directory) => directory.apply(record).await,
            Form::Namespace(namespace) => namespace.apply(record).await,
        }
    }

    /// Deletes an object, understood or not; `false` if it was not there.
    ///
    /// # Errors
    ///
    /// As [`Self::find`], but for [`StoreError::Unreadable`].
    pub async fn delete<R: Record>(&self, name: &str) -> Result<bool, StoreError> {
        check_name::<R>(name)?;
        match &self.form {
            Form::Directory(directory) => directory.delete::<R>(name).await,
            Form::Namespace(namespace) => namespace.delete::<R>(name).await,
        }
    }

    /// Watches all objects of `kinds`. Needs a Tokio runtime.
    ///
    /// To miss nothing, watch first and list then.
    pub fn watch(&self, kinds: &'static [Resource]) -> Watch {
        match &self.form {
            Form::Directory(directory) => Watch::of_directory(directory.watch(kinds)),
            Form::Namespace(namespace) => Watch::of_namespace(namespace.watch(kinds)),
        }
    }

    /// Returns the way to objects of a kind without namespaces at the API server that has the records; `None` if a directory
    /// has them.
    pub fn cluster_wide(&self, resource: Resource) -> Option<ClusterWide> {
        match &self.form {
            Form::Directory(_) => None,
            Form::Namespace(namespace) => Some(namespace.cluster_wide(resource)),
        }
    }

    /// Tells in words since when listings are not up to date, because the API server cannot be followed; `None` if they are.
    ///
    /// The text stays the same while the outage and its cause do. A directory that is away gives no listing at all.
    pub fn outage(&self) -> Option<String> {
        match &self.form {
            Form::Directory(_) => None,
            Form::Namespace(namespace) => namespace.outage(),
        }
    }
}

/// A file name takes 255 bytes.
const MAX_NAME: usize = 250;

/// Tells whether `name` is a DNS subdomain by Kubernetes' rule, and so no path to elsewhere.
fn is_object_name(name: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric)
            && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
    };
    name.len() <= MAX_NAME && name.split('.').all(label)
}

fn check_name<R: Record>(name: &str) -> Result<&str, StoreError> {
    if is_object_name(name) { Ok(name) } else { Err(StoreError::Name { kind: R::KIND, name: name.to_owned() }) }
}
