//! Sends and receives the echo messages that the core's probes ask for, from the node's CNI address.
//!
//! A task of its own, since a pass may take longer than an answer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use culvert_model::Addresses;
use culvert_route_agent_core::{Pace, Probes};
use culvert_runtime::echo::EchoSockets;
use culvert_runtime::reconcile::Wake;
use culvert_runtime::task::Task;
use tokio::sync::watch;

use crate::status::ProbeStates;

/// Between two looks at round-trip times: nobody waits for them, and there may be a thousand probes.
const REFRESH: Duration = Duration::from_secs(1);

/// What is to be probed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where echoes come from, by family.
    pub(crate) sources: Addresses,
    /// Addresses by cable name.
    pub(crate) targets: BTreeMap<String, IpAddr>,
}

/// The running probes; they end with it.
pub(crate) struct Pinger {
    wanted: watch::Sender<Wanted>,
    states: watch::Receiver<ProbeStates>,
    _task: Task,
}

impl Pinger {
    /// Starts with nothing to probe; `wake` rings whenever a probe's state changes.
    pub(crate) fn start(pace: Pace, wake: Wake) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::default());
        let (sender, states) = watch::channel(ProbeStates::new());
        let task = Task::spawn("the probing of gateways", wake.clone(), run(Probes::new(pace), receiver, sender, wake));
        Self { wanted, states, _task: task }
    }

    /// Changes what is probed.
    pub(crate) fn want(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|current| {
            let differs = *current != wanted;
            *current = wanted;
            differs
        });
    }

    /// Returns the states of the probes.
    pub(crate) fn states(&self) -> ProbeStates {
        self.states.borrow().clone()
    }

    /// Resolves if the probes end by themselves, which only a panic makes them do.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let wanted = self.wanted.clone();
        async move { wanted.closed().await }
    }
}

async fn run(mut probes: Probes, mut wanted: watch::Receiver<Wanted>, states: watch::Sender<ProbeStates>, wake: Wake) {
    let mut sockets = EchoSockets::default();
    let mut published = Instant::now();
    loop {
        while let Some(echo) = probes.poll_transmit(Instant::now()) {
            sockets.send(echo.destination, echo.sequence).await;
        }
        let changed = probes.take_changed();
        if changed || published.elapsed() >= REFRESH {
            states.send_replace(probes.states());
            published = Instant::now();
        }
        if changed {
            wake.wake();
        }
        let due = probes.poll_timeout();
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = wanted.borrow_and_update();
                sockets.bind(wanted.sources);
                probes.handle_targets(&wanted.targets, Instant::now());
            }
            () = wait_until(due) => {}
            (from, sequence) = sockets.receive() => probes.handle_reply(from, sequence, Instant::now()),
        }
    }
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
