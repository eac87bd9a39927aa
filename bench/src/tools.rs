//! Finds the programs to compare with: on the PATH, else among those that an earlier run built, else builds them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use culvert_netns_tests::run;
use serde::Serialize;

use crate::candidate::Candidate;

/// A program that makes WireGuard devices.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Tool {
    pub(crate) path: PathBuf,
    /// What it says of itself.
    pub(crate) version: String,
    #[serde(skip)]
    pub(crate) arguments: &'static [&'static str],
}

impl Tool {
    /// Returns the program of a candidate, which may take minutes to build, or nothing where the candidate has none.
    ///
    /// # Errors
    ///
    /// It is not there and cannot be built.
    pub(crate) fn of(candidate: Candidate) -> Result<Option<Self>> {
        match candidate {
            Candidate::Raw | Candidate::Vxlan | Candidate::CulvertVxlan | Candidate::CulvertWireguard => Ok(None),
            Candidate::WireguardGo => {
                let build = |directory: &Path| {
                    let mut command = Command::new("go");
                    command.args(["install", "golang.zx2c4.com/wireguard@latest"]);
                    command.env("GOBIN", directory.join("bin"));
                    command
                };
                Self::found("wireguard", build, &["--foreground"]).map(Some)
            }
            Candidate::BoringtunCli => {
                let build = |directory: &Path| {
                    let mut command = Command::new("cargo");
                    command.args(["install", "--locked", "boringtun-cli", "--root"]).arg(directory);
                    command
                };
                // Of its numbers of threads, one is the fastest on two cores.
                let arguments = &["--foreground", "--disable-drop-privileges", "--threads", "1"];
                Self::found("boringtun-cli", build, arguments).map(Some)
            }
        }
    }

    fn found(name: &str, build: impl FnOnce(&Path) -> Command, arguments: &'static [&'static str]) -> Result<Self> {
        if on_path("wg").is_none() {
            bail!("{name} is set up by `wg`, which is missing: install wireguard-tools");
        }
        let path = match on_path(name).or_else(|| on_path(other_name(name))) {
            Some(path) => path,
            None => built(name, build)?,
        };
        let output = Command::new(&path).arg("--version").output();
        let output = output.with_context(|| format!("cannot start {}", path.display()))?;
        let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        Ok(Self { path, version, arguments })
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|candidate| candidate.is_file())
}

/// Returns the program from the target directory, built if need be.
fn built(name: &str, build: impl FnOnce(&Path) -> Command) -> Result<PathBuf> {
    let executable = env::current_exe().context("this executable has no path")?;
    let target = executable.ancestors().nth(2).context("this executable is in no target directory")?;
    let directory = target.join("bench-tools");
    let path = directory.join("bin").join(name);
    if !path.is_file() {
        let mut command = build(&directory);
        eprintln!("Building {name} into {}.", directory.display());
        run(&mut command).with_context(|| format!("{name} is not on the PATH and cannot be built"))?;
    }
    Ok(path)
}
/// Returns what Debian calls the program that Go names after its module.
fn other_name(name: &str) -> &str {
    if name == "wireguard" { "wireguard-go" } else { name }
}
