//! Decides which of two cables carries a cluster's traffic while one takes over from the other.
//!
//! When a cluster's gateway changes, its new Endpoint arrives before anybody has spoken to the new gateway. The old
//! cable goes on carrying traffic until the new one has its first handshake, and is listened to for a while after that,
//! so that neither what is under way nor what a late sender sends is lost. A planned change costs no packet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use culvert_model::{CableName, CableReport, CableSet, ClusterId, WireGuardCable};

use crate::cables::{Choices, ChosenCable};

/// How long the old cable carries traffic, at most, while the new one has no handshake.
pub const TAKE_OVER: Duration = Duration::from_secs(10);
/// How long the old cable is listened to once the new one carries the traffic.
pub const LISTEN: Duration = Duration::from_secs(5);

/// Remembers the cables of the recent past.
#[derive(Clone, Debug, Default)]
pub struct Succession {
    clusters: BTreeMap<ClusterId, Line>,
}

/// One cluster's cables: the one wanted, and those before it.
#[derive(Clone, Debug)]
struct Line {
    name: CableName,
    cable: WireGuardCable,
    since: Instant,
    /// Set when the cable has had a handshake, or was given up waiting for.
    carries_since: Option<Instant>,
    previous: Option<(CableName, WireGuardCable)>,
}

impl Succession {
    /// Returns what the data plane has to run for `choices`; to be called again by [`Self::poll_timeout`].
    pub fn cable_set(
        &mut self,
        choices: &Choices,
        reports: &BTreeMap<CableName, CableReport>,
        now: Instant,
    ) -> CableSet {
        let wanted: BTreeMap<&ClusterId, (&CableName, &WireGuardCable)> = choices
            .0
            .iter()
            .filter_map(|(name, choice)| match &choice.cable {
                ChosenCable::WireGuard(cable) => Some((&choice.endpoint.cluster, (name, cable))),
                ChosenCable::Vxlan(_) | ChosenCable::Refused(_) => None,
            })
            .collect();
        // A cluster that is gone or refused is cut off at once.
        self.clusters.retain(|cluster, _| wanted.contains_key(cluster));
        let mut set = CableSet::default();
        for (cluster, (name, cable)) in wanted {
            let line = self
                .clusters
                .entry(cluster.clone())
                .and_modify(|line| line.follow(name, cable, now))
                .or_insert_with(|| Line::new(name, cable, now));
            line.judge(reports, now);
            line.add_to(&mut set);
        }
        set
    }

    /// Returns when a line changes by itself.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let changes = self.clusters.values().filter(|line| line.previous.is_some());
        changes.map(|line| line.carries_since.map_or(line.since + TAKE_OVER, |since| since + LISTEN)).min()
    }
}

impl Line {
    /// The first cable of a cluster carries its traffic from the start: there is none better.
    fn new(name: &CableName, cable: &WireGuardCable, now: Instant) -> Self {
        Self { name: name.clone(), cable: cable.clone(), since: now, carries_since: Some(now), previous: None }
    }

    fn follow(&mut self, name: &CableName, cable: &WireGuardCable, now: Instant) {
        let is_same = *name == self.name && cable.public_key == self.cable.public_key;
        if is_same {
            self.cable = cable.clone();
            return;
        }
        let successor = Self::new(name, cable, now);
        let old = std::mem::replace(self, successor);
        let carrying = match (old.carries_since, old.previous) {
            (None, Some(previous)) => previous,
            (Some(_) | None, _) => (old.name, old.cable),
        };
        // One name cannot stand for two keys: a gateway that has lost its key is cut over at once. Nor do two cables
        // share a key: a gateway that has a new address is found by its candidates.
        if carrying.0 != self.name && carrying.1.public_key != self.cable.public_key {
            self.carries_since = None;
            self.previous = Some(carrying);
        }
    }

    fn judge(&mut self, reports: &BTreeMap<CableName, CableReport>, now: Instant) {
        let has_session = |name: &CableName| reports.get(name).is_some_and(|report| report.last_handshake.is_some());
        let Some((previous, _)) = &self.previous else { return };
        match self.carries_since {
            None => {
                let is_ready = has_session(&self.name);
                let in_vain = !has_session(previous) || now.duration_since(self.since) >= TAKE_OVER;
                if is_ready || in_vain {
                    self.carries_since = Some(now);
                }
            }
            Some(since) if now.duration_since(since) >= LISTEN => self.previous = None,
            Some(_) => {}
        }
    }

    fn add_to(&self, set: &mut CableSet) {
        set.cables.insert(self.name.clone(), self.cable.clone());
        if let Some((previous, cable)) = &self.previous {
            set.cables.insert(previous.clone(), cable.clone());
            let silent = if self.carries_since.is_some() { previous } else { &self.name };
            set.receive_only.insert(silent.clone());
            if silent == &self.name {
                // Answers to what comes by it shall go back by it, sooner than the next decision.
                set.successors.insert(silent.clone(), previous.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use culvert_model::PublicKey;

    use super::*;
    use crate::cables::Choice;
    use crate::testing::{endpoint, net};

    /// West's gateway `number` as the chosen one.
    fn west(number: u8) -> Choices {
        let name = format!("west-{number}");
        let cable = WireGuardCable {
            public_key: PublicKey([number; 32]),
            candidates: Vec::new(),
            subnets: vec![net("10.2.0.0/16")],
        };
        let choice =
            Choice { endpoint: endpoint("west", 2), cable: ChosenCable::WireGuard(cable), refused_subnets: Vec::new() };
        Choices(BTreeMap::from([(name, choice)]))
    }

    fn connected(names: &[&str]) -> BTreeMap<CableName, CableReport> {
        let report = CableReport { last_handshake: Some(Duration::ZERO), ..CableReport::default() };
        names.iter().map(|&name| (name.to_owned(), report.clone())).collect()
    }

    fn names(set: &CableSet) -> (Vec<&str>, Vec<&str>) {
        (set.cables.keys().map(String::as_str).collect(), set.receive_only.iter().map(String::as_str).collect())
    }

    #[test]
    fn the_old_cable_carries_until_the_new_one_has_a_handshake() {
        let start = Instant::now();
        let mut succession = Succession::default();
        succession.cable_set(&west(1), &connected(&[]), start);

        let waiting = succession.cable_set(&west(2), &connected(&["west-1"]), start);
        assert_eq!(names(&waiting), (vec!["west-1", "west-2"], vec!["west-2"]));
        assert_eq!(waiting.successors, [("west-2".to_owned(), "west-1".to_owned())].into());

        let taken = succession.cable_set(&west(2), &connected(&["west-1", "west-2"]), start);
        assert_eq!(names(&taken), (vec!["west-1", "west-2"], vec!["west-1"]));
        assert_eq!(taken.successors, BTreeMap::new());

        let after = succession.poll_timeout().expect("the old cable ends");
        let alone = succession.cable_set(&west(2), &connected(&["west-1", "west-2"]), after);
        assert_eq!(names(&alone), (vec!["west-2"], vec![]));
        assert_eq!(succession.poll_timeout(), None);
    }

    #[test]
    fn a_dead_old_cable_or_too_long_a_wait_ends_the_waiting() {
        let start = Instant::now();
        let mut succession = Succession::default();
        succession.cable_set(&west(1), &connected(&[]), start);
        let taken = succession.cable_set(&west(2), &connected(&[]), start);
        assert_eq!(taken.receive_only, BTreeSet::from(["west-1".to_owned()]));

        let mut succession = Succession::default();
        succession.cable_set(&west(1), &connected(&[]), start);
        succession.cable_set(&west(2), &connected(&["west-1"]), start);
        let taken = succession.cable_set(&west(2), &connected(&["west-1"]), start + TAKE_OVER);
        assert_eq!(taken.receive_only, BTreeSet::from(["west-1".to_owned()]));
    }

    #[test]
    fn a_change_of_mind_keeps_the_cable_that_carries() {
        let start = Instant::now();
        let mut succession = Succession::default();
        succession.cable_set(&west(1), &connected(&[]), start);
        succession.cable_set(&west(2), &connected(&["west-1"]), start);
        let set = succession.cable_set(&west(3), &connected(&["west-1"]), start);
        assert_eq!(names(&set), (vec!["west-1", "west-3"], vec!["west-3"]));
        let back = succession.cable_set(&west(1), &connected(&["west-1"]), start);
        assert_eq!(names(&back), (vec!["west-1"], vec![]));
    }

    #[test]
    fn a_cluster_that_is_gone_is_cut_off_at_once() {
        let start = Instant::now();
        let mut succession = Succession::default();
        succession.cable_set(&west(1), &connected(&[]), start);
        succession.cable_set(&west(2), &connected(&["west-1"]), start);
        let set = succession.cable_set(&Choices::default(), &connected(&["west-1"]), start);
        assert_eq!(set, CableSet::default());
    }
}
