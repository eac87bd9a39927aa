//! Gives a cluster its account at the broker: everything that speaks against it is said before anything is changed.
//!
//! A Culvert broker gives the member a role of its own and a token that expires. A broker that `subctl` made lets its
//! administrator do neither: there the member gets what `subctl join` would give it, Submariner's common role and a token
//! that lives for ever.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use culvert_api::{Cluster, Record};
use culvert_model::ClusterId;
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::claims::{Conflict, conflicts_of};
use crate::error::ServerError;
use crate::install::token_in;
use crate::member::{IDENTITY, Member};
use crate::names::{self, BROKER_SECRET, SUBMARINER_ROLE};
use crate::object::{Kind, ObjectRef};
use crate::objects::{TOKEN_LIFETIME, account, role_binding};
use crate::rights::{Right, list};
use crate::secret::SecretBytes;
use crate::server::{Granted, Server};
use crate::token::TokenClaims;

/// A cluster that wants to be a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    pub member: Member,
    /// What tells this cluster from others, whatever its id: the UID of its namespace `kube-system`.
    pub identity: String,
    /// Whether this cluster is a member by this id already, as its own records say: then an account and a Cluster record
    /// at the broker are its own, even if `subctl` made them.
    pub known: bool,
    /// The CIDRs that it will claim.
    pub claims: Vec<IpNet>,
}

/// What the broker file's account may do for a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinRights {
    /// Make it a role of its own, and ask for a token that expires.
    OwnRole,
    /// What `subctl join` does, and no more.
    Submariner,
}

/// How a member reaches its broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerCredentials {
    /// The broker's namespace.
    pub namespace: String,
    pub token: SecretBytes,
    /// `None` if it never expires: the broker was made by `subctl`.
    pub expires: Option<Timestamp>,
    /// Certificates in PEM that vouch for the broker's API server; `None` if those of the system do.
    pub ca: Option<Vec<u8>>,
}

/// Why a cluster cannot join, all reasons at once; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("cluster {cluster} cannot join: {}", .obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused { cluster: ClusterId, obstacles: Vec<Obstacle> },
}

/// One thing that speaks against a join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    #[error(
        "another cluster has joined as {0}: choose another id, or if that cluster is gone, delete Cluster {0} and \
         ServiceAccount cluster-{0} at the broker"
    )]
    Taken(ClusterId),
    #[error("{0}")]
    Overlap(Conflict),
    #[error("the broker file's account may not {0}: make the file anew with `recover-broker-info`")]
    Lacking(String),
}

impl BrokerCredentials {
    /// Returns the Secret `submariner-broker-secret` that a joined cluster keeps in its own namespace.
    pub fn secret(&self, namespace: &str) -> Value {
        let mut data = json!({
            "namespace": STANDARD.encode(&self.namespace),
            "token": STANDARD.encode(self.token.expose()),
        });
        if let Some(ca) = &self.ca {
            data["ca.crt"] = json!(STANDARD.encode(ca));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": BROKER_SECRET,
                "namespace": namespace,
                "labels": {names::MANAGED_BY.0: names::MANAGED_BY.1},
            },
            "type": "Opaque",
            "data": data,
        })
    }
}

/// Finds out what the account may do by which a broker is reached. Asked before all else: without these rights the rest
/// cannot be looked at.
///
/// # Errors
///
/// [`JoinError::Refused`]: not enough for a join.
pub async fn join_rights(broker: &Server, member: &Member) -> Result<JoinRights, JoinError> {
    let Member { broker: namespace, cluster } = member;
    let lacking = broker.lacking(&own_role_rights(namespace)).await?;
    if lacking.is_empty() {
        return Ok(JoinRights::OwnRole);
    }
    if broker.lacking(&submariner_rights(namespace)).await?.is_empty() {
        return Ok(JoinRights::Submariner);
    }
    let obstacles = vec![Obstacle::Lacking(list(&lacking))];
    Err(JoinError::Refused { cluster: cluster.clone(), obstacles })
}

/// Gives a cluster its account, or repairs it, and asks for a token. `broker` is reached as the broker file says, by an
/// account with `rights`; `ca` is that file's.
///
/// # Errors
///
/// [`JoinError::Refused`] before anything is changed: the id is another cluster's, a CIDR overlaps another member's.
pub async fn prepare_member(
    broker: &Server,
    rights: JoinRights,
    request: &JoinRequest,
    ca: Option<&[u8]>,
) -> Result<BrokerCredentials, JoinError> {
    let Member { broker: namespace, cluster } = &request.member;
    let obstacles = obstacles(broker, request).await?;
    if !obstacles.is_empty() {
        return Err(JoinError::Refused { cluster: cluster.clone(), obstacles });
    }
    let name = names::account(cluster);
    let (token, expires) = match rights {
        JoinRights::Submariner => (submariner_token(broker, namespace, &name).await?, None),
        JoinRights::OwnRole => {
            for object in request.member.objects(&request.identity) {
                broker.apply(&object).await?;
            }
            let lifetime = broker.token_lifetime(namespace).await?.unwrap_or(TOKEN_LIFETIME);
            let granted = broker.request_token(namespace, &name, lifetime).await?;
            (granted.token, Some(granted.expires))
        }
    };
    Ok(BrokerCredentials { namespace: namespace.clone(), token, expires, ca: ca.map(<[u8]>::to_vec) })
}

/// Asks for a new token of the account that a token is of, as that account. When: [`crate::Renewals`].
///
/// It is to live as long as the broker's setting says now, or for `lifetime` if that cannot be read.
///
/// # Errors
///
/// [`ServerError`]; the old token holds on until it expires.
pub async fn renew(broker: &Server, claims: &TokenClaims, lifetime: Duration) -> Result<Granted, ServerError> {
    let (namespace, account) = claims.account().unwrap_or_default();
    // Brokers of `subctl` have no such setting, and accounts of earlier joins may not read it.
    let lifetime = broker.token_lifetime(namespace).await.ok().flatten().unwrap_or(lifetime);
    broker.request_token(namespace, account, lifetime).await
}

async fn obstacles(broker: &Server, request: &JoinRequest) -> Result<Vec<Obstacle>, ServerError> {
    let Member { broker: namespace, cluster } = &request.member;
    let account = ObjectRef::new(Kind::SERVICE_ACCOUNT, namespace, &names::account(cluster));
    let account = broker.find(&account).await?;
    let clusters = broker.list(Kind::CLUSTER, namespace).await?;
    let clusters: Vec<Cluster> = clusters.into_iter().filter_map(|one| serde_json::from_value(one).ok()).collect();
    let mut obstacles = Vec::new();
    let recorded = clusters.iter().any(|one| one.name() == cluster.as_str());
    if is_taken(request, account.as_ref(), recorded) {
        obstacles.push(Obstacle::Taken(cluster.clone()));
    }
    let claims: Vec<String> = request.claims.iter().map(ToString::to_string).collect();
    let claims: Vec<&str> = claims.iter().map(String::as_str).collect();
    obstacles.extend(conflicts_of(cluster.as_str(), &claims, &clusters).into_iter().map(Obstacle::Overlap));
    Ok(obstacles)
}

/// Decides whether an id is another cluster's. An account says whose it is; a Cluster record does not.
fn is_taken(request: &JoinRequest, account: Option<&Value>, recorded: bool) -> bool {
    let owner = account.and_then(|account| account["metadata"]["annotations"][IDENTITY].as_str());
    match owner {
        Some(owner) => owner != request.identity,
        None => (account.is_some() || recorded) && !request.known,
    }
}

impl Server {
    /// Tells whether an id is this cluster's at a broker: its account there says so, or does not say whose it is.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn knows_member(&self, member: &Member, identity: &str) -> Result<bool, ServerError> {
        let account = ObjectRef::new(Kind::SERVICE_ACCOUNT, &member.broker, &names::account(&member.cluster));
        let account = self.find(&account).await?;
        let owner = |account: &Value| account["metadata"]["annotations"][IDENTITY].as_str().map(str::to_owned);
        Ok(account.is_some_and(|account| owner(&account).is_none_or(|owner| owner == identity)))
    }

    /// Tells whether a member's broker is on this server: its account there says whose it is.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn hosts(&self, member: &Member, identity: &str) -> Result<bool, ServerError> {
        let account = ObjectRef::new(Kind::SERVICE_ACCOUNT, &member.broker, &names::account(&member.cluster));
        let account = self.find(&account).await?;
        Ok(account.is_some_and(|account| account["metadata"]["annotations"][IDENTITY] == identity))
    }

    /// Tells whether a member's Cluster is at the broker.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub async fn has_cluster(&self, member: &Member) -> Result<bool, ServerError> {
        let record = ObjectRef::new(Kind::CLUSTER, &member.broker, member.cluster.as_str());
        Ok(self.find(&record).await?.is_some())
    }
}

fn own_role_rights(namespace: &str) -> Vec<Right> {
    let rbac = "rbac.authorization.k8s.io";
    let mut rights = vec![
        Right::new("list", "submariner.io", "clusters", Some(namespace)),
        Right::new("create", "", "serviceaccounts/token", Some(namespace)),
    ];
    for (group, resource) in [("", "serviceaccounts"), (rbac, "roles"), (rbac, "rolebindings")] {
        rights.extend(["create", "get", "patch"].map(|verb| Right::new(verb, group, resource, Some(namespace))));
    }
    rights
}

fn submariner_rights(namespace: &str) -> Vec<Right> {
    vec![
        Right::new("list", "submariner.io", "clusters", Some(namespace)),
        Right::new("create", "", "serviceaccounts", Some(namespace)),
        Right::new("get", "", "serviceaccounts", Some(namespace)),
        Right::new("create", "", "secrets", Some(namespace)),
        Right::new("list", "", "secrets", Some(namespace)),
        Right::new("create", "rbac.authorization.k8s.io", "rolebindings", Some(namespace)),
    ]
}

/// Does what `subctl join` does: account, binding to the common role, a Secret with a token.
async fn submariner_token(broker: &Server, namespace: &str, name: &str) -> Result<SecretBytes, ServerError> {
    broker.create(&account(namespace, name)).await?;
    let binding = format!("{name}-{SUBMARINER_ROLE}");
    broker.create(&role_binding(namespace, &binding, SUBMARINER_ROLE, (namespace, name))).await?;
    let secrets = broker.list(Kind::SECRET, namespace).await?;
    let of_account = |secret: &&Value| secret["metadata"]["annotations"]["kubernetes.io/service-account.name"] == name;
    if let Some((token, _)) = secrets.iter().filter(of_account).find_map(token_in) {
        return Ok(token);
    }
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": format!("{name}-token"),
            "namespace": namespace,
            "annotations": {"kubernetes.io/service-account.name": name},
        },
        "type": "kubernetes.io/service-account-token",
    });
    broker.create(&secret).await?;
    let (token, _) = broker.wait(&ObjectRef::of(&secret), token_in).await?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(known: bool) -> JoinRequest {
        let member = Member { broker: "ns".to_owned(), cluster: "east".parse().unwrap() };
        JoinRequest { member, identity: "uid-1".to_owned(), known, claims: vec![] }
    }

    #[test]
    fn an_id_is_taken_by_whoever_has_its_account() {
        let account = |owner: Option<&str>| match owner {
            Some(owner) => json!({"metadata": {"annotations": {IDENTITY: owner}}}),
            None => json!({"metadata": {}}),
        };
        for (account, recorded, known, taken) in [
            (None, false, false, false),
            (None, true, false, true),
            (None, true, true, false),
            (Some(account(None)), false, false, true),
            (Some(account(None)), true, true, false),
            (Some(account(Some("uid-1"))), true, false, false),
            (Some(account(Some("uid-2"))), false, true, true),
        ] {
            assert_eq!(is_taken(&request(known), account.as_ref(), recorded), taken, "{account:?} {recorded} {known}");
        }
    }

    #[test]
    fn a_joined_cluster_keeps_what_submariner_keeps() {
        let credentials = BrokerCredentials {
            namespace: "ns".to_owned(),
            token: b"token".to_vec().into(),
            expires: None,
            ca: Some(b"ca".to_vec()),
        };
        let secret = credentials.secret("submariner-operator");
        assert_eq!(secret["data"], json!({"ca.crt": "Y2E=", "namespace": "bnM=", "token": "dG9rZW4="}));
        assert_eq!(secret["type"], "Opaque");
        assert!(!format!("{credentials:?}").contains("token\""));
    }
}
