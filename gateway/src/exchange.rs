//! Runs the broker sync while this gateway is the active one, and the renewal of the token by which the broker is asked.
//!
//! Tasks of their own: a broker that is slow or away delays nothing else. What fails newly is tried again at once, however
//! long something else has been failing: an Endpoint may be refused for the moment that the broker's API server takes to
//! know its Cluster.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use culvert_api::{Cluster, Endpoint, Record, Resource};
use culvert_broker::{Failure, SyncError, Syncer};
use culvert_model::{ClusterId, ForeignSubnets};
use culvert_runtime::Records;
use culvert_runtime::reconcile::{Backoff, INTERVAL, SETTLE, Wake, rest_after};
use culvert_runtime::task::{Ended, Task};
use jiff::Timestamp;
use tokio::sync::watch;

use crate::config::Config;
use crate::node;
use crate::renewal::Renewal;

/// What goes through the broker.
const KINDS: &[Resource] = &[Cluster::RESOURCE, Endpoint::RESOURCE];

/// What the last pass says, in words for a status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) complaints: Vec<String>,
    /// How many passes there have been.
    pub(crate) passes: u64,
}

/// The running sync; it ends with it.
pub(crate) struct Exchange {
    /// `None` while this gateway is not the active one.
    foreign: watch::Sender<Option<ForeignSubnets>>,
    outcome: watch::Receiver<Outcome>,
    broker: Records,
    /// `None`: the broker takes no token.
    renewal: Option<Renewal>,
    task: Task,
}

impl Exchange {
    /// Starts paused; `wake` rings when what is to be said changes.
    pub(crate) fn start(config: &Config, local: Records, broker: Records, wake: Wake) -> Self {
        let (foreign, wanted) = watch::channel(None);
        let (sender, outcome) = watch::channel(Outcome::default());
        let renewal = config
            .broker_token
            .clone()
            .map(|token| Renewal::start(token, local.clone(), node::random_number(), wake.clone()));
        let work = run(config.cluster.clone(), local, broker.clone(), wanted, sender, wake.clone());
        Self { foreign, outcome, broker, renewal, task: Task::spawn("the broker sync", wake, work) }
    }

    /// Lets the sync run with what no other cluster may claim here, or pauses it.
    pub(crate) fn set(&self, foreign: Option<ForeignSubnets>) {
        if let Some(renewal) = &self.renewal {
            renewal.set_active(foreign.is_some());
        }
        self.foreign.send_if_modified(|current| {
            let differs = *current != foreign;
            *current = foreign;
            differs
        });
    }

    pub(crate) fn outcome(&self) -> Outcome {
        let mut outcome = self.outcome.borrow().clone();
        outcome.complaints.extend(self.renewal.as_ref().and_then(Renewal::complaint));
        outcome
    }

    /// Tells whether the broker's API server cannot be followed.
    pub(crate) fn is_away(&self) -> bool {
        self.broker.outage().is_some()
    }

    /// Makes sure that all of it still runs.
    pub(crate) fn check(&self) -> Result<(), Ended> {
        self.renewal.as_ref().map_or(Ok(()), Renewal::check)?;
        self.task.check()
    }
}

async fn run(
    cluster: ClusterId,
    local: Records,
    broker: Records,
    mut wanted: watch::Receiver<Option<ForeignSubnets>>,
    outcome: watch::Sender<Outcome>,
    wake: Wake,
) {
    let mut local_changes = local.watch(KINDS);
    let mut broker_changes = broker.watch(KINDS);
    let mut syncer = Syncer::new(cluster, local, broker.clone());
    let mut retry = Retry::default();
    loop {
        let foreign = wanted.borrow_and_update().clone();
        let began = Instant::now();
        let pause = match foreign {
            None => {
                // What was wrong is the active gateway's to say now.
                tell(&outcome, Vec::new(), 0, &wake);
                INTERVAL
            }
            Some(foreign) => {
                let Passed { mut complaints, failed, unfinished } = pass(&mut syncer, &foreign).await;
                complaints.extend(broker.outage().map(|outage| format!("broker: {outage}")));
                tell(&outcome, complaints, 1, &wake);
                if unfinished && failed.is_empty() {
                    continue;
                }
                retry.after(failed)
            }
        };
        let rested = tokio::time::Instant::now() + rest_after(began.elapsed());
        let settled = async || tokio::time::sleep_until(rested.max(tokio::time::Instant::now() + SETTLE)).await;
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = local_changes.changed() => settled().await,
            () = broker_changes.changed() => settled().await,
            () = tokio::time::sleep(pause.min(HEALING)) => {}
        }
    }
}

fn tell(outcome: &watch::Sender<Outcome>, complaints: Vec<String>, passes: u64, wake: &Wake) {
    outcome.send_modify(|outcome| {
        outcome.passes += passes;
        if outcome.complaints != complaints {
            outcome.complaints = complaints;
            wake.wake();
        }
    });
}

/// A pass at least this often: absences at a broker that lost its records are judged by time.
const HEALING: Duration = Duration::from_secs(10);

/// After a failure: other clusters may be waiting for what could not be written.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// When the next pass comes after one in which something failed.
#[derive(Debug, Default)]
struct Retry {
    backoff: Backoff,
    failing: BTreeSet<String>,
}

impl Retry {
    /// Takes what failed in a pass and returns the time to the next: 250 ms if any of it did not fail in the pass before,
    /// otherwise twice as long as the last time, 5 s at most; 30 s if nothing failed.
    fn after(&mut self, failed: BTreeSet<String>) -> Duration {
        if !failed.is_subset(&self.failing) {
            self.backoff.succeeded();
        }
        self.failing = failed;
        if self.failing.is_empty() {
            self.backoff.succeeded();
            return INTERVAL;
        }
        self.backoff.failed().min(LONGEST_RETRY)
    }
}

/// What came of a pass.
struct Passed {
    /// What is wrong.
    complaints: Vec<String>,
    /// What is to be tried again soon, each by a name that lasts as long as it fails.
    failed: BTreeSet<String>,
    /// There is more to write.
    unfinished: bool,
}

/// Makes one pass.
async fn pass(syncer: &mut Syncer, foreign: &ForeignSubnets) -> Passed {
    match syncer.pass(foreign, Timestamp::now(), Instant::now()).await {
        Ok(report) => {
            let refused = report.refused.iter().map(|refusal| format!("not synced: {refusal}"));
            let broken = report.problems.iter().map(|problem| format!("not readable: {problem}"));
            let failed = report.failed.iter().map(|failure| format!("not written: {failure}"));
            let complaints = refused.chain(broken).chain(failed).collect();
            let failed = report.failed.into_iter().map(|Failure { record, .. }| record).collect();
            Passed { complaints, failed, unfinished: report.unfinished }
        }
        // The data plane needs no broker; that it is away is said, not treated as a failure of this gateway.
        Err(error @ (SyncError::Local(_) | SyncError::Broker(_) | SyncError::Left(_))) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            let failed = BTreeSet::from([error.to_string()]);
            Passed { complaints: vec![format!("{error}{cause}")], failed, unfinished: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        use clap::Parser as _;
        let flags = ["culvert-gateway", "--cluster-id=east", "--records=/r", "--cluster-cidr=10.1.0.0/16"];
        Config::try_from(crate::config::Args::parse_from(flags)).unwrap()
    }

    #[test]
    fn what_fails_newly_is_tried_again_at_once_whatever_else_fails_for_long() {
        let failed = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let mut retry = Retry::default();
        for (names, milliseconds) in [
            (&["Endpoint east-1 (broker)"][..], 250),
            (&["Endpoint east-1 (broker)"], 500),
            (&["Endpoint east-1 (broker)"], 1000),
            (&["Cluster west (local)", "Endpoint east-1 (broker)"], 250),
            (&["Endpoint east-1 (broker)"], 500),
            (&[], 30_000),
            (&["Endpoint east-1 (broker)"], 250),
        ] {
            assert_eq!(retry.after(failed(names)), Duration::from_millis(milliseconds), "{names:?}");
        }
        let lasting = (0..20).map(|_| retry.after(failed(&["Endpoint east-1 (broker)"]))).last();
        assert_eq!(lasting, Some(LONGEST_RETRY));
    }

    async fn complaints(exchange: &mut Exchange, are_there: bool) -> bool {
        let told = exchange.outcome.wait_for(|outcome| outcome.complaints.is_empty() != are_there);
        tokio::time::timeout(Duration::from_secs(5), told).await.is_ok()
    }

    #[tokio::test]
    async fn a_gateway_that_is_no_longer_active_has_nothing_to_say_of_the_broker() {
        let root = tempfile::tempdir().unwrap();
        let broker = Records::open(root.path().join("away"));
        let mut exchange = Exchange::start(&config(), Records::open(root.path()), broker, Wake::default());

        exchange.set(Some(ForeignSubnets::default()));
        assert!(complaints(&mut exchange, true).await, "the broker is away");

        exchange.set(None);
        assert!(complaints(&mut exchange, false).await, "it is another's to say");
    }
}
