//! Objects of all namespaces, and those that have none.
//!
//! They are where [`super::Records`] are. In a directory an object is `<root>/<plural>/<namespace>/<name>.yaml`, or
//! `<root>/<plural>/<name>.yaml` if its kind has no namespaces; `metadata.namespace` may be left out. Everything else is as
//! there: the lock, the way of writing, the versions. Of an API server a kind is listed and watched in the whole cluster.
//!
//! There may be very many, most of them others': what is listed is held as the kind's Rust type from its arrival, with
//! nothing of the object beside, and a change that the type does not show rings no bell.

use std::sync::Arc;

use culvert_api::{Record, Resource};

use super::directory::{Directory, Layout};
use super::error::StoreError;
use super::key::Key;
use super::kube::{Scope, Store};
use super::{Applied, Listing, Location, Shared};
use crate::watch::Watch;

/// A store of objects of all namespaces. Clones share what they have read.
///
/// Each object is called by its namespace and name. The namespace of an object without one is empty.
#[derive(Clone, Debug)]
pub struct Objects {
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Directory(Directory),
    Server(Store),
}

impl Objects {
    /// Makes a handle on the objects at `location`, which may be away now and come back; a server's own namespace counts as
    /// any other.
    ///
    /// `manager` is the name under which this process applies fields at an API server; see [`Self::apply`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Access`] if the files that say how the API server is reached cannot be used. That it is not reached
    /// is no error.
    pub async fn at(location: &Location, manager: &str) -> Result<Self, StoreError> {
        let form = match location {
            Location::Directory(root) => Form::Directory(Directory::open(root, Layout::ByNamespace)),
            Location::Server(server) => Form::Server(Store::open(server, manager, Scope::All).await?),
        };
        Ok(Self { form })
    }

    /// Returns all objects of a kind, sorted by namespace and name; `metadata.namespace` is set.
    ///
    /// The first listing of a kind waits some seconds for an API server.
    ///
    /// # Errors
    ///
    /// A directory: [`StoreError::Away`] if the root is not there, [`StoreError::Io`] if a directory or file cannot be
    /// read. An API server: [`StoreError::Unread`] until it has answered once, as when it does not know the kind or does not
    /// let this account list it: other kinds go on. An object that cannot be understood is a [`super::Problem`] in the
    /// listing instead.
    pub async fn list<R: Record>(&self) -> Result<Listing<R>, StoreError> {
        Ok(self.list_shared().await?.cloned())
    }

    /// Returns all objects of a kind, as [`Self::list`], without a copy of them: there may be tens of thousands. An object
    /// that is the same allocation as in an earlier listing has not changed.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub async fn list_shared<R: Record>(&self) -> Result<Shared<R>, StoreError> {
        match &self.form {
            Form::Directory(directory) => directory.list().await.map(Arc::new),
            Form::Server(store) => store.list().await,
        }
    }

    /// Returns an object as it is now, or `None` if there is none. An API server is asked each time.
    ///
    /// # Errors
    ///
    /// [`StoreError::Name`], [`StoreError::Namespace`], [`StoreError::Unreadable`]; a directory: [`StoreError::Away`],
    /// [`StoreError::Io`]; an API server: [`StoreError::Unreachable`], [`StoreError::Forbidden`], [`StoreError::Refused`].
    pub async fn find<R: Record>(&self, namespace: &str, name: &str) -> Result<Option<R>, StoreError> {
        let key = Key::anywhere::<R>(namespace, name)?;
        match &self.form {
            Form::Directory(directory) => directory.find(&key).await,
            Form::Server(store) => store.find(&key).await,
        }
    }

    /// Creates an object in its namespace and returns it as it now stands, with uid, creation time and resource version.
    ///
    /// # Errors
    ///
    /// [`StoreError::Exists`], or as [`Self::find`]. That a server has no such namespace is [`StoreError::Refused`]; a
    /// directory makes it.
    pub async fn create<R: Record>(&self, record: &R) -> Result<R, StoreError> {
        let key = key_of(record)?;
        match &self.form {
            Form::Directory(directory) => directory.create(&key, record).await,
            Form::Server(store) => store.create(&key, record).await,
        }
    }

    /// Creates an object, or brings it to what `record` says, as [`super::Records::apply`] does; its status too, if `record`
    /// has one, or else the status stays as it is. Writes only on difference.
    ///
    /// # Errors
    ///
    /// As [`Self::create`], but for [`StoreError::Exists`]; a file that cannot be understood is not replaced.
    pub async fn apply<R: Record>(&self, record: &R) -> Result<Applied, StoreError> {
        let key = key_of(record)?;
        match &self.form {
            Form::Directory(directory) => directory.apply(&key, record).await,
            Form::Server(store) => store.apply(&key, record).await,
        }
    }

    /// Brings an object's `status` to what `record` says, and leaves all the rest to whom it belongs. Writes only on
    /// difference.
    ///
    /// If `record` has a uid, it is the status of that object alone, and not of another that has its name since.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], [`StoreError::Conflict`] if it is another object, or as [`Self::find`].
    pub async fn apply_status<R: Record>(&self, record: &R) -> Result<Applied, StoreError> {
        let key = key_of(record)?;
        match &self.form {
            Form::Directory(directory) => directory.apply_status(&key, record).await,
            Form::Server(store) => store.apply_status(&key, record).await,
        }
    }

    /// Deletes an object, understood or not; `false` if it was not there.
    ///
    /// # Errors
    ///
    /// As [`Self::find`], but for [`StoreError::Unreadable`].
    pub async fn delete<R: Record>(&self, namespace: &str, name: &str) -> Result<bool, StoreError> {
        let key = Key::anywhere::<R>(namespace, name)?;
        match &self.form {
            Form::Directory(directory) => directory.delete::<R>(&key).await,
            Form::Server(store) => store.delete::<R>(&key).await,
        }
    }

    /// Watches all objects of `kinds`. Needs a Tokio runtime.
    ///
    /// To miss nothing, watch first and list then; and soon, because only a listing tells what the objects are to be held
    /// as.
    pub fn watch(&self, kinds: &'static [Resource]) -> Watch {
        match &self.form {
            Form::Directory(directory) => Watch::of_directory(directory.watch(kinds)),
            Form::Server(store) => Watch::of_server(store.watch(kinds)),
        }
    }

    /// Tells in words since when listings are not up to date, because the API server cannot be followed; `None` if they are.
    ///
    /// The text stays the same while the outage and its cause do. A directory that is away gives no listing at all.
    pub fn outage(&self) -> Option<String> {
        match &self.form {
            Form::Directory(_) => None,
            Form::Server(store) => store.outage(),
        }
    }
}

fn key_of<R: Record>(record: &R) -> Result<Key, StoreError> {
    Key::anywhere::<R>(record.namespace(), record.name())
}
