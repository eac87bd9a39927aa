//! Brings a broker to a cluster: what is found there first, and what is missing, before anything is changed.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::claims::{Conflict, conflicts};
use crate::definitions::{UnusableDefinition, definitions};
use crate::error::ServerError;
use crate::names::{ADMIN, PSK_SECRET, SETTINGS, admin_namespace, user_prefix};
use crate::object::{Kind, ObjectRef};
use crate::objects::{Broker, TOKEN_LIFETIME_KEY, admin_token, psk_secret};
use crate::rights::{Right, granted, list};
use crate::secret::SecretBytes;
use crate::server::Server;

/// The first release with ValidatingAdmissionPolicy and CEL's `cidr` in stable form.
const OLDEST: (u32, u32) = (1, 30);
/// How long the server's controllers may take for a token or a definition.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no broker, or none in order.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(
        "API server {server} is Kubernetes {}.{}: a broker needs {}.{} or newer, which checks what members write",
        found.0, found.1, OLDEST.0, OLDEST.1
    )]
    TooOld { server: String, found: (u32, u32) },
    #[error(
        "API server {server} does not allow you to {}: ask for these rights, or use another context",
        list(lacking)
    )]
    Lacking { server: String, lacking: Vec<Right> },
    #[error(
        "there is no broker in namespace {namespace} of {server}: name its namespace, or run `deploy-broker` first"
    )]
    NoBroker { server: String, namespace: String },
    #[error("API server {server}: {}", .unusable.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Definitions { server: String, unusable: Vec<UnusableDefinition> },
}

/// What is at the broker before a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// How long tokens live by the settings; `None` if there are none.
    pub token_lifetime: Option<Duration>,
    /// The pre-shared key that an earlier run put there.
    pub psk: Option<SecretBytes>,
    /// Definitions that somebody else or a newer release made: they stay as they are.
    pub kept_definitions: BTreeSet<String>,
    /// CIDRs that two members claim.
    pub conflicts: Vec<Conflict>,
    /// Secrets in the broker's namespace with a token of the administrator: `subctl` made them, and every member that it
    /// joined reads them.
    pub exposed_tokens: Vec<String>,
}

impl Server {
    /// Looks at a server before a broker is brought there. Changes nothing.
    ///
    /// # Errors
    ///
    /// It cannot be reached, is too old, does not allow what is needed, all missing rights being named at once, or has
    /// definitions that this release cannot work with.
    pub async fn look_at_broker(&self, broker: &Broker) -> Result<Existing, InstallError> {
        let found = self.version().await?;
        if found < OLDEST {
            return Err(InstallError::TooOld { server: self.url().to_owned(), found });
        }
        let mut lacking = self.lacking(&rights(broker)).await?;
        lacking.extend(self.lacking_to_grant(&granted(&broker.objects())).await?);
        if !lacking.is_empty() {
            return Err(InstallError::Lacking { server: self.url().to_owned(), lacking });
        }
        let definitions = self.found_definitions().await?;
        if !definitions.unusable.is_empty() {
            let unusable = definitions.unusable;
            return Err(InstallError::Definitions { server: self.url().to_owned(), unusable });
        }
        let clusters = self.list(Kind::CLUSTER, &broker.namespace).await?;
        let clusters: Vec<_> = clusters.into_iter().filter_map(|one| serde_json::from_value(one).ok()).collect();
        Ok(Existing {
            token_lifetime: self.token_lifetime(&broker.namespace).await?,
            psk: self.broker_psk(&broker.namespace).await?,
            kept_definitions: definitions.kept,
            conflicts: conflicts(&clusters),
            exposed_tokens: self.admin_secrets(&broker.namespace).await?.iter().map(name_of).collect(),
        })
    }

    /// Waits until the server's policies are in force: it takes them up a moment after they were made. `false` if that
    /// cannot be found out, since it takes the right to act as somebody else.
    ///
    /// # Errors
    ///
    /// [`ServerError`], also if it takes too long.
    pub async fn wait_enforced(&self, broker: &Broker) -> Result<bool, ServerError> {
        let what = "the policies on what members write";
        // What no member may write, as a member with all rights of a cluster's administrator. Nothing is kept of it.
        let probe = json!({
            "apiVersion": "submariner.io/v1",
            "kind": "Cluster",
            "metadata": {"name": "not-probe", "namespace": broker.namespace},
            "spec": {"cluster_id": "probe", "color_codes": [], "service_cidr": [], "cluster_cidr": [], "global_cidr": []},
        });
        let user = format!("{}probe", user_prefix(&broker.namespace));
        let poll = async {
            loop {
                match self.would_answer(&user, "system:masters", &probe).await {
                    Ok(()) => tokio::time::sleep(PAUSE).await,
                    Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy") => {
                        return Ok(true);
                    }
                    Err(kube::Error::Api(status)) if status.code == 403 => return Ok(false),
                    Err(error) => return Err(self.error(what, &error)),
                }
            }
        };
        tokio::time::timeout(PATIENCE, poll).await.map_err(|_| self.too_long(what, PATIENCE.as_secs()))?
    }

    /// Returns the administrator's token and the certificates that vouch for the server, once they are there.
    ///
    /// # Errors
    ///
    /// [`ServerError`], also if the server's controllers make no token.
    pub async fn admin_token(&self, broker_namespace: &str) -> Result<(SecretBytes, Option<Vec<u8>>), ServerError> {
        let reference = ObjectRef::new(Kind::SECRET, &admin_namespace(broker_namespace), &admin_token());
        self.wait(&reference, token_in).await
    }

    /// Returns what a broker file needs of a broker that is there, made by Culvert or by `subctl`.
    ///
    /// # Errors
    ///
    /// [`InstallError::NoBroker`] if no token of an administrator is there.
    pub async fn recover_token(&self, broker_namespace: &str) -> Result<(SecretBytes, Option<Vec<u8>>), InstallError> {
        let own = ObjectRef::new(Kind::SECRET, &admin_namespace(broker_namespace), &admin_token());
        if let Some(found) = self.find(&own).await?.as_ref().and_then(token_in) {
            return Ok(found);
        }
        let found = self.admin_secrets(broker_namespace).await?.iter().find_map(token_in);
        found.ok_or_else(|| InstallError::NoBroker {
            server: self.url().to_owned(),
            namespace: broker_namespace.to_owned(),
        })
    }

    /// Returns the components and the custom domains that `subctl` recorded for a broker; none if it made none.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn recorded_components(&self, broker_namespace: &str) -> Result<(Vec<String>, Vec<String>), ServerError> {
        let brokers = self.list(Kind::BROKER, broker_namespace).await?;
        let spec = brokers.first().map(|broker| &broker["spec"]);
        let texts = |field: &str| -> Vec<String> {
            let values = spec.and_then(|spec| spec[field].as_array()).into_iter().flatten();
            values.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Ok((texts("components"), texts("defaultCustomDomains")))
    }

    /// Returns the pre-shared key that `deploy-broker` keeps beside the administrator's token.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn broker_psk(&self, broker_namespace: &str) -> Result<Option<SecretBytes>, ServerError> {
        self.psk_in(&admin_namespace(broker_namespace)).await
    }

    /// Returns the pre-shared key in a namespace, as a joined cluster has it too.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn psk_in(&self, namespace: &str) -> Result<Option<SecretBytes>, ServerError> {
        let secret = self.find(&ObjectRef::new(Kind::SECRET, namespace, PSK_SECRET)).await?;
        Ok(secret.as_ref().and_then(|secret| data(secret, "psk")).map(SecretBytes::from))
    }

    /// Keeps the pre-shared key at the broker, where no member reads it.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn keep_psk(&self, broker_namespace: &str, psk: &SecretBytes) -> Result<(), ServerError> {
        self.apply(&psk_secret(broker_namespace, psk)).await
    }

    /// Returns the lifetime of tokens by a broker's settings; `None` if `subctl` made the broker.
    pub(crate) async fn token_lifetime(&self, broker_namespace: &str) -> Result<Option<Duration>, ServerError> {
        let settings = self.find(&ObjectRef::new(Kind::CONFIG_MAP, broker_namespace, SETTINGS)).await?;
        Ok(settings.as_ref().and_then(lifetime_in))
    }

    /// Waits until an object is there and gives what is wanted of it.
    pub(crate) async fn wait<T>(
        &self,
        reference: &ObjectRef,
        wanted: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, ServerError> {
        let poll = async {
            loop {
                if let Some(found) = self.find(reference).await?.as_ref().and_then(&wanted) {
                    return Ok(found);
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let timed_out = |_| self.too_long(reference.to_string(), PATIENCE.as_secs());
        tokio::time::timeout(PATIENCE, poll).await.map_err(timed_out)?
    }

    async fn admin_secrets(&self, broker_namespace: &str) -> Result<Vec<Value>, ServerError> {
        let mut secrets = self.list(Kind::SECRET, broker_namespace).await?;
        secrets.retain(|secret| secret["metadata"]["annotations"]["kubernetes.io/service-account.name"] == ADMIN);
        Ok(secrets)
    }
}

/// Returns the token and the certificates in a Secret of an account.
pub(crate) fn token_in(secret: &Value) -> Option<(SecretBytes, Option<Vec<u8>>)> {
    Some((data(secret, "token")?.into(), data(secret, "ca.crt")))
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

pub(crate) fn data(secret: &Value, key: &str) -> Option<Vec<u8>> {
    STANDARD.decode(secret["data"][key].as_str()?).ok().filter(|bytes| !bytes.is_empty())
}

fn lifetime_in(settings: &Value) -> Option<Duration> {
    Some(Duration::from_secs(settings["data"][TOKEN_LIFETIME_KEY].as_str()?.parse().ok()?))
}

/// Returns the rights that bringing the objects takes.
fn rights(broker: &Broker) -> Vec<Right> {
    let objects = definitions().into_iter().chain(broker.objects()).chain(broker.initial_objects());
    let needed = objects.flat_map(|object| {
        let reference = ObjectRef::of(&object);
        ["create", "get", "list", "patch"].map(|verb| Right {
            verb,
            group: reference.kind.group.to_owned(),
            resource: reference.kind.plural.to_owned(),
            namespace: reference.namespace.clone(),
        })
    });
    let mut needed: BTreeSet<Right> = needed.collect();
    // Of what `subctl` made too, and only as long as nobody else has changed it meanwhile.
    needed.insert(Right::new("update", "", "configmaps", Some(&broker.namespace)));
    needed.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_has_a_right_that_is_checked_first() {
        let broker = Broker { namespace: "ns".to_owned(), token_lifetime: Duration::from_secs(3600) };
        let rights = list(&rights(&broker));
        for right in [
            "create/get/list/patch namespaces, ",
            "patch customresourcedefinitions.apiextensions.k8s.io, ",
            "patch secrets in namespace ns-admin, ",
            "patch roles.rbac.authorization.k8s.io in namespace ns, ",
            "list/patch validatingadmissionpolicybindings.admissionregistration.k8s.io",
        ] {
            assert!(rights.contains(right), "{right} is not in {rights}");
        }
    }
}
