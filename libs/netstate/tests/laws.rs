//! The laws of `diff`, over all states of a small universe.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::{IpFamily, MacAddr};
use culvert_netstate::fake::FakeKernel;
use culvert_netstate::own::{self, Owner};
use culvert_netstate::{
    Fdb, Link, LinkKind, Neighbour, Route, RouteKey, RouteTarget, Rule, RuleSelector, State, TableId, diff, nft,
};
use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

const OWN: [&str; 2] = ["own-a", "own-b"];
const OTHERS: [&str; 2] = ["eth0", "culvert-wg"];
const DESTINATIONS: [&str; 4] = ["10.2.0.0/16", "10.2.0.0/17", "fd00:2::/48", "100.2.0.0/16"];
const HOSTS: [&str; 3] = ["192.168.1.2", "192.168.1.3", "fd00::4"];
const ADDRESSES: [&str; 4] = ["10.9.0.1/24", "10.9.0.1/32", "10.9.0.2/32", "fd00:9::1/128"];
const TABLE: TableId = TableId(7201);

fn owner() -> Owner {
    Owner {
        protocol: 201,
        links: OWN.iter().map(|&name| name.to_owned()).collect(),
        nft_tables: BTreeSet::from(["ours".to_owned(), "ours_too".to_owned()]),
    }
}

fn host() -> impl Strategy<Value = IpAddr> {
    select(HOSTS.to_vec()).prop_map(|text| text.parse().unwrap())
}

fn mac() -> impl Strategy<Value = MacAddr> {
    (1u8..4).prop_map(|last| MacAddr([2, 0, 0, 0, 0, last]))
}

fn link() -> impl Strategy<Value = Link> {
    (select(vec![100u32, 1000]), host(), 1400u16..1402, mac()).prop_map(|(vni, local, mtu, mac)| Link {
        kind: LinkKind::Vxlan { vni, port: 4800, local },
        mtu,
        mac,
    })
}

fn own_link() -> impl Strategy<Value = String> {
    select(OWN.to_vec()).prop_map(str::to_owned)
}

fn any_link() -> impl Strategy<Value = String> {
    select([OWN, OTHERS].concat()).prop_map(str::to_owned)
}

fn table() -> impl Strategy<Value = nft::Table> {
    btree_set(select(vec!["a".to_owned(), "b".to_owned()]), 0..3)
        .prop_map(|counters| nft::Table { counters, ..nft::Table::default() })
}

fn route() -> impl Strategy<Value = Route> {
    (any_link(), proptest::option::of(host()), proptest::option::of(1300u16..1302))
        .prop_map(|(link, next_hop, mtu)| Route { link, next_hop, preferred_source: None, mtu })
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        140u32..142,
        select(IpFamily::ALL.to_vec()),
        select(vec![RuleSelector::All, RuleSelector::Mark(1), RuleSelector::From("own-a".to_owned())]),
    )
        .prop_map(|(priority, family, selector)| Rule { priority, family, selector, table: TABLE })
}

/// Any state that a component may want: each thing stands on a link that is there, one address of a kind on a link,
/// one node behind a MAC, and an `unreachable` route beside each that carries packets.
fn state() -> impl Strategy<Value = State> {
    (
        btree_map(own_link(), link(), 0..3),
        subsequence(ADDRESSES.to_vec(), 0..4),
        btree_map((own_link(), host()), mac(), 0..4),
        btree_map((own_link(), mac()), host(), 0..4),
        btree_set((own_link(), host()), 0..3),
        btree_map(select(DESTINATIONS.to_vec()), proptest::option::of(route()), 0..5),
        btree_set(rule(), 0..4),
        btree_map(select(vec!["ours".to_owned(), "ours_too".to_owned()]), table(), 0..3),
        btree_map(
            select(vec!["net/x".to_owned(), "net/ipv4/conf/own-a/rp_filter".to_owned()]),
            select(vec!["0".to_owned(), "2".to_owned()]),
            0..3,
        ),
    )
        .prop_map(|(links, addresses, neighbours, one, floods, routes, rules, nft, sysctls)| {
            let there = |link: &String| links.contains_key(link) || OTHERS.contains(&link.as_str());
            let mut state = State { rules, nft, sysctls, ..State::default() };
            if let Some(link) = links.keys().next() {
                let distinct: BTreeMap<IpAddr, ipnet::IpNet> = addresses
                    .iter()
                    .map(|text| text.parse::<ipnet::IpNet>().unwrap())
                    .map(|net| (net.addr(), net))
                    .collect();
                state.addresses = distinct.into_values().map(|net| (link.clone(), net)).collect();
            }
            for ((link, address), mac) in neighbours {
                state.neighbours.insert(Neighbour { link, address }, mac);
            }
            state.neighbours.retain(|neighbour, _| links.contains_key(&neighbour.link));
            state.fdb.extend(one.into_iter().map(|((link, mac), remote)| Fdb { link, mac, remote }));
            state.fdb.extend(floods.into_iter().map(|(link, remote)| Fdb { link, mac: MacAddr::ZERO, remote }));
            state.fdb.retain(|entry| links.contains_key(&entry.link));
            state.sysctls.retain(|path, _| !path.contains("own-a") || links.contains_key("own-a"));
            for (destination, route) in routes {
                let key = |metric| RouteKey { table: TABLE, destination: destination.parse().unwrap(), metric };
                state.routes.insert(key(own::UNREACHABLE_METRIC), RouteTarget::Unreachable);
                if let Some(route) = route.filter(|route| there(&route.link)) {
                    state.routes.insert(key(own::ROUTE_METRIC), RouteTarget::Via(route));
                }
            }
            state.links = links;
            state
        })
}

/// What others have in the same kernel, near ours in every respect but the owner.
fn others() -> State {
    let on = |link: &str| Route { link: link.to_owned(), next_hop: None, preferred_source: None, mtu: None };
    let key = |metric| RouteKey { table: TABLE, destination: "10.2.0.0/16".parse().unwrap(), metric };
    let link = Link { kind: LinkKind::Foreign, mtu: 1500, mac: MacAddr::ZERO };
    State {
        links: OTHERS.iter().map(|&name| (name.to_owned(), link.clone())).collect(),
        addresses: BTreeSet::from([("eth0".to_owned(), "10.9.0.1/24".parse().unwrap())]),
        routes: BTreeMap::from([(key(7), RouteTarget::Via(on("eth0"))), (key(8), RouteTarget::Unreachable)]),
        rules: BTreeSet::from([Rule {
            priority: 32766,
            family: IpFamily::V4,
            selector: RuleSelector::All,
            table: TABLE,
        }]),
        nft: BTreeMap::from([("theirs".to_owned(), nft::Table::default())]),
        ..State::default()
    }
}

/// A kernel in which `state` has been brought about.
fn kernel_with(state: &State) -> FakeKernel {
    let mut kernel = FakeKernel::new(owner(), others());
    assert_eq!(kernel.apply(&diff(&State::default(), state)), vec![]);
    kernel
}

/// Destinations with a route that carries packets but no `unreachable` one.
fn unprotected(kernel: &FakeKernel) -> Vec<RouteKey> {
    let routes = kernel.observe(&State::default()).routes;
    let carrying = routes.iter().filter(|(_, target)| matches!(target, RouteTarget::Via(_)));
    carrying
        .map(|(key, _)| key.clone())
        .filter(|key| !routes.contains_key(&RouteKey { metric: own::UNREACHABLE_METRIC, ..key.clone() }))
        .collect()
}

proptest! {
    #[test]
    fn a_plan_leads_to_the_desired_state(before in state(), after in state()) {
        let mut kernel = kernel_with(&before);

        let faults = kernel.apply(&diff(&kernel.observe(&after), &after));

        prop_assert_eq!(faults, vec![]);
        let reached = kernel.observe(&after);
        prop_assert_eq!(&reached, &after);
        prop_assert!(diff(&reached, &after).is_empty());
    }

    #[test]
    fn what_others_made_is_never_touched(before in state(), after in state()) {
        let mut kernel = kernel_with(&before);

        kernel.apply(&diff(&kernel.observe(&after), &after));
        kernel.apply(&diff(&kernel.observe(&State::default()), &State::default()));

        prop_assert_eq!(kernel.foreign(), State { links: BTreeMap::new(), ..others() });
        prop_assert_eq!(kernel.observe(&State::default()), State::default());
    }

    #[test]
    fn one_failed_step_is_made_up_for_by_the_next_pass(before in state(), after in state(), nth in any::<Index>()) {
        let mut kernel = kernel_with(&before);
        let plan = diff(&kernel.observe(&after), &after);
        prop_assume!(!plan.is_empty());
        kernel.fail_step(nth.index(plan.steps.len()));

        kernel.apply(&plan);
        // A link that could not be deleted is made anew by the second pass; all else is in place after it, too.
        let second = kernel.apply(&diff(&kernel.observe(&after), &after));

        prop_assert_eq!(second, vec![]);
        prop_assert_eq!(kernel.observe(&after), after);
    }

    #[test]
    fn no_step_leaves_a_route_without_its_unreachable_companion(before in state(), after in state()) {
        let mut kernel = kernel_with(&before);

        for step in diff(&kernel.observe(&after), &after).steps {
            kernel.take(&step).unwrap();
            prop_assert_eq!(unprotected(&kernel), vec![], "after {}", step);
        }
    }

    #[test]
    fn a_replaced_target_leaves_no_gap(before in state(), after in state()) {
        let mut kernel = kernel_with(&before);
        let kept_links: BTreeSet<&String> = before.links.keys().filter(|name| {
            after.links.get(*name).is_none_or(|link| (&link.kind, link.mac) == (&before.links[*name].kind, before.links[*name].mac))
        }).collect();
        let stays = |key: &RouteKey| match &before.routes[key] {
            RouteTarget::Via(route) => OTHERS.contains(&route.link.as_str()) || kept_links.contains(&route.link),
            RouteTarget::Local | RouteTarget::Unreachable => true,
        };
        let both: Vec<&RouteKey> =
            before.routes.keys().filter(|key| after.routes.contains_key(key) && stays(key)).collect();

        for step in diff(&kernel.observe(&after), &after).steps {
            kernel.take(&step).unwrap();
            let routes = kernel.observe(&after).routes;
            for key in &both {
                prop_assert!(routes.contains_key(key), "{} is away after {}", key, step);
            }
        }
    }
}
