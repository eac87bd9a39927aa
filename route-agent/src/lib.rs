//! The route agent: on every node, routes to the other clusters by way of this cluster's gateway.
//!
//! It follows the records and the kernel: any change of either leads to a pass (`Agent::pass`), which computes
//! the desired state (`route-agent/core`), applies what differs, and writes the node's RouteAgent record. Where Calico is
//! the network plugin, a task of its own keeps Calico's IPPools (`pools`). When it ends it leaves everything as it is, so
//! that a restart costs no packet; [`uninstall`] removes it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;

mod agent;
mod known;
mod pinger;
mod pools;
mod status;

use anyhow::{Context, bail};
use culvert_api::{Cluster, Endpoint, Record, RouteAgent};
use culvert_kernel::{Changes, Kernel};
use culvert_netstate::State;
use culvert_netstate::own::Owner;
use culvert_runtime::Records;
use culvert_runtime::memory;
use culvert_runtime::reconcile::{self, Wake};
use culvert_runtime::shutdown::Shutdown;

use crate::agent::Agent;
use crate::config::Config;
use crate::pools::{IP_POOLS, Pools};

/// Runs the route agent in the network namespace of this thread until `shutdown`.
///
/// # Errors
///
/// What keeps it from starting: no access to the kernel above all. Later failures are logged and tried again.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let kernel = Kernel::open(Owner::route_agent()).await?;
    let mut kernel_changes = Changes::open()?;
    let records = open(&config).await?;
    let mut record_changes = records.watch(&[Cluster::RESOURCE, Endpoint::RESOURCE, RouteAgent::RESOURCE]);
    let wake = Wake::default();
    let pools = match config.calico {
        true => {
            let objects = records.cluster_wide(IP_POOLS).context(
                "--network-plugin is calico, and the records are in a directory: give --kubeconfig FILE for the API \
                 server that has Calico's IPPools",
            )?;
            Some(Pools::start(objects, wake.clone()))
        }
        false => None,
    };
    let mut agent = Agent::new(config, records, kernel, pools, wake.clone());
    let (probes_ended, pools_ended) = (agent.probes_ended(), agent.pools_ended());
    let ring = async {
        loop {
            tokio::select! {
                () = kernel_changes.changed() => wake.wake(),
                () = record_changes.changed() => wake.wake(),
            }
        }
    };
    tokio::select! {
        () = reconcile::run(&wake, &shutdown, async || agent.pass().await) => {}
        () = ring => {}
        () = memory::give_back() => {}
        () = probes_ended => bail!("the probes have ended by themselves, which is a bug: start the route agent again"),
        () = pools_ended => {
            bail!("the keeping of IPPools has ended by itself, which is a bug: start the route agent again")
        }
    }
    tracing::info!("Route agent ends, routes stay");
    Ok(())
}

async fn open(config: &Config) -> anyhow::Result<Records> {
    // The name under which fields are applied: it lasts over restarts and upgrades, and no two clusters share one.
    let manager = format!("culvert-route-agent-{}", config.cluster);
    Records::at(&config.records, &manager).await.context("this cluster's records")
}

/// Removes all that is the route agent's from the kernel, the node's record, and the IPPools for other clusters.
///
/// # Errors
///
/// Names what is left; what could be removed is removed all the same.
pub async fn uninstall(config: &Config) -> anyhow::Result<()> {
    let from_kernel = async { Kernel::open(Owner::route_agent()).await?.converge(&State::default()).await }.await;
    let name = status::record_name(config);
    let deleted = async { anyhow::Ok(open(config).await?.delete::<RouteAgent>(&name).await?) }.await;
    let without_pools = remove_pools(config).await;
    let report = from_kernel?;
    if !report.failed.is_empty() {
        bail!(
            "some things are left in the kernel: {}; uninstall again once the cause is gone",
            report.failed.join("; ")
        );
    }
    deleted.with_context(|| format!("RouteAgent record {name} is not deleted, all else is removed"))?;
    without_pools.context("not all of Calico's IPPools for other clusters are deleted, all else is removed")?;
    tracing::info!(removed = report.applied, "Route agent is uninstalled");
    Ok(())
}

async fn remove_pools(config: &Config) -> anyhow::Result<()> {
    if !config.calico {
        return Ok(());
    }
    match open(config).await?.cluster_wide(IP_POOLS) {
        Some(objects) => Ok(pools::remove_all(&objects).await?),
        None => Ok(()),
    }
}
