//! A network namespace by name: commands and threads inside it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::command::{run, run_with_input};

/// Where `ip netns` keeps its namespaces.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A named network namespace. It does not end with this value; the lab removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
    path: PathBuf,
}

impl Namespace {
    /// Names a namespace that exists or is about to.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { path: PathBuf::from(DIRECTORY).join(&name), name }
    }

    /// Names a namespace that `ip netns` does not know, by a file that stands for it.
    pub(crate) fn at(name: impl Into<String>, path: PathBuf) -> Self {
        Self { name: name.into(), path }
    }

    /// Returns the name, as `ip netns` takes it if it knows the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a command that will run inside; it replaces the helper that enters, so its process id is its own.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a command line inside, split at spaces, and returns its standard output.
    pub fn run(&self, command_line: &str) -> Result<String> {
        let mut words = command_line.split_whitespace();
        run(self.command(words.next().context("empty command line")?).args(words))
    }

    /// Runs lines of `ip` commands inside, without the word `ip`.
    pub fn ip(&self, lines: &str) -> Result<()> {
        run_with_input(self.command("ip").args(["-batch", "-"]), lines)?;
        Ok(())
    }

    /// Loads an nftables script inside.
    pub fn nft(&self, script: &str) -> Result<()> {
        run_with_input(self.command("nft").args(["-f", "-"]), script)?;
        Ok(())
    }

    /// Sets a variable below `/proc/sys`, named with slashes.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{name}");
        self.enter(|| fs::write(&path, value).with_context(|| format!("cannot write {path}")))
    }

    /// Does `work` in a thread inside and waits for it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.join()?;
                work()
            });
            thread.join().expect("the thread's work does not panic")
        })
    }

    fn join(&self) -> Result<()> {
        let file = File::open(self.path()).with_context(|| format!("no network namespace {}", self.name))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {} (root is needed)", self.name))
    }
}
