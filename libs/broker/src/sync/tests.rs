//! The rules of the exchange, one scene each: what is found here and at the broker, and what is to be written where.

use std::collections::BTreeMap;

use culvert_api::{ClusterSpec, EndpointSpec};

use super::*;

pub(super) fn id(text: &str) -> ClusterId {
    text.parse().unwrap()
}

pub(super) fn cluster(of: &str) -> Cluster {
    let spec = ClusterSpec {
        cluster_id: of.to_owned(),
        color_codes: vec!["blue".to_owned()],
        service_cidr: vec!["100.2.0.0/16".to_owned()],
        cluster_cidr: vec!["10.2.0.0/16".to_owned()],
        global_cidr: Vec::new(),
    };
    Cluster::new(of, spec)
}

pub(super) fn endpoint(of: &str, host: u8) -> Endpoint {
    let cable_name = format!("submariner-cable-{of}-192-168-1-{host}");
    let spec = EndpointSpec {
        cluster_id: of.to_owned(),
        cable_name: cable_name.clone(),
        hostname: format!("gateway-{host}"),
        subnets: vec!["100.2.0.0/16".to_owned(), "10.2.0.0/16".to_owned()],
        private_ip: format!("192.168.1.{host}"),
        public_ip: "203.0.113.7".to_owned(),
        backend: "wireguard".to_owned(),
        ..EndpointSpec::default()
    };
    Endpoint::new(&format!("{of}-{cable_name}"), spec)
}

/// Labels a record as the broker has it.
pub(super) fn sent_by<R: Record>(cluster: &str, mut record: R) -> R {
    let labels = record.metadata_mut().labels.get_or_insert_default();
    labels.insert(labels::CLUSTER_ID.to_owned(), cluster.to_owned());
    record
}

pub(super) fn side(clusters: &[Cluster], endpoints: &[Endpoint]) -> Side {
    let clusters = ChangesOf { put: clusters.to_vec(), delete: Vec::new() };
    let endpoints = ChangesOf { put: endpoints.to_vec(), delete: Vec::new() };
    applied(&Side::default(), &Changes { clusters, endpoints })
}

/// Applies changes as a store does, which compares resource versions.
pub(super) fn applied(side: &Side, changes: &Changes) -> Side {
    fn one<R: Record>(found: &mut Found<R>, changes: &ChangesOf<R>) {
        for record in &changes.put {
            let mut record = record.clone();
            let before = found.records.get(record.name()).and_then(|found| found.metadata().resource_version.clone());
            assert_eq!(record.metadata().resource_version, before, "{} is written blindly", record.name());
            let version = before.map_or(0, |version| version.parse::<u64>().unwrap()) + 1;
            record.metadata_mut().resource_version = Some(version.to_string());
            found.records.insert(record.name().to_owned(), record);
        }
        for name in &changes.delete {
            assert!(found.records.remove(name).is_some(), "{name} is deleted, but is not there");
        }
    }
    let mut side = side.clone();
    one(&mut side.clusters, &changes.clusters);
    one(&mut side.endpoints, &changes.endpoints);
    side
}

pub(super) fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

/// Plans for cluster `east`, whose own subnets are 10.1.0.0/16 and 100.1.0.0/16.
pub(super) fn planned(local: &Side, broker: &Side, absences_count: bool, now: Timestamp) -> SyncPlan {
    let foreign = foreign(&["10.1.0.0/16", "100.1.0.0/16"]);
    plan(&Situation { own: &id("east"), foreign: &foreign, local, broker, absences_count, now })
}

fn foreign(local: &[&str]) -> ForeignSubnets {
    ForeignSubnets { local: local.iter().map(|net| net.parse().unwrap()).collect(), nodes: Vec::new() }
}

fn reasons(plan: &SyncPlan) -> Vec<String> {
    plan.refused.iter().map(ToString::to_string).collect()
}

fn names<R: Record>(records: &[R]) -> Vec<&str> {
    records.iter().map(Record::name).collect()
}

#[test]
fn own_records_go_to_the_broker_under_our_label() {
    let local = side(&[cluster("east")], &[endpoint("east", 1)]);

    let plan = planned(&local, &Side::default(), true, now());

    assert!(plan.to_local.is_empty());
    assert_eq!(
        plan.to_broker,
        Changes {
            clusters: ChangesOf { put: vec![sent_by("east", cluster("east"))], delete: Vec::new() },
            endpoints: ChangesOf { put: vec![sent_by("east", endpoint("east", 1))], delete: Vec::new() },
        }
    );
}

#[test]
fn the_others_records_come_here_with_their_label() {
    let clusters = [sent_by("west", cluster("west"))];
    let endpoints = [sent_by("west", endpoint("west", 1))];
    let broker = side(&clusters, &endpoints);

    let plan = planned(&Side::default(), &broker, true, now());

    assert!(plan.to_broker.is_empty());
    assert_eq!(plan.to_local.clusters.put, clusters);
    assert_eq!(plan.to_local.endpoints.put, endpoints);
}

#[test]
fn only_name_labels_annotations_and_spec_travel() {
    let mut west = sent_by("west", cluster("west"));
    west.metadata.uid = Some("a-b-c".to_owned());
    west.metadata.finalizers = Some(vec!["theirs".to_owned()]);
    west.metadata.annotations = Some(BTreeMap::from([("note".to_owned(), "kept".to_owned())]));

    let plan = planned(&Side::default(), &side(&[west], &[]), true, now());

    let copy = &plan.to_local.clusters.put[0];
    assert_eq!((&copy.metadata.uid, &copy.metadata.finalizers), (&None, &None));
    assert_eq!(copy.metadata.annotations.as_ref().unwrap()["note"], "kept");
}

#[test]
fn records_without_label_or_with_ours_are_not_taken() {
    let broker = side(&[cluster("west"), sent_by("east", cluster("east"))], &[endpoint("west", 1)]);
    let plan = planned(&Side::default(), &broker, true, now());
    assert!(plan.to_local.is_empty());
}

#[test]
fn hand_written_records_of_others_are_not_sent() {
    let local = side(&[cluster("west")], &[endpoint("west", 1), sent_by("north", endpoint("north", 1))]);
    let plan = planned(&local, &Side::default(), false, now());
    assert!(plan.to_broker.is_empty());
    assert!(plan.to_local.is_empty());
}

#[test]
fn what_we_deleted_is_deleted_at_the_broker() {
    let local = side(&[cluster("east")], &[endpoint("east", 2)]);
    let broker = side(
        &[sent_by("east", cluster("east"))],
        &[sent_by("east", endpoint("east", 1)), sent_by("east", endpoint("east", 2))],
    );

    let plan = planned(&local, &broker, true, now());

    assert_eq!(plan.to_broker.endpoints.delete, [endpoint("east", 1).name()]);
    assert!(plan.to_broker.clusters.delete.is_empty());
}

#[test]
fn a_record_that_cannot_be_read_is_not_absent() {
    let mut local = side(&[], &[]);
    local.endpoints.unreadable.insert(endpoint("east", 1).name().to_owned());
    let broker = side(&[], &[sent_by("east", endpoint("east", 1))]);
    assert_eq!(planned(&local, &broker, true, now()), SyncPlan::default());

    let local = side(&[sent_by("west", cluster("west"))], &[sent_by("west", endpoint("west", 1))]);
    let mut broker = side(&[], &[]);
    broker.clusters.unreadable.insert("west".to_owned());
    broker.endpoints.unreadable.insert(endpoint("west", 1).name().to_owned());
    assert_eq!(planned(&local, &broker, true, now()), SyncPlan::default());
}

#[test]
fn a_cluster_speaks_for_itself_only() {
    let broker = side(
        &[sent_by("west", cluster("north")), sent_by("north", cluster("east"))],
        &[sent_by("west", endpoint("north", 1)), sent_by("west", endpoint("east", 9))],
    );

    let plan = planned(&side(&[], &[endpoint("east", 1)]), &broker, true, now());

    assert!(plan.to_local.is_empty());
    assert_eq!(plan.refused.len(), 4, "{:?}", reasons(&plan));
    assert!(reasons(&plan).iter().all(|reason| reason.contains("a cluster may only speak for itself")));
}

#[test]
fn a_cluster_under_another_name_is_refused() {
    let mut west = sent_by("west", cluster("west"));
    west.metadata.name = Some("south".to_owned());
    let plan = planned(&Side::default(), &side(&[west], &[]), true, now());
    assert!(plan.to_local.is_empty());
    assert_eq!(
        reasons(&plan),
        ["Cluster south: the Cluster record of west must be named west: rename it in that cluster"]
    );
}

#[test]
fn a_record_that_is_not_whole_is_refused_and_its_copy_removed() {
    let good = sent_by("west", endpoint("west", 1));
    let mut bad = good.clone();
    bad.spec.backend_config.insert("publicKey".to_owned(), "short".to_owned());
    let local = side(&[], &[good]);

    let plan = planned(&local, &side(&[], &[bad]), false, now());

    assert_eq!(plan.to_local.endpoints.delete, [endpoint("west", 1).name()]);
    let name = endpoint("west", 1).name().to_owned();
    assert!(reasons(&plan)[0].starts_with(&format!("Endpoint {name}: spec.backend_config.publicKey")), "{plan:?}");
}

#[test]
fn a_cluster_with_a_bad_subnet_is_refused_by_field() {
    let mut west = sent_by("west", cluster("west"));
    west.spec.cluster_cidr.push("10.2.0.0/99".to_owned());
    let plan = planned(&Side::default(), &side(&[west], &[]), true, now());
    assert!(plan.to_local.is_empty());
    assert!(reasons(&plan)[0].contains(r#"cluster_cidr "10.2.0.0/99""#), "{plan:?}");
}

#[test]
fn overlapping_subnets_are_refused_and_taken_when_the_overlap_ends() {
    let broker = side(&[], &[sent_by("west", endpoint("west", 1))]);
    let (own, local) = (id("east"), Side::default());
    let with = |nets: &[&str]| {
        let foreign = foreign(nets);
        plan(&Situation {
            own: &own,
            foreign: &foreign,
            local: &local,
            broker: &broker,
            absences_count: true,
            now: now(),
        })
    };

    let overlapping = with(&["10.2.128.0/17", "100.0.0.0/8"]);
    assert!(overlapping.to_local.is_empty());
    assert!(reasons(&overlapping)[0].contains("overlaps 100.0.0.0/8 of this cluster"), "{overlapping:?}");

    let partly = with(&["10.2.128.0/17"]);
    assert_eq!(names(&partly.to_local.endpoints.put), [endpoint("west", 1).name()]);

    let apart = with(&["10.3.0.0/16"]);
    assert_eq!(names(&apart.to_local.endpoints.put), [endpoint("west", 1).name()]);
    assert!(apart.refused.is_empty());
}

#[test]
fn a_cable_name_is_for_the_cluster_it_is_made_of() {
    let north = sent_by("north", endpoint("north", 1));
    let mut thief = sent_by("a", endpoint("a", 1));
    thief.spec.cable_name = north.spec.cable_name.clone();
    let mut ours = sent_by("a", endpoint("a", 2));
    ours.spec.cable_name = endpoint("east", 1).spec.cable_name;
    let broker = side(&[], &[north, thief, ours]);

    let plan = planned(&side(&[], &[endpoint("east", 1)]), &broker, true, now());

    assert_eq!(names(&plan.to_local.endpoints.put), [endpoint("north", 1).name()]);
    assert_eq!(plan.refused.len(), 2, "{:?}", reasons(&plan));
}

#[test]
fn a_record_of_ours_is_never_overwritten() {
    let mut theirs = sent_by("west", endpoint("west", 1));
    theirs.metadata.name = endpoint("east", 1).metadata.name;
    let local = side(&[], &[endpoint("east", 1)]);

    let plan = planned(&local, &side(&[], &[theirs]), true, now());

    assert!(plan.to_local.is_empty() && plan.to_broker.is_empty(), "{plan:?}");
    assert_eq!(
        reasons(&plan),
        [
            format!(
                "Endpoint {}: cluster west has that name at the broker: is the cluster id in use twice? Give this cluster \
             another one",
                endpoint("east", 1).name()
            ),
            format!(
                "Endpoint {}: a record of this cluster has that name: rename or delete it here, and the other is taken",
                endpoint("east", 1).name()
            ),
        ]
    );
}

#[test]
fn a_cluster_that_left_is_known_for_five_minutes_but_its_endpoints_go_at_once() {
    let local = side(&[sent_by("west", cluster("west"))], &[sent_by("west", endpoint("west", 1))]);

    let begins = planned(&local, &Side::default(), true, now());
    assert_eq!(begins.to_local.endpoints.delete, [endpoint("west", 1).name()]);
    assert!(begins.to_local.clusters.delete.is_empty());
    let marked = applied(&local, &begins.to_local);
    let annotations = marked.clusters.records["west"].metadata.annotations.clone().unwrap();
    assert_eq!(annotations[labels::DEPARTED], now().to_string());

    let before = now() + DEPARTURE - Duration::from_secs(1);
    assert!(planned(&marked, &Side::default(), true, before).to_local.is_empty());
    assert_eq!(planned(&marked, &Side::default(), true, now() + DEPARTURE).to_local.clusters.delete, ["west"]);
}

#[test]
fn a_cluster_that_comes_back_is_no_longer_departed() {
    let west = side(&[sent_by("west", cluster("west"))], &[]);
    let marked = applied(&west, &planned(&west, &Side::default(), true, now()).to_local);

    let back = applied(&marked, &planned(&marked, &west, true, now()).to_local);

    assert_eq!(back.clusters.records["west"].metadata.annotations, None);
}

#[test]
fn nobody_can_publish_a_cluster_as_departed() {
    let mut west = sent_by("west", cluster("west"));
    let mark = (labels::DEPARTED.to_owned(), "2001-01-01T00:00:00Z".to_owned());
    west.metadata.annotations = Some(BTreeMap::from([mark]));
    let plan = planned(&Side::default(), &side(&[west], &[]), true, now());
    assert_eq!(plan.to_local.clusters.put[0].metadata.annotations, None);
}

#[test]
fn a_departure_from_the_future_begins_anew() {
    let local = side(&[sent_by("west", cluster("west"))], &[]);
    let marked = applied(&local, &planned(&local, &Side::default(), true, now() + DEPARTURE).to_local);
    let again = planned(&marked, &Side::default(), true, now());
    assert_eq!(again.to_local.clusters.put.len(), 1);
}

#[test]
fn a_wiped_broker_takes_nothing_from_us() {
    let copies = (sent_by("west", cluster("west")), sent_by("west", endpoint("west", 1)));
    let local = side(&[cluster("east"), copies.0], &[endpoint("east", 1), copies.1]);

    let plan = planned(&local, &Side::default(), false, now());

    assert!(plan.to_local.is_empty());
    assert_eq!(names(&plan.to_broker.clusters.put), ["east"]);
}

#[test]
fn an_unchanged_record_causes_no_write() {
    let local = side(&[cluster("east"), sent_by("west", cluster("west"))], &[endpoint("east", 1)]);
    let broker = side(
        &[sent_by("east", cluster("east")), sent_by("west", cluster("west"))],
        &[sent_by("east", endpoint("east", 1))],
    );
    assert_eq!(planned(&local, &broker, true, now()), SyncPlan::default());
}

#[test]
fn older_endpoints_are_copied_first() {
    let mut old = sent_by("west", endpoint("west", 9));
    let mut new = sent_by("west", endpoint("west", 1));
    let time = |second| k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::from_second(second).unwrap());
    old.metadata.creation_timestamp = Some(time(100));
    new.metadata.creation_timestamp = Some(time(200));

    let plan = planned(&Side::default(), &side(&[], &[new, old]), true, now());

    let order = [endpoint("west", 9), endpoint("west", 1)];
    assert_eq!(names(&plan.to_local.endpoints.put), names(&order));
}

#[test]
fn a_departing_cluster_leaves_what_is_not_its_own() {
    let local = side(
        &[cluster("east"), sent_by("west", cluster("west")), cluster("hand-written")],
        &[endpoint("east", 1), sent_by("west", endpoint("west", 1))],
    );
    let broker = side(
        &[sent_by("east", cluster("east")), sent_by("west", cluster("west"))],
        &[sent_by("east", endpoint("east", 1)), sent_by("west", endpoint("west", 1)), endpoint("east", 3)],
    );

    let plan = departure_plan(&id("east"), &local, &broker);

    let (local, broker) = (applied(&local, &plan.to_local), applied(&broker, &plan.to_broker));
    assert_eq!(local.clusters.records.keys().collect::<Vec<_>>(), ["hand-written"]);
    assert!(local.endpoints.records.is_empty());
    assert_eq!(broker.clusters.records.keys().collect::<Vec<_>>(), ["west"]);
    assert_eq!(broker.endpoints.records.len(), 2);
}
