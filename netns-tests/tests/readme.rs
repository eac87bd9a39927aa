//! What README shows for sites without Kubernetes works as it is typed: on each of two sites, in a shell of its own.
//!
//! Only the surroundings are made up: `/var/lib` and `/usr/local/bin` are the site's own, `cargo` has built already, and
//! the way to the other site's shell is not `ssh`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use culvert_netns_tests::{Binaries, ClusterPlan, Lab, Role, Topology, ping, transfer, wait_for};

const README: &str = include_str!("../../README.md");
const READY: Duration = Duration::from_secs(30);

/// Returns the indented lines of a section.
fn lines_of(heading: &str) -> Vec<&'static str> {
    let (_, section) = README.split_once(&format!("\n## {heading}\n")).expect("the section is there");
    let section = section.split("\n## ").next().unwrap();
    section.lines().filter_map(|line| line.strip_prefix("    ")).collect()
}

/// A shell on a site's gateway, into which lines are typed.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn open(lab: &Lab, id: &str, surroundings: &Path) -> Self {
        let mut command = lab.node(id, "gw").command("bash");
        const ENTER: &str = "mount --bind \"$1\" /mnt && cd /mnt && source /mnt/enter \"$2\" && exec bash";
        command.args(["-c", ENTER, "bash"]).arg(surroundings).arg(id).env("RSYNC_RSH", "/mnt/ssh");
        let log = fs::File::create(surroundings.join(format!("{id}.log"))).unwrap();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    /// Types a line and returns what comes of it, once it has ended well.
    fn type_line(&mut self, line: &str) -> String {
        const MARK: &str = "culvert-test-mark";
        writeln!(self.input, "{line}\nprintf '\\n{MARK} %s\\n' $?").unwrap();
        let mut text = String::new();
        loop {
            let mut answer = String::new();
            let length = self.output.read_line(&mut answer).unwrap();
            assert!(length > 0, "the shell has ended after {line:?}: {text}");
            match answer.strip_prefix(MARK) {
                Some(status) => {
                    assert_eq!(status.trim(), "0", "{line:?}: {text}");
                    return text;
                }
                None => text.push_str(&answer),
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Returns what the shells and the daemons in them have written to standard error.
fn log(surroundings: &Path) -> String {
    ["edge", "office"].map(|id| fs::read_to_string(surroundings.join(id).with_extension("log")).unwrap()).join("\n")
}

/// Makes what the two sites' shells find around them, and returns its directory.
fn make_surroundings(lab: &Lab) -> PathBuf {
    let root = lab.cluster("edge").records().with_file_name("surroundings");
    for id in ["edge", "office"] {
        for directory in ["lib", "bin"] {
            fs::create_dir_all(root.join(id).join(directory)).unwrap();
        }
    }
    let binaries = Binaries::find().unwrap().daemon(Role::Gateway).parent().unwrap().to_owned();
    fs::create_dir(root.join("target")).unwrap();
    symlink(binaries, root.join("target/release")).unwrap();
    // All of this lies below /var/lib, so it is looked at from another place once the site $1 has its own.
    let enter = "mount --bind /mnt/$1/bin /usr/local/bin && mount --bind /mnt/$1/lib /var/lib && \
                 cargo() { [ \"$*\" = 'build --release' ]; } && export -f cargo\n";
    let ssh = "#!/bin/sh\nexec unshare --mount bash -c 'source /mnt/enter \"$1\" && eval \"${*:2}\"' sh \"$@\"\n";
    for (name, text) in [("enter", enter), ("ssh", ssh)] {
        fs::write(root.join(name), text).unwrap();
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    root
}

#[test]
fn two_sites_without_kubernetes_are_joined_by_what_readme_says() {
    let lines = lines_of("Sites without Kubernetes");
    assert!(!lines.is_empty() && lines.len() <= 10, "{lines:#?}");
    let mut topology = Topology::routed();
    topology.clusters = vec![
        ClusterPlan {
            id: "edge".to_owned(),
            pod_cidr: "10.9.0.0/16".parse().unwrap(),
            service_cidr: "100.9.0.0/16".parse().unwrap(),
            behind_nat: true,
            ..ClusterPlan::west()
        },
        ClusterPlan { id: "office".to_owned(), ..ClusterPlan::east() },
    ];
    for cluster in &mut topology.clusters {
        cluster.nodes.truncate(1);
    }
    let lab = Lab::build(&topology).unwrap();
    let surroundings = make_surroundings(&lab);
    let (edge, office) = (lab.cluster("edge"), lab.cluster("office"));
    // "With the site's own name and subnets."
    let at_edge = |line: &str| line.replace("203.0.113.9", &edge.wan_address.to_string());
    let at_office = |line: &str| {
        let line = line.replace("office", "OTHER").replace("edge", "office").replace("OTHER", "edge");
        let line = line.replace("10.9.0.0/16", &office.plan.pod_cidr.to_string());
        let line = line.replace("100.9.0.0/16", &office.plan.service_cidr.to_string());
        line.replace("203.0.113.9", &lab.node("office", "gw").address.to_string())
    };
    let mut shells = [Shell::open(&lab, "edge", &surroundings), Shell::open(&lab, "office", &surroundings)];
    let copies = lines.iter().position(|line| line.starts_with("rsync")).unwrap();
    for line in &lines[..copies] {
        shells[0].type_line(&at_edge(line));
        shells[1].type_line(&at_office(line));
    }
    shells[0].type_line(&at_edge(lines[copies]));
    shells[1].type_line(&at_office(lines[copies]));

    for (shell, other, line) in [(0, "office", at_edge(lines[copies + 1])), (1, "edge", at_office(lines[copies + 1]))] {
        let connected = || {
            let shown = shells[shell].type_line(&line);
            let joined = shown.lines().any(|line| line.contains(other) && line.contains("connected"));
            anyhow::ensure!(joined, "{shown}");
            Ok(Some(()))
        };
        wait_for(&format!("the connection to {other}"), READY, connected)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", log(&surroundings)));
    }
    let (here, there) = (lab.node("edge", "gw"), lab.node("office", "gw"));
    let answered = || Ok((ping(&here.pod, there.pod_address, 1, Duration::from_millis(10))?.lost == 0).then_some(()));
    wait_for("an answer", READY, answered).unwrap();
    let to = std::net::SocketAddrV4::new(there.pod_address, 7000);
    assert_eq!(transfer(&here.pod, &there.pod, to, b"hello").unwrap().source, here.pod_address);
}
