//! Records as they stand on the wire: what a user, a Submariner release or another cluster wrote.
//!
//! Field names, label names and number formats are Submariner's (chapters 1, 2.1, 3.4, 4.6 and 8 of its compatibility
//! reference), of both field generations. What a record means, once checked, is a value of `culvert_model`.

mod constants;
pub mod crd;
mod duration;
mod endpoint;
mod global;
mod lenient;
mod name;
mod record;
mod spec;
mod status;
mod workload;

pub use constants::{backend_config, gateway_record, globalnet, labels, ports};
pub use duration::{go_duration, parse_go_duration};
pub use endpoint::{EndpointError, endpoint_record};
pub use global::{
    ClusterGlobalEgressIPSpec, Condition, GlobalEgressIPSpec, GlobalEgressIPStatus, GlobalIngressIPSpec,
    GlobalIngressIPStatus, LocalReference,
};
pub use k8s_openapi::ByteString;
pub use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
pub use k8s_openapi::api::core::v1::{Secret, Service};
pub use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointPort, EndpointSlice};
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta, Time};
pub use k8s_openapi::jiff::Timestamp;
pub use name::object_name;
pub use record::{
    Cluster, ClusterGlobalEgressIP, Endpoint, Gateway, GlobalEgressIP, GlobalIngressIP, Pod, Record, Resource,
    RouteAgent, ServiceExport,
};
pub use spec::{ClusterSpec, EndpointSpec};
pub use status::{Connection, ConnectionStatus, GatewayStatus, HaStatus, LatencyRtt, RemoteEndpoint, RouteAgentStatus};
pub use workload::{PodIp, PodSpec, PodStatus, ServiceExportSpec, ServiceExportStatus};
