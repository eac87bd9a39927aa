//! Sends echo requests through the cables and keeps the health of each: the sockets of `gateway/core`'s [`Health`].
//!
//! A task of its own, since a pass may take longer than an answer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use culvert_gateway_core::cables::{Choices, ChosenCable};
use culvert_gateway_core::health::{Health, HealthState, HealthTiming, RoundTrips};
use culvert_model::{Addresses, CableName, CableReport, IpFamily};
use culvert_runtime::echo::EchoSockets;
use culvert_runtime::reconcile::Wake;
use culvert_runtime::task::{Ended, Task};
use tokio::sync::watch;

/// Between two looks at round-trip times: nobody waits for them, and there may be a thousand cables.
const REFRESH: Duration = Duration::from_secs(1);

/// Health by cable name.
pub(crate) type Healths = BTreeMap<CableName, (HealthState, RoundTrips)>;

/// What is to be probed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where echoes come from, by family.
    pub(crate) sources: Addresses,
    /// One address that answers through each cable.
    pub(crate) targets: BTreeMap<CableName, IpAddr>,
}

impl Wanted {
    /// Returns one address behind each cable, of a family of which there is a source; none that the cable does not
    /// carry, since the answer would tell nothing of it, and none behind a cable without a session: echoes would only
    /// wait for one.
    pub(crate) fn through(choices: &Choices, reports: &BTreeMap<CableName, CableReport>, sources: Addresses) -> Self {
        let targets = choices.0.iter().filter_map(|(name, choice)| {
            let has_session = || reports.get(name).is_some_and(|report| report.last_handshake.is_some());
            let has_source = |address: &IpAddr| sources.of(IpFamily::of(*address)).is_some();
            let target = choice.endpoint.health_check.iter().find(has_source)?;
            let carried = match &choice.cable {
                ChosenCable::WireGuard(cable) if has_session() => &cable.subnets,
                ChosenCable::WireGuard(_) => return None,
                ChosenCable::Vxlan(cable) => &cable.subnets,
                ChosenCable::Refused(_) => return None,
            };
            carried.iter().any(|subnet| subnet.contains(&target)).then(|| (name.clone(), target))
        });
        Self { sources, targets: targets.collect() }
    }
}

/// The running probes; they end with it.
pub(crate) struct Prober {
    wanted: watch::Sender<Wanted>,
    healths: watch::Receiver<Healths>,
    task: Task,
}

impl Prober {
    /// Starts with nothing to probe; `wake` rings whenever a cable comes up or goes down.
    pub(crate) fn start(timing: HealthTiming, wake: Wake) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::default());
        let (sender, healths) = watch::channel(Healths::new());
        let task = Task::spawn("the health check", wake.clone(), run(timing, receiver, sender, wake));
        Self { wanted, healths, task }
    }

    /// Changes what is probed.
    pub(crate) fn want(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|current| {
            let differs = *current != wanted;
            *current = wanted;
            differs
        });
    }

    pub(crate) fn healths(&self) -> Healths {
        self.healths.borrow().clone()
    }

    /// Makes sure that it still runs.
    pub(crate) fn check(&self) -> Result<(), Ended> {
        self.task.check()
    }
}

async fn run(timing: HealthTiming, mut wanted: watch::Receiver<Wanted>, healths: watch::Sender<Healths>, wake: Wake) {
    let mut sockets = EchoSockets::default();
    let mut probes: BTreeMap<CableName, Health> = BTreeMap::new();
    let mut published = Instant::now();
    // What the probes say differs from what was published in more than round-trip times.
    let mut changed = false;
    loop {
        for probe in probes.values_mut() {
            let mut echo = None;
            let now = Instant::now();
            changed |= changes_state(probe, |probe| {
                probe.handle_timeout(now);
                echo = probe.poll_transmit(now);
            });
            if let Some(echo) = echo {
                sockets.send(probe.address(), echo.sequence).await;
            }
        }
        if changed || published.elapsed() >= REFRESH {
            let health = |probe: &Health| (probe.state().clone(), probe.round_trips().clone());
            healths.send_replace(probes.iter().map(|(name, probe)| (name.clone(), health(probe))).collect());
            published = Instant::now();
            if std::mem::take(&mut changed) {
                wake.wake();
            }
        }
        let due = probes.values().filter_map(Health::poll_timeout).min();
        tokio::select! {
            news = wanted.changed() => {
                if news.is_err() {
                    return;
                }
                let wanted = wanted.borrow_and_update();
                sockets.bind(wanted.sources);
                probes.retain(|name, probe| wanted.targets.get(name) == Some(&probe.address()));
                for (name, &address) in &wanted.targets {
                    probes.entry(name.clone()).or_insert_with(|| Health::new(address, timing, Instant::now()));
                }
                changed = true;
            }
            () = wait_until(due) => {}
            (from, sequence) = sockets.receive() => {
                let now = Instant::now();
                for probe in probes.values_mut().filter(|probe| probe.address() == from) {
                    changed |= changes_state(probe, |probe| probe.handle_reply(sequence, now));
                }
            }
        }
    }
}

/// Does something with a probe and tells whether it is in another state then; how it got there is said once.
fn changes_state(probe: &mut Health, what: impl FnOnce(&mut Health)) -> bool {
    let before = std::mem::discriminant(probe.state());
    what(probe);
    before != std::mem::discriminant(probe.state())
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
