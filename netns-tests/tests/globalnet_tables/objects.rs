//! Random objects, what Globalnet is told of them, and what users are promised: a model that knows nothing of tables.
//!
//! Everything is there once for each family. The model is made of these few functions alone: who may leave as whom
//! ([`Objects::sources`]), and what becomes of a packet to a global address ([`Objects::arrival`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_globalnet_core::{EgressGroup, Endpoints, GlobalAddresses, ObjectKey, Port, Service, ServiceEndpoint};
use culvert_model::{IpFamily, Protocol};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;

use crate::packets::{Kind, Point};
use crate::world::Link;

/// Somebody with an address of this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Pod(u8),
    /// Another node, and pods in its network.
    Node(u8),
}

const PODS: u8 = 12;
const NODES: u8 = 2;

impl Host {
    pub(crate) fn all() -> Vec<Self> {
        (1..=PODS).map(Self::Pod).chain((1..=NODES).map(Self::Node)).collect()
    }

    pub(crate) fn address(self, family: IpFamily) -> IpAddr {
        match (family, self) {
            (IpFamily::V4, Self::Pod(number)) => Ipv4Addr::new(10, 244, 1, number).into(),
            (IpFamily::V4, Self::Node(number)) => Ipv4Addr::new(192, 168, 20, 20 + number).into(),
            (IpFamily::V6, Self::Pod(number)) => Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, number.into()).into(),
            (IpFamily::V6, Self::Node(number)) => Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 1, number.into()).into(),
        }
    }

    /// Returns where its packets come from, and packets from a cable for it go to.
    pub(crate) fn link(self) -> Link {
        match self {
            Self::Pod(_) => Link::Pods,
            Self::Node(_) => Link::Overlay,
        }
    }

    pub(crate) fn of(address: IpAddr) -> Self {
        Self::all().into_iter().find(|host| host.address(IpFamily::of(address)) == address).unwrap()
    }
}

/// An address of this cluster's global CIDRs, by its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Global(pub(crate) u16);

impl Global {
    pub(crate) fn address(self, family: IpFamily) -> IpAddr {
        let [high, low] = self.0.to_be_bytes();
        match family {
            IpFamily::V4 => Ipv4Addr::new(242, 0, high, low).into(),
            IpFamily::V6 => Ipv6Addr::new(0xfd00, 0x242, 0, 0, 0, 0, 0, self.0).into(),
        }
    }
}

/// All that Globalnet is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    pub(crate) cluster: BTreeSet<Global>,
    /// Pods chosen by a selector.
    pub(crate) selected: Vec<Group>,
    /// Pods of whole namespaces.
    pub(crate) namespaces: Vec<Group>,
    pub(crate) headless: BTreeMap<Global, Host>,
    pub(crate) services: BTreeMap<Global, Served>,
    pub(crate) gateways: Vec<Global>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) pods: BTreeSet<Host>,
    pub(crate) addresses: BTreeSet<Global>,
}

#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) ports: BTreeSet<(Protocol, u16)>,
    pub(crate) slices: Vec<Slice>,
    pub(crate) takes_unready: bool,
    pub(crate) affinity: Option<u32>,
}

/// Endpoints, ready or not, at the same ports.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    /// The target of a service's port; ports without one are not served here.
    pub(crate) targets: BTreeMap<(Protocol, u16), u16>,
    pub(crate) endpoints: BTreeMap<Host, bool>,
}

/// What becomes of a packet to a global address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The address itself answers.
    Answered,
    Refused,
    /// To one of these.
    Led(BTreeSet<Point>),
}

impl Objects {
    /// Returns the addresses of which one is the source of packets from `host` to other clusters.
    pub(crate) fn sources(&self, host: Host) -> BTreeSet<Global> {
        let of_group = |groups: &[Group]| {
            groups.iter().find(|group| group.pods.contains(&host)).map(|group| group.addresses.clone())
        };
        let of_headless: BTreeSet<Global> =
            self.headless.iter().filter(|(_, behind)| **behind == host).map(|(global, _)| *global).collect();
        of_group(&self.selected)
            .or(Some(of_headless).filter(|globals| !globals.is_empty()))
            .or_else(|| of_group(&self.namespaces))
            .unwrap_or_else(|| self.cluster.clone())
    }

    /// Returns what becomes of a packet from another cluster to the `port` of `global`.
    pub(crate) fn arrival(&self, family: IpFamily, global: Global, kind: Kind, port: u16) -> Arrival {
        if let Some(host) = self.headless.get(&global) {
            return Arrival::Led([(host.address(family), port)].into());
        }
        let protocol = match kind {
            Kind::Tcp => Protocol::Tcp,
            Kind::Udp => Protocol::Udp,
            Kind::Sctp => Protocol::Sctp,
            Kind::Echo if self.services.contains_key(&global) || self.gateways.contains(&global) => {
                return Arrival::Answered;
            }
            Kind::Echo | Kind::Esp => return Arrival::Refused,
        };
        let backends = self.services.get(&global).map(|service| service.backends(family, protocol, port));
        backends.filter(|backends| !backends.is_empty()).map_or(Arrival::Refused, Arrival::Led)
    }

    /// Returns all that have an address, some neighbours without one, and the first and the last address there are.
    pub(crate) fn globals(&self) -> Vec<Global> {
        let groups = self.selected.iter().chain(&self.namespaces).flat_map(|group| &group.addresses);
        let held: BTreeSet<Global> = self.cluster.iter().chain(groups).chain(&self.gateways).copied().collect();
        let served = self.headless.keys().chain(self.services.keys()).copied();
        let all: BTreeSet<Global> = held.into_iter().chain(served).collect();
        let neighbours: Vec<Global> = all.iter().step_by(3).map(|global| Global(global.0 + 1)).collect();
        all.into_iter().chain(neighbours).chain([Global(0), Global(u16::MAX)]).collect()
    }

    /// Returns what Globalnet's NAT is told.
    pub(crate) fn addresses(&self, cidrs: [&str; 2]) -> GlobalAddresses {
        let mut told = GlobalAddresses { cidrs: cidrs.map(|cidr| cidr.parse().unwrap()).into(), ..Default::default() };
        for family in IpFamily::ALL {
            let own =
                |globals: &BTreeSet<Global>| globals.iter().map(|global| global.address(family)).collect::<Vec<_>>();
            told.cluster_egress.extend(own(&self.cluster));
            for (is_selective, groups) in [(true, &self.selected), (false, &self.namespaces)] {
                for (index, group) in groups.iter().enumerate() {
                    // In the order of names, those of namespaces come first.
                    let name = format!("GlobalEgressIP {is_selective}/{index}");
                    let told = told.egress.entry(name).or_insert(EgressGroup { is_selective, ..Default::default() });
                    told.sources.extend(group.pods.iter().map(|host| host.address(family)));
                    told.addresses.extend(own(&group.addresses));
                }
            }
            let headless = self.headless.iter().map(|(global, host)| (global.address(family), host.address(family)));
            told.ingress_hosts.extend(headless);
            told.leaving.extend(self.headless.keys().map(|global| global.address(family)));
            let services = self.services.keys().map(|global| (global.address(family), key(*global)));
            told.ingress_services.extend(services);
            let gateways =
                self.gateways.iter().map(|global| (format!("gw{}{family}", global.0), global.address(family)));
            told.gateways.extend(gateways);
        }
        told
    }

    /// Returns what the API server tells of services.
    pub(crate) fn cluster(&self) -> (BTreeMap<ObjectKey, Service>, BTreeMap<ObjectKey, Vec<Endpoints>>) {
        let services = self.services.iter().map(|(global, service)| (key(*global), service.service()));
        let endpoints = self.services.iter().map(|(global, service)| (key(*global), service.endpoints()));
        (services.collect(), endpoints.collect())
    }

    /// Returns these objects, and of `before` all that had an address; whose pods were chosen before stay with that.
    pub(crate) fn beside(&self, before: &Self) -> Self {
        let groups = |before: &[Group], now: &[Group]| {
            let chosen: BTreeSet<Host> = before.iter().flat_map(|group| group.pods.iter().copied()).collect();
            let now = now.iter().map(|group| Group {
                pods: group.pods.difference(&chosen).copied().collect(),
                addresses: group.addresses.clone(),
            });
            before.iter().cloned().chain(now).collect()
        };
        let mut both = Self {
            cluster: &before.cluster | &self.cluster,
            selected: groups(&before.selected, &self.selected),
            namespaces: groups(&before.namespaces, &self.namespaces),
            headless: before.headless.clone(),
            services: before.services.clone(),
            gateways: self.gateways.clone(),
        };
        both.headless.extend(&self.headless);
        both.services.extend(self.services.clone());
        both
    }
}

fn key(global: Global) -> ObjectKey {
    ObjectKey { namespace: "shop".to_owned(), name: format!("service-{}", global.0) }
}

impl Served {
    fn backends(&self, family: IpFamily, protocol: Protocol, port: u16) -> BTreeSet<Point> {
        let mut backends = BTreeSet::new();
        for slice in self.slices.iter().filter(|_| self.ports.contains(&(protocol, port))) {
            let Some(target) = slice.targets.get(&(protocol, port)) else { continue };
            let serving = slice.endpoints.iter().filter(|(_, is_ready)| **is_ready || self.takes_unready);
            backends.extend(serving.map(|(host, _)| (host.address(family), *target)));
        }
        backends
    }

    fn service(&self) -> Service {
        Service {
            ports: self.ports.iter().map(|&port| named(port, port.1)).collect(),
            publishes_not_ready: self.takes_unready,
            affinity: self.affinity,
            ..Service::default()
        }
    }

    fn endpoints(&self) -> Vec<Endpoints> {
        let slices = self.slices.iter().flat_map(|slice| IpFamily::ALL.map(|family| (slice, family)));
        let endpoints = slices.map(|(slice, family)| Endpoints {
            ports: slice.targets.iter().map(|(port, target)| named(*port, *target)).collect(),
            endpoints: slice
                .endpoints
                .iter()
                .map(|(host, is_ready)| ServiceEndpoint {
                    address: host.address(family),
                    is_ready: *is_ready,
                    pod: None,
                    hostname: None,
                })
                .collect(),
        });
        endpoints.collect()
    }
}

/// Returns a port of a service or of its endpoints; they are tied by the name.
fn named((protocol, service_port): (Protocol, u16), number: u16) -> Port {
    Port { name: format!("{protocol}-{service_port}"), protocol, number }
}

/// Ports that services have, and packets go to.
pub(crate) const PORTS: [u16; 4] = [53, 80, 8080, 65535];

/// Returns objects whose addresses are `first`, `first + 4` and so on, in no order.
pub(crate) fn objects(first: u16) -> impl Strategy<Value = Objects> {
    let numbers: Vec<u16> = (0..120).map(|step| first + 4 * 31 * step).collect();
    let group = || (vec(host(), 0..5), 1..5_usize);
    let parts = (
        Just(numbers).prop_shuffle(),
        1..5_usize,
        vec(group(), 0..4),
        vec(group(), 0..4),
        vec(host(), 0..5),
        vec(served(), 0..5),
        0..3_usize,
    );
    parts.prop_map(|(numbers, cluster, selected, namespaces, headless, services, gateways)| {
        let mut numbers = numbers.into_iter().map(Global);
        let mut take = |count: usize| numbers.by_ref().take(count).collect::<Vec<_>>();
        let mut groups = |groups: Vec<(Vec<Host>, usize)>| {
            let mut chosen = BTreeSet::new();
            let group = |(pods, count): (Vec<Host>, usize)| Group {
                pods: pods.into_iter().filter(|pod| chosen.insert(*pod)).collect(),
                addresses: take(count).into_iter().collect(),
            };
            groups.into_iter().map(group).collect::<Vec<_>>()
        };
        let (selected, namespaces) = (groups(selected), groups(namespaces));
        Objects {
            cluster: take(cluster).into_iter().collect(),
            selected,
            namespaces,
            headless: take(headless.len()).into_iter().zip(headless).collect(),
            services: take(services.len()).into_iter().zip(services).collect(),
            gateways: take(gateways),
        }
    })
}

pub(crate) fn host() -> impl Strategy<Value = Host> {
    select(Host::all())
}

pub(crate) fn pod() -> impl Strategy<Value = Host> {
    (1..=PODS).prop_map(Host::Pod)
}

fn served() -> impl Strategy<Value = Served> {
    let port = (select(Protocol::ALL.to_vec()), select(PORTS[..3].to_vec()));
    let slice = |ports: BTreeSet<(Protocol, u16)>| {
        let targets = vec(prop::option::weighted(0.8, 1_u16..10_000), ports.len());
        (targets, btree_map(host(), any::<bool>(), 0..4)).prop_map(move |(targets, endpoints)| {
            let targets = ports.iter().zip(targets).filter_map(|(port, target)| Some((*port, target?))).collect();
            Slice { targets, endpoints }
        })
    };
    let affinity = prop::option::weighted(0.3, select(vec![60_u32, 10_800]));
    (prop::collection::btree_set(port, 1..4), any::<bool>(), affinity).prop_flat_map(
        move |(ports, takes_unready, affinity)| {
            vec(slice(ports.clone()), 0..3).prop_map(move |slices| Served {
                ports: ports.clone(),
                slices,
                takes_unready,
                affinity,
            })
        },
    )
}
