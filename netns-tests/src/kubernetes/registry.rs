//! Which labs stand on this machine, who holds them, and that there is one at a time.
//!
//! Labs share their addresses and the host's link, so a second one waits (a file lock) or is refused. A record outlives
//! its owner: that is how the next one knows what to remove. It is gone after a restart of the machine, as are namespaces.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::lab::names_in;
use crate::lock;

/// Holds the records, `NAME.json`, and the lock.
const DIRECTORY: &str = "/run/culvert-lab";

/// A lab that stands, or of which something may still stand.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) plan: Plan,
    /// The binary that its clusters run.
    pub(crate) binary: PathBuf,
    /// Who removes it; none for a lab that stands by itself.
    pub(crate) owner: Option<Process>,
}

/// A process, told from a later one with the same id by when it started.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Process {
    id: u32,
    /// In clock ticks since the machine started.
    started: u64,
}

impl Process {
    pub(crate) fn current() -> Result<Self> {
        Self::of(std::process::id()).context("this process is not in /proc")
    }

    fn of(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        Some(Self { id, started: start_time(&stat)? })
    }

    fn is_alive(&self) -> bool {
        Self::of(self.id).as_ref() == Some(self)
    }
}

/// Returns the 22nd field of `/proc/PID/stat` (proc_pid_stat(5)). The second, a name in brackets, may have spaces in it.
fn start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(19)?.parse().ok()
}

impl Record {
    /// Tells whether somebody wants it to stand.
    pub(crate) fn is_wanted(&self) -> bool {
        self.owner.as_ref().is_none_or(Process::is_alive)
    }

    /// Writes the record, in place of an earlier one.
    pub(crate) fn write(&self) -> Result<()> {
        let path = path(&self.plan.name);
        let unfinished = path.with_extension("new");
        fs::write(&unfinished, serde_json::to_string_pretty(self)?)?;
        fs::rename(&unfinished, &path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Waits until no other process brings a lab up, holds one or takes one down, and keeps it so while the value lives.
pub(crate) fn lock() -> Result<Flock<File>> {
    lock::lock(DIRECTORY, "a lab of Kubernetes clusters")
}

/// Returns the record of a lab, if there is one.
pub(crate) fn find(name: &str) -> Result<Option<Record>> {
    let path = path(name);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let record = serde_json::from_str(&text)
        .with_context(|| format!("{} is of another version: take the lab {name} down", path.display()))?;
    Ok(Some(record))
}

/// Returns the names of all labs that have records.
pub(crate) fn names() -> Result<Vec<String>> {
    let files = names_in(Path::new(DIRECTORY))?;
    Ok(files.iter().filter_map(|file| file.strip_suffix(".json")).map(ToOwned::to_owned).collect())
}

/// Takes a record away, if there is one.
pub(crate) fn remove(name: &str) -> Result<()> {
    let path = path(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_whatever_its_name() {
        let fields: Vec<String> = (3..=30).map(|field| field.to_string()).collect();
        assert_eq!(start_time(&format!("7 (a) b) {}", fields.join(" "))), Some(22));
        assert_eq!(start_time("7 (a"), None);
    }

    #[test]
    fn an_id_that_was_given_again_is_another_process() {
        let current = Process::current().unwrap();
        assert!(current.is_alive());
        assert!(!Process { started: current.started + 1, ..current }.is_alive());
    }
}
