//! The control groups that nodes' pods are put into: one for each node in every hierarchy.
//!
//! kubelet makes the pods' groups below its root, which must exist. Ended pods' groups stay behind when a node is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::names_in;
use crate::wait::wait_for;

/// How long the kernel may take to let go of a group whose last process has ended.
const RELEASE: Duration = Duration::from_secs(30);

/// Makes the group `name` in every hierarchy.
pub(crate) fn make(name: &str) -> Result<()> {
    for root in hierarchies()? {
        let group = root.join(name);
        fs::create_dir_all(&group).with_context(|| format!("cannot make the control group {}", group.display()))?;
        // In the first version a group for processors begins empty, and then no process may enter it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if !root.join("cgroup.controllers").exists() && root.join(file).exists() {
                fs::write(group.join(file), fs::read(root.join(file))?)
                    .with_context(|| format!("cannot write {file} of the control group {}", group.display()))?;
            }
        }
    }
    Ok(())
}

/// Returns all groups, at the top of any hierarchy, whose names begin with `beginning`.
pub(crate) fn standing(beginning: &str) -> Result<Vec<PathBuf>> {
    let mut groups = Vec::new();
    for root in hierarchies()? {
        let names = names_in(&root)?.into_iter().filter(|name| name.starts_with(beginning));
        groups.extend(names.map(|name| root.join(name)));
    }
    Ok(groups)
}

/// Removes all groups whose names begin with `beginning`; their processes have been ended.
pub(crate) fn remove(beginning: &str) -> Result<()> {
    let what = format!("the removal of the control groups {beginning}*");
    wait_for(&what, RELEASE, || {
        standing(beginning)?.iter().try_for_each(|group| remove_group(group))?;
        Ok(Some(()))
    })
}

/// Removes a group and those below it. What is no directory belongs to the kernel and goes with it.
fn remove_group(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("cannot remove the control group {}", group.display()))
}

fn hierarchies() -> Result<Vec<PathBuf>> {
    Ok(hierarchies_in(&fs::read_to_string("/proc/self/mounts")?))
}

/// Returns where hierarchies are mounted, those of both versions: the runtime uses the second beside the first.
fn hierarchies_in(mounts: &str) -> Vec<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let ours = fields.filter(|fields| matches!(fields.get(2), Some(&("cgroup" | "cgroup2"))));
    ours.map(|fields| PathBuf::from(fields[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_those_of_both_versions() {
        let mounts = "sysfs /sys sysfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let expected = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(hierarchies_in(mounts), expected);
    }
}
