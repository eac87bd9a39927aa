//! Records as they stand on the wire: what a user, a Submariner release or another cluster wrote.
//!
//! Field names, label names and number formats are Submariner's (chapters 1, 2.1, 3.4 and 4.6 of its compatibility
//! reference), of both field generations. What a record means, once checked, is a value of `culvert_model`.

mod constants;
pub mod crd;
mod duration;
mod endpoint;
mod lenient;
mod name;
mod record;
mod spec;
mod status;

pub use constants::{backend_config, gateway_record, labels, ports};
pub use duration::{go_duration, parse_go_duration};
pub use endpoint::{EndpointError, endpoint_record};
pub use k8s_openapi::ByteString;
pub use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
pub use k8s_openapi::api::core::v1::{Secret, Service};
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
pub use name::object_name;
pub use record::{Cluster, Endpoint, Gateway, Record, Resource, RouteAgent};
pub use spec::{ClusterSpec, EndpointSpec};
pub use status::{Connection, ConnectionStatus, GatewayStatus, HaStatus, LatencyRtt, RemoteEndpoint, RouteAgentStatus};
