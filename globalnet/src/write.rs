//! Writes what was decided: objects for exports, statuses, and the gateways' own addresses.
//!
//! One that cannot be written does not keep the others, unless nothing can; all that is missing comes again in the next
//! pass. Of very many a pass writes a part: what others change meanwhile, and who is active, is looked at in between.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use culvert_api::{ClusterGlobalEgressIP, Gateway, GlobalEgressIP, GlobalIngressIP, Record, Time, globalnet};
use culvert_globalnet_core::{CLUSTER_EGRESS, Decision, Holder, Status};
use culvert_runtime::{Applied, Objects, Records, StoreError};
use jiff::Timestamp;

use crate::known::Known;
use crate::snapshot::{cluster_egress_object, egress_status, ingress_object, ingress_status};

/// How long a pass writes.
const TIME: Duration = Duration::from_millis(200);

/// Where things are written, and what stood there when it was decided.
pub(crate) struct Writer<'a> {
    pub(crate) records: &'a Records,
    pub(crate) objects: &'a Objects,
    pub(crate) known: &'a Known,
}

/// How the writing went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// What failed, in words.
    pub(crate) failed: BTreeSet<String>,
    /// Whether there is more to write.
    pub(crate) has_more: bool,
}

/// What a pass may write.
struct Budget {
    until: Instant,
    written: Written,
    is_away: bool,
}

impl Budget {
    fn is_spent(&mut self) -> bool {
        let is_spent = self.is_away || Instant::now() >= self.until;
        self.written.has_more |= is_spent && !self.is_away;
        is_spent
    }

    fn note(&mut self, outcome: Result<(), StoreError>) {
        if let Err(error) = outcome {
            self.is_away |= error.is_away();
            self.written.failed.insert(error.to_string());
        }
    }
}

impl Writer<'_> {
    /// Writes everything, or as much as there is time for.
    pub(crate) async fn write(&self, decision: &Decision) -> Written {
        let mut budget = Budget { until: Instant::now() + TIME, written: Written::default(), is_away: false };
        self.write_within(decision, &mut budget).await;
        budget.written
    }

    async fn write_within(&self, decision: &Decision, budget: &mut Budget) {
        let now = Time(Timestamp::now());
        for key in &decision.delete {
            if budget.is_spent() {
                return;
            }
            budget.note(self.objects.delete::<GlobalIngressIP>(&key.namespace, &key.name).await.map(drop));
        }
        for (key, spec) in &decision.apply {
            if budget.is_spent() {
                return;
            }
            let object = ingress_object(key, spec);
            budget.note(self.objects.apply(&object).await.map(drop));
            if let Some((holder, status)) = decision.statuses.get_key_value(&Holder::Ingress(key.clone())) {
                budget.note(unless_gone(self.write_status(holder, status, decision, &now).await));
            }
        }
        if decision.create_cluster_egress {
            budget.note(unless_there(self.objects.create(&cluster_egress_object()).await));
        }
        let is_new = |holder: &Holder| matches!(holder, Holder::Ingress(key) if decision.apply.contains_key(key));
        for (holder, status) in decision.statuses.iter().filter(|(holder, _)| !is_new(holder)) {
            if budget.is_spent() {
                return;
            }
            budget.note(unless_gone(self.write_status(holder, status, decision, &now).await));
        }
        for (gateway, address) in &decision.gateways {
            let address = address.map(|address| address.to_string());
            budget
                .note(self.records.annotate::<Gateway>(gateway, globalnet::GATEWAY_ADDRESS, address.as_deref()).await);
        }
    }

    async fn write_status(
        &self,
        holder: &Holder,
        status: &Status,
        decision: &Decision,
        now: &Time,
    ) -> Result<Applied, StoreError> {
        match holder {
            Holder::Ingress(key) => {
                let found = self.known.ingress(key).cloned();
                let new = || decision.apply.get(key).map(|spec| ingress_object(key, spec));
                let Some(mut object) = found.or_else(new) else { return Ok(Applied::Unchanged) };
                object.status = ingress_status(status, &object.status, now);
                self.objects.apply_status::<GlobalIngressIP>(&object).await
            }
            Holder::Egress(key) => {
                let Some(mut object) = self.known.egress(key).cloned() else { return Ok(Applied::Unchanged) };
                object.status = egress_status(status, &object.status, now);
                self.objects.apply_status::<GlobalEgressIP>(&object).await
            }
            Holder::ClusterEgress(name) => {
                let found = self.known.cluster_egress(name).cloned();
                let new = || (name == CLUSTER_EGRESS).then(cluster_egress_object);
                let Some(mut object) = found.or_else(new) else { return Ok(Applied::Unchanged) };
                object.status = egress_status(status, &object.status, now);
                self.objects.apply_status::<ClusterGlobalEgressIP>(&object).await
            }
            // Their addresses are annotations.
            Holder::Gateway(_) => Ok(Applied::Unchanged),
        }
    }
}

/// An object that somebody else has made meanwhile is as good.
fn unless_there<R: Record>(outcome: Result<R, StoreError>) -> Result<(), StoreError> {
    match outcome {
        Ok(_) | Err(StoreError::Exists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The status of an object that is no more, or is another one by now, need not be written: that change leads to a pass.
fn unless_gone(outcome: Result<Applied, StoreError>) -> Result<(), StoreError> {
    match outcome {
        Ok(_) | Err(StoreError::NotFound { .. } | StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
