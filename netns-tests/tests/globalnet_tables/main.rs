//! Globalnet's translation is what users are promised: random objects, the tables that follow from them in a real kernel,
//! and a model of the promise ([`objects`]) agree on random packets of every protocol, in both families.
//!
//! Alone on the node, and beside the masquerades of container networks and kube-proxy on another one.

#![allow(clippy::unwrap_used)]

mod objects;
mod packets;
mod world;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::IpFamily;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRng, TestRunner};

use crate::objects::{Arrival, Global, Host, Objects, PORTS, host, objects, pod};
use crate::packets::{Kind, Point, Step, Talk, refusal, unreachable};
use crate::world::{Link, Remote, World, in_namespace};

const CASES: u32 = 30;
/// Clients' ports are from here on; each one is used once.
const FIRST_PORT: u16 = 20_000;

/// A packet to be sent.
#[derive(Clone, Debug)]
enum Probe {
    /// From a pod or node to another cluster.
    Out { from: Host, to: Remote, kind: Kind },
    /// From another cluster to a global address, or from a pod of this one.
    In { from: Caller, to: Index, kind: Kind, port: u16 },
}

#[derive(Clone, Copy, Debug)]
enum Caller {
    Remote(Remote),
    /// A pod of this node; other nodes refuse global addresses of the own cluster themselves.
    Own(Host),
}

fn probe() -> impl Strategy<Value = Probe> {
    let kind = || select(Kind::ALL.to_vec());
    let remote = || {
        let cable = select(vec![Link::Wireguard, Link::Vxlan]);
        (cable, 1..20_u16).prop_map(|(cable, number)| Remote { cable, number })
    };
    let caller = prop_oneof![9 => remote().prop_map(Caller::Remote), 1 => pod().prop_map(Caller::Own)];
    prop_oneof![
        1 => (host(), remote(), kind()).prop_map(|(from, to, kind)| Probe::Out { from, to, kind }),
        2 => (caller, any::<Index>(), kind(), select(PORTS.to_vec()))
            .prop_map(|(from, to, kind, port)| Probe::In { from, to, kind, port }),
    ]
}

/// A flow that is open: where it enters and how it looks there, and the same of where it leaves.
#[derive(Clone, Copy, Debug)]
struct Flow {
    client: (Link, Talk),
    server: (Link, Talk),
}

/// The address that a pair of source and destination had, of these.
type Pairs = BTreeMap<(BTreeSet<Global>, IpAddr, IpAddr), IpAddr>;

/// What is done to a world, and what has been seen of it.
struct Trial {
    world: World,
    next_port: u16,
    pairs: Pairs,
    /// The backend of a client of a service with affinity, of these.
    homes: BTreeMap<(IpAddr, Kind, Point), Point>,
    /// How many packets of this case were refused.
    refused: u64,
}

impl Trial {
    fn new(has_others: bool, pairs: Pairs) -> Self {
        Self { world: World::new(has_others), next_port: FIRST_PORT, pairs, homes: BTreeMap::new(), refused: 0 }
    }

    /// Brings the kernel to one set of objects, then to another while flows are open.
    fn run(&mut self, before: &Objects, after: &Objects, probes: &[Probe]) {
        self.world.forget();
        self.homes.clear();
        self.refused = 0;
        let refused = self.world.refused();
        self.world.converge(before);
        let flows = self.probe(before, probes);
        flows.iter().for_each(|flow| self.go_on(flow));

        let both = after.beside(before);
        self.world.converge(&both);
        flows.iter().for_each(|flow| self.go_on(flow));
        self.probe(&both, probes);
        flows.iter().for_each(|flow| self.go_on(flow));
        assert_eq!(self.world.refused(), refused + self.refused, "what is refused is counted over all updates");
    }

    /// Sends packets of both families and returns the flows that began.
    fn probe(&mut self, objects: &Objects, probes: &[Probe]) -> Vec<Flow> {
        let mut flows = Vec::new();
        for (probe, family) in probes.iter().flat_map(|probe| IpFamily::ALL.map(|family| (probe, family))) {
            flows.extend(match *probe {
                Probe::Out { from, to, kind } => {
                    let to = self.apart(to, kind);
                    let client = (from.address(family), self.next_port());
                    let talk = Talk { kind, client, server: (to.address(family), 80) };
                    let flow = self.leave(objects, from, to, talk);
                    assert_eq!(flow.server.1.client.1, talk.client.1, "{talk:?} keeps its port");
                    Some(flow)
                }
                Probe::In { from, ref to, kind, port } => {
                    let from = match from {
                        Caller::Remote(remote) => Caller::Remote(self.apart(remote, kind)),
                        Caller::Own(host) => Caller::Own(host),
                    };
                    self.arrive(objects, family, from, *to.get(&objects.globals()), kind, port)
                }
            });
        }
        for family in IpFamily::ALL {
            flows.extend(self.crowd(objects, family));
        }
        flows
    }

    /// Returns a remote of its own for packets without ports: nothing else tells their flows apart.
    fn apart(&mut self, remote: Remote, kind: Kind) -> Remote {
        let number = if kind == Kind::Esp { self.next_port() } else { remote.number };
        Remote { number, ..remote }
    }

    /// Has all hosts that share one address begin the same: some get another port on their way, and each its own answers.
    fn crowd(&mut self, objects: &Objects, family: IpFamily) -> Vec<Flow> {
        let mut crowds: BTreeMap<BTreeSet<Global>, Vec<Host>> = BTreeMap::new();
        Host::all().into_iter().for_each(|host| crowds.entry(objects.sources(host)).or_default().push(host));
        let to = Remote { cable: Link::Vxlan, number: 99 };
        let mut flows = Vec::new();
        for hosts in crowds.into_iter().filter(|(sources, _)| sources.len() == 1).map(|(_, hosts)| hosts) {
            for kind in [Kind::Tcp, Kind::Udp, Kind::Sctp, Kind::Echo] {
                let port = self.next_port();
                let server = (to.address(family), 443);
                let talk = |host: Host| Talk { kind, client: (host.address(family), port), server };
                let crowd: Vec<Flow> = hosts.iter().map(|&host| self.leave(objects, host, to, talk(host))).collect();
                let points: BTreeSet<Point> = crowd.iter().map(|flow| flow.server.1.client).collect();
                assert_eq!(points.len(), crowd.len(), "{crowd:?} are told apart");
                flows.extend(crowd);
            }
        }
        flows
    }

    fn next_port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
        self.next_port
    }

    /// Opens a conversation from a host of this cluster with another cluster.
    fn leave(&mut self, objects: &Objects, from: Host, to: Remote, talk: Talk) -> Flow {
        let (source, destination) = (talk.client.0, talk.server.0);
        let family = IpFamily::of(source);
        let (link, seen) = self.world.pass(from.link(), &talk.packet(Step::Opening));

        let sources = objects.sources(from);
        let global = seen.source;
        let is_one = sources.iter().any(|source| source.address(family) == global);
        assert!(is_one, "{from:?} leaves as {global}, not as one of {sources:?}");
        // Of packets without ports, the port is a word to the test alone.
        let client = if talk.kind == Kind::Esp { (global, talk.client.1) } else { seen.sender() };
        let outside = Talk { client, ..talk };
        assert_eq!((link, seen), (to.cable, outside.packet(Step::Opening)));
        let before = *self.pairs.entry((sources, source, destination)).or_insert(global);
        assert_eq!(before, global, "{source} was another one for {destination}");

        let flow = Flow { client: (from.link(), talk), server: (to.cable, outside) };
        self.back(&flow, Step::Answer);
        flow
    }

    /// Sends the first packet of a conversation to a global address, and opens it if somebody answers.
    fn arrive(
        &mut self,
        objects: &Objects,
        family: IpFamily,
        from: Caller,
        global: Global,
        kind: Kind,
        port: u16,
    ) -> Option<Flow> {
        let (link, source) = match from {
            Caller::Remote(remote) => (remote.cable, remote.address(family)),
            Caller::Own(host) => (host.link(), host.address(family)),
        };
        let has_ports = matches!(kind, Kind::Tcp | Kind::Udp | Kind::Sctp);
        let port = if has_ports { port } else { 0 };
        let talk = Talk { kind, client: (source, self.next_port()), server: (global.address(family), port) };
        let opening = talk.packet(Step::Opening);
        let seen = self.world.pass(link, &opening);

        let arrival = match (from, objects.arrival(family, global, kind, port)) {
            // Names lead to the cluster's own addresses at home.
            (Caller::Own(_), Arrival::Led(_)) => Arrival::Refused,
            (_, arrival) => arrival,
        };
        match arrival {
            Arrival::Answered => assert_eq!(seen, (link, talk.packet(Step::Answer)), "{opening:?} is answered"),
            Arrival::Refused => {
                assert_eq!(seen, (link, refusal(&opening)), "{opening:?} is refused");
                self.refused += 1;
            }
            Arrival::Led(backends) => {
                let backend = backends.iter().find(|(address, port)| {
                    let inside = Talk { server: (*address, *port), ..talk };
                    seen.1 == inside.packet(Step::Opening)
                });
                let Some(&backend) = backend else {
                    panic!("{opening:?} has become {seen:?}, not to one of {backends:?}")
                };
                let flow = Flow {
                    client: (link, talk),
                    server: (Host::of(backend.0).link(), Talk { server: backend, ..talk }),
                };
                assert_eq!(seen.0, flow.server.0, "{opening:?} goes to its backend");
                self.back(&flow, Step::Answer);
                if objects.services.get(&global).is_some_and(|service| service.affinity.is_some()) {
                    let home = *self.homes.entry((source, kind, talk.server)).or_insert(backend);
                    assert_eq!(home, backend, "{source} was led elsewhere");
                }
                return Some(flow);
            }
        }
        None
    }

    /// Sends one more packet each way, and an error.
    fn go_on(&self, flow: &Flow) {
        let [outer, inner] = [flow.client.1, flow.server.1].map(|talk| talk.packet(Step::More));
        let seen = self.world.pass(flow.client.0, &outer);
        assert_eq!(seen, (flow.server.0, inner.clone()), "{flow:?} goes on");
        self.back(flow, Step::MoreAnswer);
        let seen = self.world.pass(flow.server.0, &unreachable(&inner));
        assert_eq!(seen, (flow.client.0, unreachable(&outer)), "{flow:?} has an error");
    }

    /// Sends an answer.
    fn back(&self, flow: &Flow, step: Step) {
        let seen = self.world.pass(flow.server.0, &flow.server.1.packet(step));
        assert_eq!(seen, (flow.client.0, flow.client.1.packet(step)), "{flow:?} is answered");
    }
}

/// Tries the same cases every time, on a gateway's node of its own; returns what pairs had.
fn check(has_others: bool, pairs: Pairs) -> Pairs {
    in_namespace(move || {
        let trial = RefCell::new(Trial::new(has_others, pairs));
        let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 40, ..Config::default() };
        let rng = TestRng::deterministic_rng(config.rng_algorithm);
        let cases = (objects(4), objects(6), vec(probe(), 60..90));
        let outcome = TestRunner::new_with_rng(config, rng).run(&cases, |(before, after, probes)| {
            trial.borrow_mut().run(&before, &after, &probes);
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("with other masquerades: {has_others}; {error}");
        }
        trial.into_inner().pairs
    })
}

#[test]
fn random_objects_are_translated_as_promised_and_on_every_gateway_the_same() {
    let pairs = check(false, Pairs::new());
    check(true, pairs);
}
