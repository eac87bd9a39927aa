//! The order of steps: what protects comes first and goes last.

#![allow(clippy::unwrap_used)]

use culvert_model::{IpFamily, MacAddr};
use culvert_netstate::{
    Fdb, Link, LinkKind, Neighbour, Route, RouteKey, RouteTarget, Rule, RuleSelector, State, TableId, diff, nft,
};

/// One thing of every kind.
fn full() -> State {
    let link = || "culvert-ov".to_owned();
    let table = TableId(7202);
    let mac = MacAddr([2, 0xc1, 10, 0, 0, 2]);
    let remote = "10.0.0.2".parse().unwrap();
    let kind = LinkKind::Vxlan { vni: 100, port: 4800, local: "10.0.0.1".parse().unwrap() };
    let route = Route { link: link(), next_hop: Some(remote), preferred_source: None, mtu: Some(1400) };
    let key = |metric| RouteKey { table, destination: "10.2.0.0/16".parse().unwrap(), metric };
    let mut state = State::default();
    state.links.insert(link(), Link { kind, mtu: 1450, mac });
    state.addresses.insert((link(), "240.0.0.1/32".parse().unwrap()));
    state.neighbours.insert(Neighbour { link: link(), address: remote }, mac);
    state.fdb.insert(Fdb { link: link(), mac, remote });
    state.routes.insert(key(100), RouteTarget::Via(route));
    state.routes.insert(key(9000), RouteTarget::Unreachable);
    state.rules.insert(Rule { priority: 142, family: IpFamily::V4, selector: RuleSelector::All, table });
    state.sysctls.insert("net/ipv4/conf/culvert-ov/rp_filter".to_owned(), "2".to_owned());
    state.nft.insert("culvert_route_agent".to_owned(), nft::Table::default());
    state
}

#[test]
fn filters_and_unreachable_routes_are_made_first_and_rules_last() {
    insta::assert_snapshot!(diff(&State::default(), &full()), @r"
    put nft table inet culvert_route_agent
    add route 10.2.0.0/16 metric 9000 in table 7202 unreachable
    add link culvert-ov mac 02:c1:0a:00:00:02 mtu 1450
    set sysctl net/ipv4/conf/culvert-ov/rp_filter to 2
    add address 240.0.0.1/32 to culvert-ov
    add forwarding of 02:c1:0a:00:00:02 to 10.0.0.2 on culvert-ov
    set neighbour 10.0.0.2 on culvert-ov to 02:c1:0a:00:00:02
    add route 10.2.0.0/16 metric 100 in table 7202 on culvert-ov via 10.0.0.2 mtu 1400
    add IPv4 rule 142 to table 7202
    ");
}

#[test]
fn rules_are_removed_first_and_filters_last() {
    insta::assert_snapshot!(diff(&full(), &State::default()), @r"
    delete IPv4 rule 142 to table 7202
    delete route 10.2.0.0/16 metric 100 in table 7202
    delete route 10.2.0.0/16 metric 9000 in table 7202
    delete link culvert-ov
    delete nft table inet culvert_route_agent
    ");
}

#[test]
fn a_link_with_another_mac_is_made_anew_with_all_that_stands_on_it() {
    let mut desired = full();
    desired.links.get_mut("culvert-ov").unwrap().mac = MacAddr([2, 0xc1, 10, 0, 0, 3]);

    insta::assert_snapshot!(diff(&full(), &desired), @r"
    delete link culvert-ov
    add link culvert-ov mac 02:c1:0a:00:00:03 mtu 1450
    set sysctl net/ipv4/conf/culvert-ov/rp_filter to 2
    add address 240.0.0.1/32 to culvert-ov
    add forwarding of 02:c1:0a:00:00:02 to 10.0.0.2 on culvert-ov
    set neighbour 10.0.0.2 on culvert-ov to 02:c1:0a:00:00:02
    add route 10.2.0.0/16 metric 100 in table 7202 on culvert-ov via 10.0.0.2 mtu 1400
    ");
}

#[test]
fn what_collides_goes_before_what_comes() {
    let mut desired = full();
    desired.addresses = [("culvert-ov".to_owned(), "240.0.0.1/8".parse().unwrap())].into();
    desired.fdb = full().fdb.into_iter().map(|entry| Fdb { remote: "10.0.0.3".parse().unwrap(), ..entry }).collect();

    insta::assert_snapshot!(diff(&full(), &desired), @r"
    delete address 240.0.0.1/32 from culvert-ov
    add address 240.0.0.1/8 to culvert-ov
    delete forwarding of 02:c1:0a:00:00:02 to 10.0.0.2 on culvert-ov
    add forwarding of 02:c1:0a:00:00:02 to 10.0.0.3 on culvert-ov
    ");
}
