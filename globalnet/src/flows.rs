//! Keeps connection tracking in step with the translation: what a flow was once bound to it keeps for as long as it lives.
//!
//! Only flows that come from or go to other clusters are touched. What could not be forgotten is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_globalnet_core::{Endpoints, GlobalAddresses, Lingering, ObjectKey};
use culvert_kernel::{
    KernelError, ServiceReport, forget_flows_not_from, forget_flows_past, forget_flows_to, forget_flows_to_hosts,
};
use culvert_model::Frontend;
use culvert_services::{Backend, Services};
use ipnet::IpNet;

/// What is still to be forgotten, and what need not be looked at any more.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    /// Backends that serve a frontend no more.
    gone: BTreeSet<(Frontend, Backend)>,
    /// Of these, those that may finish what they have begun.
    lingering: Lingering,
    /// Frontends that had no backend before.
    begun: BTreeSet<Frontend>,
    /// Global addresses and the hosts that they led to.
    hosts: BTreeMap<IpAddr, IpAddr>,
    moved: BTreeSet<(IpAddr, IpAddr)>,
    /// Subnets to which no flow goes without a global source.
    settled: BTreeSet<IpNet>,
}

impl Flows {
    /// Takes what became of services.
    pub(crate) fn note(&mut self, services: &ServiceReport) {
        self.gone.extend(services.gone.iter().copied());
        self.begun.extend(services.begun.iter().copied());
    }

    /// The translation was not in place: flows may have begun without.
    pub(crate) fn unsettle(&mut self) {
        self.settled.clear();
    }

    /// Forgets what has to be; `is_translating` is whether all addresses are translated as they should be.
    pub(crate) async fn forget(
        &mut self,
        addresses: &GlobalAddresses,
        remote: &BTreeSet<IpNet>,
        served: &Services,
        endpoints: &BTreeMap<ObjectKey, Vec<Endpoints>>,
        is_translating: bool,
    ) -> Result<(), KernelError> {
        let noted = std::mem::take(&mut self.gone);
        self.gone = self.lingering.forgotten(&noted, served, endpoints);
        forget_flows_to(&self.gone, remote).await?;
        self.gone.clear();
        forget_flows_past(&self.begun, remote).await?;
        self.begun.clear();
        let left = |(global, host): &(&IpAddr, &IpAddr)| addresses.ingress_hosts.get(*global) != Some(*host);
        self.moved.extend(self.hosts.iter().filter(left).map(|(&global, &host)| (global, host)));
        self.hosts.clone_from(&addresses.ingress_hosts);
        forget_flows_to_hosts(&self.moved).await?;
        self.moved.clear();
        if addresses.cidrs.is_empty() || !is_translating {
            return Ok(());
        }
        self.settled.retain(|subnet| remote.contains(subnet));
        let new: BTreeSet<IpNet> = remote.difference(&self.settled).copied().collect();
        forget_flows_not_from(&new, &addresses.cidrs).await?;
        self.settled = remote.clone();
        Ok(())
    }
}
