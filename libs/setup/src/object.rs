//! Where the API server keeps an object: the kinds that a broker is made of.

use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
}

impl Kind {
    pub const BROKER: Self = Self::new("submariner.io", "v1alpha1", "Broker", "brokers");
    pub const CLUSTER: Self = Self::new("submariner.io", "v1", "Cluster", "clusters");
    pub const CLUSTER_ROLE: Self = Self::new("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles");
    pub const CLUSTER_ROLE_BINDING: Self =
        Self::new("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings");
    pub const CONFIG_MAP: Self = Self::new("", "v1", "ConfigMap", "configmaps");
    pub const DAEMON_SET: Self = Self::new("apps", "v1", "DaemonSet", "daemonsets");
    pub const DEFINITION: Self =
        Self::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions");
    pub const ENDPOINT: Self = Self::new("submariner.io", "v1", "Endpoint", "endpoints");
    pub const NAMESPACE: Self = Self::new("", "v1", "Namespace", "namespaces");
    pub const SECRET: Self = Self::new("", "v1", "Secret", "secrets");
    pub const SERVICE_ACCOUNT: Self = Self::new("", "v1", "ServiceAccount", "serviceaccounts");
    pub const ROLE: Self = Self::new("rbac.authorization.k8s.io", "v1", "Role", "roles");
    pub const ROLE_BINDING: Self = Self::new("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings");
    pub const POLICY: Self =
        Self::new("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies");
    pub const POLICY_BINDING: Self = Self::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
    );

    const ALL: [Self; 13] = [
        Self::CLUSTER,
        Self::CLUSTER_ROLE,
        Self::CLUSTER_ROLE_BINDING,
        Self::CONFIG_MAP,
        Self::DAEMON_SET,
        Self::DEFINITION,
        Self::NAMESPACE,
        Self::SECRET,
        Self::SERVICE_ACCOUNT,
        Self::ROLE,
        Self::ROLE_BINDING,
        Self::POLICY,
        Self::POLICY_BINDING,
    ];

    const fn new(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self { group, version, kind, plural }
    }

    /// Returns the kind of an object of this crate.
    pub(crate) fn of(object: &Value) -> Self {
        let kind = object["kind"].as_str().unwrap_or_default();
        *Self::ALL.iter().find(|one| one.kind == kind).expect("this crate makes objects of kinds that it knows")
    }

    pub(crate) fn resource(&self) -> ApiResource {
        let Self { group, version, kind, plural } = self;
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }
}

/// An object's kind and name, for messages and requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    pub kind: Kind,
    /// `None` if objects of the kind belong to no namespace.
    pub namespace: Option<String>,
    pub name: String,
}

impl ObjectRef {
    pub(crate) fn of(object: &Value) -> Self {
        let metadata = &object["metadata"];
        Self {
            kind: Kind::of(object),
            namespace: metadata["namespace"].as_str().map(str::to_owned),
            name: metadata["name"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// Names an object in a namespace.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: Some(namespace.to_owned()), name: name.to_owned() }
    }
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.kind.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}
