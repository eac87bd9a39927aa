//! Reads both stores, plans, and writes: one pass of the broker sync.
//!
//! A store that cannot be read stops the pass before anything is written: what is not seen is not absent.

use std::collections::BTreeSet;
use std::time::Instant;

use culvert_api::Record;
use culvert_model::{ClusterId, ForeignSubnets};
use culvert_runtime::{Problem, Records, StoreError};
use jiff::Timestamp;

use crate::absence::{Absences, Look};
use crate::accept::Refusal;
use crate::side::{Found, Side};
use crate::sync::{self, Changes, ChangesOf, Situation, SyncPlan};

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
    /// What failed, in words; the next pass tries it again.
    pub failed: Vec<String>,
    /// The broker has lost records: absences do not count yet, and a pass every 30 s finds out when they do.
    pub healing: bool,
}

/// Why a pass did nothing, or did not do everything.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("could not read this cluster's records")]
    Local(#[source] StoreError),
    #[error("could not read the broker's records")]
    Broker(#[source] StoreError),
    #[error("some records are not removed: {}; once the cause is gone, uninstall again", .0.join("; "))]
    Left(Vec<String>),
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
        self.apply(&plan, &mut report).await;
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
        let plan = sync::departure_plan(&self.own, local.as_ref().unwrap_or(&empty), broker.as_ref().unwrap_or(&empty));
        self.apply(&plan, &mut report).await;
        local.map_err(SyncError::Local)?;
        broker.map_err(SyncError::Broker)?;
        if report.failed.is_empty() { Ok(report) } else { Err(SyncError::Left(report.failed)) }
    }

    async fn apply(&self, plan: &SyncPlan, report: &mut SyncReport) {
        apply(&self.broker, "broker", &plan.to_broker, report).await;
        apply(&self.local, "local", &plan.to_local, report).await;
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

/// Writes what is new before deleting what is old, so that a cluster whose gateway changed is never without one, and
/// deletes a Cluster last, so that its subnets are known for as long as there are cables to it.
async fn apply(records: &Records, store: &str, changes: &Changes, report: &mut SyncReport) {
    put(records, store, &changes.clusters, report).await;
    put(records, store, &changes.endpoints, report).await;
    delete(records, store, &changes.endpoints, report).await;
    delete(records, store, &changes.clusters, report).await;
}

async fn put<R: Record>(records: &Records, store: &str, changes: &ChangesOf<R>, report: &mut SyncReport) {
    for record in &changes.put {
        let written = match record.metadata().resource_version {
            Some(_) => records.update(record).await,
            None => records.create(record).await,
        };
        note(written.map(|_| ()), "Wrote", store, R::KIND, record.name(), report);
    }
}

async fn delete<R: Record>(records: &Records, store: &str, changes: &ChangesOf<R>, report: &mut SyncReport) {
    for name in &changes.delete {
        note(records.delete::<R>(name).await.map(|_| ()), "Deleted", store, R::KIND, name, report);
    }
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
        Err(error) => report.failed.push(format!("{kind} {name} ({store}): {error}")),
    }
}

#[cfg(test)]
mod tests;
