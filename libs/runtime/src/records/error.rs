//! What can be wrong with a store, and with one file in it.

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
    #[error("{problem}: correct or remove the file")]
    Unreadable { problem: Problem },
    #[error("cannot read or write {}: {source}", file.display())]
    Io { file: PathBuf, source: io::Error },
}

/// A file that holds no object of its directory's kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1.
    pub line: Option<usize>,
    /// The path of the field, such as `spec.subnets[0]`.
    pub field: Option<String>,
    pub message: String,
}

impl Problem {
    pub(super) fn of(file: &Path, message: &str) -> Self {
        Self { file: file.to_owned(), line: None, field: None, message: message.to_owned() }
    }

    /// Returns the name of the object that the file would hold.
    ///
    /// Such an object must not be taken for deleted: its file may be half written, or damaged for a while.
    pub fn name(&self) -> Option<&str> {
        self.file.file_stem()?.to_str()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
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
