//! Reads and changes what a broker has noted of Globalnet, with the rights of its administrator.
//!
//! Several may change it at once, Submariner's tools among them: whoever finds that it has changed meanwhile decides anew.

use std::time::Duration;

use culvert_api::Cluster;
use culvert_model::ClusterId;
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::Value;

use crate::error::ServerError;
use crate::globalnet::{Decision, Globalnet, GlobalnetError, GlobalnetWish, NAME, Situation, Wish};
use crate::object::{Kind, ObjectRef};
use crate::server::Server;

/// How long others may be faster.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// Why a broker's notes of Globalnet are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Globalnet(#[from] GlobalnetError),
}

/// Whose global CIDRs are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub cluster: &'a ClusterId,
    pub wish: &'a Wish,
    /// Pods, services and node addresses of the cluster itself.
    pub local: &'a [IpNet],
}

impl Server {
    /// Reads what a broker has noted.
    ///
    /// # Errors
    ///
    /// [`AllocationError`]; that nothing is noted is no error.
    pub async fn globalnet(&self, broker_namespace: &str) -> Result<Globalnet, AllocationError> {
        Ok(self.noted(broker_namespace).await?.0)
    }

    /// Returns the global CIDRs that a cluster would get now, and why they are not those that were wished for. Changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`AllocationError`].
    pub async fn would_allocate(
        &self,
        broker_namespace: &str,
        asked: &Asked<'_>,
    ) -> Result<(Vec<IpNet>, Option<String>), AllocationError> {
        let (globalnet, _) = self.noted(broker_namespace).await?;
        let Decision { cidrs, warning, .. } = self.decide(broker_namespace, &globalnet, asked).await?;
        Ok((cidrs, warning))
    }

    /// Gives a cluster its global CIDRs, or those that it has already.
    ///
    /// # Errors
    ///
    /// [`AllocationError`]; nothing was changed then.
    pub async fn allocate(&self, broker_namespace: &str, asked: &Asked<'_>) -> Result<Vec<IpNet>, AllocationError> {
        let decide = async |globalnet: &Globalnet| {
            let Decision { cidrs, change, .. } = self.decide(broker_namespace, globalnet, asked).await?;
            Ok((cidrs, change))
        };
        self.change(broker_namespace, decide).await
    }

    /// Gives a cluster's global CIDRs back; returns them, none if it had none.
    ///
    /// # Errors
    ///
    /// [`AllocationError`].
    pub async fn give_back(&self, broker_namespace: &str, cluster: &str) -> Result<Vec<IpNet>, AllocationError> {
        let give_back = async |globalnet: &Globalnet| {
            Ok((globalnet.cidrs_of(cluster).to_vec(), globalnet.give_back(cluster, now())))
        };
        self.change(broker_namespace, give_back).await
    }

    /// Brings what a broker has noted to what `deploy-broker` was told; allocations stay. Returns what it is then.
    ///
    /// # Errors
    ///
    /// [`AllocationError`]; nothing was changed then.
    pub async fn configure_globalnet(
        &self,
        broker_namespace: &str,
        wish: &GlobalnetWish,
    ) -> Result<Globalnet, AllocationError> {
        let configure = async |globalnet: &Globalnet| {
            let change = globalnet.configured(wish)?;
            Ok((change.clone().unwrap_or_else(|| globalnet.clone()), change))
        };
        self.change(broker_namespace, configure).await
    }

    /// Decides on what is noted and writes the change, anew as often as somebody else was faster.
    async fn change<T>(
        &self,
        broker_namespace: &str,
        decide: impl AsyncFn(&Globalnet) -> Result<(T, Option<Globalnet>), AllocationError>,
    ) -> Result<T, AllocationError> {
        let work = async {
            loop {
                let (globalnet, found) = self.noted(broker_namespace).await?;
                let (result, change) = decide(&globalnet).await?;
                if self.note(broker_namespace, change, found.as_ref()).await? {
                    return Ok(result);
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let what = || ObjectRef::new(Kind::CONFIG_MAP, broker_namespace, NAME).to_string();
        let timed_out = |_| AllocationError::Server(self.too_long(what(), PATIENCE.as_secs()));
        tokio::time::timeout(PATIENCE, work).await.map_err(timed_out)?
    }

    async fn decide(
        &self,
        broker_namespace: &str,
        globalnet: &Globalnet,
        asked: &Asked<'_>,
    ) -> Result<Decision, AllocationError> {
        let clusters = self.list(Kind::CLUSTER, broker_namespace).await?;
        let clusters: Vec<Cluster> = clusters.into_iter().filter_map(|one| serde_json::from_value(one).ok()).collect();
        let Asked { cluster, wish, local } = *asked;
        Ok(globalnet.allocate(&Situation { cluster, wish, local, clusters: &clusters, now: now() })?)
    }

    async fn noted(&self, broker_namespace: &str) -> Result<(Globalnet, Option<Value>), AllocationError> {
        let found = self.find(&ObjectRef::new(Kind::CONFIG_MAP, broker_namespace, NAME)).await?;
        Ok((Globalnet::of(found.as_ref())?, found))
    }

    /// Writes a change over what was found; `false` if somebody was faster.
    async fn note(
        &self,
        broker_namespace: &str,
        change: Option<Globalnet>,
        found: Option<&Value>,
    ) -> Result<bool, ServerError> {
        let Some(change) = change else { return Ok(true) };
        let config_map = change.config_map(broker_namespace, found);
        match found {
            Some(_) => self.replace(&config_map).await,
            None => self.create(&config_map).await,
        }
    }
}

/// Seconds are enough for a day's rest, and read better.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
