//! What members may do at a broker: tried with their own credentials against a real API server.

#![allow(clippy::unwrap_used)]

mod broker;

use std::path::Path;

use culvert_netns_tests::kubernetes::{Lab, Plan, ProxyMode};
use serde_json::{Value, json};

use crate::broker::{
    Act, Broker, Caller, EAST, Kind, Table, WEST, cluster, endpoint, globalnet, life, own_import, shared_import, slice,
    token_of, until_known, with, with_clusters,
};

/// ServiceImports as the Multi-Cluster Services API defines them, with a status of its own.
fn service_imports() -> Value {
    json!({
        "metadata": {"name": "serviceimports.multicluster.x-k8s.io", "annotations": {
            "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/mcs-api",
        }},
        "spec": {
            "group": "multicluster.x-k8s.io",
            "names": {
                "kind": "ServiceImport", "listKind": "ServiceImportList",
                "plural": "serviceimports", "singular": "serviceimport",
            },
            "scope": "Namespaced",
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {
                        "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                        "status": {"type": "object", "properties": {"clusters": {
                            "type": "array",
                            "items": {"type": "object", "properties": {"cluster": {"type": "string"}}},
                        }}},
                    },
                }},
            }],
        },
    })
}

#[test]
fn members_write_their_own_records_and_read_their_own_secrets() {
    let plan = Plan::new("broker", &["hub"], 1, ProxyMode::None).unwrap();
    let lab = Lab::up(&plan).unwrap();
    let kubeconfig = lab.cluster("hub").kubeconfig();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(all(&kubeconfig));
}

/// One lab serves all parts: they build on each other's objects.
async fn all(kubeconfig: &Path) {
    life::nothing_is_changed_where_something_is_missing(kubeconfig).await;
    let broker = Broker::deploy(kubeconfig, "submariner-k8s-broker");
    let admin = Caller::administrator(kubeconfig, &broker.info.namespace).await;
    admin.act(&Kind::DEFINITION, Act::Create(service_imports())).await.unwrap();
    let east = broker.member("east", &EAST).await;
    let west = broker.member("west", &WEST).await;

    let mut table = Table::default();
    own_records_are_written(&mut table, &east, &west).await;
    others_records_are_not(&mut table, &admin, &west).await;
    records_must_be_in_order(&mut table, &west).await;
    services_are_shared(&mut table, &admin, &east, &west).await;
    rights_end_at_the_records(&mut table, &admin, &west).await;
    secrets_stay_secret(&mut table, &broker, kubeconfig, &west).await;
    table.finish();

    life::a_join_says_what_is_wrong_first(&broker, &west).await;
    life::tokens_are_renewed(&broker).await;
    life::two_brokers_do_not_meet(kubeconfig, &broker).await;
    life::a_broker_of_subctl_is_joined_as_subctl_does(kubeconfig, &broker).await;
    life::claims_at_the_same_moment_are_found(kubeconfig, &broker, &admin, &east).await;
    globalnet::global_cidrs_are_given_out_and_given_back(kubeconfig, &broker, &admin, &west).await;
    life::a_second_run_repairs(kubeconfig, &broker, &admin).await;
}

async fn own_records_are_written(table: &mut Table, east: &Caller, west: &Caller) {
    for (member, [services, pods]) in [(east, EAST), (west, WEST)] {
        let id = member.name.as_str();
        let own = cluster(id, services, pods);
        table.allowed(member, "its Cluster", &Kind::CLUSTER, Act::Create(own.clone())).await;
        table.allowed(member, "its Cluster, applied", &Kind::CLUSTER, Act::Apply(own)).await;
        let own = endpoint(id, &[services, pods]);
        until_known(member, &own).await;
        let known = table.allowed(member, "its Endpoint", &Kind::ENDPOINT, Act::Apply(own)).await;
        let moved = with(known, "/spec/public_ip", json!("203.0.113.11"));
        table.allowed(member, "its Endpoint, changed", &Kind::ENDPOINT, Act::Replace(moved)).await;
        table.allowed(member, "its EndpointSlice", &Kind::SLICE, Act::Create(slice(id))).await;
        table.allowed(member, "its ServiceImport", &Kind::IMPORT, Act::Create(own_import(id))).await;
    }
    for kind in [Kind::CLUSTER, Kind::ENDPOINT, Kind::SLICE, Kind::IMPORT] {
        table.allowed(west, "everybody's, read", &kind, Act::List).await;
    }
    let twin = with(endpoint("west", &WEST), "/metadata/name", json!("west-submariner-cable-west-192-168-1-11"));
    table.allowed(west, "a second Endpoint", &Kind::ENDPOINT, Act::Create(twin)).await;
    let name = "west-submariner-cable-west-192-168-1-11";
    table.allowed(west, "a second Endpoint, deleted", &Kind::ENDPOINT, Act::Delete(name)).await;
}

/// Everything that `west` can try on an object of `east`.
async fn others_records_are_not(table: &mut Table, admin: &Caller, west: &Caller) {
    let objects = [
        (Kind::CLUSTER, "east", "of its own name"),
        (Kind::ENDPOINT, "east-submariner-cable-east-192-168-1-10", "is of cluster east"),
        (Kind::SLICE, "web-east", "source-cluster"),
        (Kind::IMPORT, "web-default-east", "source-cluster"),
    ];
    for (kind, name, why) in objects {
        let theirs = admin.act(&kind, Act::Get(name)).await.unwrap();
        let touched = with(theirs.clone(), "/metadata/annotations", json!({"touched": "yes"}));
        table.refused(west, "replaces another's", &kind, Act::Replace(touched.clone()), why).await;
        let merge = json!({"metadata": {"annotations": {"touched": "yes"}}});
        table.refused(west, "patches another's", &kind, Act::Merge(name, merge), why).await;
        let mut applied = touched;
        applied["metadata"] = json!({
            "name": name, "labels": theirs["metadata"]["labels"], "annotations": {"touched": "yes"},
        });
        table.refused(west, "applies to another's", &kind, Act::Apply(applied), why).await;
        table.refused(west, "deletes another's", &kind, Act::Delete(name), why).await;
        table.refused(west, "deletes all at once", &kind, Act::DeleteAll, "deletecollection").await;
        let unchanged = admin.act(&kind, Act::Get(name)).await.unwrap();
        assert_eq!(unchanged["metadata"]["resourceVersion"], theirs["metadata"]["resourceVersion"], "{name}");
    }
    let theirs = admin.act(&Kind::IMPORT, Act::Get("web-default-east")).await.unwrap();
    let status = with_clusters(theirs, &["west"]);
    table.refused(west, "another's status", &Kind::IMPORT, Act::Status(status), "source-cluster").await;
    // Taking over what it may not have: the old object counts as much as the new one.
    let key = "multicluster.kubernetes.io~1source-cluster";
    for (kind, name) in [(Kind::SLICE, "web-east"), (Kind::IMPORT, "web-default-east")] {
        let theirs = admin.act(&kind, Act::Get(name)).await.unwrap();
        let taken = with_pointer(theirs, &format!("/metadata/labels/{key}"), json!("west"));
        table.refused(west, "makes another's its own", &kind, Act::Replace(taken), "source-cluster").await;
    }
    let theirs = admin.act(&Kind::ENDPOINT, Act::Get("east-submariner-cable-east-192-168-1-10")).await.unwrap();
    let taken = with(with(theirs, "/spec/cluster_id", json!("west")), "/spec/subnets", json!(WEST));
    table.refused(west, "makes another's its own", &Kind::ENDPOINT, Act::Replace(taken), "of cluster east").await;
}

fn with_pointer(mut object: Value, pointer: &str, value: Value) -> Value {
    *object.pointer_mut(pointer).unwrap() = value;
    object
}

/// What a record of one's own may not say.
async fn records_must_be_in_order(table: &mut Table, west: &Caller) {
    let own = cluster("west", WEST[0], WEST[1]);
    for (what, pointer, value, why) in [
        ("Cluster that says to be another", "/spec/cluster_id", json!("east"), "spec.cluster_id is east: write west"),
        ("Cluster with another's name", "/metadata/name", json!("north"), "of its own name: west"),
        (
            "Cluster that another seems to have sent",
            "/metadata/labels",
            json!({"submariner-io/clusterID": "east"}),
            "label",
        ),
        (
            "Cluster with a CIDR of another",
            "/spec/cluster_cidr",
            json!(["10.1.128.0/17"]),
            "overlaps a CIDR of cluster east",
        ),
        (
            "Cluster with a CIDR around another's",
            "/spec/service_cidr",
            json!(["100.0.0.0/8"]),
            "overlaps a CIDR of cluster east",
        ),
        (
            "Cluster with half a CIDR",
            "/spec/cluster_cidr",
            json!(["10.2.0/16"]),
            "\"10.2.0/16\" is no CIDR: write it as",
        ),
        ("Cluster with an address", "/spec/global_cidr", json!(["242.0.0.1"]), "\"242.0.0.1\" is no CIDR"),
        ("Cluster with a quarter of all", "/spec/cluster_cidr", json!(["128.0.0.0/2"]), "too wide"),
        ("Cluster with all of IPv6", "/spec/cluster_cidr", json!(["fd00::/8"]), "too wide"),
    ] {
        let act = Act::Apply(with(own.clone(), pointer, value));
        table.refused(west, what, &Kind::CLUSTER, act, why).await;
    }
    let own = endpoint("west", &WEST);
    for (what, pointer, value, why) in [
        (
            "Endpoint that says to be another's",
            "/spec/cluster_id",
            json!("east"),
            "spec.cluster_id is east: write west",
        ),
        (
            "Endpoint in another's name",
            "/metadata/name",
            json!("east-submariner-cable-east-1-2-3-4"),
            "begin it with west-",
        ),
        (
            "Endpoint that another seems to have sent",
            "/metadata/labels",
            json!({"submariner-io/clusterID": "east"}),
            "label",
        ),
        ("Endpoint with a subnet of another", "/spec/subnets", json!(["10.1.0.0/24"]), "10.1.0.0/24"),
        (
            "Endpoint with a subnet of nobody",
            "/spec/subnets",
            json!([WEST[0], "10.9.0.0/16"]),
            "10.9.0.0/16 is not in a CIDR",
        ),
        ("Endpoint with its whole neighbourhood", "/spec/subnets", json!(["10.0.0.0/8"]), "10.0.0.0/8"),
        ("Endpoint with no CIDR", "/spec/subnets", json!(["all"]), "\"all\" is no CIDR: write it as"),
    ] {
        let act = Act::Apply(with(own.clone(), pointer, value));
        table.refused(west, what, &Kind::ENDPOINT, act, why).await;
    }
    let part = with(own, "/spec/subnets", json!(["10.2.4.0/24"]));
    table.allowed(west, "Endpoint with a part of its own", &Kind::ENDPOINT, Act::Apply(part)).await;
}

/// The one record that members share.
async fn services_are_shared(table: &mut Table, admin: &Caller, east: &Caller, west: &Caller) {
    let (kind, name) = (&Kind::IMPORT, "web-default");
    let get = || async { admin.act(kind, Act::Get(name)).await.unwrap() };
    table.allowed(east, "an aggregated service", kind, Act::Create(shared_import(name))).await;
    table
        .refused(
            west,
            "changes what it does not export",
            kind,
            Act::Merge(name, json!({"spec": {"type": "Headless"}})),
            "only members in status.clusters",
        )
        .await;
    table.refused(west, "adds another", kind, Act::Status(with_clusters(get().await, &["east"])), "only itself").await;
    table.allowed(east, "adds itself", kind, Act::Status(with_clusters(get().await, &["east"]))).await;
    table
        .refused(west, "takes another's place", kind, Act::Status(with_clusters(get().await, &["west"])), "only itself")
        .await;
    table.refused(west, "deletes what another exports", kind, Act::Delete(name), "lists another cluster").await;
    let unmade = with(get().await, "/metadata/annotations", json!({}));
    table.refused(west, "makes it its own", kind, Act::Replace(unmade), "stays one").await;
    table.allowed(west, "adds itself", kind, Act::Status(with_clusters(get().await, &["east", "west"]))).await;
    table.allowed(west, "changes it then", kind, Act::Merge(name, json!({"spec": {"ports": [{"port": 80}]}}))).await;
    table
        .refused(west, "removes another", kind, Act::Status(with_clusters(get().await, &["west"])), "only itself")
        .await;
    table.allowed(east, "removes itself", kind, Act::Status(with_clusters(get().await, &["west"]))).await;
    table.refused(east, "deletes what another exports", kind, Act::Delete(name), "lists another cluster").await;
    table.allowed(west, "removes itself", kind, Act::Status(with_clusters(get().await, &[]))).await;
    table.allowed(west, "deletes what nobody exports", kind, Act::Delete(name)).await;
    let unlabelled = json!({"metadata": {"name": "stray"}, "spec": {}});
    table.refused(west, "a service of nobody", kind, Act::Create(unlabelled), "source-cluster").await;
    let stray = with(slice("west"), "/metadata/labels", json!({}));
    table.refused(west, "a slice of nobody", &Kind::SLICE, Act::Replace(stray), "source-cluster").await;
}

/// Beyond the records a member has no right to anything.
async fn rights_end_at_the_records(table: &mut Table, admin: &Caller, west: &Caller) {
    let named = |name: &str| json!({"metadata": {"name": name}});
    for kind in [Kind::CONFIG_MAP, Kind::ACCOUNT, Kind::ROLE, Kind::ROLE_BINDING, Kind::SECRET] {
        table.refused(west, "makes one", &kind, Act::Create(named("x")), "cannot create").await;
        table.refused(west, "lists them", &kind, Act::List, "cannot list").await;
    }
    let policy = "clusters.submariner-k8s-broker.broker.culvert.io";
    table.refused(west, "removes a policy", &Kind::POLICY_BINDING, Act::Delete(policy), "cannot delete").await;
    table.refused(west, "reads another's account", &Kind::ACCOUNT, Act::Get("cluster-east"), "cannot get").await;
    table.allowed(west, "reads its own account", &Kind::ACCOUNT, Act::Get("cluster-west")).await;

    // Whatever rights it is given: of Secrets only certificate requests of its own.
    let role = json!({
        "metadata": {"name": "secrets"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "update", "patch", "delete"]}],
    });
    let binding = json!({
        "metadata": {"name": "secrets"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "secrets"},
        "subjects": [{"kind": "ServiceAccount", "namespace": west.namespace, "name": "cluster-west"}],
    });
    admin.act(&Kind::ROLE, Act::Create(role)).await.unwrap();
    admin.act(&Kind::ROLE_BINDING, Act::Create(binding)).await.unwrap();
    let request =
        |id: &str| json!({"metadata": {"name": format!("csr-{id}"), "labels": {"submariner.io/csr-request": id}}});
    admin.act(&Kind::SECRET, Act::Create(request("east"))).await.unwrap();
    until_granted(west, &request("west")).await;
    table.allowed(west, "its certificate request", &Kind::SECRET, Act::Apply(request("west"))).await;
    table
        .refused(west, "another's certificate request", &Kind::SECRET, Act::Apply(request("east")), "csr-request")
        .await;
    table.refused(west, "deletes another's request", &Kind::SECRET, Act::Delete("csr-east"), "csr-request").await;
    let token = json!({
        "metadata": {"name": "t", "annotations": {"kubernetes.io/service-account.name": "cluster-east"}},
        "type": "kubernetes.io/service-account-token",
    });
    table.refused(west, "a token of another's account", &Kind::SECRET, Act::Create(token), "csr-request").await;
    for kind in [Kind::ROLE_BINDING, Kind::ROLE] {
        admin.act(&kind, Act::Delete("secrets")).await.unwrap();
    }
}

async fn until_granted(member: &Caller, secret: &Value) {
    for _ in 0..100 {
        if member.act(&Kind::SECRET, Act::Apply(secret.clone())).await.is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the rights of {} do not reach the server", member.name);
}

/// Members read no Secrets but their own; one that `subctl` joined sees none of the administrator's, nor Culvert's.
async fn secrets_stay_secret(table: &mut Table, broker: &Broker, kubeconfig: &Path, west: &Caller) {
    let east_token = "cluster-east-token";
    table.refused(west, "another's token", &Kind::SECRET, Act::Get(east_token), "cannot get").await;
    table.refused(west, "another's token, watched", &Kind::SECRET, Act::Watch(east_token), "cannot watch").await;
    table.refused(west, "all Secrets", &Kind::SECRET, Act::List, "cannot list").await;
    table.allowed(west, "its own token, watched", &Kind::SECRET, Act::Watch("cluster-west-token")).await;
    let mut behind = Caller::administrator(kubeconfig, &broker.info.namespace).await;
    behind.namespace = "submariner-k8s-broker-admin".to_owned();
    let kept = behind.act(&Kind::SECRET, Act::List).await.unwrap();
    assert_eq!(kept.as_array().unwrap().len(), 2, "the administrator's token and the pre-shared key");
    let mut prying = broker.member("west", &WEST).await;
    prying.namespace.clone_from(&behind.namespace);
    for name in ["submariner-k8s-broker-admin-token", "submariner-ipsec-psk"] {
        table.refused(&prying, "the administrator's", &Kind::SECRET, Act::Get(name), "cannot get").await;
    }

    // What `subctl join` does with the broker file, and what Submariner's operator reads then.
    let joiner = broker.caller("subctl", broker.info.token.expose()).await;
    let account = json!({"metadata": {"name": "cluster-north"}});
    table.allowed(&joiner, "makes an account", &Kind::ACCOUNT, Act::Create(account)).await;
    let binding = json!({
        "metadata": {"name": "cluster-north-submariner-k8s-broker-cluster"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "submariner-k8s-broker-cluster"},
        "subjects": [{"kind": "ServiceAccount", "namespace": joiner.namespace, "name": "cluster-north"}],
    });
    table.allowed(&joiner, "binds it", &Kind::ROLE_BINDING, Act::Create(binding)).await;
    let token = json!({
        "metadata": {
            "generateName": "cluster-north-token-",
            "annotations": {"kubernetes.io/service-account.name": "cluster-north"},
        },
        "type": "kubernetes.io/service-account-token",
    });
    let secret = table.allowed(&joiner, "makes it a token", &Kind::SECRET, Act::Create(token)).await;
    let north = broker.caller("north", &token_of(&joiner, &broker::name_of(&secret)).await).await;
    let seen = table.allowed(&north, "reads Secrets as Submariner's operator", &Kind::SECRET, Act::List).await;
    let names: Vec<String> = seen.as_array().unwrap().iter().map(broker::name_of).collect();
    assert!(names.iter().all(|name| name.starts_with("cluster-north-token-") || name.starts_with("csr-")), "{names:?}");
    let own = with(cluster("north", "100.3.0.0/16", "10.3.0.0/16"), "/spec/color_codes", json!(["blue"]));
    table.allowed(&north, "its Cluster", &Kind::CLUSTER, Act::Create(own)).await;
    table.refused(&north, "another's Cluster", &Kind::CLUSTER, Act::Delete("east"), "of its own name").await;
}
