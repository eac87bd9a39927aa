//! Writes what was decided: objects for exports, statuses, and the gateways' own addresses.
//!
//! One that cannot be written does not keep the others; all that is missing comes again in the next pass.

use std::collections::BTreeSet;

use culvert_api::{ClusterGlobalEgressIP, Gateway, GlobalEgressIP, GlobalIngressIP, Record, Time, globalnet};
use culvert_globalnet_core::{CLUSTER_EGRESS, Decision, Holder, Status};
use culvert_runtime::{Applied, Objects, Records, StoreError};
use jiff::Timestamp;

use crate::known::Known;
use crate::snapshot::{cluster_egress_object, egress_status, ingress_object, ingress_status};

/// Where things are written, and what stood there when it was decided.
pub(crate) struct Writer<'a> {
    pub(crate) records: &'a Records,
    pub(crate) objects: &'a Objects,
    pub(crate) known: &'a Known,
}

impl Writer<'_> {
    /// Writes everything; returns what failed, in words.
    pub(crate) async fn write(&self, decision: &Decision) -> BTreeSet<String> {
        let mut failed = BTreeSet::new();
        let mut note = |outcome: Result<(), StoreError>| failed.extend(outcome.err().map(|error| error.to_string()));
        for key in &decision.delete {
            note(self.objects.delete::<GlobalIngressIP>(&key.namespace, &key.name).await.map(drop));
        }
        for (key, spec) in &decision.apply {
            let object = ingress_object(key, spec);
            note(self.objects.apply(&object).await.map(drop));
        }
        if decision.create_cluster_egress {
            note(unless_there(self.objects.create(&cluster_egress_object()).await));
        }
        let now = Time(Timestamp::now());
        for (holder, status) in &decision.statuses {
            note(unless_gone(self.write_status(holder, status, decision, &now).await));
        }
        for (gateway, address) in &decision.gateways {
            let address = address.map(|address| address.to_string());
            note(self.records.annotate::<Gateway>(gateway, globalnet::GATEWAY_ADDRESS, address.as_deref()).await);
        }
        failed
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
