//! This gateway's secrets: the WireGuard key, which outlives the process but not the node, and the pre-shared key.
//!
//! The key lies on a file system in memory, readable by its owner only: a gateway that is killed and started again has
//! the key that its peers know and carries traffic at once, and no disk that is sold or copied has ever held it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use culvert_model::PublicKey;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use sha2::{Digest, Sha256};
use x25519_dalek::StaticSecret;

use crate::config::Psk;

/// The text whose hash Submariner takes where no key is configured (chapter 4.8).
const DEFAULT_PSK: &str = "default psk";
/// The magic number of ramfs, for which `nix` has no name.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("key file {path} cannot be used")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "key file {path} would lie on a disk that outlives the node: choose a path on a tmpfs with --key-file, or mount \
         one at {directory}"
    )]
    OnDisk { path: PathBuf, directory: PathBuf },
    #[error("key file {path} holds no key (base64 of 32 bytes): delete it, and a new one is made")]
    Format { path: PathBuf },
    #[error("key file {path} can be read by others (mode {mode:o}): delete it, and a new one is made")]
    Mode { path: PathBuf, mode: u32 },
    #[error("key file {path} belongs to user {owner}, who may know the key: delete it, and a new one is made")]
    Owner { path: PathBuf, owner: u32 },
    #[error("pre-shared key file {path} cannot be read")]
    Psk { path: PathBuf, source: io::Error },
    #[error("pre-shared key file {path} is empty: put the key of the clusterset in it, or leave --psk-file out")]
    PskEmpty { path: PathBuf },
}

/// The gateway's own key pair.
pub struct Identity {
    pub private_key: [u8; 32],
    pub public_key: PublicKey,
}

/// Reads the key at `path`, or makes it.
///
/// # Errors
///
/// [`KeyError`] names the file; a file that is there is never overwritten.
pub fn load(path: &Path) -> Result<Identity, KeyError> {
    let io_error = |source| KeyError::Io { path: path.to_owned(), source };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io_error)?;
    let kind = statfs(directory).map_err(|errno| io_error(errno.into()))?.filesystem_type();
    if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
        return Err(KeyError::OnDisk { path: path.to_owned(), directory: directory.to_owned() });
    }
    let private_key = match fs::File::open(path) {
        Ok(file) => read(path, file)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path).map_err(io_error)?,
        Err(error) => return Err(io_error(error)),
    };
    let public_key = PublicKey(*x25519_dalek::PublicKey::from(&StaticSecret::from(private_key)).as_bytes());
    Ok(Identity { private_key, public_key })
}

fn read(path: &Path, mut file: fs::File) -> Result<[u8; 32], KeyError> {
    let io_error = |source| KeyError::Io { path: path.to_owned(), source };
    let metadata = file.metadata().map_err(io_error)?;
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(KeyError::Owner { path: path.to_owned(), owner: metadata.uid() });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Mode { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|_| KeyError::Format { path: path.to_owned() })?;
    STANDARD
        .decode(text.trim())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| KeyError::Format { path: path.to_owned() })
}

/// Makes a key, whole or not at all: a crash leaves no half of one.
fn make(path: &Path) -> io::Result<[u8; 32]> {
    let private_key = StaticSecret::random().to_bytes();
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    // In a directory that others may write to, nobody's file or link is written through; ours is left by a crash.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    writeln!(file, "{}", STANDARD.encode(private_key))?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    Ok(private_key)
}

/// Returns the 32 bytes that every session is mixed with: the hash of the key's text (Submariner chapter 4.8).
///
/// # Errors
///
/// [`KeyError`] names a file that cannot be read.
pub fn preshared_key(psk: &Psk) -> Result<[u8; 32], KeyError> {
    let text = match psk {
        Psk::Text(text) => text.clone(),
        Psk::Default => DEFAULT_PSK.to_owned(),
        Psk::File(path) => {
            let text = fs::read_to_string(path).map_err(|source| KeyError::Psk { path: path.clone(), source })?;
            let text = text.trim().to_owned();
            if text.is_empty() {
                return Err(KeyError::PskEmpty { path: path.clone() });
            }
            text
        }
        Psk::Secret(path) => {
            let bytes = fs::read(path).map_err(|source| KeyError::Psk { path: path.clone(), source })?;
            if bytes.is_empty() {
                return Err(KeyError::PskEmpty { path: path.clone() });
            }
            STANDARD.encode(bytes)
        }
    };
    Ok(Sha256::digest(text).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory in memory.
    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").expect("a directory in memory")
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let directory = directory();
        let path = directory.path().join("culvert/wireguard.key");
        let first = load(&path).expect("a new key");
        let second = load(&path).expect("the same key");
        assert_eq!(first.private_key, second.private_key);
        assert_eq!(first.public_key, second.public_key);
        let mode = fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_disk_is_refused() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory on disk");
        assert!(matches!(load(&directory.path().join("key")), Err(KeyError::OnDisk { .. })));
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused_and_kept() {
        let directory = directory();
        let path = directory.path().join("key");
        fs::write(&path, "no key").expect("a file");
        assert!(matches!(load(&path), Err(KeyError::Mode { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
        assert!(matches!(load(&path), Err(KeyError::Format { .. })));
        assert_eq!(fs::read_to_string(&path).expect("the file"), "no key");
    }

    #[test]
    fn a_link_that_somebody_planted_is_not_written_through() {
        let directory = directory();
        let (path, victim) = (directory.path().join("wireguard.key"), directory.path().join("victim"));
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        std::os::unix::fs::symlink(&victim, &temporary).expect("a link");

        load(&path).expect("a new key");

        assert!(!victim.exists());
        assert!(fs::symlink_metadata(&path).expect("the key").is_file());
    }

    #[test]
    fn the_preshared_key_is_the_hash_of_the_text() {
        let directory = directory();
        let path = directory.path().join("psk");
        fs::write(&path, "c2VjcmV0\n").expect("a file");
        let from_file = preshared_key(&Psk::File(path)).expect("a key");
        assert_eq!(from_file, preshared_key(&Psk::Text("c2VjcmV0".to_owned())).expect("a key"));
        assert_ne!(from_file, preshared_key(&Psk::Default).expect("a key"));

        // The bytes of a Secret, as they are mounted.
        let secret = directory.path().join("secret");
        fs::write(&secret, "secret").expect("a file");
        assert_eq!(from_file, preshared_key(&Psk::Secret(secret)).expect("a key"));
    }

    #[test]
    fn a_missing_or_empty_preshared_key_is_an_error_with_its_name() {
        let directory = directory();
        let path = directory.path().join("psk");
        let missing = preshared_key(&Psk::File(path.clone())).expect_err("no file");
        assert!(missing.to_string().contains("psk"));
        fs::write(&path, "\n").expect("a file");
        assert!(matches!(preshared_key(&Psk::File(path)), Err(KeyError::PskEmpty { .. })));
    }
}
