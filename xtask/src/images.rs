//! Builds Culvert and packs it into a container image, without a container engine or a registry.

use std::fs;

use anyhow::{Context, Result};
use culvert_image::REFERENCE;

use crate::{BINARIES, cargo, packages, succeed, target_directory};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the image is called; push it under this name, and tell `culvert join` with `--image`.
    #[arg(long, default_value = REFERENCE)]
    reference: String,
}

/// Builds the release binaries and writes the archive to `target/images`.
///
/// # Errors
///
/// The build fails, or a program that the image carries is not on this machine.
pub(crate) fn run(args: &Args) -> Result<()> {
    packages::install(packages::Purpose::Images)?;
    succeed(cargo(["build", "--release", "--bins"]).args(BINARIES.iter().flat_map(|name| ["--package", name])))?;
    let target = target_directory()?;
    let directory = target.join("images");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let scratch = directory.join("scratch");
    let image = culvert_image::culvert(&args.reference, &target.join("release"), &scratch)?;
    let archive = image.write(&directory)?;
    fs::remove_dir_all(&scratch)?;
    println!("{}\n  docker load --input FILE, or ctr --namespace k8s.io images import FILE", archive.display());
    Ok(())
}
