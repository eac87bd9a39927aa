//! One remote gateway in one family: what it was asked, and what follows from its answers.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use culvert_model::{ClusterId, Endpoint, IpFamily};

use super::wire::Code;
use super::{IdForm, NatChoice, NatSource};

/// How often a peer is asked that has not answered.
const RETRY: Duration = Duration::from_secs(2);
/// How often it is asked once its time is over: whatever was in the way may be gone.
const LATE_RETRY: Duration = Duration::from_secs(30);
/// How long a peer has to answer.
const TIME_OUT: Duration = Duration::from_secs(60);
/// The same behind a load balancer, which seldom passes NAT discovery on.
const LOAD_BALANCER_TIME_OUT: Duration = Duration::from_secs(6);
/// How long an answer by the private address still replaces the public one.
const PRIVATE_PREFERENCE: Duration = Duration::from_secs(1);

/// Which address a request went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Private,
    Public,
}

/// What of an Endpoint discovery rests on; when it changes, discovery starts over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) cluster: ClusterId,
    private: Option<IpAddr>,
    public: Option<IpAddr>,
    /// `None`: the peer or we do not speak NAT discovery.
    port: Option<u16>,
    nat_enabled: bool,
    using_load_balancer: bool,
}

impl Subject {
    pub(super) fn new(endpoint: &Endpoint, family: IpFamily, own_port: Option<u16>) -> Self {
        Self {
            cluster: endpoint.cluster.clone(),
            private: endpoint.private.of(family),
            public: endpoint.public.of(family),
            port: own_port.and(endpoint.nat_discovery_port),
            nat_enabled: endpoint.nat_enabled,
            using_load_balancer: endpoint.using_load_balancer,
        }
    }

    fn address(&self, target: Target) -> Option<IpAddr> {
        match target {
            Target::Private => self.private,
            // One address under two names needs one question.
            Target::Public => self.public.filter(|public| Some(*public) != self.private),
        }
    }

    fn time_out(&self) -> Duration {
        if self.using_load_balancer { LOAD_BALANCER_TIME_OUT } else { TIME_OUT }
    }

    /// The rule from before NAT discovery.
    fn fallback(&self) -> Option<NatChoice> {
        let outside = self.using_load_balancer || self.nat_enabled;
        let address = if outside { self.public.or(self.private) } else { self.private.or(self.public) }?;
        Some(NatChoice { address, nat: Some(address) != self.private, source: NatSource::Fallback })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) subject: Subject,
    pub(super) choice: Option<NatChoice>,
    /// By which target and when the peer answered since discovery started.
    answered: Option<(Target, Instant)>,
    /// The form that the peer takes, once it has answered.
    form: Option<IdForm>,
    started: Instant,
    /// When the next round of requests is due; `None` when none is.
    pub(super) next_round: Option<Instant>,
    /// The newest request of each kind. A later answer than its successor's request counts for nothing.
    requests: Vec<(u64, Target, IdForm)>,
}

impl Peer {
    /// Starts discovery. A `known` address is used until there is a better answer, if it is still the peer's.
    pub(super) fn new(subject: Subject, known: Option<NatChoice>, form: Option<IdForm>, now: Instant) -> Self {
        let mut peer = Self {
            choice: None,
            answered: None,
            form,
            started: now,
            next_round: subject.port.map(|_| now),
            requests: Vec::new(),
            subject,
        };
        if let Some(known) = known {
            peer.seed(known);
        }
        if peer.subject.port.is_none() {
            peer.choice = peer.subject.fallback();
        }
        peer
    }

    /// Starts over for an Endpoint that has changed.
    pub(super) fn restarted(self, subject: Subject, now: Instant) -> Self {
        Self::new(subject, self.choice, self.form, now)
    }

    pub(super) fn seed(&mut self, known: NatChoice) {
        let theirs = [self.subject.private, self.subject.public].contains(&Some(known.address));
        if theirs && self.answered.is_none() && self.subject.port.is_some() {
            self.choice = Some(known);
        }
    }

    /// When something is due: requests, or the end of the peer's time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let time_out = self.waits().then(|| self.started + self.subject.time_out());
        self.next_round.into_iter().chain(time_out).min()
    }

    /// Chooses by the old rule when the peer's time is over.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.waits() && now >= self.started + self.subject.time_out() {
            self.choice = self.subject.fallback();
        }
    }

    fn waits(&self) -> bool {
        self.choice.is_none() && self.subject.port.is_some() && self.subject.fallback().is_some()
    }

    /// Returns the requests of the round that is due: targets and forms, with a number each.
    pub(super) fn round(&mut self, next_number: &mut u64, now: Instant) -> Vec<(SocketAddr, u64, IdForm)> {
        let (Some(due), Some(port)) = (self.next_round, self.subject.port) else { return Vec::new() };
        if due > now {
            return Vec::new();
        }
        let late = now.saturating_duration_since(self.started) >= self.subject.time_out();
        self.next_round = Some(now + if late { LATE_RETRY } else { RETRY });
        self.requests.clear();
        let mut round = Vec::new();
        for target in [Target::Private, Target::Public] {
            let Some(address) = self.subject.address(target) else { continue };
            for form in IdForm::ALL.into_iter().filter(|form| self.form.is_none_or(|known| known == *form)) {
                let number = *next_number;
                *next_number = next_number.wrapping_add(1);
                self.requests.push((number, target, form));
                round.push((SocketAddr::new(address, port), number, form));
            }
        }
        round
    }

    /// Takes an answer; tells whether it was one to a request of ours.
    pub(super) fn handle_answer(&mut self, number: u64, code: Code, from: IpAddr, now: Instant) -> bool {
        let Some(&(_, target, form)) = self.requests.iter().find(|(asked, _, _)| *asked == number) else {
            return false;
        };
        let nat = match code {
            Code::Ok => false,
            Code::NatDetected => true,
            // Perhaps the other form of the id was right.
            Code::UnknownDestinationCluster | Code::UnknownDestinationEndpoint | Code::Malformed => return true,
        };
        let Some(address) = self.subject.address(target) else { return true };
        if target == Target::Private && from != address {
            return true;
        }
        self.form = Some(form);
        let choice = match (target, self.answered) {
            (Target::Private, None) => NatChoice { address, nat: false, source: NatSource::Private },
            (Target::Private, Some((Target::Public, at))) if now.saturating_duration_since(at) < PRIVATE_PREFERENCE => {
                NatChoice { address, nat: false, source: NatSource::Private }
            }
            (Target::Public, None) => NatChoice { address, nat, source: NatSource::Public },
            (Target::Private, Some(_)) | (Target::Public, Some(_)) => return true,
        };
        self.choice = Some(choice);
        self.answered = Some((target, now));
        self.next_round = None;
        true
    }
}
