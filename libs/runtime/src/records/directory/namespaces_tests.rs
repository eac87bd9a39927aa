//! Objects of all namespaces in real directories: where their files lie, and what is wrong with those that lie elsewhere.

use culvert_api::{Gateway, GatewayStatus, Lease, LeaseSpec, ObjectMeta, Service};
use k8s_openapi::api::core::v1::{ServiceSpec, ServiceStatus};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::{Location, Objects, Records};

/// A kind without namespaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Zone {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
}

impl Record for Zone {
    const API_VERSION: &'static str = "example.org/v1";
    const KIND: &'static str = "Zone";
    const PLURAL: &'static str = "zones";
    const IS_NAMESPACED: bool = false;

    fn api_version(&self) -> &str {
        &self.api_version
    }

    fn kind(&self) -> &str {
        &self.kind
    }

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn zone(name: &str) -> Zone {
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    Zone { api_version: "example.org/v1".to_owned(), kind: "Zone".to_owned(), metadata }
}

fn lease(namespace: &str, name: &str) -> Lease {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
        ..ObjectMeta::default()
    };
    Lease { metadata, spec: Some(LeaseSpec::default()) }
}

fn gateway(version: &str) -> Gateway {
    let status = GatewayStatus { version: version.to_owned(), ..GatewayStatus::default() };
    let mut gateway = Gateway::new("gw", status);
    gateway.metadata.namespace = Some("shop".to_owned());
    gateway
}

async fn store() -> (TempDir, Objects) {
    let root = tempfile::tempdir().unwrap();
    let objects = Objects::at(&Location::from(root.path()), "test").await.unwrap();
    (root, objects)
}

fn put(root: &TempDir, file: &str, text: &str) {
    let path = root.path().join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const LEASE: &str = "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata:\n  name: a\n";

fn keys<R: Record>(listing: &Listing<R>) -> Vec<(&str, &str)> {
    listing.records.iter().map(|record| (record.namespace(), record.name())).collect()
}

#[tokio::test]
async fn objects_are_found_listed_and_deleted_in_their_namespaces() {
    let (root, objects) = store().await;
    assert_eq!(objects.list::<Lease>().await.unwrap().records, []);
    for (namespace, name) in [("shop", "b"), ("shop", "a"), ("a-b", "a"), ("a", "c")] {
        objects.create(&lease(namespace, name)).await.unwrap();
    }
    put(&root, "leases/a/a.yml", LEASE);
    put(&root, "leases/a/.hidden.yaml", "garbage: [");
    put(&root, "leases/README", "not an object");

    let listing = objects.list::<Lease>().await.unwrap();

    assert_eq!(keys(&listing), [("a", "a"), ("a", "c"), ("a-b", "a"), ("shop", "a"), ("shop", "b")]);
    assert_eq!(listing.problems, []);
    assert!(root.path().join("leases/shop/b.yaml").is_file());
    let found = objects.find::<Lease>("a", "a").await.unwrap().unwrap();
    assert_eq!(found.namespace(), "a", "the file need not say it");
    assert_eq!(objects.find::<Lease>("shop", "c").await.unwrap(), None);
    let again = objects.create(&lease("shop", "a")).await.unwrap_err().to_string();
    assert!(again.starts_with("Lease shop/a exists already"), "{again}");

    assert!(objects.delete::<Lease>("shop", "a").await.unwrap());
    assert!(!objects.delete::<Lease>("shop", "a").await.unwrap());
    assert!(!objects.delete::<Lease>("nowhere", "a").await.unwrap());
    fs::remove_dir_all(root.path().join("leases/a-b")).unwrap();
    assert_eq!(keys(&objects.list::<Lease>().await.unwrap()), [("a", "a"), ("a", "c"), ("shop", "b")]);
}

#[tokio::test]
async fn objects_without_namespaces_lie_beside_their_kind() {
    let (root, objects) = store().await;
    objects.create(&zone("b")).await.unwrap();
    objects.apply(&zone("a")).await.unwrap();
    let text = "apiVersion: example.org/v1\nkind: Zone\nmetadata: {name: c, namespace: shop}\n";
    put(&root, "zones/c.yaml", text);

    let listing = objects.list::<Zone>().await.unwrap();

    assert_eq!(keys(&listing), [("", "a"), ("", "b")]);
    let problem = listing.problems[0].to_string();
    assert!(
        problem.ends_with("zones/c.yaml: metadata.namespace: \"shop\", but the kind has no namespaces: leave it out")
    );
    assert!(root.path().join("zones/a.yaml").is_file());
    assert!(objects.find::<Zone>("", "a").await.unwrap().is_some());
    assert!(objects.delete::<Zone>("", "a").await.unwrap());
}

#[tokio::test]
async fn what_lies_in_the_wrong_place_is_named_and_hides_nothing() {
    let (root, objects) = store().await;
    put(&root, "leases/shop/a.yaml", LEASE);
    put(&root, "leases/other/a.yaml", &LEASE.replace("  name: a\n", "  name: a\n  namespace: shop\n"));
    put(&root, "leases/a.yaml", LEASE);
    put(&root, "leases/No_Name/a.yaml", LEASE);
    put(&root, "leases/shop/broken.yaml", "kind: [");

    let listing = objects.list::<Lease>().await.unwrap();

    assert_eq!(keys(&listing), [("shop", "a")]);
    let problem = |end: &str| {
        let texts = listing.problems.iter().map(ToString::to_string);
        assert_eq!(texts.filter(|text| text.contains(end)).count(), 1, "{end}: {:?}", listing.problems);
    };
    assert_eq!(listing.problems.len(), 4);
    problem("leases/a.yaml: it lies in no namespace: move it to");
    problem("leases/No_Name: no namespace is called so");
    problem("leases/other/a.yaml: metadata.namespace: \"shop\", but this directory is for \"other\"");
    problem("leases/shop/broken.yaml:1");
    let broken = listing.problems.iter().find(|problem| problem.name() == Some("broken")).unwrap();
    assert_eq!(broken.namespace(), Some("shop"));
    assert_eq!(objects.list::<Lease>().await.unwrap(), listing, "from the cache, too");
    let error = objects.find::<Lease>("other", "a").await.unwrap_err();
    assert!(matches!(error, StoreError::Unreadable { .. }), "{error}");
}

#[tokio::test]
async fn namespaces_that_lead_elsewhere_are_refused() {
    let (_root, objects) = store().await;
    for namespace in ["", ".", "..", "../x", "a/b", "A", "a.b", &"x".repeat(64)] {
        let error = objects.find::<Lease>(namespace, "a").await.unwrap_err();
        assert!(matches!(error, StoreError::Namespace { .. }), "{error}");
        assert!(matches!(objects.create(&lease(namespace, "a")).await, Err(StoreError::Namespace { .. })));
        assert!(matches!(objects.apply(&lease(namespace, "a")).await, Err(StoreError::Namespace { .. })));
        assert!(matches!(objects.apply_status(&lease(namespace, "a")).await, Err(StoreError::Namespace { .. })));
        assert!(matches!(objects.delete::<Lease>(namespace, "a").await, Err(StoreError::Namespace { .. })));
    }
    let error = objects.find::<Zone>("shop", "a").await.unwrap_err().to_string();
    assert_eq!(error, "Zone a cannot be in namespace \"shop\": the kind has none, so name none");
    assert!(matches!(objects.find::<Lease>("shop", "../a").await, Err(StoreError::Name { .. })));
}

#[tokio::test]
async fn a_status_is_applied_to_what_is_there_and_changes_nothing_else() {
    let (root, objects) = store().await;
    assert!(matches!(objects.apply_status(&gateway("1")).await, Err(StoreError::NotFound { .. })));
    let by_hand = "apiVersion: submariner.io/v1\nkind: Gateway\nmetadata: {name: gw, labels: {theirs: x}}\n";
    put(&root, "gateways/shop/gw.yaml", by_hand);

    assert_eq!(objects.apply_status(&gateway("1")).await.unwrap(), Applied::Updated);
    assert_eq!(objects.apply_status(&gateway("1")).await.unwrap(), Applied::Unchanged);

    let mut found = objects.find::<Gateway>("shop", "gw").await.unwrap().unwrap();
    assert_eq!((found.status.version.as_str(), found.namespace()), ("1", "shop"));
    assert_eq!(found.metadata.labels.as_ref().unwrap()["theirs"], "x");
    found.status.version = "2".to_owned();
    found.metadata.labels = None;
    assert_eq!(objects.apply_status(&found).await.unwrap(), Applied::Updated);
    let after = objects.find::<Gateway>("shop", "gw").await.unwrap().unwrap();
    assert_eq!((after.status.version.as_str(), after.metadata.labels.unwrap()["theirs"].as_str()), ("2", "x"));

    objects.delete::<Gateway>("shop", "gw").await.unwrap();
    objects.create(&gateway("new")).await.unwrap();
    assert!(matches!(objects.apply_status(&found).await, Err(StoreError::Conflict { .. })), "another of that name");
}

#[tokio::test]
async fn an_apply_without_a_status_leaves_it() {
    let (root, objects) = store().await;
    let mut service = Service::default();
    service.metadata.name = Some("web".to_owned());
    service.metadata.namespace = Some("shop".to_owned());
    service.status = Some(ServiceStatus::default());
    objects.create(&service).await.unwrap();
    assert!(fs::read_to_string(root.path().join("services/shop/web.yaml")).unwrap().contains("status:"));
    service.status = None;
    assert_eq!(objects.apply(&service).await.unwrap(), Applied::Unchanged);
    service.spec = Some(ServiceSpec::default());
    assert_eq!(objects.apply(&service).await.unwrap(), Applied::Updated);
    let found = objects.find::<Service>("shop", "web").await.unwrap().unwrap();
    assert!(found.spec.is_some() && found.status.is_some());
}

#[tokio::test]
async fn applying_the_same_writes_nothing() {
    let (_root, objects) = store().await;
    assert_eq!(objects.apply(&gateway("1")).await.unwrap(), Applied::Created);
    assert_eq!(objects.apply(&gateway("1")).await.unwrap(), Applied::Unchanged);
    assert_eq!(objects.apply(&gateway("2")).await.unwrap(), Applied::Updated);
}

#[tokio::test]
async fn records_of_the_own_namespace_are_beside_and_apart() {
    let (root, objects) = store().await;
    let records = Records::open(root.path());
    records.create(&lease("", "own")).await.unwrap();
    objects.create(&zone("a")).await.unwrap();
    objects.create(&gateway("1")).await.unwrap();

    assert_eq!(keys(&records.list::<Lease>().await.unwrap()), [("", "own")]);
    assert!(records.list::<Gateway>().await.unwrap().records.is_empty());
    assert!(records.list::<Gateway>().await.unwrap().problems.is_empty());
}

#[tokio::test]
async fn a_change_in_a_new_namespace_rings() {
    let (root, objects) = store().await;
    let mut watch = objects.watch(const { &[Lease::RESOURCE, Zone::RESOURCE] });
    let soon = Duration::from_secs(5);
    for object in [lease("shop", "a"), lease("shop", "b"), lease("other", "a")] {
        objects.create(&object).await.unwrap();
        timeout(soon, watch.changed()).await.expect("a change");
    }
    // The directories were made before the file was there, which may have been told apart.
    while timeout(Duration::from_millis(200), watch.changed()).await.is_ok() {}
    put(&root, "leases/other/a.yaml", LEASE);
    timeout(soon, watch.changed()).await.expect("a change by hand");
    objects.create(&zone("a")).await.unwrap();
    timeout(soon, watch.changed()).await.expect("a change of a kind without namespaces");
}

#[tokio::test]
async fn a_missing_root_is_away_and_never_made() {
    let (root, _) = store().await;
    let path = root.path().join("away");
    let objects = Objects::at(&Location::from(&path), "test").await.unwrap();
    assert!(objects.list::<Lease>().await.unwrap_err().is_away());
    assert!(objects.create(&lease("shop", "a")).await.unwrap_err().is_away());
    assert!(objects.apply_status(&gateway("1")).await.unwrap_err().is_away());
    assert!(!path.exists() && objects.outage().is_none());
}
