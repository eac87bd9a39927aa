//! Builds the lab of Kubernetes clusters and hands it its arguments.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::{cargo, need_root, packages, succeed, target_directory};

/// Runs the lab; `args` are its own: `up`, `down`, `status`, `load` or `kubeconfig`, and their flags.
pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    need_root("lab")?;
    packages::install(packages::Purpose::Kubernetes)?;
    // Standard output is for the lab's own words: `$(cargo xtask lab kubeconfig east)`. Cargo writes none there.
    succeed(&mut cargo(["build", "--release", "--bin", "kubernetes-lab", "--package", "culvert-netns-tests"]))?;
    succeed(Command::new(target_directory()?.join("release/kubernetes-lab")).args(args))
}
