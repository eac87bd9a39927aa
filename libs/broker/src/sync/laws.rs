//! What holds for any two stores, however they came about.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{applied, cluster, endpoint, id, now, planned, sent_by, side};
use super::*;

const CLUSTERS: [&str; 3] = ["east", "west", "north"];

/// A Cluster or Endpoint of any of three clusters, with any of their labels or none, under a name that may be another's.
fn metadata_of<R: Record>(mut record: R, label: Option<&str>, name: Option<&str>, note: Option<u8>) -> R {
    if let Some(label) = label {
        record = sent_by(label, record);
    }
    if let Some(name) = name {
        record.metadata_mut().name = Some(name.to_owned());
    }
    record.metadata_mut().annotations = note.map(|note| BTreeMap::from([("note".to_owned(), note.to_string())]));
    record
}

fn of() -> impl Strategy<Value = &'static str> {
    prop::sample::select(CLUSTERS.to_vec())
}

fn label() -> impl Strategy<Value = Option<&'static str>> {
    prop::option::of(prop::sample::select(vec!["east", "west", "north", "No Label"]))
}

fn a_cluster() -> impl Strategy<Value = Cluster> {
    (of(), label(), prop::option::weighted(0.2, of()), prop::option::of(0..3_u8), any::<bool>()).prop_map(
        |(of, label, name, note, good)| {
            let mut record = metadata_of(cluster(of), label, name, note);
            if !good {
                record.spec.service_cidr = vec!["nonsense".to_owned()];
            }
            record
        },
    )
}

fn an_endpoint() -> impl Strategy<Value = Endpoint> {
    let subnet = prop::sample::select(vec!["10.1.0.0/16", "10.2.0.0/16", "0.0.0.0/0", "nonsense"]);
    (of(), 1..3_u8, label(), prop::option::weighted(0.2, of()), prop::option::of(0..3_u8), subnet, of()).prop_map(
        |(of, host, label, name, note, subnet, cable_of)| {
            let mut record = metadata_of(endpoint(of, host), label, name, note);
            record.spec.subnets = vec![subnet.to_owned()];
            if host == 2 {
                record.spec.cable_name = endpoint(cable_of, 1).spec.cable_name;
            }
            record
        },
    )
}

fn a_side() -> impl Strategy<Value = Side> {
    let clusters = prop::collection::vec(a_cluster(), 0..5);
    let endpoints = prop::collection::vec(an_endpoint(), 0..8);
    (clusters, endpoints).prop_map(|(clusters, endpoints)| {
        // A store has one record of a name.
        let clusters: BTreeMap<_, _> = clusters.into_iter().map(|record| (record.name().to_owned(), record)).collect();
        let endpoints: BTreeMap<_, _> =
            endpoints.into_iter().map(|record| (record.name().to_owned(), record)).collect();
        side(&clusters.into_values().collect::<Vec<_>>(), &endpoints.into_values().collect::<Vec<_>>())
    })
}

/// Whether nobody but `own` put the record at the broker.
fn is_own_at_broker<R: Synced>(record: &R, own: &ClusterId) -> bool {
    matches!(owner(record, own), Owner::Own | Owner::Unsent)
}

/// The records of `found` that are not `own`'s to write at the broker.
fn of_others<R: Synced>(found: &Found<R>, own: &ClusterId) -> BTreeMap<String, R> {
    let others = found.records.iter().filter(|(_, record)| !is_own_at_broker(*record, own));
    others.map(|(name, record)| (name.clone(), record.clone())).collect()
}

/// The records of `found` that are no copies of others' records.
fn written_here<R: Synced>(found: &Found<R>, own: &ClusterId) -> BTreeMap<String, R> {
    let own_ones = found.records.iter().filter(|(_, record)| !matches!(owner(*record, own), Owner::Other(_)));
    own_ones.map(|(name, record)| (name.clone(), record.clone())).collect()
}

proptest! {
    #[test]
    fn a_second_pass_has_nothing_to_do(local in a_side(), broker in a_side(), absences_count: bool) {
        let first = planned(&local, &broker, absences_count, now());
        let (local, broker) = (applied(&local, &first.to_local), applied(&broker, &first.to_broker));
        let second = planned(&local, &broker, absences_count, now());
        prop_assert!(second.to_local.is_empty() && second.to_broker.is_empty(), "{second:#?}");
        prop_assert_eq!(first.refused, second.refused);
    }

    #[test]
    fn the_others_records_at_the_broker_are_untouched(local in a_side(), broker in a_side(), absences_count: bool) {
        let own = id("east");
        let plan = planned(&local, &broker, absences_count, now());
        let departure = departure_plan(&own, &local, &broker);
        for changes in [&plan.to_broker, &departure.to_broker] {
            let after = applied(&broker, changes);
            prop_assert_eq!(of_others(&broker.clusters, &own), of_others(&after.clusters, &own));
            prop_assert_eq!(of_others(&broker.endpoints, &own), of_others(&after.endpoints, &own));
        }
    }

    #[test]
    fn own_records_are_never_written_from_the_broker(local in a_side(), broker in a_side(), absences_count: bool) {
        let own = id("east");
        let after = applied(&local, &planned(&local, &broker, absences_count, now()).to_local);
        prop_assert_eq!(written_here(&local.clusters, &own), written_here(&after.clusters, &own));
        prop_assert_eq!(written_here(&local.endpoints, &own), written_here(&after.endpoints, &own));
    }

    #[test]
    fn what_is_ours_here_stays_at_the_broker(local in a_side(), broker in a_side(), absences_count: bool) {
        let own = id("east");
        let after = applied(&broker, &planned(&local, &broker, absences_count, now()).to_broker);
        for record in ours(&own, &local.endpoints) {
            prop_assert!(after.endpoints.records.contains_key(record.name()));
        }
        for record in ours(&own, &local.clusters) {
            prop_assert!(after.clusters.records.contains_key(record.name()));
        }
    }

    #[test]
    fn every_copy_is_of_a_cluster_that_speaks_for_itself(local in a_side(), broker in a_side()) {
        let own = id("east");
        let after = applied(&local, &planned(&local, &broker, true, now()).to_local);
        for copy in copies(&own, &after.endpoints) {
            prop_assert_eq!(owner(copy, &own), Owner::Other(&copy.spec.cluster_id));
            prop_assert!(broker.endpoints.records.contains_key(copy.name()));
        }
    }

    #[test]
    fn three_clusters_end_with_the_same_records(
        stores in prop::array::uniform3(a_side()),
        order in prop::collection::vec(0..3_usize, 0..12),
    ) {
        let foreign = ForeignSubnets::default();
        let own_records = |side: &Side, own: &str| {
            let keep = |record: &&Endpoint| record.spec.cluster_id == own && record.metadata.labels.is_none();
            let endpoints: Vec<_> = side.endpoints.records.values().filter(keep).cloned().map(unversioned).collect();
            super::tests::side(&[cluster(own)], &endpoints)
        };
        let mut locals: Vec<Side> =
            CLUSTERS.iter().zip(&stores).map(|(own, store)| own_records(store, own)).collect();
        let mut broker = Side::default();
        let mut refused = BTreeMap::new();
        // Any order at first, then everybody twice: to send and to take.
        for turn in order.into_iter().chain([0, 1, 2, 0, 1, 2]) {
            let (own, local) = (id(CLUSTERS[turn]), &locals[turn]);
            let (foreign, now) = (&foreign, now());
            let plan =
                plan(&Situation { own: &own, foreign, local, broker: &broker, absences_count: true, now });
            broker = applied(&broker, &plan.to_broker);
            locals[turn] = applied(&locals[turn], &plan.to_local);
            refused.insert(turn, plan.refused.len());
        }
        for local in &locals {
            let names: Vec<_> = local.clusters.records.keys().collect();
            prop_assert_eq!(names, ["east", "north", "west"]);
        }
        for (turn, local) in locals.iter().enumerate() {
            let known = local.endpoints.records.len() + refused[&turn];
            prop_assert!(known >= broker.endpoints.records.len(), "{turn}: {local:#?}");
        }
    }
}

fn unversioned<R: Record>(mut record: R) -> R {
    record.metadata_mut().resource_version = None;
    record
}
