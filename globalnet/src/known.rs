//! What is read for a pass: this cluster's objects, and which gateway is active.

use std::collections::BTreeSet;
use std::sync::Arc;

use culvert_api::{
    ClusterGlobalEgressIP, Endpoint, EndpointSlice, Gateway, GlobalEgressIP, GlobalIngressIP, Pod, Record, Resource,
    Service, ServiceExport,
};
use culvert_globalnet_core::ObjectKey;
use culvert_model::ForeignSubnets;
use culvert_runtime::{Objects, Problem, Records, Shared, StoreError};
use ipnet::IpNet;

use crate::config::Config;
use crate::snapshot::Snapshot;

/// What is read of this cluster's own records.
pub(crate) const RECORDS: &[Resource] = &[Endpoint::RESOURCE, Gateway::RESOURCE];
/// What is read in all namespaces without Globalnet. Objects that had addresses once are to hear that they have none.
pub(crate) const SERVICES: &[Resource] = &[
    Service::RESOURCE,
    EndpointSlice::RESOURCE,
    GlobalIngressIP::RESOURCE,
    GlobalEgressIP::RESOURCE,
    ClusterGlobalEgressIP::RESOURCE,
];
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

/// All that a pass goes by, from pass to pass.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) snapshot: Snapshot,
    /// Whether the gateway on this node is the active one.
    pub(crate) is_active: bool,
    /// Subnets of other clusters.
    pub(crate) remote: BTreeSet<IpNet>,
    seen: Seen,
}

/// What was read last.
#[derive(Clone, Debug)]
struct Seen {
    endpoints: Shared<Endpoint>,
    services: Shared<Service>,
    slices: Shared<EndpointSlice>,
    gateways: Shared<Gateway>,
    ingress: Shared<GlobalIngressIP>,
    egress: Shared<GlobalEgressIP>,
    cluster_egress: Shared<ClusterGlobalEgressIP>,
    /// `None` without Globalnet.
    global: Option<Global>,
}

/// What is read with Globalnet only: pods are many.
#[derive(Clone, Debug)]
struct Global {
    pods: Shared<Pod>,
    exports: Shared<ServiceExport>,
}

impl Known {
    /// Reads everything; what was known `before` is not looked at again as far as it is the same.
    pub(crate) async fn read(
        config: &Config,
        records: &Records,
        objects: &Objects,
        before: Option<Self>,
    ) -> Result<Self, StoreError> {
        let seen = Seen::read(config, records, objects).await?;
        Ok(match before {
            Some(mut known) => {
                known.update(config, seen);
                known
            }
            None => Self::of(config, seen),
        })
    }

    /// Looks at everything.
    fn of(config: &Config, seen: Seen) -> Self {
        let mut snapshot = Snapshot::new(config.global.clone());
        seen.put(None, &mut snapshot);
        let (is_active, remote) = (is_active(config, &seen.endpoints.records), remote(config, &seen.endpoints.records));
        Self { snapshot, is_active, remote, seen }
    }

    fn update(&mut self, config: &Config, seen: Seen) {
        if !Arc::ptr_eq(&self.seen.endpoints, &seen.endpoints) {
            self.is_active = is_active(config, &seen.endpoints.records);
            self.remote = remote(config, &seen.endpoints.records);
        }
        seen.put(Some(&self.seen), &mut self.snapshot);
        self.seen = seen;
        debug_assert!(self.is_as_if_read_anew(config), "what was kept is not what there is");
    }

    fn is_as_if_read_anew(&self, config: &Config) -> bool {
        let anew = Self::of(config, self.seen.clone());
        self.snapshot.inputs == anew.snapshot.inputs && self.snapshot.problems() == anew.snapshot.problems()
    }

    pub(crate) fn ingress(&self, key: &ObjectKey) -> Option<&GlobalIngressIP> {
        find(&self.seen.ingress, key)
    }

    pub(crate) fn egress(&self, key: &ObjectKey) -> Option<&GlobalEgressIP> {
        find(&self.seen.egress, key)
    }

    pub(crate) fn cluster_egress(&self, name: &str) -> Option<&ClusterGlobalEgressIP> {
        let key = ObjectKey { name: name.to_owned(), ..ObjectKey::default() };
        find(&self.seen.cluster_egress, &key)
    }
}

impl Seen {
    async fn read(config: &Config, records: &Records, objects: &Objects) -> Result<Self, StoreError> {
        let global = async || Ok(Global { pods: objects.list_shared().await?, exports: objects.list_shared().await? });
        Ok(Self {
            endpoints: records.list_shared().await?,
            services: objects.list_shared().await?,
            slices: objects.list_shared().await?,
            gateways: records.list_shared().await?,
            ingress: objects.list_shared().await?,
            egress: objects.list_shared().await?,
            cluster_egress: objects.list_shared().await?,
            global: if config.global.is_empty() { None } else { Some(global().await?) },
        })
    }

    /// Puts what differs from `before` into the snapshot that was made of that.
    fn put(&self, before: Option<&Self>, snapshot: &mut Snapshot) {
        follow(before.map(|all| &all.services), &self.services, snapshot, |snapshot, change| match change {
            Change::Gone(before) => snapshot.take_service(before),
            Change::New(now) | Change::Other(_, now) => snapshot.put_service(now),
        });
        follow(before.map(|all| &all.slices), &self.slices, snapshot, |snapshot, change| match change {
            Change::Gone(before) => snapshot.take_slice(before),
            Change::New(now) => snapshot.put_slice(now),
            Change::Other(before, now) => snapshot.change_slice(before, now),
        });
        follow(before.map(|all| &all.ingress), &self.ingress, snapshot, |snapshot, change| match change {
            Change::Gone(before) => snapshot.take_ingress(before),
            Change::New(now) | Change::Other(_, now) => snapshot.put_ingress(now),
        });
        follow(before.map(|all| &all.egress), &self.egress, snapshot, |snapshot, change| match change {
            Change::Gone(before) => snapshot.take_egress(before),
            Change::New(now) | Change::Other(_, now) => snapshot.put_egress(now),
        });
        follow(
            before.map(|all| &all.cluster_egress),
            &self.cluster_egress,
            snapshot,
            |snapshot, change| match change {
                Change::Gone(before) => snapshot.take_cluster_egress(before),
                Change::New(now) | Change::Other(_, now) => snapshot.put_cluster_egress(now),
            },
        );
        if before.is_none_or(|all| !Arc::ptr_eq(&all.gateways, &self.gateways)) {
            snapshot.put_gateways(self.gateways.records.iter().map(Arc::as_ref));
            follow_problems(before.map(|all| &all.gateways), &self.gateways, snapshot);
        }
        let Some(now) = &self.global else { return };
        let before = before.and_then(|all| all.global.as_ref());
        follow(before.map(|all| &all.pods), &now.pods, snapshot, |snapshot, change| match change {
            Change::Gone(before) => snapshot.take_pod(before),
            Change::New(now) | Change::Other(_, now) => snapshot.put_pod(now),
        });
        follow(before.map(|all| &all.exports), &now.exports, snapshot, |snapshot, change| match change {
            Change::Gone(before) => snapshot.take_export(before),
            Change::New(now) | Change::Other(_, now) => snapshot.put_export(now),
        });
    }
}

/// What became of an object.
#[derive(Clone, Copy, Debug)]
enum Change<'a, R> {
    New(&'a R),
    Other(&'a R, &'a R),
    Gone(&'a R),
}

/// Puts what differs between two listings into the snapshot.
fn follow<R: Record>(
    before: Option<&Shared<R>>,
    now: &Shared<R>,
    snapshot: &mut Snapshot,
    put: impl Fn(&mut Snapshot, Change<'_, R>),
) {
    if before.is_some_and(|before| Arc::ptr_eq(before, now)) {
        return;
    }
    let mut old = before.map_or(&[][..], |before| &before.records).iter().peekable();
    for record in &now.records {
        // Mostly it is the next one, and the same.
        if old.next_if(|before| Arc::ptr_eq(before, record)).is_some() {
            continue;
        }
        let place = place(&**record);
        while let Some(gone) = old.next_if(|before| self::place(&***before) < place) {
            put(snapshot, Change::Gone(gone));
        }
        match old.next_if(|before| self::place(&***before) == place) {
            Some(before) if Arc::ptr_eq(before, record) => {}
            Some(before) => put(snapshot, Change::Other(before, record)),
            None => put(snapshot, Change::New(record)),
        }
    }
    old.for_each(|gone| put(snapshot, Change::Gone(gone)));
    follow_problems(before, now, snapshot);
}

/// Puts which objects cannot be read, if others could not before.
fn follow_problems<R: Record>(before: Option<&Shared<R>>, now: &Shared<R>, snapshot: &mut Snapshot) {
    if before.map_or(&[][..], |before| &before.problems) != now.problems {
        let key = |problem: &Problem| ObjectKey {
            namespace: problem.namespace().unwrap_or_default().to_owned(),
            name: problem.name().unwrap_or_default().to_owned(),
        };
        snapshot.put_unclear(R::KIND, now.problems.iter().map(|problem| (key(problem), problem.to_string())));
    }
}

/// Returns by what listings are sorted.
fn place<R: Record>(record: &R) -> (&str, &str) {
    (record.namespace(), record.name())
}

fn find<'a, R: Record>(listing: &'a Shared<R>, key: &ObjectKey) -> Option<&'a R> {
    let records = &listing.records;
    let at = records.binary_search_by(|record| place(&**record).cmp(&(&key.namespace, &key.name))).ok()?;
    records.get(at).map(Arc::as_ref)
}

/// Returns the subnets of other clusters that may be routed here: what they announce of this cluster's own is none of theirs.
fn remote(config: &Config, endpoints: &[Arc<Endpoint>]) -> BTreeSet<IpNet> {
    let others = endpoints.iter().filter(|endpoint| endpoint.spec.cluster_id != config.cluster.as_str());
    let subnets = others.flat_map(|endpoint| &endpoint.spec.subnets);
    let foreign =
        ForeignSubnets { local: config.local.iter().chain(&config.global).copied().collect(), nodes: Vec::new() };
    let subnets = subnets.filter_map(|subnet| subnet.parse::<IpNet>().ok()).map(|subnet| subnet.trunc());
    subnets.filter(|subnet| foreign.check(*subnet).is_ok()).collect()
}

/// Tells whether the newest Endpoint of this cluster is that of the gateway on this node.
fn is_active(config: &Config, endpoints: &[Arc<Endpoint>]) -> bool {
    let own = endpoints.iter().filter(|endpoint| endpoint.spec.cluster_id == config.cluster.as_str());
    let newest =
        own.max_by_key(|endpoint| (endpoint.metadata.creation_timestamp.as_ref().map(|time| time.0), endpoint.name()));
    newest.is_some_and(|endpoint| endpoint.spec.hostname == config.node)
}

#[cfg(test)]
mod tests;
