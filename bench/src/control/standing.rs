//! Two Kubernetes clusters, east with the broker and west, and Culvert on them, by the commands that an operator types.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_netns_tests::kubernetes::{Cluster, Installer, Lab, NAMESPACE, Node, Plan, Pod, ProxyMode, join_line};
use culvert_netns_tests::wait_for;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(180);
/// Seconds between two pings of the first one's series.
const PING: &str = "0.1";

/// The lab, with Culvert's image on all nodes.
pub(crate) struct Standing {
    lab: Lab,
    installer: Installer,
}

/// A series of pings that ends with the first answer.
pub(crate) struct FirstPing(Child);

impl Standing {
    /// Brings the clusters up; `name` names the lab.
    pub(crate) fn up(name: &str) -> Result<Self> {
        let lab = Lab::up(&Plan::new(name, &["east", "west"], 2, ProxyMode::Iptables)?)?;
        let installer = Installer::new(&lab)?;
        Ok(Self { lab, installer })
    }

    pub(crate) fn east(&self) -> &Cluster {
        self.lab.cluster("east")
    }

    pub(crate) fn west(&self) -> &Cluster {
        self.lab.cluster("west")
    }

    /// Runs a line of `culvert`.
    pub(crate) fn culvert(&self, cluster: &Cluster, line: &str) -> Result<()> {
        self.installer.run(cluster, line).map(|_| ())
    }

    pub(crate) fn join(&self, cluster: &Cluster) -> Result<()> {
        self.culvert(cluster, &join_line(cluster))
    }

    /// Makes the second node of west a gateway that stands by.
    pub(crate) fn add_standby(&self) -> Result<()> {
        let west = self.west();
        west.kubectl(&format!("label node {} submariner.io/gateway=true", west.nodes[1].name))?;
        wait_for("a gateway that stands by", PATIENCE, || Ok((gateways(west)?.len() == 2).then_some(())))
    }

    /// Lets the broker take records without a look at all that it has: members' writes are checked against every Cluster,
    /// and the crowd's are those of a thousand members within seconds.
    pub(crate) fn lift_policies(&self) -> Result<()> {
        self.east().kubectl("delete validatingadmissionpolicybindings --all")?;
        Ok(())
    }

    /// Returns the node of west with the active gateway.
    pub(crate) fn active(&self) -> Result<&Node> {
        let gateways = gateways(self.west())?;
        let active = gateways.iter().find(|gateway| gateway["status"]["haStatus"] == "active");
        let name = active.and_then(|gateway| gateway["metadata"]["name"].as_str());
        let name = name.context("no gateway of west is active")?;
        self.west().nodes.iter().find(|node| node.name == name).with_context(|| format!("west has no node {name}"))
    }

    /// Returns how often another gateway of west has taken over.
    pub(crate) fn transitions(&self) -> Result<u64> {
        let lease = self.west().json(&format!("get lease/submariner-gateway-lock --namespace {NAMESPACE}"))?;
        Ok(lease["spec"]["leaseTransitions"].as_u64().unwrap_or_default())
    }

    /// Returns how many Clusters west knows, those that have left a while ago included.
    pub(crate) fn known_clusters(&self) -> Result<usize> {
        let names = format!("get clusters.submariner.io --namespace {NAMESPACE} --output name");
        Ok(self.west().kubectl(&names)?.lines().count())
    }

    /// Waits until west has copied all records: its Clusters come last.
    pub(crate) fn wait_copied(&self, clusters: usize) -> Result<()> {
        wait_for("all copies", PATIENCE, || Ok((self.known_clusters()? >= clusters).then_some(())))
    }

    /// Returns the size of west's largest object of a kind, in bytes of JSON.
    pub(crate) fn largest(&self, kind: &str) -> Result<usize> {
        let objects = self.west().items(&format!("get {kind} --namespace {NAMESPACE}"))?;
        Ok(objects.iter().map(|object| object.to_string().len()).max().unwrap_or_default())
    }
}

impl FirstPing {
    /// Starts to ping, from before it can be answered.
    pub(crate) fn start(from: &Pod, to: &Pod) -> Result<Self> {
        // Every ping is a process of its own, lest one that began too early is waited for.
        let script = format!(
            "rm -f /tmp/answered; until [ -e /tmp/answered ]; do \
             (ping -c 1 -W 2 {} >/dev/null && touch /tmp/answered) & sleep {PING}; done",
            to.address
        );
        let mut command = from.command(&["sh", "-c", &script])?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(command.spawn().context("the pings cannot be started")?))
    }

    /// Waits for the first answer; returns when it was there.
    ///
    /// # Errors
    ///
    /// None comes within minutes.
    pub(crate) fn answered(mut self) -> Result<Instant> {
        let status = wait_for("the first ping", PATIENCE, || Ok(self.0.try_wait()?));
        if status.is_err() {
            self.0.kill().ok();
        }
        ensure!(status?.success(), "the pings between the clusters could not be sent");
        Ok(Instant::now())
    }
}

fn gateways(cluster: &Cluster) -> Result<Vec<Value>> {
    cluster.items(&format!("get gateways.submariner.io --namespace {NAMESPACE}"))
}
