//! Turns records into what the core decides from.
//!
//! What cannot be read is not gone: a record whose file went bad keeps its last good content, and a record that is
//! readable and wrong still names subnets that must not be sent elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_api::{Cluster, Endpoint, EndpointSpec, Record, RouteAgent, labels};
use culvert_kernel::NodeFacts;
use culvert_model::{Addresses, MAX_SUBNETS};
use culvert_route_agent_core::{Inputs, Interface, KnownCluster};
use culvert_runtime::{Listing, Problem, Records, StoreError};
use ipnet::IpNet;

use crate::config::Config;

/// The records that a node follows, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Known {
    clusters: BTreeMap<String, Cluster>,
    pub(crate) endpoints: BTreeMap<String, Endpoint>,
    pub(crate) agents: BTreeMap<String, RouteAgent>,
    /// What could not be read, in words.
    problems: BTreeSet<String>,
}

impl Known {
    /// Reads the records; `before` is what was known until now.
    ///
    /// # Errors
    ///
    /// The store's when it is away, in which case `before` is still what is known.
    pub(crate) async fn read(records: &Records, before: &Self) -> Result<Self, StoreError> {
        let mut problems = BTreeSet::new();
        Ok(Self {
            clusters: merged(records.list().await?, &before.clusters, &mut problems),
            endpoints: merged(records.list().await?, &before.endpoints, &mut problems),
            agents: merged(records.list().await?, &before.agents, &mut problems),
            problems,
        })
    }

    /// Tells whether all records could be read, so that what is not known is not there.
    pub(crate) fn is_complete(&self) -> bool {
        self.problems.is_empty()
    }

    /// Returns the core's inputs, and what is wrong with the records, in words.
    pub(crate) fn inputs(&self, config: &Config, address: Addresses, facts: &NodeFacts) -> (Inputs, BTreeSet<String>) {
        let mut problems = self.problems.clone();
        let mut endpoints = Vec::new();
        let mut clusters = Vec::new();
        for record in self.endpoints.values() {
            match usable(record) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(problem) => {
                    problems.insert(problem);
                    clusters.push(guarded(record.name(), &record.spec, &mut BTreeSet::new()));
                }
            }
        }
        clusters.extend(self.clusters.values().map(|record| known_cluster(record, &mut problems)));
        let inputs = Inputs {
            cluster: config.cluster.clone(),
            node: config.node.clone(),
            address,
            pods: config.pods.clone(),
            services: config.services.clone(),
            global: config.global.clone(),
            endpoints,
            clusters,
            interfaces: facts.interfaces.iter().map(interface).collect(),
            node_addresses: self.agents.values().flat_map(|agent| node_addresses(agent, &mut problems)).collect(),
        };
        (inputs, problems)
    }
}

/// Returns the records of a listing, and those of `before` whose files cannot be read now.
fn merged<R: Record>(
    listing: Listing<R>,
    before: &BTreeMap<String, R>,
    problems: &mut BTreeSet<String>,
) -> BTreeMap<String, R> {
    let unreadable = listing.problems.iter().filter_map(Problem::name);
    let mut records: BTreeMap<String, R> =
        unreadable.filter_map(|name| Some((name.to_owned(), before.get(name)?.clone()))).collect();
    records.extend(listing.records.into_iter().map(|record| (record.name().to_owned(), record)));
    problems.extend(listing.problems.iter().map(ToString::to_string));
    records
}

/// Returns what an Endpoint says, or why it cannot be used.
pub(crate) fn usable(record: &Endpoint) -> Result<culvert_model::Endpoint, String> {
    let endpoint = culvert_model::Endpoint::try_from(record).map_err(|error| error.to_string())?;
    endpoint.check_size().map_err(|error| error.to_string())?;
    Ok(endpoint)
}

/// With Globalnet a cluster is reached by its global CIDRs only, and the others may be those of this cluster as well.
fn known_cluster(record: &Cluster, problems: &mut BTreeSet<String>) -> KnownCluster {
    let spec = &record.spec;
    let texts = match &spec.global_cidr[..] {
        [] => spec.service_cidr.iter().chain(&spec.cluster_cidr).collect::<Vec<_>>(),
        global => global.iter().collect(),
    };
    let place = format!("Cluster {}", record.name());
    KnownCluster { name: spec.cluster_id.clone(), subnets: subnets(&place, texts, problems) }
}

/// Returns the subnets of an Endpoint that is wrong otherwise.
fn guarded(name: &str, spec: &EndpointSpec, problems: &mut BTreeSet<String>) -> KnownCluster {
    KnownCluster { name: spec.cluster_id.clone(), subnets: subnets(name, &spec.subnets, problems) }
}

/// Reads subnets, [`MAX_SUBNETS`] at most: another cluster's record must not fill this node's routing table.
fn subnets<'a>(
    place: &str,
    texts: impl IntoIterator<Item = &'a String>,
    problems: &mut BTreeSet<String>,
) -> Vec<IpNet> {
    let mut texts = texts.into_iter();
    let parse = |text: &String| {
        let subnet = text.parse::<IpNet>().ok();
        if subnet.is_none() {
            problems.insert(format!("{place}: {text:?} is no CIDR: write it as `10.2.0.0/16` or `fd00:2::/48`"));
        }
        subnet
    };
    let subnets = texts.by_ref().take(MAX_SUBNETS).filter_map(parse).collect();
    if texts.next().is_some() {
        problems.insert(format!("{place} names more than {MAX_SUBNETS} subnets: the others are not guarded"));
    }
    subnets
}

/// Reads the addresses that a node published.
fn node_addresses(agent: &RouteAgent, problems: &mut BTreeSet<String>) -> Vec<IpAddr> {
    let annotation = agent.metadata.annotations.as_ref().and_then(|all| all.get(labels::NODE_ADDRESSES));
    let parse = |text: &str| {
        let address = text.parse::<IpAddr>().ok();
        if address.is_none() {
            let name = agent.name();
            problems
                .insert(format!("RouteAgent {name}: annotation {}: {text:?} is no address", labels::NODE_ADDRESSES));
        }
        address
    };
    let texts = annotation.into_iter().flat_map(|list| list.split(',')).map(str::trim).filter(|text| !text.is_empty());
    texts.filter_map(parse).collect()
}

fn interface((name, found): (&String, &culvert_kernel::Interface)) -> (String, Interface) {
    (name.clone(), Interface { mtu: found.mtu, addresses: found.addresses.clone() })
}

#[cfg(test)]
mod tests;
