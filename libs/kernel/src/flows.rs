//! Forgets flows that were translated before the node knew better, or to a backend that is gone.
//!
//! The first NAT binding of a flow wins for as long as the flow lives. A client that tried to reach another cluster
//! before its subnets were known here got another source on its way to the default route, and so would every later
//! packet of the same flow: a retried connection, a resolver with a fixed port, an echo. The kernel itself forgets a
//! masqueraded flow whose link changes, but not one of a CNI that gives a fixed source (`snat to`).
//!
//! All flows are listed once, by the `conntrack` program, however many subnets are new. To delete one, that program
//! would list all of them again, so the kernel is asked itself ([`ctnetlink`]).

mod ctnetlink;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Stdio;

use culvert_model::{Frontend, IpFamily, Protocol};
use culvert_services::Backend;
use ipnet::IpNet;
use tokio::process::Command;

use crate::KernelError;

/// Removes the flows to `destinations` whose source was changed from connection tracking; their next packet begins anew.
///
/// Flows that keep their source are not touched, nor those whose source is one of `wanted` now. Works in the network
/// namespace of the calling thread.
///
/// # Errors
///
/// [`KernelError::ConntrackMissing`] if the program is not there, [`KernelError::Conntrack`] with its own words,
/// [`KernelError::Flows`] if the kernel refused.
pub async fn forget_translated_flows(destinations: &BTreeSet<IpNet>, wanted: &[IpNet]) -> Result<(), KernelError> {
    let subnets = Subnets::of(destinations);
    let families = |family| destinations.iter().any(|subnet| IpFamily::of_net(subnet) == family);
    forget(&["--src-nat"], families, |listing| translated(listing, &subnets, wanted)).await
}

/// Removes the flows from `clients` of a service to a backend that serves it no more from connection tracking; the next
/// packet of each is placed anew. No other flow is touched, not even one to the same backend by another way: of clients
/// elsewhere others have translated the flows, perhaps by the same address.
///
/// A TCP connection that is still alive breaks: its next packet comes to a backend that does not know it and resets it.
/// Whoever lets connections of an ending pod come to their end keeps the pod out of `gone` until it is away.
///
/// Works in the network namespace of the calling thread.
///
/// # Errors
///
/// As [`forget_translated_flows`].
pub async fn forget_flows_to(
    gone: &BTreeSet<(Frontend, Backend)>,
    clients: &BTreeSet<IpNet>,
) -> Result<(), KernelError> {
    let clients = Subnets::of(clients);
    let families = |family| gone.iter().any(|(frontend, _)| IpFamily::of(frontend.address) == family);
    forget(&["--dst-nat"], families, |listing| to_backends(listing, gone, &clients)).await
}

/// Removes the flows to an address that lead to the host beside it, of whatever protocol, from connection tracking.
///
/// Works in the network namespace of the calling thread.
///
/// # Errors
///
/// As [`forget_translated_flows`].
pub async fn forget_flows_to_hosts(gone: &BTreeSet<(IpAddr, IpAddr)>) -> Result<(), KernelError> {
    let families = |family| gone.iter().any(|(address, _)| IpFamily::of(*address) == family);
    forget(&["--dst-nat"], families, |listing| to_hosts(listing, gone)).await
}

/// Removes the flows to `destinations` that do not leave with a source of `sources` from connection tracking: they began
/// before there was a translation.
///
/// Works in the network namespace of the calling thread.
///
/// # Errors
///
/// As [`forget_translated_flows`].
pub async fn forget_flows_not_from(destinations: &BTreeSet<IpNet>, sources: &[IpNet]) -> Result<(), KernelError> {
    let subnets = Subnets::of(destinations);
    let families = |family| destinations.iter().any(|subnet| IpFamily::of_net(subnet) == family);
    forget(&[], families, |listing| not_from(listing, &subnets, sources)).await
}

/// Removes the flows from `clients` to `frontends` that nobody translated from connection tracking: they began before the service did, and
/// a client that keeps its port would go on with them for ever.
///
/// Works in the network namespace of the calling thread.
///
/// # Errors
///
/// As [`forget_translated_flows`].
pub async fn forget_flows_past(frontends: &BTreeSet<Frontend>, clients: &BTreeSet<IpNet>) -> Result<(), KernelError> {
    let clients = Subnets::of(clients);
    let families = |family| frontends.iter().any(|frontend| IpFamily::of(frontend.address) == family);
    forget(&[], families, |listing| past(listing, frontends, &clients)).await
}

/// Lists flows, of those families that are meant, and deletes those that `choose` finds in the listing.
async fn forget(
    filter: &[&str],
    is_meant: impl Fn(IpFamily) -> bool,
    choose: impl Fn(&str) -> BTreeSet<Flow>,
) -> Result<(), KernelError> {
    for family in IpFamily::ALL.into_iter().filter(|family| is_meant(*family)) {
        let arguments: Vec<&str> =
            ["--dump", "--family", conntrack_family(family)].iter().chain(filter).copied().collect();
        ctnetlink::delete(&choose(&conntrack(&arguments).await?)).map_err(KernelError::Flows)?;
    }
    Ok(())
}

/// A live flow that leaves by another address than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    /// By IANA's numbers.
    pub protocol: u8,
    /// Who sent the first packet; the port is `None` for protocols without.
    pub source: (IpAddr, Option<u16>),
    /// Where it was sent.
    pub destination: (IpAddr, Option<u16>),
    /// What others see of the source.
    pub seen: (IpAddr, Option<u16>),
}

/// Returns the flows that others see coming from `address`, and `port` if one is given, as long as they live.
///
/// Works in the network namespace of the calling thread.
///
/// # Errors
///
/// [`KernelError::ConntrackMissing`] if the program is not there, [`KernelError::Conntrack`] with its own words.
pub async fn callers(address: IpAddr, port: Option<u16>) -> Result<BTreeSet<Caller>, KernelError> {
    let family = conntrack_family(IpFamily::of(address));
    Ok(seen_as(&conntrack(&["--dump", "--src-nat", "--family", family]).await?, address, port))
}

/// Returns what the program calls a family.
fn conntrack_family(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ipv4",
        IpFamily::V6 => "ipv6",
    }
}

/// Runs the program and returns what it lists.
async fn conntrack(arguments: &[&str]) -> Result<String, KernelError> {
    let output = Command::new("conntrack").args(arguments).stdin(Stdio::null()).output().await;
    let output = output.map_err(KernelError::ConntrackMissing)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(KernelError::Conntrack { command: arguments.join(" "), text })
}

/// Subnets among which an address is found with one look for each prefix length.
struct Subnets<'a> {
    all: &'a BTreeSet<IpNet>,
    lengths: BTreeSet<u8>,
}

impl<'a> Subnets<'a> {
    fn of(all: &'a BTreeSet<IpNet>) -> Self {
        Self { all, lengths: all.iter().map(IpNet::prefix_len).collect() }
    }

    fn have(&self, address: IpAddr) -> bool {
        let around = |length: &u8| IpNet::new(address, *length).ok();
        self.lengths.iter().filter_map(around).any(|subnet| self.all.contains(&subnet.trunc()))
    }
}

/// A flow by its first packet, which is what the kernel knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    source: IpAddr,
    destination: IpAddr,
    /// By IANA's numbers.
    protocol: u8,
    upper: Upper,
}

/// What tells flows of one protocol between two addresses apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Upper {
    /// TCP, UDP, SCTP and their like.
    Ports {
        source: u16,
        destination: u16,
    },
    /// ICMP of either family.
    Icmp {
        kind: u8,
        code: u8,
        id: u16,
    },
    Nothing,
}

/// A flow as the program lists it: who sent the first packet, and who sends and gets the answers.
struct Listed {
    flow: Flow,
    answers_from: (IpAddr, Option<u16>),
    answers_to: IpAddr,
    answers_to_port: Option<u16>,
}

impl Listed {
    fn parse(line: &str) -> Option<Self> {
        let protocol = line.split_whitespace().nth(1)?.parse().ok()?;
        // The tuple of the first packet comes first, that of the answers second.
        let values = |key: &str| {
            let values: Vec<&str> = line.split_whitespace().filter_map(|word| word.strip_prefix(key)).collect();
            Some((values.first().copied()?, values.last().copied()?))
        };
        let (source, answers_from) = values("src=")?;
        let (destination, answers_to) = values("dst=")?;
        let number = |key: &str| values(key).and_then(|(first, _)| first.parse::<u16>().ok());
        let small = |key: &str| number(key).and_then(|value| u8::try_from(value).ok());
        let upper = if let (Some(source), Some(destination)) = (number("sport="), number("dport=")) {
            Upper::Ports { source, destination }
        } else if let (Some(kind), Some(code), Some(id)) = (small("type="), small("code="), number("id=")) {
            Upper::Icmp { kind, code, id }
        } else {
            Upper::Nothing
        };
        let flow = Flow { source: source.parse().ok()?, destination: destination.parse().ok()?, protocol, upper };
        let last = |key: &str| values(key).and_then(|(_, last)| last.parse().ok());
        Some(Self {
            flow,
            answers_from: (answers_from.parse().ok()?, last("sport=")),
            answers_to: answers_to.parse().ok()?,
            answers_to_port: last("dport="),
        })
    }

    /// Returns the service that the first packet went to.
    fn frontend(&self) -> Option<Frontend> {
        let Upper::Ports { destination, .. } = self.flow.upper else { return None };
        let protocol = Protocol::of_number(self.flow.protocol)?;
        Some(Frontend { address: self.flow.destination, protocol, port: destination })
    }

    /// Returns the service that the first packet went to, and who answers.
    fn service(&self) -> Option<(Frontend, Backend)> {
        let (address, Some(port)) = self.answers_from else { return None };
        Some((self.frontend()?, Backend { address, port }))
    }
}

/// Returns the listed flows to `subnets` whose source is another one on their way, and none of `wanted`.
///
/// The program's own `--src-nat` also lists flows whose source was bound to itself.
fn translated(listing: &str, subnets: &Subnets<'_>, wanted: &[IpNet]) -> BTreeSet<Flow> {
    let is_wanted = |address| wanted.iter().any(|subnet| subnet.contains(&address));
    flows_of(listing, |listed| {
        listed.answers_to != listed.flow.source
            && !is_wanted(listed.answers_to)
            && subnets.have(listed.flow.destination)
    })
}

/// Returns the listed flows to `subnets` whose source is none of `wanted` on their way.
fn not_from(listing: &str, subnets: &Subnets<'_>, wanted: &[IpNet]) -> BTreeSet<Flow> {
    let is_wanted = |address| wanted.iter().any(|subnet| subnet.contains(&address));
    flows_of(listing, |listed| !is_wanted(listed.answers_to) && subnets.have(listed.flow.destination))
}

/// Returns the listed flows whose answers go to `address`, and `port` if one is given.
fn seen_as(listing: &str, address: IpAddr, port: Option<u16>) -> BTreeSet<Caller> {
    let listed = listing.lines().filter_map(Listed::parse);
    let is_meant = |listed: &Listed| listed.answers_to == address && (port.is_none() || listed.answers_to_port == port);
    let caller = |listed: Listed| {
        let (source, destination) = match listed.flow.upper {
            Upper::Ports { source, destination } => (Some(source), Some(destination)),
            Upper::Icmp { .. } | Upper::Nothing => (None, None),
        };
        Caller {
            protocol: listed.flow.protocol,
            source: (listed.flow.source, source),
            destination: (listed.flow.destination, destination),
            seen: (listed.answers_to, listed.answers_to_port),
        }
    };
    listed.filter(is_meant).map(caller).collect()
}

/// Returns the listed flows to a frontend that the frontend's own address is to answer.
fn past(listing: &str, frontends: &BTreeSet<Frontend>, clients: &Subnets<'_>) -> BTreeSet<Flow> {
    flows_of(listing, |listed| {
        listed.answers_from.0 == listed.flow.destination
            && listed.frontend().is_some_and(|frontend| frontends.contains(&frontend))
            && clients.have(listed.flow.source)
    })
}

/// Returns the listed flows to a frontend that are answered by the backend beside it.
fn to_backends(listing: &str, gone: &BTreeSet<(Frontend, Backend)>, clients: &Subnets<'_>) -> BTreeSet<Flow> {
    flows_of(listing, |listed| {
        listed.service().is_some_and(|service| gone.contains(&service)) && clients.have(listed.flow.source)
    })
}

/// Returns the listed flows to an address that are answered by the host beside it.
fn to_hosts(listing: &str, gone: &BTreeSet<(IpAddr, IpAddr)>) -> BTreeSet<Flow> {
    flows_of(listing, |listed| gone.contains(&(listed.flow.destination, listed.answers_from.0)))
}

fn flows_of(listing: &str, is_meant: impl Fn(&Listed) -> bool) -> BTreeSet<Flow> {
    listing.lines().filter_map(Listed::parse).filter(is_meant).map(|listed| listed.flow).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flows_to_these_subnets_with_another_source_count() {
        let listing = "\
tcp      6 84 TIME_WAIT src=10.1.2.2 dst=10.2.2.2 sport=36178 dport=7000 src=10.2.2.2 dst=10.1.2.2 sport=7000 dport=36178 [ASSURED] mark=0 use=1
icmp     1 26 src=10.1.2.2 dst=10.2.2.2 type=8 code=0 id=29 [UNREPLIED] src=10.2.2.2 dst=192.168.1.7 type=0 code=0 id=29 mark=0 use=1
icmp     1 26 src=10.1.2.2 dst=10.9.2.2 type=8 code=0 id=29 [UNREPLIED] src=10.9.2.2 dst=192.168.1.7 type=0 code=0 id=29 mark=0 use=1
tcp      6 84 SYN_SENT src=10.1.2.2 dst=10.3.1.9 sport=40000 dport=80 [UNREPLIED] src=10.3.1.9 dst=192.168.1.7 sport=80 dport=1024 mark=0 use=1
udp      17 20 src=fd01::2 dst=fd02::2 sport=53 dport=53 [UNREPLIED] src=fd02::2 dst=fd00::7 sport=53 dport=53 mark=0 use=1
unknown  2 500 src=10.1.2.2 dst=10.2.0.9 [UNREPLIED] src=10.2.0.9 dst=192.168.1.7 mark=0 use=1
unreadable line src=10.1.2.2
";
        let subnets = ["10.2.0.0/16", "10.3.1.0/24", "fd02::/48"].map(|text| text.parse().unwrap()).into();
        let flow = |source: &str, destination: &str, protocol, upper| {
            let [source, destination] = [source, destination].map(|text| text.parse().unwrap());
            Flow { source, destination, protocol, upper }
        };
        let expected = [
            flow("10.1.2.2", "10.2.2.2", 1, Upper::Icmp { kind: 8, code: 0, id: 29 }),
            flow("10.1.2.2", "10.3.1.9", 6, Upper::Ports { source: 40000, destination: 80 }),
            flow("fd01::2", "fd02::2", 17, Upper::Ports { source: 53, destination: 53 }),
            flow("10.1.2.2", "10.2.0.9", 2, Upper::Nothing),
        ];
        assert_eq!(translated(listing, &Subnets::of(&subnets), &[]), expected.into());
        let own = ["192.168.1.0/24".parse().unwrap()];
        assert_eq!(translated(listing, &Subnets::of(&subnets), &own).len(), 1, "what leaves by a global address stays");
    }

    #[test]
    fn only_flows_to_a_service_that_a_gone_backend_answers_count() {
        let listing = "\
udp      17 20 src=10.2.2.2 dst=242.0.0.1 sport=4000 dport=53 src=10.1.2.2 dst=10.2.2.2 sport=5353 dport=4000 mark=0 use=1
udp      17 20 src=10.2.2.3 dst=242.0.0.1 sport=4000 dport=53 [UNREPLIED] src=10.1.2.3 dst=10.2.2.3 sport=5353 dport=4000 mark=0 use=1
udp      17 20 src=10.2.2.4 dst=242.0.0.1 sport=4000 dport=54 src=10.1.2.2 dst=10.2.2.4 sport=5353 dport=4000 mark=0 use=1
tcp      6 84 ESTABLISHED src=10.2.2.5 dst=242.0.0.1 sport=4000 dport=53 src=10.1.2.2 dst=10.2.2.5 sport=5353 dport=4000 mark=0 use=1
udp      17 20 src=10.2.2.6 dst=10.1.2.2 sport=4000 dport=5353 src=10.1.2.2 dst=10.2.2.6 sport=5353 dport=4000 mark=0 use=1
icmp     1 26 src=10.2.2.7 dst=242.0.0.1 type=8 code=0 id=29 src=10.1.2.2 dst=10.2.2.7 type=0 code=0 id=29 mark=0 use=1
";
        let frontend = Frontend { address: "242.0.0.1".parse().unwrap(), protocol: Protocol::Udp, port: 53 };
        let gone = BTreeSet::from([(frontend, Backend { address: "10.1.2.2".parse().unwrap(), port: 5353 })]);
        let sources = |flows: BTreeSet<Flow>| flows.iter().map(|flow| flow.source.to_string()).collect::<Vec<_>>();
        let (all, others) = (["10.2.0.0/16".parse().unwrap()].into(), ["10.3.0.0/16".parse().unwrap()].into());
        assert_eq!(sources(to_backends(listing, &gone, &Subnets::of(&all))), ["10.2.2.2"]);
        assert_eq!(sources(to_backends(listing, &gone, &Subnets::of(&others))), Vec::<String>::new());
        let hosts = BTreeSet::from([("242.0.0.1".parse().unwrap(), "10.1.2.3".parse().unwrap())]);
        assert_eq!(sources(to_hosts(listing, &hosts)), ["10.2.2.3"]);
    }

    #[test]
    fn flows_without_a_translation_that_there_is_now_count() {
        let listing = "\
udp      17 20 src=10.2.2.2 dst=10.96.0.7 sport=4000 dport=53 [UNREPLIED] src=10.96.0.7 dst=10.2.2.2 sport=53 dport=4000 mark=0 use=1
udp      17 20 src=10.2.2.3 dst=10.96.0.7 sport=4000 dport=53 src=10.1.2.3 dst=10.2.2.3 sport=5353 dport=4000 mark=0 use=1
udp      17 20 src=10.2.2.4 dst=10.96.0.7 sport=4000 dport=54 [UNREPLIED] src=10.96.0.7 dst=10.2.2.4 sport=54 dport=4000 mark=0 use=1
udp      17 20 src=10.2.2.5 dst=242.2.0.7 sport=4000 dport=53 src=242.2.0.7 dst=242.1.0.1 sport=53 dport=4000 mark=0 use=1
icmp     1 26 src=10.2.2.6 dst=242.2.0.7 type=8 code=0 id=29 [UNREPLIED] src=242.2.0.7 dst=10.2.2.6 type=0 code=0 id=29 mark=0 use=1
";
        let sources = |flows: BTreeSet<Flow>| flows.iter().map(|flow| flow.source.to_string()).collect::<Vec<_>>();
        let clients = BTreeSet::from(["10.2.0.0/16".parse().unwrap()]);
        let frontend = Frontend { address: "10.96.0.7".parse().unwrap(), protocol: Protocol::Udp, port: 53 };
        assert_eq!(sources(past(listing, &BTreeSet::from([frontend]), &Subnets::of(&clients))), ["10.2.2.2"]);
        let caller = |address: &str, port| {
            let found = seen_as(listing, address.parse().unwrap(), port);
            found.iter().map(|caller| (caller.source.0.to_string(), caller.source.1)).collect::<Vec<_>>()
        };
        assert_eq!(caller("242.1.0.1", Some(4000)), [("10.2.2.5".to_owned(), Some(4000))]);
        assert_eq!(caller("242.1.0.1", None).len(), 1);
        assert_eq!(caller("242.1.0.1", Some(4001)), []);
        let (remote, own) = (BTreeSet::from(["242.2.0.0/16".parse().unwrap()]), ["242.1.0.0/16".parse().unwrap()]);
        assert_eq!(sources(not_from(listing, &Subnets::of(&remote), &own)), ["10.2.2.6"]);
    }
}
