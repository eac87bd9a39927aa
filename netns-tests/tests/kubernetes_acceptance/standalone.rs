//! A site without Kubernetes joins the broker of real clusters by `culvert join --standalone`, from a directory of records.
//!
//! Its machine is north's node. The site knows nothing of the Kubernetes there; it has made the pods that are reached.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::ensure;
use culvert_netns_tests::kubernetes::Node;
use culvert_netns_tests::{Binaries, Daemon, Role, leftovers, run, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::world::{PATIENCE, Traffic, World, assert_joined, broker_records};

const SITE: &str = "edge";

/// A site behind NAT joins, is repaired, and leaves. The clusters lose nothing.
pub(crate) fn a_site_without_kubernetes_joins_and_leaves(world: &World) {
    let [east, west, north] = world.sites();
    let network = &north.cluster.plan.network;
    let machine = Machine::new(world);
    let traffic = Traffic::start(east, west);
    let line =
        format!("join broker-info.subm --standalone --records {} --clusterid {SITE}", machine.records().display());
    let taken = machine.culvert(&format!("{line} --clustercidr {}", east.cluster.plan.network.pod_cidr));
    let words = String::from_utf8_lossy(&taken.stderr);
    assert!(!taken.status.success() && words.contains("east"), "{words}");
    assert!(!machine.variables().exists());
    let line = format!(
        "{line} --clustercidr {} --servicecidr {} --public-ip ipv4:{}",
        network.pod_cidr, network.service_cidr, north.cluster.public_address
    );
    let said = machine.done(&line);
    assert!(said.starts_with("Site edge has joined\n"), "{said}");

    let mut daemons = [Role::RouteAgent, Role::Gateway].map(|role| machine.start(role));
    for daemon in &mut daemons {
        daemon.wait_ready(PATIENCE).unwrap();
    }
    east.wait_gateways(&["node2", "node1"], &["west", SITE]);
    west.wait_gateways(&["node2"], &["east", SITE]);
    machine.wait_connected();
    for other in [east, west] {
        assert_joined(north, other);
    }
    let token = machine.token();
    assert!(machine.done(&line).starts_with("Site edge is repaired\n"));
    assert_ne!(machine.token(), token);
    machine.wait_connected();

    let uninstall = format!("uninstall --standalone --yes --records {}", machine.records().display());
    let refused = machine.culvert(&uninstall);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && words.contains("stop it"), "{words}");
    for daemon in &mut daemons {
        daemon.signal(Signal::SIGTERM).unwrap();
        daemon.wait_end(PATIENCE).unwrap();
    }
    machine.done(&uninstall);
    assert_eq!(leftovers(&machine.node.namespace).unwrap(), Vec::<String>::new());
    assert!(!machine.variables().exists());
    east.wait_gateways(&["node2", "node1"], &["west"]);
    west.wait_gateways(&["node2"], &["east"]);
    let left = broker_records(east);
    assert!(left.iter().all(|record| !record.contains(SITE)), "{left:?}");
    traffic.finish_without_loss();
}

/// The machine of the site.
struct Machine<'a> {
    node: &'a Node,
    /// Where the broker's file is.
    directory: PathBuf,
    binaries: Binaries,
    /// For records and keys; no disk may keep the latter.
    memory: TempDir,
}

impl<'a> Machine<'a> {
    fn new(world: &'a World) -> Self {
        Self {
            node: &world.north.cluster.nodes[0],
            directory: world.installer.directory().to_owned(),
            binaries: Binaries::find().unwrap(),
            memory: tempfile::tempdir_in("/dev/shm").unwrap(),
        }
    }

    fn records(&self) -> PathBuf {
        self.memory.path().join("records")
    }

    fn variables(&self) -> PathBuf {
        self.memory.path().join("site/site.env")
    }

    fn token(&self) -> String {
        fs::read_to_string(self.memory.path().join("site/broker/token")).unwrap()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.node.namespace.command(program);
        command.env("NODE_NAME", "edge-gw").env("CULVERT_KEY_FILE", self.memory.path().join("wireguard.key"));
        command.current_dir(&self.directory);
        command
    }

    fn culvert(&self, line: &str) -> Output {
        self.command(self.binaries.tool().to_str().unwrap()).args(line.split_whitespace()).output().unwrap()
    }

    /// Runs a line of `culvert` that succeeds, and returns what it prints.
    fn done(&self, line: &str) -> String {
        let output = self.culvert(line);
        assert!(output.status.success(), "culvert {line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a daemon as the command says that it is started.
    fn start(&self, role: Role) -> Daemon {
        let mut command = self.command("sh");
        let binary = self.binaries.daemon(role);
        let line = format!("set -a; . {}; set +a; exec {}", self.variables().display(), binary.display());
        command.args(["-c", &line]);
        let log = self.directory.join(format!("site-{}.log", role.as_str()));
        Daemon::start(role, command, &log).unwrap()
    }

    /// Waits until the site's own diagnosis finds nothing wrong with its connections, of which there are two.
    fn wait_connected(&self) {
        wait_for("a site that is connected", PATIENCE, || {
            let mut culvert = self.command(self.binaries.tool().to_str().unwrap());
            culvert.args(["diagnose", "connections", "--output", "json", "--records"]).arg(self.records());
            let report: Value = serde_json::from_str(&run(&mut culvert)?)?;
            ensure!(report["healthy"] == true, "{report}");
            ensure!(report["checks"].as_array().is_some_and(|checks| checks.len() >= 2), "{report}");
            Ok(Some(()))
        })
        .unwrap();
    }
}
