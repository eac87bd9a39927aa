//! One lab of a kind at a time: labs share their names and addresses, and the machine has few cores.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

/// Waits until no other process holds the lock in this directory, and holds it while the value lives.
///
/// `kind` is what there is one of, "a lab of network namespaces".
///
/// # Errors
///
/// Not root, or the directory cannot be made.
pub(crate) fn lock(directory: &str, kind: &str) -> Result<Flock<File>> {
    if !geteuid().is_root() {
        bail!("{kind} needs root: run the same command as root");
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot make {directory}"))?;
    let failed = || format!("cannot lock {directory}");
    let file = File::create(Path::new(directory).join("lock")).with_context(failed)?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, error)) => return Err(error).with_context(failed),
    };
    eprintln!("There is {kind} on this machine already: waiting until it is removed.");
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).with_context(failed)
}
