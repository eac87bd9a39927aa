//! Sets up a broker and its members: the objects as values, and the API server that they are brought to.
//!
//! Whose names and formats: Submariner's (chapters 3.1 and 3.2), so that brokers and broker files of either system serve
//! both. What a member may write is the matter of [`Broker::objects`]' policies, what it may read that of its role.

mod ask;
mod broker_file;
mod broker_info;
mod claims;
mod definitions;
mod error;
mod globalnet;
mod globalnet_records;
mod install;
mod installation;
mod join;
mod local;
pub mod manifests;
mod member;
pub mod names;
mod networks;
mod object;
mod objects;
mod policy;
mod removal;
mod renewal;
mod rights;
mod rollout;
mod secret;
mod server;
mod site;
mod survey;
mod token;

pub use broker_file::{BROKER_FILE, BrokerFileError, read, read_if_there, write};
pub use broker_info::{BrokerInfo, BrokerInfoError, PSK_LENGTH};
pub use claims::{Conflict, claims, conflicts, conflicts_of};
pub use definitions::{Definitions, UnusableDefinition};
pub use error::{ConnectError, ServerError};
pub use globalnet::{Allocation, Globalnet, GlobalnetError, GlobalnetWish, Wish};
pub use globalnet_records::{AllocationError, Asked};
pub use install::{Existing, InstallError};
pub use installation::{GatewayNodes, Installation, LocalObstacle, Settings};
pub use join::{BrokerCredentials, JoinError, JoinRequest, JoinRights, Obstacle, join_rights, prepare_member, renew};
pub use member::Member;
pub use networks::{Discovered, Facts, Found, Networks, NetworksError};
pub use object::{Kind, ObjectRef};
pub use objects::{Broker, BrokerError, SHORTEST_TOKEN_LIFETIME, TOKEN_LIFETIME};
pub use removal::Removal;
pub use renewal::{Renewals, Step, is_renewed};
pub use rights::Right;
pub use rollout::Rollout;
pub use secret::SecretBytes;
pub use server::{Access, Granted, Server, https_url};
pub use site::{Site, SiteError};
pub use survey::{BrokerSeen, BrokerState, HostedBroker, Survey};
pub use token::{Renewal, TokenClaims, TokenError, Validity};
