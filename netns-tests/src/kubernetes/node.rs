//! A node: namespaces of its own, and in them containerd, kubelet and kube-proxy.
//!
//! Process 1 of the node is a shell (`node.sh`) in the node's mount, process, host name and IPC namespaces; it runs
//! containerd. All else enters there. When process 1 is killed, the kernel kills everything on the node, pods included.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use std::os::unix::process::CommandExt;

use super::certificates::write_secret;
use super::node_config::{NodeConfig, containerd};
use super::plan::ClusterPlan;
use super::programs::Programs;
use crate::command::run;
use crate::namespace::Namespace;
use crate::wait::wait_for;

/// How long containerd may take to answer.
const RUNTIME: Duration = Duration::from_secs(120);

/// A node of a cluster.
#[derive(Clone, Debug)]
pub struct Node {
    /// The name in Kubernetes, `east-node1`: also the host name.
    pub name: String,
    /// The node's network.
    pub namespace: Namespace,
    pub address: Ipv4Addr,
    /// Network of the node's pods.
    pub pod_network: Ipv4Net,
    /// Whether it has the label of gateways.
    pub gateway: bool,
    /// What the node sees as `/run/node`.
    directory: PathBuf,
}

/// What a node needs from its cluster to begin.
pub(crate) struct Enrolment {
    /// The authority's certificate, as PEM.
    pub(crate) authority: String,
    pub(crate) kubelet_kubeconfig: String,
    pub(crate) proxy_kubeconfig: String,
}

impl Node {
    /// Names a node; nothing is made yet.
    pub(crate) fn planned(cluster: &Path, node: &crate::lab::Node) -> Self {
        Self {
            name: node.name.clone(),
            namespace: node.namespace.clone(),
            address: node.address,
            pod_network: node.pod_network,
            gateway: node.gateway,
            directory: cluster.join(&node.short_name),
        }
    }

    /// Returns a command that will run on the node, in all its namespaces. There, kubelet and pods find their files.
    ///
    /// # Errors
    ///
    /// The node does not run.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let init = self.init()?.with_context(|| format!("node {} does not run", self.name))?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &init.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]);
        command.arg(program.as_ref());
        Ok(command)
    }

    /// Imports an archive of images into the node's containerd.
    pub fn import(&self, archive: &Path) -> Result<()> {
        // The node sees the machine's files but not those below /var/lib and /run: it reads what is open.
        let mut import = self.command("ctr")?;
        let output = import
            .args(["--namespace", "k8s.io", "images", "import", "-"])
            .stdin(File::open(archive).with_context(|| format!("cannot open {}", archive.display()))?)
            .output()?;
        let name = archive.display();
        let words = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{} cannot import {name}: {}", self.name, words.trim());
        Ok(())
    }

    /// Writes the node's files.
    pub(crate) fn prepare(&self, plan: &ClusterPlan, enrolment: &Enrolment) -> Result<()> {
        fs::create_dir_all(&self.directory).with_context(|| format!("cannot make {}", self.directory.display()))?;
        let config = NodeConfig {
            name: &self.name,
            pod_network: self.pod_network,
            pod_cidr: plan.network.pod_cidr,
            dns: plan.dns_service(),
            cgroup: self.cgroup(),
            proxy_mode: plan.proxy_mode,
        };
        let write = |name: &str, text: String| fs::write(self.directory.join(name), text);
        write("containerd.toml", containerd())?;
        write("cni.conflist", config.cni().to_string())?;
        write("kubelet.json", config.kubelet().to_string())?;
        if let Some(proxy) = config.proxy() {
            write("proxy.json", proxy.to_string())?;
        }
        write("ca.crt", enrolment.authority.clone())?;
        write_secret(&self.directory.join("kubelet.kubeconfig"), &enrolment.kubelet_kubeconfig)?;
        write_secret(&self.directory.join("proxy.kubeconfig"), &enrolment.proxy_kubeconfig)
    }

    /// Starts process 1 with containerd, and imports these archives.
    pub(crate) fn start_runtime(&self, archives: &[PathBuf]) -> Result<Child> {
        let mut init = self.namespace.command("unshare");
        init.args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        init.args(["sh", "-c", include_str!("node.sh"), "node"]).arg(&self.directory).arg(&self.name);
        let mut child = spawn(init, &self.directory.join("node.log"))?;
        let what = format!("containerd on {}", self.name);
        wait_for(&what, RUNTIME, || {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(Err(anyhow::anyhow!("node {} ended: {status}", self.name))));
            }
            run(self.command("ctr")?.arg("version"))?;
            Ok(Some(Ok(())))
        })??;
        archives.iter().try_for_each(|archive| self.import(archive))?;
        Ok(child)
    }

    /// Starts kubelet, and kube-proxy if the plan has it.
    pub(crate) fn start_agents(&self, programs: &Programs) -> Result<Vec<Child>> {
        let [binary, kubelet] = programs.words("kubelet");
        let mut command = self.command(binary)?;
        command.args([
            kubelet.as_str(),
            "--config=/run/node/kubelet.json",
            "--kubeconfig=/run/node/kubelet.kubeconfig",
        ]);
        command.arg(format!("--hostname-override={}", self.name)).arg(format!("--node-ip={}", self.address));
        let mut children = vec![spawn(command, &self.directory.join("kubelet.log"))?];
        if self.directory.join("proxy.json").exists() {
            let [binary, proxy] = programs.words("kube-proxy");
            let mut command = self.command(binary)?;
            command.args([proxy.as_str(), "--config=/run/node/proxy.json"]);
            children.push(spawn(command, &self.directory.join("kube-proxy.log"))?);
        }
        Ok(children)
    }

    /// Returns the name of the control group for the node's pods, which is that of its network namespace.
    pub(crate) fn cgroup(&self) -> &str {
        self.namespace.name()
    }

    /// Returns the id of the node's process 1, as this process sees it; none if the node does not run.
    pub fn init(&self) -> Result<Option<u32>> {
        let depth = ids_of("self").context("this process is not in /proc")?.len();
        let listing = run(Command::new("ip").args(["netns", "pids", self.namespace.name()]))?;
        let is_init = |ids: Vec<u32>| ids.len() == depth + 1 && ids.last() == Some(&1);
        let mut processes = listing.lines().map(str::trim);
        let init = processes.find(|process| ids_of(process).is_some_and(is_init));
        init.map(|id| id.parse().context("a process id is a number")).transpose()
    }
}

/// Returns the ids of a process in each process namespace that it is in, from that of `/proc` inwards.
fn ids_of(process: &str) -> Option<Vec<u32>> {
    // It may have ended since it was listed.
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    ids_in(&status)
}

fn ids_in(status: &str) -> Option<Vec<u32>> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().map(|id| id.parse().ok()).collect()
}

/// Starts a program of the lab that outlives a signal from the terminal; it writes to a log.
pub(crate) fn spawn(mut command: Command, log: &Path) -> Result<Child> {
    let file = File::options().create(true).append(true).open(log);
    let file = file.with_context(|| format!("cannot write {}", log.display()))?;
    let name = log.display();
    let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0).spawn();
    child.with_context(|| format!("cannot start what logs to {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_an_id_in_every_namespace_around_it() {
        assert_eq!(ids_in("Name:\tsh\nNSpid:\t4711\t1\nNSpgid:\t4711\t1\n"), Some(vec![4711, 1]));
        assert_eq!(ids_in("Name:\tsh\n"), None);
    }
}
