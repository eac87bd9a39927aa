//! Reads back what is ours: by link name, by routing protocol number, by table name.

use std::collections::BTreeMap;

use culvert_model::{IpFamily, MacAddr};
use culvert_netstate::own::Owner;
use culvert_netstate::{Fdb, Link, Neighbour, State};
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::messages::{self, FoundLink};
use crate::netlink::Netlink;
use crate::nft::Tables;
use crate::{KernelError, sysctl};

/// Takes the message of one kind out of an answer.
macro_rules! only {
    ($message:expr, $kind:ident) => {
        if let RouteNetlinkMessage::$kind(inner) = $message { Some(inner) } else { None }
    };
}

pub(crate) async fn observe(
    netlink: &Netlink,
    owner: &Owner,
    tables: &mut Tables,
    desired: &State,
) -> Result<State, KernelError> {
    let links = links(netlink).await?;
    let own: BTreeMap<u32, String> = links
        .iter()
        .filter(|link| owner.links.contains(&link.name))
        .map(|link| (link.index, link.name.clone()))
        .collect();

    let mut state = State::default();
    for link in links.iter().filter(|link| own.contains_key(&link.index)) {
        let mtu = if link.up { link.mtu } else { 0 };
        let mac = link.mac.unwrap_or(MacAddr::ZERO);
        state.links.insert(link.name.clone(), Link { kind: link.kind.clone(), mtu, mac });
    }
    if !own.is_empty() {
        read_on_links(netlink, &own, &mut state).await?;
    }
    for family in IpFamily::ALL {
        read_routes(netlink, owner, family, &links, &mut state).await?;
        read_rules(netlink, owner, family, &mut state).await?;
    }
    for path in desired.sysctls.keys() {
        // A sysctl of a link that is away is not there; setting it will say so.
        if let Ok(value) = sysctl::read(path) {
            state.sysctls.insert(path.clone(), value);
        }
    }
    for name in &owner.nft_tables {
        if let Some(table) = tables.observe(name).await? {
            state.nft.insert(name.clone(), table);
        }
    }
    Ok(state)
}

/// Lists all links.
pub(crate) async fn links(netlink: &Netlink) -> Result<Vec<FoundLink>, KernelError> {
    let found = list(netlink, "links", RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
    Ok(found.into_iter().filter_map(|message| messages::read_link(&only!(message, NewLink)?)).collect())
}

/// Lists all addresses with the index of their link, except those that IPv6 makes by itself.
pub(crate) async fn addresses(netlink: &Netlink) -> Result<Vec<(u32, IpNet)>, KernelError> {
    let found = list(netlink, "addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default())).await?;
    let read = |message: AddressMessage| Some((message.header.index, messages::read_address(&message)?));
    Ok(found.into_iter().filter_map(|message| read(only!(message, NewAddress)?)).collect())
}

async fn read_on_links(netlink: &Netlink, own: &BTreeMap<u32, String>, state: &mut State) -> Result<(), KernelError> {
    for (index, address) in addresses(netlink).await? {
        if let Some(link) = own.get(&index) {
            state.addresses.insert((link.clone(), address));
        }
    }
    for family in IpFamily::ALL {
        for message in neighbours(netlink, "neighbours", messages::family(family)).await? {
            let entry = own.get(&message.header.ifindex).zip(messages::read_neighbour(&message));
            if let Some((link, (address, mac))) = entry {
                state.neighbours.insert(Neighbour { link: link.clone(), address }, mac);
            }
        }
    }
    for message in neighbours(netlink, "forwarding entries", AddressFamily::Bridge).await? {
        let entry = own.get(&message.header.ifindex).zip(messages::read_fdb(&message));
        if let Some((link, (remote, mac))) = entry {
            state.fdb.insert(Fdb { link: link.clone(), mac, remote });
        }
    }
    Ok(())
}

async fn neighbours(
    netlink: &Netlink,
    what: &'static str,
    family: AddressFamily,
) -> Result<Vec<NeighbourMessage>, KernelError> {
    let mut request = NeighbourMessage::default();
    request.header.family = family;
    let found = list(netlink, what, RouteNetlinkMessage::GetNeighbour(request)).await?;
    Ok(found.into_iter().filter_map(|message| only!(message, NewNeighbour)).collect())
}

async fn read_routes(
    netlink: &Netlink,
    owner: &Owner,
    family: IpFamily,
    links: &[FoundLink],
    state: &mut State,
) -> Result<(), KernelError> {
    let name = |index| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    let mut request = RouteMessage::default();
    request.header.address_family = messages::family(family);
    request.header.protocol = RouteProtocol::from(owner.protocol);
    for message in list(netlink, "routes", RouteNetlinkMessage::GetRoute(request)).await? {
        let Some(message) = only!(message, NewRoute) else { continue };
        // The kernel filters already; what is not ours must not slip in by a kernel that does not.
        if u8::from(message.header.protocol) == owner.protocol
            && let Some(route) = messages::read_route(&message)
        {
            state.routes.insert(route.key.clone(), route.target(name));
        }
    }
    Ok(())
}

async fn read_rules(netlink: &Netlink, owner: &Owner, family: IpFamily, state: &mut State) -> Result<(), KernelError> {
    let mut request = RuleMessage::default();
    request.header.family = messages::family(family);
    let found = list(netlink, "rules", RouteNetlinkMessage::GetRule(request)).await?;
    let rules = found.into_iter().filter_map(|message| only!(message, NewRule));
    state.rules.extend(rules.filter_map(|message| messages::read_rule(&message, owner.protocol)));
    Ok(())
}

async fn list(
    netlink: &Netlink,
    what: &'static str,
    request: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
    netlink.dump(request).await.map_err(|source| KernelError::List { what, source })
}
