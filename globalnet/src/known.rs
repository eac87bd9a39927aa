//! What is read for a pass: this cluster's objects, and which gateway is active.

use std::collections::{BTreeMap, BTreeSet};

use culvert_api::{
    ClusterGlobalEgressIP, Endpoint, EndpointSlice, Gateway, GlobalEgressIP, GlobalIngressIP, Pod, Record, Resource,
    Service, ServiceExport,
};
use culvert_globalnet_core::ObjectKey;
use culvert_runtime::{Objects, Records, StoreError};
use ipnet::IpNet;

use crate::config::Config;
use crate::snapshot::{Snapshot, key};

/// What is read of this cluster's own records.
pub(crate) const RECORDS: &[Resource] = &[Endpoint::RESOURCE, Gateway::RESOURCE];
/// What is read in all namespaces without Globalnet.
pub(crate) const SERVICES: &[Resource] = &[Service::RESOURCE, EndpointSlice::RESOURCE];
/// What is read in all namespaces with it.
pub(crate) const OBJECTS: &[Resource] = &[
    Service::RESOURCE,
    EndpointSlice::RESOURCE,
    Pod::RESOURCE,
    ServiceExport::RESOURCE,
    GlobalIngressIP::RESOURCE,
    GlobalEgressIP::RESOURCE,
    ClusterGlobalEgressIP::RESOURCE,
];

/// All that a pass goes by.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) snapshot: Snapshot,
    /// Whether the gateway on this node is the active one.
    pub(crate) is_active: bool,
    /// Subnets of other clusters.
    pub(crate) remote: BTreeSet<IpNet>,
    pub(crate) ingress: BTreeMap<ObjectKey, GlobalIngressIP>,
    pub(crate) egress: BTreeMap<ObjectKey, GlobalEgressIP>,
    pub(crate) cluster_egress: BTreeMap<String, ClusterGlobalEgressIP>,
}

impl Known {
    /// Reads everything.
    pub(crate) async fn read(config: &Config, records: &Records, objects: &Objects) -> Result<Self, StoreError> {
        let mut known = Self { snapshot: Snapshot::new(config.global.clone()), ..Self::default() };
        let endpoints = records.list::<Endpoint>().await?.records;
        known.is_active = is_active(config, &endpoints);
        let others = endpoints.iter().filter(|endpoint| endpoint.spec.cluster_id != config.cluster.as_str());
        let subnets = others.flat_map(|endpoint| &endpoint.spec.subnets);
        known.remote = subnets.filter_map(|subnet| subnet.parse::<IpNet>().ok()).map(|subnet| subnet.trunc()).collect();
        let snapshot = &mut known.snapshot;
        read_kind(objects, snapshot, Snapshot::add_service).await?;
        read_kind(objects, snapshot, Snapshot::add_slice).await?;
        if config.global.is_empty() {
            return Ok(known);
        }
        read_kind(objects, snapshot, Snapshot::add_pod).await?;
        read_kind(objects, snapshot, Snapshot::add_export).await?;
        let gateways = records.list::<Gateway>().await?;
        gateways.records.iter().for_each(|gateway| snapshot.add_gateway(gateway));
        let ingress = read_kind(objects, snapshot, Snapshot::add_ingress).await?;
        let egress = read_kind(objects, snapshot, Snapshot::add_egress).await?;
        let cluster_egress = read_kind(objects, snapshot, Snapshot::add_cluster_egress).await?;
        known.ingress = ingress.into_iter().map(|object| (key(&object.metadata), object)).collect();
        known.egress = egress.into_iter().map(|object| (key(&object.metadata), object)).collect();
        known.cluster_egress = cluster_egress.into_iter().map(|object| (object.name().to_owned(), object)).collect();
        Ok(known)
    }
}

async fn read_kind<R: Record>(
    objects: &Objects,
    snapshot: &mut Snapshot,
    add: impl Fn(&mut Snapshot, &R),
) -> Result<Vec<R>, StoreError> {
    let listing = objects.list::<R>().await?;
    for problem in &listing.problems {
        let name = problem.name().unwrap_or_default().to_owned();
        let namespace = problem.namespace().unwrap_or_default().to_owned();
        snapshot.add_unclear(R::KIND, ObjectKey { namespace, name }, problem.to_string());
    }
    listing.records.iter().for_each(|record| add(snapshot, record));
    Ok(listing.records)
}

/// Tells whether the newest Endpoint of this cluster is that of the gateway on this node.
fn is_active(config: &Config, endpoints: &[Endpoint]) -> bool {
    let own = endpoints.iter().filter(|endpoint| endpoint.spec.cluster_id == config.cluster.as_str());
    let newest =
        own.max_by_key(|endpoint| (endpoint.metadata.creation_timestamp.as_ref().map(|time| time.0), endpoint.name()));
    newest.is_some_and(|endpoint| endpoint.spec.hostname == config.node)
}

#[cfg(test)]
mod tests {
    use culvert_api::EndpointSpec;
    use culvert_runtime::Location;

    use super::*;

    fn endpoint(cluster: &str, hostname: &str, created: &str) -> Endpoint {
        let spec =
            EndpointSpec { cluster_id: cluster.to_owned(), hostname: hostname.to_owned(), ..EndpointSpec::default() };
        let mut endpoint = Endpoint::new(&format!("{cluster}-{hostname}"), spec);
        endpoint.metadata.creation_timestamp = serde_json::from_value(serde_json::json!(created)).unwrap();
        endpoint
    }

    #[test]
    fn the_newest_endpoint_of_the_cluster_is_the_active_gateways() {
        let config = |node: &str| Config {
            cluster: "east".parse().unwrap(),
            global: Vec::new(),
            records: Location::from("/r"),
            node: node.to_owned(),
        };
        let endpoints = [
            endpoint("east", "gw1", "2026-01-02T00:00:00Z"),
            endpoint("east", "gw2", "2026-01-03T00:00:00Z"),
            endpoint("west", "gw1", "2026-01-04T00:00:00Z"),
        ];
        assert!(is_active(&config("gw2"), &endpoints));
        assert!(!is_active(&config("gw1"), &endpoints));
        assert!(!is_active(&config("gw1"), &[]));
    }
}
