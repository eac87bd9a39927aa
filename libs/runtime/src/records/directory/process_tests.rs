//! Writers in several threads and processes, some of them killed: no increment is lost, nothing is left broken.

use std::process::{Child, Command, Stdio};
use std::thread;

use culvert_api::Lease;

use super::tests::{block_on, lease};
use super::*;
use crate::Records;

const ROOT: &str = "CULVERT_TEST_STORE";
const WRITER: &str = "CULVERT_TEST_WRITER";
const COUNTER: &str = "counter";

/// Adds one to the counter, and to what `writer` has added to it.
async fn increment(records: &Records, writer: &str) {
    loop {
        let mut lease = records.find::<Lease>(COUNTER).await.unwrap().unwrap();
        let total = lease.spec.get_or_insert_default().lease_transitions.get_or_insert_default();
        *total += 1;
        let own = lease.metadata.annotations.get_or_insert_default().entry(writer.to_owned()).or_default();
        *own = (own.parse().unwrap_or(0) + 1).to_string();
        match records.update(&lease).await {
            Ok(_) => return,
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Returns the counter and what each writer has added to it.
fn counter(records: &Records) -> (i32, BTreeMap<String, i32>) {
    let lease = block_on(records.find::<Lease>(COUNTER)).unwrap().unwrap();
    let annotations = lease.metadata.annotations.unwrap_or_default();
    let own = annotations.into_iter().map(|(writer, count)| (writer, count.parse().unwrap())).collect();
    (lease.spec.unwrap().lease_transitions.unwrap_or(0), own)
}

/// The body of a writer process: this test binary, started again.
#[test]
#[ignore = "another test starts it and kills it"]
fn increments_until_killed() {
    let records = Records::open(std::env::var_os(ROOT).expect("started by another test"));
    let writer = std::env::var(WRITER).expect("started by another test");
    block_on(async {
        loop {
            increment(&records, &writer).await;
        }
    });
}

fn start_writer(root: &Path, writer: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "records::directory::process_tests::increments_until_killed"])
        .env(ROOT, root)
        .env(WRITER, writer)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn concurrent_writers_lose_no_increment() {
    const WRITERS: i32 = 4;
    const INCREMENTS: i32 = 40;
    let root = tempfile::tempdir().unwrap();
    let records = Records::open(root.path());
    block_on(records.create(&lease(COUNTER))).unwrap();

    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let records = Records::open(root.path());
            scope.spawn(move || {
                block_on(async {
                    for _ in 0..INCREMENTS {
                        increment(&records, &writer.to_string()).await;
                    }
                });
            });
        }
    });

    let (total, own) = counter(&records);
    assert_eq!(total, WRITERS * INCREMENTS);
    assert!(own.values().all(|count| *count == INCREMENTS), "{own:?}");
}

#[test]
fn writers_that_are_killed_leave_the_store_whole() {
    const ROUNDS: usize = 6;
    let root = tempfile::tempdir().unwrap();
    let records = Records::open(root.path());
    block_on(records.create(&lease(COUNTER))).unwrap();
    let mut ours = 0;

    for round in 0..ROUNDS {
        let writers = [format!("a{round}"), format!("b{round}")];
        let mut processes = writers.each_ref().map(|writer| start_writer(root.path(), writer));
        while writers.iter().any(|writer| counter(&records).1.get(writer).is_none_or(|count| *count < 5)) {
            block_on(increment(&records, "ours"));
            ours += 1;
        }
        for process in &mut processes {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        // Nothing of the dead stands in the way: neither lock nor leftover.
        block_on(increment(&records, "ours"));
        ours += 1;
    }

    let (total, own) = counter(&records);
    assert_eq!(own["ours"], ours);
    assert_eq!(total, own.values().sum::<i32>());
    let listing = block_on(records.list::<Lease>()).unwrap();
    assert_eq!((listing.records.len(), listing.problems), (1, vec![]));
    let names: Vec<_> = fs::read_dir(root.path().join("leases")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["counter.yaml"]);
}
