//! Reads both stores, plans, and writes: one pass of the broker sync.
//!
//! A store that cannot be read stops the pass before anything is written: what is not seen is not absent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

use culvert_api::{Cluster, Endpoint, Record, backend_config};
use culvert_model::{ClusterId, ForeignSubnets};
use culvert_runtime::{Problem, Records, StoreError};
use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;

use crate::absence::{Absences, Look};
use crate::accept::Refusal;
use crate::side::{Found, Side, Synced};
use crate::sync::{self, Changes, Situation, SyncPlan};

/// Clusters whose records are written at the same time: an API server answers each write after some milliseconds, most of
/// which it spends waiting.
const WRITERS: usize = 16;

/// Clusters that a pass writes here at most: Endpoints that came meanwhile, from which routes follow, shall not wait for
/// many of them.
const CLUSTERS_AT_ONCE: usize = 64;

/// Keeps the records of one cluster in step with those at the broker.
#[derive(Debug)]
pub struct Syncer {
    own: ClusterId,
    local: Records,
    broker: Records,
    absences: Absences,
    /// What was logged already, so that a lasting state is logged once.
    told: BTreeSet<String>,
    broker_away: bool,
}

/// What a pass did.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// How many records were written or deleted.
    pub applied: usize,
    /// What is not synced, and why.
    pub refused: Vec<Refusal>,
    /// Records that could not be read, on either side.
    pub problems: Vec<Problem>,
    /// What failed; the next pass tries it again.
    pub failed: Vec<Failure>,
    /// The broker has lost records: absences do not count yet, and a pass every 30 s finds out when they do.
    pub healing: bool,
    /// Not everything was written yet: the next pass is due at once.
    pub unfinished: bool,
}

/// A record that could not be written or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which, and in which store: `Endpoint east-1 (broker)`.
    pub record: String,
    pub cause: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.record, self.cause)
    }
}

/// Why a pass did nothing, or did not do everything.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("could not read this cluster's records")]
    Local(#[source] StoreError),
    #[error("could not read the broker's records")]
    Broker(#[source] StoreError),
    #[error("some records are not removed: {}; once the cause is gone, uninstall again", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Left(Vec<Failure>),
}

impl Syncer {
    /// Returns the syncer of cluster `own`.
    pub fn new(own: ClusterId, local: Records, broker: Records) -> Self {
        Self { own, local, broker, absences: Absences::default(), told: BTreeSet::new(), broker_away: false }
    }

    /// Makes one pass. `clock` is the time of day; `foreign` is what no other cluster may claim here.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if a store could not be read; nothing was written then.
    pub async fn pass(
        &mut self,
        foreign: &ForeignSubnets,
        clock: Timestamp,
        now: Instant,
    ) -> Result<SyncReport, SyncError> {
        let mut report = SyncReport::default();
        let local = read(&self.local, &mut report.problems).await.map_err(SyncError::Local)?;
        let broker = match read(&self.broker, &mut report.problems).await {
            Ok(broker) => broker,
            Err(error) => {
                if !std::mem::replace(&mut self.broker_away, true) {
                    tracing::warn!(%error, "Broker cannot be read; cables stay as they are");
                }
                return Err(SyncError::Broker(error));
            }
        };
        if std::mem::replace(&mut self.broker_away, false) {
            tracing::info!("Broker can be read again");
        }
        let look = Look {
            own_there: sync::has_own_cluster(&self.own, &broker),
            copies_here: sync::has_copies(&self.own, &local),
        };
        self.absences.handle_look(look, now);
        report.healing = !self.absences.count();
        let plan = sync::plan(&Situation {
            own: &self.own,
            foreign,
            local: &local,
            broker: &broker,
            absences_count: self.absences.count(),
            now: clock,
        });
        self.apply(&plan, &local, &broker, &mut report).await;
        report.refused = plan.refused;
        self.tell(&report);
        Ok(report)
    }

    /// Takes this cluster out of the set: deletes its own records here and at the broker, and its copies of others'.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if something is left; what could be deleted is deleted all the same.
    pub async fn depart(&self) -> Result<SyncReport, SyncError> {
        let mut report = SyncReport::default();
        let local = read(&self.local, &mut report.problems).await;
        let broker = read(&self.broker, &mut report.problems).await;
        let empty = Side::default();
        let (local_side, broker_side) = (local.as_ref().unwrap_or(&empty), broker.as_ref().unwrap_or(&empty));
        let plan = sync::departure_plan(&self.own, local_side, broker_side);
        self.apply(&plan, local_side, broker_side, &mut report).await;
        local.map_err(SyncError::Local)?;
        broker.map_err(SyncError::Broker)?;
        if report.failed.is_empty() { Ok(report) } else { Err(SyncError::Left(report.failed)) }
    }

    /// Writes what is new before deleting what is old, so that a cluster whose gateway changed is never without one: its
    /// old Endpoint stays for as long as the new one is refused. Deletes a Cluster last, so that its subnets are known for
    /// as long as there are cables to it.
    ///
    /// One exception: an Endpoint with other subnets and the key of one that goes. Submariner's gateways take the two for one
    /// and would cut the new cable with the old record, so that goes first.
    ///
    /// Of what is new a broker wants the Cluster first, against which it checks the Endpoint. Here the Endpoints come
    /// first: routes follow from them, and the Cluster says no more than they do for as long as they are there.
    async fn apply(&self, plan: &SyncPlan, local: &Side, broker: &Side, report: &mut SyncReport) {
        let Changes { clusters, endpoints } = &plan.to_broker;
        put(&self.broker, "broker", &clusters.put, report).await;
        let (first, later): (Vec<String>, Vec<String>) =
            endpoints.delete.iter().cloned().partition(|name| is_changed(name, &broker.endpoints, &endpoints.put));
        delete::<Endpoint>(&self.broker, "broker", &names(&first), report).await;
        let behind = put(&self.broker, "broker", &endpoints.put, report).await;
        let replaced = replaced(&later, &broker.endpoints, &behind);
        delete::<Endpoint>(&self.broker, "broker", &replaced, report).await;
        delete::<Cluster>(&self.broker, "broker", &names(&clusters.delete), report).await;
        let Changes { clusters, endpoints } = &plan.to_local;
        let behind = put(&self.local, "local", &endpoints.put, report).await;
        let (first, later) = clusters.put.split_at(clusters.put.len().min(CLUSTERS_AT_ONCE));
        put(&self.local, "local", first, report).await;
        report.unfinished = !later.is_empty();
        let replaced = self::replaced(&endpoints.delete, &local.endpoints, &behind);
        delete::<Endpoint>(&self.local, "local", &replaced, report).await;
        delete::<Cluster>(&self.local, "local", &names(&clusters.delete), report).await;
    }

    /// Logs what is refused or broken since the last pass, and what no longer is.
    fn tell(&mut self, report: &SyncReport) {
        let refused = report.refused.iter().map(|refusal| format!("not synced: {refusal}"));
        let broken = report.problems.iter().map(|problem| format!("not readable: {problem}"));
        let failed = report.failed.iter().map(|failure| format!("not written: {failure}"));
        let mut all: BTreeSet<String> = refused.chain(broken).chain(failed).collect();
        if report.healing {
            all.insert(
                "records were lost at the broker: what it lacks is kept here until it is whole again".to_owned(),
            );
        }
        for detail in all.difference(&self.told) {
            tracing::warn!(detail, "Broker sync is incomplete");
        }
        for detail in self.told.difference(&all) {
            tracing::info!(detail, "Broker sync is over an obstacle");
        }
        self.told = all;
    }
}

async fn read(records: &Records, problems: &mut Vec<Problem>) -> Result<Side, StoreError> {
    Ok(Side { clusters: found(records, problems).await?, endpoints: found(records, problems).await? })
}

async fn found<R: Record>(records: &Records, problems: &mut Vec<Problem>) -> Result<Found<R>, StoreError> {
    let listing = records.list::<R>().await?;
    let mut found: Found<R> = listing.records.into_iter().collect();
    let unread = listing.problems.iter().filter_map(Problem::name).filter(|name| !found.records.contains_key(*name));
    found.unreadable = unread.map(str::to_owned).collect();
    problems.extend(listing.problems);
    Ok(found)
}

/// Writes records; returns the clusters of which some could not be written.
async fn put<R: Synced>(records: &Records, store: &str, put: &[R], report: &mut SyncReport) -> BTreeSet<String> {
    let turns = by_cluster(put).into_iter().map(|of_cluster| put_in_turn(records, of_cluster)).collect();
    let mut behind = BTreeSet::new();
    for (record, outcome) in all_at_once(turns).await {
        if outcome.is_err() {
            behind.insert(record.spoken_for().to_owned());
        }
        note(outcome, "Wrote", store, R::KIND, record.name(), report);
    }
    behind
}

/// Returns which of the Endpoints that are to be deleted have what takes their place: not those of clusters that are
/// `behind`.
fn replaced<'a>(delete: &'a [String], found: &Found<Endpoint>, behind: &BTreeSet<String>) -> Vec<&'a str> {
    let stays = |name: &str| found.records.get(name).is_some_and(|record| behind.contains(record.spoken_for()));
    names(delete).into_iter().filter(|name| !stays(name)).collect()
}

/// Tells whether an Endpoint that is to be deleted comes again by another name, with its key and other subnets.
fn is_changed(name: &str, found: &Found<Endpoint>, put: &[Endpoint]) -> bool {
    let key = |endpoint: &Endpoint| endpoint.spec.backend_config.get(backend_config::PUBLIC_KEY).cloned();
    found.records.get(name).is_some_and(|old| {
        let is_next = |new: &Endpoint| key(new) == key(old) && new.spec.subnets != old.spec.subnets;
        key(old).is_some() && put.iter().any(is_next)
    })
}

fn names(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

async fn put_in_turn<'a, R: Synced>(records: &Records, put: Vec<&'a R>) -> Vec<(&'a R, Result<(), StoreError>)> {
    let mut outcomes = Vec::new();
    for record in put {
        let written = match record.metadata().resource_version {
            Some(_) => records.update(record).await,
            None => records.create(record).await,
        };
        outcomes.push((record, written.map(|_| ())));
    }
    outcomes
}

async fn delete<R: Record>(records: &Records, store: &str, names: &[&str], report: &mut SyncReport) {
    let turns = names.iter().map(|name| delete_one::<R>(records, name)).collect();
    for (name, outcome) in all_at_once(turns).await {
        note(outcome, "Deleted", store, R::KIND, name, report);
    }
}

async fn delete_one<'a, R: Record>(records: &Records, name: &'a str) -> Vec<(&'a str, Result<(), StoreError>)> {
    vec![(name, records.delete::<R>(name).await.map(|_| ()))]
}

/// Sorts records by the cluster that they speak for, each cluster's in the order given: the age of its copies tells which
/// of two Endpoints of a cluster counts.
fn by_cluster<R: Synced>(records: &[R]) -> Vec<Vec<&R>> {
    let mut clusters: BTreeMap<&str, Vec<&R>> = BTreeMap::new();
    for record in records {
        clusters.entry(record.spoken_for()).or_default().push(record);
    }
    clusters.into_values().collect()
}

/// Lets many go on at once, though not all; returns the outcomes in the order given.
async fn all_at_once<T>(turns: Vec<impl Future<Output = Vec<T>>>) -> Vec<T> {
    let outcomes: Vec<Vec<T>> = stream::iter(turns).buffered(WRITERS).collect().await;
    outcomes.into_iter().flatten().collect()
}

fn note(
    outcome: Result<(), StoreError>,
    action: &'static str,
    store: &str,
    kind: &str,
    name: &str,
    report: &mut SyncReport,
) {
    match outcome {
        Ok(()) => {
            tracing::info!(action, store, kind, name, "Synced a record");
            report.applied += 1;
        }
        Err(error) => {
            report.failed.push(Failure { record: format!("{kind} {name} ({store})"), cause: error.to_string() });
        }
    }
}

#[cfg(test)]
mod tests;
