//! Reads and writes broker files (Submariner chapter 3.2): mode 0600, and an older file is kept under another name. Other
//! secret files are written here too.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::{Timestamp, Unit};

use crate::broker_info::{BrokerInfo, BrokerInfoError};

/// The file that `deploy-broker` writes into the working directory.
pub const BROKER_FILE: &str = "broker-info.subm";

/// Why a broker file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BrokerFileError {
    #[error("cannot read {}: name the file that `deploy-broker` wrote, or make it anew with `recover-broker-info`", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{} {reason}: copy it again from where `deploy-broker` wrote it, or make it anew with `recover-broker-info`",
        .path.display()
    )]
    Content { path: PathBuf, reason: BrokerInfoError },
    #[error("cannot write {}: choose a directory that you may write to", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Reads a broker file; `None` if there is none.
///
/// # Errors
///
/// It is there and cannot be read, or is no broker file.
pub fn read_if_there(path: &Path) -> Result<Option<BrokerInfo>, BrokerFileError> {
    match read(path) {
        Err(BrokerFileError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Reads a broker file.
///
/// # Errors
///
/// There is none, it cannot be read, or it is no broker file.
pub fn read(path: &Path) -> Result<BrokerInfo, BrokerFileError> {
    let error = |source| BrokerFileError::Read { path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(error)?;
    let text = String::from_utf8_lossy(&bytes);
    BrokerInfo::parse(&text).map_err(|reason| BrokerFileError::Content { path: path.to_owned(), reason })
}

/// Writes a broker file in one step; returns what an older one, if it differed, is called now.
///
/// # Errors
///
/// The directory cannot be written to; an older file is there still, under one of the two names.
pub fn write(path: &Path, info: &BrokerInfo, now: Timestamp) -> Result<Option<PathBuf>, BrokerFileError> {
    let error = |source| BrokerFileError::Write { path: path.to_owned(), source };
    let text = info.to_text();
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(None);
    }
    let unfinished = with_suffix(path, "new");
    write_secret(&unfinished, text.as_bytes()).map_err(error)?;
    let kept = keep_older(path, now).map_err(error)?;
    fs::rename(&unfinished, path).map_err(error)?;
    Ok(kept)
}

/// Replaces a file that its owner alone may read, whole or not at all.
pub(crate) fn replace_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = with_suffix(path, "new");
    write_secret(&unfinished, bytes)?;
    fs::rename(&unfinished, path)
}

fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // One left by a run that was killed may be readable to others.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn keep_older(path: &Path, now: Timestamp) -> io::Result<Option<PathBuf>> {
    if !path.try_exists()? {
        return Ok(None);
    }
    let time = now.round(Unit::Second).unwrap_or(now).to_string().replace(':', "_");
    let mut kept = with_suffix(path, &time);
    // Twice within a second.
    for number in 1.. {
        if !kept.try_exists()? {
            break;
        }
        kept = with_suffix(path, &format!("{time}_{number}"));
    }
    fs::rename(path, &kept)?;
    Ok(Some(kept))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn info(url: &str) -> BrokerInfo {
        BrokerInfo {
            url: url.to_owned(),
            namespace: "ns".to_owned(),
            token: b"token".to_vec().into(),
            ca: None,
            psk: b"psk".to_vec().into(),
            components: vec![],
            custom_domains: vec![],
        }
    }

    #[test]
    fn an_older_file_is_kept_and_only_the_owner_reads_the_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(BROKER_FILE);
        let now = "2026-08-01T10:20:30.7Z".parse().unwrap();
        assert_eq!(write(&path, &info("https://a"), now).unwrap(), None);
        assert_eq!(write(&path, &info("https://a"), now).unwrap(), None);
        let kept = directory.path().join("broker-info.subm.2026-08-01T10_20_31Z");
        assert_eq!(write(&path, &info("https://b"), now).unwrap(), Some(kept.clone()));
        let second = directory.path().join("broker-info.subm.2026-08-01T10_20_31Z_1");
        assert_eq!(write(&path, &info("https://c"), now).unwrap(), Some(second));
        assert_eq!(read(&kept).unwrap().url, "https://a");
        assert_eq!(read(&path).unwrap().url, "https://c");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn errors_name_the_file_and_the_way_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("b.subm");
        assert!(read_if_there(&path).unwrap().is_none());
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("b.subm") && error.contains("recover-broker-info"), "{error}");
        fs::write(&path, "eyJh").unwrap();
        let error = read_if_there(&path).unwrap_err().to_string();
        assert!(error.contains("b.subm is cut short: copy it again"), "{error}");
    }
}
