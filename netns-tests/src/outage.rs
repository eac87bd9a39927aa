//! An API server that is gone and comes back, while everything else of its cluster runs on.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::run;
use crate::kubernetes::{Cluster, Lab};
use crate::wait::wait_for;

const READY: Duration = Duration::from_secs(120);

/// A control plane that was started again; it ends with its value.
pub struct ControlPlane(Child);

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // The lab's end may have been faster.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Kills a cluster's control plane (SIGKILL). Its data stay.
pub fn kill_control_plane(cluster: &Cluster) -> Result<()> {
    let config = config(cluster);
    let processes = run(Command::new("ip").args(["netns", "pids", cluster.nodes[0].namespace.name()]))?;
    let is_server = |process: &&str| {
        let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == config.as_os_str().as_encoded_bytes())
    };
    let server = processes.lines().map(str::trim).find(is_server).context("no control plane runs")?;
    Ok(kill(Pid::from_raw(server.parse()?), Signal::SIGKILL)?)
}

/// Starts a cluster's control plane again and waits until it is ready.
pub fn start_control_plane(lab: &Lab, cluster: &Cluster) -> Result<ControlPlane> {
    let config = config(cluster);
    let log = File::create(config.with_file_name("server-again.log"))?;
    let binary = lab.programs().binary().to_str().context("its path is text")?;
    let mut command = cluster.nodes[0].namespace.command(binary);
    let server = ControlPlane(command.arg("server").arg(config).stdout(log.try_clone()?).stderr(log).spawn()?);
    let name = cluster.name();
    wait_for(&format!("the API server of {name}"), READY, || cluster.kubectl("get --raw /readyz").map(Some))?;
    Ok(server)
}

/// Returns the file that `server` mode reads.
fn config(cluster: &Cluster) -> PathBuf {
    cluster.kubeconfig().with_file_name("server.json")
}
