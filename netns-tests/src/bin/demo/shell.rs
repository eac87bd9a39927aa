//! The shell of a platform engineer with two kubeconfigs: lines of `culvert` and `kubectl`, and where they find things.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use culvert_netns_tests::kubernetes::{Cluster, Lab};
use culvert_netns_tests::{Binaries, run};
use serde_json::Value;

use crate::report::{Facts, Report};

/// Where lines are typed, and with which environment. It goes with the lab.
pub(crate) struct Shell {
    directory: PathBuf,
    kubeconfig: OsString,
    path: OsString,
}

impl Shell {
    /// Opens a shell in a folder of the lab, with `kubectl` and `culvert` in its path.
    pub(crate) fn open(lab: &Lab) -> Result<Self> {
        let directory = lab.directory().join("shell");
        let programs = directory.join("bin");
        fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
        symlink(lab.programs().binary(), programs.join("kubectl"))?;
        symlink(Binaries::find()?.tool(), programs.join("culvert"))?;
        let paths = env::var_os("PATH").unwrap_or_default();
        Ok(Self {
            path: env::join_paths([programs].into_iter().chain(env::split_paths(&paths)))?,
            kubeconfig: env::join_paths(lab.clusters().iter().map(Cluster::kubeconfig))?,
            directory,
        })
    }

    /// Types a line, which is split at spaces, and shows it and what it writes, which it also returns.
    ///
    /// # Errors
    ///
    /// The line failed.
    pub(crate) fn types(&self, line: &str, facts: &mut Facts) -> Result<String> {
        facts.run(line, self.command(line))
    }

    /// Returns the JSON that a line writes; it is not shown.
    pub(crate) fn json(&self, line: &str) -> Result<Value> {
        let text = run(&mut self.command(&format!("{line} --output json")))?;
        serde_json::from_str(&text).with_context(|| format!("{line} wrote no JSON"))
    }

    fn command(&self, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).current_dir(&self.directory);
        command.env("PATH", &self.path).env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Tells how to go on in a shell like this one.
    pub(crate) fn tell(&self, report: &Report) {
        report.say("The clusters stay. Go on with the same commands:");
        report.say(&format!("    cd {}", self.directory.display()));
        report.say(&format!("    export PATH={}/bin:$PATH", self.directory.display()));
        report.say(&format!("    export KUBECONFIG={}", self.kubeconfig.display()));
        report.say("    culvert show all --context west");
        report.say("    kubectl --context west get pods --all-namespaces");
    }
}
