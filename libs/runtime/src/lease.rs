//! Reads and writes the Lease that gateways stand for election with; who may take it is decided in `gateway/core`.
//!
//! Fields are those of client-go, so that Submariner's gateways and ours read each other's leases. Every write is a
//! compare-and-swap against the Lease that the decision was based on.

use std::time::Duration;

use culvert_api::{Lease, LeaseSpec, Record as _};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use crate::{Records, StoreError};

/// A Lease by name in a record store.
#[derive(Clone, Debug)]
pub struct LeaseLock {
    records: Records,
    name: String,
}

/// A Lease as it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseSnapshot {
    /// Who holds it; `None` when it was released.
    pub holder: Option<String>,
    /// How long a holder that does not renew keeps it.
    pub duration: Duration,
    /// How often it went from one holder to another.
    pub transitions: u32,
    /// Differs after every renewal; not a time to compare with one's own clock.
    pub renewal: String,
    /// The record: `expected` of the next [`LeaseLock::write`].
    pub lease: Lease,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseWritten {
    Written,
    /// Somebody else wrote first: observe again.
    Conflict,
}

impl LeaseLock {
    /// Returns the lock `name` in `records`.
    pub fn new(records: Records, name: &str) -> Self {
        Self { records, name: name.to_owned() }
    }

    /// Reads the Lease; `None` if there is none yet.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store is away or the record unreadable.
    pub async fn observe(&self) -> Result<Option<LeaseSnapshot>, StoreError> {
        Ok(self.records.find::<Lease>(&self.name).await?.map(snapshot))
    }

    /// Returns the Lease as it was followed until now; the store is asked only where that may be old.
    ///
    /// That may be less than the present state. A [`Self::write`] that rests on it is then a conflict.
    ///
    /// # Errors
    ///
    /// As [`Self::observe`].
    pub async fn follow(&self) -> Result<Option<LeaseSnapshot>, StoreError> {
        if self.records.outage().is_some() {
            return self.observe().await;
        }
        let listing = self.records.list::<Lease>().await?;
        if listing.problems.iter().any(|problem| problem.name() == Some(&self.name)) {
            return self.observe().await;
        }
        Ok(listing.records.into_iter().find(|lease| lease.name() == self.name).map(snapshot))
    }

    /// Writes `holder` (empty to release) into the Lease if it still is `expected` (`None`: if there is none).
    ///
    /// `now` becomes the renewal time, and the time of acquisition too when the holder changes.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store is away or refuses; whether the write took place is then unknown.
    pub async fn write(
        &self,
        expected: Option<&Lease>,
        holder: &str,
        duration: Duration,
        transitions: u32,
        now: Timestamp,
    ) -> Result<LeaseWritten, StoreError> {
        let before = expected.and_then(|lease| lease.spec.as_ref());
        let same_holder = before.and_then(|spec| spec.holder_identity.as_deref()) == Some(holder);
        let acquired = before.and_then(|spec| spec.acquire_time.clone()).filter(|_| same_holder);
        let now = MicroTime(now);
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(whole_seconds(duration)),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(i32::try_from(transitions).unwrap_or(i32::MAX)),
            ..before.cloned().unwrap_or_default()
        };
        let written = match expected {
            Some(lease) => self.records.update(&Lease { spec: Some(spec), ..lease.clone() }).await,
            None => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                self.records.create(&Lease { metadata, spec: Some(spec) }).await
            }
        };
        match written {
            Ok(_) => Ok(LeaseWritten::Written),
            Err(StoreError::Conflict { .. } | StoreError::Exists { .. } | StoreError::NotFound { .. }) => {
                Ok(LeaseWritten::Conflict)
            }
            Err(error) => Err(error),
        }
    }
}

fn snapshot(lease: Lease) -> LeaseSnapshot {
    let spec = lease.spec.clone().unwrap_or_default();
    let renewed = spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default();
    let transitions = spec.lease_transitions.and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
    let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
    LeaseSnapshot {
        renewal: format!("{} {renewed} {transitions}", holder.as_deref().unwrap_or("")),
        holder,
        duration: Duration::from_secs(seconds),
        transitions,
        lease,
    }
}

/// Rounds up, and to 1 at least: a Lease of 0 s is none by the API's rules.
fn whole_seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIFTEEN: Duration = Duration::from_secs(15);

    fn lock(root: &tempfile::TempDir) -> LeaseLock {
        LeaseLock::new(Records::open(root.path()), "submariner-gateway-lock")
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[tokio::test]
    async fn a_lease_survives_its_file() {
        let root = tempfile::tempdir().unwrap();
        let lock = lock(&root);
        assert_eq!(lock.observe().await.unwrap(), None);

        let written = lock.write(None, "east-gw", FIFTEEN, 0, at(0)).await.unwrap();

        assert_eq!(written, LeaseWritten::Written);
        let seen = lock.observe().await.unwrap().unwrap();
        assert_eq!((seen.holder.as_deref(), seen.duration, seen.transitions), (Some("east-gw"), FIFTEEN, 0));
    }

    #[tokio::test]
    async fn a_renewal_keeps_the_time_of_acquisition_and_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let lock = lock(&root);
        lock.write(None, "a", FIFTEEN, 0, at(0)).await.unwrap();
        let first = lock.observe().await.unwrap().unwrap();

        lock.write(Some(&first.lease), "a", FIFTEEN, 0, at(2)).await.unwrap();

        let second = lock.observe().await.unwrap().unwrap();
        assert_ne!(first.renewal, second.renewal);
        let spec = second.lease.spec.unwrap();
        assert_eq!(spec.acquire_time.unwrap().0, at(0));
        assert_eq!(spec.renew_time.unwrap().0, at(2));
    }

    #[tokio::test]
    async fn of_two_writers_on_one_observation_one_wins() {
        let root = tempfile::tempdir().unwrap();
        let lock = lock(&root);
        assert_eq!(lock.write(None, "a", FIFTEEN, 0, at(0)).await.unwrap(), LeaseWritten::Written);
        assert_eq!(lock.write(None, "b", FIFTEEN, 0, at(0)).await.unwrap(), LeaseWritten::Conflict);
        let seen = lock.observe().await.unwrap().unwrap();
        assert_eq!(lock.write(Some(&seen.lease), "b", FIFTEEN, 1, at(20)).await.unwrap(), LeaseWritten::Written);
        assert_eq!(lock.write(Some(&seen.lease), "c", FIFTEEN, 1, at(20)).await.unwrap(), LeaseWritten::Conflict);
        assert_eq!(lock.observe().await.unwrap().unwrap().holder.as_deref(), Some("b"));
    }

    #[tokio::test]
    async fn a_released_lease_has_no_holder() {
        let root = tempfile::tempdir().unwrap();
        let lock = lock(&root);
        lock.write(None, "a", FIFTEEN, 3, at(0)).await.unwrap();
        let seen = lock.observe().await.unwrap().unwrap();

        lock.write(Some(&seen.lease), "", Duration::from_secs(1), 3, at(1)).await.unwrap();

        let released = lock.observe().await.unwrap().unwrap();
        assert_eq!((released.holder, released.transitions), (None, 3));
    }

    #[tokio::test]
    async fn what_is_followed_is_what_was_written_and_rests_on_no_older_write() {
        let root = tempfile::tempdir().unwrap();
        let lock = lock(&root);
        assert_eq!(lock.follow().await.unwrap(), None);
        lock.write(None, "a", FIFTEEN, 0, at(0)).await.unwrap();
        let followed = lock.follow().await.unwrap();
        assert_eq!(followed, lock.observe().await.unwrap());

        lock.write(followed.as_ref().map(|seen| &seen.lease), "b", FIFTEEN, 1, at(20)).await.unwrap();
        let late = lock.write(followed.as_ref().map(|seen| &seen.lease), "a", FIFTEEN, 0, at(21)).await.unwrap();

        assert_eq!(late, LeaseWritten::Conflict);
        assert_eq!(lock.follow().await.unwrap().unwrap().holder.as_deref(), Some("b"));
    }

    #[tokio::test]
    async fn a_store_that_is_away_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let lock = lock(&root);
        root.close().unwrap();
        assert!(matches!(lock.observe().await, Err(StoreError::Away { .. })));
        assert!(lock.write(None, "a", FIFTEEN, 0, at(0)).await.is_err());
    }
}
