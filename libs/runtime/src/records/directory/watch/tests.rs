//! What counts as a change in real directories, and what does not; what is not inotify's to see is found by polling.

use culvert_api::{Cluster, Endpoint, Record};
use tokio::time::timeout;

use super::*;

/// Longer than a poll, so that what polling finds is found.
const SOON: Duration = Duration::from_secs(5);
/// Shorter than a poll.
const SHORT: Duration = Duration::from_millis(200);

async fn assert_changed(watch: &mut Watch) {
    timeout(SOON, watch.changed()).await.expect("a change");
}

async fn assert_quiet(watch: &mut Watch) {
    assert!(timeout(SHORT, watch.changed()).await.is_err(), "a change where there was none");
}

const KINDS: &[Resource] = &[Cluster::RESOURCE, Endpoint::RESOURCE];

fn store() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("endpoints")).unwrap();
    root
}

#[tokio::test]
async fn a_change_before_the_call_is_not_lost_and_counts_once() {
    let root = store();
    let mut watch = Watch::new(root.path(), Layout::Flat, KINDS);
    fs::write(root.path().join("endpoints/a.yaml"), "a").unwrap();
    fs::write(root.path().join("endpoints/b.yaml"), "b").unwrap();

    assert_changed(&mut watch).await;
    assert_quiet(&mut watch).await;
}

#[tokio::test]
async fn replacing_editing_and_deleting_are_changes() {
    let root = store();
    let (file, temporary) = (root.path().join("endpoints/a.yaml"), root.path().join("endpoints/.tmp"));
    let mut watch = Watch::new(root.path(), Layout::Flat, KINDS);

    fs::write(&temporary, "a").unwrap();
    fs::rename(&temporary, &file).unwrap();
    assert_changed(&mut watch).await;

    fs::write(&file, "edited").unwrap();
    assert_changed(&mut watch).await;

    fs::remove_file(&file).unwrap();
    assert_changed(&mut watch).await;
    assert_quiet(&mut watch).await;
}

#[tokio::test]
async fn dotfiles_are_no_change() {
    let root = store();
    let mut watch = Watch::new(root.path(), Layout::Flat, KINDS);
    fs::write(root.path().join(".lock"), "").unwrap();
    fs::write(root.path().join("endpoints/.tmp"), "").unwrap();

    assert_quiet(&mut watch).await;
}

#[tokio::test]
async fn other_kinds_do_not_count() {
    let root = store();
    fs::create_dir(root.path().join("leases")).unwrap();
    let mut watch = Watch::new(root.path(), Layout::Flat, KINDS);
    fs::write(root.path().join("leases/a.yaml"), "a").unwrap();

    assert_quiet(&mut watch).await;
}

#[tokio::test]
async fn a_new_kind_is_watched_from_its_making() {
    let root = store();
    let mut watch = Watch::new(root.path(), Layout::Flat, KINDS);
    fs::create_dir(root.path().join("clusters")).unwrap();
    assert_changed(&mut watch).await;

    fs::write(root.path().join("clusters/a.yaml"), "a").unwrap();
    assert_changed(&mut watch).await;
}

#[tokio::test]
async fn a_root_that_comes_back_is_a_change_and_is_watched() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("store");
    let mut watch = Watch::new(&root, Layout::Flat, KINDS);
    assert_quiet(&mut watch).await;

    fs::create_dir_all(root.join("endpoints")).unwrap();
    assert_changed(&mut watch).await;

    fs::write(root.join("endpoints/a.yaml"), "a").unwrap();
    assert_changed(&mut watch).await;
}

#[tokio::test]
async fn a_root_that_goes_away_is_a_change() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("store");
    fs::create_dir(&root).unwrap();
    let mut watch = Watch::new(&root, Layout::Flat, KINDS);

    fs::rename(&root, parent.path().join("elsewhere")).unwrap();
    assert_changed(&mut watch).await;
    assert_quiet(&mut watch).await;

    fs::rename(parent.path().join("elsewhere"), &root).unwrap();
    assert_changed(&mut watch).await;
}

#[tokio::test]
async fn a_root_replaced_unseen_is_a_change() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("above/store");
    fs::create_dir_all(&root).unwrap();
    let mut watch = Watch::new(&root, Layout::Flat, KINDS);

    // No event tells of a move further up.
    fs::rename(parent.path().join("above"), parent.path().join("elsewhere")).unwrap();
    fs::create_dir_all(root.join("endpoints")).unwrap();
    assert_changed(&mut watch).await;

    fs::write(root.join("endpoints/a.yaml"), "a").unwrap();
    assert_changed(&mut watch).await;
}

#[tokio::test]
async fn polling_goes_on_under_a_caller_that_always_cancels() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("store");
    let mut watch = Watch::new(&root, Layout::Flat, KINDS);
    fs::create_dir(&root).unwrap();

    let cancelled = async { while timeout(SHORT, watch.changed()).await.is_err() {} };

    timeout(SOON, cancelled).await.expect("a change in spite of the cancelled calls");
}

#[tokio::test]
async fn an_overflow_is_a_change_and_finds_new_kinds() {
    let root = store();
    let mut watch = Watch::new(root.path(), Layout::Flat, KINDS);
    let limit: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    // Equal neighbours are merged, so two names take turns.
    let files = ["a.yaml", "b.yaml"].map(|name| root.path().join("endpoints").join(name));
    for _ in 0..limit / 4 + 1 {
        for file in &files {
            fs::write(file, "x").unwrap();
        }
    }
    fs::create_dir(root.path().join("clusters")).unwrap();
    assert_changed(&mut watch).await;

    fs::write(root.path().join("clusters/a.yaml"), "a").unwrap();
    assert_changed(&mut watch).await;
}

#[tokio::test]
async fn directories_of_namespaces_are_watched_from_their_making() {
    let root = store();
    fs::create_dir(root.path().join("endpoints/shop")).unwrap();
    let mut watch = Watch::new(root.path(), Layout::ByNamespace, KINDS);
    fs::write(root.path().join("endpoints/shop/a.yaml"), "a").unwrap();
    assert_changed(&mut watch).await;

    fs::create_dir(root.path().join("endpoints/other")).unwrap();
    assert_changed(&mut watch).await;
    fs::write(root.path().join("endpoints/other/a.yaml"), "a").unwrap();
    assert_changed(&mut watch).await;

    fs::create_dir_all(root.path().join("clusters/shop")).unwrap();
    assert_changed(&mut watch).await;
    // What is made before its directory is watched belongs to the change that was just told.
    fs::write(root.path().join("clusters/shop/a.yaml"), "a").unwrap();
    assert_changed(&mut watch).await;

    fs::rename(root.path().join("endpoints/other"), root.path().join("endpoints/third")).unwrap();
    assert_changed(&mut watch).await;
    fs::remove_dir_all(root.path().join("endpoints/shop")).unwrap();
    assert_changed(&mut watch).await;
    fs::create_dir(root.path().join("endpoints/shop")).unwrap();
    assert_changed(&mut watch).await;
    fs::write(root.path().join("endpoints/shop/.tmp"), "a").unwrap();
    assert_quiet(&mut watch).await;
    fs::write(root.path().join("endpoints/shop/a.yaml"), "a").unwrap();
    assert_changed(&mut watch).await;
}

#[tokio::test]
async fn directories_below_the_kinds_are_nothing_where_there_are_no_namespaces() {
    let root = store();
    fs::create_dir(root.path().join("endpoints/shop")).unwrap();
    let mut watch = Watch::new(root.path(), Layout::Flat, KINDS);
    fs::write(root.path().join("endpoints/shop/a.yaml"), "a").unwrap();

    assert_quiet(&mut watch).await;
}
