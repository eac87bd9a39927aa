//! What the gateway reads from and writes to its cluster's record store.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use culvert_api::gateway_record::STALE;
use culvert_api::{
    Cluster, ClusterSpec, Connection, ConnectionStatus, Endpoint, Gateway, GatewayStatus, Lease, Record,
    backend_config, endpoint_record, labels, object_name,
};
use culvert_gateway_core::nat_discovery::{NatChoice, NatSource};
use culvert_model::{Addresses, CableName};
use culvert_runtime::{Location, Records, StoreError};
use jiff::Timestamp;

use crate::config::Config;
use crate::publish::gateway_record;

/// What the store holds about the clusters of the set.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Known {
    pub(crate) endpoints: Vec<culvert_model::Endpoint>,
    /// Records that cannot be used, in words.
    pub(crate) complaints: Vec<String>,
}

/// Reads all Endpoints; one that cannot be used is complained about and passed over.
pub(crate) async fn known(records: &Records) -> Result<Known, StoreError> {
    let listing = records.list::<Endpoint>().await?;
    let mut known =
        Known { complaints: listing.problems.iter().map(ToString::to_string).collect(), ..Known::default() };
    for record in &listing.records {
        match culvert_model::Endpoint::try_from(record) {
            Ok(endpoint) => match endpoint.check_size() {
                Ok(()) => known.endpoints.push(endpoint),
                Err(error) => known.complaints.push(error.to_string()),
            },
            Err(error) => known.complaints.push(error.to_string()),
        }
    }
    Ok(known)
}

/// Publishes this cluster's Cluster and this gateway's Endpoint, and takes back those of its predecessors.
///
/// The new one is written before the old ones go: the cluster is never without. Only this gateway itself with other subnets
/// goes first: Submariner's gateways take the two for one, by their key, and would cut the new cable with the old record.
pub(crate) async fn publish_own(
    config: &Config,
    records: &Records,
    own: &culvert_model::Endpoint,
) -> Result<(), StoreError> {
    let texts = |subnets: &[ipnet::IpNet]| subnets.iter().map(ToString::to_string).collect();
    let spec = ClusterSpec {
        cluster_id: config.cluster.to_string(),
        color_codes: vec!["blue".to_owned()],
        service_cidr: texts(&config.services),
        cluster_cidr: texts(&config.pods),
        global_cidr: texts(&config.global),
    };
    records.apply(&Cluster::new(config.cluster.as_str(), spec)).await?;
    let endpoint = endpoint_record(own);
    let mut others = records.list::<Endpoint>().await?.records;
    others.retain(|other| other.spec.cluster_id == config.cluster.as_str() && other.name() != endpoint.name());
    let (earlier, former): (Vec<_>, Vec<_>) = others.into_iter().partition(|other| {
        other.spec.hostname == endpoint.spec.hostname && other.spec.subnets != endpoint.spec.subnets
    });
    for other in earlier {
        records.delete::<Endpoint>(other.name()).await?;
        tracing::info!(endpoint = other.name(), "Removed this gateway's Endpoint with other subnets");
    }
    records.apply(&endpoint).await?;
    for other in former {
        records.delete::<Endpoint>(other.name()).await?;
        tracing::info!(endpoint = other.name(), "Removed the Endpoint of a former gateway");
    }
    Ok(())
}

/// Writes this node's Gateway record. What others have noted there stays.
pub(crate) async fn publish_gateway(
    config: &Config,
    records: &Records,
    status: GatewayStatus,
) -> Result<(), StoreError> {
    let mut record = gateway_record(&config.node, status);
    match &config.records {
        // A file is replaced as a whole.
        Location::Directory(_) if !config.global.is_empty() => {
            let found = records.find::<Gateway>(record.name()).await?;
            let noted = found.and_then(|found| found.metadata.annotations?.remove(labels::GLOBAL_IP));
            let annotations = record.metadata.annotations.get_or_insert_default();
            annotations.extend(noted.map(|address| (labels::GLOBAL_IP.to_owned(), address)));
        }
        Location::Directory(_) | Location::Server(_) => {}
    }
    records.apply(&record).await.map(|_| ())
}

/// Returns this gateway's addresses among the global ones, which Globalnet notes in its Gateway record.
pub(crate) async fn global_addresses(config: &Config, records: &Records) -> Result<Addresses, StoreError> {
    if config.global.is_empty() {
        return Ok(Addresses::default());
    }
    let name = object_name(&config.node);
    let gateways = records.list::<Gateway>().await?.records;
    let own = gateways.into_iter().find(|gateway| gateway.name() == name);
    let noted = own.and_then(|own| own.metadata.annotations?.remove(labels::GLOBAL_IP)).unwrap_or_default();
    Ok(noted.split(',').filter_map(|text| text.trim().parse::<IpAddr>().ok()).collect())
}

/// Tells whether another gateway of this cluster has published its Endpoint.
pub(crate) async fn has_successor(config: &Config, records: &Records) -> bool {
    let Ok(listing) = records.list::<Endpoint>().await else { return false };
    let of_cluster = listing.records.iter().filter(|record| record.spec.cluster_id == config.cluster.as_str());
    let mut hostnames = of_cluster.map(|record| record.spec.hostname.as_str());
    hostnames.any(|hostname| hostname != config.node)
}

/// Tells whether another gateway of this cluster reports, and so may take over.
pub(crate) async fn has_standby(config: &Config, records: &Records) -> bool {
    let Ok(listing) = records.list::<Gateway>().await else { return false };
    let own = object_name(&config.node);
    let now = Timestamp::now().as_second();
    listing.records.iter().any(|gateway| gateway.name() != own && !is_stale(gateway, now))
}

/// Deletes the Gateway records of processes that no longer report.
pub(crate) async fn remove_stale_gateways(config: &Config, records: &Records) -> Result<(), StoreError> {
    let own = object_name(&config.node);
    let now = Timestamp::now().as_second();
    for gateway in records.list::<Gateway>().await?.records {
        if gateway.name() != own && is_stale(&gateway, now) {
            records.delete::<Gateway>(gateway.name()).await?;
            tracing::info!(gateway = gateway.name(), "Removed the record of a gateway that no longer reports");
        }
    }
    Ok(())
}

fn is_stale(gateway: &Gateway, now: i64) -> bool {
    let annotations = gateway.metadata.annotations.as_ref();
    let stamp = annotations.and_then(|all| all.get(labels::UPDATE_TIMESTAMP)).and_then(|text| text.parse::<i64>().ok());
    stamp.is_none_or(|stamp| now - stamp > STALE.as_secs().cast_signed())
}

/// Returns under which addresses the previous run of this gateway reached its peers: a gateway that is started again
/// need not find out anew.
pub(crate) async fn previous_choices(config: &Config, records: &Records) -> Vec<(CableName, NatChoice)> {
    let Ok(Some(gateway)) = records.find::<Gateway>(&object_name(&config.node)).await else { return Vec::new() };
    let connections = gateway.status.connections.iter();
    connections
        .filter(|connection| connection.status == ConnectionStatus::Connected)
        .filter_map(|connection| {
            let address: IpAddr = connection.using_ip.parse().ok()?;
            let source = if connection.using_nat { NatSource::Public } else { NatSource::Private };
            Some((connection.endpoint.cable_name.clone(), NatChoice { address, nat: connection.using_nat, source }))
        })
        .collect()
}

/// Returns where the previous run of this gateway heard its peers.
pub(crate) async fn previous_remotes(config: &Config, records: &Records) -> BTreeMap<CableName, SocketAddr> {
    let Ok(Some(gateway)) = records.find::<Gateway>(&object_name(&config.node)).await else { return BTreeMap::new() };
    let remote = |connection: &Connection| {
        let address: IpAddr = connection.using_ip.parse().ok()?;
        let port = connection.endpoint.backend_config.get(backend_config::USING_PORT)?.parse().ok()?;
        Some((connection.endpoint.cable_name.clone(), SocketAddr::new(address, port)))
    };
    gateway.status.connections.iter().filter_map(remote).collect()
}

/// What an uninstall leaves of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Another gateway reports: the cluster stays in the set.
    OtherGateways,
    Nothing,
}

/// Deletes this node's Gateway and Endpoint, the lease if it is this node's, and, with the last gateway, all Endpoints
/// and the Cluster.
pub(crate) async fn remove_own(config: &Config, records: &Records) -> anyhow::Result<Left> {
    let own = config.cluster.as_str();
    let endpoints = records.list::<Endpoint>().await.context("this cluster's records cannot be read")?.records;
    // Ours first: of two gateways that are uninstalled at once, one at least finds the other gone.
    records.delete::<Gateway>(&object_name(&config.node)).await?;
    let left = if has_standby(config, records).await { Left::OtherGateways } else { Left::Nothing };
    for endpoint in endpoints.iter().filter(|record| record.spec.cluster_id == own) {
        if left == Left::Nothing || endpoint.spec.hostname == config.node {
            records.delete::<Endpoint>(endpoint.name()).await?;
        }
    }
    if left == Left::Nothing {
        records.delete::<Cluster>(own).await?;
    }
    if let Some(lease) = records.find::<Lease>(crate::leadership::LEASE).await? {
        let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        if holder.is_empty() || holder == crate::leadership::identity(&config.node) {
            records.delete::<Lease>(crate::leadership::LEASE).await?;
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use culvert_api::EndpointSpec;

    use super::*;

    fn endpoint(cluster: &str, subnets: usize) -> Endpoint {
        let spec = EndpointSpec {
            cluster_id: cluster.to_owned(),
            cable_name: format!("cable-{cluster}"),
            subnets: (0..subnets).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect(),
            private_ip: "192.168.2.10".to_owned(),
            backend: "wireguard".to_owned(),
            ..EndpointSpec::default()
        };
        Endpoint::new(&format!("{cluster}-endpoint"), spec)
    }

    fn config() -> Config {
        config_with(&[])
    }

    fn config_with(more: &[&str]) -> Config {
        use clap::Parser;
        let flags =
            ["culvert-gateway", "--cluster-id=east", "--records=/r", "--cluster-cidr=10.1.0.0/16", "--node-name=gw1"];
        Config::try_from(crate::config::Args::parse_from(flags.iter().chain(more))).unwrap()
    }

    fn gateway(name: &str) -> Gateway {
        crate::publish::gateway_record(name, culvert_api::GatewayStatus::default())
    }

    #[tokio::test]
    async fn the_last_gateway_takes_the_cluster_along_and_others_only_themselves() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path());
        let mut own = endpoint("east", 1);
        own.spec.hostname = "gw2".to_owned();
        records.create(&own).await.unwrap();
        for name in ["gw1", "gw2"] {
            records.create(&gateway(name)).await.unwrap();
        }

        assert_eq!(remove_own(&config(), &records).await.unwrap(), Left::OtherGateways);
        assert_eq!(records.list::<Endpoint>().await.unwrap().records.len(), 1);

        records.delete::<Gateway>("gw2").await.unwrap();
        assert_eq!(remove_own(&config(), &records).await.unwrap(), Left::Nothing);
        assert_eq!(records.list::<Endpoint>().await.unwrap().records.len(), 0);
    }

    #[tokio::test]
    async fn a_cluster_that_changes_to_globalnet_has_a_new_endpoint_and_no_old_one() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path());
        for (name, hostname) in [("east-submariner-cable-east-192-168-2-10", "gw1"), ("east-other", "gw2")] {
            let mut old = Endpoint::new(name, endpoint("east", 1).spec);
            old.spec.hostname = hostname.to_owned();
            records.create(&old).await.unwrap();
        }
        let config = config_with(&["--global-cidr=242.1.0.0/16"]);
        let global = "242.1.0.0/16".parse().unwrap();
        let mut own = culvert_model::Endpoint::try_from(&endpoint("east", 1)).unwrap();
        own.cable_name = culvert_model::global_cable_name(&own.cluster, "192.168.2.10".parse().unwrap(), &[global]);
        own.hostname = "gw1".to_owned();
        own.subnets = vec![global];

        publish_own(&config, &records, &own).await.unwrap();

        let left = records.list::<Endpoint>().await.unwrap().records;
        assert_eq!((left.len(), &left[0].spec.cable_name), (1, &own.cable_name));
        assert!(left[0].name().starts_with("east-submariner-cable-east-192-168-2-10g"), "{}", left[0].name());
        let cluster = records.find::<Cluster>("east").await.unwrap().unwrap();
        assert_eq!((cluster.spec.global_cidr, cluster.spec.cluster_cidr.len()), (vec!["242.1.0.0/16".to_owned()], 1));
    }

    #[tokio::test]
    async fn a_global_address_is_found_in_the_gateways_record_and_stays_there() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path());
        let with_globalnet = config_with(&["--global-cidr=242.1.0.0/16"]);
        publish_gateway(&with_globalnet, &records, GatewayStatus::default()).await.unwrap();
        assert_eq!(global_addresses(&with_globalnet, &records).await.unwrap(), Addresses::default());

        let mut noted = records.find::<Gateway>("gw1").await.unwrap().unwrap();
        let annotations = noted.metadata.annotations.get_or_insert_default();
        annotations.insert(labels::GLOBAL_IP.to_owned(), "242.1.255.254".to_owned());
        records.update(&noted).await.unwrap();
        let status = GatewayStatus { version: "2".to_owned(), ..GatewayStatus::default() };
        publish_gateway(&with_globalnet, &records, status).await.unwrap();

        let address: IpAddr = "242.1.255.254".parse().unwrap();
        assert_eq!(global_addresses(&with_globalnet, &records).await.unwrap(), address.into());
        assert_eq!(global_addresses(&config(), &records).await.unwrap(), Addresses::default());
    }

    #[tokio::test]
    async fn an_endpoint_of_an_absurd_size_is_complained_about_and_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path());
        records.create(&endpoint("west", 2)).await.unwrap();
        records.create(&endpoint("north", 10_000)).await.unwrap();
        let mut named = endpoint("south", 1);
        named.spec.backend = "x".repeat(100_000);
        records.create(&named).await.unwrap();

        let known = known(&records).await.unwrap();

        let clusters: Vec<&str> = known.endpoints.iter().map(|endpoint| endpoint.cluster.as_str()).collect();
        assert_eq!(clusters, ["west"]);
        assert_eq!(known.complaints.len(), 2);
        assert!(known.complaints.iter().all(|complaint| complaint.len() < 200), "{:?}", known.complaints);
    }
}
