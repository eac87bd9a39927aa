//! What can be wrong with a store, and with one object in it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("record store {} is away: {source}: mount or create the directory", root.display())]
    Away { root: PathBuf, source: io::Error },
    #[error("{kind} {name} exists already: update it, or delete it first")]
    Exists { kind: &'static str, name: String },
    #[error("{kind} {name} is not as it was read, or was not read: read it again")]
    Conflict { kind: &'static str, name: String },
    #[error("{kind} {name} is not there: create it first")]
    NotFound { kind: &'static str, name: String },
    #[error("{kind} name {name:?} is no DNS subdomain of at most 250 characters: use a-z, 0-9, '-' and '.'")]
    Name { kind: &'static str, name: String },
    #[error(
        "{kind} {name} cannot be in namespace {namespace:?}: {}",
        if *is_namespaced { "name one of at most 63 of a-z, 0-9 and '-'" } else { "the kind has none, so name none" }
    )]
    Namespace { kind: &'static str, name: String, namespace: String, is_namespaced: bool },
    #[error("{problem}: correct or remove it")]
    Unreadable { problem: Problem },
    #[error("cannot read or write {}: {source}", file.display())]
    Io { file: PathBuf, source: io::Error },
    #[error("cannot tell how to reach the API server: {cause}")]
    Access { cause: String },
    #[error("API server {server} does not answer: {cause}: see that it runs and that this node has a way to it")]
    Unreachable { server: String, cause: String },
    #[error(
        "API server {server}: {account} may not {verb} {resource} in {}: give it a role that may",
        namespace.as_ref().map_or("the whole cluster".to_owned(), |namespace| format!("namespace {namespace}"))
    )]
    Forbidden {
        server: String,
        account: Box<str>,
        verb: Box<str>,
        resource: Box<str>,
        /// `None` if it is about all namespaces, or a kind that has none.
        namespace: Option<Box<str>>,
    },
    #[error("API server {server} refuses to {verb} {object}: {cause}")]
    Refused { server: String, verb: &'static str, object: String, cause: String },
    #[error("{resource} of API server {server} are not read yet: {cause}")]
    Unread { server: String, resource: &'static str, cause: String },
}

impl StoreError {
    /// Tells whether the store is not there now, and may come back by itself.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Unreachable { .. } | Self::Unread { .. })
    }
}

/// An object that cannot be understood as one of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// In a file, from 1.
    pub line: Option<usize>,
    /// The path of the field, such as `spec.subnets[0]`.
    pub field: Option<String>,
    pub message: String,
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    File(PathBuf),
    /// At an API server, by `namespace/name`, or by `name` if it has no namespace.
    Object {
        kind: &'static str,
        path: Box<str>,
    },
}

impl Problem {
    pub(super) fn of(file: &Path, message: &str) -> Self {
        let place = Place::File(file.to_owned());
        Self { place, line: None, field: None, message: message.to_owned() }
    }

    /// Returns the name of the object; of a file, of the one that it would hold.
    ///
    /// Such an object must not be taken for deleted: it may be half written, or damaged for a while.
    pub fn name(&self) -> Option<&str> {
        match &self.place {
            Place::File(file) => file.file_stem()?.to_str(),
            Place::Object { path, .. } => path.split('/').next_back(),
        }
    }

    /// Returns the namespace of the object, in a listing of [`super::Objects`] of a kind that has namespaces. A file lies in
    /// the directory of its own.
    pub fn namespace(&self) -> Option<&str> {
        match &self.place {
            Place::File(file) => file.parent()?.file_name()?.to_str(),
            Place::Object { path, .. } => path.split_once('/').map(|(namespace, _)| namespace),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File(file) => write!(f, "{}", file.display())?,
            Place::Object { kind, path } => write!(f, "{kind} {path}")?,
        }
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why a file gave no object: what is wrong with it alone, or with the store.
#[derive(Debug)]
pub(super) enum ReadError {
    Problem(Problem),
    Io(io::Error),
}
