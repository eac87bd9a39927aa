//! NAT discovery with all remote gateways: asks, takes answers, and answers.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use culvert_model::{CableName, Endpoint, IpFamily};
use prost::Message as _;

use super::peer::{Peer, Subject};
use super::wire::{AddressAndPort, Body, Code, EndpointDetails, Message, Request, Response, VERSION, answer, decode};
use super::{IdForm, NatChoice, NatChoices, OwnEndpoint};

/// Answers a second, in bursts of as many: more than any set of clusters asks.
const ANSWERS_PER_SECOND: u32 = 100;

/// A request to be sent from the NAT discovery port.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    pub to: SocketAddr,
    request: Request,
}

impl Probe {
    /// Returns the datagram, which names the `source` that the kernel uses towards [`Self::to`].
    pub fn datagram(&self, source: SocketAddr) -> Vec<u8> {
        let request = Request { using_source: Some(source.into()), ..self.request.clone() };
        Message { version: VERSION, body: Some(Body::Request(request)) }.encode_to_vec()
    }
}

/// NAT discovery of one gateway. Active or not, it answers.
#[derive(Clone, Debug)]
pub struct NatDiscovery {
    own: OwnEndpoint,
    peers: BTreeMap<(CableName, IpFamily), Peer>,
    /// What an earlier run of this gateway found.
    seeds: NatChoices,
    next_number: u64,
    probes: VecDeque<Probe>,
    answers: TokenBucket,
}

impl NatDiscovery {
    /// Starts without peers. `first_number` is random: it is all that tells an answer from a forged one.
    pub fn new(own: OwnEndpoint, first_number: u64, now: Instant) -> Self {
        Self {
            own,
            peers: BTreeMap::new(),
            seeds: NatChoices::new(),
            next_number: first_number,
            probes: VecDeque::new(),
            answers: TokenBucket { tokens: ANSWERS_PER_SECOND, since: now },
        }
    }

    /// Gives the choice of an earlier run, to be used until the peer answers; ignored where the address is not the
    /// peer's any more.
    pub fn seed(&mut self, cable_name: &str, choice: NatChoice) {
        let key = (cable_name.to_owned(), IpFamily::of(choice.address));
        match self.peers.get_mut(&key) {
            Some(peer) => peer.seed(choice),
            None => {
                self.seeds.insert(key, choice);
            }
        }
    }

    /// Sets the remote gateways. New ones are asked, changed ones anew, and the others go on as they were.
    pub fn set_peers<'a>(&mut self, endpoints: impl IntoIterator<Item = &'a Endpoint>, now: Instant) {
        let mut former = std::mem::take(&mut self.peers);
        for endpoint in endpoints.into_iter().filter(|endpoint| endpoint.cluster != self.own.cluster) {
            for family in IpFamily::ALL {
                let theirs = endpoint.private.iter().chain(endpoint.public.iter());
                if !theirs.map(IpFamily::of).any(|theirs| theirs == family) {
                    continue;
                }
                let key = (endpoint.cable_name.clone(), family);
                // Without an address of our own in the family there is no way to ask.
                let own_port = self.own.private.of(family).and(self.own.port);
                let subject = Subject::new(endpoint, family, own_port);
                let peer = match former.remove(&key) {
                    Some(peer) if peer.subject == subject => peer,
                    Some(peer) => peer.restarted(subject, now),
                    None => Peer::new(subject, self.seeds.remove(&key), None, now),
                };
                self.peers.insert(key, peer);
            }
        }
    }

    /// Returns what is known of all peers.
    pub fn choices(&self) -> NatChoices {
        self.peers.iter().filter_map(|(key, peer)| Some((key.clone(), peer.choice?))).collect()
    }

    /// Takes a datagram; returns the answer to be sent to `from`, if there is one.
    pub fn handle_datagram(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) -> Option<Vec<u8>> {
        match decode(datagram)? {
            Body::Request(request) => self.answers.take(now).then(|| answer(&self.own, request, from)),
            Body::Response(response) => {
                self.handle_response(&response, from.ip().to_canonical(), now);
                None
            }
        }
    }

    fn handle_response(&mut self, response: &Response, from: IpAddr, now: Instant) {
        let Ok(code) = Code::try_from(response.response) else { return };
        for peer in self.peers.values_mut() {
            if peer.handle_answer(response.request_number, code, from, now) {
                return;
            }
        }
    }

    /// Ends the waiting for peers that do not answer.
    pub fn handle_timeout(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.handle_timeout(now);
        }
    }

    /// Returns the next request to send.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Probe> {
        if self.probes.is_empty() {
            self.prepare(now);
        }
        self.probes.pop_front()
    }

    fn prepare(&mut self, now: Instant) {
        for ((cable_name, family), peer) in &mut self.peers {
            for (to, number, form) in peer.round(&mut self.next_number, now) {
                let cluster_id = peer.subject.cluster.to_string();
                let receiver = EndpointDetails { cluster_id, endpoint_id: form.id(cable_name, *family) };
                let request = request(&self.own, receiver, form, to, number);
                self.probes.push_back(Probe { to, request });
            }
        }
    }

    /// Returns when [`Self::handle_timeout`] and then [`Self::poll_transmit`] have something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.peers.values().filter_map(Peer::deadline).min()
    }
}

fn request(own: &OwnEndpoint, receiver: EndpointDetails, form: IdForm, to: SocketAddr, number: u64) -> Request {
    Request {
        request_number: number,
        sender: Some(EndpointDetails::of(own, form, IpFamily::of(to.ip()))),
        receiver: Some(receiver),
        using_source: None,
        using_destination: Some(AddressAndPort::from(to)),
    }
}

/// Lets [`ANSWERS_PER_SECOND`] through.
#[derive(Clone, Debug)]
struct TokenBucket {
    tokens: u32,
    /// Up to when tokens have been given.
    since: Instant,
}

impl TokenBucket {
    fn take(&mut self, now: Instant) -> bool {
        let one = Duration::from_secs(1) / ANSWERS_PER_SECOND;
        let earned = now.saturating_duration_since(self.since).as_nanos() / one.as_nanos();
        if earned >= u128::from(ANSWERS_PER_SECOND) {
            self.tokens = ANSWERS_PER_SECOND;
            self.since = now;
        } else {
            let earned = u32::try_from(earned).expect("less than the answers of a second");
            self.tokens = (self.tokens + earned).min(ANSWERS_PER_SECOND);
            self.since += one * earned;
        }
        let taken = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        taken
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
