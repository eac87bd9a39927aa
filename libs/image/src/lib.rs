//! Makes container images from programs of this machine and the libraries they need: no base, no shell, no registry.
//!
//! An image is one archive as `docker save` writes it, which `docker load` and `ctr images import` take. The same files
//! give the same bytes. Libraries are those that `ldd` lists.

mod culvert;

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

pub use culvert::{PROGRAMS, REFERENCE, culvert};

/// What an image is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// As pods name it, `culvert.lab/name:1`.
    pub reference: String,
    /// Programs of this machine, each put into `/bin` with the shared libraries that it needs.
    pub programs: Vec<PathBuf>,
    /// Other names in `/bin` of a program there: the name, and the program's.
    pub links: Vec<(String, String)>,
    /// Other files, each at the path that it has on this machine.
    pub files: Vec<PathBuf>,
    /// What runs in a container that names no command.
    pub command: Vec<String>,
}

impl Image {
    /// Writes the image's archive into a directory and returns its path.
    ///
    /// # Errors
    ///
    /// A program or a file is not there: the error names it.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        let name = self.reference.replace(['/', ':'], "_");
        let parts = directory.join(format!("{name}.parts"));
        // A run that was killed may have left some.
        if parts.exists() {
            fs::remove_dir_all(&parts)?;
        }
        let root = parts.join("root");
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
        for directory in ["bin", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        for program in &self.programs {
            let name = program.file_name().with_context(|| format!("{} is no program", program.display()))?;
            copy(program, &root.join("bin").join(name))?;
            for library in libraries(program)? {
                copy(&library, &beneath(root, &library))?;
            }
        }
        for (name, program) in &self.links {
            symlink(program, root.join("bin").join(name)).with_context(|| format!("cannot link {name}"))?;
        }
        self.files.iter().try_for_each(|file| copy(file, &beneath(root, file)))
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

/// Finds a program of this machine by its name, as a shell does.
///
/// # Errors
///
/// It is in no directory of `$PATH`: the error names the Debian package that has it.
pub fn program(name: &str, package: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("there is no program {name} on this machine: install the package {package}"))
}

fn beneath(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
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
    let listing = String::from_utf8_lossy(&output.stdout);
    if let Some(missing) = listing.lines().find(|line| line.ends_with("=> not found")) {
        bail!("{} lacks a library: {}", program.display(), missing.trim());
    }
    Ok(libraries_in(&listing))
}

/// Reads lines like `libc.so.6 => /lib/libc.so.6 (0x7f00)` and `/lib64/ld-linux-x86-64.so.2 (0x7f01)`.
fn libraries_in(listing: &str) -> Vec<PathBuf> {
    let words = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.filter(|word| !word.ends_with(':')).map(PathBuf::from).collect()
}

/// Packs entries of a directory so that the same files give the same bytes, whatever this process' umask.
fn archive(directory: &Path, path: &Path, entries: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--mode=u+rw,go=rX"]);
    tar.args(["--format=gnu", "--create", "--file"]).arg(path).arg("--directory").arg(directory).args(entries);
    run(&mut tar)
}

/// Runs a tool that says on standard error why it fails.
fn run(command: &mut Command) -> Result<()> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {tool}"))?;
    if !output.status.success() {
        bail!("{tool} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
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

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let image = Image {
            reference: "culvert.lab/tar:1".to_owned(),
            programs: vec![program("tar", "tar").unwrap()],
            links: vec![("gnutar".to_owned(), "tar".to_owned())],
            command: vec!["/bin/tar".to_owned()],
            ..Image::default()
        };
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let archives = [&one, &other].map(|directory| fs::read(image.write(directory.path()).unwrap()).unwrap());
        assert!(archives[0] == archives[1]);
        assert_eq!(fs::read_dir(one.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = program("no-such-program", "some-package").unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("some-package"), "{error}");
        let image = Image { programs: vec!["/no/such/program".into()], ..Image::default() };
        let error = image.write(tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
        assert!(error.contains("/no/such/program"), "{error}");
    }
}
