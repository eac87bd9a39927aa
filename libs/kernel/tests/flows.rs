//! Which flows are forgotten, on the real kernel.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::process::Command;

use culvert_kernel::forget_translated_flows;
use support::{in_namespace, make_node, run, run_with};

/// Makes the flow of a client to `destination` that leaves with the source `translated`.
fn make_flow(destination: &str, translated: &str, protocol: &str) {
    let line = format!("--create --timeout 300 --orig-src 10.1.2.2 --orig-dst {destination} --src-nat {translated}");
    let words = line.split(' ').chain(protocol.split(' '));
    let output = Command::new("conntrack").args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Returns the destinations of all flows.
fn destinations() -> BTreeSet<String> {
    let output = Command::new("conntrack").args(["--dump"]).output().unwrap();
    let listing = String::from_utf8(output.stdout).unwrap();
    let first = |line: &str| line.split_whitespace().find_map(|word| word.strip_prefix("dst=").map(str::to_owned));
    listing.lines().filter_map(first).collect()
}

#[test]
fn flows_to_new_subnets_with_another_source_are_forgotten_and_no_others() {
    in_namespace(|| async {
        make_node();
        // The kernel translates nothing before there is a chain that might.
        run("nft add table ip nat");
        run_with("nft -f -", "add chain ip nat out { type nat hook postrouting priority 100; }");
        let udp = "--protonum udp --sport 4000 --dport 53";
        let tcp = "--protonum tcp --sport 4000 --dport 80 --state SYN_SENT";
        let icmp = "--protonum icmp --icmp-type 8 --icmp-code 0 --icmp-id 77";
        make_flow("10.2.2.2", "192.168.7.1", udp);
        make_flow("10.2.2.3", "192.168.7.1", tcp);
        make_flow("10.2.2.4", "192.168.7.1", icmp);
        make_flow("10.2.2.5", "10.1.2.2", udp);
        make_flow("10.9.2.2", "192.168.7.1", udp);
        assert_eq!(destinations().len(), 5);

        let new = BTreeSet::from(["10.2.0.0/16".parse().unwrap(), "fd00:2::/48".parse().unwrap()]);
        forget_translated_flows(&new, &[]).await.unwrap();

        assert_eq!(destinations(), ["10.2.2.5", "10.9.2.2"].map(str::to_owned).into());
        forget_translated_flows(&new, &[]).await.unwrap();
        forget_translated_flows(&BTreeSet::new(), &[]).await.unwrap();
        assert_eq!(destinations().len(), 2);
    });
}
