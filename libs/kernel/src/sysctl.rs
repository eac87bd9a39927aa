//! Where sysctls are: below `/proc/sys`, or where a container's manifest has mounted that of its node.
//!
//! In a container without privileges `/proc/sys` is read-only. The values of the network namespace are written all the
//! same, with CAP_NET_ADMIN, if `/proc/sys/net` of the node is mounted elsewhere; a mount below `/proc` is refused.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The variable with the path that stands for `/proc/sys`.
const VARIABLE: &str = "CULVERT_PROC_SYS";

/// Reads a sysctl, such as `net/ipv4/ip_forward`.
pub(crate) fn read(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(file(path))?.trim().to_owned())
}

/// Sets a sysctl.
pub(crate) fn write(path: &str, value: &str) -> io::Result<()> {
    let written = fs::write(file(path), value);
    written.map_err(|error| if error.kind() == io::ErrorKind::ReadOnlyFilesystem { read_only() } else { error })
}

fn read_only() -> io::Error {
    let text = format!("/proc/sys is read-only here: mount the node's /proc/sys/net, and name where in {VARIABLE}");
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, text)
}

fn file(path: &str) -> PathBuf {
    let root = env::var_os(VARIABLE).filter(|root| !root.is_empty());
    root.as_deref().map_or(Path::new("/proc/sys"), Path::new).join(path)
}
