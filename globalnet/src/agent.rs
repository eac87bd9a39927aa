//! One pass of Globalnet: read objects, decide, apply to the kernel, write what the objects have to say.
//!
//! The kernel comes first: an address is called allocated once it is translated. Only the active gateway's Globalnet
//! writes; one that stands by has the same translation in place, as far as statuses say.
//!
//! A store that is away changes nothing: the kernel is left as it is, and so is what was decided.

use std::collections::BTreeSet;

use culvert_globalnet_core::{Decision, Inputs, Lingering, Memory, allocate, desired, served};
use culvert_kernel::{Kernel, KernelError, ServiceTable, forget_flows_not_from, forget_flows_past, forget_flows_to};
use culvert_model::clipped;
use culvert_runtime::reconcile::Pass;
use culvert_runtime::{Objects, Records};
use ipnet::IpNet;

use crate::config::Config;
use crate::known::Known;
use crate::write::Writer;

/// Of what is logged of an obstacle, in bytes: it may quote somebody's object.
const MAX_DETAIL: usize = 1024;

/// Globalnet on one gateway node.
pub(crate) struct Agent {
    config: Config,
    records: Records,
    objects: Objects,
    kernel: Kernel,
    services: ServiceTable,
    /// What was given, while this node's gateway is the active one.
    memory: Memory,
    /// Backends that serve no more, but may finish.
    lingering: Lingering,
    /// What is not as it should be and was logged.
    told: BTreeSet<String>,
    ready: bool,
    store_away: bool,
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
            lingering: Lingering::default(),
            told: BTreeSet::new(),
            ready: false,
            store_away: false,
        }
    }

    /// Makes one pass.
    pub(crate) async fn pass(&mut self) -> Pass {
        let known = match Known::read(&self.config, &self.records, &self.objects).await {
            Ok(known) => known,
            Err(error) => {
                if !std::mem::replace(&mut self.store_away, true) {
                    tracing::warn!(%error, "Objects cannot be read; translations stay as they are");
                }
                return Pass::Failed;
            }
        };
        if std::mem::replace(&mut self.store_away, false) {
            tracing::info!("Objects can be read again");
        }
        match self.pass_with(&known).await {
            Ok(pass) => pass,
            Err(error) => {
                // How the others stand is not known.
                let mut obstacles = self.told.clone();
                obstacles.insert(error.to_string());
                self.tell(obstacles);
                Pass::Failed
            }
        }
    }

    async fn pass_with(&mut self, known: &Known) -> Result<Pass, KernelError> {
        if !known.is_active {
            self.memory = Memory::default();
        }
        let decision = allocate(&known.snapshot.inputs, &self.memory);
        let mut failed = self.translate(&decision, &known.snapshot.inputs, &known.remote).await?;
        let mut notices = known.snapshot.problems.clone();
        if known.is_active {
            self.memory = decision.memory.clone();
            if failed.is_empty() {
                failed = Writer { records: &self.records, objects: &self.objects, known }.write(&decision).await;
            }
            notices.extend(decision.notices);
        }
        if !std::mem::replace(&mut self.ready, true) {
            tracing::info!(node = %self.config.node, cluster = %self.config.cluster, "Globalnet is ready");
        }
        let pass = if failed.is_empty() { Pass::Done } else { Pass::Failed };
        notices.extend(failed);
        self.tell(notices);
        Ok(pass)
    }

    /// Brings the kernel to what was decided; returns what failed.
    async fn translate(
        &mut self,
        decision: &Decision,
        inputs: &Inputs,
        remote: &BTreeSet<IpNet>,
    ) -> Result<BTreeSet<String>, KernelError> {
        let addresses = &decision.addresses;
        let report = self.kernel.converge(&desired(addresses)).await?;
        let served = served(addresses, &inputs.services, &inputs.endpoints);
        let services = self.services.converge(&served).await?;
        if !self.ready && !addresses.cidrs.is_empty() {
            // What began before there was a translation goes on without one for as long as it lives.
            forget_flows_not_from(remote, &addresses.cidrs).await?;
        }
        forget_flows_to(&self.lingering.forgotten(&services.gone, &served, &inputs.endpoints)).await?;
        forget_flows_past(&services.begun).await?;
        if report.applied > 0 || services.elements > 0 {
            tracing::debug!(steps = report.applied, elements = services.elements, "Kernel state is changed");
        }
        Ok(report.failed.into_iter().collect())
    }

    /// Logs what is new among the obstacles, and what is over.
    fn tell(&mut self, obstacles: BTreeSet<String>) {
        for detail in obstacles.difference(&self.told) {
            tracing::warn!(detail = clipped(detail, MAX_DETAIL), "Something of Globalnet is not as it should be");
        }
        for detail in self.told.difference(&obstacles) {
            tracing::info!(detail = clipped(detail, MAX_DETAIL), "An obstacle is gone");
        }
        self.told = obstacles;
    }
}
