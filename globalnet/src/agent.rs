//! One pass of Globalnet: read objects, decide, apply to the kernel, write what the objects have to say.
//!
//! The kernel comes first: an address is called allocated once it is translated. Only the active gateway's Globalnet
//! writes; one that stands by has the same translation in place, as far as statuses say.
//!
//! A store that is away changes nothing: the kernel is left as it is, and so is what was decided.

use std::collections::BTreeSet;

use culvert_api::{
    ClusterGlobalEgressIP, Endpoint, EndpointSlice, Gateway, GlobalEgressIP, GlobalIngressIP, Pod, Resource, Service,
    ServiceExport,
};
use culvert_globalnet_core::{Decision, Memory, allocate, desired, served};
use culvert_kernel::{Kernel, KernelError, ServiceTable, forget_flows_to, forget_untranslated_flows};
use culvert_runtime::reconcile::Pass;
use culvert_runtime::{Objects, Records, StoreError};
use ipnet::IpNet;

use crate::config::Config;
use crate::snapshot::{self, Listings};
use crate::write;

/// What is read of this cluster's own records.
pub(crate) const RECORDS: &[Resource] = &[Endpoint::RESOURCE, Gateway::RESOURCE];
/// What is read in all namespaces without Globalnet.
pub(crate) const SERVICES: &[Resource] = &[Service::RESOURCE, EndpointSlice::RESOURCE];
/// What is read in all namespaces with it.
pub(crate) const OBJECTS: &[Resource] = &[
    Service::RESOURCE,
    EndpointSlice::RESOURCE,
    Pod::RESOURCE,
    ServiceExport::RESOURCE,
    GlobalIngressIP::RESOURCE,
    GlobalEgressIP::RESOURCE,
    ClusterGlobalEgressIP::RESOURCE,
];

/// Globalnet on one gateway node.
pub(crate) struct Agent {
    config: Config,
    records: Records,
    objects: Objects,
    kernel: Kernel,
    services: ServiceTable,
    /// What was given, while this node's gateway is the active one.
    memory: Memory,
    /// What is not as it should be and was logged.
    told: BTreeSet<String>,
    ready: bool,
    /// Where flows go whose source is as it should be.
    settled: BTreeSet<IpNet>,
}

impl Agent {
    pub(crate) fn new(
        config: Config,
        records: Records,
        objects: Objects,
        kernel: Kernel,
        services: ServiceTable,
    ) -> Self {
        Self {
            config,
            records,
            objects,
            kernel,
            services,
            memory: Memory::default(),
            told: BTreeSet::new(),
            ready: false,
            settled: BTreeSet::new(),
        }
    }

    /// Makes one pass.
    pub(crate) async fn pass(&mut self) -> Pass {
        let outcome = self.try_pass().await;
        let (pass, obstacles) = match outcome {
            Ok(obstacles) if obstacles.is_empty() => (Pass::Done, obstacles),
            Ok(obstacles) => (Pass::Failed, obstacles),
            Err(error) => (Pass::Failed, BTreeSet::from([error.to_string()])),
        };
        self.tell(obstacles);
        pass
    }

    /// Returns what failed or has to be looked at.
    async fn try_pass(&mut self) -> Result<BTreeSet<String>, PassError> {
        let listings = self.read().await?;
        let (inputs, mut notices) = snapshot::inputs(&self.config.global, &listings);
        let is_active = snapshot::is_active(&self.config, &listings.endpoints);
        if !is_active {
            self.memory = Memory::default();
        }
        let decision = allocate(&inputs, &self.memory);
        let mut failures = self.apply(&decision, &inputs, &listings).await?;
        if is_active {
            self.memory = decision.memory.clone();
            failures.extend(write::write(&self.records, &self.objects, &decision, &listings).await);
            notices.extend(decision.notices);
        }
        if !std::mem::replace(&mut self.ready, true) {
            tracing::info!(node = %self.config.node, cluster = %self.config.cluster, "Globalnet is ready");
        }
        self.note(notices);
        Ok(failures)
    }

    async fn read(&self) -> Result<Listings, StoreError> {
        let mut listings = Listings {
            endpoints: self.records.list().await?,
            gateways: self.records.list().await?,
            services: self.objects.list().await?,
            slices: self.objects.list().await?,
            ..Listings::default()
        };
        if !self.config.global.is_empty() {
            listings.pods = self.objects.list().await?;
            listings.exports = self.objects.list().await?;
            listings.ingress = self.objects.list().await?;
            listings.egress = self.objects.list().await?;
            listings.cluster_egress = self.objects.list().await?;
        }
        Ok(listings)
    }
}
