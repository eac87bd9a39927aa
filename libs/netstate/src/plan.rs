//! The steps from an observed state to a desired one, in the order that leaves no gap.
//!
//! What protects comes first and goes last: filters before links, `unreachable` routes before routes that carry
//! packets, routes before the rules that lead to them, and the other way round on removal. New things are made before
//! old ones are removed, except where the two would collide: a link of another kind or MAC, one address with another
//! prefix length, one MAC behind another node.

use std::collections::BTreeSet;
use std::fmt;

use culvert_model::{IpFamily, MacAddr};
use ipnet::IpNet;

use crate::{Fdb, Link, Neighbour, Route, RouteKey, RouteTarget, Rule, RuleSelector, State, nft};

/// Steps in the order in which they are to be applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
}

/// One change to the kernel. Its [`Display`](fmt::Display) form is what logs and reports show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes an nftables table or replaces its content in one transaction.
    PutTable {
        name: String,
        table: nft::Table,
    },
    DeleteTable {
        name: String,
    },
    /// Makes a link and sets it up.
    AddLink {
        name: String,
        link: Link,
    },
    /// Changes the MTU in place, and sets the link up.
    SetMtu {
        link: String,
        mtu: u16,
    },
    /// Deletes a link, and with it all that stands on it.
    DeleteLink {
        name: String,
    },
    SetSysctl {
        path: String,
        value: String,
    },
    AddAddress {
        link: String,
        address: IpNet,
    },
    DeleteAddress {
        link: String,
        address: IpNet,
    },
    /// Makes or replaces a permanent neighbour entry.
    SetNeighbour {
        neighbour: Neighbour,
        mac: MacAddr,
    },
    DeleteNeighbour(Neighbour),
    AddFdb(Fdb),
    DeleteFdb(Fdb),
    AddRoute {
        key: RouteKey,
        target: RouteTarget,
    },
    /// Changes the target of a route without a moment in which there is none.
    ReplaceRoute {
        key: RouteKey,
        target: RouteTarget,
    },
    DeleteRoute(RouteKey),
    AddRule(Rule),
    DeleteRule(Rule),
}

impl Plan {
    /// Tells whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// Returns the steps that turn `observed` into `desired`; none for what is equal.
pub fn diff(observed: &State, desired: &State) -> Plan {
    let remade: BTreeSet<&str> = desired
        .links
        .iter()
        .filter(|(name, link)| observed.links.get(*name).is_some_and(|found| !same_but_mtu(found, link)))
        .map(|(name, _)| name.as_str())
        .collect();
    let dropped: BTreeSet<&str> =
        observed.links.keys().filter(|name| !desired.links.contains_key(*name)).map(String::as_str).collect();
    let kept = without_links(observed, &remade);

    let mut steps = Vec::new();
    put_tables(observed, desired, &mut steps);
    put_routes(&kept, desired, Carries::Nothing, &mut steps);
    steps.extend(remade.iter().map(|name| Step::DeleteLink { name: (*name).to_owned() }));
    put_links(&kept, desired, &mut steps);
    put_sysctls(&kept, desired, &mut steps);
    put_addresses(&kept, desired, &mut steps);
    put_fdb(&kept, desired, &dropped, &mut steps);
    put_neighbours(&kept, desired, &mut steps);
    put_routes(&kept, desired, Carries::Packets, &mut steps);
    steps.extend(desired.rules.difference(&observed.rules).cloned().map(Step::AddRule));

    steps.extend(observed.rules.difference(&desired.rules).cloned().map(Step::DeleteRule));
    delete_routes(&kept, desired, Carries::Packets, &mut steps);
    delete_routes(&kept, desired, Carries::Nothing, &mut steps);
    delete_neighbours(&kept, desired, &dropped, &mut steps);
    delete_addresses(&kept, desired, &dropped, &mut steps);
    steps.extend(dropped.iter().map(|name| Step::DeleteLink { name: (*name).to_owned() }));
    let stale_tables = observed.nft.keys().filter(|name| !desired.nft.contains_key(*name));
    steps.extend(stale_tables.map(|name| Step::DeleteTable { name: name.clone() }));
    Plan { steps }
}

/// Which routes a pass is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carries {
    Packets,
    Nothing,
}

impl Carries {
    fn of(target: &RouteTarget) -> Self {
        match target {
            RouteTarget::Via(_) | RouteTarget::Local => Self::Packets,
            RouteTarget::Unreachable => Self::Nothing,
        }
    }
}

fn same_but_mtu(a: &Link, b: &Link) -> bool {
    a.kind == b.kind && a.mac == b.mac
}

/// Returns what is left of `state` once the links `gone` are deleted: the kernel drops what stands on them.
fn without_links(state: &State, gone: &BTreeSet<&str>) -> State {
    let mut left = state.clone();
    let stays = |link: &str| !gone.contains(link);
    left.links.retain(|name, _| stays(name));
    left.addresses.retain(|(link, _)| stays(link));
    left.neighbours.retain(|neighbour, _| stays(&neighbour.link));
    left.fdb.retain(|entry| stays(&entry.link));
    left.routes.retain(|_, target| match target {
        RouteTarget::Via(route) => stays(&route.link),
        RouteTarget::Local | RouteTarget::Unreachable => true,
    });
    // A sysctl of a link, such as `net/ipv4/conf/<link>/rp_filter`, starts anew with the link.
    left.sysctls.retain(|path, _| path.split('/').all(&stays));
    left
}

fn put_tables(observed: &State, desired: &State, steps: &mut Vec<Step>) {
    for (name, table) in &desired.nft {
        if observed.nft.get(name) != Some(table) {
            steps.push(Step::PutTable { name: name.clone(), table: table.clone() });
        }
    }
}

fn put_links(kept: &State, desired: &State, steps: &mut Vec<Step>) {
    for (name, link) in &desired.links {
        match kept.links.get(name) {
            None => steps.push(Step::AddLink { name: name.clone(), link: link.clone() }),
            Some(found) if found.mtu != link.mtu => {
                steps.push(Step::SetMtu { link: name.clone(), mtu: link.mtu });
            }
            Some(_) => {}
        }
    }
}

fn put_sysctls(kept: &State, desired: &State, steps: &mut Vec<Step>) {
    for (path, value) in &desired.sysctls {
        if kept.sysctls.get(path) != Some(value) {
            steps.push(Step::SetSysctl { path: path.clone(), value: value.clone() });
        }
    }
}

fn put_addresses(kept: &State, desired: &State, steps: &mut Vec<Step>) {
    for (link, address) in desired.addresses.difference(&kept.addresses) {
        let colliding = kept.addresses.iter().filter(|found| collides(found, link, address));
        steps.extend(colliding.map(|(link, found)| Step::DeleteAddress { link: link.clone(), address: *found }));
        steps.push(Step::AddAddress { link: link.clone(), address: *address });
    }
}

fn delete_addresses(kept: &State, desired: &State, dropped: &BTreeSet<&str>, steps: &mut Vec<Step>) {
    for (link, address) in kept.addresses.difference(&desired.addresses) {
        let gone_before = desired.addresses.iter().any(|new| collides(new, link, address));
        if !dropped.contains(link.as_str()) && !gone_before {
            steps.push(Step::DeleteAddress { link: link.clone(), address: *address });
        }
    }
}

/// Tells whether `entry` is `address` on the same link with another prefix length.
fn collides(entry: &(String, IpNet), link: &str, address: &IpNet) -> bool {
    entry.0 == link && entry.1.addr() == address.addr() && entry.1 != *address
}

fn put_fdb(kept: &State, desired: &State, dropped: &BTreeSet<&str>, steps: &mut Vec<Step>) {
    // The kernel takes one node for a MAC, so the old entry has to go first.
    for entry in kept.fdb.difference(&desired.fdb) {
        if !dropped.contains(entry.link.as_str()) {
            steps.push(Step::DeleteFdb(entry.clone()));
        }
    }
    steps.extend(desired.fdb.difference(&kept.fdb).cloned().map(Step::AddFdb));
}

fn put_neighbours(kept: &State, desired: &State, steps: &mut Vec<Step>) {
    for (neighbour, mac) in &desired.neighbours {
        if kept.neighbours.get(neighbour) != Some(mac) {
            steps.push(Step::SetNeighbour { neighbour: neighbour.clone(), mac: *mac });
        }
    }
}

fn delete_neighbours(kept: &State, desired: &State, dropped: &BTreeSet<&str>, steps: &mut Vec<Step>) {
    for neighbour in kept.neighbours.keys() {
        if !desired.neighbours.contains_key(neighbour) && !dropped.contains(neighbour.link.as_str()) {
            steps.push(Step::DeleteNeighbour(neighbour.clone()));
        }
    }
}

fn put_routes(kept: &State, desired: &State, carries: Carries, steps: &mut Vec<Step>) {
    for (key, target) in desired.routes.iter().filter(|(_, target)| Carries::of(target) == carries) {
        match kept.routes.get(key) {
            None => steps.push(Step::AddRoute { key: key.clone(), target: target.clone() }),
            Some(found) if found != target => {
                steps.push(Step::ReplaceRoute { key: key.clone(), target: target.clone() });
            }
            Some(_) => {}
        }
    }
}

fn delete_routes(kept: &State, desired: &State, carries: Carries, steps: &mut Vec<Step>) {
    for (key, target) in &kept.routes {
        if !desired.routes.contains_key(key) && Carries::of(target) == carries {
            steps.push(Step::DeleteRoute(key.clone()));
        }
    }
}

impl fmt::Display for Plan {
    /// Writes one step a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutTable { name, .. } => write!(f, "put nft table inet {name}"),
            Self::DeleteTable { name } => write!(f, "delete nft table inet {name}"),
            Self::AddLink { name, link } => write!(f, "add link {name} mac {} mtu {}", link.mac, link.mtu),
            Self::SetMtu { link, mtu } => write!(f, "set link {link} up with mtu {mtu}"),
            Self::DeleteLink { name } => write!(f, "delete link {name}"),
            Self::SetSysctl { path, value } => write!(f, "set sysctl {path} to {value}"),
            Self::AddAddress { link, address } => write!(f, "add address {address} to {link}"),
            Self::DeleteAddress { link, address } => write!(f, "delete address {address} from {link}"),
            Self::SetNeighbour { neighbour, mac } => write!(f, "set {neighbour} to {mac}"),
            Self::DeleteNeighbour(neighbour) => write!(f, "delete {neighbour}"),
            Self::AddFdb(entry) => write!(f, "add {entry}"),
            Self::DeleteFdb(entry) => write!(f, "delete {entry}"),
            Self::AddRoute { key, target } => write!(f, "add {key} {target}"),
            Self::ReplaceRoute { key, target } => write!(f, "replace {key} {target}"),
            Self::DeleteRoute(key) => write!(f, "delete {key}"),
            Self::AddRule(rule) => write!(f, "add {rule}"),
            Self::DeleteRule(rule) => write!(f, "delete {rule}"),
        }
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "neighbour {} on {}", self.address, self.link)
    }
}

impl fmt::Display for Fdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "forwarding of {} to {} on {}", self.mac, self.remote, self.link)
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {} metric {} in table {}", self.destination, self.metric, self.table.0)
    }
}

impl fmt::Display for RouteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Via(route) => route.fmt(f),
            Self::Local => f.write_str("local"),
            Self::Unreachable => f.write_str("unreachable"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "on {}", self.link)?;
        if let Some(next_hop) = self.next_hop {
            write!(f, " via {next_hop}")?;
        }
        if let Some(source) = self.preferred_source {
            write!(f, " from {source}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        };
        write!(f, "{family} rule {} to table {}", self.priority, self.table.0)?;
        match &self.selector {
            RuleSelector::All => Ok(()),
            RuleSelector::From(link) => write!(f, " for what comes from {link}"),
            RuleSelector::Mark(mark) => write!(f, " for mark {mark:#010x}"),
        }
    }
}
