//! The gateway: cables to the other clusters' gateways, on labelled nodes.
//!
//! [`run`] wires the parts together: the election, NAT discovery, health probes, public-IP look-ups and the broker sync
//! are tasks of their own that ring a bell when something changes; `gateway::Gateway::pass` then computes what is
//! wanted (`gateway/core`), hands it to the data plane and the kernel, and says in records what came of it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod key;

mod discovery;
mod exchange;
mod gateway;
mod handover;
mod leadership;
mod metrics;
mod node;
mod paths;
mod ports;
mod prober;
mod public_ip;
mod publish;
mod records;
mod renewal;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use culvert_api::gateway_record::HEARTBEAT;
use culvert_api::{Endpoint, Record};
use culvert_broker::Syncer;
use culvert_kernel::{Changes, Kernel, node_facts};
use culvert_model::Addresses;
use culvert_netstate::State;
use culvert_netstate::own::{Owner, WIREGUARD_LINK};
use culvert_runtime::Records;
use culvert_runtime::memory;
use culvert_runtime::reconcile::{Pass, Wake, rest_after};
use culvert_runtime::shutdown::Shutdown;

use crate::config::Config;
use crate::gateway::Gateway;

/// The longest time between two passes.
const INTERVAL: Duration = Duration::from_secs(30);
/// Between two attempts to get the port of the metrics.
const METRICS_RETRY: Duration = Duration::from_secs(1);
/// After a pass in which something failed.
const RETRY: Duration = Duration::from_millis(500);

/// The stores that a gateway works with.
pub(crate) struct Stores {
    pub(crate) records: Records,
    pub(crate) broker: Option<Records>,
}

impl Stores {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        // The name under which fields are applied: it lasts over restarts and upgrades, and no two clusters share one.
        let manager = format!("culvert-gateway-{}", config.cluster);
        let records = Records::at(&config.records, &manager).await.context("this cluster's records")?;
        let broker = match &config.broker {
            Some(broker) => Some(Records::at(broker, &manager).await.context("the broker")?),
            None => None,
        };
        Ok(Self { records, broker })
    }
}

/// Runs the gateway in the network namespace of this thread until `shutdown`.
///
/// # Errors
///
/// What keeps it from starting or going on, with the way out: a port or device in use, a missing capability, a key that
/// cannot be read. The lease is given back, so that a standby takes over.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let kernel = Kernel::open(Owner::gateway()).await?;
    let mut kernel_changes = Changes::open()?;
    let stores = Stores::open(&config).await?;
    let mut record_changes = stores.records.watch(match config.global.is_empty() {
        true => &[Endpoint::RESOURCE],
        // Globalnet notes there by which address this gateway is probed.
        false => &[Endpoint::RESOURCE, culvert_api::Gateway::RESOURCE],
    });
    let wake = Wake::default();
    let registry = Arc::new(metrics::Metrics::default());
    if let Some(address) = config.metrics {
        tokio::spawn(serve_metrics(address, registry.clone(), shutdown.clone()));
    }
    if !await_address(&config, &mut kernel_changes, &shutdown).await? {
        return Ok(());
    }
    let mut gateway = Gateway::start(config, stores, kernel, registry, wake.clone()).await?;
    let ring = async {
        loop {
            tokio::select! {
                () = kernel_changes.changed() => wake.wake(),
                () = record_changes.changed() => wake.wake(),
            }
        }
    };
    let ended = tokio::select! {
        ended = reconcile(&mut gateway, &wake, &shutdown) => ended,
        () = ring => Ok(()),
        () = memory::give_back() => Ok(()),
    };
    match ended {
        Ok(()) => {
            gateway.leave().await;
            tracing::info!("Gateway ends");
            Ok(())
        }
        Err(error) => {
            gateway.fail(&format!("{error:#}")).await;
            Err(error)
        }
    }
}

/// Waits until this node has an address, as it may not yet when it boots: without one a gateway would hold the lease and
/// keep a standby from it, for nothing. `false` if the gateway is to end meanwhile.
async fn await_address(config: &Config, changes: &mut Changes, shutdown: &Shutdown) -> anyhow::Result<bool> {
    let mut is_told = false;
    while let Err(error) = gateway::private_addresses(config, &node_facts().await?, Addresses::default()).await {
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(error = format!("{error:#}"), "Gateway waits for an address");
        }
        tokio::select! {
            () = changes.changed() => {}
            () = tokio::time::sleep(INTERVAL) => {}
            () = shutdown.requested() => return Ok(false),
        }
    }
    Ok(true)
}

/// Serves metrics as soon as the port is free: somebody else may have it, and no cable may wait for it.
async fn serve_metrics(address: SocketAddr, metrics: Arc<metrics::Metrics>, shutdown: Shutdown) {
    let mut is_told = false;
    let listener = loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(%error, %address,
                        "Metrics cannot be served until the port is free; choose another --metrics-address, or off");
                }
            }
        }
        tokio::time::sleep(METRICS_RETRY).await;
    };
    if is_told {
        tracing::info!(%address, "Metrics are served");
    }
    culvert_runtime::metrics::serve(listener, metrics.registry(), shutdown).await;
}

/// Makes passes and heartbeats until `shutdown`.
async fn reconcile(gateway: &mut Gateway, wake: &Wake, shutdown: &Shutdown) -> anyhow::Result<()> {
    let mut next_heartbeat = Instant::now();
    while !shutdown.is_requested() {
        let began = Instant::now();
        let outcome = gateway.pass().await?;
        let ended = Instant::now();
        let next_pass = next_pass(outcome, gateway.poll_timeout(), ended);
        let rested = ended + rest_after(ended - began);
        let soonest = if outcome == Pass::Done { rested } else { ended + RETRY };
        loop {
            if Instant::now() >= next_heartbeat {
                gateway.heartbeat().await;
                next_heartbeat = Instant::now() + HEARTBEAT;
            }
            let deadline = next_pass.min(next_heartbeat);
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                // News of a cable are looked at without settling.
                () = gateway.changed() => tokio::time::sleep_until(rested.into()).await,
                () = wake.settled(soonest.into(), (deadline + Duration::from_secs(1)).into()) => {}
                () = tokio::time::sleep_until(deadline.into()) => {
                    if Instant::now() < next_pass {
                        continue;
                    }
                }
            }
            break;
        }
    }
    Ok(())
}

/// Returns when the next pass is due although nothing happens; `change` is when something changes by itself.
fn next_pass(outcome: Pass, change: Option<Instant>, now: Instant) -> Instant {
    match outcome {
        Pass::Done => change.map_or(now + INTERVAL, |change| change.min(now + INTERVAL)),
        // It may have failed before it came to what was due: no sooner, or it would spin.
        Pass::Failed => now + RETRY,
    }
}

/// Removes all that is the gateway's from the kernel, and this cluster's records here and at the broker.
///
/// # Errors
///
/// Names what is left; what could be removed is removed all the same.
pub async fn uninstall(config: &Config) -> anyhow::Result<()> {
    if node_facts().await?.interfaces.contains_key(WIREGUARD_LINK) {
        bail!("a gateway still runs here ({WIREGUARD_LINK} is there): stop it, then uninstall");
    }
    let from_kernel = async { Kernel::open(Owner::gateway()).await?.converge(&State::default()).await }.await;
    let from_records = withdraw(config).await;
    if let Err(error) = std::fs::remove_file(&config.key_file)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(file = %config.key_file.display(), %error, "Key file is left");
    }
    let report = from_kernel?;
    if !report.failed.is_empty() {
        bail!(
            "some things are left in the kernel: {}; uninstall again once the cause is gone",
            report.failed.join("; ")
        );
    }
    from_records?;
    tracing::info!(removed = report.applied, "Gateway is uninstalled");
    Ok(())
}

/// Takes this node's records back, and with the last gateway the cluster's, here and at the broker.
async fn withdraw(config: &Config) -> anyhow::Result<()> {
    let Stores { records, broker } = Stores::open(config).await?;
    let left = records::remove_own(config, &records).await;
    let from_broker = match broker {
        // What another gateway of the cluster publishes is its own; it takes back our Endpoint at the broker too.
        Some(_) if matches!(left, Ok(records::Left::OtherGateways)) => Ok(()),
        Some(broker) => {
            let syncer = Syncer::new(config.cluster.clone(), records, broker);
            syncer.depart().await.map(|_| ()).context("records are left at the broker")
        }
        None => Ok(()),
    };
    left?;
    from_broker
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_of_the_metrics_that_is_taken_is_waited_for() {
        let holder = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = holder.local_addr().unwrap();
        let (_trigger, shutdown) = Shutdown::by_hand();
        let server = tokio::spawn(serve_metrics(address, Arc::default(), shutdown));
        tokio::time::sleep(METRICS_RETRY / 2).await;
        assert!(!server.is_finished());
        drop(holder);

        let connected = async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(METRICS_RETRY / 10).await;
            }
        };
        tokio::time::timeout(METRICS_RETRY * 60, connected).await.expect("it is served once the port is free");
    }

    #[test]
    fn a_pass_comes_when_something_changes_by_itself_but_a_failing_one_does_not_spin() {
        let now = Instant::now();
        let (past, soon, late) = (now - RETRY, now + RETRY * 2, now + INTERVAL * 2);
        for (outcome, change, expected) in [
            (Pass::Done, None, now + INTERVAL),
            (Pass::Done, Some(soon), soon),
            (Pass::Done, Some(late), now + INTERVAL),
            (Pass::Failed, None, now + RETRY),
            (Pass::Failed, Some(past), now + RETRY),
        ] {
            assert_eq!(next_pass(outcome, change, now), expected, "{outcome:?}");
        }
    }
}
