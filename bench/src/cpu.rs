//! CPU time of a group of processes, by control group: what their threads did, the kernel's work in their system calls
//! and the soft interrupts that ran on their time included. Works with the `cpuacct` controller of version 1 and with version 2, whichever the machine has.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The name of the group. Fixed: what an interrupted run leaves is used again by the next.
const NAME: &str = "culvert-bench";

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchy {
    /// Version 1: `cpuacct.usage`, in nanoseconds.
    Accounting(PathBuf),
    /// Version 2: `usage_usec` in `cpu.stat`, in microseconds; every group has it, whatever controllers are enabled.
    Unified(PathBuf),
}

/// A control group. Dropping it removes it, if its processes have ended.
pub(crate) struct CpuGroup {
    hierarchy: Hierarchy,
    directory: PathBuf,
}

impl CpuGroup {
    /// Makes an empty group and moves processes, with all their threads, into it.
    ///
    /// # Errors
    ///
    /// No control groups are mounted, or they may not be written.
    pub(crate) fn of(processes: &[u32]) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
        let hierarchy = hierarchy(&mounts).context("no cgroup2 and no cgroup with cpuacct is mounted")?;
        let (Hierarchy::Accounting(root) | Hierarchy::Unified(root)) = &hierarchy;
        let directory = root.join(NAME);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let group = Self { hierarchy, directory };
        for process in processes {
            let path = group.directory.join("cgroup.procs");
            fs::write(&path, process.to_string())
                .with_context(|| format!("cannot move process {process} to {}", path.display()))?;
        }
        Ok(group)
    }

    /// Returns the CPU time, in seconds, that the group has used since it was made.
    pub(crate) fn seconds(&self) -> Result<f64> {
        let read = |name: &str| {
            let path = self.directory.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        match &self.hierarchy {
            Hierarchy::Accounting(_) => {
                let nanoseconds: u64 = read("cpuacct.usage")?.trim().parse().context("cpuacct.usage is no number")?;
                Ok(nanoseconds as f64 / 1e9)
            }
            Hierarchy::Unified(_) => {
                let microseconds = usage_usec(&read("cpu.stat")?).context("cpu.stat has no usage_usec")?;
                Ok(microseconds as f64 / 1e6)
            }
        }
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        // Not empty yet: the next group of this name takes it over.
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Chooses the hierarchy to use from the lines of `/proc/mounts`: version 1, where it has the controller.
fn hierarchy(mounts: &str) -> Option<Hierarchy> {
    let mut unified = None;
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(directory), Some(kind), Some(options)) = (words.next(), words.next(), words.next()) else { continue };
        match kind {
            "cgroup" if options.split(',').any(|option| option == "cpuacct") => {
                return Some(Hierarchy::Accounting(directory.into()));
            }
            "cgroup2" => unified = Some(Hierarchy::Unified(directory.into())),
            _ => {}
        }
    }
    unified
}

fn usage_usec(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_taken_where_it_has_cpuacct() {
        let mounts = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n";
        assert_eq!(hierarchy(mounts), Some(Hierarchy::Accounting("/sys/fs/cgroup/cpu,cpuacct".into())));
    }

    #[test]
    fn version_2_is_taken_where_version_1_has_no_cpuacct() {
        let mounts = "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(hierarchy(mounts), Some(Hierarchy::Unified("/sys/fs/cgroup".into())));
        assert_eq!(hierarchy("proc /proc proc rw 0 0\nshort\n"), None);
    }

    #[test]
    fn the_usage_is_found_among_the_statistics() {
        assert_eq!(usage_usec("nr_periods 1\nusage_usec 1234\nuser_usec 1000\n"), Some(1234));
        assert_eq!(usage_usec("user_usec 1000\n"), None);
    }
}
