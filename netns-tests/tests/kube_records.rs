//! The record store at a real API server: what it promises, and what an outage, a refusal and others' hands do to it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use culvert_api::{
    Cluster as ClusterRecord, ClusterSpec, Endpoint, EndpointSpec, Gateway, GatewayStatus, Record, Resource,
    RouteAgent, RouteAgentStatus,
};
use culvert_netns_tests::kubernetes::{Cluster, Lab, Plan, ProxyMode};
use culvert_netns_tests::{kill_control_plane, start_control_plane};
use culvert_runtime::lease::{LeaseLock, LeaseWritten};
use culvert_runtime::{Access, Applied, Choice, Listing, Location, Records, Server, StoreError};
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

mod kube_objects;

const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster with a namespace to itself in each test.
struct Store<'a> {
    cluster: &'a Cluster,
    namespace: &'static str,
}

impl<'a> Store<'a> {
    fn new(cluster: &'a Cluster, namespace: &'static str) -> Self {
        cluster.kubectl(&format!("create namespace {namespace}")).unwrap();
        Self { cluster, namespace }
    }

    async fn open(&self, manager: &str) -> Records {
        let access = Access::Kubeconfig { file: Some(self.cluster.kubeconfig()), choice: Choice::default() };
        let server = Server { access, namespace: Some(self.namespace.to_owned()) };
        Records::at(&Location::Server(server), manager).await.unwrap()
    }

    fn kubectl(&self, line: &str) -> String {
        self.cluster.kubectl(&format!("--namespace {} {line}", self.namespace)).unwrap()
    }

    fn object(&self, plural: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&format!("get {plural}.submariner.io {name} --output json"))).unwrap()
    }

    /// Applies fields as another manager does, server-side.
    fn apply_as(&self, manager: &str, mut object: Value) {
        object["metadata"]["namespace"] = self.namespace.into();
        let mut kubectl = self.cluster.kubectl_command();
        kubectl.args(["apply", "--server-side", "--field-manager", manager, "--filename", "-"]);
        culvert_netns_tests::run_with_input(&mut kubectl, &object.to_string()).unwrap();
    }
}

fn endpoint(cluster: &str, subnets: &[&str]) -> Endpoint {
    let spec = EndpointSpec {
        cluster_id: cluster.to_owned(),
        cable_name: format!("submariner-cable-{cluster}-10-0-0-1"),
        hostname: format!("{cluster}-gw"),
        subnets: subnets.iter().map(|&subnet| subnet.to_owned()).collect(),
        private_ip: "10.0.0.1".to_owned(),
        backend: "wireguard".to_owned(),
        backend_config: BTreeMap::from([("publicKey".to_owned(), "k".to_owned())]),
        ..EndpointSpec::default()
    };
    Endpoint::new(cluster, spec)
}

fn member(id: &str) -> ClusterRecord {
    ClusterRecord::new(id, ClusterSpec { cluster_id: id.to_owned(), ..ClusterSpec::default() })
}

fn agent(name: &str, version: &str) -> RouteAgent {
    let status = RouteAgentStatus { version: version.to_owned(), ..RouteAgentStatus::default() };
    RouteAgent::new(name, status)
}

fn names<R: Record>(listing: &Listing<R>) -> Vec<&str> {
    listing.records.iter().map(Record::name).collect()
}

/// The kinds that [`wait_listed`] follows.
const FOLLOWED: &[Resource] = &[ClusterRecord::RESOURCE, Endpoint::RESOURCE, RouteAgent::RESOURCE];

/// Waits until every kind is followed: each comes back by itself, the one that was listed not always last.
async fn wait_followed(records: &Records) {
    let mut watch = records.watch(FOLLOWED);
    let followed = async {
        while records.outage().is_some() {
            watch.changed().await;
        }
    };
    timeout(PATIENCE, followed).await.expect("an end of the outage");
}

/// Lists until the listing is as it should be; changes wake it.
async fn wait_listed<R: Record>(records: &Records, check: impl Fn(&Listing<R>) -> bool) -> Listing<R> {
    let mut watch = records.watch(FOLLOWED);
    let listed = async {
        loop {
            if let Ok(listing) = records.list::<R>().await
                && check(&listing)
            {
                return listing;
            }
            watch.changed().await;
        }
    };
    timeout(PATIENCE, listed).await.expect("such a listing")
}

fn custom_resources() -> String {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds"));
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|file| file.to_str().unwrap().contains("submariner.io"));
    files.map(|file| fs::read_to_string(file).unwrap() + "\n").collect()
}

fn install_custom_resources(cluster: &Cluster) {
    cluster.apply(&custom_resources()).unwrap();
    for plural in ["clusters", "endpoints", "gateways", "routeagents"] {
        cluster.kubectl(&format!("wait crd/{plural}.submariner.io --for=condition=Established --timeout=60s")).unwrap();
    }
}

#[test]
fn records_in_an_api_server_keep_their_promises() {
    let lab = Lab::up(&Plan::new("records", &["east"], 1, ProxyMode::None).unwrap()).unwrap();
    let cluster = lab.cluster("east");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        a_kind_that_is_not_known_is_named_and_followed_once_it_is(&Store::new(cluster, "kinds")).await;
        what_is_written_is_found_listed_and_deleted(&Store::new(cluster, "writes")).await;
        of_two_writers_on_one_state_one_wins(&Store::new(cluster, "conflicts")).await;
        a_lease_has_one_holder(&Store::new(cluster, "leases")).await;
        an_apply_of_the_same_writes_nothing(&Store::new(cluster, "applies")).await;
        managers_do_not_undo_each_other(&Store::new(cluster, "managers")).await;
        a_change_by_others_rings(&Store::new(cluster, "changes")).await;
        many_records_are_all_listed(&Store::new(cluster, "many")).await;
        who_may_not_is_told_what_he_lacks(&Store::new(cluster, "rights")).await;
        an_object_that_is_not_understood_hides_no_other(&Store::new(cluster, "broken")).await;
        a_status_that_is_served_apart_is_written_apart(&Store::new(cluster, "apart")).await;
        kube_objects::objects_of_all_namespaces_keep_the_promises_of_records(cluster).await;
        an_outage_is_lived_through(&lab, &Store::new(cluster, "outage")).await;
    });
}

async fn a_kind_that_is_not_known_is_named_and_followed_once_it_is(store: &Store<'_>) {
    let records = store.open("test").await;
    let error = records.list::<ClusterRecord>().await.unwrap_err().to_string();
    assert!(error.contains("it has no clusters of submariner.io: apply the CRDs"), "{error}");
    let error = records.find::<ClusterRecord>("east").await.unwrap_err().to_string();
    assert!(error.contains("it has no clusters of submariner.io"), "{error}");

    install_custom_resources(store.cluster);

    wait_listed::<ClusterRecord>(&records, |listing| listing.records.is_empty()).await;
    wait_followed(&records).await;
}

async fn what_is_written_is_found_listed_and_deleted(store: &Store<'_>) {
    let records = store.open("test").await;
    let created = records.create(&endpoint("west", &["10.2.0.0/16"])).await.unwrap();
    assert!(created.metadata.uid.is_some() && created.metadata.creation_timestamp.is_some());
    assert_eq!(records.find::<Endpoint>("west").await.unwrap(), Some(created.clone()));
    assert_eq!(records.list::<Endpoint>().await.unwrap().records, std::slice::from_ref(&created));
    let again = records.create(&endpoint("west", &[])).await;
    assert!(matches!(again, Err(StoreError::Exists { name, .. }) if name == "west"));

    let mut changed = created.clone();
    changed.spec.subnets.push("100.2.0.0/16".to_owned());
    let updated = records.update(&changed).await.unwrap();
    assert_ne!(updated.metadata.resource_version, created.metadata.resource_version);
    assert_eq!(updated.metadata.uid, created.metadata.uid);
    // Whoever writes reads nothing older afterwards.
    assert_eq!(records.list::<Endpoint>().await.unwrap().records, [updated]);

    assert!(records.delete::<Endpoint>("west").await.unwrap());
    assert!(!records.delete::<Endpoint>("west").await.unwrap());
    assert_eq!(records.find::<Endpoint>("west").await.unwrap(), None);
    wait_listed::<Endpoint>(&records, |listing| listing.records.is_empty()).await;
    assert!(matches!(records.update(&changed).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(records.find::<Endpoint>("../west").await, Err(StoreError::Name { .. })));
}

async fn of_two_writers_on_one_state_one_wins(store: &Store<'_>) {
    let (one, other) = (store.open("one").await, store.open("other").await);
    let state = one.create(&endpoint("west", &["10.2.0.0/16"])).await.unwrap();
    let mut first = state.clone();
    first.spec.hostname = "first".to_owned();
    let mut second = state;
    second.spec.hostname = "second".to_owned();

    one.update(&first).await.unwrap();
    assert!(matches!(other.update(&second).await, Err(StoreError::Conflict { name, .. }) if name == "west"));

    let found = other.find::<Endpoint>("west").await.unwrap().unwrap();
    assert_eq!(found.spec.hostname, "first");
    let without_version = endpoint("west", &[]);
    assert!(matches!(other.update(&without_version).await, Err(StoreError::Conflict { .. })));
}

async fn a_lease_has_one_holder(store: &Store<'_>) {
    const DURATION: Duration = Duration::from_secs(15);
    let lock = |records: Records| LeaseLock::new(records, "submariner-gateway-lock");
    let (a, b) = (lock(store.open("a").await), lock(store.open("b").await));
    assert_eq!(a.observe().await.unwrap(), None);
    assert_eq!(a.write(None, "a", DURATION, 0, Timestamp::now()).await.unwrap(), LeaseWritten::Written);
    assert_eq!(b.write(None, "b", DURATION, 0, Timestamp::now()).await.unwrap(), LeaseWritten::Conflict);

    let seen = b.observe().await.unwrap().unwrap();
    assert_eq!(seen.holder.as_deref(), Some("a"));
    assert_eq!(a.write(Some(&seen.lease), "a", DURATION, 0, Timestamp::now()).await.unwrap(), LeaseWritten::Written);
    assert_eq!(b.write(Some(&seen.lease), "b", DURATION, 1, Timestamp::now()).await.unwrap(), LeaseWritten::Conflict);

    let renewed = b.observe().await.unwrap().unwrap();
    assert_ne!(renewed.renewal, seen.renewal);
    let holder = store.kubectl("get lease submariner-gateway-lock --output jsonpath={.spec.holderIdentity}");
    assert_eq!(holder, "a");
}

async fn an_apply_of_the_same_writes_nothing(store: &Store<'_>) {
    let records = store.open("culvert-gateway-east").await;
    let version = || store.object("endpoints", "east")["metadata"]["resourceVersion"].clone();
    assert_eq!(records.apply(&endpoint("east", &["10.1.0.0/16"])).await.unwrap(), Applied::Created);
    let first = version();
    assert_eq!(records.apply(&endpoint("east", &["10.1.0.0/16"])).await.unwrap(), Applied::Unchanged);
    // From what is seen, too.
    records.list::<Endpoint>().await.unwrap();
    assert_eq!(records.apply(&endpoint("east", &["10.1.0.0/16"])).await.unwrap(), Applied::Unchanged);
    assert_eq!(version(), first);

    let mut changed = endpoint("east", &["10.1.0.0/16", "100.1.0.0/16"]);
    changed.spec.backend_config = BTreeMap::from([("udp-port".to_owned(), "4500".to_owned())]);
    assert_eq!(records.apply(&changed).await.unwrap(), Applied::Updated);

    let spec = &store.object("endpoints", "east")["spec"];
    assert_eq!(spec["subnets"], json!(["10.1.0.0/16", "100.1.0.0/16"]));
    assert_eq!(spec["backend_config"], json!({"udp-port": "4500"}), "what is no longer applied is gone");
}

async fn managers_do_not_undo_each_other(store: &Store<'_>) {
    let records = store.open("culvert-route-agent-east").await;
    records.apply(&agent("node1", "1")).await.unwrap();
    let theirs = |text: Option<&str>| {
        let annotations: BTreeMap<&str, &str> = text.map(|text| ("theirs", text)).into_iter().collect();
        let metadata = json!({"name": "node1", "annotations": annotations});
        store.apply_as("them", json!({"apiVersion": "submariner.io/v1", "kind": "RouteAgent", "metadata": metadata}));
    };
    theirs(Some("1"));
    let is_theirs = |listing: &Listing<RouteAgent>, text: Option<&str>| {
        let annotations = listing.records[0].metadata.annotations.as_ref();
        annotations.and_then(|all| all.get("theirs")).map(String::as_str) == text
    };
    let listing = wait_listed::<RouteAgent>(&records, |listing| is_theirs(listing, Some("1"))).await;

    // As the route agent does it: the metadata that were found, and something of its own.
    let mut ours = agent("node1", "2");
    ours.metadata = listing.records[0].metadata.clone();
    ours.metadata.annotations.get_or_insert_default().insert("ours".to_owned(), "1".to_owned());
    assert_eq!(records.apply(&ours).await.unwrap(), Applied::Updated);
    assert_eq!(store.object("routeagents", "node1")["metadata"]["annotations"], json!({"theirs": "1", "ours": "1"}));

    // They take theirs away, and we do not bring it back.
    theirs(None);
    assert_eq!(store.object("routeagents", "node1")["metadata"]["annotations"], json!({"ours": "1"}));
    wait_listed::<RouteAgent>(&records, |listing| is_theirs(listing, None)).await;
    let mut ours = agent("node1", "3");
    ours.metadata.annotations = Some(BTreeMap::from([("ours".to_owned(), "1".to_owned())]));
    records.apply(&ours).await.unwrap();
    let object = store.object("routeagents", "node1");
    assert_eq!(object["metadata"]["annotations"], json!({"ours": "1"}));
    assert_eq!(object["status"]["version"], "3");

    // Whoever changes a field of ours by hand is overruled.
    store.kubectl("annotate routeagents.submariner.io node1 ours=2 --overwrite");
    wait_listed::<RouteAgent>(&records, |listing| {
        listing.records[0].metadata.annotations.as_ref().is_some_and(|all| all["ours"] == "2")
    })
    .await;
    assert_eq!(records.apply(&ours).await.unwrap(), Applied::Updated);
    assert_eq!(store.object("routeagents", "node1")["metadata"]["annotations"], json!({"ours": "1"}));
}

async fn a_change_by_others_rings(store: &Store<'_>) {
    let (records, other) = (store.open("us").await, store.open("them").await);
    let mut watch = records.watch(const { &[ClusterRecord::RESOURCE] });
    timeout(PATIENCE, watch.changed()).await.expect("the first listing rings");
    assert!(records.list::<ClusterRecord>().await.unwrap().records.is_empty());

    other.create(&member("west")).await.unwrap();
    timeout(PATIENCE, watch.changed()).await.expect("a creation rings");
    assert_eq!(names(&records.list::<ClusterRecord>().await.unwrap()), ["west"]);

    other.delete::<ClusterRecord>("west").await.unwrap();
    timeout(PATIENCE, watch.changed()).await.expect("a deletion rings");
    assert!(records.list::<ClusterRecord>().await.unwrap().records.is_empty());
}

/// More than a page of a listing.
async fn many_records_are_all_listed(store: &Store<'_>) {
    let items: Vec<Value> = (0..1_100)
        .map(|number| {
            let name = format!("member-{number}");
            let mut item = serde_json::to_value(member(&name)).unwrap();
            item["metadata"] = json!({"name": name, "namespace": store.namespace});
            item
        })
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let mut kubectl = store.cluster.kubectl_command();
    culvert_netns_tests::run_with_input(kubectl.args(["create", "--filename", "-"]), &list.to_string()).unwrap();

    let records = store.open("test").await;
    let listing = records.list::<ClusterRecord>().await.unwrap();

    assert_eq!((listing.records.len(), listing.problems.len()), (1_100, 0));
}

async fn who_may_not_is_told_what_he_lacks(store: &Store<'_>) {
    store.kubectl("create serviceaccount nobody");
    let directory = secret(store, "nobody");
    let server = Server { access: access(store, &directory), namespace: None };
    let records = Records::at(&Location::Server(server), "test").await.unwrap();

    let read = records.list::<Endpoint>().await.unwrap_err().to_string();
    let found = records.find::<Endpoint>("west").await.unwrap_err();
    let written = records.apply(&endpoint("east", &[])).await.unwrap_err().to_string();

    for text in [&read, &found.to_string(), &written] {
        assert!(text.contains("system:serviceaccount:rights:nobody may not"), "{text}");
        assert!(text.contains("endpoints in namespace rights") && text.contains("https://203.0.113.2:6443"), "{text}");
    }
    assert!(matches!(&found, StoreError::Forbidden { verb, .. } if &**verb == "get"), "{found}");

    // The right is given while it runs.
    store.kubectl("create role reader --verb=get,list,watch --resource=endpoints.submariner.io");
    store.kubectl("create rolebinding reader --role=reader --serviceaccount=rights:nobody");
    wait_listed::<Endpoint>(&records, |listing| listing.records.is_empty()).await;

    fs::write(directory.path().join("token"), "wrong").unwrap();
    let wrong = Server { access: access(store, &directory), namespace: None };
    let error = Records::at(&Location::Server(wrong), "test").await.unwrap().find::<Endpoint>("west").await;
    assert!(error.unwrap_err().to_string().contains("the token or certificate is not accepted"));
}

/// Lays out the files that a mounted Secret of an account has.
fn secret(store: &Store<'_>, account: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("token", store.kubectl(&format!("create token {account}")).trim());
    write("namespace", store.namespace);
    let authority = store.kubectl("get configmap kube-root-ca.crt --output jsonpath={.data.ca\\.crt}");
    write("ca.crt", &authority);
    directory
}

fn access(store: &Store<'_>, directory: &TempDir) -> Access {
    let address = format!("{}:6443", store.cluster.public_address);
    Access::Secret { address, directory: directory.path().to_owned() }
}

/// A definition that takes anything, and serves the status apart.
fn lax_definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "gateways.submariner.io"},
        "spec": {
            "group": "submariner.io",
            "scope": "Namespaced",
            "names": {"kind": "Gateway", "listKind": "GatewayList", "plural": "gateways", "singular": "gateway"},
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
}

async fn an_object_that_is_not_understood_hides_no_other(store: &Store<'_>) {
    store.cluster.kubectl("delete crd gateways.submariner.io").unwrap();
    store.cluster.apply(&lax_definition().to_string()).unwrap();
    store.cluster.kubectl("wait crd/gateways.submariner.io --for=condition=Established --timeout=60s").unwrap();
    let records = store.open("test").await;
    records.create(&Gateway::new("good", GatewayStatus::default())).await.unwrap();
    store.apply_as(
        "them",
        json!({
            "apiVersion": "submariner.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "bad"},
        }),
    );
    let patch =
        r#"patch gateways.submariner.io bad --subresource=status --type=merge --patch={"status":{"haStatus":7}}"#;
    store.kubectl(patch);

    let listing = records.list::<Gateway>().await.unwrap();

    assert_eq!(names(&listing), ["good"]);
    assert_eq!(listing.problems.len(), 1);
    assert_eq!(listing.problems[0].name(), Some("bad"));
    let text = listing.problems[0].to_string();
    assert!(text.starts_with("Gateway broken/bad: status.haStatus: "), "{text}");
    assert!(matches!(records.find::<Gateway>("bad").await, Err(StoreError::Unreadable { .. })));
    assert!(records.delete::<Gateway>("bad").await.unwrap());
}

async fn a_status_that_is_served_apart_is_written_apart(store: &Store<'_>) {
    let records = store.open("culvert-gateway-east").await;
    let status = |version: &str| GatewayStatus { version: version.to_owned(), ..GatewayStatus::default() };
    let stands = |version: &str| assert_eq!(store.object("gateways", "gw")["status"]["version"], version);
    assert_eq!(records.apply(&Gateway::new("gw", status("1"))).await.unwrap(), Applied::Created);
    stands("1");
    assert_eq!(records.apply(&Gateway::new("gw", status("1"))).await.unwrap(), Applied::Unchanged);
    assert_eq!(records.apply(&Gateway::new("gw", status("2"))).await.unwrap(), Applied::Updated);
    stands("2");
    assert_eq!(records.list::<Gateway>().await.unwrap().records[0].status.version, "2");
}

async fn an_outage_is_lived_through(lab: &Lab, store: &Store<'_>) {
    let records = store.open("test").await;
    records.create(&member("west")).await.unwrap();
    records.create(&member("north")).await.unwrap();
    assert_eq!(records.list::<ClusterRecord>().await.unwrap().records.len(), 2);
    let objects = kube_objects::open(store, "objects").await;
    let all = objects.list::<ClusterRecord>().await.unwrap().records.len();
    let mut rings = objects.watch(const { &[ClusterRecord::RESOURCE] });
    let mut watch = records.watch(const { &[ClusterRecord::RESOURCE] });

    kill_control_plane(store.cluster).unwrap();
    timeout(PATIENCE, watch.changed()).await.expect("an outage rings");

    let outage = records.outage().expect("an outage");
    assert!(outage.contains("https://203.0.113.2:6443 cannot be followed since"), "{outage}");
    assert_eq!(names(&records.list::<ClusterRecord>().await.unwrap()), ["north", "west"]);
    for error in [
        records.apply(&member("south")).await.unwrap_err(),
        records.find::<ClusterRecord>("west").await.unwrap_err(),
        records.delete::<ClusterRecord>("west").await.unwrap_err(),
    ] {
        assert!(error.is_away() && error.to_string().contains("https://203.0.113.2:6443"), "{error}");
    }
    timeout(PATIENCE, rings.changed()).await.expect("an outage rings here, too");
    assert!(objects.outage().is_some_and(|outage| outage.contains("https://203.0.113.2:6443")));
    assert_eq!(objects.list::<ClusterRecord>().await.unwrap().records.len(), all, "as they were seen last");
    assert!(objects.apply_status(&kube_objects::within("outage", agent("gw", "1"))).await.unwrap_err().is_away());
    // Who begins now knows nothing, which is not "there are none".
    let late = store.open("late").await;
    assert!(matches!(late.list::<ClusterRecord>().await, Err(StoreError::Unread { .. })));

    let _server = start_control_plane(lab, store.cluster).unwrap();
    store.kubectl("delete clusters.submariner.io north");

    let listing = wait_listed::<ClusterRecord>(&records, |listing| names(listing) == ["west"]).await;
    assert_eq!(listing.problems.len(), 0);
    wait_followed(&records).await;
    wait_listed::<ClusterRecord>(&late, |listing| names(listing) == ["west"]).await;
    kube_objects::wait_objects::<ClusterRecord>(&objects, |listing| listing.records.len() == all - 1).await;
    assert_eq!(objects.outage(), None);
    records.apply(&member("south")).await.unwrap();
    wait_listed::<ClusterRecord>(&late, |listing| names(listing) == ["south", "west"]).await;
}
