//! The election's transitions, and its law: never two active gateways, whatever clocks and store do.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn node(start: Instant) -> Election {
    Election::new("a".to_owned(), ElectionTiming::default(), start)
}

fn lease(holder: &str, renewal: u32) -> Observed {
    Observed::Lease(LeaseView {
        holder: (!holder.is_empty()).then(|| holder.to_owned()),
        duration: Some(SECOND * 15),
        renewal: renewal.to_string(),
        transitions: 3,
    })
}

/// Reads and, where a write is due, writes; returns its kind.
fn step(election: &mut Election, observed: Observed, written: Written, now: Instant) -> Option<LeaseWriteKind> {
    election.handle_observed(observed, now);
    let write = election.poll_transmit(now);
    if write.is_some() {
        election.handle_written(written, now);
    }
    write.map(|write| write.kind)
}

fn active(start: Instant) -> Election {
    let mut election = node(start);
    step(&mut election, Observed::Absent, Written::Done, start);
    assert_eq!(election.role(start), Role::Active);
    election
}

#[test]
fn the_first_observation_decides_what_a_fresh_node_does() {
    let start = Instant::now();
    for (observed, expected, role) in [
        (Observed::Absent, Some(LeaseWriteKind::Create), Role::Active),
        (lease("", 1), Some(LeaseWriteKind::TakeOver), Role::Active),
        (lease("a", 1), Some(LeaseWriteKind::Renew), Role::Active),
        (lease("b", 1), None, Role::Standby),
        (Observed::Failed, None, Role::Standby),
    ] {
        let mut election = node(start);
        let write = step(&mut election, observed.clone(), Written::Done, start);
        assert_eq!((write, election.role(start)), (expected, role), "{observed:?}");
    }
}

#[test]
fn only_a_write_that_is_done_makes_active() {
    let start = Instant::now();
    for written in [Written::Conflict, Written::Failed] {
        let mut election = node(start);
        step(&mut election, Observed::Absent, written, start);
        assert_eq!(election.role(start), Role::Standby);
        assert_eq!(election.poll_timeout(), Some(start + SECOND * 2));
    }
}

#[test]
fn a_rival_is_replaced_after_its_lease_has_stood_unchanged() {
    let start = Instant::now();
    let mut election = node(start);

    assert_eq!(step(&mut election, lease("b", 1), Written::Done, start), None);
    assert_eq!(step(&mut election, lease("b", 1), Written::Done, start + SECOND * 14), None);
    assert_eq!(step(&mut election, lease("b", 2), Written::Done, start + SECOND * 15), None);
    assert_eq!(step(&mut election, lease("b", 2), Written::Done, start + SECOND * 29), None);
    let write = step(&mut election, lease("b", 2), Written::Done, start + SECOND * 30);

    assert_eq!(write, Some(LeaseWriteKind::TakeOver));
    assert_eq!(election.role(start + SECOND * 30), Role::Active);
}

#[test]
fn taking_over_counts_a_transition_and_renewing_does_not() {
    let start = Instant::now();
    for (observed, expected) in [(lease("", 1), 4), (lease("a", 1), 3)] {
        let mut election = node(start);
        election.handle_observed(observed, start);
        assert_eq!(election.poll_transmit(start).unwrap().transitions, expected);
    }
}

#[test]
fn the_deadline_runs_from_the_start_of_the_last_good_write() {
    let start = Instant::now();
    let mut election = active(start);

    election.handle_observed(lease("a", 1), start + SECOND * 5);
    election.poll_transmit(start + SECOND * 5).unwrap();
    election.handle_written(Written::Done, start + SECOND * 8);
    step(&mut election, lease("a", 2), Written::Failed, start + SECOND * 10);

    assert_eq!(election.role(start + SECOND * 15 - Duration::from_millis(1)), Role::Active);
    assert_eq!(election.role(start + SECOND * 15), Role::Standby);
    assert_eq!(election.active_until(), Some(start + SECOND * 15));
}

#[test]
fn an_active_node_renews_in_the_middle_of_its_deadline_however_often_it_looks() {
    let start = Instant::now();
    let mut election = active(start);
    for (second, next_look) in [(1, 3), (3, 5), (4, 5)] {
        assert_eq!(step(&mut election, lease("a", 1), Written::Done, start + SECOND * second), None, "second {second}");
        assert_eq!(election.poll_timeout(), Some(start + SECOND * next_look), "second {second}");
    }
    let due = step(&mut election, lease("a", 1), Written::Done, start + SECOND * 5);
    assert_eq!(due, Some(LeaseWriteKind::Renew));
}

#[test]
fn a_renewal_that_failed_is_tried_again_after_the_retry_period() {
    let start = Instant::now();
    let mut election = active(start);
    step(&mut election, lease("a", 1), Written::Failed, start + SECOND * 5);
    assert_eq!(election.poll_timeout(), Some(start + SECOND * 7));
    let again = step(&mut election, lease("a", 1), Written::Done, start + SECOND * 7);
    assert_eq!(again, Some(LeaseWriteKind::Renew));
    assert_eq!(election.active_until(), Some(start + SECOND * 17));
}

#[test]
fn seeing_another_holder_ends_the_role_at_once() {
    let start = Instant::now();
    let mut election = active(start);
    step(&mut election, lease("b", 1), Written::Done, start + SECOND);
    assert_eq!(election.role(start + SECOND), Role::Standby);
}

#[test]
fn a_lease_deleted_under_its_holder_is_not_taken_early() {
    let start = Instant::now();
    let mut election = node(start);
    step(&mut election, lease("b", 1), Written::Done, start);
    assert_eq!(step(&mut election, Observed::Absent, Written::Done, start + SECOND), None);
    let later = step(&mut election, Observed::Absent, Written::Done, start + SECOND * 15);
    assert_eq!(later, Some(LeaseWriteKind::Create));
}

#[test]
fn a_node_whose_lease_was_deleted_makes_it_anew() {
    let start = Instant::now();
    let mut election = active(start);
    let write = step(&mut election, Observed::Absent, Written::Done, start + SECOND * 2);
    assert_eq!(write, Some(LeaseWriteKind::Create));
}

#[test]
fn releasing_ends_the_role_and_gives_back_only_our_own_lease() {
    let start = Instant::now();
    for (observed, expected, end) in [
        (lease("a", 1), Some(LeaseWriteKind::Release), None),
        (lease("b", 1), None, None),
        (Observed::Absent, None, None),
        (Observed::Failed, None, Some(start + SECOND * 3)),
    ] {
        let mut election = active(start);
        election.release(start + SECOND);
        assert_eq!(election.role(start + SECOND), Role::Standby);
        assert_eq!(election.poll_timeout(), Some(start + SECOND));
        let write = step(&mut election, observed.clone(), Written::Done, start + SECOND);
        assert_eq!((write, election.poll_timeout()), (expected, end), "{observed:?}");
    }
}

#[test]
fn one_observation_gives_at_most_one_write() {
    let start = Instant::now();
    let mut election = node(start);
    election.handle_observed(Observed::Absent, start);
    assert!(election.poll_transmit(start).is_some());
    assert_eq!(election.poll_transmit(start), None);
    election.handle_written(Written::Conflict, start);
    assert_eq!(election.poll_transmit(start), None);
}

#[test]
fn times_that_contradict_each_other_name_their_flags() {
    let timing = ElectionTiming::default();
    assert_eq!(timing.check(), Ok(timing));
    let late = ElectionTiming { renew_deadline: SECOND * 15, ..timing };
    let rare = ElectionTiming { retry_period: SECOND * 10, ..timing };
    assert!(late.check().unwrap_err().to_string().contains("--renew-deadline"));
    assert!(rare.check().unwrap_err().to_string().contains("--retry-period"));
}

/// A store and nodes with clocks of their own, moved in steps of 50 ms of true time.
struct World {
    base: Instant,
    stored: Option<(LeaseView, u64)>,
    writes: u64,
    nodes: Vec<Node>,
}

struct Node {
    election: Election,
    /// Offset and rate of the clock.
    offset: Duration,
    rate: f64,
    busy: Busy,
}

enum Busy {
    Idle,
    Reading { until: u64, observed: Observed, version: u64 },
    Writing { at: u64, until: u64, write: LeaseWrite, version: u64, fate: Fate },
    Answering { until: u64, written: Written },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Good,
    /// Fails without being written.
    Lost,
    /// Is written, and reported as failed.
    Unreported,
}

impl World {
    fn local(&self, node: usize, tick: u64) -> Instant {
        let node = &self.nodes[node];
        self.base + node.offset + Duration::from_millis(tick * 50).mul_f64(node.rate)
    }

    fn step(&mut self, index: usize, tick: u64, random: &mut impl FnMut(u64) -> u64) {
        let now = self.local(index, tick);
        let busy = std::mem::replace(&mut self.nodes[index].busy, Busy::Idle);
        let next = match busy {
            Busy::Idle if self.nodes[index].election.poll_timeout().is_some_and(|due| due <= now) => {
                let observed = match &self.stored {
                    _ if random(10) == 0 => Observed::Failed,
                    Some((view, _)) => Observed::Lease(view.clone()),
                    None => Observed::Absent,
                };
                let version = self.stored.as_ref().map_or(0, |(_, version)| *version);
                Busy::Reading { until: tick + delay(random), observed, version }
            }
            Busy::Reading { until, observed, version } if until <= tick => {
                let node = &mut self.nodes[index];
                node.election.handle_observed(observed, now);
                match node.election.poll_transmit(now) {
                    None => Busy::Idle,
                    Some(write) => {
                        let at = tick + delay(random);
                        let fate =
                            [Fate::Good, Fate::Good, Fate::Good, Fate::Lost, Fate::Unreported][random(5) as usize];
                        Busy::Writing { at, until: at + delay(random), write, version, fate }
                    }
                }
            }
            Busy::Writing { at, until, write, version, fate } if at <= tick => {
                Busy::Answering { until, written: self.write(write, version, fate) }
            }
            Busy::Answering { until, written } if until <= tick => {
                self.nodes[index].election.handle_written(written, now);
                Busy::Idle
            }
            waiting @ (Busy::Idle | Busy::Reading { .. } | Busy::Writing { .. } | Busy::Answering { .. }) => waiting,
        };
        self.nodes[index].busy = next;
    }

    fn write(&mut self, write: LeaseWrite, version: u64, fate: Fate) -> Written {
        if fate == Fate::Lost {
            return Written::Failed;
        }
        if self.stored.as_ref().map_or(0, |(_, version)| *version) != version {
            return Written::Conflict;
        }
        self.writes += 1;
        let LeaseWrite { holder, duration, transitions, .. } = write;
        let renewal = self.writes.to_string();
        self.stored = Some((LeaseView { holder, duration: Some(duration), renewal, transitions }, self.writes));
        if fate == Fate::Good { Written::Done } else { Written::Failed }
    }
}

/// Mostly short, sometimes longer than any deadline; in steps.
fn delay(random: &mut impl FnMut(u64) -> u64) -> u64 {
    if random(12) == 0 { random(400) } else { random(6) }
}

/// A generator of Marsaglia's xorshift kind: enough to spread delays.
fn generator(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn two_nodes_are_never_active_at_one_time(
        seed: u64,
        clocks in prop::collection::vec((0_u64..1_000_000, 0.9_f64..1.1), 2..5),
    ) {
        let base = Instant::now();
        let mut random = generator(seed);
        let nodes = clocks.into_iter().enumerate().map(|(index, (offset, rate))| {
            let offset = Duration::from_millis(offset);
            let election = Election::new(format!("node-{index}"), ElectionTiming::default(), base + offset);
            Node { election, offset, rate, busy: Busy::Idle }
        });
        let mut world = World { base, stored: None, writes: 0, nodes: nodes.collect() };
        let mut ever_active = false;
        for tick in 0..6000 {
            for index in 0..world.nodes.len() {
                world.step(index, tick, &mut random);
                if random(3000) == 0 {
                    // Killed and started again.
                    let now = world.local(index, tick);
                    world.nodes[index].election =
                        Election::new(format!("node-{index}"), ElectionTiming::default(), now);
                    world.nodes[index].busy = Busy::Idle;
                }
                if random(3000) == 0 {
                    let now = world.local(index, tick);
                    world.nodes[index].election.release(now);
                }
            }
            let active: Vec<usize> = (0..world.nodes.len())
                .filter(|&index| world.nodes[index].election.role(world.local(index, tick)) == Role::Active)
                .collect();
            ever_active |= !active.is_empty();
            prop_assert!(active.len() <= 1, "at step {tick}: {active:?}");
        }
        prop_assert!(ever_active);
    }
}

#[test]
fn a_store_that_was_away_is_no_reason_to_take_over_from_whoever_could_not_write_to_it() {
    let start = Instant::now();
    let mut standby = node(start);
    assert_eq!(step(&mut standby, lease("b", 1), Written::Done, start), None);
    assert_eq!(step(&mut standby, Observed::Failed, Written::Done, start + SECOND * 10), None);

    let back = start + SECOND * 100;
    assert_eq!(step(&mut standby, lease("b", 1), Written::Done, back), None, "the holder has not had his turn");
    let mut other = standby.clone();
    assert_eq!(step(&mut other, lease("b", 2), Written::Done, back + SECOND * 4), None, "he is there again");
    assert_eq!(step(&mut other, lease("b", 2), Written::Done, back + SECOND * 6), None);
    let taken = step(&mut standby, lease("b", 1), Written::Done, back + SECOND * 6);
    assert_eq!(taken, Some(LeaseWriteKind::TakeOver), "he is not");
}
