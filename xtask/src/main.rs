//! Every chore of the project: `cargo xtask …`.

mod arrows;
mod bench;
mod images;
mod lab;
mod packages;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::packages::Purpose;

/// The packages whose binaries run on nodes.
const BINARIES: [&str; 4] = culvert_image::PROGRAMS;

/// Chores of the project.
#[derive(Parser)]
enum Chore {
    /// Joins two clusters made of network namespaces, or of Kubernetes, and shows it; needs root.
    Demo {
        /// What the demo itself takes: --kubernetes, --overlap, --keep, --json, --remove.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Measures the packets' way beside what it is compared with, the control plane, or Globalnet; needs root.
    Bench {
        /// Which bench, and what it takes: `path --rounds 3`, `control`, `globalnet`; `path --help` tells all.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Brings real Kubernetes clusters up on this machine, or takes them down; needs root.
    Lab {
        /// What the lab takes: up, down, status, load, kubeconfig; `up --help` tells all.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Makes the container image of Culvert, an archive for `docker load` and `ctr images import`.
    Images(images::Args),
    /// Runs every test there is, those in network namespaces too; needs root.
    Test {
        /// What `cargo test` takes: a part of tests' names, `-p`, `--`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Holds the level table of ARCHITECTURE.md against the crates' dependencies.
    Arrows,
    /// Writes the custom resource definitions again, from the types.
    Crds,
    /// Installs the system packages that the demo and the tests need; needs root if any is missing.
    Packages,
}

fn main() -> ExitCode {
    match run(Chore::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<()> {
    match chore {
        Chore::Demo { args } => demo(args),
        Chore::Bench { args } => bench::run(args),
        Chore::Lab { args } => lab::run(args),
        Chore::Images(args) => images::run(&args),
        Chore::Test { args } => test(args),
        Chore::Arrows => arrows::check(&root()),
        Chore::Crds => succeed(cargo(["test", "--package", "culvert-api", "crd"]).env("UPDATE_CRDS", "1")),
        Chore::Packages => packages::install(Purpose::Kubernetes),
    }
}

fn demo(args: Vec<OsString>) -> Result<()> {
    need_root("demo")?;
    if args.iter().any(|arg| arg == "--kubernetes") {
        packages::need_go()?;
        packages::install(Purpose::Kubernetes)?;
    } else {
        packages::install(Purpose::Namespaces)?;
    }
    let mut build = cargo(["build", "--release", "--bins", "--package", "culvert-netns-tests"]);
    succeed(build.args(BINARIES.iter().flat_map(|name| ["--package", name])))?;
    succeed(Command::new(target_directory()?.join("release/demo")).args(args))
}

fn test(args: Vec<OsString>) -> Result<()> {
    need_root("test")?;
    packages::install(Purpose::Kubernetes)?;
    succeed(cargo(["build", "--bins"]).args(BINARIES.iter().flat_map(|name| ["--package", name])))?;
    let scope = if args.iter().any(|arg| arg == "-p" || arg == "--package") { None } else { Some("--workspace") };
    succeed(cargo(["test"]).args(scope).args(args))
}

fn need_root(chore: &str) -> Result<()> {
    // The owner of /proc/self is the effective user.
    if fs::metadata("/proc/self")?.uid() != 0 {
        bail!("it makes network namespaces, so it needs root: run `cargo xtask {chore}` as root");
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace").to_owned()
}

fn target_directory() -> Result<PathBuf> {
    let metadata = metadata()?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target directory")?.into())
}

/// Returns what cargo knows of the workspace's own packages.
fn metadata() -> Result<serde_json::Value> {
    let output = cargo(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata wrote no JSON")
}

fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    Ok(())
}
