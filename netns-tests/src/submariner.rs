//! A gateway as real Submariner makes it: its records, its WireGuard and VXLAN devices and its routes.
//!
//! Names, numbers and fields are Submariner's (chapters 2.1, 4.8, 4.9 and 7.4). WireGuard is wireguard-go instead of the
//! kernel's, which not every machine has; it is configured by `wg`, and so takes the same values.

use std::env;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::Ipv4Net;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::command::{run, run_with_input};
use crate::daemon::Role;
use crate::deployment::{Deployment, Settings};
use crate::lab::{Lab, Node};
use crate::records::write_record;
use crate::topology::{ClusterPlan, NodePlan, Topology};

const READY: Duration = Duration::from_secs(20);
const WIREGUARD: &str = "submariner";
const WIREGUARD_TABLE: u32 = 150;
const VXLAN: &str = "vxlan-tunnel";
const VXLAN_TABLE: u32 = 100;
const PORT: u16 = 4500;
const WIREGUARD_GO: &str = "golang.zx2c4.com/wireguard@latest";

/// Submariner's gateway on one node, which runs no daemon of ours.
#[derive(Clone)]
pub struct Submariner {
    pub plan: ClusterPlan,
    pub node: Node,
}

/// The far side's gateway, as its Endpoint record tells.
pub struct Remote {
    pub cable_name: String,
    pub private: Ipv4Addr,
    pub public_key: String,
    port: String,
    subnets: Vec<String>,
}

impl Remote {
    /// Reads an Endpoint record.
    pub fn of(record: &Value) -> Result<Self> {
        let spec = &record["spec"];
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text is missing in the Endpoint");
        let config = &spec["backend_config"];
        Ok(Self {
            cable_name: text(&spec["cable_name"])?,
            private: text(&spec["private_ip"])?.parse()?,
            public_key: text(&config["publicKey"])?,
            port: text(&config["udp-port"])?,
            subnets: spec["subnets"].as_array().into_iter().flatten().map(text).collect::<Result<_>>()?,
        })
    }
}

impl Submariner {
    /// Builds `east` with our daemons on a gateway node and a worker node, and `west`, one node with Submariner.
    ///
    /// `adjust` is for the gateway's command line and environment. Neither cluster knows of the other yet.
    pub fn facing_east(adjust: impl FnOnce(&mut Command)) -> Result<(Deployment, Self, Remote)> {
        let mut topology = Topology::routed();
        topology.cluster_mut("west").nodes = vec![NodePlan::gateway("gw")];
        let lab = Lab::build(&topology)?;
        let west = Self::on(&lab, "west", "gw")?;
        let mut deployment = Deployment::new(lab, Settings::default())?;
        for node in ["gw", "worker"] {
            deployment.start("east", node, Role::RouteAgent)?;
        }
        deployment.start_with("east", "gw", Role::Gateway, adjust)?;
        deployment.daemon("east", "gw", Role::Gateway).wait_ready(READY)?;
        let remote = Remote::of(&deployment.wait_endpoint("east")?)?;
        Ok((deployment, west, remote))
    }

    /// Takes a node of a lab. Its masquerading goes: Submariner's rules exempt what passes between clusters from it.
    fn on(lab: &Lab, cluster: &str, node: &str) -> Result<Self> {
        let node = lab.node(cluster, node).clone();
        node.namespace.nft("delete table ip nat-cni\ndelete table ip kube-proxy")?;
        Ok(Self { plan: lab.cluster(cluster).plan.clone(), node })
    }

    /// Returns the name of its cable.
    pub fn cable_name(&self) -> String {
        format!("submariner-cable-{}-{}", self.plan.id, self.node.address.to_string().replace('.', "-"))
    }

    /// Writes its Cluster and its Endpoint to the broker, as releases up to 0.20 do: addresses in the old fields only.
    ///
    /// `config` are lines of `backend_config` besides the ports.
    pub fn announce(&self, broker: &Path, backend: &str, public: Ipv4Addr, config: &[(&str, &str)]) -> Result<()> {
        let ClusterPlan { id, pod_cidr, service_cidr, .. } = &self.plan;
        let labels = format!(
            "  labels:\n    submariner-io/clusterID: {id}\n    submariner-io/originatingNamespace: submariner-operator\n"
        );
        let cluster = format!(
            "apiVersion: submariner.io/v1\nkind: Cluster\nmetadata:\n  name: {id}\n{labels}\
             spec:\n  cluster_id: {id}\n  color_codes:\n  - blue\n  service_cidr:\n  - {service_cidr}\n  \
             cluster_cidr:\n  - {pod_cidr}\n  global_cidr: []\n"
        );
        let name = format!("{id}-{}", self.cable_name());
        let config: String = config.iter().map(|(key, value)| format!("    {key}: \"{value}\"\n")).collect();
        let endpoint = format!(
            "apiVersion: submariner.io/v1\nkind: Endpoint\nmetadata:\n  name: {name}\n  \
             creationTimestamp: \"2026-01-02T03:04:05Z\"\n{labels}\
             spec:\n  cluster_id: {id}\n  cable_name: {}\n  hostname: {}\n  subnets:\n  - {service_cidr}\n  - {pod_cidr}\n  \
             private_ip: {}\n  public_ip: {public}\n  healthCheckIP: {}\n  nat_enabled: true\n  backend: {backend}\n  \
             backend_config:\n    natt-discovery-port: \"4490\"\n    preferred-server: \"false\"\n    \
             udp-port: \"{PORT}\"\n{config}",
            self.cable_name(),
            self.node.name,
            self.node.address,
            self.node.pod_gateway(),
        );
        write_record(broker, "clusters", id, &cluster)?;
        write_record(broker, "endpoints", &name, &endpoint)
    }

    /// Starts WireGuard with a new key and returns the public one.
    pub fn start_wireguard(&self) -> Result<String> {
        run(self.node.command(wireguard_go()?).arg(WIREGUARD))?;
        let private = run(Command::new("wg").arg("genkey"))?;
        let key = self.secret("submariner.key", &private)?;
        self.wg(&["listen-port", &PORT.to_string(), "private-key", &key])?;
        self.node
            .namespace
            .ip(&format!("link set {WIREGUARD} up\nrule add lookup {WIREGUARD_TABLE} priority {WIREGUARD_TABLE}\n"))?;
        let public = run_with_input(Command::new("wg").arg("pubkey"), &private)?;
        Ok(public.trim().to_owned())
    }

    /// Removes the WireGuard device, and with it its routes and its process.
    pub fn stop_wireguard(&self) -> Result<()> {
        self.node.namespace.ip(&format!("link delete {WIREGUARD}\nrule delete priority {WIREGUARD_TABLE}\n"))
    }

    /// Adds the far side as a WireGuard peer with the pre-shared key of this text, and routes to it.
    pub fn add_wireguard_peer(&self, remote: &Remote, psk: &str) -> Result<()> {
        let psk = self.secret("submariner.psk", &STANDARD.encode(Sha256::digest(psk)))?;
        let endpoint = format!("{}:{}", remote.private, remote.port);
        let subnets = remote.subnets.join(",");
        let peer = ["peer", &remote.public_key, "preshared-key", &psk, "endpoint", &endpoint];
        self.wg(&[&peer[..], &["persistent-keepalive", "10", "allowed-ips", &subnets]].concat())?;
        let source = self.node.pod_gateway();
        let route = |subnet: &String| {
            format!("route add {subnet} dev {WIREGUARD} src {source} scope link table {WIREGUARD_TABLE}\n")
        };
        self.node.namespace.ip(&remote.subnets.iter().map(route).collect::<String>())
    }

    /// Sends packets for these networks into the WireGuard cable too, whosever they are: an evil gateway.
    pub fn abuse_wireguard(&self, remote: &Remote, networks: &[Ipv4Net]) -> Result<()> {
        self.wg(&["peer", &remote.public_key, "allowed-ips", "0.0.0.0/0"])?;
        let route = |network: &Ipv4Net| format!("route add {network} dev {WIREGUARD} table {WIREGUARD_TABLE}\n");
        self.node.namespace.ip(&networks.iter().map(route).collect::<String>())
    }

    /// Makes the VXLAN device.
    pub fn start_vxlan(&self) -> Result<()> {
        self.node.namespace.ip(&format!(
            "link add {VXLAN} mtu 1450 type vxlan id 1000 dstport {PORT} dev eth0\n\
             addr add {}/8 dev {VXLAN}\n\
             link set {VXLAN} up\n\
             rule add lookup {VXLAN_TABLE} priority {VXLAN_TABLE}\n",
            vtep(self.node.address)
        ))?;
        self.node.namespace.sysctl(&format!("net/ipv4/conf/{VXLAN}/rp_filter"), "2")
    }

    /// Adds the far side as a VXLAN peer, and routes to it.
    pub fn add_vxlan_peer(&self, remote: &Remote) -> Result<()> {
        let entry = format!("bridge fdb append 00:00:00:00:00:00 dev {VXLAN} dst {} self permanent", remote.private);
        self.node.namespace.run(&entry)?;
        self.route_into_vxlan(remote, &remote.subnets)
    }

    /// Sends packets for these networks into the VXLAN cable too, whosever they are: an evil gateway.
    pub fn abuse_vxlan(&self, remote: &Remote, networks: &[Ipv4Net]) -> Result<()> {
        self.route_into_vxlan(remote, &networks.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn route_into_vxlan(&self, remote: &Remote, subnets: &[String]) -> Result<()> {
        let (via, source) = (vtep(remote.private), self.node.pod_gateway());
        let route = |subnet: &String| {
            format!("route add {subnet} via {via} dev {VXLAN} src {source} metric 100 table {VXLAN_TABLE} onlink\n")
        };
        self.node.namespace.ip(&subnets.iter().map(route).collect::<String>())
    }

    fn wg(&self, words: &[&str]) -> Result<()> {
        run(self.node.command("wg").args(["set", WIREGUARD]).args(words))?;
        Ok(())
    }

    /// Writes a secret that only `wg` on the node is to read, and returns its path there.
    fn secret(&self, name: &str, text: &str) -> Result<String> {
        let path = self.node.run_directory().join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(format!("/run/{name}"))
    }
}

fn vtep(private: Ipv4Addr) -> Ipv4Addr {
    let [_, b, c, d] = private.octets();
    Ipv4Addr::new(241, b, c, d)
}

/// Finds wireguard-go on the search path or among the tools that were built before, or builds it.
///
/// # Errors
///
/// It is nowhere and cannot be built: the error says how to get it.
fn wireguard_go() -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let tools = tools()?;
    let directories = env::split_paths(&path).chain([tools.clone()]);
    let mut candidates =
        directories.flat_map(|directory| ["wireguard", "wireguard-go"].map(|name| directory.join(name)));
    if let Some(found) = candidates.find(|candidate| candidate.is_file()) {
        return Ok(found);
    }
    run(Command::new("go").args(["install", WIREGUARD_GO]).env("GOBIN", &tools))
        .context("wireguard-go is missing: install the package wireguard-go, or Go so that it can be built")?;
    Ok(tools.join("wireguard"))
}

/// Returns where tools are built: `tools` in the target directory, above the profile's.
fn tools() -> Result<PathBuf> {
    let executable = env::current_exe().context("this executable has no path")?;
    let target = executable.ancestors().find(|directory| directory.join(".rustc_info.json").is_file());
    Ok(target.context("this executable is not in a target directory")?.join("tools"))
}
