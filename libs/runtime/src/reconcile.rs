//! Decides when a reconciler makes its next pass.
//!
//! On any change, once its burst had time to settle; otherwise every 30 s; after a failure sooner and sooner no more:
//! 250 ms, doubling to 30 s. A change cuts a back-off short, but never below its first step, so that a failing pass
//! that itself causes changes cannot spin. Long passes rest in between: changes that come in hundreds shall not each
//! cost a pass over all that is there already. A change that comes after a quiet while never waits for that.
//!
//! A reconciler whose passes cost what they change ([`run_promptly`]) makes one at once on a change after a quiet while,
//! and lets what follows settle.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::shutdown::Shutdown;

/// How long a burst of changes may settle before a pass.
pub const SETTLE: Duration = Duration::from_millis(10);
/// What a pass may take without a rest after it; for what is beyond it rests three times as long.
const SHORT_PASS: Duration = Duration::from_millis(50);
const REST: u32 = 3;
const LONGEST_REST: Duration = Duration::from_millis(250);
/// For each entry of a status, how long it stays as it was written.
const PAUSE_PER_ENTRY: Duration = Duration::from_millis(5);
/// The longest time between two passes.
pub const INTERVAL: Duration = Duration::from_secs(30);
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LAST_BACKOFF: Duration = INTERVAL;

/// Returns how long after the end of a pass that took so long the next begins at the soonest.
pub fn rest_after(pass: Duration) -> Duration {
    (pass.saturating_sub(SHORT_PASS) * REST).min(LONGEST_REST)
}

/// Has news of a large status wait for a while after it was written.
///
/// It is written, stored and sent to all that watch it as a whole: a thousand entries are more than half a megabyte.
#[derive(Debug, Default)]
pub struct Restraint {
    until: Option<std::time::Instant>,
    /// What was written says less than is known.
    is_behind: bool,
}

impl Restraint {
    /// Tells whether what is to be said now has to wait; `is_news` is whether there is anything.
    pub fn holds_back(&mut self, is_news: bool, now: std::time::Instant) -> bool {
        self.is_behind = is_news && self.until.is_some_and(|until| now < until);
        self.is_behind
    }

    /// Takes that a status with so many entries was written.
    pub fn handle_written(&mut self, entries: usize, now: std::time::Instant) {
        let pause = PAUSE_PER_ENTRY * u32::try_from(entries).unwrap_or(u32::MAX);
        *self = Self { until: Some(now + pause), is_behind: false };
    }

    /// Returns when what waits is to be written.
    pub fn poll_timeout(&self) -> Option<std::time::Instant> {
        self.until.filter(|_| self.is_behind)
    }
}

/// A bell that any part of a daemon rings to have its reconciler make a pass. Clones ring the same bell.
#[derive(Clone, Debug, Default)]
pub struct Wake {
    bell: Arc<Notify>,
}

impl Wake {
    /// Asks for a pass. Any number of calls before the pass lead to one.
    pub fn wake(&self) {
        self.bell.notify_one();
    }

    /// Resolves [`SETTLE`] after the first [`Self::wake`] since the last call, though not before `soonest`, or at `latest`.
    /// Cancel-safe.
    ///
    /// The time to settle is fixed: a source of changes that never rests does not put a pass off.
    pub async fn settled(&self, soonest: Instant, latest: Instant) {
        self.rung(|rung| soonest.max(rung + SETTLE), latest).await;
    }

    /// Resolves at `begin` of when it was first rung, or at `latest`.
    async fn rung(&self, begin: impl FnOnce(Instant) -> Instant, latest: Instant) {
        if tokio::time::timeout_at(latest, self.bell.notified()).await.is_err() {
            return;
        }
        let unfinished = RingAgain(&self.bell);
        let now = Instant::now();
        let begin = begin(now);
        // The timer has ticks of a millisecond.
        if begin > now {
            tokio::time::sleep_until(begin).await;
        }
        std::mem::forget(unfinished);
        // What came meanwhile is seen by the pass that follows.
        tokio::select! {
            biased;
            () = self.bell.notified() => {}
            () = std::future::ready(()) => {}
        }
    }
}

/// Gives a change back whose settling was cancelled.
struct RingAgain<'a>(&'a Notify);

impl Drop for RingAgain<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// How long to wait after failures in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// Takes a failure and returns how long to wait: 250 ms at first, then twice the last time, 30 s at most.
    pub fn failed(&mut self) -> Duration {
        let delay = self.last.map_or(FIRST_BACKOFF, |last| (last * 2).min(LAST_BACKOFF));
        self.last = Some(delay);
        delay
    }

    /// Takes a success: the next failure is a first one.
    pub fn succeeded(&mut self) {
        self.last = None;
    }
}

/// How a pass went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Nothing is left to do until something changes.
    Done,
    /// Something failed, which the pass has logged: try again after a while.
    Failed,
}

/// Runs `pass` now, and then as this module's rules say, until `shutdown` is requested between two passes.
pub async fn run(wake: &Wake, shutdown: &Shutdown, pass: impl AsyncFnMut() -> Pass) {
    run_with(shutdown, async |_, soonest, latest| wake.settled(soonest, latest).await, pass).await;
}

/// As [`run`], but for a change that comes [`SETTLE`] or more after the last pass, which leads to the next one at once.
///
/// A burst costs two passes then, of which the first knows its beginning only.
pub async fn run_promptly(wake: &Wake, shutdown: &Shutdown, pass: impl AsyncFnMut() -> Pass) {
    let next = async |ended: Instant, soonest: Instant, latest| {
        let soonest = soonest.max(ended + SETTLE);
        wake.rung(|rung| rung.max(soonest), latest).await;
    };
    run_with(shutdown, next, pass).await;
}

/// Runs passes; `next` waits for the next one, given when the last one ended and between when it is to begin.
async fn run_with(
    shutdown: &Shutdown,
    next: impl AsyncFn(Instant, Instant, Instant),
    mut pass: impl AsyncFnMut() -> Pass,
) {
    let mut backoff = Backoff::default();
    while !shutdown.is_requested() {
        let began = Instant::now();
        let (rest, delay) = match pass().await {
            Pass::Done => {
                backoff.succeeded();
                (rest_after(began.elapsed()), INTERVAL)
            }
            Pass::Failed => (FIRST_BACKOFF, backoff.failed()),
        };
        let ended = Instant::now();
        tokio::select! {
            () = next(ended, ended + rest, ended + delay) => {}
            () = shutdown.requested() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs passes with the given outcomes, rings the bell before each if `ring`, and returns when each began.
    async fn passes(outcomes: &[Pass], ring: bool) -> Vec<Duration> {
        let start = Instant::now();
        let (trigger, shutdown) = Shutdown::by_hand();
        let wake = Wake::default();
        let mut began = Vec::new();
        run(&wake, &shutdown, async || {
            began.push(start.elapsed());
            if ring {
                wake.wake();
            }
            if began.len() == outcomes.len() {
                trigger.request();
            }
            outcomes[began.len() - 1]
        })
        .await;
        began
    }

    fn millis(values: &[u64]) -> Vec<Duration> {
        values.iter().copied().map(Duration::from_millis).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn without_changes_a_pass_comes_every_thirty_seconds() {
        let began = passes(&[Pass::Done; 3], false).await;
        assert_eq!(began, millis(&[0, 30_000, 60_000]));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_again_at_doubling_distance() {
        let began =
            passes(&[Pass::Failed, Pass::Failed, Pass::Failed, Pass::Done, Pass::Failed, Pass::Done], false).await;
        assert_eq!(began, millis(&[0, 250, 750, 1_750, 31_750, 32_000]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_cuts_the_wait_short() {
        assert_eq!(passes(&[Pass::Done; 3], true).await, millis(&[0, 10, 20]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_pass_that_rings_its_own_bell_does_not_spin() {
        let began = passes(&[Pass::Failed; 4], true).await;
        assert!(began.windows(2).all(|pair| pair[1] - pair[0] >= FIRST_BACKOFF), "{began:?}");
    }

    #[test]
    fn long_passes_rest_but_not_for_ever() {
        for (pass, rest) in [(0, 0), (50, 0), (60, 30), (100, 150), (60_000, 250)] {
            assert_eq!(rest_after(Duration::from_millis(pass)), Duration::from_millis(rest), "{pass} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_waits_for_the_end_of_a_rest_and_after_a_quiet_while_for_none() {
        let start = Instant::now();
        let (soonest, latest) = (start + LONGEST_REST, start + INTERVAL);
        let wake = Wake::default();
        wake.wake();
        wake.settled(soonest, latest).await;
        assert_eq!(start.elapsed(), LONGEST_REST);
        wake.wake();
        wake.settled(soonest, latest).await;
        assert_eq!(start.elapsed(), LONGEST_REST + SETTLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_prompt_pass_follows_a_lone_change_at_once_and_a_burst_after_it_has_settled() {
        let start = Instant::now();
        let (trigger, shutdown) = Shutdown::by_hand();
        let wake = Wake::default();
        let mut began = Vec::new();
        let pass = async || {
            began.push(start.elapsed());
            if began.len() == 4 {
                trigger.request();
            }
            Pass::Done
        };
        let ring = async {
            // The two in the middle are one change.
            for after in [100, 1, 1, 100] {
                tokio::time::sleep(Duration::from_millis(after)).await;
                wake.wake();
            }
        };
        tokio::join!(run_promptly(&wake, &shutdown, pass), ring);
        assert_eq!(began, millis(&[0, 100, 110, 202]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_prompt_pass_that_rings_its_own_bell_does_not_spin() {
        let (trigger, shutdown) = Shutdown::by_hand();
        let wake = Wake::default();
        let mut began = Vec::new();
        let start = Instant::now();
        let pass = async || {
            began.push(start.elapsed());
            wake.wake();
            if began.len() == 5 {
                trigger.request();
            }
            if began.len() < 3 { Pass::Done } else { Pass::Failed }
        };
        run_promptly(&wake, &shutdown, pass).await;
        assert_eq!(began, millis(&[0, 10, 20, 270, 520]));
    }

    #[test]
    fn a_small_status_follows_at_once_and_a_large_one_within_seconds() {
        let now = std::time::Instant::now();
        for (entries, milliseconds) in [(0, 0), (2, 10), (1000, 5000)] {
            let mut restraint = Restraint::default();
            assert!(!restraint.holds_back(true, now), "nothing was written yet");
            restraint.handle_written(entries, now);
            let over = now + Duration::from_millis(milliseconds);
            assert_eq!(restraint.holds_back(true, now), entries > 0);
            assert_eq!(restraint.poll_timeout(), (entries > 0).then_some(over));
            assert!(!restraint.holds_back(true, over));
            assert_eq!(restraint.poll_timeout(), None);
        }
    }

    #[test]
    fn a_backoff_ends_at_thirty_seconds() {
        let mut backoff = Backoff::default();
        let longest = (0..20).map(|_| backoff.failed()).max();
        assert_eq!(longest, Some(LAST_BACKOFF));
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_leads_to_one_pass() {
        let wake = Wake::default();
        let later = Instant::now() + INTERVAL;
        wake.wake();
        let ringer = wake.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SETTLE / 2).await;
            ringer.wake();
        });
        wake.settled(Instant::now(), later).await;
        let settled = Instant::now();
        wake.settled(settled, settled + INTERVAL).await;
        assert_eq!(settled.elapsed(), INTERVAL, "the second wake belonged to the first burst");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_wait_loses_no_change() {
        let wake = Wake::default();
        wake.wake();
        let start = Instant::now();
        let cancelled = tokio::time::timeout(SETTLE / 2, wake.settled(start, start + INTERVAL)).await;
        assert!(cancelled.is_err());
        wake.settled(start, start + INTERVAL).await;
        assert!(start.elapsed() < INTERVAL);
    }
}
