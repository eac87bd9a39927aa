//! Reads what views and diagnoses are made of: a cluster's records, and of a cluster of Kubernetes what runs there and what
//! its broker has of it.

use std::collections::BTreeSet;

use anyhow::{Error, Result};
use culvert_api::{Cluster, Endpoint, Gateway, Record, RouteAgent, labels, object_name};
use culvert_runtime::{self as runtime, Location, Records, StoreError};
use culvert_setup::manifests::ROUTE_AGENT;
use culvert_setup::{Access, BrokerSeen, HostedBroker, Kind, Server, Survey};
use jiff::Timestamp;
use serde_json::Value;

use crate::global_ips::GlobalObjects;
use crate::progress::look;
use crate::view::silence;

/// What is known of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) clusters: Vec<Cluster>,
    pub(crate) route_agents: Vec<RouteAgent>,
    /// `None` if the records are in a directory, or if this was not asked for.
    pub(crate) survey: Option<Survey>,
    /// `None` too if the cluster's settings name no broker.
    pub(crate) broker: Option<BrokerSeen>,
    /// The API server that has the brokers in this cluster, and these; `None` if they were not asked for.
    pub(crate) hosted: Option<(String, Vec<HostedBroker>)>,
    /// `None` if they were not asked for, or could not be read.
    pub(crate) global: Option<GlobalObjects>,
}

impl Snapshot {
    /// Returns the ids by which this cluster is known: of its settings, and of its gateways.
    pub(crate) fn own_ids(&self) -> BTreeSet<&str> {
        let joined = self.survey.iter().filter_map(|survey| survey.installation.cluster.as_deref());
        let reported = self.gateways.iter().map(|gateway| gateway.status.local_endpoint.cluster_id.as_str());
        joined.chain(reported).filter(|id| !id.is_empty()).collect()
    }

    /// Tells whether a record is of this cluster.
    pub(crate) fn is_own<R: Record>(&self, record: &R, id: &str) -> bool {
        let own = self.own_ids();
        match own.is_empty() {
            // Before any gateway ran here, only what came from a broker is known to be remote.
            true => !record.metadata().labels.as_ref().is_some_and(|all| all.contains_key(labels::CLUSTER_ID)),
            false => own.contains(id),
        }
    }

    /// Returns the versions that the gateways run which are heard of; of one that fell silent nobody knows.
    pub(crate) fn gateway_versions(&self, now: Timestamp) -> impl Iterator<Item = &str> {
        let heard = self.gateways.iter().filter(move |gateway| silence(gateway, now).is_none());
        heard.map(|gateway| gateway.status.version.trim_start_matches("culvert-"))
    }

    /// Returns the records of the route agents that are there. A record does not tell when it was written, and nobody
    /// deletes that of a node that is gone: on Kubernetes those count whose node has a pod.
    pub(crate) fn present_agents(&self) -> impl Iterator<Item = &RouteAgent> {
        let node = |pod: &Value| {
            let own = pod["metadata"]["labels"]["app"] == ROUTE_AGENT;
            pod["spec"]["nodeName"].as_str().filter(|_| own).map(object_name)
        };
        let nodes: Option<BTreeSet<String>> =
            self.survey.as_ref().map(|survey| survey.pods.iter().filter_map(node).collect());
        let present = move |agent: &&RouteAgent| nodes.as_ref().is_none_or(|nodes| nodes.contains(agent.name()));
        self.route_agents.iter().filter(present)
    }
}

/// Reads the records of gateways and Endpoints at `location`; the second value says, one line each, which ones could not
/// be read.
pub(crate) async fn read(location: &Location) -> Result<(Snapshot, Vec<String>)> {
    // Nothing is applied under this name.
    let records = Records::at(location, "culvert").await.map_err(told)?;
    // Both are on their way while one is waited for.
    let _watch = records.watch(&[Gateway::RESOURCE, Endpoint::RESOURCE]);
    let gateways = records.list::<Gateway>().await.map_err(told)?;
    let endpoints = records.list::<Endpoint>().await.map_err(told)?;
    let problems = gateways.problems.iter().chain(&endpoints.problems).map(ToString::to_string).collect();
    let snapshot = Snapshot { gateways: gateways.records, endpoints: endpoints.records, ..Snapshot::default() };
    Ok((snapshot, problems))
}

/// Reads all that there is to know. A cluster that does not know what records are has none.
pub(crate) async fn read_all(location: &Location) -> Result<(Snapshot, Vec<String>)> {
    let (mut snapshot, mut problems) = (Snapshot::default(), Vec::new());
    if let Location::Server(place) = location {
        let server = Server::of_kubeconfig(&access(&place.access)).await?;
        let (survey, broker) = look(&server, async {
            let survey = server.survey().await?;
            let broker = server.broker_seen(&survey.settings).await?;
            Ok((survey, broker))
        })
        .await?;
        snapshot.broker = broker;
        let undefined = survey.missing.iter().any(|object| object.starts_with(Kind::DEFINITION.kind));
        snapshot.survey = Some(survey);
        if undefined {
            return Ok((snapshot, problems));
        }
    }
    let (read, unreadable) = read(location).await?;
    (snapshot.gateways, snapshot.endpoints) = (read.gateways, read.endpoints);
    problems.extend(unreadable);
    let records = Records::at(location, "culvert").await.map_err(told)?;
    let _watch = records.watch(&[Cluster::RESOURCE, RouteAgent::RESOURCE]);
    let clusters = records.list::<Cluster>().await.map_err(told)?;
    let route_agents = records.list::<RouteAgent>().await.map_err(told)?;
    problems.extend(clusters.problems.iter().chain(&route_agents.problems).map(ToString::to_string));
    (snapshot.clusters, snapshot.route_agents) = (clusters.records, route_agents.records);
    Ok((snapshot, problems))
}

/// Looks for brokers in a cluster.
pub(crate) async fn hosted(location: &Location) -> Result<Option<(String, Vec<HostedBroker>)>> {
    let Location::Server(place) = location else { return Ok(None) };
    let server = Server::of_kubeconfig(&access(&place.access)).await?;
    let brokers = server.hosted_brokers().await?;
    Ok(Some((server.url().to_owned(), brokers)))
}

fn access(access: &runtime::Access) -> Access {
    match access {
        // The second is how daemons reach a broker: no flag of a person leads there.
        runtime::Access::Pod | runtime::Access::Secret { .. } => Access::default(),
        runtime::Access::Kubeconfig { file, choice } => {
            let runtime::Choice { context, cluster, user } = choice.clone();
            Access { kubeconfig: file.clone(), context, cluster, user }
        }
    }
}

/// The text of a store's error holds its cause already.
fn told(error: StoreError) -> Error {
    Error::msg(error.to_string())
}
