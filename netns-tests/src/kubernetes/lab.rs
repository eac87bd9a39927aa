//! Brings a lab of Kubernetes clusters up, and takes all of it down: this run's, or what a killed one left.
//!
//! Everything of a lab is found by its name: network namespaces and control groups that begin with `kube-NAME`, a folder
//! of files, a record. The processes are those in the network namespaces and what those have started.

use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::fcntl::Flock;

use super::cgroups;
use super::cluster::Cluster;
use super::image::Image;
use super::network::{Network, prefix, remove_host_link};
use super::plan::{Plan, check_lab_name};
use super::programs::{self, Programs};
use super::registry::{self, Process, Record};
use crate::command::run_with_input;
use crate::lab::{end_processes, names_in};
use crate::namespace::{self, Namespace};

/// Holds a folder for each lab: keys, logs, etcd's data, the nodes' containers.
const DIRECTORY: &str = "/var/lib/culvert-lab/kubernetes";

/// Lines of every log that a failure shows.
const TAIL: usize = 8;

/// Standing clusters. Dropping it takes them down, unless they are kept or were found.
pub struct Lab {
    plan: Plan,
    clusters: Vec<Cluster>,
    programs: Programs,
    /// Those who brought it up also wait for its processes, lest they stay as zombies.
    children: Vec<Child>,
    owned: Option<Flock<File>>,
}

impl Lab {
    /// Brings a lab up and waits until all its nodes and its DNS are ready.
    ///
    /// One lab stands at a time on a machine: this waits for the end of one that another process holds.
    ///
    /// # Errors
    ///
    /// Not root, something of the system is missing, another lab was kept, or a part did not start: the error has the
    /// ends of the logs.
    pub fn up(plan: &Plan) -> Result<Self> {
        plan.check()?;
        let lock = registry::lock()?;
        programs::check_needed()?;
        // After a restart of the machine there are files without records.
        let mut names = registry::names()?;
        names.extend(names_in(Path::new(DIRECTORY))?);
        for name in names {
            if registry::find(&name)?.is_some_and(|record| record.is_wanted()) {
                bail!(
                    "the lab {name} stands on this machine: take it down first, `cargo xtask lab down --name {name}`"
                );
            }
            remove(&name)?;
        }
        remove(&plan.name)?;
        let programs = Programs::built()?;
        let mut lab = Self::planned(plan, programs, Some(lock));
        lab.record(Some(Process::current()?)).write()?;
        if let Err(error) = lab.start() {
            bail!("the lab {} did not come up: {error:#}\nIts logs end with:\n{}", plan.name, lab.logs());
        }
        Ok(lab)
    }

    /// Finds a lab that stands; dropping the value leaves it.
    ///
    /// # Errors
    ///
    /// There is none with this name.
    pub fn find(name: &str) -> Result<Self> {
        check_lab_name(name)?;
        let record = registry::find(name)?.filter(Record::is_wanted);
        let record = record.with_context(|| format!("no lab {name} stands on this machine: `cargo xtask lab up`"))?;
        Ok(Self::planned(&record.plan, Programs::at(record.binary), None))
    }

    /// Takes a lab down, whatever is there of it.
    ///
    /// # Errors
    ///
    /// Not root, or something could not be removed: the error names it.
    pub fn down(name: &str) -> Result<()> {
        check_lab_name(name)?;
        let _lock = registry::lock()?;
        remove(name)
    }

    /// Lets the lab stand when this process ends.
    pub fn keep(mut self) -> Result<()> {
        self.record(None).write()?;
        self.owned = None;
        Ok(())
    }

    /// Returns the plan that it was brought up from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the clusters in the plan's order.
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// Returns the binary with Kubernetes' programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Returns the folder of all its files.
    pub fn directory(&self) -> PathBuf {
        directory(&self.plan.name)
    }

    /// Returns a router of the Internet; all that goes from one cluster to another crosses its link `core`.
    pub fn internet(&self) -> Namespace {
        let [internet, _] = Network::planned(&self.plan, &self.directory()).internet;
        internet
    }

    /// Returns a cluster by its name.
    ///
    /// # Panics
    ///
    /// If the plan has no such cluster.
    pub fn cluster(&self, name: &str) -> &Cluster {
        self.clusters.iter().find(|cluster| cluster.name() == name).expect("the lab has this cluster")
    }

    /// Returns the ends of all logs: control planes, nodes, their programs.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for log in logs_below(&self.directory()) {
            let content = fs::read(&log).unwrap_or_default();
            let content = String::from_utf8_lossy(&content);
            let lines: Vec<&str> = content.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
            let _ = writeln!(text, "--- {}\n{tail}", log.display());
        }
        text
    }

    fn planned(plan: &Plan, programs: Programs, owned: Option<Flock<File>>) -> Self {
        let directory = directory(&plan.name);
        let network = Network::planned(plan, &directory);
        let [internet, _] = &network.internet;
        let clusters = plan.clusters.iter().zip(&network.clusters);
        let clusters =
            clusters.map(|(plan, network)| Cluster::planned(plan, network, internet, &directory, &programs)).collect();
        Self { plan: plan.clone(), clusters, programs, children: Vec::new(), owned }
    }

    fn record(&self, owner: Option<Process>) -> Record {
        Record { plan: self.plan.clone(), binary: self.programs.binary().to_owned(), owner }
    }

    fn start(&mut self) -> Result<()> {
        let images = self.directory().join("images");
        fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;
        let archives = [Image::pause().write(&images)?, Image::busybox().write(&images)?];
        Network::planned(&self.plan, &self.directory()).make()?;
        for node in self.clusters.iter().flat_map(|cluster| &cluster.nodes) {
            cgroups::make(node.cgroup())?;
        }
        let started: Vec<Result<Vec<Child>>> = thread::scope(|scope| {
            let start = |cluster| {
                let archives = &archives;
                scope.spawn(move || Cluster::start(cluster, archives))
            };
            let threads: Vec<_> = self.clusters.iter().map(start).collect();
            threads.into_iter().map(|thread| thread.join().expect("a cluster's start does not panic")).collect()
        });
        for (cluster, children) in self.clusters.iter().zip(started) {
            self.children.extend(children.with_context(|| format!("cluster {}", cluster.name()))?);
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned.is_none() {
            return;
        }
        if let Err(error) = remove(&self.plan.name) {
            eprintln!("The lab {} could not be removed: {error:#}", self.plan.name);
        }
        for child in &mut self.children {
            // They were killed above.
            let _ = child.wait();
        }
    }
}

fn directory(lab: &str) -> PathBuf {
    Path::new(DIRECTORY).join(lab)
}

fn remove(lab: &str) -> Result<()> {
    let beginning = format!("{}-", prefix(lab));
    let namespaces = names_in(Path::new(namespace::DIRECTORY))?;
    let namespaces: Vec<&String> = namespaces.iter().filter(|name| name.starts_with(&beginning)).collect();
    namespaces.iter().try_for_each(|name| end_processes(name))?;
    if !namespaces.is_empty() {
        remove_host_link()?;
    }
    let lines: String = namespaces.iter().map(|name| format!("netns delete {name}\n")).collect();
    run_with_input(Command::new("ip").args(["-batch", "-"]), &lines)?;
    cgroups::remove(&beginning)?;
    let directory = directory(lab);
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    registry::remove(lab)
}

fn logs_below(directory: &Path) -> Vec<PathBuf> {
    let mut logs = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        // The files of nodes' containers are not the lab's logs.
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| !path.ends_with("files") && !path.ends_with("etcd"))
        {
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log") {
                logs.push(path);
            }
        }
    }
    logs.sort();
    logs
}
