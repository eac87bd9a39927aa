//! The records of one store, and whose they are.

use std::collections::{BTreeMap, BTreeSet};

use culvert_api::{Cluster, ClusterSpec, Endpoint, EndpointSpec, ObjectMeta, Record, labels};
use culvert_model::ClusterId;

/// What the sync knows of one store, the cluster's own or the broker's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Side {
    pub clusters: Found<Cluster>,
    pub endpoints: Found<Endpoint>,
}

/// The records of one kind in one store, by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Found<R> {
    pub records: BTreeMap<String, R>,
    /// Names of records that are there but cannot be read: neither present nor absent, so nothing follows from them.
    pub unreadable: BTreeSet<String>,
}

impl<R> Default for Found<R> {
    fn default() -> Self {
        Self { records: BTreeMap::new(), unreadable: BTreeSet::new() }
    }
}

impl<R: Record> FromIterator<R> for Found<R> {
    fn from_iter<T: IntoIterator<Item = R>>(records: T) -> Self {
        let records = records.into_iter().map(|record| (record.name().to_owned(), record)).collect();
        Self { records, unreadable: BTreeSet::new() }
    }
}

/// A kind that goes through the broker.
pub(crate) trait Synced: Record {
    type Spec: Clone + PartialEq;

    fn spec(&self) -> &Self::Spec;
    fn made(metadata: ObjectMeta, spec: Self::Spec) -> Self;
    /// The cluster that the record speaks for, as its spec says.
    fn spoken_for(&self) -> &str;
}

impl Synced for Cluster {
    type Spec = ClusterSpec;

    fn spec(&self) -> &ClusterSpec {
        &self.spec
    }

    fn made(metadata: ObjectMeta, spec: ClusterSpec) -> Self {
        Self { metadata, ..Self::new("", spec) }
    }

    fn spoken_for(&self) -> &str {
        &self.spec.cluster_id
    }
}

impl Synced for Endpoint {
    type Spec = EndpointSpec;

    fn spec(&self) -> &EndpointSpec {
        &self.spec
    }

    fn made(metadata: ObjectMeta, spec: EndpointSpec) -> Self {
        Self { metadata, ..Self::new("", spec) }
    }

    fn spoken_for(&self) -> &str {
        &self.spec.cluster_id
    }
}

/// Whose a record is, by its label `submariner-io/clusterID` and its spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner<'a> {
    /// Labelled as ours and speaks for us.
    Own,
    /// Without label and speaks for us: ours before it went through a broker.
    Unsent,
    /// Labelled with the id of another cluster, whatever it speaks for.
    Other(&'a str),
    /// No label, or ours, but speaks for another cluster: nobody's to sync.
    Nobody,
}

/// Returns whose `record` is.
pub(crate) fn owner<'a, R: Synced>(record: &'a R, own: &ClusterId) -> Owner<'a> {
    let ours = record.spoken_for() == own.as_str();
    match sender(record) {
        Some(sender) if sender != own.as_str() => Owner::Other(sender),
        Some(_) if ours => Owner::Own,
        None if ours => Owner::Unsent,
        Some(_) | None => Owner::Nobody,
    }
}

/// Returns the cluster that sent `record` to the broker.
fn sender<R: Record>(record: &R) -> Option<&str> {
    record.metadata().labels.as_ref()?.get(labels::CLUSTER_ID).map(String::as_str)
}

/// What of a record goes through the broker (Submariner chapter 3.4): name, labels, annotations and spec.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Content<R: Synced> {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) spec: R::Spec,
}

impl<R: Synced> Content<R> {
    pub(crate) fn of(record: &R) -> Self {
        Self {
            name: record.name().to_owned(),
            labels: record.metadata().labels.clone().unwrap_or_default(),
            annotations: record.metadata().annotations.clone().unwrap_or_default(),
            spec: record.spec().clone(),
        }
    }

    /// Returns the record to write so that `found` has this content; `None` if it has it already.
    ///
    /// A record that replaces another keeps that one's other metadata, its resource version above all; one that is to
    /// be created has no resource version.
    pub(crate) fn over(self, found: Option<&R>) -> Option<R> {
        if found.is_some_and(|found| Self::of(found) == self) {
            return None;
        }
        let metadata = ObjectMeta {
            name: Some(self.name),
            labels: Some(self.labels).filter(|labels| !labels.is_empty()),
            annotations: Some(self.annotations).filter(|annotations| !annotations.is_empty()),
            ..found.map(|found| found.metadata().clone()).unwrap_or_default()
        };
        Some(R::made(metadata, self.spec))
    }
}
