//! Netlink messages from values and back; the numbers are those of rtnetlink(7) and linux/rtnetlink.h.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "attributes grow with the kernel; those not asked for are passed over"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_model::{IpFamily, MacAddr};
use culvert_netstate::{Fdb, Link, LinkKind, Neighbour, Route, RouteKey, RouteTarget, Rule, RuleSelector, TableId};
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

/// `NUD_PERMANENT`.
const PERMANENT: u16 = 0x80;
/// `NUD_NOARP`.
const NO_ARP: u16 = 0x40;

pub(crate) fn family(family: IpFamily) -> AddressFamily {
    match family {
        IpFamily::V4 => AddressFamily::Inet,
        IpFamily::V6 => AddressFamily::Inet6,
    }
}

/// Builds the message that makes a link and sets it up; `None` for a kind that is not made by us.
pub(crate) fn new_link(name: &str, link: &Link) -> Option<LinkMessage> {
    let LinkKind::Vxlan { vni, port, local } = link.kind else { return None };
    let mut message = up(LinkMessage::default());
    let local = match local {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    };
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(u32::from(link.mtu)),
        LinkAttribute::Address(link.mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::Id(vni),
                InfoVxlan::Port(port),
                local,
                InfoVxlan::Learning(false),
                InfoVxlan::UDPCsum(true),
                InfoVxlan::UDPZeroCsumTX(false),
                InfoVxlan::UDPZeroCsumRX(false),
            ])),
        ]),
    ];
    Some(message)
}

/// Builds the message that sets a link up with `mtu`.
pub(crate) fn set_mtu(index: u32, mtu: u16) -> LinkMessage {
    let mut message = up(link_index(index));
    message.attributes.push(LinkAttribute::Mtu(u32::from(mtu)));
    message
}

pub(crate) fn link_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

pub(crate) fn link_name(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

/// What a listed link is, as far as any of our questions go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundLink {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mtu: u16,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) kind: LinkKind,
}

/// Reads a listed link; `None` if it has no name.
pub(crate) fn read_link(message: &LinkMessage) -> Option<FoundLink> {
    let mut found = FoundLink {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: None,
        kind: LinkKind::Foreign,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => found.mtu = saturated(*mtu),
            LinkAttribute::Address(bytes) => found.mac = mac(bytes),
            LinkAttribute::LinkInfo(info) => found.kind = read_kind(info),
            _ => {}
        }
    }
    (!found.name.is_empty()).then_some(found)
}

fn read_kind(info: &[LinkInfo]) -> LinkKind {
    let data = info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    });
    data.and_then(|data| read_vxlan(data)).unwrap_or(LinkKind::Foreign)
}

/// Returns `None` for a device with settings that ours never have.
fn read_vxlan(data: &[InfoVxlan]) -> Option<LinkKind> {
    let (mut vni, mut port, mut local) = (None, None, None);
    for info in data {
        match info {
            InfoVxlan::Id(id) => vni = Some(*id),
            InfoVxlan::Port(number) => port = Some(*number),
            InfoVxlan::Local(address) => local = Some(IpAddr::V4(*address)),
            InfoVxlan::Local6(address) => local = Some(IpAddr::V6(*address)),
            InfoVxlan::Learning(true)
            | InfoVxlan::CollectMetadata(true)
            | InfoVxlan::UDPZeroCsumRX(true)
            | InfoVxlan::UDPCsum(false)
            | InfoVxlan::Group(_)
            | InfoVxlan::Group6(_) => return None,
            _ => {}
        }
    }
    Some(LinkKind::Vxlan { vni: vni?, port: port?, local: local? })
}

pub(crate) fn address(index: u32, net: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(IpFamily::of_net(net));
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    if net.addr().is_ipv6() {
        // The address is ours alone; a check for duplicates would make it useless for a second.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    message
}

/// Reads a listed address with its prefix length; `None` for those that IPv6 makes by itself.
pub(crate) fn read_address(message: &AddressMessage) -> Option<IpNet> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(found) => local = Some(*found),
            AddressAttribute::Address(found) => address = Some(*found),
            _ => {}
        }
    }
    let address = local.or(address)?;
    let by_itself = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if by_itself { None } else { IpNet::new(address, message.header.prefix_len).ok() }
}

pub(crate) fn neighbour(index: u32, neighbour: &Neighbour, mac: Option<MacAddr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(IpFamily::of(neighbour.address));
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(neighbour.address.into()));
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    message
}

/// Reads a listed neighbour entry if it is permanent.
pub(crate) fn read_neighbour(message: &NeighbourMessage) -> Option<(IpAddr, MacAddr)> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    destination_and_mac(message)
}

pub(crate) fn fdb(index: u32, entry: &Fdb) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Other(PERMANENT | NO_ARP);
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()),
        NeighbourAttribute::Destination(entry.remote.into()),
    ];
    message
}

/// Reads a listed forwarding entry if it is permanent and leads to a node.
pub(crate) fn read_fdb(message: &NeighbourMessage) -> Option<(IpAddr, MacAddr)> {
    if u16::from(message.header.state) & PERMANENT == 0 {
        return None;
    }
    destination_and_mac(message)
}

fn destination_and_mac(message: &NeighbourMessage) -> Option<(IpAddr, MacAddr)> {
    let (mut destination, mut link_layer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => destination = Some((*address).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => destination = Some((*address).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => destination = ip_address(bytes),
            NeighbourAttribute::LinkLayerAddress(bytes) => link_layer = mac(bytes),
            _ => {}
        }
    }
    Some((destination?, link_layer?))
}

/// Builds the message that names a route; [`new_route`] adds where it leads.
pub(crate) fn route_key(key: &RouteKey, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(IpFamily::of_net(&key.destination));
    message.header.destination_prefix_length = key.destination.prefix_len();
    message.header.protocol = RouteProtocol::from(protocol);
    // For a deletion: of whatever scope.
    message.header.scope = RouteScope::NoWhere;
    message.attributes = vec![
        RouteAttribute::Table(key.table.0),
        RouteAttribute::Destination(key.destination.network().into()),
        RouteAttribute::Priority(key.metric),
    ];
    message
}

/// Builds the message that makes a route; `index` is that of the link of `route`.
pub(crate) fn new_route(key: &RouteKey, route: &Route, index: u32, protocol: u8) -> RouteMessage {
    let mut message = route_key(key, protocol);
    message.header.kind = RouteType::Unicast;
    message.header.scope = match (key.destination, route.next_hop) {
        (IpNet::V4(_), None) => RouteScope::Link,
        (IpNet::V4(_), Some(_)) | (IpNet::V6(_), _) => RouteScope::Universe,
    };
    message.attributes.push(RouteAttribute::Oif(index));
    if let Some(next_hop) = route.next_hop {
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(next_hop.into()));
    }
    if let Some(source) = route.preferred_source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(mtu) = route.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(u32::from(mtu))]));
    }
    message
}

/// Builds the message that makes an `unreachable` route.
pub(crate) fn new_unreachable(key: &RouteKey, protocol: u8) -> RouteMessage {
    let mut message = route_key(key, protocol);
    message.header.kind = RouteType::Unreachable;
    message.header.scope = RouteScope::Universe;
    message
}

/// Builds the message that makes a `local` route; `index` is that of the loopback.
pub(crate) fn new_local(key: &RouteKey, index: u32, protocol: u8) -> RouteMessage {
    let mut message = route_key(key, protocol);
    message.header.kind = RouteType::Local;
    message.header.scope = match key.destination {
        IpNet::V4(_) => RouteScope::Host,
        IpNet::V6(_) => RouteScope::Universe,
    };
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

/// A listed route; the link of the target is an interface index.
pub(crate) struct FoundRoute {
    pub(crate) key: RouteKey,
    pub(crate) kind: RouteType,
    /// `None`: carries no packets.
    pub(crate) index: Option<u32>,
    pub(crate) next_hop: Option<IpAddr>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) mtu: Option<u16>,
}

impl FoundRoute {
    /// Returns where the route leads, with links named by `name`.
    pub(crate) fn target(&self, name: impl Fn(u32) -> Option<String>) -> RouteTarget {
        match self.kind {
            RouteType::Unreachable => return RouteTarget::Unreachable,
            RouteType::Local => return RouteTarget::Local,
            _ => {}
        }
        // A route that nobody ever desires (several next hops, `blackhole`) has a link without a name, so it differs.
        RouteTarget::Via(Route {
            link: self.index.and_then(name).unwrap_or_default(),
            next_hop: self.next_hop,
            preferred_source: self.source,
            mtu: self.mtu,
        })
    }
}

/// Reads a listed route, or the answer to a look-up.
pub(crate) fn read_route(message: &RouteMessage) -> Option<FoundRoute> {
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut table, mut metric) = (u32::from(message.header.table), 0);
    let (mut index, mut next_hop, mut source, mut mtu) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Destination(found) => destination = route_address(found)?,
            RouteAttribute::Oif(number) => index = Some(*number),
            RouteAttribute::Gateway(found) => next_hop = route_address(found),
            RouteAttribute::PrefSource(found) => source = route_address(found),
            RouteAttribute::Metrics(metrics) => mtu = metrics.iter().find_map(route_mtu),
            _ => {}
        }
    }
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    let key = RouteKey { table: TableId(table), destination, metric };
    let carries = matches!(message.header.kind, RouteType::Unicast | RouteType::Local);
    Some(FoundRoute { key, kind: message.header.kind, index: index.filter(|_| carries), next_hop, source, mtu })
}

fn route_mtu(metric: &RouteMetric) -> Option<u16> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(saturated(*mtu)),
        _ => None,
    }
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

pub(crate) fn rule(rule: &Rule, protocol: u8) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.family);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table.0),
        RuleAttribute::Protocol(RouteProtocol::from(protocol)),
    ];
    match &rule.selector {
        RuleSelector::All => {}
        RuleSelector::From(link) => message.attributes.push(RuleAttribute::Iifname(link.clone())),
        RuleSelector::Mark(mark) => {
            message.attributes.extend([RuleAttribute::FwMark(*mark), RuleAttribute::FwMask(u32::MAX)]);
        }
    }
    message
}

/// Reads a listed rule if it is of `protocol` and of a form that we make.
pub(crate) fn read_rule(message: &RuleMessage, protocol: u8) -> Option<Rule> {
    let family = match message.header.family {
        AddressFamily::Inet => IpFamily::V4,
        AddressFamily::Inet6 => IpFamily::V6,
        _ => return None,
    };
    let (mut priority, mut table, mut mark, mut mask, mut from, mut made_by) =
        (0, u32::from(message.header.table), 0, None, None, RouteProtocol::Unspec);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::FwMark(number) => mark = *number,
            RuleAttribute::FwMask(number) => mask = Some(*number),
            RuleAttribute::Iifname(link) => from = Some(link.clone()),
            RuleAttribute::Protocol(number) => made_by = *number,
            _ => {}
        }
    }
    let selector = match (mask, from) {
        (None, None) => RuleSelector::All,
        (None, Some(link)) => RuleSelector::From(link),
        (Some(u32::MAX), None) => RuleSelector::Mark(mark),
        (Some(_), _) => return None,
    };
    let ours = u8::from(made_by) == protocol && message.header.action == RuleAction::ToTable;
    ours.then_some(Rule { priority, family, selector, table: TableId(table) })
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The kernel counts MTUs in 32 bits; beyond 65535 (the loopback's) nothing that we send goes.
fn saturated(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}
