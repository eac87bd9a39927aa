//! What is seen of a kind: news and old news, own writes, outages, objects of several namespaces.

use culvert_api::{Cluster, Service};
use serde_json::{Value, json};

use super::*;

fn object(name: &str, version: u32, id: &str) -> DynamicObject {
    let value = json!({
        "apiVersion": "submariner.io/v1",
        "kind": "Cluster",
        "metadata": {"namespace": "n", "name": name, "resourceVersion": version.to_string()},
        "spec": {"cluster_id": id},
    });
    serde_json::from_value(value).unwrap()
}

fn key(namespace: &str, name: &str) -> Key {
    Key { namespace: namespace.into(), name: name.into() }
}

fn listed(objects: &[(&str, u32, &str)]) -> Cache {
    let cache = Cache::new("us");
    list(&cache, objects);
    cache
}

fn list(cache: &Cache, objects: &[(&str, u32, &str)]) {
    cache.handle(Event::Init);
    for (name, version, id) in objects {
        cache.handle(Event::InitApply(object(name, *version, id)));
    }
    cache.handle(Event::InitDone);
}

fn ids(cache: &Cache) -> Vec<String> {
    let listing = cache.listing::<Cluster>().unwrap();
    listing.records.iter().map(|record| record.spec.cluster_id.clone()).collect()
}

#[test]
fn nothing_is_listed_before_the_first_listing_is_complete() {
    let cache = Cache::new("us");
    cache.handle(Event::Init);
    cache.handle(Event::InitApply(object("a", 1, "a")));
    assert!(cache.listing::<Cluster>().is_none());

    cache.handle(Event::InitDone);

    assert_eq!(ids(&cache), ["a"]);
}

#[test]
fn changes_are_seen_and_what_a_new_listing_lacks_is_gone() {
    let cache = listed(&[("b", 1, "b"), ("a", 2, "a")]);
    cache.handle(Event::Apply(object("c", 3, "c")));
    cache.handle(Event::Delete(object("b", 4, "b")));
    assert_eq!(ids(&cache), ["a", "c"]);

    list(&cache, &[("c", 3, "c")]);

    assert_eq!(ids(&cache), ["c"]);
}

#[test]
fn a_write_of_ones_own_is_not_undone_by_older_news() {
    let cache = listed(&[("a", 5, "first")]);
    cache.see(object("a", 100, "second"));
    cache.handle(Event::Apply(object("a", 99, "before")));
    cache.handle(Event::Delete(object("a", 98, "before")));
    assert_eq!(ids(&cache), ["second"]);
    cache.handle(Event::Apply(object("a", 101, "third")));
    assert_eq!(ids(&cache), ["third"]);
}

#[test]
fn a_write_that_somebody_has_undone_meanwhile_is_not_seen() {
    let cache = listed(&[]);
    cache.handle(Event::Apply(object("a", 100, "ours")));
    cache.handle(Event::Delete(object("a", 101, "ours")));
    cache.see(object("a", 100, "ours"));
    assert!(ids(&cache).is_empty());
    cache.see(object("a", 102, "again"));
    assert_eq!(ids(&cache), ["again"]);
}

#[test]
fn a_server_that_was_restored_from_an_older_state_is_believed() {
    let cache = listed(&[("a", 500, "new")]);
    list(&cache, &[("a", 7, "old")]);
    assert_eq!(ids(&cache), ["old"]);
}

#[test]
fn an_outage_keeps_what_was_seen_and_rings_when_it_begins_and_ends() {
    let cache = listed(&[("a", 1, "a")]);
    let mut seen = cache.subscribe();
    let start = Timestamp::from_second(1_700_000_000).unwrap();
    assert!(cache.fail("refused".to_owned(), start));
    assert!(!cache.fail("refused".to_owned(), Timestamp::MAX));
    assert_eq!(cache.outage(), Some(Outage { since: start, cause: "refused".to_owned() }));
    assert!(seen.has_changed().unwrap());
    seen.mark_unchanged();
    assert_eq!(ids(&cache), ["a"]);
    assert!(cache.current::<Cluster>(&key("n", "a")).is_none(), "what was seen may be old");

    cache.handle(Event::Init);
    assert!(cache.outage().is_some(), "it has only been asked for");
    cache.handle(Event::InitDone);

    assert!(cache.outage().is_none() && seen.has_changed().unwrap());
}

#[test]
fn an_object_that_is_not_understood_hides_no_other() {
    let mut bad = object("bad", 2, "x");
    bad.data = json!({"spec": {"cluster_id": {"no": "text"}}});
    let cache = listed(&[("a", 1, "a")]);
    cache.handle(Event::Apply(bad));

    let listing = cache.listing::<Cluster>().unwrap();

    assert_eq!(listing.records.len(), 1);
    assert_eq!(listing.problems[0].name(), Some("bad"));
    let text = listing.problems[0].to_string();
    assert!(text.starts_with("Cluster n/bad: spec.cluster_id: "), "{text}");
}

fn service(namespace: &str, name: &str, version: u32, extra: &Value) -> DynamicObject {
    let mut value = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "resourceVersion": version.to_string()},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.7"},
    });
    for (key, more) in extra.as_object().into_iter().flatten() {
        for (field, content) in more.as_object().into_iter().flatten() {
            value[key][field] = content.clone();
        }
    }
    serde_json::from_value(value).unwrap()
}

#[test]
fn objects_of_several_namespaces_may_share_a_name() {
    let cache = Cache::new("us");
    cache.handle(Event::Init);
    for (namespace, name) in [("b", "web"), ("a-b", "web"), ("a", "z"), ("a", "web")] {
        cache.handle(Event::InitApply(service(namespace, name, 1, &json!({}))));
    }
    cache.handle(Event::InitDone);
    let names = || {
        let listing = cache.listing::<Service>().unwrap();
        let names = listing.records.iter().map(|record| format!("{}/{}", record.namespace(), record.name()));
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(), ["a/web", "a/z", "a-b/web", "b/web"]);

    cache.handle(Event::Delete(service("a", "web", 2, &json!({}))));
    cache.forget(&key("b", "web"));

    assert_eq!(names(), ["a/z", "a-b/web"]);
    assert!(matches!(cache.current::<Service>(&key("a", "web")), Some(None)));
    assert!(matches!(cache.current::<Service>(&key("a-b", "web")), Some(Some(_))));
}

#[test]
fn what_is_read_from_its_arrival_is_held_as_its_type_alone() {
    let cache = Cache::new("us");
    let annotations = json!({"metadata": {"annotations": {LAST_APPLIED: "{}", "theirs": "x"}}});
    cache.handle(Event::Init);
    cache.handle(Event::InitApply(service("a", "early", 1, &annotations)));
    cache.read_as::<Service>();
    cache.handle(Event::InitApply(service("a", "late", 2, &annotations)));
    cache.handle(Event::InitApply(service("a", "odd", 3, &json!({"spec": {"ports": 7}}))));
    cache.handle(Event::InitDone);
    cache.handle(Event::Apply(service("a", "later", 4, &annotations)));

    let state = cache.state();
    assert!(state.objects.as_ref().unwrap().values().all(|held| matches!(held.content, Content::Parsed(_))));
    drop(state);
    let listing = cache.listing::<Service>().unwrap();
    assert_eq!(listing.records.len(), 3);
    for record in &listing.records {
        assert_eq!(record.metadata.annotations.as_ref().unwrap().keys().collect::<Vec<_>>(), ["theirs"]);
    }
    assert_eq!((listing.problems[0].namespace(), listing.problems[0].name()), (Some("a"), Some("odd")));
}

#[test]
fn a_change_that_the_type_does_not_show_rings_no_bell() {
    let cache = Cache::new("us");
    cache.read_as::<Service>();
    cache.handle(Event::Init);
    cache.handle(Event::InitApply(service("a", "web", 1, &json!({}))));
    cache.handle(Event::InitDone);
    let mut seen = cache.subscribe();
    let mut rings = |version: u32, extra: &Value| {
        seen.mark_unchanged();
        cache.handle(Event::Apply(service("a", "web", version, extra)));
        seen.has_changed().unwrap()
    };

    assert!(!rings(2, &json!({"spec": {"unknown": 1}, "metadata": {"managedFields": [{"manager": "them"}]}})));
    assert!(rings(3, &json!({"spec": {"clusterIP": "10.96.0.8"}})));
    assert!(rings(4, &json!({"spec": {"ports": 7}})), "it is not understood any more");
    assert!(!rings(5, &json!({"spec": {"ports": 7}})));
    assert!(rings(6, &json!({})));
    let version = cache.listing::<Service>().unwrap().records[0].metadata.resource_version.clone();
    assert_eq!(version.as_deref(), Some("6"), "it is news all the same");
}

#[test]
fn a_listing_is_the_same_until_something_changes_and_then_but_for_that() {
    let cache = listed(&[("a", 1, "a"), ("b", 2, "b")]);
    let first = cache.listing::<Cluster>().unwrap();
    assert!(Arc::ptr_eq(&first, &cache.listing::<Cluster>().unwrap()));

    cache.handle(Event::Apply(object("b", 3, "other")));

    let second = cache.listing::<Cluster>().unwrap();
    assert!(Arc::ptr_eq(&first.records[0], &second.records[0]));
    assert_eq!((first.records[1].spec.cluster_id.as_str(), second.records[1].spec.cluster_id.as_str()), ("b", "other"));
    cache.see(object("c", 4, "c"));
    cache.forget(&key("n", "a"));
    cache.handle(Event::Delete(object("b", 5, "other")));
    assert_eq!(ids(&cache), ["c"]);
}
