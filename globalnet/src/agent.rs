//! One pass of Globalnet: read objects, decide, apply to the kernel, write what the objects have to say.
//!
//! Much is kept from pass to pass: a change costs what it changes. Every now and then a pass looks at everything, and finds
//! the same.
//!
//! The kernel comes first: an address is called allocated once it is translated. Only the active gateway's Globalnet
//! writes; one that stands by has the same translation in place, as far as statuses say.
//!
//! A store that is away changes nothing: the kernel is left as it is, and so is what was decided.

use std::collections::BTreeSet;

use culvert_globalnet_core::{Decision, GlobalAddresses, Inputs, Memory, Serving, allocate, desired, served};
use culvert_kernel::{Kernel, KernelError, ServiceTable};
use culvert_model::clipped;
use culvert_runtime::reconcile::{Pass, Wake};
use culvert_runtime::{Objects, Records};

use crate::config::Config;
use crate::flows::Flows;
use crate::known::Known;
use crate::snapshot::Changes;
use crate::write::Writer;

/// Of what is logged of an obstacle, in bytes: it may quote somebody's object.
const MAX_DETAIL: usize = 1024;

/// Why a pass is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cause {
    /// Something changed in the kernel.
    pub(crate) kernel: bool,
    /// It is time to look at everything again, whatever is known.
    pub(crate) time: bool,
}

/// Globalnet on one gateway node.
pub(crate) struct Agent {
    config: Config,
    records: Records,
    objects: Objects,
    kernel: Kernel,
    services: ServiceTable,
    /// What was read last.
    known: Option<Known>,
    serving: Serving,
    decided: Option<Decided>,
    /// What was given, while this node's gateway is the active one.
    memory: Memory,
    flows: Flows,
    wake: Wake,
    /// The kernel may not be as it was decided, but for services.
    is_kernel_due: bool,
    /// What is not as it should be and was logged.
    told: BTreeSet<String>,
    ready: bool,
    store_away: bool,
}

/// What follows from the last decision.
#[derive(Debug)]
struct Decided {
    addresses: GlobalAddresses,
    notices: BTreeSet<String>,
    /// The namespaces whose pods were asked for.
    pods: BTreeSet<String>,
    for_active: bool,
    /// Nothing had to be written, and the next decision starts from the same memory.
    is_settled: bool,
}

impl Decided {
    fn of(decision: &mut Decision, inputs: &Inputs, for_active: bool, is_settled: bool) -> Self {
        Self {
            addresses: std::mem::take(&mut decision.addresses),
            notices: std::mem::take(&mut decision.notices),
            pods: inputs.namespaces_of_pods().into_iter().map(str::to_owned).collect(),
            for_active,
            is_settled,
        }
    }

    /// Tells whether the same would be decided after the changes.
    fn stands(&self, is_active: bool, changes: &Changes, inputs: &Inputs) -> bool {
        self.is_settled && self.for_active == is_active && !changes.concern_allocation(inputs, &self.pods)
    }
}

impl Agent {
    pub(crate) fn new(
        config: Config,
        records: Records,
        objects: Objects,
        kernel: Kernel,
        services: ServiceTable,
        wake: Wake,
    ) -> Self {
        Self {
            config,
            records,
            objects,
            kernel,
            services,
            known: None,
            serving: Serving::default(),
            decided: None,
            memory: Memory::default(),
            flows: Flows::default(),
            wake,
            is_kernel_due: true,
            told: BTreeSet::new(),
            ready: false,
            store_away: false,
        }
    }

    /// Makes one pass.
    pub(crate) async fn pass(&mut self, cause: Cause) -> Pass {
        self.is_kernel_due |= cause.kernel || cause.time;
        let before = self.known.take().filter(|_| !cause.time);
        if before.is_none() {
            (self.decided, self.serving) = (None, Serving::default());
        }
        let mut known = match Known::read(&self.config, &self.records, &self.objects, before).await {
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
        let outcome = self.pass_with(&mut known).await;
        self.known = Some(known);
        match outcome {
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

    async fn pass_with(&mut self, known: &mut Known) -> Result<Pass, KernelError> {
        let changes = known.snapshot.take_changes();
        let known = &*known;
        let inputs = &known.snapshot.inputs;
        if !known.is_active {
            self.memory = Memory::default();
        }
        let mut touched = changes.served();
        let (decided, decision) = match self.decided.take() {
            Some(decided) if decided.stands(known.is_active, &changes, inputs) => (decided, None),
            before => {
                let mut decision = allocate(inputs, &self.memory);
                let is_settled = !known.is_active || decision.is_settled() && decision.memory == self.memory;
                let decided = Decided::of(&mut decision, inputs, known.is_active, is_settled);
                touched.extend(
                    self.serving.readdress(before.as_ref().map(|before| &before.addresses), &decided.addresses),
                );
                self.is_kernel_due |= before.is_none_or(|before| before.addresses != decided.addresses);
                (decided, Some(decision))
            }
        };
        self.serving.update(inputs, &touched);
        debug_assert!(self.is_as_if_decided_anew(&decided, inputs), "what was kept is not what would be decided");
        let translated = self.translate(&decided.addresses, known).await;
        let mut notices = known.snapshot.problems();
        if known.is_active {
            notices.extend(decided.notices.iter().cloned());
        }
        self.decided = Some(decided);
        let mut failed = translated?;
        if let Some(mut decision) = decision.filter(|_| known.is_active) {
            self.memory = std::mem::take(&mut decision.memory);
            if failed.is_empty() {
                let writer = Writer { records: &self.records, objects: &self.objects, known };
                let written = writer.write(&decision).await;
                if written.has_more {
                    self.wake.wake();
                }
                failed = written.failed;
            }
        }
        if !std::mem::replace(&mut self.ready, true) {
            tracing::info!(node = %self.config.node, cluster = %self.config.cluster, "Globalnet is ready");
        }
        let pass = if failed.is_empty() { Pass::Done } else { Pass::Failed };
        notices.extend(failed);
        self.tell(notices);
        Ok(pass)
    }

    /// Tells whether a look at everything leads to what is known already.
    fn is_as_if_decided_anew(&self, decided: &Decided, inputs: &Inputs) -> bool {
        let is_decided = !decided.is_settled || allocate(inputs, &self.memory).addresses == decided.addresses;
        is_decided && *self.serving.services() == served(&decided.addresses, &inputs.services, &inputs.endpoints)
    }

    /// Brings the kernel to what was decided; returns what failed.
    async fn translate(&mut self, addresses: &GlobalAddresses, known: &Known) -> Result<BTreeSet<String>, KernelError> {
        let mut failed = BTreeSet::new();
        if !self.ready {
            // Nothing is served before its callers keep their sources.
            failed.extend(self.converge(addresses).await?);
        }
        let services = self.services.converge(self.serving.services()).await?;
        if services.elements > 0 {
            tracing::debug!(elements = services.elements, "Services in the kernel are changed");
        }
        self.flows.note(&services);
        if self.is_kernel_due {
            failed.extend(self.converge(addresses).await?);
        }
        let endpoints = &known.snapshot.inputs.endpoints;
        self.flows.forget(addresses, &known.remote, self.serving.services(), endpoints, !self.is_kernel_due).await?;
        Ok(failed)
    }

    /// Brings the kernel to the addresses, but for services; returns what failed.
    async fn converge(&mut self, addresses: &GlobalAddresses) -> Result<Vec<String>, KernelError> {
        self.is_kernel_due = true;
        let report = self.kernel.converge(&desired(addresses)).await?;
        self.is_kernel_due = !report.failed.is_empty();
        if report.applied > 0 {
            self.flows.unsettle();
            tracing::debug!(steps = report.applied, "Kernel state is changed");
        }
        Ok(report.failed)
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
