//! A broker's objects as values: namespaces, accounts, roles, settings (Submariner chapter 3.1).
//!
//! Unlike Submariner's, the administrator's account, its token and the pre-shared key are in a namespace of their own.
//! A member that `subctl` joined lists all Secrets of the broker's namespace, since its operator does not start
//! otherwise; it finds tokens of other such members there, but neither these nor any token of a Culvert member.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use culvert_model::ClusterId;
use serde_json::{Value, json};

use crate::globalnet::Globalnet;
use crate::names::{ADMIN, MANAGED_BY, PSK_SECRET, SETTINGS, SUBMARINER_ROLE, admin_namespace};
use crate::secret::SecretBytes;

/// How long a member's token lives unless the broker says otherwise.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The shortest that the API server grants (Kubernetes, TokenRequest).
pub const SHORTEST_TOKEN_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// So that the administrator's namespace has a name too.
const LONGEST_NAMESPACE: usize = 57;

/// The key of the token lifetime, in seconds, in the settings.
pub(crate) const TOKEN_LIFETIME_KEY: &str = "token-lifetime-seconds";

/// Not the name that `subctl` gives its own: an account that it made keeps its rights.
const ADMIN_BINDING: &str = "culvert-broker-admin";

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 7] = ["create", "get", "list", "watch", "patch", "update", "delete"];

/// What a broker is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// The namespace of the clusterset's records.
    pub(crate) namespace: String,
    /// How long members' tokens live.
    pub(crate) token_lifetime: Duration,
}

/// Why there can be no such broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    #[error("--namespace: {name:?} cannot be a broker's: use 1 to {LONGEST_NAMESPACE} of a-z, 0-9 and '-'")]
    Namespace { name: String },
    #[error("--token-lifetime: {} s is too short: the API server grants {} s or more", .lifetime.as_secs(), SHORTEST_TOKEN_LIFETIME.as_secs())]
    TokenLifetime { lifetime: Duration },
}

impl Broker {
    /// Plans a broker.
    ///
    /// # Errors
    ///
    /// The namespace is no DNS label, or too long for the administrator's beside it; tokens live less than 10 minutes.
    pub fn new(namespace: &str, token_lifetime: Duration) -> Result<Self, BrokerError> {
        // A namespace and a cluster id are both labels of RFC 1123.
        if namespace.len() > LONGEST_NAMESPACE || namespace.parse::<ClusterId>().is_err() {
            return Err(BrokerError::Namespace { name: namespace.to_owned() });
        }
        if token_lifetime < SHORTEST_TOKEN_LIFETIME {
            return Err(BrokerError::TokenLifetime { lifetime: token_lifetime });
        }
        Ok(Self { namespace: namespace.to_owned(), token_lifetime })
    }

    /// Returns the namespace of the clusterset's records.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns how long members' tokens live.
    pub fn token_lifetime(&self) -> Duration {
        self.token_lifetime
    }

    /// Returns the objects that are brought to what they should be at every run, in the order in which they are needed.
    pub fn objects(&self) -> Vec<Value> {
        let admin = admin_namespace(&self.namespace);
        let mut objects = vec![
            namespace(&self.namespace),
            namespace(&admin),
            settings(self),
            account(&admin, ADMIN),
            token_secret(&admin),
            role(&self.namespace, ADMIN, admin_rules()),
            role_binding(&self.namespace, ADMIN_BINDING, ADMIN, (&admin, ADMIN)),
            role(&self.namespace, SUBMARINER_ROLE, submariner_rules()),
        ];
        objects.extend(crate::policy::objects(self));
        objects
    }

    /// Returns the objects that are made once and then belong to whoever joins clusters with Submariner's tools.
    ///
    /// `subctl join` refuses a broker without them. Both say that the feature is off.
    pub fn initial_objects(&self) -> Vec<Value> {
        let config = |name: &str, data: Value| {
            json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": self.namespace},
                "data": data,
            })
        };
        vec![
            Globalnet::default().config_map(&self.namespace, None),
            config(
                "submariner-clustersetip-info",
                json!({
                    "clustersetIPEnabled": "false",
                    "clustersetIPCidrRange": "\"243.0.0.0/8\"",
                    "clustersetIPClusterSize": "4096",
                    "clusterinfo": "[]",
                }),
            ),
        ]
    }
}

/// Returns the Secret that keeps the pre-shared key where no member reads it.
pub(crate) fn psk_secret(broker_namespace: &str, psk: &SecretBytes) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(Some(&admin_namespace(broker_namespace)), PSK_SECRET),
        "data": {"psk": STANDARD.encode(psk.expose())},
    })
}

pub(crate) fn account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(Some(namespace), name),
        // Nothing runs as it in this cluster.
        "automountServiceAccountToken": false,
    })
}

pub(crate) fn role(namespace: &str, name: &str, rules: Vec<Value>) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata(Some(namespace), name),
        "rules": rules,
    })
}

/// Returns a binding of a role to an account, which may be in another namespace.
pub(crate) fn role_binding(namespace: &str, name: &str, role: &str, account: (&str, &str)) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata(Some(namespace), name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
        "subjects": [{"kind": "ServiceAccount", "namespace": account.0, "name": account.1}],
    })
}

/// Returns a rule of a role, on all objects of these kinds or on those named.
pub(crate) fn role_rule(group: &str, resources: &[&str], verbs: &[&str], names: &[&str]) -> Value {
    let mut rule = json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    if !names.is_empty() {
        rule["resourceNames"] = json!(names);
    }
    rule
}

/// What every member does with the clusterset's records; whose they are is the policies' matter.
pub(crate) fn record_rules() -> Vec<Value> {
    vec![
        role_rule("submariner.io", &["clusters", "endpoints"], &WRITE, &[]),
        role_rule("submariner.io", &["brokers"], &["get", "list"], &[]),
        role_rule("multicluster.x-k8s.io", &["serviceimports", "serviceimports/status"], &WRITE, &[]),
        role_rule("discovery.k8s.io", &["endpointslices", "endpointslices/restricted"], &WRITE, &[]),
    ]
}

/// Submariner's rules and those of [`crate::Member`]: whoever grants a right must have it.
fn admin_rules() -> Vec<Value> {
    let mut rules = record_rules();
    rules.push(role_rule("", &["serviceaccounts", "secrets", "configmaps"], &WRITE, &[]));
    rules.push(role_rule("", &["serviceaccounts/token"], &["create"], &[]));
    rules.push(role_rule(
        "rbac.authorization.k8s.io",
        &["roles", "rolebindings"],
        &["create", "get", "list", "patch", "update", "delete"],
        &[],
    ));
    rules
}

/// The rules of members that `subctl` joined. Submariner's operator lists and watches Secrets by namespace, not by name.
fn submariner_rules() -> Vec<Value> {
    let mut rules = record_rules();
    rules.push(role_rule("", &["secrets"], &READ, &[]));
    rules.push(role_rule("", &["serviceaccounts"], &["get", "list"], &[]));
    rules
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata(None, name)})
}

fn settings(broker: &Broker) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(Some(&broker.namespace), SETTINGS),
        "data": {TOKEN_LIFETIME_KEY: broker.token_lifetime.as_secs().to_string()},
    })
}

/// The API server fills it with a token that does not expire: the broker file is kept for later joins.
fn token_secret(namespace: &str) -> Value {
    let mut metadata = metadata(Some(namespace), &admin_token());
    metadata["annotations"] = json!({"kubernetes.io/service-account.name": ADMIN});
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "kubernetes.io/service-account-token",
    })
}

/// Returns the name of the Secret with the administrator's token.
pub(crate) fn admin_token() -> String {
    format!("{ADMIN}-token")
}

fn metadata(namespace: Option<&str>, name: &str) -> Value {
    let mut metadata = json!({"name": name, "labels": {MANAGED_BY.0: MANAGED_BY.1}});
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

/// Returns objects as the documents of a YAML file, for tests to show.
#[cfg(test)]
pub(crate) fn yaml(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("---\n{}", serde_yaml_ng::to_string(object).unwrap())).collect()
}

#[cfg(test)]
mod tests;
