//! Globalnet: on gateway nodes, the global addresses of this cluster's services and pods, and what translates them.
//!
//! It follows Services, their endpoints, and the objects by which users ask for addresses: any change of them, or of the
//! kernel by others, leads to a pass (`Agent::pass`), which decides (`globalnet/core`), applies what differs, and writes
//! what objects have to say. In a cluster without a global CIDR it leads what comes by a cable for a service's own address to
//! the pods behind it, and no more. When it ends it leaves everything as it is, so that a restart costs no packet;
//! [`uninstall`] removes it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;

mod agent;
mod callers;
mod flows;
mod known;
mod snapshot;
mod write;

use std::cell::Cell;

use anyhow::{Context, bail};
use culvert_globalnet_core::from_cable;
use culvert_kernel::{Changes, Kernel, ServiceTable};
use culvert_netstate::State;
use culvert_netstate::own::{Owner, SERVICES_NFT};
use culvert_runtime::reconcile::{self, Wake};
use culvert_runtime::shutdown::Shutdown;
use culvert_runtime::{Objects, Records, memory};
use culvert_services::Table;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

pub use crate::callers::who_called;

use crate::agent::{Agent, Cause};
use crate::config::Config;
use crate::known::{OBJECTS, RECORDS, SERVICES};

/// Runs Globalnet in the network namespace of this thread until `shutdown`.
///
/// # Errors
///
/// What keeps it from starting: no access to the kernel above all. Later failures are logged and tried again.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let kernel = Kernel::open(Owner::globalnet()).await?;
    let table = Table { name: SERVICES_NFT.to_owned(), prerouting: from_cable(), output: None };
    let services = ServiceTable::open(table).await?;
    let mut kernel_changes = Changes::open()?;
    let (records, objects) = open(&config).await?;
    let mut record_changes = records.watch(RECORDS);
    let mut object_changes = objects.watch(if config.global.is_empty() { SERVICES } else { OBJECTS });
    let wake = Wake::default();
    let mut agent = Agent::new(config, records, objects, kernel, services, wake.clone());
    let cause = Cell::new(Cause::default());
    let mut time = interval_at(Instant::now() + reconcile::INTERVAL, reconcile::INTERVAL);
    time.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ring = async {
        loop {
            tokio::select! {
                () = kernel_changes.changed() => cause.set(Cause { kernel: true, ..cause.get() }),
                () = record_changes.changed() => {}
                () = object_changes.changed() => {}
                _ = time.tick() => cause.set(Cause { time: true, ..cause.get() }),
            }
            wake.wake();
        }
    };
    tokio::select! {
        () = reconcile::run_promptly(&wake, &shutdown, async || agent.pass(cause.take()).await) => {}
        () = ring => {}
        () = memory::give_back() => {}
    }
    tracing::info!("Globalnet ends, translations stay");
    Ok(())
}

async fn open(config: &Config) -> anyhow::Result<(Records, Objects)> {
    // The name under which fields are applied: it lasts over restarts and upgrades, and no two clusters share one.
    let manager = format!("culvert-globalnet-{}", config.cluster);
    let records = Records::at(&config.records, &manager).await.context("this cluster's records")?;
    let objects = Objects::at(&config.records, &manager).await.context("this cluster's services")?;
    Ok((records, objects))
}

/// Removes all that is Globalnet's from the kernel. Objects and their addresses stay: they are the cluster's, not the node's.
///
/// # Errors
///
/// Names what is left; what could be removed is removed all the same.
pub async fn uninstall() -> anyhow::Result<()> {
    let removed = ServiceTable::remove(SERVICES_NFT).await;
    let report = Kernel::open(Owner::globalnet()).await?.converge(&State::default()).await?;
    removed?;
    if !report.failed.is_empty() {
        bail!(
            "some things are left in the kernel: {}; uninstall again once the cause is gone",
            report.failed.join("; ")
        );
    }
    tracing::info!(removed = report.applied, "Globalnet is uninstalled");
    Ok(())
}
