//! Decides which gateway of a cluster is the active one, over a lease that all of them see.
//!
//! The rules are client-go's `leaderelection`: whoever holds the lease renews it, though not at every look; another one
//! takes it over only after it has stood unchanged for its whole duration by the other's *own* monotonic clock, so wall
//! clocks need not agree. The holder stops being active when its renew deadline has passed since the *start* of its last
//! successful write, whatever the store says; that is before anyone can take over, as long as clocks differ in rate by
//! less than lease duration / renew deadline.
//!
//! Beyond client-go's rules: after reading has failed, nobody takes over before the holder had time to try again, since a
//! store that was away tells nothing of him. He forwards all the while, and his return costs no packet.
//!
//! The caller, whenever [`Election::poll_timeout`] says so or the lease changes: looks at the lease, gives it to
//! [`Election::handle_observed`], does what [`Election::poll_transmit`] returns by compare-and-swap against the version
//! just seen, and gives the outcome to [`Election::handle_written`]; strictly one after the other, so that no
//! observation is older than the own last write. The role also ends by itself, at [`Election::active_until`].
//!
//! ```text
//!            lease free, ours or stale: write ok
//!   Standby ------------------------------------> Active --+ renewed: write ok
//!      ^                                             |  ^--+
//!      +---------------------------------------------+
//!        renew deadline passed, another holder seen, or release
//! ```

use std::time::{Duration, Instant};

/// Times of an election (Submariner chapter 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionTiming {
    /// How long a lease lasts that is not renewed.
    pub lease_duration: Duration,
    /// How long the holder stays active without renewing.
    pub renew_deadline: Duration,
    /// How often the lease is looked at, and how soon a renewal that failed is tried again.
    pub retry_period: Duration,
}

impl Default for ElectionTiming {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Times that would let two gateways be active, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    #[error(
        "--renew-deadline {renew_deadline:?} is not below --lease-duration {lease_duration:?}: two gateways could be active"
    )]
    DeadlineNotBelowDuration { renew_deadline: Duration, lease_duration: Duration },
    #[error(
        "--retry-period {retry_period:?} is 0 or not below --renew-deadline {renew_deadline:?}: no lease would be kept"
    )]
    RetryNotBelowDeadline { retry_period: Duration, renew_deadline: Duration },
}

/// Retry periods for which the holder is waited for once the lease can be read again.
const PATIENCE: u32 = 3;

impl ElectionTiming {
    /// Returns how often the holder renews: in the middle of its deadline, which leaves as long to try again.
    fn renewal_period(self) -> Duration {
        self.retry_period.max(self.renew_deadline / 2)
    }

    /// Checks that retry period < renew deadline < lease duration.
    ///
    /// # Errors
    ///
    /// [`TimingError`] names the two flags that contradict each other.
    pub fn check(self) -> Result<Self, TimingError> {
        let Self { lease_duration, renew_deadline, retry_period } = self;
        if renew_deadline >= lease_duration {
            return Err(TimingError::DeadlineNotBelowDuration { renew_deadline, lease_duration });
        }
        if retry_period.is_zero() || retry_period >= renew_deadline {
            return Err(TimingError::RetryNotBelowDeadline { retry_period, renew_deadline });
        }
        Ok(self)
    }
}

/// A lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// `None` or empty: released.
    pub holder: Option<String>,
    /// `None`: the reader's own lease duration.
    pub duration: Option<Duration>,
    /// Differs after every renewal: the renew time as it is written, never compared with a clock.
    pub renewal: String,
    /// How often the holder has changed.
    pub transitions: u32,
}

/// What reading the lease gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    Lease(LeaseView),
    Absent,
    Failed,
}

/// A write of the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseWrite {
    pub kind: LeaseWriteKind,
    /// The new holder; `None` releases the lease.
    pub holder: Option<String>,
    pub duration: Duration,
    pub transitions: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseWriteKind {
    /// There is none: make it. Sets the acquire time.
    Create,
    /// Sets the acquire time.
    TakeOver,
    /// Keeps the acquire time.
    Renew,
    Release,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Done,
    /// Somebody else wrote first.
    Conflict,
    /// Not written, or not known to be.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Standby,
    Active,
}

/// One gateway's part in the election.
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    timing: ElectionTiming,
    /// Another's lease as last seen, and since when it has stood like that.
    rival: Option<(LeaseView, Instant)>,
    /// Since when the lease can be read again; `None` while it cannot.
    in_sight: Option<Instant>,
    /// What the next write may rest on; used once.
    fresh: Option<Observed>,
    /// The write under way, and when it began.
    pending: Option<(LeaseWriteKind, Instant)>,
    /// When the last successful write began.
    renewed: Option<Instant>,
    releasing: Release,
    next_observation: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    No,
    Wanted,
    Done,
}

impl Election {
    /// Starts as a standby; the lease is to be read at once.
    pub fn new(identity: String, timing: ElectionTiming, now: Instant) -> Self {
        Self {
            identity,
            timing,
            rival: None,
            in_sight: None,
            fresh: None,
            pending: None,
            renewed: None,
            releasing: Release::No,
            next_observation: Some(now),
        }
    }

    /// Tells whether this gateway is the active one at `now`.
    pub fn role(&self, now: Instant) -> Role {
        match (self.releasing, self.active_until()) {
            (Release::No, Some(until)) if now < until => Role::Active,
            (Release::No, Some(_) | None) | (Release::Wanted | Release::Done, _) => Role::Standby,
        }
    }

    /// Returns when the role ends if nothing is renewed until then.
    pub fn active_until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + self.timing.renew_deadline)
    }

    /// Takes the lease as it was read; `now` is after reading.
    pub fn handle_observed(&mut self, observed: Observed, now: Instant) {
        self.plan_observation(now);
        self.in_sight = (observed != Observed::Failed).then(|| self.in_sight.unwrap_or(now));
        match &observed {
            Observed::Lease(view) if self.holds(view) => self.rival = None,
            Observed::Lease(view) => {
                // Whatever we wrote last, somebody else has it now.
                self.renewed = None;
                if self.rival.as_ref().is_none_or(|(seen, _)| seen != view) {
                    self.rival = Some((view.clone(), now));
                }
            }
            Observed::Absent => {}
            Observed::Failed => return,
        }
        self.fresh = Some(observed);
    }

    /// Returns the write that is due, at most one for each observation.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<LeaseWrite> {
        if self.pending.is_some() {
            return None;
        }
        let observed = self.fresh.take()?;
        let write = match self.releasing {
            Release::No => self.claim(&observed, now),
            Release::Wanted => self.give_back(&observed),
            Release::Done => None,
        }?;
        self.pending = Some((write.kind, now));
        Some(write)
    }

    /// Takes the outcome of the write that [`Self::poll_transmit`] returned last.
    pub fn handle_written(&mut self, written: Written, now: Instant) {
        let Some((kind, started)) = self.pending.take() else { return };
        match (written, kind) {
            (Written::Done, LeaseWriteKind::Create | LeaseWriteKind::TakeOver | LeaseWriteKind::Renew) => {
                self.renewed = Some(started);
                self.rival = None;
            }
            (Written::Done, LeaseWriteKind::Release) => self.releasing = Release::Done,
            (Written::Conflict | Written::Failed, _) => {}
        }
        self.plan_observation(now);
        if self.releasing == Release::Wanted && kind != LeaseWriteKind::Release {
            // This write was under way when the release came; others wait for the lease.
            self.next_observation = Some(now);
        }
    }

    /// Gives the lease back, if it is ours; the role ends at once. It is done when [`Self::poll_timeout`] is `None`.
    pub fn release(&mut self, now: Instant) {
        if self.releasing == Release::No {
            self.releasing = Release::Wanted;
            self.fresh = None;
            self.next_observation = Some(now);
        }
    }

    /// Returns when the lease is to be read again; `None` once it has been given back.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.releasing {
            Release::No | Release::Wanted => self.next_observation,
            Release::Done => None,
        }
    }

    fn plan_observation(&mut self, now: Instant) {
        let usual = now + self.timing.retry_period;
        let renewal = self.renewal().filter(|&renewal| renewal > now);
        self.next_observation = Some(renewal.map_or(usual, |renewal| renewal.min(usual)));
    }

    /// Returns when the lease is to be renewed.
    fn renewal(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + self.timing.renewal_period())
    }

    fn holds(&self, view: &LeaseView) -> bool {
        view.holder.as_deref() == Some(self.identity.as_str())
    }

    fn claim(&self, observed: &Observed, now: Instant) -> Option<LeaseWrite> {
        let (kind, transitions) = match observed {
            Observed::Failed => return None,
            // Somebody may have deleted the lease under its holder, who is still active for a while.
            Observed::Absent if self.rival_may_be_active(now) => return None,
            Observed::Absent => (LeaseWriteKind::Create, 0),
            Observed::Lease(view) if self.holds(view) => {
                let due = self.renewal().is_none_or(|renewal| now >= renewal);
                if !due {
                    return None;
                }
                (LeaseWriteKind::Renew, view.transitions)
            }
            Observed::Lease(_) if self.rival_may_be_active(now) => return None,
            Observed::Lease(view) => (LeaseWriteKind::TakeOver, view.transitions.saturating_add(1)),
        };
        let holder = Some(self.identity.clone());
        Some(LeaseWrite { kind, holder, duration: self.timing.lease_duration, transitions })
    }

    fn rival_may_be_active(&self, now: Instant) -> bool {
        self.rival.as_ref().is_some_and(|(view, since)| {
            let held = view.holder.as_ref().is_some_and(|holder| !holder.is_empty());
            let duration = view.duration.filter(|duration| !duration.is_zero()).unwrap_or(self.timing.lease_duration);
            let may_try_again = self.in_sight.is_none_or(|since| now < since + self.timing.retry_period * PATIENCE);
            held && (now.saturating_duration_since(*since) < duration || may_try_again)
        })
    }

    /// A released lease lasts one second, as client-go writes it; what matters is that nobody holds it.
    fn give_back(&mut self, observed: &Observed) -> Option<LeaseWrite> {
        match observed {
            Observed::Lease(view) if self.holds(view) => Some(LeaseWrite {
                kind: LeaseWriteKind::Release,
                holder: None,
                duration: Duration::from_secs(1),
                transitions: view.transitions,
            }),
            Observed::Lease(_) | Observed::Absent => {
                self.releasing = Release::Done;
                None
            }
            Observed::Failed => None,
        }
    }
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
