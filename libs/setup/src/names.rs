//! What a broker's objects are called: Submariner's names (chapter 3.1), and Culvert's own where it has none.

use culvert_model::ClusterId;

/// The broker's namespace unless another is chosen.
pub const BROKER_NAMESPACE: &str = "submariner-k8s-broker";
/// The account, the role and the token of whoever joins clusters.
pub const ADMIN: &str = "submariner-k8s-broker-admin";
/// The role that `subctl join` binds a member's account to.
pub const SUBMARINER_ROLE: &str = "submariner-k8s-broker-cluster";
/// A member's local copy of its broker credentials.
pub const BROKER_SECRET: &str = "submariner-broker-secret";
/// The pre-shared key of the clusterset's cables, in Secrets and in the broker file.
pub const PSK_SECRET: &str = "submariner-ipsec-psk";
/// The namespace of a joined cluster's own objects.
pub const OPERATOR_NAMESPACE: &str = "submariner-operator";
/// The broker's settings that Submariner has no place for.
pub const SETTINGS: &str = "culvert-broker";

/// Label of every object that `deploy-broker` or a join made.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "culvert");

/// Returns the namespace of the administrator's account, its token and the pre-shared key.
///
/// Submariner keeps the account in the broker's namespace, where every member that `subctl` joined reads all Secrets.
pub fn admin_namespace(broker: &str) -> String {
    format!("{broker}-admin")
}

/// Returns the name of a member's account; policies and Submariner's webhook know a member by it.
pub fn account(cluster: &ClusterId) -> String {
    format!("{ACCOUNT_PREFIX}{cluster}")
}

/// What the names of members' accounts begin with.
pub(crate) const ACCOUNT_PREFIX: &str = "cluster-";

/// Returns the user name of a member's account, without the id: `system:serviceaccount:<namespace>:cluster-`.
pub(crate) fn user_prefix(broker: &str) -> String {
    format!("system:serviceaccount:{broker}:{ACCOUNT_PREFIX}")
}
