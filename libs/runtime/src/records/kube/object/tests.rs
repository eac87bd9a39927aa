//! What an apply would change, whose fields are whose, and the way of a record to an API server's object and back.

use std::collections::BTreeMap;

use culvert_api::{Cluster, ClusterSpec, Endpoint, EndpointSpec, Gateway, GatewayStatus, Lease};

use super::*;

fn endpoint() -> Endpoint {
    let spec = EndpointSpec {
        cluster_id: "east".to_owned(),
        subnets: vec!["10.1.0.0/16".to_owned()],
        backend_config: BTreeMap::from([("publicKey".to_owned(), "k".to_owned())]),
        ..EndpointSpec::default()
    };
    let mut endpoint = Endpoint::new("east-1", spec);
    endpoint.metadata.annotations = Some(BTreeMap::from([("ours".to_owned(), "1".to_owned())]));
    endpoint
}

/// What the server has after `record` was applied by us and `extra` by somebody else.
fn applied(record: &Endpoint, extra: &Value) -> Current {
    let mut value = to_apply(record, "n");
    merge(&mut value, extra);
    let owned = json!({
        "f:metadata": {"f:annotations": {"f:ours": {}}},
        "f:spec": {"f:cluster_id": {}, "f:subnets": {}, "f:backend_config": {".": {}, "f:publicKey": {}}},
    });
    Current { value, owned: vec![owned] }
}

fn merge(value: &mut Value, extra: &Value) {
    match extra.as_object() {
        Some(fields) => fields.iter().for_each(|(key, extra)| merge(&mut value[key], extra)),
        None => *value = extra.clone(),
    }
}

#[test]
fn what_was_applied_and_what_others_added_is_no_change() {
    let current =
        applied(&endpoint(), &json!({"metadata": {"labels": {"theirs": "x"}, "uid": "u"}, "spec": {"new": 1}}));
    assert!(!would_change(&to_apply(&endpoint(), "n"), &current));
}

#[test]
fn another_value_a_shorter_list_and_a_field_that_is_gone_are_changes() {
    let current = applied(&endpoint(), &json!({}));
    let mut other = endpoint();
    other.spec.cluster_id = "west".to_owned();
    let mut shorter = endpoint();
    shorter.spec.subnets.clear();
    let mut without = endpoint();
    without.spec.backend_config.clear();
    let mut bare = endpoint();
    bare.metadata.annotations = None;
    for record in [other, shorter, without, bare] {
        assert!(would_change(&to_apply(&record, "n"), &current), "{record:?}");
    }
}

#[test]
fn a_field_that_somebody_changed_is_a_change() {
    let current = applied(&endpoint(), &json!({"spec": {"backend_config": {"publicKey": "other"}}}));
    assert!(would_change(&to_apply(&endpoint(), "n"), &current));
}

#[test]
fn annotations_of_others_that_were_read_are_not_claimed() {
    let current = applied(&endpoint(), &json!({"metadata": {"annotations": {"theirs": "x", "contested": "old"}}}));
    let mut record = endpoint();
    let annotations = record.metadata.annotations.get_or_insert_default();
    annotations.insert("theirs".to_owned(), "x".to_owned());
    annotations.insert("contested".to_owned(), "new".to_owned());
    let mut wanted = to_apply(&record, "n");

    leave_to_others(&mut wanted, &current);

    assert_eq!(wanted["metadata"]["annotations"], json!({"ours": "1", "contested": "new"}));
}

#[test]
fn metadata_of_the_server_is_not_sent_and_an_update_rests_on_what_was_read() {
    let mut record = endpoint();
    record.metadata.uid = Some("u".to_owned());
    record.metadata.namespace = Some("elsewhere".to_owned());
    record.metadata.resource_version = Some("7".to_owned());

    let (created, updated) = (to_create(&record, "n"), to_update(&record, "n"));

    let keys = |value: &Value| value["metadata"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&created), ["annotations", "name", "namespace"]);
    assert_eq!(keys(&updated), ["annotations", "name", "namespace", "resourceVersion"]);
    assert_eq!(created["metadata"]["namespace"], "n");
}

#[test]
fn only_what_this_manager_applied_is_owned() {
    let entry = |manager: &str, operation: &str, field: &str| json!({"manager": manager, "operation": operation, "fieldsV1": {"f:spec": {field: {}}}});
    let fields = [entry("us", "Apply", "f:a"), entry("us", "Update", "f:b"), entry("them", "Apply", "f:c")];
    let value = json!({"metadata": {"name": "x", "managedFields": fields}});
    let mut object: DynamicObject = serde_json::from_value(value).unwrap();

    assert_eq!(take_owned(&mut object, "us"), [json!({"f:spec": {"f:a": {}}})]);
    assert_eq!(object.metadata.managed_fields, None);
}

#[test]
fn an_item_of_a_list_need_not_say_what_it_is() {
    let value = json!({"metadata": {"name": "east"}, "spec": {"cluster_id": "east"}});
    let object: DynamicObject = serde_json::from_value(value).unwrap();
    assert_eq!(parse::<Cluster>(object, "n").unwrap().spec.cluster_id, "east");

    let value = json!({"metadata": {"name": "lock"}, "spec": {"holderIdentity": "a"}});
    let object: DynamicObject = serde_json::from_value(value).unwrap();
    assert_eq!(parse::<Lease>(object, "n").unwrap().spec.unwrap().holder_identity.as_deref(), Some("a"));
}

#[test]
fn a_problem_names_the_object_and_the_field() {
    let value = json!({"metadata": {"name": "east-1"}, "spec": {"subnets": ["10.0.0.0/8", 7]}});
    let object: DynamicObject = serde_json::from_value(value).unwrap();

    let problem = parse::<Endpoint>(object, "n").unwrap_err();

    assert_eq!(problem.name(), Some("east-1"));
    let text = problem.to_string();
    assert!(text.starts_with("Endpoint n/east-1: spec.subnets[1]: invalid type"), "{text}");
}

#[test]
fn a_record_is_the_same_after_the_way_there_and_back() {
    let record = Cluster::new("east", ClusterSpec { cluster_id: "east".to_owned(), ..ClusterSpec::default() });
    let object = dynamic::<Cluster>(&to_create(&record, "n"), "n").unwrap();
    let back: Cluster = parse(object, "n").unwrap();
    assert_eq!(back.spec, record.spec);
}

#[test]
fn a_status_that_the_server_left_out_is_seen() {
    let wanted =
        to_apply(&Gateway::new("gw", GatewayStatus { version: "1".to_owned(), ..GatewayStatus::default() }), "n");
    let taken = dynamic::<Gateway>(&wanted, "n").unwrap();
    let mut left_out = taken.clone();
    left_out.data.as_object_mut().unwrap().remove("status");

    assert!(status_stands(&wanted, &taken) && !status_stands(&wanted, &left_out));
    assert_eq!(status_only(&wanted, None)["status"], wanted["status"]);
    assert!(status_stands(&to_apply(&endpoint(), "n"), &left_out), "an Endpoint has none");
}

#[test]
fn a_status_of_its_own_leaves_the_rest_to_others() {
    let gateway =
        |version: &str| Gateway::new("gw", GatewayStatus { version: version.to_owned(), ..GatewayStatus::default() });
    let mut value = to_apply(&gateway("1"), "n");
    value["metadata"]["uid"] = json!("u");
    value["metadata"]["labels"] = json!({"theirs": "x"});
    let owned = |field: &str| json!({"f:status": {field: {}}});
    let current =
        |field: &str| Current { value: value.clone(), owned: vec![owned(field), json!({"f:spec": {"f:gone": {}}})] };

    assert!(!status_would_change(&to_apply(&gateway("1"), "n"), &current("f:version")));
    assert!(status_would_change(&to_apply(&gateway("2"), "n"), &current("f:version")));
    assert!(status_would_change(&to_apply(&gateway("1"), "n"), &current("f:gone")), "one of ours is no longer wanted");
    let mut without = to_apply(&gateway("1"), "n");
    without.as_object_mut().unwrap().remove("status");
    let foreign = Current { value: value.clone(), owned: Vec::new() };
    assert!(!status_would_change(&without, &foreign), "nothing is said of others' status");
    assert!(status_would_change(&without, &current("f:version")), "ours goes");
    let ours = Current { value: value.clone(), owned: vec![owned("f:version")] };
    assert!(!would_change(&without, &ours), "nor is it in an apply of the rest");

    let only = status_only(&to_apply(&gateway("2"), ""), current("f:version").uid());
    assert_eq!(only["metadata"], json!({"name": "gw", "uid": "u"}));
}

#[test]
fn an_object_without_a_namespace_is_called_by_its_name_alone() {
    let object: DynamicObject = serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": 7})).unwrap();
    let problem = parse::<Cluster>(object, "").unwrap_err();
    assert_eq!((problem.namespace(), problem.name()), (None, Some("a")));
    assert!(problem.to_string().starts_with("Cluster a: spec: "), "{problem}");
    assert_eq!(to_create(&endpoint(), "")["metadata"].get("namespace"), None);
}
