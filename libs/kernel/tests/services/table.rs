//! What is in the table after changes of ours and of others.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use culvert_kernel::{KernelError, ServiceTable};
use culvert_model::Protocol;
use culvert_services::{Services, Table};
use nix::sched::{CloneFlags, setns};

use crate::support::{in_namespace, make_node, run, run_with};
use crate::{TABLE, backend, converge, frontend, open, service};

fn v4(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 1, high, low).into()
}

fn v6(number: u16) -> IpAddr {
    Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, number).into()
}

/// Services of both families, with and without affinity, of every protocol.
fn some_services() -> Services {
    let mut weighted = service((1..4).map(v4), None);
    weighted.backends.insert(backend(v4(1)), 3);
    [
        (frontend("242.0.0.1", Protocol::Tcp, 80), service((1..4).map(v4), None)),
        (frontend("242.0.0.1", Protocol::Udp, 80), service((1..6).map(v4), Some(60))),
        (frontend("242.0.0.2", Protocol::Sctp, 80), weighted),
        (frontend("242.0.0.3", Protocol::Tcp, 80), service([], None)),
        (frontend("fd00:242::1", Protocol::Tcp, 80), service((1..4).map(v6), None)),
        (frontend("fd00:242::1", Protocol::Udp, 80), service((1..40).map(v6), Some(10_800))),
    ]
    .into()
}

/// Returns the elements and rules of the table, in an order of their own.
fn listing() -> Vec<String> {
    let text = run(&format!("nft -s list table inet {TABLE}"));
    let mut words: Vec<String> = text.split([',', '\n']).map(|line| line.trim().to_owned()).collect();
    words.sort();
    words
}

/// Checks that the kernel has what is remembered: somebody who reads it finds nothing to change.
async fn is_complete(services: &Services) {
    let report = converge(&mut open().await, services).await;
    assert_eq!((report.elements, report.gone), (0, vec![]));
}

#[test]
fn services_come_change_and_go() {
    in_namespace(|| async {
        make_node();
        let mut table = open().await;
        let mut services = some_services();
        let report = converge(&mut table, &services).await;
        assert_eq!((report.services, report.begun.len()), (5, 5));
        is_complete(&services).await;
        assert_eq!(converge(&mut table, &services).await.elements, 0);
        // Whoever lists the node's rules has to be able to, in either form.
        assert!(run("nft list ruleset").contains("stick6_39_10800"));
        assert!(run("nft -j list ruleset").contains("stick6_39_10800"));

        let tcp = frontend("242.0.0.1", Protocol::Tcp, 80);
        services.insert(tcp, service([2, 3, 9].map(v4), None));
        let report = converge(&mut table, &services).await;
        assert_eq!(report.gone, [(tcp, backend(v4(1)))]);
        assert_eq!((report.services, report.elements), (1, 2));
        is_complete(&services).await;

        services.insert(tcp, service([2, 3, 9].map(v4), Some(30)));
        services.insert(frontend("242.0.0.1", Protocol::Udp, 80), service((1..4).map(v4), None));
        assert_eq!(converge(&mut table, &services).await.gone.len(), 2);
        is_complete(&services).await;

        let report = converge(&mut table, &Services::new()).await;
        assert_eq!(report.services, 5);
        is_complete(&Services::new()).await;
        assert!(!listing().iter().any(|line| line.contains("242.0.0")));
    });
}

#[test]
fn what_an_earlier_process_left_is_taken_over() {
    in_namespace(|| async {
        make_node();
        converge(&mut open().await, &some_services()).await;
        let before = listing();
        let mut table = open().await;
        assert_eq!(listing(), before);
        let mut services = some_services();
        services.remove(&frontend("242.0.0.2", Protocol::Sctp, 80));
        let report = converge(&mut table, &services).await;
        assert_eq!((report.services, report.gone.len()), (1, 3));
        is_complete(&services).await;

        // A host whose processes are no longer looked at.
        let prerouting = r#"iifname "clients""#.to_owned();
        let narrower = Table { name: TABLE.to_owned(), prerouting, output: None };
        assert_eq!(ServiceTable::open(narrower).await.unwrap().converge(&services).await.unwrap().elements, 0);
        assert!(!listing().iter().any(|line| line.contains("output")));
    });
}

#[test]
fn what_others_do_to_the_table_is_repaired() {
    in_namespace(|| async {
        make_node();
        let mut table = open().await;
        let services = some_services();
        converge(&mut table, &services).await;
        let whole = listing();
        for damage in [
            "flush map inet culvert_test slots4",
            "flush map inet culvert_test by_id6",
            "delete element inet culvert_test services4 { 242.0.0.1 . tcp . 80 }",
            "delete element inet culvert_test slots4 { 242.0.0.1 . tcp . 80 . 1 }",
            "add element inet culvert_test slots4 { 242.0.0.1 . tcp . 80 . 7 : 10.9.9.9 . 80 }",
            "add element inet culvert_test services4 { 242.0.0.9 . tcp . 80 : drop }",
            "add element inet culvert_test by_id4 { 242.0.0.9 . udp . 80 . 0:1 : 10.9.9.9 . 80 }",
            "add element inet culvert_test by_id4 { 242.0.0.9 . udp . 80 . 1:0 : 10.9.9.9 . 80 }",
            "flush chain inet culvert_test prerouting",
            "insert rule inet culvert_test pick4_3 accept",
            "delete table inet culvert_test",
            "flush ruleset",
            "delete table inet culvert_test\n\
             add table inet culvert_test\nadd map inet culvert_test slots4 { type ipv4_addr : verdict; }",
        ] {
            run_with("nft -f -", damage);
            assert_ne!(listing_or_none(), whole, "{damage}");
            converge(&mut table, &services).await;
            assert_eq!(listing(), whole, "after: {damage}");
            assert_eq!(converge(&mut table, &services).await.elements, 0, "after: {damage}");
        }
    });
}

fn listing_or_none() -> Vec<String> {
    if run("nft list tables").contains(TABLE) { listing() } else { Vec::new() }
}

#[test]
fn others_may_change_their_tables_all_the_time() {
    in_namespace(|| async {
        make_node();
        let mut table = open().await;
        let mut services = some_services();
        converge(&mut table, &services).await;
        let namespace = File::open("/proc/thread-self/ns/net").unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let others = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                while !done.load(Ordering::Relaxed) {
                    run_with("nft -f -", "add table inet busy\nadd chain inet busy a\ndelete table inet busy");
                }
            }
        });
        let tcp = frontend("242.0.0.1", Protocol::Tcp, 80);
        for last in (5..60).chain((4..59).rev()) {
            services.insert(tcp, service((1..last).map(v4), None));
            let report = converge(&mut table, &services).await;
            assert_eq!(report.services, 1);
        }
        done.store(true, Ordering::Relaxed);
        others.join().unwrap();
        is_complete(&services).await;
    });
}

#[test]
fn many_services_are_several_transactions() {
    in_namespace(|| async {
        make_node();
        let mut table = open().await;
        let at = |number: u16| {
            let [high, low] = number.to_be_bytes();
            frontend(&format!("242.1.{high}.{low}"), Protocol::Tcp, 80)
        };
        let services: Services =
            (0..6000).map(|number| (at(number), service((1..11).map(|last| v4(number + last)), None))).collect();
        let report = converge(&mut table, &services).await;
        assert_eq!((report.services, report.elements), (6000, 66_000));
        is_complete(&services).await;

        let big = Services::from([(at(1), service((0..20_000).map(v4), Some(60)))]);
        assert_eq!(converge(&mut table, &big).await.services, 6000);
        is_complete(&big).await;
    });
}

#[test]
fn a_table_that_is_removed_is_away() {
    in_namespace(|| async {
        make_node();
        converge(&mut open().await, &some_services()).await;
        ServiceTable::remove(TABLE).await.unwrap();
        ServiceTable::remove(TABLE).await.unwrap();
        assert_eq!(run("nft list tables"), "");
    });
}

#[test]
fn a_guard_that_nft_does_not_take_is_an_error_in_its_words() {
    in_namespace(|| async {
        make_node();
        let table = Table { name: TABLE.to_owned(), prerouting: "no such guard".to_owned(), output: None };
        let refused = ServiceTable::open(table).await.map(drop);
        assert!(
            matches!(&refused, Err(KernelError::Nft { text, .. }) if text.contains("no such guard")),
            "{refused:?}"
        );
        assert!(Command::new("nft").args(["list", "table", "inet", TABLE]).output().unwrap().stdout.is_empty());
    });
}
