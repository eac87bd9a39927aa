//! Says on standard error how far things are, while others are waited for: standard output is for what scripts read.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use culvert_setup::Server;
use tokio::time::{Instant, sleep, timeout};

/// Between two looks at what is waited for.
pub(crate) const POLL: Duration = Duration::from_millis(500);
/// How long pods may take: images may have to be pulled.
const PODS: Duration = Duration::from_secs(300);
/// How long it may take to find out what is there, before anything is changed.
const LOOK: Duration = Duration::from_secs(120);
/// How long pods that are ready may take to count as available: three times what `deploy/kubernetes` asks of gateways.
const SETTLED: Duration = Duration::from_secs(30);

/// Says what comes next.
pub(crate) fn tell(step: &str) {
    eprintln!("{step} ...");
}

/// Looks at a server, for so long and no longer: each of a hundred answers may be slow.
///
/// # Errors
///
/// As those of the looking, or that it takes too long.
pub(crate) async fn look<T>(server: &Server, looking: impl Future<Output = Result<T>>) -> Result<T> {
    match timeout(LOOK, looking).await {
        Ok(found) => found,
        Err(_) => bail!(
            "API server {} answers too slowly to be looked at within {} s: nothing was changed; find out what it is busy \
             with, or try again from a place that is nearer to it",
            server.url(),
            LOOK.as_secs()
        ),
    }
}

/// Says what has changed since it last said something.
#[derive(Debug, Default)]
pub(crate) struct Told(String);

impl Told {
    pub(crate) fn tell(&mut self, step: &str) {
        if self.0 != step {
            tell(step);
            step.clone_into(&mut self.0);
        }
    }
}

/// Waits until all pods of these DaemonSets are of the present form and ready.
///
/// # Errors
///
/// They are not in time: the error has what each pod waits for.
pub(crate) async fn wait_for_pods(server: &Server, daemon_sets: &[&str]) -> Result<()> {
    let deadline = Instant::now() + PODS;
    let (mut told, mut warned) = (Told::default(), BTreeSet::new());
    loop {
        let (mut parts, mut obstacles, mut complete) = (Vec::new(), Vec::new(), true);
        for name in daemon_sets {
            let Some(rollout) = server.rollout(name).await? else {
                bail!("DaemonSet {name} is gone: somebody else has deleted it; try again")
            };
            complete &= rollout.is_complete();
            parts.push(format!("{name} {}/{}", rollout.ready, rollout.wanted));
            obstacles.extend(rollout.obstacles);
        }
        if complete {
            return Ok(());
        }
        obstacles.sort();
        let state = parts.join(", ");
        if Instant::now() >= deadline {
            let reasons = if obstacles.is_empty() { "no pod says why".to_owned() } else { obstacles.join("; ") };
            bail!("not all pods are ready ({state}): {reasons}; run the same command again once the cause is gone");
        }
        told.tell(&format!("Waiting for pods: {state}"));
        for obstacle in &obstacles {
            // Once for each pod: the words change as it is tried again.
            let pod = obstacle.split_once(": ").map_or(obstacle.as_str(), |(pod, _)| pod);
            if warned.insert(pod.to_owned()) {
                eprintln!("warning: {obstacle}");
            }
        }
        sleep(POLL).await;
    }
}

/// Waits until a change replaces the pods of a DaemonSet one after the other, or for as long as that may take.
pub(crate) async fn wait_settled(server: &Server, daemon_set: &str) -> Result<()> {
    let deadline = Instant::now() + SETTLED;
    let mut told = Told::default();
    while server.rollout(daemon_set).await?.is_some_and(|rollout| rollout.is_settling()) && Instant::now() < deadline {
        told.tell(&format!("Waiting until pods of {daemon_set} have been ready for a while"));
        sleep(POLL).await;
    }
    Ok(())
}
