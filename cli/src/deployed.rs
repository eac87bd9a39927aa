//! Decides what is shown of a cluster's networks, of the versions that run there, and of its broker.
//!
//! Columns of versions are subctl's; for networks and brokers it has none that fit: it shows what an operator was told.

use std::collections::BTreeSet;

use culvert_api::{Cluster, ClusterSpec, Record};
use culvert_setup::manifests::{GATEWAY, GLOBAL_CIDR, GLOBALNET, ROUTE_AGENT, image_of};
use culvert_setup::{BrokerSeen, BrokerState, Found, HostedBroker};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::snapshot::Snapshot;
use crate::table::{self, Cell};

/// A cluster's networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NetworksView {
    /// Empty if it is not known.
    cluster: String,
    /// By Submariner's name; empty if there is no API server to ask.
    network_plugin: String,
    networks: Vec<NetworkRow>,
    /// Whether other clusters reach this one by its global CIDRs alone.
    with_globalnet: bool,
}

/// What Globalnet means for a cluster's own CIDRs.
pub(crate) const WITH_GLOBALNET: &str =
    "other clusters reach this one by its global CIDRs alone, so its pods and services may have the CIDRs of theirs";

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkRow {
    network: &'static str,
    /// What the cluster itself says.
    discovered: Vec<String>,
    /// Whose word that is.
    said_by: String,
    /// What other clusters are told.
    announced: Vec<String>,
    /// What is wrong between the two; empty if nothing is.
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VersionRow {
    component: &'static str,
    repository: String,
    /// Tag or digest of the image.
    configured: String,
    /// What the processes themselves say, each version once; of Globalnet, which says nothing, its pods' images.
    running: Vec<String>,
    arch: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BrokerRow {
    url: String,
    namespace: String,
    components: Vec<String>,
    known_from: &'static str,
    /// `None` if it could not be seen from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    clusters: Option<usize>,
    /// The range of global CIDRs; empty without Globalnet, `None` if it could not be seen from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    globalnet: Option<String>,
    healthy: bool,
    health: String,
}

impl NetworksView {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let own = snapshot.clusters.iter().find(|cluster| snapshot.is_own(*cluster, &cluster.spec.cluster_id));
        let found = snapshot.survey.as_ref().map(|survey| survey.networks.clone()).unwrap_or_default();
        let announced = |of: fn(&ClusterSpec) -> &Vec<String>| own.map(|cluster| of(&cluster.spec).clone());
        let mut networks = vec![
            row("pods", "--clustercidr", found.pods, announced(|spec| &spec.cluster_cidr)),
            row("services", "--servicecidr", found.services, announced(|spec| &spec.service_cidr)),
        ];
        let settings = snapshot.survey.as_ref().map(|survey| &survey.settings);
        let global = settings.and_then(|settings| settings.get(GLOBAL_CIDR)).filter(|cidrs| !cidrs.is_empty());
        let global = global
            .map(|cidrs| Found { place: "ConfigMap culvert", cidrs: cidrs.split(',').map(str::to_owned).collect() });
        let announced = announced(|spec| &spec.global_cidr);
        let with_globalnet = announced.as_ref().is_some_and(|announced| !announced.is_empty());
        if global.is_some() || with_globalnet {
            networks.push(row("global", "--globalnet-cidr", global, announced));
        }
        let cluster = own.map(|cluster| cluster.name().to_owned());
        let cluster = cluster.or_else(|| snapshot.own_ids().first().map(|&id| id.to_owned())).unwrap_or_default();
        Self { cluster, network_plugin: found.plugin, networks, with_globalnet }
    }

    /// Tells whether other clusters reach this one by its global CIDRs alone.
    pub(crate) fn with_globalnet(&self) -> bool {
        self.with_globalnet
    }

    /// Returns what is wrong, a line for each network.
    pub(crate) fn problems(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.networks.iter().filter(|row| !row.problem.is_empty()).map(|row| (row.network, row.problem.as_str()))
    }

    pub(crate) fn table(&self) -> String {
        let unknown = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        let cells: Vec<[Cell; 4]> = self
            .networks
            .iter()
            .map(|row| {
                [
                    row.network.into(),
                    unknown(&row.discovered.join(", ")).as_str().into(),
                    row.said_by.as_str().into(),
                    unknown(&row.announced.join(", ")).as_str().into(),
                ]
            })
            .collect();
        let mut text =
            format!("Cluster: {}\nNetwork plugin: {}\n\n", unknown(&self.cluster), unknown(&self.network_plugin));
        text = table::lines(&text) + &table::render(["NETWORK", "DISCOVERED", "SAID BY", "ANNOUNCED"], &cells, false);
        let problems: String = self
            .problems()
            .map(|(network, problem)| table::printable(&format!("{network}: {problem}")) + "\n")
            .collect();
        if self.with_globalnet {
            text += &format!("\nGlobalnet: {WITH_GLOBALNET}\n");
        }
        if problems.is_empty() { text } else { text + "\n" + &problems }
    }
}

fn row(network: &'static str, flag: &str, found: Option<Found>, announced: Option<Vec<String>>) -> NetworkRow {
    let parsed = |texts: &[String]| -> BTreeSet<String> {
        let text = |text: &String| text.parse::<IpNet>().map_or_else(|_| text.clone(), |cidr| cidr.trunc().to_string());
        texts.iter().map(text).collect()
    };
    let problem = match (&found, &announced) {
        (Some(found), Some(announced)) if announced.is_empty() => {
            format!("not announced yet, though {} says {}: wait for the gateway", found.place, found.cidrs.join(", "))
        }
        (Some(found), Some(announced)) if parsed(&found.cidrs) != parsed(announced) => format!(
            "announced is {}, but {} says {}: unless that was meant, run `culvert join` again with the right {flag}",
            announced.join(", "),
            found.place,
            found.cidrs.join(", ")
        ),
        (Some(_), None) => "not announced yet, since this cluster has no Cluster record".to_owned(),
        _ => String::new(),
    };
    let (discovered, said_by) = found.map(|found| (found.cidrs, found.place.to_owned())).unwrap_or_default();
    NetworkRow { network, discovered, said_by, announced: announced.unwrap_or_default(), problem }
}

/// Returns the versions of the daemons.
pub(crate) fn versions(snapshot: &Snapshot, now: Timestamp) -> Vec<VersionRow> {
    let set = |set: BTreeSet<&str>| -> Vec<String> {
        set.into_iter().filter(|version| !version.is_empty()).map(str::to_owned).collect()
    };
    let gateways = snapshot.gateway_versions(now).collect();
    let agents = snapshot.present_agents().map(|one| one.status.version.as_str()).collect();
    let survey = snapshot.survey.as_ref();
    let globalnet_pods = survey.iter().flat_map(|survey| &survey.pods).filter(|pod| {
        let runs = pod["status"]["containerStatuses"][0]["state"]["running"].is_object();
        runs && pod["metadata"]["labels"]["app"] == GLOBALNET
    });
    let globalnet_images: Vec<String> = globalnet_pods
        .filter_map(|pod| pod["spec"]["containers"][0]["image"].as_str())
        .map(|image| split_image(image).1)
        .collect();
    let component = |component, daemon_set: Option<&Value>, running| {
        let (repository, configured) = daemon_set.and_then(image_of).map(split_image).unwrap_or_default();
        let pods = survey.iter().flat_map(|survey| &survey.pods);
        let nodes: BTreeSet<&str> = pods
            .filter(|pod| pod["metadata"]["labels"]["app"] == component)
            .filter_map(|pod| pod["spec"]["nodeName"].as_str())
            .collect();
        let all = survey.iter().flat_map(|survey| &survey.nodes);
        let arch = all
            .filter(|node| node["metadata"]["name"].as_str().is_some_and(|name| nodes.contains(name)))
            .filter_map(|node| node["status"]["nodeInfo"]["architecture"].as_str())
            .collect();
        VersionRow { component, repository, configured, running: set(running), arch: set(arch) }
    };
    let mut rows = vec![
        component(GATEWAY, survey.and_then(|survey| survey.gateway.as_ref()), gateways),
        component(ROUTE_AGENT, survey.and_then(|survey| survey.route_agent.as_ref()), agents),
    ];
    // A directory of records tells nothing of it.
    if let Some(survey) = survey {
        let running = globalnet_images.iter().map(String::as_str).collect();
        rows.push(component(GLOBALNET, survey.globalnet.as_ref(), running));
    }
    rows
}

/// Splits an image's name into repository and tag or digest.
fn split_image(image: &str) -> (String, String) {
    if let Some((repository, digest)) = image.split_once('@') {
        return (repository.to_owned(), digest.to_owned());
    }
    match image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
        Some((repository, tag)) => (repository.to_owned(), tag.to_owned()),
        None => (image.to_owned(), "latest".to_owned()),
    }
}

pub(crate) fn versions_table(rows: &[VersionRow]) -> String {
    let cells: Vec<[Cell; 5]> = rows
        .iter()
        .map(|row| {
            let running = if row.running.is_empty() { "not known".to_owned() } else { row.running.join(", ") };
            let configured = if row.configured.is_empty() { "not known" } else { &row.configured };
            [
                row.component.into(),
                row.repository.as_str().into(),
                configured.into(),
                running.as_str().into(),
                row.arch.join(", ").as_str().into(),
            ]
        })
        .collect();
    table::render(["COMPONENT", "REPOSITORY", "CONFIGURED", "RUNNING", "ARCH"], &cells, false)
}

/// Returns the broker of this cluster's clusterset, if settings name one, and those that this cluster has beside that.
pub(crate) fn brokers(snapshot: &Snapshot) -> Vec<BrokerRow> {
    let (url, hosted) = snapshot.hosted.as_ref().map(|(url, all)| (url.as_str(), all.as_slice())).unwrap_or_default();
    let joined = |seen: &BrokerSeen| {
        let (clusters, healthy, health) = match &seen.state {
            BrokerState::Seen { clusters, .. } => (Some(clusters.len()), true, "answers".to_owned()),
            BrokerState::Refused(reason) => (None, false, format!("refuses this cluster: {reason}")),
            BrokerState::Unreachable(reason) => (None, false, format!("not seen from here: {reason}")),
            BrokerState::NoCredentials => {
                (None, false, "this cluster has no token for it: run `culvert join` again".to_owned())
            }
        };
        BrokerRow {
            url: seen.url.clone(),
            namespace: seen.namespace.clone(),
            components: vec!["connectivity".to_owned()],
            known_from: "this cluster's ConfigMap culvert",
            clusters,
            // Only an administrator reads that.
            globalnet: hosted.iter().find(|broker| is_same(broker, seen)).and_then(range),
            healthy,
            health,
        }
    };
    let others = hosted.iter().filter(|broker| !snapshot.broker.as_ref().is_some_and(|seen| is_same(broker, seen)));
    let here = |broker: &HostedBroker| BrokerRow {
        url: url.to_owned(),
        namespace: broker.namespace.clone(),
        components: match broker.components.is_empty() {
            true => vec!["connectivity".to_owned()],
            false => broker.components.clone(),
        },
        known_from: "it is in this cluster",
        clusters: Some(broker.clusters.len()),
        globalnet: range(broker),
        healthy: true,
        health: "answers".to_owned(),
    };
    snapshot.broker.iter().map(joined).chain(others.map(here)).collect()
}

/// Returns the range of a broker's global CIDRs; empty without Globalnet.
fn range(broker: &HostedBroker) -> Option<String> {
    let globalnet = broker.globalnet.as_ref()?;
    let range = globalnet.range.filter(|_| globalnet.is_enabled);
    Some(range.map(|range| range.to_string()).unwrap_or_default())
}

/// Tells whether a broker in this cluster is the one that this cluster has joined: by whatever address, it has the same
/// records.
fn is_same(hosted: &HostedBroker, joined: &BrokerSeen) -> bool {
    let BrokerState::Seen { clusters, .. } = &joined.state else { return false };
    let uids = |clusters: &[Cluster]| -> BTreeSet<String> {
        clusters.iter().filter_map(|cluster| cluster.metadata.uid.clone()).collect()
    };
    hosted.namespace == joined.namespace && uids(&hosted.clusters) == uids(clusters)
}

pub(crate) fn brokers_table(rows: &[BrokerRow]) -> String {
    if rows.is_empty() {
        return "There is no broker: no settings of this cluster name one\n".to_owned();
    }
    let cells: Vec<[Cell; 7]> = rows
        .iter()
        .map(|row| {
            let clusters = row.clusters.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
            let globalnet = match row.globalnet.as_deref() {
                None => "unknown",
                Some("") => "no",
                Some(range) => range,
            };
            [
                row.url.as_str().into(),
                row.namespace.as_str().into(),
                row.components.join(", ").as_str().into(),
                clusters.as_str().into(),
                globalnet.into(),
                row.known_from.into(),
                row.health.as_str().into(),
            ]
        })
        .collect();
    table::render(["BROKER", "NAMESPACE", "COMPONENTS", "CLUSTERS", "GLOBALNET", "KNOWN FROM", "HEALTH"], &cells, false)
}

#[cfg(test)]
mod tests;
