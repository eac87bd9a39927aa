//! Allocations as they are made, kept, given back and refused; the ConfigMap against a record of Submariner's own.

use culvert_api::ClusterSpec;
use serde_json::{Value, json};

use super::*;

const NOW: &str = "2030-01-01T00:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn enabled() -> Globalnet {
    Globalnet::default()
        .configured(&GlobalnetWish { enabled: Some(true), ..GlobalnetWish::default() })
        .unwrap()
        .unwrap()
}

/// Asks for a cluster that has nothing of its own in the way.
fn asked(globalnet: &Globalnet, cluster: &str, wish: &Wish, now: Timestamp) -> Result<Decision, GlobalnetError> {
    let cluster = cluster.parse().unwrap();
    globalnet.allocate(&Situation { cluster: &cluster, wish, local: &[], clusters: &[], now })
}

/// Joins clusters one after the other.
fn with(globalnet: Globalnet, clusters: &[(&str, Wish)]) -> Globalnet {
    clusters
        .iter()
        .fold(globalnet, |globalnet, (cluster, wish)| asked(&globalnet, cluster, wish, now()).unwrap().change.unwrap())
}

fn given(globalnet: &Globalnet, cluster: &str, wish: &Wish, now: Timestamp) -> String {
    joined(&asked(globalnet, cluster, wish, now).unwrap().cidrs)
}

fn refusal(globalnet: &Globalnet, cluster: &str, wish: &Wish) -> String {
    asked(globalnet, cluster, wish, now()).unwrap_err().to_string()
}

fn cidr(text: &str) -> Wish {
    Wish::Cidrs(vec![net(text)])
}

#[test]
fn clusters_get_the_first_free_range_of_their_size() {
    let globalnet = with(
        enabled(),
        &[
            ("one", Wish::Default),
            ("two", Wish::Size(200)),
            ("three", Wish::Default),
            ("four", Wish::Size(256)),
            ("five", cidr("242.3.7.0/24")),
        ],
    );
    let has: Vec<String> = globalnet.allocations.iter().map(|one| joined(&one.cidrs)).collect();
    assert_eq!(has, ["242.0.0.0/16", "242.1.0.0/24", "242.2.0.0/16", "242.1.1.0/24", "242.3.7.0/24"]);
    assert_eq!(given(&globalnet, "six", &Wish::Default, now()), "242.4.0.0/16");
    assert_eq!(given(&globalnet, "six", &Wish::Size(1 << 20), now()), "242.16.0.0/12");
}

#[test]
fn a_cluster_that_has_one_keeps_it_and_is_told() {
    let globalnet = with(enabled(), &[("east", cidr("242.9.0.0/16"))]);
    for (wish, is_told) in [
        (Wish::Default, false),
        (cidr("242.9.0.0/16"), false),
        (cidr("242.9.1.2/16"), false),
        (Wish::Size(65536), false),
        (cidr("242.8.0.0/16"), true),
        (Wish::Size(16), true),
    ] {
        let decision = asked(&globalnet, "east", &wish, now()).unwrap();
        assert_eq!((joined(&decision.cidrs).as_str(), decision.change), ("242.9.0.0/16", None));
        assert_eq!(decision.warning.is_some(), is_told, "{wish:?}");
    }
}

#[test]
fn what_was_given_back_rests_for_a_day_but_for_whoever_had_it() {
    let globalnet = with(enabled(), &[("east", Wish::Default)]);
    assert_eq!(globalnet.give_back("west", now()), None);
    let globalnet = globalnet.give_back("east", now()).unwrap();
    assert_eq!(globalnet.cidrs_of("east"), []);
    let (soon, later) = (now() + SignedDuration::from_hours(23), now() + SignedDuration::from_hours(25));
    assert_eq!(given(&globalnet, "west", &Wish::Default, soon), "242.1.0.0/16");
    assert_eq!(given(&globalnet, "west", &Wish::Default, later), "242.0.0.0/16");
    assert_eq!(given(&globalnet, "east", &Wish::Default, soon), "242.0.0.0/16");
    assert_eq!(given(&globalnet, "east", &Wish::Size(256), soon), "242.0.0.0/24");
    let text = refusal(&globalnet, "west", &cidr("242.0.3.0/24"));
    assert!(text.contains("which cluster east gave back and which rests until 2030-01-02T00:00:00Z"), "{text}");
    // It is taken up again, and nothing is left of its rest.
    let back = asked(&globalnet, "east", &Wish::Default, soon).unwrap().change.unwrap();
    assert_eq!((back.cidrs_of("east"), back.resting.len()), (&[net("242.0.0.0/16")][..], 0));
    let other = asked(&globalnet, "west", &Wish::Default, later).unwrap().change.unwrap();
    assert_eq!(other.resting, []);
}

#[test]
fn what_others_or_the_cluster_itself_have_is_passed_over_and_refused_by_name() {
    let cluster: ClusterId = "west".parse().unwrap();
    let record = |id: &str, pods: &str, global: &[&str]| {
        let spec = ClusterSpec {
            cluster_id: id.to_owned(),
            cluster_cidr: vec![pods.to_owned()],
            global_cidr: global.iter().map(|&cidr| cidr.to_owned()).collect(),
            ..ClusterSpec::default()
        };
        Cluster::new(id, spec)
    };
    // With Globalnet, a cluster's pods are nobody else's business.
    let clusters = [
        record("plain", "242.0.0.0/16", &[]),
        record("byhand", "242.2.0.0/16", &["242.1.0.0/16"]),
        record("west", "242.2.0.0/16", &[]),
    ];
    let local = [net("242.3.0.9/32"), net("10.1.0.0/16")];
    let globalnet = with(enabled(), &[("east", cidr("242.4.0.0/16"))]);
    let ask = |wish: Wish| {
        let situation = Situation { cluster: &cluster, wish: &wish, local: &local, clusters: &clusters, now: now() };
        globalnet.allocate(&situation)
    };
    assert_eq!(ask(Wish::Default).unwrap().cidrs, [net("242.2.0.0/16")]);
    for (wish, words) in [
        ("242.0.7.0/24", "242.0.7.0/24 of cluster west overlaps 242.0.0.0/16 of cluster plain"),
        ("242.1.0.0/16", "overlaps 242.1.0.0/16 of cluster byhand"),
        ("242.4.0.0/15", "overlaps 242.4.0.0/16 of cluster east"),
        ("242.3.0.0/24", "overlaps 242.3.0.9/32 of this cluster itself"),
        ("10.0.0.0/8", "overlaps 10.1.0.0/16 of this cluster itself"),
    ] {
        let text = ask(cidr(wish)).unwrap_err().to_string();
        assert!(text.contains(words) && text.contains("--globalnet-cidr"), "{text}");
    }
}

#[test]
fn two_clusters_that_have_one_cidr_by_hand_are_both_named() {
    let globalnet = with(enabled(), &[("east", Wish::Default)]);
    let mut globalnet = globalnet;
    globalnet.allocations.push(Allocation { cluster: "west".to_owned(), cidrs: vec![net("242.0.128.0/17")] });
    for (one, words) in [
        ("east", "clusters east and west both have 242.0.0.0/16"),
        ("west", "clusters west and east both have 242.0.128.0/17"),
    ] {
        let text = refusal(&globalnet, one, &Wish::Default);
        assert!(text.contains(words) && text.contains("take it from one of the two"), "{text}");
    }
    let all: Vec<String> = globalnet.contested().iter().map(ToString::to_string).collect();
    assert!(matches!(&all[..], [one] if one.starts_with("clusters east and west")), "{all:?}");
    assert_eq!(given(&globalnet, "north", &Wish::Default, now()), "242.1.0.0/16");
}

#[test]
fn what_no_cluster_can_have_is_refused_by_name() {
    for (wish, words) in [
        (cidr("0.0.0.0/8"), "overlaps 0.0.0.0/8, which no cluster may claim"),
        (cidr("127.1.0.0/16"), "overlaps 127.0.0.0/8"),
        (cidr("169.254.0.0/24"), "overlaps 169.254.0.0/16"),
        (cidr("241.7.0.0/16"), "overlaps 241.0.0.0/8"),
        (cidr("224.1.0.0/16"), "overlaps 224.0.0.0/4"),
        (cidr("fe80::/64"), "overlaps fe80::/10"),
        (cidr("0.0.0.0/0"), "too wide"),
        (cidr("242.0.0.0/29"), "242.0.0.0/29 is too small: a cluster needs 16 addresses at least"),
        (cidr("242.0.0.0/32"), "too small"),
        (cidr("fd00::/125"), "too small"),
        (Wish::Cidrs(vec![net("242.0.0.0/16"), net("242.2.0.0/16")]), "two CIDRs of IPv4"),
        (Wish::Size(8), "cannot have 8 addresses: give 16 to 8388608, which is half of the range 242.0.0.0/8"),
        (Wish::Size(0), "cannot have 0 addresses"),
        (Wish::Size(8_388_609), "cannot have 8388609 addresses"),
        (Wish::Size(u64::MAX), "half of the range"),
    ] {
        let text = refusal(&enabled(), "east", &wish);
        assert!(text.contains(words), "{text}");
    }
    let both = Wish::Cidrs(vec![net("242.0.0.0/16"), net("fd00:1::/64")]);
    assert_eq!(given(&enabled(), "east", &both, now()), "242.0.0.0/16, fd00:1::/64");
    assert!(refusal(&Globalnet::default(), "east", &Wish::Default).contains("deploy-broker --globalnet"));
}

#[test]
fn a_range_that_is_full_says_what_helps_and_gives_again_once_something_is_back() {
    let wish = GlobalnetWish { enabled: Some(true), range: Some(net("242.0.0.0/27")), cluster_size: Some(16) };
    let globalnet = Globalnet::default().configured(&wish).unwrap().unwrap();
    let globalnet = with(globalnet, &[("one", Wish::Default), ("two", Wish::Default)]);
    let text = refusal(&globalnet, "three", &Wish::Default);
    assert!(text.contains("no 16 addresses in a row are free in the range 242.0.0.0/27"), "{text}");
    let globalnet = globalnet.give_back("one", now()).unwrap();
    assert!(refusal(&globalnet, "three", &Wish::Default).contains("no 16 addresses"));
    let later = now() + SignedDuration::from_hours(24);
    assert_eq!(given(&globalnet, "three", &Wish::Default, later), "242.0.0.0/28");
}

#[test]
fn ranges_end_where_addresses_end() {
    let taken = |texts: &[&str]| -> Vec<Taken> {
        texts.iter().map(|text| Taken { cidr: net(text), whose: String::new() }).collect()
    };
    for (range, prefix, busy, expected) in [
        ("240.0.0.0/4", 5, &["240.0.0.0/8"][..], Some("248.0.0.0/5")),
        ("240.0.0.0/4", 5, &["240.0.0.0/8", "255.255.255.255/32"], None),
        ("fd00::/64", 112, &["fd00::/112", "fd00::2:0/111"], Some("fd00::1:0/112")),
        ("ffff::/16", 17, &["ffff::/17", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"], None),
        ("242.0.0.0/8", 16, &["242.0.0.0/8"], None),
        ("242.0.0.0/8", 16, &["0.0.0.0/0"], None),
    ] {
        let found = free(net(range), prefix, &taken(busy));
        assert_eq!(found, expected.map(net), "{range} {busy:?}");
    }
}

#[test]
fn a_range_may_change_while_nothing_of_it_is_lost() {
    let configured = |globalnet: &Globalnet, enabled: Option<bool>, range: Option<&str>, cluster_size: Option<u64>| {
        let wish = GlobalnetWish { enabled, range: range.map(net), cluster_size };
        globalnet.configured(&wish).map_err(|error| error.to_string())
    };
    let globalnet = with(enabled(), &[("east", cidr("242.9.0.0/16")), ("west", cidr("10.9.0.0/16"))]);
    assert_eq!(configured(&globalnet, None, None, None), Ok(None));
    assert_eq!(configured(&globalnet, Some(true), Some("242.0.0.0/8"), Some(65536)), Ok(None));
    let narrow = configured(&globalnet, None, Some("242.8.0.0/15"), Some(1024)).unwrap().unwrap();
    assert_eq!((&narrow.allocations, narrow.cluster_size), (&globalnet.allocations, Some(1024)));
    for (enabled, range, size, words) in [
        (None, Some("243.0.0.0/8"), None, "these would be outside: 242.9.0.0/16 of cluster east: choose"),
        (Some(false), None, None, "242.9.0.0/16 of cluster east, 10.9.0.0/16 of cluster west"),
        (None, Some("127.0.0.0/8"), None, "127.0.0.0/8 cannot be used"),
        (None, Some("240.0.0.0/8"), None, "240.0.0.0/8 cannot be used"),
        (None, Some("242.9.0.0/16"), None, "cannot have 65536 addresses"),
        (Some(false), Some("242.0.0.0/8"), None, "pass --globalnet too"),
        (None, None, Some(1), "cannot have 1 addresses"),
    ] {
        let text = configured(&globalnet, enabled, range, size).unwrap_err();
        assert!(text.contains(words), "{text}");
    }
    assert!(configured(&Globalnet::default(), None, None, Some(64)).unwrap_err().contains("--globalnet too"));
    assert_eq!(configured(&Globalnet::default(), Some(false), None, None), Ok(None));
    let off = configured(&super::tests::enabled(), Some(false), None, None).unwrap().unwrap();
    assert!(!off.is_enabled);
}

/// What `subctl` wrote, read and written again with one more cluster.
#[test]
fn the_config_map_is_submariners() {
    let found = json!({
        "metadata": {
            "name": "submariner-globalnet-info",
            "namespace": "ns",
            "resourceVersion": "7",
            "labels": {"component": "submariner-globalnet"},
            "annotations": {"theirs": "stays"},
        },
        "data": {
            "globalnetEnabled": "true",
            "globalnetCidrRange": "\"242.0.0.0/8\"",
            "globalnetClusterSize": "65536",
            "clusterinfo": "[\n\t{\n\t\t\"cluster_id\": \"east\",\n\t\t\"global_cidr\": [\n\t\t\t\"242.0.0.0/16\"\n\t\t]\n\t}\n]",
            "theirs": "stays",
        },
    });
    let globalnet = Globalnet::of(Some(&found)).unwrap();
    assert_eq!(globalnet.config_map("ns", Some(&found))["data"], found["data"]);
    let globalnet = with(globalnet, &[("west", Wish::Default)]).give_back("east", now()).unwrap();
    let globalnet = with(globalnet, &[("north", cidr("242.9.0.0/24"))]);
    let written = globalnet.config_map("ns", Some(&found));
    assert_eq!(Globalnet::of(Some(&written)).unwrap(), globalnet);
    insta::assert_snapshot!("config_map", crate::objects::yaml(&[written]));
}

#[test]
fn a_new_config_map_is_submariners_too() {
    let maps = [Globalnet::default(), enabled()].map(|globalnet| globalnet.config_map("ns", None));
    insta::assert_snapshot!("config_map_once", crate::objects::yaml(&maps));
    assert_eq!(Globalnet::of(None).unwrap(), Globalnet::default());
}

#[test]
fn what_is_not_understood_is_named() {
    let text = |data: Value| Globalnet::of(Some(&json!({"data": data}))).unwrap_err().to_string();
    for (data, words) in [
        (json!({"globalnetCidrRange": "\"242\""}), "globalnetCidrRange of the broker's ConfigMap"),
        (json!({"globalnetClusterSize": "many"}), "globalnetClusterSize"),
        (json!({"clusterinfo": "[{"}), "clusterinfo"),
        (
            json!({"clusterinfo": "[{\"cluster_id\":\"a\",\"global_cidr\":[\"x\"]}]"}),
            "cluster a has \"x\", which is no CIDR): correct it",
        ),
    ] {
        let text = text(data);
        assert!(text.contains(words), "{text}");
    }
    for clusters in ["", "null", "[]", "[{\"cluster_id\":\"a\",\"global_cidr\":null}]"] {
        assert_eq!(Globalnet::of(Some(&json!({"data": {"clusterinfo": clusters}}))).unwrap().cidrs_of("a"), []);
    }
}
