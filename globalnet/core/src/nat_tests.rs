//! The table as text, and who leaves by which address.

use culvert_netstate::nft::render;

use super::*;
use crate::{EgressGroup, ObjectKey};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn group(is_selective: bool, sources: &[&str], addresses: &[&str]) -> EgressGroup {
    let set = |texts: &[&str]| texts.iter().map(|text| address(text)).collect();
    EgressGroup { is_selective, sources: set(sources), addresses: set(addresses) }
}

fn addresses() -> GlobalAddresses {
    GlobalAddresses {
        cidrs: vec!["242.0.0.0/16".parse().unwrap()],
        cluster_egress: ["242.0.0.1", "242.0.0.2"].map(address).into(),
        egress: BTreeMap::from([
            ("GlobalEgressIP shop/all".to_owned(), group(false, &["10.244.0.5", "10.244.0.6"], &["242.0.0.9"])),
            (
                "GlobalEgressIP shop/some".to_owned(),
                group(true, &["10.244.0.5", "10.244.1.5"], &["242.0.0.10", "242.0.0.12"]),
            ),
        ]),
        ingress_hosts: BTreeMap::from([(address("242.0.255.2"), address("10.244.0.6"))]),
        leaving: BTreeSet::from([address("242.0.255.2")]),
        ingress_services: BTreeMap::from([(address("242.0.255.1"), ObjectKey::default())]),
        gateways: BTreeMap::from([("gw".to_owned(), address("242.0.255.254"))]),
    }
}

#[test]
fn the_table_translates_keeps_and_refuses() {
    let state = desired(&addresses());

    insta::assert_snapshot!(render(TABLE, &state.nft[TABLE]));
    let routes: Vec<String> = state.routes.iter().map(|(key, target)| format!("{key} {target}")).collect();
    assert_eq!(routes, ["route 242.0.0.0/16 metric 100 in table 255 local"]);
}

#[test]
fn a_selector_comes_before_a_headless_service_and_that_before_a_namespace() {
    let senders = Senders::of(&addresses(), IpFamily::V4);

    // In the namespace and in a headless service.
    assert_eq!(senders.single, BTreeMap::from([("10.244.0.6".to_owned(), "242.0.255.2".to_owned())]));
    // In the namespace and selected; selected only.
    let chain = "goto group4_0".to_owned();
    assert_eq!(
        senders.grouped,
        BTreeMap::from([("10.244.0.5".to_owned(), chain.clone()), ("10.244.1.5".to_owned(), chain)])
    );
}

#[test]
fn what_does_not_leave_by_its_headless_service_leaves_by_the_next() {
    let mut others = addresses();
    others.leaving.clear();

    let senders = Senders::of(&others, IpFamily::V4);

    assert_eq!(senders.single, BTreeMap::from([("10.244.0.6".to_owned(), "242.0.0.9".to_owned())]));
    let hosts = &desired(&others).nft[TABLE].maps["hosts4"].elements;
    assert_eq!(hosts["242.0.255.2"], "10.244.0.6", "it is reached all the same");
}

#[test]
fn both_families_have_their_own_maps() {
    let mut both = addresses();
    both.cidrs.push("fd00:242::/112".parse().unwrap());
    both.cluster_egress.insert(address("fd00:242::1"));
    both.egress.insert("GlobalEgressIP six/all".to_owned(), group(false, &["fd00:244::5"], &["fd00:242::9"]));

    let table = &desired(&both).nft[TABLE];

    assert_eq!(table.maps["sources6"].elements, BTreeMap::from([("fd00:244::5".to_owned(), "fd00:242::9".to_owned())]));
    assert!(table.chains["egress"].rules.contains(&"oifname @cables snat ip6 to fd00:242::1".to_owned()));
}

#[test]
fn errors_over_ipv6_come_from_the_address_that_was_asked() {
    let mut both = addresses();
    assert!(!desired(&both).nft[TABLE].chains.contains_key("errors"));
    both.cidrs.push("fd00:242::/112".parse().unwrap());

    insta::assert_snapshot!(
        desired(&both).nft[TABLE].chains["errors"].rules.join("\n"),
        @"icmpv6 type destination-unreachable icmpv6 code port-unreachable @th,256,128 & 0xffffffffffffffffffffffffffff0000 == 0xfd000242000000000000000000000000 ip6 saddr set @th,256,128"
    );
}

#[test]
fn without_a_global_cidr_nothing_is_wanted() {
    let none = GlobalAddresses { cidrs: Vec::new(), ..addresses() };

    assert_eq!(desired(&none), State::default());
}
