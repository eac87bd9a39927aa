//! Deploys Culvert on a lab by the commands that an operator would type, with an image of the binaries beside this one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cluster::Cluster;
use super::lab::Lab;
use crate::daemon::Binaries;

/// The image of Culvert that the lab's nodes have.
pub const CULVERT: &str = "culvert.lab/culvert:1";
/// The namespace of Culvert in its members.
pub const NAMESPACE: &str = "submariner-operator";
/// The namespace of a broker.
pub const BROKER_NAMESPACE: &str = "submariner-k8s-broker";

/// `culvert` in a folder of the lab, where the broker's file is written and read.
#[derive(Clone, Debug)]
pub struct Installer {
    tool: PathBuf,
    directory: PathBuf,
}

impl Installer {
    /// Makes the image of Culvert and imports it into all nodes of a lab.
    ///
    /// # Errors
    ///
    /// The binaries are not built: the error says how.
    pub fn new(lab: &Lab) -> Result<Self> {
        let tool = Binaries::find()?.tool();
        let directory = lab.directory().join("culvert");
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let binaries = tool.parent().context("a binary is in a directory")?;
        let archive = culvert_image::culvert(CULVERT, binaries, &directory)?.write(&directory)?;
        lab.clusters().iter().try_for_each(|cluster| cluster.import(&archive))?;
        fs::remove_file(archive)?;
        Ok(Self { tool, directory })
    }

    /// Returns where the broker's file is, `broker-info.subm`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the command `culvert` with the words of a line, split at spaces, for a cluster and its administrator.
    pub fn command(&self, cluster: &Cluster, line: &str) -> Command {
        let mut command = Command::new(&self.tool);
        command.args(line.split_whitespace()).arg("--kubeconfig").arg(cluster.kubeconfig());
        command.current_dir(&self.directory);
        command
    }

    /// Runs a line of `culvert` that is to succeed without a warning, and returns its standard output. What it says
    /// meanwhile is passed on.
    ///
    /// # Errors
    ///
    /// It failed or warned: the error has its words.
    pub fn run(&self, cluster: &Cluster, line: &str) -> Result<String> {
        let name = cluster.name();
        let output = self.command(cluster, line).output().with_context(|| format!("cannot start culvert {line}"))?;
        let words = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() || words.contains("warning:") {
            bail!("culvert {line} in {name} ({}): {}", output.status, words.trim());
        }
        eprint!("[{name}] culvert {line}\n{words}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes the broker in a cluster, and lets these clusters join it, one after the other.
    ///
    /// # Errors
    ///
    /// As those of [`Installer::run`]: a cluster that is not connected to all others after a minute is a warning.
    pub fn deploy(&self, broker: &Cluster, members: &[&Cluster]) -> Result<()> {
        self.run(broker, "deploy-broker")?;
        members.iter().try_for_each(|member| self.run(member, &join_line(member)).map(|_| ()))
    }
}

/// Returns the line of `culvert` by which a cluster of the lab joins, and by which it is repaired.
pub fn join_line(cluster: &Cluster) -> String {
    let (id, pods) = (cluster.name(), cluster.plan.network.pod_cidr);
    format!("join broker-info.subm --clusterid {id} --clustercidr {pods} --image {CULVERT} --natt=false")
}

/// Returns how all pods of Culvert in a lab are, what its records say, and the pods' last words.
pub fn state(lab: &Lab) -> String {
    let of = |cluster: &Cluster| {
        let records = "clusters.submariner.io,endpoints.submariner.io,gateways.submariner.io";
        let lines = [
            "get nodes,daemonsets,pods --all-namespaces --output wide".to_owned(),
            format!("get events --namespace {NAMESPACE}"),
            format!("logs --namespace {NAMESPACE} --selector app=culvert-gateway --tail 20 --prefix"),
            format!("logs --namespace {NAMESPACE} --selector app=culvert-route-agent --tail 20 --prefix"),
            format!("logs --namespace {NAMESPACE} --selector app=culvert-globalnet --tail 20 --prefix"),
            format!("get {records} --all-namespaces --output yaml"),
        ];
        let timeout = |line: &String| cluster.kubectl(&format!("{line} --request-timeout=10s"));
        lines.map(|line| timeout(&line).unwrap_or_else(|error| format!("{error:#}"))).join("\n")
    };
    lab.clusters().iter().map(|cluster| format!("--- {}\n{}\n", cluster.name(), of(cluster))).collect()
}
