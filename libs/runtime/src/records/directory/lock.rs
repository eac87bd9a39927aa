//! The lock that one writer of a store holds at a time, across processes. The kernel drops it with its process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::records::StoreError;

const FILE: &str = ".lock";
const RETRY: Duration = Duration::from_millis(2);
/// Writers hold the lock for milliseconds; one that was stopped must not stop the others' reconcile loops.
const PATIENCE: Duration = Duration::from_secs(5);

/// The lock, held until dropped.
#[derive(Debug)]
pub(super) struct Lock(Option<Flock<File>>);

impl Lock {
    /// Takes the lock of the store in `root`, waiting for up to 5 s.
    pub(super) async fn acquire(root: &Path) -> Result<Self, StoreError> {
        let path = root.join(FILE);
        let failed = |source| StoreError::Io { file: path.clone(), source };
        let mut options = OpenOptions::new();
        let opened = options.write(true).create(true).truncate(false).mode(0o644).open(&path);
        let mut file = match opened {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Away { root: root.to_owned(), source });
            }
            opened => opened.map_err(failed)?,
        };
        let start = Instant::now();
        loop {
            let errno;
            (file, errno) = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(flock) => return Ok(Self(Some(flock))),
                Err(refused) => refused,
            };
            if errno != Errno::EWOULDBLOCK && errno != Errno::EINTR {
                return Err(failed(errno.into()));
            }
            if start.elapsed() > PATIENCE {
                let reason = "another process has held the lock for 5 s: see who with `lslocks`";
                return Err(failed(io::Error::new(io::ErrorKind::TimedOut, reason)));
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // `Flock` panics when it cannot unlock in its own drop, as on a network file system that went away.
        if let Some(Err((flock, errno))) = self.0.take().map(Flock::unlock) {
            std::mem::forget(flock);
            tracing::warn!(%errno, "Record store lock cannot be released");
        }
    }
}
