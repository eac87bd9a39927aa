//! Clusters that exist at the broker only: their records are whole and distinct, and their gateways answer nobody.
//!
//! Each is written as its own gateway would write it, the Cluster and then the Endpoint, many clusters at once. Public
//! addresses are of 198.18.0.0/15 (RFC 2544), to which the lab has no route.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_api::{Cluster, ClusterSpec, Endpoint, Record, endpoint_record, labels, ports};
use culvert_model::{Backend, CableKind, ClusterId, PublicKey, cable_name};
use culvert_netns_tests::kubernetes::BROKER_NAMESPACE;
use culvert_runtime::{Access, Choice, Location, Records, Server, StoreError};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;
use tokio::runtime::Runtime;

/// Clusters that are written at the same time.
const WRITERS: usize = 16;
/// Where NAT discovery is answered.
const NAT_DISCOVERY: u16 = 4490;

const PODS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 0);
const SERVICES: Ipv4Addr = Ipv4Addr::new(172, 24, 0, 0);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

/// The subnets that each cluster announces.
pub(crate) const SUBNETS: usize = 2;

/// One cluster of the crowd.
#[derive(Clone, Debug)]
struct Member {
    cluster: Cluster,
    endpoint: Endpoint,
}

/// Some clusters, and the broker that they are members of.
pub(crate) struct Crowd {
    runtime: Runtime,
    broker: Records,
    members: Vec<Member>,
}

/// When writing began and ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

/// Seconds from the first and from the last write at the broker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Lag {
    pub(crate) from_first_write: f64,
    pub(crate) from_last_write: f64,
}

impl Written {
    /// Returns how long writing took.
    pub(crate) fn duration(self) -> Duration {
        self.ended.duration_since(self.began)
    }

    /// Returns how long after the writes something was seen; it may have been seen before the last.
    pub(crate) fn lag(self, seen: Instant) -> Lag {
        Lag {
            from_first_write: seen.saturating_duration_since(self.began).as_secs_f64(),
            from_last_write: seen.saturating_duration_since(self.ended).as_secs_f64(),
        }
    }
}

impl Crowd {
    /// Thinks of `size` clusters, of which the first has the number `first`; no two numbers share anything.
    ///
    /// # Errors
    ///
    /// The administrator's kubeconfig of the broker's cluster cannot be used.
    pub(crate) fn new(kubeconfig: &Path, first: u32, size: u32) -> Result<Self> {
        let runtime = Runtime::new().context("no runtime for the broker's records")?;
        let access = Access::Kubeconfig { file: Some(kubeconfig.to_owned()), choice: Choice::default() };
        let location = Location::Server(Server { access, namespace: Some(BROKER_NAMESPACE.to_owned()) });
        let broker = runtime.block_on(Records::at(&location, "culvert-bench")).context("the broker")?;
        Ok(Self { runtime, broker, members: (first..first + size).map(member).collect() })
    }

    /// Writes all records.
    pub(crate) fn join(&self) -> Result<Written> {
        self.for_each(async |member| {
            self.broker.create(&member.cluster).await?;
            self.broker.create(&member.endpoint).await?;
            Ok(())
        })
        .context("the records of the remote clusters cannot be written at the broker")
    }

    /// Deletes all records.
    pub(crate) fn leave(&self) -> Result<Written> {
        self.for_each(async |member| {
            self.broker.delete::<Endpoint>(member.endpoint.name()).await?;
            self.broker.delete::<Cluster>(member.cluster.name()).await?;
            Ok(())
        })
        .context("the records of the remote clusters cannot be deleted at the broker")
    }

    fn for_each(&self, work: impl AsyncFn(&Member) -> Result<(), StoreError>) -> Result<Written> {
        let began = Instant::now();
        let work = &work;
        let all =
            stream::iter(&self.members).map(Ok).try_for_each_concurrent(WRITERS, async |member| work(member).await);
        self.runtime.block_on(all)?;
        Ok(Written { began, ended: Instant::now() })
    }
}

fn member(number: u32) -> Member {
    let id: ClusterId = format!("remote{number}").parse().expect("letters and digits are an id");
    let subnet = |base| Ipv4Net::new(nth(base, number << 8), 24).expect("24 is a prefix length");
    let (pods, services) = (subnet(PODS), subnet(SERVICES));
    let private = nth(PRIVATE, number);
    let mut key = [0x5a; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    let mut cluster = Cluster::new(
        id.as_str(),
        ClusterSpec {
            cluster_id: id.to_string(),
            color_codes: vec!["blue".to_owned()],
            service_cidr: vec![services.to_string()],
            cluster_cidr: vec![pods.to_string()],
            global_cidr: Vec::new(),
        },
    );
    let mut endpoint = endpoint_record(&culvert_model::Endpoint {
        cable_name: cable_name(&id, private.into()),
        hostname: format!("{id}-gateway"),
        subnets: vec![IpNet::V4(services), IpNet::V4(pods)],
        private: std::net::IpAddr::V4(private).into(),
        public: std::net::IpAddr::V4(nth(PUBLIC, number)).into(),
        health_check: std::net::IpAddr::V4(nth(pods.network(), 1)).into(),
        nat_enabled: true,
        using_load_balancer: false,
        backend: Backend::Cable(CableKind::WireGuard),
        udp_port: ports::CABLE,
        nat_discovery_port: Some(NAT_DISCOVERY),
        public_key: Some(PublicKey(key)),
        culvert: false,
        created: 0,
        cluster: id.clone(),
    });
    for metadata in [cluster.metadata_mut(), endpoint.metadata_mut()] {
        metadata.labels = Some([(labels::CLUSTER_ID.to_owned(), id.to_string())].into());
    }
    Member { cluster, endpoint }
}

fn nth(base: Ipv4Addr, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits() + offset)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_clusters_share_a_name_an_address_a_subnet_or_a_key() {
        let members: Vec<Member> = (0..1500).map(member).collect();
        let distinct = |field: &dyn Fn(&Member) -> String| {
            let values: BTreeSet<String> = members.iter().map(field).collect();
            assert_eq!(values.len(), members.len(), "{:?}", values.first());
        };
        distinct(&|member| member.cluster.name().to_owned());
        distinct(&|member| member.endpoint.name().to_owned());
        distinct(&|member| member.endpoint.spec.private_ip.clone());
        distinct(&|member| member.endpoint.spec.public_ip.clone());
        distinct(&|member| member.endpoint.spec.subnets[0].clone());
        distinct(&|member| member.endpoint.spec.subnets[1].clone());
        distinct(&|member| member.endpoint.spec.backend_config["publicKey"].clone());
    }

    #[test]
    fn a_member_would_be_taken() {
        let member = member(1499);
        let endpoint = culvert_model::Endpoint::try_from(&member.endpoint).unwrap();
        endpoint.check_size().unwrap();
        assert_eq!(endpoint.subnets.len(), SUBNETS);
        assert!(endpoint.subnets.iter().any(|subnet| subnet.contains(&endpoint.health_check.iter().next().unwrap())));
        assert_eq!(member.cluster.metadata.labels.unwrap()[labels::CLUSTER_ID], "remote1499");
        let foreign = culvert_model::ForeignSubnets::default();
        assert!(endpoint.subnets.iter().all(|subnet| foreign.check(*subnet).is_ok()));
    }
}
