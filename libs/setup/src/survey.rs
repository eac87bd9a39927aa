//! Reads what a cluster has of Culvert, and what its broker has of it, for those who show and diagnose it. Changes nothing.

use std::collections::BTreeMap;

use culvert_api::{Cluster, Endpoint};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::definitions::{definitions, established, serves};
use crate::error::ServerError;
use crate::globalnet::Globalnet;
use crate::globalnet_records::AllocationError;
use crate::install::data;
use crate::installation::Installation;
use crate::local::daemon_set;
use crate::manifests::{self, GATEWAY, GLOBALNET, ROUTE_AGENT};
use crate::names::{BROKER_SECRET, OPERATOR_NAMESPACE, PSK_SECRET};
use crate::networks::Discovered;
use crate::object::{Kind, ObjectRef};
use crate::secret::SecretBytes;
use crate::server::Server;
use crate::token::TokenClaims;

/// What a cluster has of Culvert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// The cluster's own API server.
    pub url: String,
    pub installation: Installation,
    /// Variables of the daemons.
    pub settings: BTreeMap<String, String>,
    pub nodes: Vec<Value>,
    /// The DaemonSets; `None` if they are not there.
    pub gateway: Option<Value>,
    pub route_agent: Option<Value>,
    pub globalnet: Option<Value>,
    /// All pods of Culvert's namespace.
    pub pods: Vec<Value>,
    /// Objects of a join that are not there or not usable, in words.
    pub missing: Vec<String>,
    pub networks: Discovered,
}

/// A broker in the cluster that is looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct HostedBroker {
    pub namespace: String,
    /// What its clusterset is for, such as `connectivity`, as far as it says so.
    pub components: Vec<String>,
    /// The members that announce themselves there.
    pub clusters: Vec<Cluster>,
    /// What it has noted of Globalnet; `None` if that is not understood.
    pub globalnet: Option<Globalnet>,
}

/// A member's broker, as far as it can be seen with the member's own credentials from where this runs.
#[derive(Clone, Debug, PartialEq)]
pub struct BrokerSeen {
    /// The API server, with scheme.
    pub url: String,
    pub namespace: String,
    /// When the member's token expires; `None` if never, or if it is no token that says so.
    pub expires: Option<Timestamp>,
    pub state: BrokerState,
}

#[derive(Clone, Debug, PartialEq)]
pub enum BrokerState {
    /// Its records.
    Seen { clusters: Vec<Cluster>, endpoints: Vec<Endpoint> },
    /// It does not take the member's token, or not for this.
    Refused(String),
    /// From here; the gateways may have another way.
    Unreachable(String),
    /// This cluster has no credentials of the broker.
    NoCredentials,
}

impl Server {
    /// Looks at what this cluster has of Culvert.
    ///
    /// # Errors
    ///
    /// [`ServerError`], also if the caller may not read something of it.
    pub async fn survey(&self) -> Result<Survey, ServerError> {
        let settings = ObjectRef::new(Kind::CONFIG_MAP, OPERATOR_NAMESPACE, manifests::SETTINGS);
        let settings = self.find(&settings).await?.unwrap_or_default();
        let networks = self.network_facts().await?.discovered();
        Ok(Survey {
            url: self.url().to_owned(),
            installation: self.installation().await?,
            settings: serde_json::from_value(settings["data"].clone()).unwrap_or_default(),
            nodes: self.nodes().await?,
            gateway: self.find(&daemon_set(GATEWAY)).await?,
            route_agent: self.find(&daemon_set(ROUTE_AGENT)).await?,
            globalnet: self.find(&daemon_set(GLOBALNET)).await?,
            pods: self.pods_in(OPERATOR_NAMESPACE).await?,
            missing: self.missing(&networks.plugin).await?,
            networks,
        })
    }

    async fn missing(&self, plugin: &str) -> Result<Vec<String>, ServerError> {
        let mut missing = Vec::new();
        for object in [manifests::base(), manifests::of_plugin(plugin)].concat() {
            let reference = ObjectRef::of(&object);
            if self.find(&reference).await?.is_none() {
                missing.push(reference.to_string());
            }
        }
        for (name, keys) in [(BROKER_SECRET, vec!["namespace", "token"]), (PSK_SECRET, vec!["psk"])] {
            let reference = ObjectRef::new(Kind::SECRET, OPERATOR_NAMESPACE, name);
            match self.find(&reference).await? {
                None => missing.push(reference.to_string()),
                Some(secret) => {
                    let lacking = keys.into_iter().filter(|key| data(&secret, key).is_none());
                    missing.extend(lacking.map(|key| format!("{key} in {reference}")));
                }
            }
        }
        for definition in definitions() {
            let reference = ObjectRef::of(&definition);
            match self.find(&reference).await? {
                None => missing.push(reference.to_string()),
                Some(found) if !established(&found) || !serves(&definition, &found) => {
                    missing.push(format!("{reference} (not served)"))
                }
                Some(_) => {}
            }
        }
        Ok(missing)
    }

    /// Looks at this cluster's broker as this cluster's gateways do, but from where this runs; `None` if the settings name
    /// none.
    ///
    /// # Errors
    ///
    /// [`ServerError`] of this cluster's own server; what the broker answers is in [`BrokerSeen`].
    pub async fn broker_seen(&self, settings: &BTreeMap<String, String>) -> Result<Option<BrokerSeen>, ServerError> {
        let setting = |name: &str| settings.get(name).filter(|value| !value.is_empty());
        let Some(address) = setting("BROKER_K8S_APISERVER") else { return Ok(None) };
        let url = format!("https://{address}");
        let secret = self.find(&ObjectRef::new(Kind::SECRET, OPERATOR_NAMESPACE, BROKER_SECRET)).await?;
        let secret = secret.unwrap_or_default();
        let text = |key: &str| data(&secret, key).and_then(|bytes| String::from_utf8(bytes).ok());
        let namespace = setting("BROKER_K8S_REMOTENAMESPACE").cloned().or_else(|| text("namespace"));
        let namespace = namespace.unwrap_or_default();
        let Some(token) = data(&secret, "token").map(SecretBytes::from) else {
            return Ok(Some(BrokerSeen { url, namespace, expires: None, state: BrokerState::NoCredentials }));
        };
        let claims = TokenClaims::of(&token).ok();
        let expires = claims.and_then(|claims| claims.validity).map(|validity| validity.expires);
        let state = match Self::of_token(&url, &token, data(&secret, "ca.crt").as_deref()).await {
            Ok(broker) => broker.records_of_broker(&namespace).await.unwrap_or_else(state_of),
            Err(error) => BrokerState::Unreachable(error.to_string()),
        };
        Ok(Some(BrokerSeen { url, namespace, expires, state }))
    }

    /// Returns the brokers in this cluster, whether or not it is a member, and whichever system made them.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn hosted_brokers(&self) -> Result<Vec<HostedBroker>, ServerError> {
        let mut brokers = Vec::new();
        for role in self.broker_roles().await? {
            let Some(namespace) = role["metadata"]["namespace"].as_str() else { continue };
            brokers.push(HostedBroker {
                namespace: namespace.to_owned(),
                components: self.recorded_components(namespace).await?.0,
                clusters: understood(self.list(Kind::CLUSTER, namespace).await?),
                globalnet: match self.globalnet(namespace).await {
                    Ok(globalnet) => Some(globalnet),
                    Err(AllocationError::Globalnet(_)) => None,
                    Err(AllocationError::Server(error)) => return Err(error),
                },
            });
        }
        Ok(brokers)
    }

    async fn records_of_broker(&self, namespace: &str) -> Result<BrokerState, ServerError> {
        Ok(BrokerState::Seen {
            clusters: understood(self.list(Kind::CLUSTER, namespace).await?),
            endpoints: understood(self.list(Kind::ENDPOINT, namespace).await?),
        })
    }
}

/// What an error of a broker tells of it.
fn state_of(error: ServerError) -> BrokerState {
    match error {
        ServerError::Unauthorized { .. } | ServerError::Forbidden { .. } => BrokerState::Refused(error.to_string()),
        ServerError::Unreachable { .. }
        | ServerError::Untrusted { .. }
        | ServerError::Unwell { .. }
        | ServerError::Refused { .. }
        | ServerError::Answer { .. }
        | ServerError::TooLong { .. } => BrokerState::Unreachable(error.to_string()),
    }
}

/// Returns the records that are understood; others are their members' matter.
fn understood<R: DeserializeOwned>(objects: Vec<Value>) -> Vec<R> {
    objects.into_iter().filter_map(|object| serde_json::from_value(object).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_token_is_not_a_broker_that_is_away() {
        let server = || "https://b".to_owned();
        let refused =
            ServerError::Unauthorized { server: server(), message: "Unauthorized".to_owned(), remedy: "join" };
        assert!(matches!(state_of(refused), BrokerState::Refused(text) if text.contains("credentials")));
        let away = ServerError::Unreachable { server: server(), cause: "no route".to_owned() };
        assert!(matches!(state_of(away), BrokerState::Unreachable(text) if text.contains("no route")));
    }
}
