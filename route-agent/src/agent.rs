//! One pass of the route agent: read records and node, decide, apply, publish.
//!
//! A store that is away changes nothing: the last records that were read go on to count, and before the first the
//! kernel is left as an earlier process set it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use culvert_api::RouteAgent;
use culvert_kernel::{Kernel, KernelError, forget_translated_flows, node_facts, route_to};
use culvert_model::{Addresses, IpFamily, clipped};
use culvert_netstate::State;
use culvert_netstate::own::NODE_TABLE;
use culvert_route_agent_core::{Inputs, desired, targets, wanted_pools};
use culvert_runtime::Records;
use culvert_runtime::reconcile::{Pass, Restraint, Wake};
use ipnet::IpNet;

use crate::config::Config;
use crate::known::Known;
use crate::pinger::{Pinger, Wanted};
use crate::pools::{self, Pools};
use crate::status::{self, ProbeStates, REFRESH, Report};

/// Addresses that are reached by the default route wherever there is one (RFC 5737, RFC 3849). Nothing is sent there.
const ELSEWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// Of what is logged of an obstacle, in bytes: it may quote another cluster's record.
const MAX_DETAIL: usize = 1024;

/// The route agent of one node.
pub(crate) struct Agent {
    config: Config,
    records: Records,
    kernel: Kernel,
    pinger: Option<Pinger>,
    /// `None` if Calico is not the network plugin.
    pools: Option<Pools>,
    /// `None` until the store was read once.
    known: Option<Known>,
    /// This node's addresses as last seen: a default route that is away for a moment changes no device.
    address: Addresses,
    /// What is not as it should be and was logged.
    told: BTreeSet<String>,
    store_away: bool,
    ready: bool,
    published: Option<Instant>,
    restraint: Restraint,
    wake: Wake,
    /// Remote subnets to which no flow is translated any more.
    kept: BTreeSet<IpNet>,
}

impl Agent {
    pub(crate) fn new(config: Config, records: Records, kernel: Kernel, pools: Option<Pools>, wake: Wake) -> Self {
        Self {
            pools,
            pinger: config.probe.map(|pace| Pinger::start(pace, wake.clone())),
            address: config.address.unwrap_or_default(),
            config,
            records,
            kernel,
            known: None,
            told: BTreeSet::new(),
            store_away: false,
            ready: false,
            published: None,
            restraint: Restraint::default(),
            wake,
            kept: BTreeSet::new(),
        }
    }

    /// Resolves if the probes end by themselves; what they said last would count for ever then.
    pub(crate) fn probes_ended(&self) -> impl Future<Output = ()> + use<> {
        if_any(self.pinger.as_ref().map(Pinger::ended))
    }

    /// Resolves if the keeping of IPPools ends by itself.
    pub(crate) fn pools_ended(&self) -> impl Future<Output = ()> + use<> {
        if_any(self.pools.as_ref().map(Pools::ended))
    }

    /// Makes one pass.
    pub(crate) async fn pass(&mut self) -> Pass {
        let store_read = self.read_records().await;
        let Some(known) = self.known.take() else { return Pass::Failed };
        let outcome = self.pass_with(&known).await;
        self.known = Some(known);
        match outcome {
            Ok(Pass::Done) if store_read => Pass::Done,
            Ok(Pass::Done | Pass::Failed) => Pass::Failed,
            Err(error) => {
                // How the others stand is not known.
                let mut obstacles = self.told.clone();
                obstacles.insert(error.to_string());
                self.tell(obstacles);
                Pass::Failed
            }
        }
    }

    async fn read_records(&mut self) -> bool {
        match Known::read(&self.records, self.known.as_ref().unwrap_or(&Known::default())).await {
            Ok(known) => {
                self.known = Some(known);
                if std::mem::replace(&mut self.store_away, false) {
                    tracing::info!("Records can be read again");
                }
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.store_away, true) {
                    tracing::warn!(%error, "Records cannot be read; routes stay as they are");
                }
                false
            }
        }
    }

    async fn pass_with(&mut self, known: &Known) -> Result<Pass, KernelError> {
        let facts = node_facts().await?;
        self.find_address().await;
        let (inputs, mut obstacles) = known.inputs(&self.config, self.address, &facts);
        if let Some(pools) = &self.pools {
            let is_complete = !self.store_away && self.records.outage().is_none() && known.is_complete();
            pools.want(wanted_pools(&inputs).map(|pools| pools::Wanted { pools, is_complete }));
            obstacles.extend(pools.obstacles());
        }
        let (state, refused) = desired(&inputs);
        obstacles.extend(refused.iter().map(ToString::to_string));
        let report = self.kernel.converge(&state).await?;
        let complete = report.failed.is_empty();
        obstacles.extend(report.failed);
        obstacles.extend(self.forget_early_flows(&state).await);
        if report.applied > 0 {
            tracing::debug!(steps = report.applied, "Kernel state is changed");
        }
        self.tell(obstacles);
        if !std::mem::replace(&mut self.ready, true) {
            tracing::info!(node = %self.config.node, cluster = %self.config.cluster, "Route agent is ready");
        }
        let published = self.store_away || self.publish(known, &inputs).await;
        Ok(if complete && published { Pass::Done } else { Pass::Failed })
    }

    /// Lets flows to newly known subnets begin anew, once their source is kept; says what failed.
    async fn forget_early_flows(&mut self, state: &State) -> Vec<String> {
        let own = &self.config.global;
        // Nodes have routes too, in a table of their own; how flows to them are translated is not our business.
        let destinations = state.routes.keys().filter(|route| route.table == NODE_TABLE).map(|route| route.destination);
        let remote: BTreeSet<IpNet> = destinations.filter(|subnet| !own.contains(subnet)).collect();
        self.kept.retain(|subnet| remote.contains(subnet));
        let new: BTreeSet<IpNet> = remote.difference(&self.kept).copied().collect();
        match forget_translated_flows(&new, own).await {
            Ok(()) => {
                self.kept = remote;
                Vec::new()
            }
            Err(error) => vec![error.to_string()],
        }
    }

    /// Looks up the node's addresses, unless they are configured.
    async fn find_address(&mut self) {
        if self.config.address.is_some() {
            return;
        }
        for elsewhere in ELSEWHERE {
            match route_to(elsewhere, None).await {
                Ok(route) => {
                    if let Some(source) = route.and_then(|route| route.source) {
                        self.address.set(source);
                    }
                }
                // A kernel without IPv6 knows no routes of that family.
                Err(error) => tracing::debug!(%error, %elsewhere, "Route to the outside is not known"),
            }
        }
    }

    /// Writes the node's record if more than round-trip times changed, or a minute has passed.
    async fn publish(&mut self, known: &Known, inputs: &Inputs) -> bool {
        let targets = targets(inputs, self.config.probe.is_some());
        let report = Report {
            config: &self.config,
            address: self.address,
            obstacles: &self.told,
            endpoints: &known.endpoints,
            targets: &targets,
            probes: &self.probe(inputs),
        };
        let found = known.agents.get(&status::record_name(&self.config));
        let record: RouteAgent = report.record(found);
        let fresh = self.published.is_some_and(|time| time.elapsed() < REFRESH);
        let is_news = !fresh || found.is_none_or(|found| !status::same_but_times(found, &record));
        let waited = self.restraint.poll_timeout().is_some();
        if self.restraint.holds_back(is_news, Instant::now()) {
            if let Some(until) = self.restraint.poll_timeout().filter(|_| !waited) {
                let wake = self.wake.clone();
                tokio::spawn(async move {
                    tokio::time::sleep_until(until.into()).await;
                    wake.wake();
                });
            }
            return true;
        }
        if !is_news {
            return true;
        }
        match self.records.apply(&record).await {
            Ok(_) => {
                self.published = Some(Instant::now());
                self.restraint.handle_written(record.status.remote_endpoints.len(), Instant::now());
                true
            }
            Err(error) => {
                tracing::warn!(%error, "RouteAgent record is not written");
                false
            }
        }
    }

    /// Tells the pinger what to probe and returns what it found out.
    fn probe(&self, inputs: &Inputs) -> ProbeStates {
        let Some(pinger) = &self.pinger else { return ProbeStates::new() };
        let targets = targets(inputs, true).into_iter().filter_map(|(name, target)| Some((name, target.ok()?)));
        pinger.want(Wanted {
            sources: IpFamily::ALL.into_iter().filter_map(|family| inputs.source(family)).collect(),
            targets: targets.collect(),
        });
        pinger.states()
    }

    /// Logs what is new among the obstacles, and what is over.
    fn tell(&mut self, obstacles: BTreeSet<String>) {
        for detail in obstacles.difference(&self.told) {
            tracing::warn!(detail = clipped(detail, MAX_DETAIL), "Something is not routed as it should be");
        }
        for detail in self.told.difference(&obstacles) {
            tracing::info!(detail = clipped(detail, MAX_DETAIL), "An obstacle is gone");
        }
        self.told = obstacles;
    }
}

/// Resolves when `ended` does; never if there is nothing that could end.
async fn if_any(ended: Option<impl Future<Output = ()>>) {
    match ended {
        Some(ended) => ended.await,
        None => std::future::pending().await,
    }
}
