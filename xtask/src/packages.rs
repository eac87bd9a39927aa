//! Which system packages the demo and the tests need, and how a Debian machine gets them.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::succeed;

/// Programs that must be there, any one of those in a row, and the Debian packages that have them.
const NEEDED: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("conntrack", "conntrack"),
    ("iperf3", "iperf3"),
    ("rsync", "rsync"),
    ("wg", "wireguard-tools"),
    // Where there is Go, the tests build it from its module.
    ("wireguard wireguard-go go", "wireguard-go"),
];

/// What more the lab of Kubernetes clusters runs.
const KUBERNETES: [(&str, &str); 8] = [
    ("busybox", "busybox-static"),
    ("containerd", "containerd"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("runc", "runc"),
    ("tar", "tar"),
];

/// What the image carries, and what packs it.
const IMAGES: [(&str, &str); 5] = [
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
    ("strip", "binutils"),
    ("tar", "tar"),
];

/// What the packages are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The demo and the bench: clusters made of network namespaces.
    Namespaces,
    /// Real Kubernetes clusters as well, and images for them.
    Kubernetes,
    /// The image alone.
    Images,
}

/// Installs what is missing, and says which before.
///
/// # Errors
///
/// Something is missing and this is no Debian, or the installation failed.
pub(crate) fn install(purpose: Purpose) -> Result<()> {
    let needed: Vec<&(&str, &str)> = match purpose {
        Purpose::Namespaces => NEEDED.iter().collect(),
        Purpose::Kubernetes => NEEDED.iter().chain(&KUBERNETES).chain(&IMAGES).collect(),
        Purpose::Images => IMAGES.iter().collect(),
    };
    let needed = needed.into_iter();
    let mut missing: Vec<&str> =
        needed.filter(|(programs, _)| !programs.split(' ').any(installed)).map(|(_, name)| *name).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("Missing system packages, to be installed: {}", missing.join(" "));
    if !installed("apt-get") {
        bail!("this system has no apt-get: install {} by its own means", missing.join(", "));
    }
    let apt = || {
        let mut command = Command::new("apt-get");
        // Standard output is for results, which may be JSON.
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet").stdout(std::io::stderr());
        command
    };
    succeed(apt().arg("update"))?;
    succeed(apt().args(["install", "--yes", "--no-install-recommends"]).args(missing))
}

/// Tells whether there is Go, which builds Kubernetes: no Debian package is new enough everywhere.
///
/// # Errors
///
/// There is none, neither in the path nor where its own installer puts it.
pub(crate) fn need_go() -> Result<()> {
    if !installed("go") && !installed("/usr/local/go/bin/go") {
        bail!("Kubernetes is built from source, which needs Go 1.21 or newer: get it from https://go.dev/dl");
    }
    Ok(())
}

fn installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| Path::new(&directory).join(program).is_file())
}
