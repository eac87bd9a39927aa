//! `uninstall`: takes this cluster out of its clusterset, and everything of Culvert off its nodes and its API server; a
//! broker that it has too, once that has no members.
//!
//! First the daemons end; then each node is cleaned by the daemons' own uninstallation, and the last gateway takes the
//! cluster's records back at the broker; then the objects go. What fails is told in the end, and a second run goes on:
//! what cleans is there, though parked, before what it cleans up after is deleted.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culvert_model::ClusterId;
use culvert_setup::manifests::{DAEMONS, parked, uninstaller, uninstaller_name, unparked};
use culvert_setup::names::OPERATOR_NAMESPACE;
use culvert_setup::{Kind, ObjectRef, Server};
use tokio::time::{Instant, sleep};

use crate::access::AccessArgs;
use crate::globalnet::{self, Leaving};
use crate::join::confirm;
use crate::join_args::SITE_RECORDS;
use crate::progress::{POLL, Told, look, tell};
use crate::site;

/// How long pods may take to end, and nodes to be cleaned (Submariner chapter 5).
const CLEANED: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    access: AccessArgs,
    /// Take out a site without Kubernetes, whose daemons have ended.
    #[arg(long, conflicts_with_all = ["kubeconfig", "context", "cluster", "user"])]
    standalone: bool,
    /// Directory of the records of such a site.
    #[arg(long, value_name = "DIR", requires = "standalone", default_value = SITE_RECORDS)]
    records: PathBuf,
    /// The broker's file, by whose rights this cluster's global addresses are given back.
    #[arg(long, value_name = "FILE")]
    broker_info: Option<PathBuf>,
    /// Only give back the global addresses of a cluster that is gone, or that was uninstalled without the broker's file.
    #[arg(long, value_name = "ID", requires = "broker_info", conflicts_with = "standalone")]
    gone: Option<ClusterId>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

/// Takes a cluster out, or a site without Kubernetes.
pub(crate) async fn run(asked: &Uninstall) -> Result<String> {
    let file = asked.broker_info.as_deref();
    if let (Some(cluster), Some(file)) = (&asked.gone, file) {
        confirm(asked.yes, &format!("Give back the global addresses of cluster {cluster}?"))?;
        return globalnet::forget(file, cluster).await;
    }
    if asked.standalone {
        return site::uninstall(&asked.records, file, asked.yes).await;
    }
    let server = Server::of_kubeconfig(&asked.access.access()).await?;
    tell(&format!("Looking at this cluster, {}", server.url()));
    let installation = look(&server, async { Ok(server.installation().await?) }).await?;
    let leaving = Leaving::of(&installation, &server, file).await?;
    let cluster = installation.cluster.unwrap_or_else(|| "without an id".to_owned());
    confirm(asked.yes, &format!("Take cluster {cluster} at {} out of its clusterset?", server.url()))?;
    let mut left = clean_nodes(&server).await?;
    // The broker may be here too, and go with the rest.
    let given_back = leaving.give_back().await;
    tell("Deleting records, accounts, secrets and settings");
    let removal = server.remove_join().await.with_context(|| {
        // What was given back is not said again by another run.
        format!("{given_back}some objects are left; run the same command again")
    })?;
    let mut text = format!("Cluster {cluster} is uninstalled\n{given_back}");
    for namespace in &removal.brokers {
        text += &format!("The broker in namespace {namespace} had no members and is gone\n");
    }
    for kept in &removal.kept {
        text += &format!("Left as it is: {kept}\n");
    }
    if !left.is_empty() {
        left.sort();
        bail!("all objects are deleted, but not all nodes could be cleaned: {}", left.join("; "));
    }
    Ok(text)
}

/// Ends the daemons and lets each node be cleaned; returns what could not be.
async fn clean_nodes(server: &Server) -> Result<Vec<String>> {
    let mut cleaners = Vec::new();
    for name in DAEMONS {
        let cleaner = match server.find(&daemon_set(name)).await? {
            Some(daemon) => {
                let cleaner = uninstaller(&daemon);
                server.apply(&parked(&cleaner)).await?;
                tell(&format!("Ending {name}"));
                server.delete(&daemon_set(name)).await?;
                Some(cleaner)
            }
            // That of a run that was broken off is there still.
            None => server.find(&daemon_set(&uninstaller_name(name))).await?.map(|found| unparked(&found)),
        };
        wait_ended(server, name).await?;
        cleaners.extend(cleaner);
    }
    for cleaner in &cleaners {
        server.apply(cleaner).await?;
    }
    let names: Vec<&str> = cleaners.iter().filter_map(|cleaner| cleaner["metadata"]["name"].as_str()).collect();
    let left = wait_cleaned(server, &names).await?;
    for name in &names {
        server.delete(&daemon_set(name)).await?;
    }
    for name in names {
        wait_ended(server, name).await?;
    }
    Ok(left)
}

/// Waits until all nodes are cleaned, or for as long as that may take; returns what pods say that are not done.
async fn wait_cleaned(server: &Server, names: &[&str]) -> Result<Vec<String>> {
    let deadline = Instant::now() + CLEANED;
    let mut told = Told::default();
    loop {
        let (mut ready, mut wanted, mut obstacles, mut complete) = (0, 0, Vec::new(), true);
        for name in names {
            let Some(rollout) = server.rollout(name).await? else { continue };
            complete &= rollout.is_complete();
            ready += rollout.ready;
            wanted += rollout.wanted;
            obstacles.extend(rollout.obstacles);
        }
        if complete {
            return Ok(vec![]);
        }
        if Instant::now() >= deadline {
            if obstacles.is_empty() {
                obstacles.push(format!("{ready} of {wanted} pods that clean nodes are done"));
            }
            return Ok(obstacles);
        }
        told.tell(&format!("Cleaning nodes: {ready}/{wanted}"));
        sleep(POLL).await;
    }
}

async fn wait_ended(server: &Server, daemon_set: &str) -> Result<()> {
    let deadline = Instant::now() + CLEANED;
    loop {
        let pods = server.pods_of(daemon_set).await?;
        let Some(pod) = pods.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            bail!("pod {name} does not end: look at node {node}, then run the same command again");
        }
        sleep(POLL).await;
    }
}

fn daemon_set(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::DAEMON_SET, OPERATOR_NAMESPACE, name)
}
