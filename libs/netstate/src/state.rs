//! The part of a network namespace's state that Culvert sets: ordered maps of plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::{IpFamily, MacAddr};
use ipnet::IpNet;

use crate::nft;

/// All that one component wants in the kernel, or all of its own that was found there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Links by name.
    pub links: BTreeMap<String, Link>,
    /// Addresses on own links, by link name.
    pub addresses: BTreeSet<(String, IpNet)>,
    /// Permanent neighbour entries on own links.
    pub neighbours: BTreeMap<Neighbour, MacAddr>,
    /// Permanent forwarding entries of own VXLAN links.
    pub fdb: BTreeSet<Fdb>,
    pub routes: BTreeMap<RouteKey, RouteTarget>,
    pub rules: BTreeSet<Rule>,
    /// Values by path below `/proc/sys`, such as `net/ipv4/conf/eth0/rp_filter`; never put back on uninstall.
    pub sysctls: BTreeMap<String, String>,
    /// nftables tables of family `inet`, by name.
    pub nft: BTreeMap<String, nft::Table>,
}

/// A link that is made and removed with the state. It is always set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub kind: LinkKind,
    /// Bytes; changed in place.
    pub mtu: u16,
    /// Changed by making the link anew.
    pub mac: MacAddr,
}

/// What kind of link; a change makes the link anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN device without learning and without a multicast group; its forwarding table is [`State::fdb`].
    ///
    /// UDP checksums on IPv4 are sent, zero checksums on IPv6 are not accepted.
    Vxlan {
        vni: u32,
        /// UDP port, both ours and the peers'.
        port: u16,
        /// Outer source address.
        local: IpAddr,
    },
    /// Found under one of our names, but of another kind or with other settings; never desired.
    Foreign,
}

/// Key of a neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub link: String,
    pub address: IpAddr,
}

/// A forwarding entry: frames to `mac` leave for the node `remote`. [`MacAddr::ZERO`] stands for all other frames and
/// may have several entries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fdb {
    pub link: String,
    pub mac: MacAddr,
    pub remote: IpAddr,
}

/// Number of a routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableId(pub u32);

/// What identifies a route for the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    pub table: TableId,
    pub destination: IpNet,
    pub metric: u32,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteTarget {
    Via(Route),
    /// Packets are for this host itself, although no link has such an address.
    Local,
    /// Packets are answered with ICMP "unreachable", never sent elsewhere.
    Unreachable,
}

/// A route that carries packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub link: String,
    /// The next hop, taken as directly attached to the link (`onlink`).
    pub next_hop: Option<IpAddr>,
    /// The source that packets of this host get.
    pub preferred_source: Option<IpAddr>,
    /// The route's own MTU, in bytes; the link's otherwise.
    pub mtu: Option<u16>,
}

/// A routing rule. Several of one priority may differ in family and selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub priority: u32,
    pub family: IpFamily,
    pub selector: RuleSelector,
    pub table: TableId,
}

/// Which packets a rule is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleSelector {
    All,
    /// Packets that came in on the link of this name, which need not be there.
    From(String),
    /// Packets with this firewall mark, all 32 bits compared.
    Mark(u32),
}
