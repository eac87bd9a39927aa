//! Objects of all namespaces at a real API server.

use culvert_api::{ObjectMeta, Service};
use culvert_runtime::Objects;
use serde::{Deserialize, Serialize};

use super::*;

/// A kind without namespaces that every server has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterRole {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    #[serde(default)]
    rules: Option<Vec<Value>>,
}

/// A kind that no server has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Unicorn {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
}

macro_rules! kind {
    ($kind:ident, $api_version:literal, $plural:literal, $is_namespaced:literal) => {
        impl Record for $kind {
            const API_VERSION: &'static str = $api_version;
            const KIND: &'static str = stringify!($kind);
            const PLURAL: &'static str = $plural;
            const IS_NAMESPACED: bool = $is_namespaced;

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
    };
}

kind!(ClusterRole, "rbac.authorization.k8s.io/v1", "clusterroles", false);
kind!(Unicorn, "submariner.io/v1", "unicorns", true);

fn role(name: &str, verbs: &[&str]) -> ClusterRole {
    let rule = json!({"apiGroups": [""], "resources": ["services"], "verbs": verbs});
    ClusterRole {
        api_version: ClusterRole::API_VERSION.to_owned(),
        kind: ClusterRole::KIND.to_owned(),
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        rules: Some(vec![rule]),
    }
}

/// Puts a record into a namespace.
pub(super) fn within<R: Record>(namespace: &str, mut record: R) -> R {
    record.metadata_mut().namespace = Some(namespace.to_owned());
    record
}

pub(super) async fn open(store: &Store<'_>, manager: &str) -> Objects {
    let access = Access::Kubeconfig { file: Some(store.cluster.kubeconfig()), choice: Choice::default() };
    Objects::at(&Location::Server(Server { access, namespace: None }), manager).await.unwrap()
}

/// Lists until the listing is as it should be; changes wake it.
pub(super) async fn wait_objects<R: Record>(objects: &Objects, check: impl Fn(&Listing<R>) -> bool) -> Listing<R> {
    let mut watch = objects.watch(const { std::slice::from_ref(&R::RESOURCE) });
    let listed = async {
        loop {
            if let Ok(listing) = objects.list::<R>().await
                && check(&listing)
            {
                return listing;
            }
            watch.changed().await;
        }
    };
    timeout(PATIENCE, listed).await.expect("such a listing")
}

fn keys<R: Record>(listing: &Listing<R>) -> Vec<(&str, &str)> {
    listing.records.iter().map(|record| (record.namespace(), record.name())).collect()
}

fn read_of<R: Record>(listing: &Listing<R>) -> R {
    listing.records.iter().find(|record| record.namespace() == "statuses").unwrap().clone()
}

pub(super) async fn objects_of_all_namespaces_keep_the_promises_of_records(cluster: &Cluster) {
    what_lies_in_any_namespace_is_listed_and_rings(cluster).await;
    what_is_written_lies_in_its_namespace(cluster).await;
    a_kind_without_namespaces_is_written_by_name_alone(cluster).await;
    a_status_alone_leaves_the_rest_to_others(cluster).await;
    what_may_not_be_listed_is_named_and_the_rest_goes_on(cluster).await;
}

async fn what_lies_in_any_namespace_is_listed_and_rings(cluster: &Cluster) {
    let (left, right) = (Store::new(cluster, "left"), Store::new(cluster, "right"));
    left.kubectl("create service clusterip web --tcp=80");
    right.kubectl("create service clusterip web --tcp=80");
    let objects = open(&left, "test").await;
    let mut watch = objects.watch(const { &[Service::RESOURCE] });

    let listing = objects.list::<Service>().await.unwrap();

    let all = [("default", "kubernetes"), ("kube-system", "kube-dns"), ("left", "web"), ("right", "web")];
    assert_eq!(keys(&listing), all);
    assert!(listing.records[2].spec.as_ref().unwrap().cluster_ip.is_some());
    // A listing of more than a page, from the namespace of another test.
    assert_eq!(objects.list::<ClusterRecord>().await.unwrap().records.len(), 1_100);

    while timeout(Duration::from_millis(200), watch.changed()).await.is_ok() {}
    right.kubectl("create service clusterip more --tcp=80");
    timeout(PATIENCE, watch.changed()).await.expect("a creation in another namespace rings");
    wait_objects::<Service>(&objects, |listing| keys(listing).contains(&("right", "more"))).await;
    // Whoever holds an object keeps it in the listing until he lets go.
    right.kubectl(r#"patch service more --type=merge --patch={"metadata":{"finalizers":["example.org/hold"]}}"#);
    assert!(objects.delete::<Service>("right", "more").await.unwrap());
    let listing = objects.list::<Service>().await.unwrap();
    let held = listing.records.iter().find(|record| record.name() == "more").expect("it is held");
    assert!(held.metadata.deletion_timestamp.is_some());
    right.kubectl(r#"patch service more --type=merge --patch={"metadata":{"finalizers":null}}"#);
    wait_objects::<Service>(&objects, |listing| !keys(listing).contains(&("right", "more"))).await;
    assert_eq!(objects.outage(), None);
}

async fn what_is_written_lies_in_its_namespace(cluster: &Cluster) {
    let (here, there) = (Store::new(cluster, "here"), Store::new(cluster, "there"));
    let objects = open(&here, "culvert-test").await;
    let of_tests = |listing: &Listing<Endpoint>| {
        let ours = listing.records.iter().filter(|record| ["here", "there"].contains(&record.namespace()));
        ours.map(|record| (record.namespace().to_owned(), record.spec.hostname.clone())).collect::<Vec<_>>()
    };
    let pair = |namespace: &str| (namespace.to_owned(), "west-gw".to_owned());
    let created = objects.create(&within("there", endpoint("west", &[]))).await.unwrap();
    assert_eq!((created.namespace(), created.metadata.uid.is_some()), ("there", true));
    assert_eq!(objects.apply(&within("here", endpoint("west", &[]))).await.unwrap(), Applied::Created);
    assert_eq!(of_tests(&objects.list().await.unwrap()), [pair("here"), pair("there")]);
    let again = objects.create(&within("there", endpoint("west", &[]))).await.unwrap_err().to_string();
    assert!(again.starts_with("Endpoint there/west exists already"), "{again}");

    // From what is seen.
    assert_eq!(objects.apply(&within("here", endpoint("west", &[]))).await.unwrap(), Applied::Unchanged);
    let changed = within("here", endpoint("west", &["10.2.0.0/16"]));
    assert_eq!(objects.apply(&changed).await.unwrap(), Applied::Updated);
    assert_eq!(here.object("endpoints", "west")["spec"]["subnets"], json!(["10.2.0.0/16"]));
    assert!(there.object("endpoints", "west")["spec"]["subnets"].as_array().is_none_or(Vec::is_empty));

    assert!(objects.delete::<Endpoint>("there", "west").await.unwrap());
    assert!(!objects.delete::<Endpoint>("there", "west").await.unwrap());
    assert_eq!(objects.find::<Endpoint>("there", "west").await.unwrap(), None);
    assert!(objects.find::<Endpoint>("here", "west").await.unwrap().is_some());
    assert_eq!(of_tests(&objects.list().await.unwrap()), [pair("here")]);
    let nowhere = objects.create(&within("nowhere", endpoint("west", &[]))).await.unwrap_err();
    assert!(matches!(&nowhere, StoreError::Refused { .. }) && nowhere.to_string().contains("nowhere"), "{nowhere}");
    assert!(matches!(objects.create(&endpoint("west", &[])).await, Err(StoreError::Namespace { .. })));
}

async fn a_kind_without_namespaces_is_written_by_name_alone(cluster: &Cluster) {
    let store = Store::new(cluster, "roles");
    let objects = open(&store, "culvert-test").await;
    let created = objects.create(&role("culvert-one", &["get"])).await.unwrap();
    assert_eq!((created.namespace(), created.metadata.uid.is_some()), ("", true));
    assert_eq!(objects.apply(&role("culvert-two", &["get"])).await.unwrap(), Applied::Created);
    let listing = objects.list::<ClusterRole>().await.unwrap();
    for name in ["culvert-one", "culvert-two", "cluster-admin"] {
        assert!(keys(&listing).contains(&("", name)), "{name}");
    }
    assert_eq!(objects.apply(&role("culvert-two", &["get"])).await.unwrap(), Applied::Unchanged);
    assert_eq!(objects.apply(&role("culvert-two", &["list"])).await.unwrap(), Applied::Updated);
    let found = objects.find::<ClusterRole>("", "culvert-two").await.unwrap().unwrap();
    assert_eq!(found.rules.unwrap()[0]["verbs"], json!(["list"]));

    assert!(objects.delete::<ClusterRole>("", "culvert-one").await.unwrap());
    assert_eq!(objects.find::<ClusterRole>("", "culvert-one").await.unwrap(), None);
    assert!(!keys(&objects.list::<ClusterRole>().await.unwrap()).contains(&("", "culvert-one")));
}

/// Both where the status is served apart and where it is not.
async fn a_status_alone_leaves_the_rest_to_others(cluster: &Cluster) {
    let store = Store::new(cluster, "statuses");
    let objects = open(&store, "culvert-test").await;
    objects.list::<Gateway>().await.unwrap();
    objects.list::<RouteAgent>().await.unwrap();
    let gateway = |version: &str| {
        let status = GatewayStatus { version: version.to_owned(), ..GatewayStatus::default() };
        within("statuses", Gateway::new("gw", status))
    };
    let agent = |version: &str| within("statuses", agent("gw", version));
    let missing = objects.apply_status(&gateway("1")).await.unwrap_err().to_string();
    assert!(missing.starts_with("Gateway statuses/gw is not there"), "{missing}");
    assert!(matches!(objects.apply_status(&agent("1")).await, Err(StoreError::NotFound { .. })));
    let them = open(&store, "them").await;
    let labels = BTreeMap::from([("theirs".to_owned(), "x".to_owned())]);
    let (mut their_gateway, mut their_agent) = (gateway("0"), agent("0"));
    their_gateway.metadata.labels = Some(labels.clone());
    their_agent.metadata.labels = Some(labels);
    them.create(&their_gateway).await.unwrap();
    them.create(&their_agent).await.unwrap();
    wait_objects::<Gateway>(&objects, |listing| keys(listing).contains(&("statuses", "gw"))).await;
    wait_objects::<RouteAgent>(&objects, |listing| keys(listing).contains(&("statuses", "gw"))).await;

    assert_eq!(objects.apply_status(&gateway("1")).await.unwrap(), Applied::Updated);
    assert_eq!(objects.apply_status(&agent("1")).await.unwrap(), Applied::Updated);
    assert_eq!(objects.apply_status(&gateway("1")).await.unwrap(), Applied::Unchanged);
    assert_eq!(objects.apply_status(&agent("1")).await.unwrap(), Applied::Unchanged);
    assert_eq!(objects.apply_status(&gateway("2")).await.unwrap(), Applied::Updated);
    assert_eq!(objects.apply_status(&agent("2")).await.unwrap(), Applied::Updated);

    for plural in ["gateways", "routeagents"] {
        let object = store.object(plural, "gw");
        assert_eq!(
            (&object["status"]["version"], &object["metadata"]["labels"]),
            (&json!("2"), &json!({"theirs": "x"}))
        );
        // Theirs alone: they take it away, and it is gone.
        store.kubectl(&format!("label {plural}.submariner.io gw theirs-"));
        assert_eq!(store.object(plural, "gw")["metadata"]["labels"], Value::Null);
    }

    // What was read belongs to an object that another has replaced.
    let old = objects.find::<Gateway>("statuses", "gw").await.unwrap().unwrap();
    let old_agent = objects.find::<RouteAgent>("statuses", "gw").await.unwrap().unwrap();
    objects.delete::<Gateway>("statuses", "gw").await.unwrap();
    objects.delete::<RouteAgent>("statuses", "gw").await.unwrap();
    objects.create(&gateway("new")).await.unwrap();
    objects.create(&agent("new")).await.unwrap();
    assert!(matches!(objects.apply_status(&old).await, Err(StoreError::Conflict { .. })));
    assert!(matches!(objects.apply_status(&old_agent).await, Err(StoreError::Conflict { .. })));
    // Nobody is told yet that it has gone.
    let late = open(&store, "culvert-late").await;
    let mut read = read_of(&late.list::<Gateway>().await.unwrap());
    let mut read_agent = read_of(&late.list::<RouteAgent>().await.unwrap());
    read.status.version = "late".to_owned();
    read_agent.status.version = "late".to_owned();
    store.kubectl("delete gateways.submariner.io,routeagents.submariner.io gw");
    for error in [late.apply_status(&read).await.unwrap_err(), late.apply_status(&read_agent).await.unwrap_err()] {
        assert!(matches!(error, StoreError::Conflict { .. } | StoreError::NotFound { .. }), "{error}");
    }
    assert_eq!(late.find::<Gateway>("statuses", "gw").await.unwrap(), None, "it is not made anew");
    assert_eq!(late.find::<RouteAgent>("statuses", "gw").await.unwrap(), None, "nor is this");
    // And the kind still counts as one whose status is served apart.
    late.create(&gateway("1")).await.unwrap();
    assert_eq!(late.apply_status(&gateway("2")).await.unwrap(), Applied::Updated);
    assert_eq!(store.object("gateways", "gw")["status"]["version"], "2");
}

async fn what_may_not_be_listed_is_named_and_the_rest_goes_on(cluster: &Cluster) {
    let store = Store::new(cluster, "some-rights");
    store.kubectl("create serviceaccount some");
    store.kubectl("create clusterrole some --verb=get,list,watch --resource=services");
    store.kubectl("create clusterrolebinding some --clusterrole=some --serviceaccount=some-rights:some");
    let directory = secret(&store, "some");
    let server = Server { access: access(&store, &directory), namespace: None };
    let some = Objects::at(&Location::Server(server), "test").await.unwrap();
    let _watch = some.watch(const { &[Endpoint::RESOURCE, Unicorn::RESOURCE, Service::RESOURCE] });

    let forbidden = some.list::<Endpoint>().await.unwrap_err().to_string();
    let listing = wait_objects::<Service>(&some, |listing| !listing.records.is_empty()).await;

    let words = "system:serviceaccount:some-rights:some may not list endpoints in the whole cluster: give it a role";
    assert!(forbidden.contains(words), "{forbidden}");
    assert!(keys(&listing).contains(&("default", "kubernetes")));
    let outage = some.outage().expect("endpoints cannot be followed");
    assert!(outage.contains("endpoints") || outage.contains("unicorns"), "{outage}");
    let forbidden = some.delete::<Endpoint>("here", "west").await.unwrap_err().to_string();
    assert!(forbidden.contains("may not delete endpoints in namespace here"), "{forbidden}");

    let objects = open(&store, "test").await;
    let unknown = objects.list::<Unicorn>().await.unwrap_err().to_string();
    assert!(unknown.contains("it has no unicorns of submariner.io: apply the CRDs"), "{unknown}");
    assert!(!objects.list::<Service>().await.unwrap().records.is_empty());
}
