//! One daemon process on a node, and where its binaries are.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;

use crate::wait::wait_for;

/// What a daemon does on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Gateway,
    Globalnet,
    RouteAgent,
}

impl Role {
    /// Returns the name of the binary, without `culvert-`, and of the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Globalnet => "globalnet",
            Self::RouteAgent => "route-agent",
        }
    }

    /// Returns what the daemon logs once its first pass is applied.
    fn ready_sentence(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway is ready",
            Self::Globalnet => "Globalnet is ready",
            Self::RouteAgent => "Route agent is ready",
        }
    }
}

/// The built binaries of the same profile as this executable.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Finds them beside this executable.
    ///
    /// # Errors
    ///
    /// One is not built; the error says how to build it.
    pub fn find() -> Result<Self> {
        let executable = std::env::current_exe().context("this executable has no path")?;
        let directory = executable.parent().context("an executable is in a directory")?;
        // Tests are built into `deps` below the binaries' directory.
        let directory = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
        for name in ["culvert-gateway", "culvert-globalnet", "culvert-route-agent", "culvert"] {
            let path = directory.join(name);
            if !path.is_file() {
                bail!(
                    "{} is not built: use `cargo xtask test`, or build it of the same profile: cargo build -p {name}",
                    path.display()
                );
            }
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Returns the path of a daemon.
    pub fn daemon(&self, role: Role) -> PathBuf {
        self.directory.join(format!("culvert-{}", role.as_str()))
    }

    /// Returns the path of the command line tool.
    pub fn tool(&self) -> PathBuf {
        self.directory.join("culvert")
    }
}

/// A daemon process. Dropping it does not end it: that is the lab's business.
pub struct Daemon {
    role: Role,
    child: Child,
    log: PathBuf,
    /// Where this process's part of the log begins, in bytes.
    log_start: u64,
}

impl Daemon {
    /// Starts a command as a daemon that appends to `log`.
    pub fn start(role: Role, mut command: Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        let log_start = file.metadata()?.len();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // An interrupt at the terminal is for the demo; the lab then ends its daemons itself.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", role.as_str()))?;
        Ok(Self { role, child, log: log.to_owned(), log_start })
    }

    /// Tells whether the process still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until the daemon has applied its first pass.
    ///
    /// # Errors
    ///
    /// It ended, or was not ready in time: the error has the end of its log.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        let sentence = self.role.ready_sentence();
        let what = format!("\"{sentence}\" in {}", self.log.display());
        let ready = wait_for(&what, timeout, || {
            if self.log_text()?.contains(sentence) {
                return Ok(Some(None));
            }
            Ok(self.child.try_wait()?.map(Some))
        })?;
        match ready {
            None => Ok(()),
            Some(status) => {
                bail!("{} ended before it was ready ({status}):\n{}", self.role.as_str(), self.log_tail(20))
            }
        }
    }

    /// Returns the id of the process: the daemon's own, since all helpers before it were replaced by it.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let process = Pid::from_raw(i32::try_from(self.child.id()).context("a process id is positive")?);
        kill(process, signal).with_context(|| format!("cannot signal {}", self.role.as_str()))
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    ///
    /// It runs on after `timeout`: the error has the end of its log.
    pub fn wait_end(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {} ({})", self.role.as_str(), self.log.display());
        wait_for(&what, timeout, || Ok(self.child.try_wait()?)).with_context(|| self.log_tail(20))
    }

    /// Returns what this process has logged.
    pub fn log_text(&self) -> Result<String> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.log_start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns the last lines of what this process has logged, under the log's name.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = self.log_text().unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        let tail = all[all.len().saturating_sub(lines)..].join("\n");
        format!("--- {}\n{tail}", self.log.display())
    }
}
