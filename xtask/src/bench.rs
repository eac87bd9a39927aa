//! Builds what the bench measures, as it is released, and starts it.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::{BINARIES, cargo, need_root, packages, succeed, target_directory};

/// Runs a bench; `args` are its own: which one, and its flags.
pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    need_root("bench")?;
    // Real clusters stand under the control plane's bench; the others need namespaces only.
    let has_clusters = args.first().is_some_and(|bench| bench == "control");
    packages::install(if has_clusters { packages::Purpose::Kubernetes } else { packages::Purpose::Namespaces })?;
    let mut build = cargo(["build", "--release", "--bins", "--package", "culvert-bench"]);
    succeed(build.args(BINARIES.iter().flat_map(|name| ["--package", name])))?;
    succeed(Command::new(target_directory()?.join("release/culvert-bench")).args(args))
}
