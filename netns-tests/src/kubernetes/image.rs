//! Images for pods of the lab: busybox, and programs of this machine on top of it.
//!
//! No registry is asked, so pods that use them say `imagePullPolicy: Never`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

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
        let busybox = culvert_image::program("busybox", "busybox-static")?;
        let tools = run(Command::new(&busybox).arg("--list"))?;
        // A program that is also one of busybox's tools: the image is to have the real one.
        let real =
            |tool: &str| self.programs.iter().any(|program| program.file_name().is_some_and(|name| name == tool));
        let tools = tools.lines().filter(|tool| *tool != "busybox" && !real(tool));
        let image = culvert_image::Image {
            reference: self.reference.clone(),
            links: tools.map(|tool| (tool.to_owned(), "busybox".to_owned())).collect(),
            programs: [busybox].into_iter().chain(self.programs.iter().cloned()).collect(),
            command: self.command.clone(),
            ..culvert_image::Image::default()
        };
        image.write(directory)
    }
}
