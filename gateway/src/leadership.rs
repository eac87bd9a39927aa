//! Stands for election and tells the rest of the gateway what came of it.
//!
//! A task of its own, so that a slow pass never costs the lease. The rules are `gateway/core`'s; here they meet the
//! Lease record. One thing is added: a gateway that cannot renew, while nobody else is seen to hold the lease, is
//! deposed, not standby. It publishes nothing any more but goes on forwarding, since cutting its cables would help
//! nobody: traffic moves only once another gateway has the lease and says so in records.

use std::time::{Duration, Instant};

use culvert_api::{Lease, Record};
use culvert_gateway_core::election::{
    Election, ElectionTiming, LeaseView, LeaseWrite, LeaseWriteKind, Observed, Role, Written,
};
use culvert_runtime::lease::{LeaseLock, LeaseSnapshot, LeaseWritten};
use culvert_runtime::reconcile::Wake;
use culvert_runtime::task::{Ended, Task};
use culvert_runtime::{Records, StoreError, Watch};
use jiff::Timestamp;
use tokio::sync::watch;

/// The Lease that Submariner's gateways stand for (chapter 4.2).
pub(crate) const LEASE: &str = "submariner-gateway-lock";

/// Returns the name under which the gateway of `node` stands for election.
pub(crate) fn identity(node: &str) -> String {
    format!("{node}-submariner-gateway")
}

/// A look at the lease after each change of a record, but not more often than this.
const PAUSE: Duration = Duration::from_millis(50);

/// What the election made of this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leadership {
    Standby,
    Active,
    /// Was active, could not renew, and nobody else is seen to be.
    Deposed,
}

/// The running candidacy.
pub(crate) struct Candidacy {
    leadership: watch::Receiver<Leadership>,
    release: watch::Sender<bool>,
    task: Task,
}

impl Candidacy {
    /// Stands for election as `<node>-submariner-gateway`; `wake` rings whenever the outcome changes.
    ///
    /// The lease is looked at before this returns: a gateway that is started again and still holds it never is a
    /// standby, which would take down what it finds in the kernel.
    pub(crate) async fn start(node: &str, timing: ElectionTiming, records: Records, wake: Wake) -> Self {
        let mut candidate = Candidate {
            election: Election::new(identity(node), timing, Instant::now()),
            lock: LeaseLock::new(records.clone(), LEASE),
            seen: None,
            failing: false,
        };
        let changes = records.watch(&[Lease::RESOURCE]);
        candidate.look().await;
        tracing::info!(leadership = ?candidate.leadership(Instant::now()), "Gateway stands for election");
        let (sender, leadership) = watch::channel(candidate.leadership(Instant::now()));
        let (release, released) = watch::channel(false);
        let task = Task::spawn("the election", wake.clone(), run(candidate, changes, released, sender, wake));
        Self { leadership, release, task }
    }

    pub(crate) fn leadership(&self) -> Leadership {
        *self.leadership.borrow()
    }

    /// Makes sure that it still runs.
    pub(crate) fn check(&self) -> Result<(), Ended> {
        self.task.check()
    }

    /// Gives the lease back, so that a standby takes it at once; waits until that is done, at most a second.
    pub(crate) async fn release(&mut self) {
        self.release.send_replace(true);
        tokio::time::timeout(Duration::from_secs(1), self.task.ended()).await.ok();
    }
}

struct Candidate {
    election: Election,
    lock: LeaseLock,
    /// The record on which the next write rests.
    seen: Option<LeaseSnapshot>,
    /// Whether a failure was logged that still lasts.
    failing: bool,
}

async fn run(
    mut candidate: Candidate,
    mut changes: Watch,
    mut released: watch::Receiver<bool>,
    leadership: watch::Sender<Leadership>,
    wake: Wake,
) {
    let mut last_look: Option<Instant> = None;
    loop {
        let outcome = candidate.leadership(Instant::now());
        let changed = leadership.send_if_modified(|current| std::mem::replace(current, outcome) != outcome);
        if changed {
            tracing::info!(leadership = ?outcome, "Leadership has changed");
            wake.wake();
        }
        let Some(next_look) = candidate.election.poll_timeout() else { return };
        let end = candidate.election.active_until().filter(|&until| until > Instant::now());
        let deadline = end.map_or(next_look, |end| end.min(next_look));
        let is_standby = outcome == Leadership::Standby;
        tokio::select! {
            () = tokio::time::sleep_until(deadline.into()) => {}
            // Only a standby has something to gain from an early look: a lease that was given back.
            () = changes.changed(), if is_standby => {
                if let Some(last) = last_look {
                    tokio::time::sleep_until((last + PAUSE).into()).await;
                }
                last_look = Some(Instant::now());
                candidate.look().await;
                continue;
            }
            asked = released.changed() => {
                if asked.is_err() {
                    return;
                }
                candidate.election.release(Instant::now());
            }
        }
        if candidate.election.poll_timeout().is_some_and(|due| due <= Instant::now()) {
            candidate.look().await;
        }
    }
}

impl Candidate {
    fn leadership(&self, now: Instant) -> Leadership {
        match (self.election.role(now), self.election.active_until()) {
            (Role::Active, _) => Leadership::Active,
            (Role::Standby, Some(_)) => Leadership::Deposed,
            (Role::Standby, None) => Leadership::Standby,
        }
    }

    /// Looks at the lease and does what follows from it. While this gateway is active that takes no longer than it may be
    /// without a renewal: a store that is slow to answer must not keep it from stepping down.
    ///
    /// What was followed is enough to decide from, since every write rests on it: where somebody has written meanwhile it
    /// is refused, and only then is the store asked.
    async fn look(&mut self) {
        let followed = self.in_time(self.lock.follow()).await;
        if self.act_on(followed).await == Some(Written::Conflict) {
            let observed = self.in_time(self.lock.observe()).await;
            self.act_on(observed).await;
        }
    }

    /// Does what follows from the lease; returns how the write ended, if one was due.
    async fn act_on(&mut self, found: Result<Option<LeaseSnapshot>, String>) -> Option<Written> {
        let observed = match found {
            Ok(snapshot) => {
                self.seen = snapshot;
                self.note(None);
                self.seen.as_ref().map_or(Observed::Absent, |seen| Observed::Lease(view(seen)))
            }
            Err(error) => {
                self.note(Some(&error));
                Observed::Failed
            }
        };
        self.election.handle_observed(observed, Instant::now());
        let mut last = None;
        while let Some(write) = self.election.poll_transmit(Instant::now()) {
            let written = self.write(&write).await;
            self.election.handle_written(written, Instant::now());
            last = Some(written);
        }
        last
    }

    async fn write(&mut self, write: &LeaseWrite) -> Written {
        let expected = match write.kind {
            LeaseWriteKind::Create => None,
            LeaseWriteKind::TakeOver | LeaseWriteKind::Renew | LeaseWriteKind::Release => {
                self.seen.as_ref().map(|seen| &seen.lease)
            }
        };
        let holder = write.holder.as_deref().unwrap_or("");
        let writing = self.lock.write(expected, holder, write.duration, write.transitions, Timestamp::now());
        match self.in_time(writing).await {
            Ok(LeaseWritten::Written) => Written::Done,
            Ok(LeaseWritten::Conflict) => Written::Conflict,
            Err(error) => {
                self.note(Some(&error));
                Written::Failed
            }
        }
    }

    /// Does this until it is done, or until this gateway is active no longer.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, String> {
        let now = Instant::now();
        let Some(end) = self.election.active_until().filter(|&until| until > now) else {
            return work.await.map_err(|error| error.to_string());
        };
        match tokio::time::timeout_at(end.into(), work).await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_) => Err("the store has not answered in time".to_owned()),
        }
    }

    /// Logs the beginning and the end of failures.
    fn note(&mut self, error: Option<&str>) {
        match (error, self.failing) {
            (Some(error), false) => tracing::warn!(error, "Lease cannot be read or written"),
            (None, true) => tracing::info!("Lease can be read again"),
            (Some(_), true) | (None, false) => {}
        }
        self.failing = error.is_some();
    }
}

fn view(snapshot: &LeaseSnapshot) -> LeaseView {
    LeaseView {
        holder: snapshot.holder.clone(),
        duration: (!snapshot.duration.is_zero()).then_some(snapshot.duration),
        renewal: snapshot.renewal.clone(),
        transitions: snapshot.transitions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: ElectionTiming = ElectionTiming {
        lease_duration: Duration::from_secs(3000),
        renew_deadline: Duration::from_secs(2000),
        // Nobody looks by itself while a test runs.
        retry_period: Duration::from_secs(1000),
    };

    async fn stand(node: &str, root: &tempfile::TempDir) -> Candidacy {
        Candidacy::start(node, TIMING, Records::open(root.path()), Wake::default()).await
    }

    #[tokio::test]
    async fn a_gateway_that_was_killed_is_active_from_its_start() {
        let root = tempfile::tempdir().unwrap();
        drop(stand("east-1", &root).await);

        let again = stand("east-1", &root).await;
        let other = stand("east-2", &root).await;

        assert_eq!((again.leadership(), other.leadership()), (Leadership::Active, Leadership::Standby));
    }

    #[tokio::test]
    async fn a_lease_that_is_given_back_is_taken_at_once() {
        let root = tempfile::tempdir().unwrap();
        let mut first = stand("east-1", &root).await;
        let second = stand("east-2", &root).await;

        first.release().await;

        let mut leadership = second.leadership.clone();
        let taken = leadership.wait_for(|leadership| *leadership == Leadership::Active);
        assert!(tokio::time::timeout(TIMING.retry_period / 10, taken).await.is_ok(), "not by looking by itself");
    }

    #[tokio::test]
    async fn a_store_that_is_away_makes_nobody_active() {
        let root = tempfile::tempdir().unwrap();
        let away = root.path().join("away");

        let candidacy = Candidacy::start("east-1", TIMING, Records::open(away), Wake::default()).await;

        assert_eq!(candidacy.leadership(), Leadership::Standby);
    }
}
