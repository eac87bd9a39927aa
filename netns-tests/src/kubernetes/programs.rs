//! The one binary with every program of Kubernetes: where it is, whether it is up to date, and how it is built.
//!
//! It is built from `netns-tests/kubernetes` into `target/kubernetes` and named after the hash of those sources, so an
//! unchanged tree builds it once.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::command::run;
use crate::lab::names_in;

/// The beginning of the binary's name.
const NAME: &str = "culvert-kubernetes-";

/// What a lab runs of the machine's own programs, and the Debian packages that have them.
const NEEDED: [(&str, &str); 11] = [
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("busybox", "busybox-static"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("runc", "runc"),
    ("tar", "tar"),
];

/// The built binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    binary: PathBuf,
}

impl Programs {
    /// Names a binary that was built before.
    pub(crate) fn at(binary: PathBuf) -> Self {
        Self { binary }
    }

    /// Finds the binary for the sources as they are, or builds it, which takes minutes and is said on standard error.
    ///
    /// # Errors
    ///
    /// There is no Go, or the build failed: the error has the compiler's words.
    pub fn built() -> Result<Self> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes");
        let directory = target_directory()?.join("kubernetes");
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let lock = File::create(directory.join("lock"))?;
        // Whoever comes second finds the binary of whoever came first.
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        let binary = directory.join(format!("{NAME}{}", hash_of(&sources)?));
        if !binary.is_file() {
            build(&sources, &binary)?;
            remove_older(&directory, &binary)?;
        }
        Ok(Self { binary })
    }

    /// Returns the path of the binary.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Returns the words with which a shell or an `exec` starts one of its programs.
    pub(crate) fn words(&self, program: &str) -> [String; 2] {
        [self.binary.display().to_string(), program.to_owned()]
    }

    /// Returns a command for one of its programs, such as `kubectl`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg(program);
        command
    }
}

/// Tells which of the machine's own programs are missing.
///
/// # Errors
///
/// Names the Debian packages that have them.
pub(crate) fn check_needed() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    let mut missing: Vec<&str> =
        NEEDED.iter().filter(|(program, _)| !there(program)).map(|(_, package)| *package).collect();
    missing.dedup();
    if !missing.is_empty() {
        bail!("a Kubernetes lab needs more of the system: run `cargo xtask packages` for {}", missing.join(", "));
    }
    Ok(())
}

fn build(sources: &Path, binary: &Path) -> Result<()> {
    let program = go_program();
    run(Command::new(program).arg("version")).context(
        "Kubernetes is built from source, which needs Go 1.21 or newer (it fetches the release that it wants): get it \
         from https://go.dev/dl",
    )?;
    let mut stderr = std::io::stderr();
    // Not by `eprintln!`: a test would keep it to itself until it is over.
    writeln!(
        stderr,
        "Building Kubernetes once, from {} into {}: some ten minutes of processor time, and a download of 150 MB \
         unless Go has it already.",
        sources.display(),
        binary.display()
    )?;
    let go_mod = fs::read_to_string(sources.join("go.mod"))?;
    let version = kubernetes_version(&go_mod)?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let package = "k8s.io/component-base/version";
    let flags =
        format!("-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}");
    let unfinished = binary.with_extension("new");
    let mut go = Command::new(program);
    go.current_dir(sources).env("CGO_ENABLED", "0");
    run(go.args(["build", "-mod=readonly", "-trimpath", "-ldflags", &flags, "-o"]).arg(&unfinished).arg("."))?;
    fs::rename(unfinished, binary)?;
    writeln!(stderr, "Kubernetes {version} is built.")?;
    Ok(())
}

/// Returns Go as it is found, or where its own installer puts it, which need not be in the path.
fn go_program() -> &'static str {
    const INSTALLED: &str = "/usr/local/go/bin/go";
    let is_found = run(Command::new("go").arg("version")).is_ok();
    if !is_found && Path::new(INSTALLED).is_file() { INSTALLED } else { "go" }
}

fn remove_older(directory: &Path, binary: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(NAME) && entry.path() != binary {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Returns the version in the line `k8s.io/kubernetes v…` of a `go.mod`.
fn kubernetes_version(go_mod: &str) -> Result<&str> {
    let version = go_mod.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    version.map(str::trim).context("go.mod does not require k8s.io/kubernetes")
}

/// Returns a hash of the names and the contents of a Go module's files. It has one folder.
fn hash_of(module: &Path) -> Result<String> {
    let read = |name: &String| -> Result<(String, Vec<u8>)> {
        let path = module.join(name);
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((name.clone(), content))
    };
    let names = names_in(module)?;
    let files: Result<Vec<_>> = names.iter().filter(|name| is_source(name)).map(read).collect();
    Ok(hash(files?))
}

/// Tells whether a file takes part in a build: a binary that somebody built there by hand does not.
fn is_source(name: &str) -> bool {
    name == "go.mod" || name == "go.sum" || name.ends_with(".go")
}

fn hash(mut files: Vec<(String, Vec<u8>)>) -> String {
    files.sort();
    let mut hasher = Sha256::new();
    for (name, content) in &files {
        for part in [name.as_bytes(), content] {
            hasher.update(part.len().to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Returns where cargo puts what it builds: this executable is in `debug` or `release` there, or in `deps` below.
fn target_directory() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("this executable has no path")?;
    let mut directories = executable.ancestors().skip(1);
    let profile = directories.find(|directory| !directory.ends_with("deps"));
    let target = profile.and_then(Path::parent).context("this executable is not where cargo builds")?;
    Ok(target.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_go_mod() {
        let go_mod = "module x\n\nrequire (\n\tk8s.io/kubectl v0.37.2\n\tk8s.io/kubernetes v1.37.2\n)\n";
        assert_eq!(kubernetes_version(go_mod).unwrap(), "v1.37.2");
        assert!(kubernetes_version("module x").is_err());
    }

    #[test]
    fn the_hash_knows_names_and_contents_and_no_order() {
        let file = |name: &str, content: &str| (name.to_owned(), content.as_bytes().to_vec());
        let both = hash(vec![file("a", "1"), file("b", "2")]);
        assert_eq!(both, hash(vec![file("b", "2"), file("a", "1")]));
        assert_ne!(both, hash(vec![file("a", "2"), file("b", "1")]));
        assert_ne!(both, hash(vec![file("a", "1b"), file("", "2")]));
    }
}
