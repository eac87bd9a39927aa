//! Web servers in pods, on every node, which say whom they see; and how pods ask them.
//!
//! What runs in a pod is started through its node's containerd, as `kubectl exec` has it done in the end, so that it needs
//! no API server and goes on while one is away.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::image::BUSYBOX;
use super::node::Node;
use crate::command::run;
use crate::namespace::Namespace;

/// TCP port of the web servers in pods; behind a Service it is 80.
pub const WEB_PORT: u16 = 8080;
/// Size of the page `/large`, in bytes.
pub const LARGE: usize = 3_000_000;
/// Seconds that an answer may take.
const ANSWER: u32 = 5;
const LARGE_ANSWER: u32 = 30;

/// A running pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    /// The node's own, for a pod in the host's network.
    pub address: Ipv4Addr,
    pub node: Node,
    /// containerd's name of its first container.
    container: String,
}

/// The web servers of a cluster.
#[derive(Clone, Debug)]
pub struct Web {
    /// One on each node, in the order of the nodes.
    pub pods: Vec<Pod>,
    /// Address of the Service `web`, which leads to all of them.
    pub service: Ipv4Addr,
}

/// What a web server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whom it sees.
    pub source: Ipv4Addr,
    /// Name of the pod that it is in.
    pub server: String,
}

/// Runs a web server on each node, as the DaemonSet `web` behind the Service `web`, and returns them once all are ready.
///
/// `/` is the pod's name, `/cgi-bin/source` the address of who asks, `/cgi-bin/answer` both; `/large` has [`LARGE`] zeros.
pub fn serve(cluster: &Cluster) -> Result<Web> {
    let daemon_set = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": web_template("web")},
    });
    cluster.apply(&list(&[daemon_set, service("web")]))?;
    cluster.kubectl("rollout status daemonset/web --timeout=300s")?;
    let mut pods = pods(cluster, "app=web")?;
    let place = |pod: &Pod| cluster.nodes.iter().position(|node| node.name == pod.node.name);
    pods.sort_by_key(place);
    Ok(Web { pods, service: service_address(cluster, "web")? })
}

/// Runs web servers like those of [`serve`] as a Deployment behind a Service, both with this name, and waits for them.
/// Where a node goes out of service, its pods go to others.
pub fn deploy(cluster: &Cluster, name: &str, replicas: usize) -> Result<()> {
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": web_template(name),
        },
    });
    cluster.apply(&list(&[deployment, service(name)]))?;
    cluster.kubectl(&format!("rollout status deployment/{name} --timeout=300s"))?;
    Ok(())
}

/// Runs a pod in the network of each node, as the DaemonSet `host`, and returns them in the order of the nodes.
pub fn host_pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    let daemon_set = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "host"},
        "spec": {
            "selector": {"matchLabels": {"app": "host"}},
            "template": {
                "metadata": {"labels": {"app": "host"}},
                "spec": {
                    "hostNetwork": true,
                    "terminationGracePeriodSeconds": 0,
                    "containers": [container(&["tail", "-f", "/dev/null"])],
                },
            },
        },
    });
    cluster.apply(&daemon_set.to_string())?;
    cluster.kubectl("rollout status daemonset/host --timeout=300s")?;
    let mut pods = pods(cluster, "app=host")?;
    let place = |pod: &Pod| cluster.nodes.iter().position(|node| node.name == pod.node.name);
    pods.sort_by_key(place);
    Ok(pods)
}

/// Returns the running pods of the default namespace that a label selects, without those that are ending.
///
/// # Errors
///
/// One has not been started yet.
pub fn pods(cluster: &Cluster, selector: &str) -> Result<Vec<Pod>> {
    let pods = cluster.items(&format!("get pods --selector {selector}"))?;
    let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    pods.iter().filter(stays).map(|pod| Pod::seen(cluster, pod)).collect()
}

/// Returns the address of a Service of the default namespace.
pub fn service_address(cluster: &Cluster, name: &str) -> Result<Ipv4Addr> {
    let service = cluster.json(&format!("get service {name}"))?;
    let address = service["spec"]["clusterIP"].as_str().and_then(|address| address.parse().ok());
    address.with_context(|| format!("service {name} of {} has no address", cluster.name()))
}

impl Web {
    /// Returns the web server on a node, named within its cluster, `node1`.
    ///
    /// # Panics
    ///
    /// If the cluster has no such node.
    pub fn on(&self, node: &str) -> &Pod {
        let end = format!("-{node}");
        self.pods.iter().find(|pod| pod.node.name.ends_with(&end)).expect("each node has a web server")
    }
}

impl Pod {
    fn seen(cluster: &Cluster, pod: &Value) -> Result<Self> {
        let name = pod["metadata"]["name"].as_str().context("a pod has a name")?;
        let of = |value: &Value, what: &str| {
            let text = value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
            text.with_context(|| format!("pod {name} has no {what} yet"))
        };
        let node = of(&pod["spec"]["nodeName"], "node")?;
        let node = cluster.nodes.iter().find(|one| one.name == node);
        let container = of(&pod["status"]["containerStatuses"][0]["containerID"], "container")?;
        Ok(Self {
            name: name.to_owned(),
            address: of(&pod["status"]["podIP"], "address")?.parse()?,
            node: node.with_context(|| format!("pod {name} is on no node of the plan"))?.clone(),
            container: container.trim_start_matches("containerd://").to_owned(),
        })
    }

    /// Returns a command that will run in the pod, with these words.
    ///
    /// # Errors
    ///
    /// Its node does not run.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let id = format!("lab-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut command = self.node.command("ctr")?;
        command.args(["--namespace", "k8s.io", "tasks", "exec", "--exec-id", &id, &self.container]).args(words);
        Ok(command)
    }

    /// Runs a line in the pod, split at spaces, and returns its standard output.
    pub fn run(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        run(&mut self.command(&words)?).with_context(|| format!("in pod {} on {}", self.name, self.node.name))
    }

    /// Asks for a page under this URL, once, and returns it.
    pub fn page(&self, url: &str) -> Result<String> {
        self.run(&format!("timeout {ANSWER} wget -q -O - {url}"))
    }

    /// Asks a web server, once, whom it sees and who it is; `server` is an address, or ADDRESS:PORT.
    pub fn ask(&self, server: &str) -> Result<Answer> {
        let page = self.page(&format!("http://{server}/cgi-bin/answer"))?;
        let answer = page
            .trim()
            .split_once(' ')
            .and_then(|(source, server)| Some(Answer { source: source.parse().ok()?, server: server.to_owned() }));
        answer.with_context(|| format!("{server} answered {} with {page:?}", self.name))
    }

    /// Asks a web server, once, whom it sees.
    pub fn source_seen_by(&self, server: &str) -> Result<Ipv4Addr> {
        Ok(self.ask(server)?.source)
    }

    /// Fetches more from a web server than one packet has.
    ///
    /// # Errors
    ///
    /// Not all of it came.
    pub fn fetch_large(&self, server: &str) -> Result<()> {
        let line = format!("timeout {LARGE_ANSWER} wget -q -O - http://{server}/large | wc -c");
        let came = run(&mut self.command(&["sh", "-c", &line])?)?;
        ensure!(
            came.trim() == LARGE.to_string(),
            "{} of {LARGE} bytes came from {server} to {}",
            came.trim(),
            self.name
        );
        Ok(())
    }

    /// Returns ADDRESS:PORT of the web server in the pod.
    pub fn web(&self) -> String {
        format!("{}:{WEB_PORT}", self.address)
    }

    /// Returns the pod's network, for probes and flows that outlast API servers.
    ///
    /// # Errors
    ///
    /// The pod does not run.
    pub fn network(&self) -> Result<Namespace> {
        let info =
            run(self.node.command("ctr")?.args(["--namespace", "k8s.io", "containers", "info", &self.container]))?;
        let info: Value = serde_json::from_str(&info)?;
        let namespaces = info["Spec"]["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network");
        let path = network.and_then(|network| network["path"].as_str());
        let path = path.with_context(|| format!("pod {} has no network of its own", self.name))?;
        let init = self.node.init()?.with_context(|| format!("node {} does not run", self.node.name))?;
        // As the node has it: below its own /proc or its own /run.
        Ok(Namespace::at(self.name.clone(), PathBuf::from(format!("/proc/{init}/root{path}"))))
    }
}

fn web_template(name: &str) -> Value {
    let program =
        |name: &str, words: &str| format!("printf '#!/bin/sh\\necho; echo {words}\\n' >/tmp/cgi-bin/{name}; ");
    let script = [
        "mkdir -p /tmp/cgi-bin; hostname >/tmp/index.html; ",
        &format!("head -c {LARGE} /dev/zero >/tmp/large; "),
        &program("source", "$REMOTE_ADDR"),
        &program("answer", "$REMOTE_ADDR $(hostname)"),
        &format!("chmod +x /tmp/cgi-bin/*; exec httpd -f -p 0.0.0.0:{WEB_PORT} -h /tmp"),
    ]
    .concat();
    let mut container = container(&["sh", "-c", &script]);
    container["readinessProbe"] = json!({"httpGet": {"path": "/", "port": WEB_PORT}, "periodSeconds": 1});
    json!({
        "metadata": {"labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    })
}

fn container(command: &[&str]) -> Value {
    json!({"name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": command})
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": WEB_PORT}]},
    })
}

fn list(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}
