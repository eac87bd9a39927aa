//! The objects that a record store holds: their kinds, their frames, and what is common to them.

use std::fmt::Debug;

use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::lenient::null_as_default;
use crate::{ClusterSpec, EndpointSpec, GatewayStatus, Lease, ObjectMeta, RouteAgentStatus, Secret, Service};

/// What the objects of one kind are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Group and version, such as `submariner.io/v1`.
    pub api_version: &'static str,
    /// The kind, such as `Endpoint`.
    pub kind: &'static str,
    /// The kind in the plural and in lower case, such as `endpoints`.
    pub plural: &'static str,
    /// Whether each object belongs to a namespace, as opposed to the whole cluster.
    pub is_namespaced: bool,
}

/// A Kubernetes object that a record store can hold.
pub trait Record: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Group and version, such as `submariner.io/v1`.
    const API_VERSION: &'static str;
    /// The kind, such as `Endpoint`.
    const KIND: &'static str;
    /// The kind in the plural and in lower case, such as `endpoints`.
    const PLURAL: &'static str;
    /// Whether each object belongs to a namespace, as opposed to the whole cluster.
    const IS_NAMESPACED: bool = true;
    /// All of them.
    const RESOURCE: Resource = Resource {
        api_version: Self::API_VERSION,
        kind: Self::KIND,
        plural: Self::PLURAL,
        is_namespaced: Self::IS_NAMESPACED,
    };

    /// Returns the group and version that this object names, which may be wrong.
    fn api_version(&self) -> &str;

    /// Returns the kind that this object names, which may be wrong.
    fn kind(&self) -> &str;

    fn metadata(&self) -> &ObjectMeta;

    fn metadata_mut(&mut self) -> &mut ObjectMeta;

    /// Returns the object's name, empty if it has none.
    fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// Returns the object's namespace, empty if it has none.
    fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }
}

macro_rules! record {
    ($(#[$doc:meta])* $kind:ident, $plural:literal, $content:ident: $type:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $kind {
            pub api_version: String,
            pub kind: String,
            #[serde(default, deserialize_with = "null_as_default")]
            pub metadata: ObjectMeta,
            #[serde(default, deserialize_with = "null_as_default")]
            pub $content: $type,
        }

        impl $kind {
            /// Makes a record with a name and no other metadata.
            pub fn new(name: &str, $content: $type) -> Self {
                Self {
                    api_version: Self::API_VERSION.to_owned(),
                    kind: Self::KIND.to_owned(),
                    metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
                    $content,
                }
            }
        }

        impl Record for $kind {
            const API_VERSION: &'static str = "submariner.io/v1";
            const KIND: &'static str = stringify!($kind);
            const PLURAL: &'static str = $plural;

            fn api_version(&self) -> &str {
                &self.api_version
            }

            fn kind(&self) -> &str {
                &self.kind
            }

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

record! {
    /// A member of the clusterset.
    Cluster, "clusters", spec: ClusterSpec
}

record! {
    /// A gateway of a cluster and what is reached through it.
    Endpoint, "endpoints", spec: EndpointSpec
}

record! {
    /// What a gateway node is doing; it has no spec.
    Gateway, "gateways", status: GatewayStatus
}

record! {
    /// What a node's route agent is doing; it has no spec.
    RouteAgent, "routeagents", status: RouteAgentStatus
}

/// What Kubernetes' own kinds say of where their objects belong.
trait ForeignScope {
    const IS_NAMESPACED: bool;
}

impl ForeignScope for NamespaceResourceScope {
    const IS_NAMESPACED: bool = true;
}

impl ForeignScope for ClusterResourceScope {
    const IS_NAMESPACED: bool = false;
}

/// Makes a kind of Kubernetes' own a record.
macro_rules! foreign_record {
    ($kind:ty) => {
        impl Record for $kind {
            const API_VERSION: &'static str = <Self as k8s_openapi::Resource>::API_VERSION;
            const KIND: &'static str = <Self as k8s_openapi::Resource>::KIND;
            const PLURAL: &'static str = <Self as k8s_openapi::Resource>::URL_PATH_SEGMENT;
            const IS_NAMESPACED: bool = <<Self as k8s_openapi::Resource>::Scope as ForeignScope>::IS_NAMESPACED;

            fn api_version(&self) -> &str {
                k8s_openapi::api_version(self)
            }

            fn kind(&self) -> &str {
                k8s_openapi::kind(self)
            }

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

foreign_record!(Lease);
foreign_record!(Secret);
foreign_record!(Service);
