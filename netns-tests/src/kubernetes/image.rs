//! Images for pods, made on this machine from its own programs: an archive as `docker save` writes it.
//!
//! No registry is asked, so pods that use them say `imagePullPolicy: Never`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::command::run;

/// The image that every node has: a shell and small tools, such as `ping`, `wget`, `nslookup` and `httpd`.
pub const BUSYBOX: &str = "culvert.lab/busybox:1";

/// The image that holds a pod's namespaces. It is busybox that waits: the end of a pod's sandbox is a SIGKILL.
pub(crate) const PAUSE: &str = "culvert.lab/pause:1";

/// An image on top of busybox.
#[derive(Clone, Debug)]
pub struct Image {
    /// As pods name it, `culvert.lab/name:1`.
    pub reference: String,
    /// Programs of this machine, each put into `/bin` with the shared libraries that it needs.
    pub programs: Vec<PathBuf>,
    /// What runs in a container that names no command.
    pub command: Vec<String>,
}

impl Image {
    pub(crate) fn busybox() -> Self {
        Self { reference: BUSYBOX.to_owned(), programs: Vec::new(), command: vec!["/bin/sh".to_owned()] }
    }

    pub(crate) fn pause() -> Self {
        let command = ["/bin/tail", "-f", "/dev/null"].map(ToOwned::to_owned).to_vec();
        Self { reference: PAUSE.to_owned(), programs: Vec::new(), command }
    }

    /// Writes the image's archive into a directory and returns its path.
    ///
    /// # Errors
    ///
    /// A program is not there: the error names it.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        let name = self.reference.replace(['/', ':'], "_");
        let parts = directory.join(format!("{name}.parts"));
        let root = parts.join("root");
        fs::create_dir_all(root.join("bin")).with_context(|| format!("cannot make {}", root.display()))?;
        self.fill(&root)?;
        let layer = parts.join("layer.tar");
        archive(&root, &layer, &["."])?;
        let digest: String = Sha256::digest(fs::read(&layer)?).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(parts.join("config.json"), self.config(&digest).to_string())?;
        let manifest = json!([{"Config": "config.json", "RepoTags": [self.reference], "Layers": ["layer.tar"]}]);
        fs::write(parts.join("manifest.json"), manifest.to_string())?;
        let path = directory.join(format!("{name}.tar"));
        archive(&parts, &path, &["manifest.json", "config.json", "layer.tar"])?;
        fs::remove_dir_all(&parts)?;
        Ok(path)
    }

    fn fill(&self, root: &Path) -> Result<()> {
        let busybox = PathBuf::from(run(Command::new("sh").args(["-c", "command -v busybox"]))?.trim());
        copy_program(&busybox, root)?;
        for tool in run(Command::new(&busybox).arg("--list"))?.lines().filter(|tool| *tool != "busybox") {
            symlink("busybox", root.join("bin").join(tool))?;
        }
        for program in &self.programs {
            copy_program(program, root)?;
        }
        for directory in ["etc", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
            fs::create_dir_all(root.join(directory))?;
        }
        Ok(())
    }

    fn config(&self, layer: &str) -> serde_json::Value {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        json!({
            "architecture": architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/bin"], "Cmd": self.command},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
            "history": [{"created": "1970-01-01T00:00:00Z"}],
        })
    }
}

/// Puts a program and its libraries into an image.
fn copy_program(program: &Path, root: &Path) -> Result<()> {
    let name = program.file_name().with_context(|| format!("{} is no program", program.display()))?;
    let target = root.join("bin").join(name);
    // It may be one of busybox's tools as well: the image is to have the real one.
    if target.is_symlink() {
        fs::remove_file(&target)?;
    }
    copy(program, &target)?;
    for library in libraries(program)? {
        copy(&library, &root.join(library.strip_prefix("/").unwrap_or(&library)))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let directory = to.parent().context("a copy is in a directory")?;
    fs::create_dir_all(directory)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} into an image", from.display()))?;
    Ok(())
}

/// Returns the shared libraries that a program needs, the loader included; a static program needs none.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    // It fails for static programs, and says so in words only.
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    Ok(libraries_in(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads lines like `libc.so.6 => /lib/libc.so.6 (0x7f00)` and `/lib64/ld-linux-x86-64.so.2 (0x7f01)`.
fn libraries_in(listing: &str) -> Vec<PathBuf> {
    let words = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.filter(|word| !word.ends_with(':')).map(PathBuf::from).collect()
}

/// Packs entries of a directory so that the same files give the same bytes.
fn archive(directory: &Path, path: &Path, entries: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--create", "--file"]);
    run(tar.arg(path).arg("--directory").arg(directory).args(entries))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_lists() {
        let listing = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f00)\n\t/lib64/ld.so (0x7f01)\n";
        assert_eq!(libraries_in(listing), [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld.so")]);
        assert!(libraries_in("\tnot a dynamic executable\n").is_empty());
    }
}
