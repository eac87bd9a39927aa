//! Decides what is written and deleted on both sides so that each cluster has the others' records.
//!
//! Submariner chapters 3.4 to 3.6: own records go to the broker under our label; the others' come here with theirs;
//! what its owner deleted goes on the other side as well; nobody else's record is ever written or deleted at the
//! broker. The plan is a function of both stores' content, so whatever happened between two passes is made good.
//!
//! A Cluster that leaves stays here for a while, marked as departed: nodes go on refusing traffic to its subnets
//! instead of sending it in the clear by their default route. Its Endpoints, and with them its cables, go at once.

use std::time::Duration;

use culvert_api::{Cluster, Endpoint, Record, labels};
use culvert_model::{ClusterId, ForeignSubnets};
use jiff::{SignedDuration, Timestamp};

use crate::accept::{self, Accepted, Reason, Refusal};
use crate::side::{Content, Found, Owner, Side, Synced, owner};

/// How long a Cluster that left stays known here.
pub const DEPARTURE: Duration = Duration::from_secs(5 * 60);

/// All that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    pub own: &'a ClusterId,
    /// What no other cluster may claim here.
    pub foreign: &'a ForeignSubnets,
    pub local: &'a Side,
    pub broker: &'a Side,
    /// Whether a record that the broker lacks was taken back by its cluster; see [`crate::absence`].
    pub absences_count: bool,
    pub now: Timestamp,
}

/// What to write and delete on both sides, and what is not synced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SyncPlan {
    pub to_broker: Changes,
    pub to_local: Changes,
    pub refused: Vec<Refusal>,
}

/// What to write and delete in one store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    pub clusters: ChangesOf<Cluster>,
    pub endpoints: ChangesOf<Endpoint>,
}

/// What to write and delete of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangesOf<R> {
    /// To create if without a resource version, else to replace the record that has it.
    pub put: Vec<R>,
    /// Names.
    pub delete: Vec<String>,
}

impl<R> Default for ChangesOf<R> {
    fn default() -> Self {
        Self { put: Vec::new(), delete: Vec::new() }
    }
}

impl Changes {
    /// Tells whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let Self { clusters, endpoints } = self;
        clusters.put.is_empty() && clusters.delete.is_empty() && endpoints.put.is_empty() && endpoints.delete.is_empty()
    }
}

/// Returns what is to be done on both sides.
pub fn plan(situation: &Situation<'_>) -> SyncPlan {
    let Situation { own, foreign, local, broker, .. } = *situation;
    let mut plan = SyncPlan {
        to_broker: Changes {
            clusters: ChangesOf { put: Vec::new(), delete: withdrawn(own, &local.clusters, &broker.clusters) },
            endpoints: ChangesOf { put: Vec::new(), delete: withdrawn(own, &local.endpoints, &broker.endpoints) },
        },
        ..SyncPlan::default()
    };
    plan.to_broker.clusters.put = sent(own, &local.clusters, &broker.clusters, &mut plan.refused);
    plan.to_broker.endpoints.put = sent(own, &local.endpoints, &broker.endpoints, &mut plan.refused);

    let own_cables: Vec<_> = ours(own, &local.endpoints).map(|record| record.spec.cable_name.as_str()).collect();
    let clusters = accept::clusters(&broker.clusters, own);
    let endpoints = accept::endpoints(&broker.endpoints, own, &own_cables, foreign);
    plan.to_local.clusters.put = taken(own, &clusters, &local.clusters, &mut plan.refused);
    plan.to_local.endpoints.put = taken(own, &endpoints, &local.endpoints, &mut plan.refused);
    for copy in gone(situation, &clusters, &local.clusters, &broker.clusters) {
        match departure(copy, situation.now) {
            Departure::Begins => plan.to_local.clusters.put.extend(marked(copy, situation.now)),
            Departure::Lasts => {}
            Departure::Over => plan.to_local.clusters.delete.push(copy.name().to_owned()),
        }
    }
    plan.to_local.endpoints.delete =
        gone(situation, &endpoints, &local.endpoints, &broker.endpoints).map(|copy| copy.name().to_owned()).collect();
    plan.refused.extend(clusters.refused);
    plan.refused.extend(endpoints.refused);
    plan
}

/// Returns what is to be deleted on both sides when this cluster leaves: its own records, and its copies of others'.
pub fn departure_plan(own: &ClusterId, local: &Side, broker: &Side) -> SyncPlan {
    SyncPlan {
        to_broker: Changes {
            clusters: ChangesOf { put: Vec::new(), delete: withdrawn(own, &Found::default(), &broker.clusters) },
            endpoints: ChangesOf { put: Vec::new(), delete: withdrawn(own, &Found::default(), &broker.endpoints) },
        },
        to_local: Changes {
            clusters: ChangesOf { put: Vec::new(), delete: ours_and_copies(own, &local.clusters) },
            endpoints: ChangesOf { put: Vec::new(), delete: ours_and_copies(own, &local.endpoints) },
        },
        refused: Vec::new(),
    }
}

/// Tells whether `local` holds copies of other clusters' records.
pub fn has_copies(own: &ClusterId, local: &Side) -> bool {
    copies(own, &local.clusters).next().is_some() || copies(own, &local.endpoints).next().is_some()
}

/// Tells whether `broker` has a Cluster record that this cluster sent.
pub fn has_own_cluster(own: &ClusterId, broker: &Side) -> bool {
    broker.clusters.records.values().any(|record| owner(record, own) == Owner::Own)
}

fn ours<'a, R: Synced>(own: &ClusterId, local: &'a Found<R>) -> impl Iterator<Item = &'a R> {
    local.records.values().filter(move |record| matches!(owner(*record, own), Owner::Own | Owner::Unsent))
}

fn copies<'a, R: Synced>(own: &ClusterId, local: &'a Found<R>) -> impl Iterator<Item = &'a R> {
    local.records.values().filter(move |record| matches!(owner(*record, own), Owner::Other(_)))
}

fn ours_and_copies<R: Synced>(own: &ClusterId, local: &Found<R>) -> Vec<String> {
    ours(own, local).chain(copies(own, local)).map(|record| record.name().to_owned()).collect()
}

/// Returns our own records that the broker lacks or has otherwise.
fn sent<R: Synced>(own: &ClusterId, local: &Found<R>, broker: &Found<R>, refused: &mut Vec<Refusal>) -> Vec<R> {
    let mut put = Vec::new();
    for record in ours(own, local).filter(|record| !broker.unreadable.contains(record.name())) {
        let found = broker.records.get(record.name());
        let holder = found.and_then(|found| match owner(found, own) {
            Owner::Own | Owner::Unsent => None,
            Owner::Other(sender) => Some(format!("cluster {sender}")),
            Owner::Nobody => Some(format!("a record for cluster {:?}", found.spoken_for())),
        });
        if let Some(holder) = holder {
            refused.push(Refusal::of(record, Reason::NameTakenAtBroker { holder }));
            continue;
        }
        let mut content = Content::of(record);
        content.labels.insert(labels::CLUSTER_ID.to_owned(), own.to_string());
        put.extend(content.over(found));
    }
    put
}

/// Returns the names of our own records at the broker that are no longer here.
fn withdrawn<R: Synced>(own: &ClusterId, local: &Found<R>, broker: &Found<R>) -> Vec<String> {
    let here: Vec<_> = ours(own, local).map(Record::name).collect();
    let sent = broker.records.iter().filter(|(_, record)| owner(*record, own) == Owner::Own);
    sent.map(|(name, _)| name)
        .filter(|name| !here.contains(&name.as_str()) && !local.unreadable.contains(*name))
        .cloned()
        .collect()
}

/// Returns the others' records that we lack or have otherwise, oldest first: of two Endpoints of a cluster the newer one
/// counts, and the copies' own times of creation are what tells.
fn taken<R: Synced>(
    own: &ClusterId,
    accepted: &Accepted<'_, R>,
    local: &Found<R>,
    refused: &mut Vec<Refusal>,
) -> Vec<R> {
    let mut records: Vec<&R> = accepted.records.values().copied().collect();
    records.sort_by_key(|record| record.metadata().creation_timestamp.clone());
    let mut put = Vec::new();
    for record in records.into_iter().filter(|record| !local.unreadable.contains(record.name())) {
        let found = local.records.get(record.name());
        if found.is_some_and(|found| !matches!(owner(found, own), Owner::Other(_))) {
            refused.push(Refusal::of(record, Reason::NameTakenHere));
            continue;
        }
        let mut content = Content::of(record);
        content.annotations.remove(labels::DEPARTED);
        put.extend(content.over(found));
    }
    put
}

/// Returns our copies of records that are refused now, or that their clusters have taken back.
fn gone<'a, R: Synced>(
    situation: &'a Situation<'_>,
    accepted: &'a Accepted<'_, R>,
    local: &'a Found<R>,
    broker: &'a Found<R>,
) -> impl Iterator<Item = &'a R> {
    copies(situation.own, local).filter(|copy| {
        let name = copy.name();
        let believed = situation.absences_count || broker.records.contains_key(name);
        !accepted.records.contains_key(name) && !broker.unreadable.contains(name) && believed
    })
}

/// How far the departure of a Cluster has come.
enum Departure {
    Begins,
    Lasts,
    Over,
}

fn departure(copy: &Cluster, now: Timestamp) -> Departure {
    let annotations = copy.metadata.annotations.as_ref();
    let since = annotations.and_then(|all| all.get(labels::DEPARTED)).and_then(|text| text.parse::<Timestamp>().ok());
    match since.map(|since| now.duration_since(since)) {
        // A time in the future is from before the clock was set back.
        None => Departure::Begins,
        Some(age) if age < SignedDuration::ZERO => Departure::Begins,
        Some(age) if age.unsigned_abs() < DEPARTURE => Departure::Lasts,
        Some(_) => Departure::Over,
    }
}

fn marked(copy: &Cluster, now: Timestamp) -> Option<Cluster> {
    let mut content = Content::of(copy);
    content.annotations.insert(labels::DEPARTED.to_owned(), now.to_string());
    content.over(Some(copy))
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
