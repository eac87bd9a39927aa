//! What both demos show of pods that talk: round trips, a capture, throughput, and what an event costs.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use culvert_netns_tests::{Capture, Namespace, Pinger, Pings, Watchlist, ping, throughput, transfer, wait_for};
use ipnet::Ipv4Net;

use crate::report::Facts;

/// Between two probes.
const PROBE: Duration = Duration::from_millis(10);
/// How long probes go on around an event, so that a loss just before or after is seen.
const MARGIN: Duration = Duration::from_millis(500);
/// How long pods may take to reach each other again.
const REACHABLE: Duration = Duration::from_secs(60);
/// TCP port of a pod that nobody else uses.
pub(crate) const PORT: u16 = 7000;
/// What must not be readable between the clusters.
pub(crate) const MARKER: &[u8] = b"This text must not be readable on the Internet. ";

/// A pod that talks.
#[derive(Clone)]
pub(crate) struct Pod {
    /// The name of its node.
    pub(crate) name: String,
    pub(crate) namespace: Namespace,
    pub(crate) address: Ipv4Addr,
}

/// Returns all ordered pairs of pods of different clusters.
pub(crate) fn pairs<T>([east, west]: [&[T]; 2]) -> impl Iterator<Item = [&T; 2]> {
    let both = [(east, west), (west, east)];
    both.into_iter().flat_map(|(here, there)| here.iter().flat_map(move |from| there.iter().map(move |to| [from, to])))
}

/// Probes all pairs.
pub(crate) fn ping_pairs<'a>(pairs: impl Iterator<Item = [&'a Pod; 2]>, facts: &mut Facts) -> Result<()> {
    for [from, to] in pairs {
        let pings = ping(&from.namespace, to.address, 20, PROBE)?;
        let round_trip = pings.round_trip.map_or("none".to_owned(), |time| format!("{:.2} ms", milliseconds(time)));
        facts.say(format!("{:<12} -> {:<12} {}/{} lost, {round_trip}", from.name, to.name, pings.lost, pings.sent));
        facts.value(format!("{} {}", from.name, to.name), pings.round_trip.map(milliseconds));
        facts.expect(pings.lost == 0, || format!("{} of {} probes lost", pings.lost, pings.sent));
    }
    Ok(())
}

/// Sends a text from pod to pod, and looks for it on the link `core` of an Internet router.
pub(crate) fn capture(
    [from, to]: [&Pod; 2],
    internet: &Namespace,
    subnets: Vec<Ipv4Net>,
    facts: &mut Facts,
) -> Result<()> {
    let watchlist = Watchlist { markers: vec![MARKER.to_vec()], subnets };
    let inside = Capture::start(&from.namespace, "eth0", watchlist.clone())?;
    let outside = Capture::start(internet, "core", watchlist)?;
    let address = SocketAddrV4::new(to.address, PORT);
    transfer(&from.namespace, &to.namespace, address, &MARKER.repeat(1000))?;
    let (inside, outside) = (inside.finish()?, outside.finish()?);
    facts.say(format!("at the pod:      {} packets, {} with the text", inside.packets, inside.with_marker));
    facts.say(format!("on the Internet: {} packets, {} with the text", outside.packets, outside.with_marker));
    facts.value("packets", outside.packets);
    facts.value("readable", outside.with_marker);
    facts.expect(inside.with_marker > 0, || "the capture does not see the text where it must".to_owned());
    facts.expect(outside.packets > 0, || "the transfer did not cross the Internet".to_owned());
    facts.expect(outside.with_marker == 0, || "the text is readable on the Internet".to_owned());
    facts.expect(outside.addresses.is_empty(), || format!("pod addresses on the Internet: {:?}", outside.addresses));
    Ok(())
}

/// Measures one TCP flow each way.
pub(crate) fn speed([east, west]: [&Pod; 2], facts: &mut Facts) -> Result<()> {
    for (from, to) in [(east, west), (west, east)] {
        let bits = throughput(&from.namespace, &to.namespace, to.address, 3)?;
        facts.say(format!("{} -> {}: {:.2} Gbit/s", from.name, to.name, bits / 1e9));
        facts.value(format!("{} {}", from.name, to.name), bits);
    }
    Ok(())
}

/// Probes from pod to pod while something happens, and until it is answered again; tells the loss.
pub(crate) fn probe(
    [from, to]: [&Pod; 2],
    facts: &mut Facts,
    event: impl FnOnce(&mut Facts) -> Result<()>,
) -> Result<Pings> {
    let pinger = Pinger::start(&from.namespace, to.address, PROBE)?;
    thread::sleep(MARGIN);
    event(facts)?;
    wait_for(&format!("an answer from {} to {}", to.name, from.name), REACHABLE, || {
        Ok((ping(&from.namespace, to.address, 1, PROBE)?.lost == 0).then_some(()))
    })?;
    thread::sleep(MARGIN);
    let pings = pinger.finish()?;
    let outage = milliseconds(pings.longest_outage);
    facts.say(format!("{} of {} probes lost, longest outage {outage:.0} ms", pings.lost, pings.sent));
    facts.value("lost", pings.lost);
    facts.value("sent", pings.sent);
    facts.value("outage_ms", outage);
    Ok(pings)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
