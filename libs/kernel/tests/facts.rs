//! What the node is like, and notices of its changes.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use culvert_kernel::{Changes, RouteInfo, node_facts, route_to};
use support::{in_namespace, make_node, run, run_with};
use tokio::time::timeout;

/// Longer than the kernel ever takes, for what must happen.
const SOON: Duration = Duration::from_secs(5);
/// Long enough to see that nothing more comes.
const QUIET: Duration = Duration::from_millis(200);

#[test]
fn interfaces_are_as_they_were_made() {
    in_namespace(|| async {
        make_node();
        run("ip link set wire down");
        run("ip link set eth0 address 02:00:00:00:00:07");

        let facts = node_facts().await.unwrap();

        let eth0 = &facts.interfaces["eth0"];
        assert_eq!((eth0.mtu, eth0.up, eth0.mac), (1500, true, Some("02:00:00:00:00:07".parse().unwrap())));
        assert_eq!(eth0.addresses, ["192.168.7.1/24".parse().unwrap(), "fd00:7::1/64".parse().unwrap()]);
        assert!(!facts.interfaces["wire"].up);
        assert_eq!(facts.interfaces["lo"].mtu, u16::MAX);
    });
}

#[test]
fn a_route_is_found_by_destination_and_mark() {
    in_namespace(|| async {
        make_node();
        run("ip route add default via 192.168.7.254");
        run("ip route add 10.2.0.0/16 via 192.168.7.253 mtu 1400");
        run("ip route add unreachable 10.3.0.0/16");
        run("ip rule add fwmark 0xc10000 table 99");
        run("ip route add 10.2.0.0/16 via 192.168.7.252 table 99");
        run("ip -6 route add fd00:2::/48 via fd00:7::fe mtu 1390");
        let to = |destination: &str, mark| {
            let destination = destination.parse().unwrap();
            async move { route_to(destination, mark).await.unwrap() }
        };
        let via = |next_hop: &str, source: &str, mtu| {
            let (source, next_hop) = (Some(source.parse().unwrap()), Some(next_hop.parse().unwrap()));
            Some(RouteInfo { link: "eth0".to_owned(), source, next_hop, mtu })
        };

        assert_eq!(to("1.2.3.4", None).await, via("192.168.7.254", "192.168.7.1", 1500));
        assert_eq!(to("10.2.0.1", None).await, via("192.168.7.253", "192.168.7.1", 1400));
        assert_eq!(to("10.2.0.1", Some(0xc10000)).await, via("192.168.7.252", "192.168.7.1", 1500));
        assert_eq!(to("fd00:2::1", None).await, via("fd00:7::fe", "fd00:7::1", 1390));
        assert_eq!(to("10.3.0.1", None).await, None);
        assert_eq!(to("fd00:99::1", None).await, None);
        assert_eq!(to("192.168.7.1", None).await.unwrap().link, "lo");
    });
}

#[test]
fn changes_of_any_kind_are_noticed_and_quiet_is_not() {
    in_namespace(|| async {
        make_node();
        let mut changes = Changes::open().unwrap();
        for line in [
            "ip link add other type bridge",
            "ip link set other up",
            "ip address add 10.1.0.1/24 dev eth0",
            "ip route add 10.2.0.0/16 dev eth0 table 7201",
            "ip rule add priority 141 table 7201",
            "ip -6 address add fd00:8::1/64 dev eth0 nodad",
            "ip -6 route add fd00:2::/48 dev eth0 table 7201",
            "ip -6 rule add priority 141 table 7201",
        ] {
            run(line);
            timeout(SOON, changes.changed()).await.unwrap_or_else(|_| panic!("nothing was noticed of {line}"));
            while timeout(QUIET, changes.changed()).await.is_ok() {}
        }
    });
}

#[test]
fn lost_notices_are_a_change() {
    in_namespace(|| async {
        make_node();
        let mut changes = Changes::open().unwrap();
        // More than any receive buffer holds.
        let lines: String =
            (0..5000).map(|n| format!("route add 10.{}.{}.0/24 dev eth0\n", n / 250, n % 250)).collect();
        run_with("ip -batch -", &lines);

        timeout(SOON, changes.changed()).await.unwrap();

        let mut more = 0;
        while timeout(QUIET, changes.changed()).await.is_ok() {
            more += 1;
            assert!(more < 100, "one burst is noticed again and again");
        }
    });
}
