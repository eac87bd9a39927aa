//! What the node is like: its interfaces, and where its routes lead.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use culvert_model::{IpFamily, MacAddr};
use ipnet::IpNet;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};

use crate::messages::FoundLink;
use crate::netlink::Netlink;
use crate::{KernelError, messages, observe};

// errno(3); how a look-up says that no route leads there: no route, `unreachable`, `prohibit`, `blackhole`.
const NO_ROUTE: [i32; 4] = [101, 113, 13, 22];

/// The interfaces of this network namespace, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub interfaces: BTreeMap<String, Interface>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    /// Bytes; 65535 for the loopback's 65536.
    pub mtu: u16,
    pub up: bool,
    /// Addresses with the prefix length of their network, without IPv6 link-local ones.
    pub addresses: Vec<IpNet>,
    pub mac: Option<MacAddr>,
}

/// How the kernel would send a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    pub link: String,
    /// The source address that the packet would get.
    pub source: Option<IpAddr>,
    pub next_hop: Option<IpAddr>,
    /// Bytes: the path MTU learned from routers, otherwise the route's, otherwise the link's.
    pub mtu: u16,
}

/// Reads the interfaces of the calling thread's network namespace.
///
/// # Errors
///
/// What the kernel refused to list.
pub async fn node_facts() -> Result<NodeFacts, KernelError> {
    let netlink = Netlink::open()?;
    let mut addresses: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
    for (index, address) in observe::addresses(&netlink).await? {
        addresses.entry(index).or_default().push(address);
    }
    let links = observe::links(&netlink).await?.into_iter();
    let interfaces = links.map(|link| {
        let addresses = addresses.remove(&link.index).unwrap_or_default();
        (link.name, Interface { index: link.index, mtu: link.mtu, up: link.up, addresses, mac: link.mac })
    });
    Ok(NodeFacts { interfaces: interfaces.collect() })
}

/// Looks up routes in the network namespace of the thread that opened it; for many look-ups in a row, since links are
/// listed once.
pub struct RouteLookup {
    netlink: Netlink,
    links: Vec<FoundLink>,
}

impl RouteLookup {
    /// Lists the links.
    ///
    /// # Errors
    ///
    /// What the kernel refused to list.
    pub async fn open() -> Result<Self, KernelError> {
        let netlink = Netlink::open()?;
        let links = observe::links(&netlink).await?;
        Ok(Self { netlink, links })
    }

    /// Asks the kernel how a packet to `destination`, with the firewall mark `mark`, would be sent; `None` if not at all.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub async fn route_to(&self, destination: IpAddr, mark: Option<u32>) -> Result<Option<RouteInfo>, KernelError> {
        let mut request = RouteMessage::default();
        request.header.address_family = messages::family(IpFamily::of(destination));
        request.header.destination_prefix_length = IpNet::from(destination).prefix_len();
        request.attributes.push(RouteAttribute::Destination(destination.into()));
        request.attributes.extend(mark.map(RouteAttribute::Mark));

        let found = match self.netlink.ask(RouteNetlinkMessage::GetRoute(request)).await {
            Ok(RouteNetlinkMessage::NewRoute(found)) => messages::read_route(&found),
            Ok(_) => None,
            Err(error) if leads_nowhere(&error) => None,
            Err(source) => return Err(KernelError::List { what: "a route", source }),
        };
        let Some((found, index)) = found.and_then(|found| found.index.map(|index| (found, index))) else {
            return Ok(None);
        };
        Ok(self.links.iter().find(|link| link.index == index).map(|link| RouteInfo {
            mtu: found.mtu.unwrap_or(link.mtu),
            link: link.name.clone(),
            source: found.source,
            next_hop: found.next_hop,
        }))
    }
}

/// Looks up one route, as [`RouteLookup::route_to`] does.
///
/// # Errors
///
/// What the kernel refused.
pub async fn route_to(destination: IpAddr, mark: Option<u32>) -> Result<Option<RouteInfo>, KernelError> {
    RouteLookup::open().await?.route_to(destination, mark).await
}

fn leads_nowhere(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| NO_ROUTE.contains(&code))
}
