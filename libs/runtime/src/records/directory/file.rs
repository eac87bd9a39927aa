//! One object in one file: which files count, how they are read, and how they are replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_api::Record;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use nix::libc::O_NONBLOCK;
use serde_yaml_ng::Deserializer;
use sha2::{Digest as _, Sha256};

use crate::records::error::{Place, Problem, ReadError, StoreError};
use crate::records::key::is_object_name;

/// What the names of files that hold objects end in.
pub(super) const EXTENSIONS: [&str; 2] = ["yaml", "yml"];
/// In bytes; what a Kubernetes API server takes is of this size.
const MAX_FILE: u64 = 1 << 20;
const TEMPORARY: &str = ".tmp";
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Tells whether the file's last change is at least `age` before `now`.
    pub(super) fn is_older_than(&self, age: Duration, now: SystemTime) -> bool {
        let changed = u64::try_from(self.changed.0).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(changed);
        // A second more for the nanoseconds left off.
        now.duration_since(changed).is_ok_and(|passed| passed >= age + Duration::from_secs(1))
    }
}

/// A file that was there when it was opened.
pub(super) struct Opened {
    file: File,
    pub(super) stamp: Stamp,
}

/// What lies in a directory, but for names that begin with a dot.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) is_directory: bool,
    /// By its name.
    pub(super) holds_object: bool,
}

/// Returns what lies in `directory`; one that is not there has nothing.
pub(super) fn entries(directory: &Path) -> io::Result<Vec<Entry>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        let holds_object = extension.is_some_and(|extension| EXTENSIONS.contains(&extension));
        // What a link leads to counts.
        let is_directory = match entry.file_type() {
            Ok(kind) if kind.is_symlink() => entry.path().is_dir(),
            Ok(kind) => kind.is_dir(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        found.push(Entry { name, is_directory, holds_object });
    }
    Ok(found)
}

/// What a file must say of its namespace.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted<'a> {
    /// Whatever it likes.
    Any,
    /// Nothing: the kind has no namespaces.
    None,
    /// This one, or nothing, which stands for it.
    This(&'a str),
}

/// Opens a file that should hold an object; `None` if it is not there.
pub(super) fn open(path: &Path) -> Result<Option<Opened>, ReadError> {
    // A pipe that somebody put here must not block.
    let file = match OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(ReadError::Problem(Problem::of(path, "permission denied: let this process read it")));
        }
        Err(error) => return Err(ReadError::Io(error)),
    };
    let metadata = file.metadata().map_err(ReadError::Io)?;
    if !metadata.is_file() {
        return Err(ReadError::Problem(Problem::of(path, "it is no regular file: remove it")));
    }
    let stamp = Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    Ok(Some(Opened { file, stamp }))
}

impl Opened {
    /// Reads the file, opened at `path`, as an object.
    pub(super) fn parse<R: Record>(self, path: &Path, wanted: Wanted<'_>) -> Result<R, ReadError> {
        let (bytes, modified) = self.read(path)?;
        parse(path, wanted, &bytes, modified).map_err(ReadError::Problem)
    }

    /// As [`Self::parse`]; `known` is what it held with the same stamp, which it mostly still does.
    pub(super) fn parse_unless_known<R: Record>(
        self,
        path: &Path,
        wanted: Wanted<'_>,
        known: Option<&Arc<R>>,
    ) -> Result<Arc<R>, ReadError> {
        let (bytes, modified) = self.read(path)?;
        match known.filter(|known| known.metadata().resource_version.as_deref() == Some(&version(&bytes))) {
            Some(known) => Ok(known.clone()),
            None => parse(path, wanted, &bytes, modified).map(Arc::new).map_err(ReadError::Problem),
        }
    }

    /// Returns the content, and when it was changed last.
    fn read(self, path: &Path) -> Result<(Vec<u8>, Timestamp), ReadError> {
        let mut bytes = Vec::new();
        self.file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(ReadError::Io)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(ReadError::Problem(Problem::of(path, "it is larger than 1 MiB, which no object is")));
        }
        Ok((bytes, Timestamp::from_second(self.stamp.modified.0).unwrap_or(Timestamp::UNIX_EPOCH)))
    }
}

/// Reads the content of the file at `path` as an object; `modified` is its creation time if it names none.
pub(super) fn parse<R: Record>(
    path: &Path,
    wanted: Wanted<'_>,
    bytes: &[u8],
    modified: Timestamp,
) -> Result<R, Problem> {
    let mut record: R = serde_path_to_error::deserialize(Deserializer::from_slice(bytes))
        .map_err(|error| syntax_problem(path, error))?;
    let expected_name = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    let checks = [
        ("apiVersion", record.api_version(), R::API_VERSION, "this directory is for"),
        ("kind", record.kind(), R::KIND, "this directory is for"),
        ("metadata.name", record.name(), expected_name.as_ref(), "this file is for"),
    ];
    for (field, actual, expected, place) in checks {
        if actual != expected {
            let line = bytes
                .split(|byte| *byte == b'\n')
                .position(|line| line.strip_prefix(field.as_bytes()).is_some_and(|rest| rest.starts_with(b":")));
            return Err(Problem {
                place: Place::File(path.to_owned()),
                line: line.map(|index| index + 1),
                field: Some(field.to_owned()),
                message: format!("{actual:?}, but {place} {expected:?}"),
            });
        }
    }
    if !is_object_name(record.name()) {
        return Err(Problem {
            field: Some("metadata.name".to_owned()),
            ..Problem::of(path, "no DNS subdomain of at most 250 characters: use a-z, 0-9, '-' and '.'")
        });
    }
    let namespace = record.namespace();
    let remedy = match wanted {
        Wanted::This(wanted) if namespace != wanted && !namespace.is_empty() => {
            Some(format!("but this directory is for {wanted:?}"))
        }
        Wanted::None if !namespace.is_empty() => Some("but the kind has no namespaces: leave it out".to_owned()),
        Wanted::Any | Wanted::None | Wanted::This(_) => None,
    };
    if let Some(remedy) = remedy {
        let message = format!("{namespace:?}, {remedy}");
        return Err(Problem { field: Some("metadata.namespace".to_owned()), ..Problem::of(path, &message) });
    }
    let metadata = record.metadata_mut();
    if let Wanted::This(namespace) = wanted {
        metadata.namespace = Some(namespace.to_owned());
    }
    metadata.creation_timestamp.get_or_insert(Time(modified));
    metadata.resource_version = Some(version(bytes));
    Ok(record)
}

fn syntax_problem(path: &Path, error: serde_path_to_error::Error<serde_yaml_ng::Error>) -> Problem {
    let field = Some(error.path().to_string()).filter(|field| field != ".");
    let error = error.into_inner();
    let mut message = error.to_string();
    let location = error.location();
    if let Some(location) = &location {
        let suffix = format!(" at line {} column {}", location.line(), location.column());
        message = message.replace(&suffix, "");
    }
    if let Some(rest) = field.as_ref().and_then(|field| message.strip_prefix(field)?.strip_prefix(": ")) {
        message = rest.to_owned();
    }
    // An error of several lines quotes the file.
    let message = message.replace('\n', " ");
    Problem { place: Place::File(path.to_owned()), line: location.map(|location| location.line()), field, message }
}

fn version(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the content of the file for `record`.
pub(super) fn render<R: Record>(path: &Path, record: &R) -> Result<String, StoreError> {
    let mut record = record.clone();
    record.metadata_mut().resource_version = None;
    serde_yaml_ng::to_string(&record)
        .map_err(|error| StoreError::Unreadable { problem: Problem::of(path, &error.to_string()) })
}

/// Tells whether a record says anything of its status.
pub(super) fn has_status<R: Record>(record: &R) -> bool {
    serde_json::to_value(record).is_ok_and(|value| value.get("status").is_some_and(|status| !status.is_null()))
}

/// Returns `record` with the status of `other`; `path` is where it lies.
pub(super) fn with_status<R: Record>(path: &Path, record: &R, other: &R) -> Result<R, StoreError> {
    let mixed = || {
        let (mut record, mut other) = (serde_json::to_value(record)?, serde_json::to_value(other)?);
        if let serde_json::Value::Object(fields) = &mut record {
            fields.insert("status".to_owned(), other["status"].take());
        }
        serde_json::from_value(record)
    };
    mixed()
        .map_err(|error: serde_json::Error| StoreError::Unreadable { problem: Problem::of(path, &error.to_string()) })
}

/// Returns a new uid.
pub(super) fn random_uid() -> Result<String, StoreError> {
    let uid = fs::read_to_string(RANDOM_UUID)
        .map_err(|source| StoreError::Io { file: PathBuf::from(RANDOM_UUID), source })?;
    Ok(uid.trim_end().to_owned())
}

/// Removes a file; `false` if it was not there.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Replaces the file at `path` in `directory` of `root`, whole and lastingly; the caller holds the lock.
pub(super) fn replace(root: &Path, directory: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    // One by one below the root, which is never made.
    let missing: Vec<&Path> = directory.ancestors().take_while(|above| *above != root).collect();
    for made in missing.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o755).create(made) {
            Ok(()) => sync_directory(made.parent().unwrap_or(root))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    let temporary = directory.join(TEMPORARY);
    // Left by a writer that was killed: it holds no lock now.
    remove(&temporary)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
    let renamed = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = renamed {
        // The first error is the one to report; what stays is removed by the next writer.
        let _ = remove(&temporary);
        return Err(error);
    }
    sync_directory(directory)
}

/// Makes the names in a directory last.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
