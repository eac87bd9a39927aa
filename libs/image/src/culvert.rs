//! What the image of Culvert holds: its own programs, what they run, and the certificates that public servers are
//! checked against. There is no shell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{Image, program, run};

/// Culvert's own programs, by their names in the image's `/bin`.
pub const PROGRAMS: [&str; 4] = ["culvert-gateway", "culvert-route-agent", "culvert-globalnet", "culvert"];

/// The image that `deploy/kubernetes` names.
pub const REFERENCE: &str = concat!("culvert.io/culvert:", env!("CARGO_PKG_VERSION"));

/// What these run, and the Debian packages that have it.
const TOOLS: [(&str, &str); 2] = [("nft", "nftables"), ("conntrack", "conntrack")];

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Returns the image of Culvert from the binaries in a directory. Copies without debug information are put into `scratch`.
///
/// # Errors
///
/// A binary or a tool is not there: the error names it and what brings it.
pub fn culvert(reference: &str, binaries: &Path, scratch: &Path) -> Result<Image> {
    let stripped = scratch.join("bin");
    fs::create_dir_all(&stripped).with_context(|| format!("cannot make {}", stripped.display()))?;
    let strip = |name: &&str| {
        let (from, to) = (binaries.join(name), stripped.join(name));
        if !from.is_file() {
            bail!("there is no {}: build it first", from.display());
        }
        run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&to).arg(&from))?;
        Ok(to)
    };
    let mut programs = PROGRAMS.iter().map(strip).collect::<Result<Vec<_>>>()?;
    for (name, package) in TOOLS {
        programs.push(program(name, package)?);
    }
    let certificates = PathBuf::from(CERTIFICATES);
    if !certificates.is_file() {
        bail!("there is no {CERTIFICATES} on this machine: install the package ca-certificates");
    }
    Ok(Image {
        reference: reference.to_owned(),
        programs,
        files: vec![certificates],
        command: vec!["/bin/culvert".to_owned()],
        ..Image::default()
    })
}
