//! One gateway: what it knows, its pass, and how it leaves.
//!
//! A pass takes everything that is known, computes what is wanted and hands it on; there is no "on endpoint created".
//! A standby wants nothing of the kernel and runs no data plane. A deposed gateway (see [`crate::leadership`]) goes on
//! forwarding but writes no record but its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use culvert_api::{Gateway as GatewayRecord, object_name};
use culvert_dataplane::{Dataplane, Report};
use culvert_gateway_core::cables::{ChoiceInputs, Choices, choose};
use culvert_gateway_core::desired::{DesiredInputs, VxlanSettings, desired};
use culvert_gateway_core::election::Role;
use culvert_gateway_core::local_endpoint::{LocalFacts, local_endpoint};
use culvert_gateway_core::nat_discovery::OwnEndpoint;
use culvert_gateway_core::public_ip::uses_load_balancer;
use culvert_gateway_core::succession::Succession;
use culvert_kernel::{Kernel, NodeFacts, nft_counters, node_facts};
use culvert_model::{Addresses, CableKind, CableName, Endpoint, ForeignSubnets, IpFamily, cable_mtu, clipped};
use culvert_netstate::State;
use culvert_netstate::own::{OUTER_MARK, WIREGUARD_LINK};
use culvert_runtime::Records;
use culvert_runtime::reconcile::{Pass, Wake};
use ipnet::IpNet;

use crate::Stores;
use crate::config::Config;
use crate::discovery::{Discovery, Sockets};
use crate::exchange::Exchange;
use crate::handover;
use crate::key::{self, Identity};
use crate::leadership::{Candidacy, Leadership};
use crate::metrics::{Metrics, Update};
use crate::node;
use crate::paths::{add_remotes, paths};
use crate::ports::HeldPorts;
use crate::prober::{Prober, Wanted};
use crate::public_ip::PublicIp;
use crate::publish::{Knowledge, Published};
use crate::records::{self, Known};

/// Of what is logged of a complaint, in bytes: it may quote another cluster's record.
const MAX_COMPLAINT: usize = 1024;

/// All that a running gateway holds.
pub(crate) struct Gateway {
    config: Config,
    identity: Identity,
    preshared_key: [u8; 32],
    ports: HeldPorts,
    records: Records,
    kernel: Kernel,
    wake: Wake,
    metrics: Arc<Metrics>,
    candidacy: Candidacy,
    discovery_sockets: Option<Arc<Sockets>>,
    discovery: Option<(OwnEndpoint, Discovery)>,
    prober: Option<Prober>,
    public_ip: PublicIp,
    exchange: Option<Exchange>,
    dataplane: Option<Dataplane>,
    succession: Succession,
    known: Known,
    own: Option<Endpoint>,
    choices: Choices,
    /// Where peers were heard last, by this process or the one before it.
    remotes: BTreeMap<CableName, SocketAddr>,
    /// Since when each cable is wanted.
    since: BTreeMap<CableName, Instant>,
    complaints: Vec<String>,
    published: Published,
    /// Whether the log has it that the Gateway record cannot be written.
    is_mute: bool,
    ready: bool,
}

impl Gateway {
    /// Reads the keys, opens the ports, and stands for election.
    pub(crate) async fn start(
        mut config: Config,
        stores: Stores,
        kernel: Kernel,
        metrics: Arc<Metrics>,
        wake: Wake,
    ) -> anyhow::Result<Self> {
        let identity = key::load(&config.key_file)?;
        let facts = node_facts().await?;
        let ports = HeldPorts::take(config.ports, node::has_vxlan_device(&facts))?;
        config.ports = ports.ports();
        let preshared_key = key::preshared_key(&config.psk)?;
        let discovery_sockets = config.nat_discovery_port.map(Sockets::open).transpose()?.map(Arc::new);
        let Stores { records, broker } = stores;
        let exchange = broker.map(|broker| Exchange::start(&config, records.clone(), broker, wake.clone()));
        let remotes = records::previous_remotes(&config, &records).await;
        Ok(Self {
            candidacy: Candidacy::start(&config.node, config.election, records.clone(), wake.clone()).await,
            prober: config.health.map(|timing| Prober::start(timing, wake.clone())),
            public_ip: PublicIp::start(config.resolvers.clone(), records.clone(), wake.clone()),
            config,
            identity,
            preshared_key,
            ports,
            records,
            kernel,
            wake,
            metrics,
            discovery_sockets,
            discovery: None,
            exchange,
            dataplane: None,
            succession: Succession::default(),
            known: Known::default(),
            own: None,
            choices: Choices::default(),
            remotes,
            since: BTreeMap::new(),
            complaints: Vec::new(),
            published: Published::default(),
            is_mute: false,
            ready: false,
        })
    }

    /// Makes one pass.
    ///
    /// # Errors
    ///
    /// What this process cannot go on with: a data plane that does not start, or a part that has ended.
    pub(crate) async fn pass(&mut self) -> anyhow::Result<Pass> {
        self.check_parts()?;
        let leadership = self.candidacy.leadership();
        let mut complaints = Vec::new();
        let (facts, own) = match self.look_around().await {
            Ok(found) => found,
            Err(error) => {
                self.complain(vec![format!("{error:#}")]);
                self.publish(leadership).await;
                return Ok(Pass::Failed);
            }
        };
        self.own = Some(own.clone());
        match records::known(&self.records).await {
            Ok(known) => self.known = known,
            // What was known still holds: cables need no store.
            Err(error) => complaints.push(format!("this cluster's records cannot be read: {error}")),
        }
        complaints.extend(self.known.complaints.iter().cloned());
        self.discover(&own).await;
        let foreign = node::foreign_subnets(&self.config, &facts);
        self.choose(&own, &facts, &foreign);
        let mut failed = !complaints.is_empty() && self.known == Known::default();
        // If the status cannot be written either, the metrics tell.
        complaints.extend(self.records.outage());
        complaints.extend(self.public_ip.complaint());
        match leadership {
            Leadership::Active | Leadership::Deposed => {
                self.run_cables(&own, &facts)?;
                failed |= self.converge(Role::Active, &own, &facts, &mut complaints).await;
            }
            Leadership::Standby => {
                self.stop_cables();
                failed |= self.converge(Role::Standby, &own, &facts, &mut complaints).await;
                self.ports.retake(node::has_vxlan_device(&facts))?;
            }
        }
        if leadership == Leadership::Active
            && let Err(error) = records::publish_own(&self.config, &self.records, &own).await
        {
            complaints.push(format!("this cluster's records cannot be written: {error}"));
            failed = true;
        }
        if let Some(exchange) = &self.exchange {
            exchange.set((leadership == Leadership::Active).then_some(foreign));
            complaints.extend(exchange.outcome().complaints);
        }
        self.complain(complaints);
        self.publish(leadership).await;
        if !self.ready && !failed {
            self.ready = true;
            tracing::info!(?leadership, "Gateway is ready");
        }
        Ok(if failed { Pass::Failed } else { Pass::Done })
    }

    /// Writes the Gateway record even if nothing changed, and clears those of processes that are gone.
    pub(crate) async fn heartbeat(&mut self) {
        self.published.forget();
        let leadership = self.candidacy.leadership();
        self.publish(leadership).await;
        if leadership == Leadership::Active
            && let Err(error) = records::remove_stale_gateways(&self.config, &self.records).await
        {
            tracing::debug!(%error, "Records of former gateways cannot be removed");
        }
    }

    /// Resolves when the data plane has something to tell. Cancel-safe.
    pub(crate) async fn changed(&self) {
        match &self.dataplane {
            Some(dataplane) => dataplane.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Returns when the next pass is due although nothing happens.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.succession.poll_timeout().into_iter().chain(self.published.poll_timeout()).min()
    }

    /// Gives way: hands over to a standby if there is one, and takes everything out of the kernel.
    pub(crate) async fn leave(&mut self) {
        let was_active = self.candidacy.leadership() == Leadership::Active;
        if let Some(exchange) = &self.exchange {
            exchange.set(None);
        }
        let has_standby = was_active && records::has_standby(&self.config, &self.records).await;
        self.candidacy.release().await;
        if has_standby {
            handover::to_successor(&self.config, &self.records, &mut self.kernel).await;
        }
        self.stop_cables();
        match self.kernel.converge(&State::default()).await {
            Ok(report) if report.failed.is_empty() => {}
            Ok(report) => tracing::warn!(failed = report.failed.join("; "), "Some things are left in the kernel"),
            Err(error) => tracing::warn!(%error, "Kernel state is left"),
        }
        self.remove_record().await;
    }

    /// Says why this process ends, and makes room for a standby.
    pub(crate) async fn fail(&mut self, reason: &str) {
        self.candidacy.release().await;
        self.complain(vec![reason.to_owned()]);
        self.publish(Leadership::Standby).await;
        self.stop_cables();
    }

    async fn remove_record(&self) {
        match self.records.delete::<GatewayRecord>(&object_name(&self.config.node)).await {
            Ok(_) => {}
            Err(error) if error.is_away() => {}
            Err(error) => tracing::warn!(%error, "Gateway record is left"),
        }
    }

    /// Makes sure that all that runs beside the passes still does: what a dead part said last must not count for ever.
    fn check_parts(&self) -> anyhow::Result<()> {
        self.candidacy.check()?;
        self.public_ip.check()?;
        self.prober.as_ref().map_or(Ok(()), Prober::check)?;
        self.exchange.as_ref().map_or(Ok(()), Exchange::check)?;
        self.discovery.as_ref().map_or(Ok(()), |(_, discovery)| discovery.check())?;
        if let Some(failure) = self.reports().failure {
            bail!("{failure}; start the gateway again");
        }
        Ok(())
    }

    /// Returns what the node is like, and this gateway's Endpoint that follows from it.
    async fn look_around(&self) -> anyhow::Result<(NodeFacts, Endpoint)> {
        let facts = node_facts().await?;
        let own = self.local_endpoint(&facts).await?;
        Ok((facts, own))
    }

    async fn local_endpoint(&self, facts: &NodeFacts) -> anyhow::Result<Endpoint> {
        let (before, probed) = self.own.as_ref().map(|own| (own.private, own.health_check)).unwrap_or_default();
        let private = private_addresses(&self.config, facts, before).await?;
        let facts = LocalFacts {
            cluster: self.config.cluster.clone(),
            hostname: self.config.node.clone(),
            service_cidrs: self.config.services.clone(),
            cluster_cidrs: self.config.pods.clone(),
            global_cidrs: self.config.global.clone(),
            global: records::global_addresses(&self.config, &self.records).await.unwrap_or(probed),
            private,
            public: self.public_ip.found(),
            using_load_balancer: uses_load_balancer(&self.config.resolvers),
            cni: node::cni(&self.config, facts),
            nat_enabled: self.config.nat_enabled,
            backend: self.config.backend,
            ports: self.config.ports,
            nat_discovery_port: self.config.nat_discovery_port,
            public_key: self.identity.public_key,
            created: 0,
        };
        local_endpoint(&facts).context("this gateway's Endpoint cannot be made")
    }

    /// Keeps NAT discovery running under this gateway's present name.
    async fn discover(&mut self, own: &Endpoint) {
        let remote = self.known.endpoints.iter().filter(|endpoint| endpoint.cluster != own.cluster).cloned().collect();
        let name = OwnEndpoint::from(own);
        if self.discovery.as_ref().is_none_or(|(known_as, _)| *known_as != name) {
            let sockets = self.discovery_sockets.clone();
            let seeds = records::previous_choices(&self.config, &self.records).await;
            let discovery = Discovery::start(name.clone(), sockets, seeds, node::random_number(), self.wake.clone());
            self.discovery = Some((name, discovery));
        }
        if let Some((_, discovery)) = &self.discovery {
            discovery.set_peers(remote);
        }
    }

    fn choose(&mut self, own: &Endpoint, facts: &NodeFacts, foreign: &ForeignSubnets) {
        let nat = self.discovery.as_ref().map(|(_, discovery)| discovery.choices()).unwrap_or_default();
        let own_addresses: BTreeSet<IpAddr> = facts
            .interfaces
            .values()
            .flat_map(|interface| &interface.addresses)
            .map(IpNet::addr)
            .chain(own.public.iter())
            .collect();
        let incumbents = self.choices.clusters();
        self.choices = choose(&ChoiceInputs {
            local: own,
            endpoints: &self.known.endpoints,
            nat: &nat,
            allow_vxlan: &self.config.allow_vxlan,
            vxlan_port: self.config.ports.vxlan,
            foreign_subnets: foreign,
            own_addresses: &own_addresses,
            incumbents: &incumbents,
        });
        let now = Instant::now();
        let names = &self.choices.0;
        self.since.retain(|name, _| names.contains_key(name));
        for name in names.keys() {
            self.since.entry(name.clone()).or_insert(now);
        }
    }

    /// Hands the chosen cables to the data plane and the prober.
    fn run_cables(&mut self, own: &Endpoint, facts: &NodeFacts) -> anyhow::Result<()> {
        let dataplane = match self.dataplane.take() {
            Some(dataplane) => dataplane,
            None => self.start_dataplane(own, facts)?,
        };
        let reports = dataplane.report().cables;
        let mut set = self.succession.cable_set(&self.choices, &reports, Instant::now());
        set.local_subnets = own.subnets.clone();
        self.remotes.extend(reports.iter().filter_map(|(name, report)| Some((name.clone(), report.remote?))));
        self.remotes.retain(|name, _| set.cables.contains_key(name));
        add_remotes(&mut set, &self.remotes);
        dataplane.apply(set);
        self.dataplane = Some(dataplane);
        if let Some(prober) = &self.prober {
            prober.want(Wanted::through(&self.choices, &reports, node::sources(&self.config, facts, own.private)));
        }
        Ok(())
    }

    fn start_dataplane(&mut self, own: &Endpoint, facts: &NodeFacts) -> anyhow::Result<Dataplane> {
        self.ports.give_up_wireguard();
        Ok(Dataplane::start(culvert_dataplane::Config {
            link: WIREGUARD_LINK.to_owned(),
            mtu: cable_mtu(CableKind::WireGuard, node::link_mtu(facts, own.private), IpFamily::V4),
            private_key: self.identity.private_key,
            preshared_key: self.preshared_key,
            port: self.config.ports.wireguard,
            mark: OUTER_MARK,
            queue_seed: node::random_number(),
        })?)
    }

    fn stop_cables(&mut self) {
        self.dataplane = None;
        self.succession = Succession::default();
        self.since.clear();
        if let Some(prober) = &self.prober {
            prober.want(Wanted::default());
        }
    }

    /// Brings the kernel to what is wanted; `true` if something failed.
    async fn converge(&mut self, role: Role, own: &Endpoint, facts: &NodeFacts, complaints: &mut Vec<String>) -> bool {
        let reports = self.reports().cables;
        let paths = paths(&self.choices, &reports, node::link_mtu(facts, own.private)).await;
        let vxlan =
            self.config.ports.vxlan.map(|port| VxlanSettings { port, link_mtu: node::link_mtu(facts, own.private) });
        if role == Role::Active
            && self.choices.vxlan().next().is_some()
            && let Err(error) = self.ports.give_up_vxlan(node::has_vxlan_device(facts))
        {
            complaints.push(error.to_string());
        }
        let state = desired(&DesiredInputs {
            role,
            choices: &self.choices,
            local_subnets: &own.subnets,
            private: own.private,
            sources: node::sources(&self.config, facts, own.private),
            vxlan,
            paths: &paths,
        });
        match self.kernel.converge(&state).await {
            Ok(report) => {
                let failed = !report.failed.is_empty();
                complaints.extend(report.failed.into_iter().map(|step| format!("kernel: {step}")));
                failed
            }
            Err(error) => {
                complaints.push(format!("kernel: {error}"));
                true
            }
        }
    }

    fn reports(&self) -> Report {
        self.dataplane.as_ref().map(Dataplane::report).unwrap_or_default()
    }

    /// Remembers what is wrong, and logs what is new.
    fn complain(&mut self, complaints: Vec<String>) {
        for complaint in complaints.iter().filter(|complaint| !self.complaints.contains(complaint)) {
            tracing::warn!(complaint = clipped(complaint, MAX_COMPLAINT), "Something is wrong");
        }
        self.complaints = complaints;
    }

    /// Writes the Gateway record if it says something new, and the metrics.
    async fn publish(&mut self, leadership: Leadership) {
        let Some(own) = &self.own else { return };
        let report = self.reports();
        let none = Choices::default();
        let choices = match leadership {
            Leadership::Active | Leadership::Deposed => &self.choices,
            Leadership::Standby => &none,
        };
        let healths = self.prober.as_ref().map(Prober::healths);
        let knowledge = Knowledge {
            leadership,
            own,
            choices,
            reports: &report.cables,
            healths: healths.as_ref(),
            since: &self.since,
            complaints: &self.complaints,
            now: Instant::now(),
        };
        let statuses = knowledge.statuses();
        let status = knowledge.status(&statuses);
        let kernel_drops = match self.config.ports.vxlan {
            Some(_) => nft_counters(culvert_gateway_core::firewall::TABLE).await.unwrap_or_default(),
            None => BTreeMap::new(),
        };
        self.metrics.update(&Update {
            own,
            statuses: &statuses,
            reports: &report.cables,
            totals: report.totals,
            kernel_drops: &kernel_drops,
            cluster_is_away: self.records.outage().is_some(),
            broker_is_away: self.exchange.as_ref().is_some_and(Exchange::is_away),
            sync_passes: self.exchange.as_ref().map_or(0, |exchange| exchange.outcome().passes),
        });
        if !self.published.is_due(&status, Instant::now()) {
            return;
        }
        match records::publish_gateway(&self.config, &self.records, status.clone()).await {
            Ok(_) => {
                self.published.handle_written(status, Instant::now());
                self.is_mute = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_mute, true) {
                    tracing::warn!(%error, "Gateway record cannot be written");
                }
            }
        }
    }
}

/// Returns this node's addresses in its own network: as configured, or those that it had `before` and those that lead to
/// the Internet.
pub(crate) async fn private_addresses(
    config: &Config,
    facts: &NodeFacts,
    before: Addresses,
) -> anyhow::Result<Addresses> {
    let private = match config.private {
        Some(private) => private,
        None => node::default_sources(facts, before).await,
    };
    if private == Addresses::default() {
        bail!("node {} has no address towards the Internet: add a default route, or give --private-ip", config.node);
    }
    Ok(private)
}
