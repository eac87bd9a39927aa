//! Runs the broker sync while this gateway is the active one.
//!
//! A task of its own: a broker that is slow or away delays nothing else.

use std::time::{Duration, Instant};

use culvert_api::{Cluster, Endpoint, Record, Resource};
use culvert_broker::{SyncError, Syncer};
use culvert_model::{ClusterId, ForeignSubnets};
use culvert_runtime::Records;
use culvert_runtime::reconcile::{Backoff, INTERVAL, Wake, settle_after};
use culvert_runtime::task::{Ended, Task};
use jiff::Timestamp;
use tokio::sync::watch;

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
    task: Task,
}

impl Exchange {
    /// Starts paused; `wake` rings when what is to be said changes.
    pub(crate) fn start(cluster: ClusterId, local: Records, broker: Records, wake: Wake) -> Self {
        let (foreign, wanted) = watch::channel(None);
        let (sender, outcome) = watch::channel(Outcome::default());
        let task = Task::spawn("the broker sync", wake.clone(), run(cluster, local, broker, wanted, sender, wake));
        Self { foreign, outcome, task }
    }

    /// Lets the sync run with what no other cluster may claim here, or pauses it.
    pub(crate) fn set(&self, foreign: Option<ForeignSubnets>) {
        self.foreign.send_if_modified(|current| {
            let differs = *current != foreign;
            *current = foreign;
            differs
        });
    }

    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome.borrow().clone()
    }

    /// Makes sure that it still runs.
    pub(crate) fn check(&self) -> Result<(), Ended> {
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
    let mut backoff = Backoff::default();
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
                if unfinished && !failed {
                    continue;
                }
                if failed {
                    backoff.failed()
                } else {
                    backoff.succeeded();
                    INTERVAL
                }
            }
        };
        let settle = settle_after(began.elapsed());
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = local_changes.changed() => tokio::time::sleep(settle).await,
            () = broker_changes.changed() => tokio::time::sleep(settle).await,
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

/// What came of a pass.
struct Passed {
    /// What is wrong.
    complaints: Vec<String>,
    /// It is to be tried again soon.
    failed: bool,
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
            Passed { complaints, failed: !report.failed.is_empty(), unfinished: report.unfinished }
        }
        // The data plane needs no broker; that it is away is said, not treated as a failure of this gateway.
        Err(error @ (SyncError::Local(_) | SyncError::Broker(_) | SyncError::Left(_))) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            Passed { complaints: vec![format!("{error}{cause}")], failed: true, unfinished: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn complaints(exchange: &mut Exchange, are_there: bool) -> bool {
        let told = exchange.outcome.wait_for(|outcome| outcome.complaints.is_empty() != are_there);
        tokio::time::timeout(Duration::from_secs(5), told).await.is_ok()
    }

    #[tokio::test]
    async fn a_gateway_that_is_no_longer_active_has_nothing_to_say_of_the_broker() {
        let root = tempfile::tempdir().unwrap();
        let broker = Records::open(root.path().join("away"));
        let cluster = "east".parse().unwrap();
        let mut exchange = Exchange::start(cluster, Records::open(root.path()), broker, Wake::default());

        exchange.set(Some(ForeignSubnets::default()));
        assert!(complaints(&mut exchange, true).await, "the broker is away");

        exchange.set(None);
        assert!(complaints(&mut exchange, false).await, "it is another's to say");
    }
}
