//! Decides which of the records that other clusters sent to the broker are taken.
//!
//! The broker's admission rules (Submariner chapter 3.6) check neither names nor subnets inside an Endpoint, and an
//! older broker checks nothing at all, so a record counts only for the cluster that sent it, and only if it is whole.

use std::collections::BTreeMap;
use std::fmt;

use culvert_api::{Cluster, Endpoint, Record};
use culvert_model::{ClusterId, ForeignSubnets, MAX_SUBNETS, SubnetError, is_cable_name_of};
use ipnet::IpNet;

use crate::side::{Found, Owner, Synced, owner};

/// A record that is not synced, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub kind: &'static str,
    pub name: String,
    pub reason: Reason,
}

impl Refusal {
    pub(crate) fn of<R: Record>(record: &R, reason: Reason) -> Self {
        Self { kind: R::KIND, name: record.name().to_owned(), reason }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.name, self.reason)
    }
}

/// Why a record is not synced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("{0}")]
    Malformed(String),
    #[error("it comes from cluster {sender}, but speaks for cluster {claimed:?}: a cluster may only speak for itself")]
    SpeaksForAnother { sender: ClusterId, claimed: String },
    #[error("the Cluster record of {cluster} must be named {cluster}: rename it in that cluster")]
    Misnamed { cluster: ClusterId },
    #[error("none of its subnets can be routed here: {0}")]
    Subnets(SubnetError),
    #[error("its cable name {cable_name} belongs to cluster {holder}: restart the gateway of cluster {sender}")]
    CableTaken { sender: ClusterId, cable_name: String, holder: ClusterId },
    #[error("a record of this cluster has that name: rename or delete it here, and the other is taken")]
    NameTakenHere,
    #[error("{holder} has that name at the broker: is the cluster id in use twice? Give this cluster another one")]
    NameTakenAtBroker { holder: String },
}

/// The records taken, by name, and the refusals of others.
pub(crate) struct Accepted<'a, R> {
    pub(crate) records: BTreeMap<&'a str, &'a R>,
    pub(crate) refused: Vec<Refusal>,
}

/// Returns the Clusters at the broker that other clusters sent about themselves.
pub(crate) fn clusters<'a>(broker: &'a Found<Cluster>, own: &ClusterId) -> Accepted<'a, Cluster> {
    let checked = others(broker, own).map(|(record, sender)| (record, check_cluster(record, sender)));
    let mut accepted = Accepted { records: BTreeMap::new(), refused: Vec::new() };
    for (record, verdict) in checked {
        match verdict {
            Ok(()) => _ = accepted.records.insert(record.name(), record),
            Err(reason) => accepted.refused.push(Refusal::of(record, reason)),
        }
    }
    accepted
}

fn check_cluster(record: &Cluster, sender: &str) -> Result<(), Reason> {
    let cluster = check_sender(record, sender)?;
    if record.name() != cluster.as_str() {
        return Err(Reason::Misnamed { cluster });
    }
    let count = record.spec.cluster_cidr.len() + record.spec.service_cidr.len() + record.spec.global_cidr.len();
    if count > MAX_SUBNETS {
        return Err(Reason::Malformed(format!("it names {count} CIDRs: {MAX_SUBNETS} at most")));
    }
    let spec = &record.spec;
    for (field, list) in
        [("service_cidr", &spec.service_cidr), ("cluster_cidr", &spec.cluster_cidr), ("global_cidr", &spec.global_cidr)]
    {
        if let Some(text) = list.iter().find(|text| text.parse::<IpNet>().is_err()) {
            return Err(Reason::Malformed(format!("{field} {text:?} is no subnet such as 10.0.0.0/16")));
        }
    }
    Ok(())
}

/// Returns the Endpoints at the broker that other clusters sent about themselves, that are whole and can be routed.
///
/// `own_cables` are the cable names of this cluster's own Endpoints.
pub(crate) fn endpoints<'a>(
    broker: &'a Found<Endpoint>,
    own: &ClusterId,
    own_cables: &[&str],
    foreign: &ForeignSubnets,
) -> Accepted<'a, Endpoint> {
    let mut refused = Vec::new();
    let mut whole = Vec::new();
    for (record, sender) in others(broker, own) {
        match check_endpoint(record, sender, foreign) {
            Ok(endpoint) => whole.push((record, endpoint)),
            Err(reason) => refused.push(Refusal::of(record, reason)),
        }
    }
    // A cable name is a key wherever cables are kept. Of two clusters with one, it is for the one whose id it is made of.
    whole.sort_by_key(|(_, endpoint)| !is_named_by_rule(endpoint));
    let mut holders: BTreeMap<&str, ClusterId> = own_cables.iter().map(|cable| (*cable, own.clone())).collect();
    let mut records = BTreeMap::new();
    for (record, endpoint) in whole {
        let holder = holders.entry(&record.spec.cable_name).or_insert_with(|| endpoint.cluster.clone());
        if *holder == endpoint.cluster {
            records.insert(record.name(), record);
        } else {
            let (sender, holder) = (endpoint.cluster, holder.clone());
            let reason = Reason::CableTaken { sender, cable_name: endpoint.cable_name, holder };
            refused.push(Refusal::of(record, reason));
        }
    }
    Accepted { records, refused }
}

fn check_endpoint(
    record: &Endpoint,
    sender: &str,
    foreign: &ForeignSubnets,
) -> Result<culvert_model::Endpoint, Reason> {
    check_sender(record, sender)?;
    let endpoint = culvert_model::Endpoint::try_from(record).map_err(|error| {
        let text = error.to_string();
        // The refusal names the record itself.
        let detail = text.strip_prefix(&format!("Endpoint {}: ", record.name())).unwrap_or(&text);
        Reason::Malformed(detail.to_owned())
    })?;
    endpoint.check_size().map_err(|error| Reason::Malformed(error.to_string()))?;
    let checks: Vec<_> = endpoint.subnets.iter().map(|subnet| foreign.check(*subnet)).collect();
    // The gateway refuses subnets one by one, as long as one is left.
    match checks.iter().find_map(|check| check.clone().err()) {
        Some(error) if checks.iter().all(Result::is_err) => Err(Reason::Subnets(error)),
        Some(_) | None => Ok(endpoint),
    }
}

fn check_sender<R: Synced>(record: &R, sender: &str) -> Result<ClusterId, Reason> {
    let sender: ClusterId =
        sender.parse().map_err(|error| Reason::Malformed(format!("label submariner-io/clusterID: {error}")))?;
    if record.spoken_for() != sender.as_str() {
        return Err(Reason::SpeaksForAnother { sender, claimed: record.spoken_for().to_owned() });
    }
    Ok(sender)
}

fn others<'a, R: Synced>(broker: &'a Found<R>, own: &ClusterId) -> impl Iterator<Item = (&'a R, &'a str)> {
    broker.records.values().filter_map(move |record| match owner(record, own) {
        Owner::Other(sender) => Some((record, sender)),
        Owner::Own | Owner::Unsent | Owner::Nobody => None,
    })
}

fn is_named_by_rule(endpoint: &culvert_model::Endpoint) -> bool {
    endpoint.private.iter().any(|address| is_cable_name_of(&endpoint.cable_name, &endpoint.cluster, address))
}
