//! Bad input at the start: every daemon and tool ends with an exit code and one line that names the thing, and no panic.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use culvert_netns_tests::{Binaries, Deployment, Lab, Node, NodePlan, Role, Settings, Topology, records, wait_for};

const END: Duration = Duration::from_secs(15);

/// A node without any daemon on it.
struct Stage {
    lab: Lab,
    binaries: Binaries,
}

impl Stage {
    fn new() -> Self {
        let mut topology = Topology::routed();
        topology.clusters.truncate(1);
        topology.cluster_mut("east").nodes = vec![NodePlan::gateway("gw")];
        Self { binaries: Binaries::find().unwrap(), lab: Lab::build(&topology).unwrap() }
    }

    fn node(&self) -> &Node {
        self.lab.node("east", "gw")
    }

    /// Returns a path in the lab's memory.
    fn path(&self, name: &str) -> PathBuf {
        self.lab.cluster("east").records().with_file_name(name)
    }

    /// Starts a daemon with good flags and these, by way of `wrapper`, and has it fail with all these words in its line.
    fn assert_fails(&self, role: Role, wrapper: &[&str], flags: &[&str], words: &[&str]) {
        let records = self.lab.cluster("east").records();
        let records = records.to_string_lossy();
        let mut all = vec!["--cluster-id", "east", "--cluster-cidr", "10.1.0.0/16", "--records", &records];
        for flag in flags.chunks(2) {
            // A flag that is given counts instead of the good one.
            if let Some(place) = all.iter().position(|good| *good == flag[0]) {
                all.drain(place..place + 2);
            }
            all.extend(flag);
        }
        self.assert_program_fails(&self.binaries.daemon(role), wrapper, &all, words);
    }

    fn assert_program_fails(&self, program: &Path, wrapper: &[&str], flags: &[&str], words: &[&str]) {
        let mut command = match wrapper {
            [] => self.node().command(program),
            [first, rest @ ..] => {
                let mut command = self.node().command(first);
                command.args(rest).arg(program);
                command
            }
        };
        let (succeeded, text) = outcome(command.args(flags));
        assert!(!succeeded, "{flags:?}: {text}");
        assert!(!text.contains("panicked"), "{flags:?}: {text}");
        let name = program.file_name().unwrap().to_string_lossy();
        let beginning = format!("{name}: ");
        let is_last = |line: &&str| line.starts_with(&beginning) || line.starts_with("error: ");
        let lines: Vec<&str> = text.lines().filter(is_last).collect();
        let [line] = lines[..] else { panic!("{flags:?}: one line that says why: {text}") };
        // The parser of the command line puts names that are missing below.
        let reason = if line.starts_with("error: ") { &text[text.find(line).unwrap()..] } else { line };
        assert!(words.iter().all(|word| reason.contains(word)), "{words:?}: {reason}");
    }
}

/// Runs a command to its end; whether it succeeded, and what it wrote to standard error.
fn outcome(command: &mut Command) -> (bool, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = wait_for("the end of the program", END, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (ended.unwrap_or_else(|error| panic!("{error}: {text}")).success(), text)
}

#[test]
fn wrong_flags_are_named() {
    let stage = Stage::new();
    for role in [Role::Gateway, Role::RouteAgent] {
        stage.assert_fails(role, &[], &["--colour", "blue"], &["--colour"]);
        stage.assert_fails(role, &[], &["--health-check", "perhaps"], &["--health-check", "perhaps"]);
        stage.assert_fails(role, &[], &["--log-level", "loud"], &["loud", "debug"]);
        let program = stage.binaries.daemon(role);
        stage.assert_program_fails(&program, &[], &["--cluster-id", "east"], &["--cluster-cidr"]);
        let nowhere = ["--cluster-id", "east", "--cluster-cidr", "10.1.0.0/16"];
        stage.assert_program_fails(&program, &[], &nowhere, &["records", "--records", "--kubeconfig"]);
    }
    stage.assert_fails(Role::Gateway, &[], &["--cable-driver", "libreswan"], &["libreswan", "wireguard"]);
    stage.assert_fails(Role::Gateway, &[], &["--natt-port", "70000"], &["--natt-port", "70000"]);
    stage.assert_fails(Role::Gateway, &[], &["--public-ip", "ipv4:here"], &["--public-ip", "here"]);
    stage.assert_fails(Role::Gateway, &[], &["--lease-duration", "5"], &["lease", "5"]);
    let tool = stage.binaries.tool();
    stage.assert_program_fails(&tool, &[], &["show", "everything"], &["everything", "connections"]);
    let nowhere = stage.path("nowhere");
    let nowhere = nowhere.to_string_lossy();
    stage.assert_program_fails(&tool, &[], &["show", "all", "--records", &nowhere], &[&nowhere]);
}

#[test]
fn a_cidr_that_is_none_is_named() {
    let stage = Stage::new();
    for role in [Role::Gateway, Role::RouteAgent] {
        for flag in ["--cluster-cidr", "--service-cidr"] {
            for value in ["10.1.0.0", "10.1.0.0/33", "ten", "0.0.0.0/0"] {
                stage.assert_fails(role, &[], &[flag, value], &[flag, value]);
            }
        }
    }
}

#[test]
fn a_cluster_id_that_is_no_dns_label_is_named() {
    let stage = Stage::new();
    for role in [Role::Gateway, Role::RouteAgent] {
        for id in ["East", "east.example", "east-", "", "e_st"] {
            stage.assert_fails(role, &[], &["--cluster-id", id], &["--cluster-id", &format!("{id:?}"), "DNS label"]);
        }
    }
}

#[test]
fn a_key_that_cannot_be_used_is_named() {
    let stage = Stage::new();
    let key = stage.path("wireguard.key");
    let shown = key.to_string_lossy().into_owned();
    let flags = ["--key-file", &shown];
    let set_mode = |mode: u32| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();

    fs::write(&key, "no key at all\n").unwrap();
    set_mode(0o600);
    stage.assert_fails(Role::Gateway, &[], &flags, &[&shown, "delete it"]);
    set_mode(0o644);
    stage.assert_fails(Role::Gateway, &[], &flags, &[&shown, "644"]);
    set_mode(0);
    let without = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"];
    stage.assert_fails(Role::Gateway, &without, &flags, &[&shown, "Permission denied"]);
    stage.assert_fails(Role::Gateway, &[], &["--psk-file", "/run/no-psk"], &["/run/no-psk"]);
}

/// A gateway there waits and leaves the lease to others; a route agent goes on and says so.
#[test]
fn a_node_without_an_address_is_named() {
    let lab = Stage::new().lab;
    let namespace = lab.node("east", "gw").namespace.clone();
    let route = namespace.run("ip route show default").unwrap();
    namespace.ip("route delete default").unwrap();
    let mut deployment = Deployment::new(lab, Settings::default()).unwrap();
    for role in [Role::Gateway, Role::RouteAgent] {
        deployment.start("east", "gw", role).unwrap();
    }
    let said = |deployment: &mut Deployment, words: &str| {
        let log = deployment.daemon("east", "gw", Role::Gateway).log_tail(20);
        anyhow::ensure!(log.contains(words), "{log}");
        Ok(Some(()))
    };
    let missing = "node east-gw has no address towards the Internet: add a default route, or give --private-ip";
    wait_for("a gateway that misses its address", END, || said(&mut deployment, missing)).unwrap();
    deployment
        .explain(wait_for("a route agent that misses its address", END, || {
            let agents = records(&deployment.lab.cluster("east").records(), "routeagents")?;
            let said = agents.first().and_then(|agent| agent["status"]["statusFailure"].as_str()).unwrap_or_default();
            let named = said.contains("this node's address is not known") && said.contains("--node-ip");
            anyhow::ensure!(named, "it says {said:?}");
            Ok(Some(()))
        }))
        .unwrap();
    let leases = records(&deployment.lab.cluster("east").records(), "leases").unwrap();
    assert!(leases.is_empty(), "{leases:?}");
    namespace.ip(&format!("route add {}", route.trim())).unwrap();
    wait_for("a gateway with an address", END, || said(&mut deployment, "Gateway is ready")).unwrap();
}

#[test]
fn a_key_on_a_disk_is_refused() {
    let stage = Stage::new();
    let key = Path::new(env!("CARGO_TARGET_TMPDIR")).join("culvert.key");
    let shown = key.to_string_lossy().into_owned();
    stage.assert_fails(Role::Gateway, &[], &["--key-file", &shown], &[&shown, "tmpfs", "--key-file"]);
    assert!(!key.exists());
}

#[test]
fn a_port_in_use_is_named() {
    let stage = Stage::new();
    for (port, way_out) in [(4500, "--natt-port"), (4490, "--nat-discovery-port")] {
        let held = stage.node().namespace.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?)).unwrap();
        stage.assert_fails(Role::Gateway, &[], &[], &[&port.to_string(), "in use", way_out]);
        drop(held);
    }
}

#[test]
fn a_missing_tun_device_is_named() {
    let stage = Stage::new();
    // Whoever may make device nodes could make it anew.
    let script = "mount -t tmpfs none /dev/net && exec setpriv --bounding-set -mknod -- \"$@\"";
    let hide = ["sh", "-c", script, "sh"];
    stage.assert_fails(Role::Gateway, &hide, &[], &["/dev/net/tun", "tun"]);
}

#[test]
fn a_missing_capability_is_named() {
    let stage = Stage::new();
    for role in [Role::Gateway, Role::RouteAgent] {
        let without = ["setpriv", "--bounding-set", "-net_admin", "--"];
        stage.assert_fails(role, &without, &[], &["CAP_NET_ADMIN", "root"]);
    }
}
