//! The store in real directories: what is read and written, what bad files and a missing root do, and writers at once.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use culvert_api::{Cluster, ClusterSpec, Endpoint, EndpointSpec, Gateway, GatewayStatus, Lease, LeaseSpec, ObjectMeta};
use tempfile::TempDir;

use super::*;
use crate::{Place, Records};

pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn store() -> (TempDir, Records) {
    let root = tempfile::tempdir().unwrap();
    let records = Records::open(root.path());
    (root, records)
}

fn cluster(name: &str) -> Cluster {
    Cluster::new(name, ClusterSpec { cluster_id: name.to_owned(), ..ClusterSpec::default() })
}

pub(super) fn lease(name: &str) -> Lease {
    Lease {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec::default()),
    }
}

fn put(root: &TempDir, file: &str, text: &str) {
    let path = root.path().join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const EAST: &str = "apiVersion: submariner.io/v1\nkind: Cluster\nmetadata:\n  name: east\nspec:\n  cluster_id: east\n";

#[tokio::test]
async fn what_was_created_is_found_and_listed() {
    let (root, records) = store();

    let created = records.create(&cluster("east")).await.unwrap();

    assert!(created.metadata.uid.is_some() && created.metadata.creation_timestamp.is_some());
    assert_eq!(created.metadata.resource_version.as_ref().map(String::len), Some(16));
    assert_eq!(records.find::<Cluster>("east").await.unwrap(), Some(created.clone()));
    assert_eq!(records.list().await.unwrap(), Listing { records: vec![created], problems: vec![] });
    let path = root.path().join("clusters/east.yaml");
    assert!(!fs::read_to_string(&path).unwrap().contains("resourceVersion"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    assert!(matches!(records.create(&cluster("east")).await, Err(StoreError::Exists { name, .. }) if name == "east"));
}

#[tokio::test]
async fn a_listing_is_sorted_by_name() {
    let (_root, records) = store();
    for name in ["b", "a.c", "a", "a-b"] {
        records.create(&cluster(name)).await.unwrap();
    }

    let listing = records.list::<Cluster>().await.unwrap();

    assert_eq!(listing.records.iter().map(Record::name).collect::<Vec<_>>(), ["a", "a-b", "a.c", "b"]);
}

#[tokio::test]
async fn an_update_needs_the_version_that_was_read() {
    let (_root, records) = store();
    let first = records.create(&cluster("east")).await.unwrap();
    let mut change = first.clone();
    change.spec.cluster_cidr = vec!["10.1.0.0/16".to_owned()];

    let second = records.update(&change).await.unwrap();

    assert_ne!(second.metadata.resource_version, first.metadata.resource_version);
    assert_eq!(second.metadata.uid, first.metadata.uid);
    assert_eq!(second.metadata.creation_timestamp, first.metadata.creation_timestamp);
    change.spec.cluster_cidr = vec!["10.9.0.0/16".to_owned()];
    assert!(matches!(records.update(&change).await, Err(StoreError::Conflict { .. })));
    change.metadata.resource_version = None;
    assert!(matches!(records.update(&change).await, Err(StoreError::Conflict { .. })));
    assert!(matches!(records.update(&cluster("west")).await, Err(StoreError::NotFound { .. })));
    assert_eq!(records.find("east").await.unwrap(), Some(second));
}

#[tokio::test]
async fn applying_writes_only_differences() {
    let (root, records) = store();
    let mut endpoint = Endpoint::new("east-cable", EndpointSpec::default());
    assert_eq!(records.apply(&endpoint).await.unwrap(), Applied::Created);
    let created = records.find::<Endpoint>("east-cable").await.unwrap().unwrap();
    let inode = || fs::metadata(root.path().join("endpoints/east-cable.yaml")).unwrap().ino();
    let before = inode();

    assert_eq!(records.apply(&endpoint).await.unwrap(), Applied::Unchanged);
    assert_eq!(inode(), before);

    endpoint.spec.hostname = "node".to_owned();
    assert_eq!(records.apply(&endpoint).await.unwrap(), Applied::Updated);
    let updated = records.find::<Endpoint>("east-cable").await.unwrap().unwrap();
    assert_eq!(updated.spec.hostname, "node");
    assert_eq!(updated.metadata.uid, created.metadata.uid);
}

#[tokio::test]
async fn deleting_tells_whether_something_was_there() {
    let (root, records) = store();
    records.create(&cluster("east")).await.unwrap();
    put(&root, "clusters/west.yml", "garbage: [");

    assert!(records.delete::<Cluster>("east").await.unwrap());
    assert!(records.delete::<Cluster>("west").await.unwrap());
    assert!(!records.delete::<Cluster>("east").await.unwrap());
    assert!(!records.delete::<Gateway>("east").await.unwrap());
    assert_eq!(records.list::<Cluster>().await.unwrap(), Listing { records: vec![], problems: vec![] });
}

#[tokio::test]
async fn a_hand_written_file_is_as_old_as_its_last_change() {
    let (root, records) = store();
    put(&root, "clusters/east.yml", EAST);
    let modified = fs::metadata(root.path().join("clusters/east.yml")).unwrap().mtime();

    let mut east = records.find::<Cluster>("east").await.unwrap().unwrap();

    assert_eq!(east.metadata.creation_timestamp.as_ref().unwrap().0.as_second(), modified);
    assert_eq!(east.metadata.uid, None);
    let created = east.metadata.creation_timestamp.clone();
    east.spec.color_codes = vec!["blue".to_owned()];
    let updated = records.update(&east).await.unwrap();
    assert!(updated.metadata.uid.is_some());
    assert_eq!(updated.metadata.creation_timestamp, created);
    // It stays in its own file.
    assert_eq!(records.list::<Cluster>().await.unwrap(), Listing { records: vec![updated], problems: vec![] });
}

#[tokio::test]
async fn an_edit_by_hand_is_seen_and_is_a_conflict() {
    let (root, records) = store();
    let mut east = records.create(&cluster("east")).await.unwrap();
    records.list::<Cluster>().await.unwrap();
    put(&root, "clusters/east.yaml", EAST);

    let listed = records.list::<Cluster>().await.unwrap().records;

    assert_ne!(listed[0].metadata.resource_version, east.metadata.resource_version);
    east.spec.color_codes = vec!["blue".to_owned()];
    assert!(matches!(records.update(&east).await, Err(StoreError::Conflict { .. })));
}

#[tokio::test]
async fn of_a_file_that_stays_the_object_stays() {
    let (root, records) = store();
    put(&root, "clusters/east.yml", EAST);
    put(&root, "clusters/west.yml", &EAST.replace("east", "west"));
    let before = records.list_shared::<Cluster>().await.unwrap();
    // As soon after the last change as this, the same stamp may be another content.
    put(&root, "clusters/west.yml", &EAST.replace("east", "west").replace("spec:", "spec: "));

    let after = records.list_shared::<Cluster>().await.unwrap();

    assert!(Arc::ptr_eq(&before.records[0], &after.records[0]));
    assert!(!Arc::ptr_eq(&before.records[1], &after.records[1]));
}

#[tokio::test]
async fn a_malformed_file_is_reported_with_line_and_field_while_others_list() {
    let (root, records) = store();
    records.create(&cluster("good")).await.unwrap();
    put(
        &root,
        "clusters/field.yaml",
        "apiVersion: submariner.io/v1\nkind: Cluster\nmetadata: {name: field}\nspec:\n  service_cidr:\n  - 10.0.0.0/8\n  - [1]\n",
    );
    put(&root, "clusters/syntax.yaml", "apiVersion: submariner.io/v1\nkind: [\n");
    put(&root, "clusters/kind.yaml", &EAST.replace("kind: Cluster", "kind: Endpoint"));
    put(&root, "clusters/group.yaml", &EAST.replace("submariner.io/v1", "v1"));
    put(&root, "clusters/other.yaml", EAST);
    put(&root, "clusters/good.yml", &EAST.replace("east", "good"));
    put(&root, "clusters/Bad_Name.yaml", &EAST.replace("east", "Bad_Name"));
    put(&root, "clusters/empty.yaml", "");
    put(&root, "clusters/two.yaml", &format!("{EAST}---\n{EAST}"));
    put(&root, "clusters/binary.yaml", "\u{0}\u{1}");
    put(&root, "clusters/.hidden.yaml", "garbage: [");
    put(&root, "clusters/README", "not a record");
    fs::create_dir(root.path().join("clusters/directory.yaml")).unwrap();

    let listing = records.list::<Cluster>().await.unwrap();

    assert_eq!(listing.records.iter().map(Record::name).collect::<Vec<_>>(), ["good"]);
    let problem = |name: &str| {
        listing.problems.iter().find(|p| matches!(&p.place, Place::File(file) if file.ends_with(name))).expect(name)
    };
    assert_eq!(listing.problems.len(), 11, "{:?}", listing.problems);
    let field = problem("field.yaml");
    assert_eq!(
        (field.line, field.field.as_deref(), field.name()),
        (Some(7), Some("spec.service_cidr[1]"), Some("field"))
    );
    let text = field.to_string();
    assert!(text.contains("clusters/field.yaml:7: spec.service_cidr[1]: invalid type: sequence"), "{text}");
    assert!(problem("syntax.yaml").line.is_some());
    assert_eq!((problem("kind.yaml").line, problem("kind.yaml").field.as_deref()), (Some(2), Some("kind")));
    assert_eq!((problem("group.yaml").line, problem("group.yaml").field.as_deref()), (Some(1), Some("apiVersion")));
    assert_eq!(problem("other.yaml").field.as_deref(), Some("metadata.name"));
    for name in ["good.yml", "Bad_Name.yaml", "empty.yaml", "two.yaml", "binary.yaml", "directory.yaml"] {
        assert!(!problem(name).message.is_empty());
    }
    // The same again, from the cache or not.
    assert_eq!(records.list::<Cluster>().await.unwrap(), listing);
}

#[tokio::test]
async fn a_file_of_the_wrong_size_or_type_does_no_harm() {
    let (root, records) = store();
    put(&root, "clusters/huge.yaml", &"#".repeat(2 << 20));
    put(&root, "clusters/east.yaml", EAST);
    nix::unistd::mkfifo(&root.path().join("clusters/pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    let listing = records.list::<Cluster>().await.unwrap();

    assert_eq!((listing.records.len(), listing.problems.len()), (1, 2), "{:?}", listing.problems);
}

#[tokio::test]
async fn a_file_that_is_not_understood_is_not_replaced() {
    let (root, records) = store();
    put(&root, "clusters/east.yaml", "kind: Cluster\n");

    assert!(matches!(records.apply(&cluster("east")).await, Err(StoreError::Unreadable { .. })));
    assert!(matches!(records.update(&cluster("east")).await, Err(StoreError::Unreadable { .. })));
    assert!(matches!(records.create(&cluster("east")).await, Err(StoreError::Exists { .. })));
    assert!(matches!(records.find::<Cluster>("east").await, Err(StoreError::Unreadable { .. })));
    assert_eq!(fs::read_to_string(root.path().join("clusters/east.yaml")).unwrap(), "kind: Cluster\n");
}

#[tokio::test]
async fn a_wrong_kind_is_not_written() {
    let (root, records) = store();
    let mut odd = cluster("east");
    odd.kind = "Endpoint".to_owned();

    assert!(matches!(records.create(&odd).await, Err(StoreError::Unreadable { .. })));
    assert!(!root.path().join("clusters/east.yaml").exists());
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_refused() {
    let (_root, records) = store();
    for name in
        ["", ".", "..", "../x", "a/b", "/etc/passwd", "A", "a_b", "-a", "a.", ".a", "a..b", "a\0", &"x".repeat(251)]
    {
        assert!(matches!(records.find::<Cluster>(name).await, Err(StoreError::Name { .. })), "{name:?}");
        assert!(matches!(records.delete::<Cluster>(name).await, Err(StoreError::Name { .. })), "{name:?}");
        assert!(matches!(records.create(&cluster(name)).await, Err(StoreError::Name { .. })), "{name:?}");
        assert!(matches!(records.update(&cluster(name)).await, Err(StoreError::Name { .. })), "{name:?}");
        assert!(matches!(records.apply(&cluster(name)).await, Err(StoreError::Name { .. })), "{name:?}");
    }
    let longest = "x".repeat(250);
    records.create(&cluster(&longest)).await.unwrap();
    assert!(records.find::<Cluster>(&longest).await.unwrap().is_some());
}

#[tokio::test]
async fn a_missing_root_is_away_and_never_made() {
    let (root, _) = store();
    let path = root.path().join("away");
    let records = Records::open(&path);

    assert!(matches!(records.list::<Cluster>().await, Err(StoreError::Away { .. })));
    assert!(matches!(records.find::<Cluster>("east").await, Err(StoreError::Away { .. })));
    assert!(matches!(records.create(&cluster("east")).await, Err(StoreError::Away { .. })));
    assert!(matches!(records.update(&cluster("east")).await, Err(StoreError::Away { .. })));
    assert!(matches!(records.apply(&cluster("east")).await, Err(StoreError::Away { .. })));
    assert!(matches!(records.delete::<Cluster>("east").await, Err(StoreError::Away { .. })));
    assert!(!path.exists());

    fs::create_dir(&path).unwrap();
    assert_eq!(records.list::<Cluster>().await.unwrap(), Listing { records: vec![], problems: vec![] });
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "a file").unwrap();
    assert!(matches!(records.list::<Cluster>().await, Err(StoreError::Away { .. })));
}

#[tokio::test]
async fn odd_texts_survive_the_file() {
    let (_root, records) = store();
    let texts = [
        "",
        " ",
        "yes",
        "null",
        "~",
        "0x10",
        "1e3",
        "012",
        "1_000",
        "12:30:45",
        "- a",
        "a: b",
        "#",
        "é\u{7}",
        "a\nb\r\n",
        "'\"",
        "=",
        "<<",
        "2024-01-01",
        ".inf",
    ];
    let mut status = GatewayStatus::default();
    status.local_endpoint.subnets = texts.map(str::to_owned).to_vec();
    status.local_endpoint.backend_config = texts.iter().map(|text| ((*text).to_owned(), (*text).to_owned())).collect();

    let created = records.create(&Gateway::new("east", status.clone())).await.unwrap();

    assert_eq!(created.status, status);
    assert_eq!(records.find("east").await.unwrap(), Some(created));
}

#[tokio::test]
async fn leftovers_of_a_crash_are_ignored_and_removed_by_the_next_writer() {
    let (root, records) = store();
    put(&root, "clusters/.tmp", "half a rec");

    assert_eq!(records.list::<Cluster>().await.unwrap(), Listing { records: vec![], problems: vec![] });
    records.create(&cluster("east")).await.unwrap();

    let names: Vec<_> = fs::read_dir(root.path().join("clusters")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["east.yaml"]);
}

#[test]
fn of_many_candidates_exactly_one_takes_a_lease() {
    const CANDIDATES: usize = 8;
    let (root, records) = store();
    block_on(records.create(&lease("lock"))).unwrap();
    let start = std::sync::Barrier::new(CANDIDATES);

    let attempt = |candidate: usize| {
        let records = Records::open(root.path());
        let mut lease = block_on(records.find::<Lease>("lock")).unwrap().unwrap();
        start.wait();
        lease.spec.get_or_insert_default().holder_identity = Some(candidate.to_string());
        match block_on(records.update(&lease)) {
            Ok(_) => Some(candidate),
            Err(StoreError::Conflict { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    };

    let winners: Vec<usize> = thread::scope(|scope| {
        let attempt = &attempt;
        let threads: Vec<_> = (0..CANDIDATES).map(|candidate| scope.spawn(move || attempt(candidate))).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });

    assert_eq!(winners.len(), 1);
    let holder = block_on(records.find::<Lease>("lock")).unwrap().unwrap().spec.unwrap().holder_identity;
    assert_eq!(holder, Some(winners[0].to_string()));
}

#[test]
fn a_record_that_is_being_replaced_is_in_every_listing() {
    // Also where files live in memory: the kernel reads such directories another way.
    for base in ["/dev/shm", "/tmp"] {
        let root = tempfile::tempdir_in(base).unwrap();
        let records = Records::open(root.path());
        for number in 0..20 {
            block_on(records.create(&cluster(&format!("c{number}")))).unwrap();
        }
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let writer = Records::open(root.path());
                for round in 0..400 {
                    let mut change = cluster(&format!("c{}", round % 20));
                    change.spec.color_codes = vec![round.to_string()];
                    block_on(writer.apply(&change)).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                let listing = block_on(records.list::<Cluster>()).unwrap();
                assert_eq!((listing.records.len(), listing.problems), (20, vec![]));
            }
        });
    }
}
