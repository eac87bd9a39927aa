//! The objects that a record store holds: their kinds, their frames, and what is common to them.

use std::fmt::Debug;

use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::lenient::null_as_default;
use crate::{
    ClusterGlobalEgressIPSpec, ClusterSpec, EndpointSlice, EndpointSpec, GatewayStatus, GlobalEgressIPSpec,
    GlobalEgressIPStatus, GlobalIngressIPSpec, GlobalIngressIPStatus, Lease, ObjectMeta, PodSpec, PodStatus,
    RouteAgentStatus, Secret, Service, ServiceExportSpec, ServiceExportStatus,
};

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

macro_rules! is_namespaced {
    (cluster) => {
        false
    };
}

macro_rules! record {
    (
        $(#[$doc:meta])* $kind:ident $(of the $scope:ident)?, $api_version:literal, $plural:literal,
        $content:ident: $type:ty $(, $status:ident: $status_type:ty)?
    ) => {
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
            $(
                #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "is_default")]
                pub $status: $status_type,
            )?
        }

        impl $kind {
            /// Makes a record with a name, no other metadata, and no status unless that is all it has.
            pub fn new(name: &str, $content: $type) -> Self {
                Self {
                    api_version: Self::API_VERSION.to_owned(),
                    kind: Self::KIND.to_owned(),
                    metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
                    $content,
                    $($status: <$status_type>::default(),)?
                }
            }
        }

        impl Record for $kind {
            const API_VERSION: &'static str = $api_version;
            const KIND: &'static str = stringify!($kind);
            const PLURAL: &'static str = $plural;
            $(const IS_NAMESPACED: bool = is_namespaced!($scope);)?

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
    Cluster, "submariner.io/v1", "clusters", spec: ClusterSpec
}

record! {
    /// A gateway of a cluster and what is reached through it.
    Endpoint, "submariner.io/v1", "endpoints", spec: EndpointSpec
}

record! {
    /// What a gateway node is doing; it has no spec.
    Gateway, "submariner.io/v1", "gateways", status: GatewayStatus
}

record! {
    /// What a node's route agent is doing; it has no spec.
    RouteAgent, "submariner.io/v1", "routeagents", status: RouteAgentStatus
}

record! {
    /// Global addresses by which pods of its namespace leave.
    GlobalEgressIP, "submariner.io/v1", "globalegressips", spec: GlobalEgressIPSpec, status: GlobalEgressIPStatus
}

record! {
    /// Global addresses by which everything else leaves; it has no namespace.
    ClusterGlobalEgressIP of the cluster, "submariner.io/v1", "clusterglobalegressips",
    spec: ClusterGlobalEgressIPSpec, status: GlobalEgressIPStatus
}

record! {
    /// The global address of an exported service, or of a headless one's pod or endpoint.
    GlobalIngressIP, "submariner.io/v1", "globalingressips", spec: GlobalIngressIPSpec, status: GlobalIngressIPStatus
}

record! {
    /// What is read of a pod.
    Pod, "v1", "pods", spec: PodSpec, status: PodStatus
}

record! {
    /// A user's word that the Service of the same name and namespace is for the whole clusterset.
    ServiceExport, "multicluster.x-k8s.io/v1alpha1", "serviceexports",
    spec: ServiceExportSpec, status: ServiceExportStatus
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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

foreign_record!(EndpointSlice);
foreign_record!(Lease);
foreign_record!(Secret);
foreign_record!(Service);
