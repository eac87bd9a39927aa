//! Sends echo requests through the cables and keeps the health of each: the sockets of `gateway/core`'s [`Health`].
//!
//! A task of its own, since a pass may take longer than an answer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use culvert_gateway_core::cables::{Choices, ChosenCable};
use culvert_gateway_core::health::{Health, HealthState, HealthTiming, RoundTrips};
use culvert_model::{Addresses, CableName, IpFamily};
use culvert_runtime::echo::EchoSockets;
use culvert_runtime::reconcile::Wake;
use culvert_runtime::task::{Ended, Task};
use tokio::sync::watch;

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
    /// carry, since the answer would tell nothing of it.
    pub(crate) fn through(choices: &Choices, sources: Addresses) -> Self {
        let targets = choices.0.iter().filter_map(|(name, choice)| {
            let has_source = |address: &IpAddr| sources.of(IpFamily::of(*address)).is_some();
            let target = choice.endpoint.health_check.iter().find(has_source)?;
            let carried = match &choice.cable {
                ChosenCable::WireGuard(cable) => &cable.subnets,
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
    loop {
        for probe in probes.values_mut() {
            probe.handle_timeout(Instant::now());
            while let Some(echo) = probe.poll_transmit(Instant::now()) {
                sockets.send(probe.address(), echo.sequence).await;
            }
        }
        publish(&probes, &healths, &wake);
        let due = probes.values().filter_map(Health::poll_timeout).min();
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = wanted.borrow_and_update();
                sockets.bind(wanted.sources);
                probes.retain(|name, probe| wanted.targets.get(name) == Some(&probe.address()));
                for (name, &address) in &wanted.targets {
                    probes.entry(name.clone()).or_insert_with(|| Health::new(address, timing, Instant::now()));
                }
            }
            () = wait_until(due) => {}
            (from, sequence) = sockets.receive() => {
                let now = Instant::now();
                for probe in probes.values_mut().filter(|probe| probe.address() == from) {
                    probe.handle_reply(sequence, now);
                }
            }
        }
    }
}

fn publish(probes: &BTreeMap<CableName, Health>, healths: &watch::Sender<Healths>, wake: &Wake) {
    let new: Healths = probes
        .iter()
        .map(|(name, probe)| (name.clone(), (probe.state().clone(), probe.round_trips().clone())))
        .collect();
    let states = |healths: &Healths| healths.iter().map(|(name, (state, _))| (name.clone(), state.clone())).collect();
    let before: Vec<(CableName, HealthState)> = states(&healths.borrow());
    let after: Vec<(CableName, HealthState)> = states(&new);
    healths.send_replace(new);
    if before != after {
        wake.wake();
    }
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
